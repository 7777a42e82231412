"""Agents that share a machine, and boards that are played: their energy says whose it is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgefed.agent.neighbours import count_other_agents, tell_whose_energy
from edgefed.devices.usage import Energy, HardwareUse

MEASURED = HardwareUse(
    window_s=10.0,
    samples=20,
    energy=Energy(joules=50.0, mean_w=5.0, method="rapl", scope="package", coverage="the package", measured_share=1.0),
)


def process(root: Path, pid: int, *arguments: str) -> None:
    (root / f"proc/{pid}").mkdir(parents=True)
    (root / f"proc/{pid}/cmdline").write_bytes(b"".join(one.encode() + b"\0" for one in arguments))


def test_other_agents_are_counted_and_nothing_else(tmp_path: Path) -> None:
    agent = ("python3", "-m", "edgefed.cli.agent_process", "agent.toml")
    process(tmp_path, os.getpid(), *agent)
    process(tmp_path, 900_001, *agent)
    process(tmp_path, 900_002, *agent, "--once")
    process(tmp_path, 900_003, "python3", "-m", "edgefed.agent.worker")
    process(tmp_path, 900_004, "vim", "edgefed/cli/agent_process.py")
    process(tmp_path, 900_005)
    (tmp_path / "proc/900006").mkdir()
    assert count_other_agents(tmp_path) == 2
    assert count_other_agents(tmp_path / "nothing") == 0


def test_a_real_process_is_seen_while_it_runs() -> None:
    before = count_other_agents()
    code = "print(flush=True); input()"
    command = [sys.executable, "-c", code, "edgefed.cli.agent_process"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        assert count_other_agents() >= before + 1
        other.kill()


@pytest.mark.parametrize(
    ("emulated", "others", "coverage"),
    [
        (None, 1, "the package; 1 other agent on the same machine included"),
        ("jetson-nano-4gb", 0, "the package; of the machine that plays jetson-nano-4gb, not of that board"),
        (
            "jetson-nano-4gb",
            3,
            "the package; of the machine that plays jetson-nano-4gb, not of that board; "
            "3 other agents on the same machine included",
        ),
    ],
)
def test_energy_says_what_else_is_in_it(emulated: str | None, others: int, coverage: str) -> None:
    told = tell_whose_energy(MEASURED, emulated=emulated, others=others).energy
    assert (told.coverage, told.agents, told.joules) == (coverage, 1 + others, 50.0)


def test_a_machine_of_its_own_and_energy_that_is_not_known_say_nothing_more() -> None:
    assert tell_whose_energy(MEASURED, emulated=None, others=0) == MEASURED
    unknown = HardwareUse(window_s=1.0, samples=0, energy=Energy(reason="no sensor"))
    assert tell_whose_energy(unknown, emulated="jetson-nano-4gb", others=7) == unknown
