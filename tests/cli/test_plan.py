"""`edgefed plan`: for boards and models that are not here, for this machine, and where nothing fits."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgefed.cli.quantities import bits_per_second, seconds
from edgefed.errors import ConfigError, NoPlan


@pytest.mark.parametrize("size", ["small", "base", "large", "xl", "xxl"])
def test_every_flan_t5_can_be_planned_for_without_its_files(edgefed: Callable[..., Any], size: str) -> None:
    done = edgefed("plan", "--model", f"google/flan-t5-{size}", "--profile", "jetson-agx-orin-64gb", "--json")
    document = json.loads(done.out)
    chosen = document["chosen"]
    assert done.code == 0, done.err
    assert document["emulated"] == "jetson-agx-orin-64gb"
    assert chosen["needed_bytes"] <= document["budget_bytes"]
    assert chosen["peak_bytes"] == sum(chosen["peak_bytes_by_part"].values())
    assert [one["lost"] for one in document["candidates"]].count("") == 1
    assert all(one["lost"] or one == chosen for one in document["candidates"])
    assert chosen["rank"] == 32


def test_people_read_the_choice_the_reason_the_parts_and_why_each_loser_lost(edgefed: Callable[..., Any]) -> None:
    done = edgefed(
        "plan", "--model", "google/flan-t5-xl", "--profile", "jetson-orin-nano-8gb:15W", "--lengths", "128,32"
    )
    assert done.code == 0, done.err
    assert "google/flan-t5-xl on jetson-orin-nano-8gb in 15W (emulated): 128 + 32 tokens" in done.out
    assert "because: rank 32, the largest that the federation trains; int8, for bf16 needs" in done.out
    assert "base weights\t" in done.out
    assert "fits, but int8 does too, and keeps the base more exactly" in done.out
    assert "GiB may be used" in done.out


def test_nothing_fits_and_the_exit_code_says_so(edgefed: Callable[..., Any]) -> None:
    done = edgefed("plan", "--model", "google/flan-t5-xxl", "--profile", "jetson-nano-4gb", "--json")
    assert done.code == NoPlan.exit_code == 13
    assert json.loads(done.out)["chosen"] is None
    assert "google/flan-t5-xxl fits no allowed plan on jetson-nano-4gb" in done.err
    assert "may be used" in done.err
    late = edgefed("plan", "--model", "google/flan-t5-base", "--profile", "jetson-nano-4gb", "--deadline", "1s")
    assert late.code == 13
    assert "no plan meets the deadline; the quickest" in late.err


def test_a_slow_link_is_assumed_on_request(edgefed: Callable[..., Any]) -> None:
    options = ("--model", "google/flan-t5-base", "--profile", "rtx-4090", "--deadline", "120s", "--json")
    fast, slow = (json.loads(edgefed("plan", *options, "--uplink", rate).out) for rate in ("1Gbit/s", "128kbit/s"))
    assert fast["chosen"]["rank"] == 32
    assert slow["chosen"]["rank"] < 32
    assert "upload" in slow["reason"]


@pytest.mark.torch
def test_this_machine_is_measured_for_a_federation_and_its_agent(edgefed: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "federation.toml").write_text('fleet = "f"\nmodel.name = "edgefed/tiny-t5"\nmethod.ranks = [2, 4, 8]\n')
    (tmp_path / "agent.toml").write_text(
        'device = "a"\nfleet = "f"\nstate = "state"\ndata.path = "none.jsonl"\nlimits.max_rank = 4\nbroker.port = 1\n'
        "limits.threads = 1\n"
    )
    done = edgefed("plan", "-f", tmp_path / "federation.toml", "-c", tmp_path / "agent.toml", "--json")
    assert done.code == 0, done.err
    document = json.loads(done.out)
    assert (document["model"], document["emulated"]) == ("edgefed/tiny-t5", None)
    assert document["chosen"]["rank"] == 4
    assert document["reason"].startswith("rank 4, the largest that the owner allows")
    assert document["chosen"]["step_s"] > 0


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        ((), 3, "which model? name it with --model"),
        (("--model", "bert-base-uncased"), 5, "the layout of 'bert-base-uncased' is not known"),
        (("--model", "google/flan-t5-base", "--profile", "jetson-orin-nino"), 3, "jetson-orin-nano"),
        (("--model", "google/flan-t5-base", "--profile", "jetson-orin-nano-8gb:16W"), 3, "16W"),
        (("--model", "google/flan-t5-base", "--lengths", "512"), 3, "--lengths is '512'"),
        (("--model", "google/flan-t5-base", "--deadline", "soon"), 3, "--deadline is 'soon'; it must be a duration"),
        (("--model", "google/flan-t5-base", "--profile", "rtx-4090", "--uplink", "5 bananas"), 3, "--uplink is"),
        (("--model", "google/flan-t5-base", "--profile", "rtx-4090", "--quantization", "int3"), 3, "fp32, bf16, int8"),
        (("--model", "google/flan-t5-base", "--profile", "rtx-4090", "--config", "a.toml"), 3, "give one of them"),
    ],
)
def test_what_cannot_be_is_said(edgefed: Callable[..., Any], options: tuple[str, ...], code: int, says: str) -> None:
    done = edgefed("plan", *options)
    assert (done.code, done.out) == (code, "")
    assert says in done.err


def test_quantities() -> None:
    assert (seconds("300s", "x"), seconds("10min", "x"), seconds("1.5h", "x"), seconds("90", "x")) == (
        300,
        600,
        5400,
        90,
    )
    assert (bits_per_second("256kbit/s", "x"), bits_per_second("1 Gbit/s", "x")) == (256e3, 1e9)
    for wrong in ("", "-3s", "0", "3 days", "1e3"):
        with pytest.raises(ConfigError, match="x is "):
            seconds(wrong, "x")
