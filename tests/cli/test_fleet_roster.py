"""`edgefed fleet list | show | label | pause | …` on what is on disk: no aggregator is running."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgefed.coordinator.roster import read_roster
from edgefed.coordinator.run_directory import RunDirectory
from edgefed.coordinator.sightings import Sightings
from edgefed.devices.profile import read_profile
from edgefed.protocol.messages.manifest import Plan
from edgefed.protocol.messages.retained import DeviceState

Run = Callable[..., Any]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run in which three boards were heard, one of them at work."""
    directory = RunDirectory(tmp_path / "run")
    sightings = Sightings(directory)
    for device, status in (("board-1", "training"), ("board-2", "ready"), ("board-3", "lost")):
        sightings.hear_state(device, DeviceState(status=status, instance="i", round=4, note=f"{status} now"))  # type: ignore[arg-type]
    sightings.hear_plan("board-1", Plan(rank=8, held_rank=4, quantization="nf4"))
    sightings.hear_profile("board-1", read_profile(tmp_path, quantization="auto", max_rank=8))
    sightings.save(lambda: frozenset({"board-1"}), at_once=True)
    return directory.path


def rows(edgefed: Run, run: Path, *options: object) -> dict[str, dict[str, str]]:
    done = edgefed("fleet", "list", "--run", run, *options)
    assert done.code == 0, done.err
    header, *lines = [line.split("\t") for line in done.out.splitlines()]
    return {line[0]: dict(zip(header, line, strict=True)) for line in lines}


def test_every_device_is_listed_as_it_was_last_heard(edgefed: Run, run: Path) -> None:
    listed = rows(edgefed, run)
    assert list(listed) == ["board-1", "board-2", "board-3"]
    first = listed["board-1"]
    assert (first["standing"], first["status"], first["round"], first["plan"]) == (
        "active", "training", "4", "rank 8 over nf4",
    )  # fmt: skip
    assert first["seen"].endswith("Z")
    assert listed["board-3"]["seen"] == "", "it was never heard itself"


def test_what_is_wanted_is_written_down_and_shown(edgefed: Run, run: Path) -> None:
    assert edgefed("fleet", "pause", "board-2", "--run", run, "--reason", "too warm").code == 0
    done = edgefed("fleet", "drain", "board-1", "board-3", "--run", run, "--json")
    assert json.loads(done.out) == {"standing": "draining", "devices": ["board-1", "board-3"]}
    listed = rows(edgefed, run)
    assert {name: row["standing"] for name, row in listed.items()} == {
        "board-1": "draining", "board-2": "paused", "board-3": "drained",
    }  # fmt: skip
    assert listed["board-2"]["note"] == "too warm"
    assert edgefed("fleet", "resume", "board-2", "--run", run).out == "board-2: gets tasks again\n"
    assert rows(edgefed, run)["board-2"]["standing"] == "active"


def test_labels_choose(edgefed: Run, run: Path) -> None:
    assert edgefed("fleet", "label", "board-1", "room=lab", "power=mains", "--run", run).out == (
        "board-1: power=mains room=lab\n"
    )
    assert edgefed("fleet", "label", "board-2", "room=lab", "--run", run).code == 0
    assert list(rows(edgefed, run, "--label", "room=lab")) == ["board-1", "board-2"]
    assert list(rows(edgefed, run, "-l", "room=lab", "-l", "power=mains")) == ["board-1"]
    done = edgefed("fleet", "pause", "-l", "room=lab", "--run", run, text="n\n")
    assert (done.code, "board-1, board-2. Go on?" in done.err) == (1, True)
    assert not read_roster(run / "roster.json").held
    assert edgefed("fleet", "pause", "-l", "room=lab", "--run", run, text="y\n").code == 0
    assert edgefed("fleet", "pause", "board-3", "-l", "room=lab", "--run", run, "--yes").code == 3
    assert dict(read_roster(run / "roster.json").held) == {"board-1": "paused", "board-2": "paused"}
    done = edgefed("fleet", "label", "board-1", "room=", "--run", run, "--json")
    assert json.loads(done.out) == {"device": "board-1", "labels": {"power": "mains"}}


def test_a_label_that_nobody_has_is_told(edgefed: Run, run: Path) -> None:
    done = edgefed("fleet", "list", "--run", run, "-l", "room=attic")
    assert (done.code, done.err) == (0, "no device has the labels room=attic\n")
    assert json.loads(edgefed("fleet", "list", "--run", run, "-l", "room=attic", "--json").out)["devices"] == []
    edgefed("fleet", "label", "board-2", "room=lab", "--run", run)
    edgefed("fleet", "remove", "board-2", "--run", run, "--yes")
    assert edgefed("fleet", "list", "--run", run, "-l", "room=lab").err == "", "it has them, and is not shown"


def test_the_first_reason_stays_where_no_other_is_given(edgefed: Run, run: Path) -> None:
    edgefed("fleet", "pause", "board-2", "--run", run, "--reason", "too warm")
    assert edgefed("fleet", "pause", "board-2", "--run", run).code == 0
    assert rows(edgefed, run)["board-2"]["note"] == "too warm"


def test_who_is_resumed_without_a_certificate_is_warned_of(edgefed: Run, run: Path, tmp_path: Path) -> None:
    kitchen = tmp_path / "kitchen"
    assert edgefed("fleet", "init", kitchen, "--broker-host", "b").code == 0
    for device in ("board-1", "board-2"):
        edgefed("fleet", "enroll", device, "-f", kitchen)
    edgefed("fleet", "remove", "board-1", "--run", run, "-f", kitchen, "--revoke", "--yes")
    done = edgefed("fleet", "resume", "board-1", "board-2", "--run", run, "-f", kitchen)
    assert done.code == 0
    assert "the certificate of board-1 was revoked: it stays out until it has another" in done.err
    assert "board-2" not in done.err
    assert edgefed("fleet", "resume", "board-1", "--run", run).err == ""
    edgefed("fleet", "enroll", "board-1", "-f", kitchen)
    assert edgefed("fleet", "resume", "board-1", "--run", run, "-f", kitchen).err == ""


def test_who_is_removed_is_listed_only_where_all_are(edgefed: Run, run: Path) -> None:
    done = edgefed("fleet", "remove", "board-2", "--run", run, text="\n")
    assert (done.code, read_roster(run / "roster.json").held) == (1, ())
    assert edgefed("fleet", "remove", "board-2", "--run", run, "--yes").code == 0
    assert "board-2" not in rows(edgefed, run)
    assert rows(edgefed, run, "--all")["board-2"]["standing"] == "removed"


def test_one_device_in_full(edgefed: Run, run: Path) -> None:
    edgefed("fleet", "label", "board-1", "room=lab", "--run", run)
    shown = edgefed("fleet", "show", "board-1", "--run", run).out
    for words in ("standing\tactive", "labels\troom=lab", "status\ttraining", "plan\trank 8 over nf4", "processor"):
        assert words in shown
    document = json.loads(edgefed("fleet", "show", "board-1", "--run", run, "--json").out)
    assert document["state"]["note"] == "training now"
    assert document["profile"]["max_rank"] == 8
    assert "certificate" not in document


def test_certificates_stand_beside(edgefed: Run, run: Path, tmp_path: Path) -> None:
    kitchen = tmp_path / "kitchen"
    assert edgefed("fleet", "init", kitchen, "--broker-host", "b").code == 0
    for device in ("board-1", "board-9"):
        assert edgefed("fleet", "enroll", device, "-f", kitchen).code == 0
    listed = rows(edgefed, run, "--fleet", kitchen)
    assert {name: row["certificate"] for name, row in listed.items()} == {
        "board-1": "in force", "board-2": "none", "board-3": "none", "board-9": "in force",
    }  # fmt: skip
    assert listed["board-9"]["status"] == ""
    done = edgefed("fleet", "remove", "board-1", "--run", run, "--fleet", kitchen, "--revoke", "--yes")
    assert (done.code, "revoked" in done.err) == (0, True)
    assert f"an aggregator on another machine has to get {kitchen / 'aggregator' / 'crl.pem'}" in done.err
    document = json.loads(edgefed("fleet", "list", "--run", run, "-f", kitchen, "--all", "--json").out)
    assert document["fleet"] == "kitchen"
    assert {one["device"]: (one["certificate"] or {}).get("state") for one in document["devices"]} == {
        "board-1": "revoked", "board-2": None, "board-3": None, "board-9": "in force",
    }  # fmt: skip
    assert "certificate" in edgefed("fleet", "show", "board-9", "--run", run, "-f", kitchen).out


@pytest.mark.parametrize(
    ("words", "code", "problem"),
    [
        (("pause", "bord-1"), 3, "no device 'bord-1' has been heard of in this run: did you mean board-1 or"),
        (("pause",), 3, "which devices? Name them, or choose them with --label"),
        (("resume", "--label", "room=attic"), 3, "no device has the labels room=attic"),
        (("label", "board-1", "room"), 3, "'room' is no label: write KEY=VALUE"),
        (("show", "nobody"), 3, "3 are known"),
        (("remove", "board-1", "--revoke"), 3, "name the fleet's directory with --fleet"),
    ],
)
def test_what_cannot_be(edgefed: Run, run: Path, words: tuple[str, ...], code: int, problem: str) -> None:
    done = edgefed("fleet", *words, "--run", run)
    assert done.code == code
    assert problem in done.err
    assert not (run / "roster.json").exists()


def test_which_run_is_said_once(edgefed: Run, run: Path, tmp_path: Path) -> None:
    assert "give one of them" in edgefed("fleet", "list", "--run", run, "--config", "federation.toml").err
    assert "is no run's directory" in edgefed("fleet", "list", "--run", tmp_path / "none").err
    assert "name it with --run" in edgefed("fleet", "list", "--label", "a=b").err
    config = tmp_path / "federation.toml"
    config.write_text(f'fleet = "test"\ndirectory = "{run}"\n[model]\nname = "m"\n')
    assert edgefed("fleet", "list", "--config", config).out == edgefed("fleet", "list", "--run", run).out


def test_a_damaged_document_is_told(edgefed: Run, run: Path) -> None:
    (run / "roster.json").write_text("{")
    for words in (("list",), ("pause", "board-1"), ("show", "board-1")):
        done = edgefed("fleet", *words, "--run", run)
        assert (done.code, "roster.json is damaged" in done.err) == (9, True)
