"""`edgefed profile`: a document for programs, lines for people, and words where the network cannot be measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgefed.cli.profile_view import describe_board, human, profile_lines
from edgefed.devices.board_files import find_board
from edgefed.devices.compute import ComputeProfile
from edgefed.devices.emulation import emulate
from edgefed.devices.flashed import Flashed
from edgefed.devices.measurement import absent, measured
from edgefed.devices.network import unmeasured_network
from edgefed.devices.profile import DeviceProfile, read_profile
from tools.mosquitto import RunningMosquitto

AGENT = """\
device = "a"
fleet = "test"
state = "state"
data.path = "none.jsonl"
limits.threads = 1
broker.port = {}
"""


@pytest.mark.torch
@pytest.mark.broker
def test_a_profile_of_this_machine(edgefed: Callable[..., Any], tmp_path: Path, mosquitto: RunningMosquitto) -> None:
    config = tmp_path / "agent.toml"
    config.write_text(AGENT.format(mosquitto.port))
    done = edgefed("profile", "--quick", "--json", "--config", config)
    assert done.code == 0, done.err
    profile = msgspec.convert(json.loads(done.out), DeviceProfile)
    assert profile.compute is not None
    assert profile.compute.flops_per_s["fp32"].value is not None
    assert profile.network is not None
    assert "no aggregator answered" in profile.network.latency_s.reason
    assert (tmp_path / "state/profile.json").is_file(), "the agent need not measure it again"
    for name in DeviceProfile.__struct_fields__:
        absent_by_design = ("emulated", "real", "board", "model", "cpu_model", "flashed", "release")
        assert getattr(profile, name) is not None or name in absent_by_design or profile.why_null.get(name), name
    shown = {line.name: line for line in profile_lines(profile)}
    assert shown["fp32 rate"].value.endswith("FLOP/s")
    assert shown["network latency"].value == "—"
    assert all(line.note for line in shown.values() if line.value == "—")


@pytest.mark.torch
def test_a_broker_that_does_not_answer_costs_the_network_and_nothing_else(
    edgefed: Callable[..., Any], tmp_path: Path
) -> None:
    config = tmp_path / "agent.toml"
    config.write_text(AGENT.format(1))
    done = edgefed("profile", "--quick", "--config", config)
    assert done.code == 0, done.err
    lines = dict(line.split("\t", 1) for line in done.out.splitlines())
    assert "no broker answers" in lines["network"]
    assert "FLOP/s" in lines["fp32 rate"]


def test_a_config_that_is_not_there_is_an_error(edgefed: Callable[..., Any], tmp_path: Path) -> None:
    done = edgefed("profile", "--config", tmp_path / "none.toml")
    assert done.code == 3
    assert "there is no such file" in done.err


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.98e15, "1.98 PX"),
        (1.28e12, "1.28 TX"),
        (2.3e11, "230 GX"),
        (1.0, "1 X"),
        (0.0039, "3.9 mX"),
        (2e-8, "0.02 µX"),
    ],
)
def test_figures_have_three_digits_and_a_prefix(value: float, text: str) -> None:
    assert human(value, "X") == text


def test_an_empty_profile_is_shown_with_its_reasons(tmp_path: Path) -> None:
    profile = read_profile(tmp_path, quantization="fp32", max_rank=8)
    why = {name: f"no {name}" for name in ("gpu", "compute", "storage", "network", "memory", "power")}
    lines = profile_lines(msgspec.structs.replace(profile, why_null=why))
    assert {line.note for line in lines if line.value == "—"} >= {f"no {name}" for name in why}


def test_emulated_figures_are_marked(tmp_path: Path) -> None:
    profile = msgspec.structs.replace(
        read_profile(tmp_path, quantization="fp32", max_rank=8),
        emulated="jetson-orin-nano-8gb",
        network=unmeasured_network("not tried"),
    )
    assert describe_board(profile) == "jetson-orin-nano-8gb (emulated)"
    assert profile_lines(profile)[0].name == "emulated board"


def test_what_flashed_the_board_is_shown(tmp_path: Path) -> None:
    profile = msgspec.structs.replace(
        read_profile(tmp_path, quantization="fp32", max_rank=8), flashed=None, why_null={}
    )
    assert "flashed by" not in {line.name for line in profile_lines(profile)}
    flashed = Flashed(manifest_sha256="ab" * 32, edgefed_version="0.1.0", board="Debian 12, aarch64", complete=False)
    lines = {line.name: line for line in profile_lines(msgspec.structs.replace(profile, flashed=flashed))}
    assert lines["flashed by"].value == "edgefed 0.1.0"
    assert lines["flashed by"].note == "for Debian 12, aarch64; manifest abababababababab; the flashing was interrupted"
    lines = {line.name: line for line in profile_lines(msgspec.structs.replace(profile, why_null={"flashed": "torn"}))}
    assert (lines["flashed by"].value, lines["flashed by"].note) == ("—", "torn")


def test_a_measured_rate_stands_beside_that_of_the_sheet(tmp_path: Path) -> None:
    compute = ComputeProfile(
        hardware="cpu",
        threads=4,
        flops_per_s={"fp32": measured(76.8e9, "torch.mm"), "bf16": absent("no kernel")},
        memory_bandwidth_bytes_per_s=measured(9e9, "copy"),
    )
    profile = msgspec.structs.replace(
        read_profile(tmp_path, quantization="fp32", max_rank=8), board="raspberry-pi-5-8gb", compute=compute
    )
    lines = {line.name: line for line in profile_lines(profile)}
    assert lines["fp32 rate"].note == "torch.mm; 50% of the sheet's 154 GFLOP/s"
    assert lines["bf16 rate"] == ("bf16 rate", "—", "no kernel")
    played = emulate(profile, find_board("jetson-orin-nano-8gb").sheet())
    lines = {line.name: line for line in profile_lines(played)}
    assert lines["bf16 rate"].note == "sheet of jetson-orin-nano-8gb in 15W, peak"
    assert lines["fp32 rate of this machine"] == ("fp32 rate of this machine", "76.8 GFLOP/s", "torch.mm")


@pytest.mark.torch
def test_a_machine_that_plays_a_board_says_so(edgefed: Callable[..., Any], tmp_path: Path) -> None:
    config = tmp_path / "agent.toml"
    config.write_text(AGENT.format(1) + 'emulate.board = "jetson-orin-nano-8gb"\nemulate.power_mode = "7W"\n')
    done = edgefed("profile", "--quick", "--config", config)
    assert done.code == 0, done.err
    lines = dict(line.split("\t", 1) for line in done.out.splitlines())
    assert lines["emulated board"].startswith("jetson-orin-nano-8gb")
    assert lines["memory"].startswith("7.84 GB\tunified")
    assert lines["bf16 rate"] == "3.34 TFLOP/s\tsheet of jetson-orin-nano-8gb in 7W, peak"
    assert "FLOP/s" in lines["fp32 rate of this machine"]
