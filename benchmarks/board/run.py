"""From a flashed disk to a merged update, on a virtual arm64 board; see README.md."""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

from benchmarks.board.console import Console
from benchmarks.board.fleet import DEVICE, FLEET, ROUNDS, HostSide
from benchmarks.board.system import VirtualBoard
from benchmarks.provenance import provenance

RESULTS = Path(__file__).parent / "results"
REPOSITORY = Path(__file__).parents[2]
IDLE_TARGET_MIB = 45
IDLE_REPORTS = 3
EXAMPLES = 64
REPORT = r"board report: pid=(\d+) rss_kib=(\d+) anonymous_kib=(\d+) file_kib=(\d+) children=(\d+) token=(\w+)"
STEPS = {
    "multi_user": r"Reached target multi-user\.target",
    "building": r"edgefed first boot: building",
    "environment_built": r"edgefed first boot: starting the agent",
    "asks": r"asks fleet desk for a certificate",
    "enrolled": r"enrolled as board-arm64 of fleet desk",
    "token_removed": r"/etc/edgefed/claim/token is of no more use, and removed",
    "measuring": r"measuring this machine",
}
"""What the console says when a step is done, in order."""
PATIENCE_S = 3600.0


def flash(board: VirtualBoard, host: HostSide, wheels: Path, *more: str) -> tuple[Path, dict[str, Any]]:
    """Flashes a fresh root file system with a claim token, and returns it with what flashing wrote."""
    root = board.new_root()
    options = ["--device", DEVICE, "--fleet", FLEET, "--broker", host.broker_of_board, "--token", host.token, *more]
    flashed = json.loads(host.edgefed("flash", "rootfs", root, "--wheelhouse", wheels, *options, "--json"))
    data = root / "var/lib/edgefed/data"  # the owner brings the examples
    data.mkdir(parents=True)
    dialogues = resources.files("edgefed.assets") / "dialogues/train.jsonl"
    lines = dialogues.read_text(encoding="utf-8").splitlines(keepends=True)[:EXAMPLES]
    (data / "dialogues.jsonl").write_text("".join(lines), encoding="utf-8")
    return root, flashed


@contextmanager
def switched_on(command: list[str], log: Path) -> Iterator[Console]:
    """A running board; the power is cut at the end of the block."""
    console = Console(command, log)
    try:
        yield console
    finally:
        console.cut_power()


def idle(console: Console) -> dict[str, Any]:
    """Returns the resident memory of the agent in the next reports that it gives without a worker."""
    found: list[int] = []
    after_s = console.now_s
    while len(found) < IDLE_REPORTS:
        after_s, said = console.wait_for(REPORT, 120, after_s=after_s + 0.001)
        if said[5] == "0":
            found.append(int(said[2]))
    return {"rss_mib": [round(kib / 1024, 1) for kib in found], "median_mib": statistics.median(found) / 1024}


def first_boot(console: Console, host: HostSide) -> dict[str, Any]:
    """Watches a board from its first start to its second round, and returns what was seen when."""
    at_s = {}
    for name, pattern in STEPS.items():
        at_s[name], _ = console.wait_for(pattern, PATIENCE_S)
        print(f"{at_s[name]:8.1f} s  {name}", flush=True)
    ready = host.wait_for_device(lambda device: device["state"]["status"] == "ready", PATIENCE_S)
    at_s["ready"] = console.now_s
    before = idle(console)
    print(f"{at_s['ready']:8.1f} s  ready; idle agent {before['median_mib']:.1f} MiB", flush=True)
    federation, rounds = federate(console, host)
    return {
        "at_s": {name: round(seconds, 1) for name, seconds in (at_s | federation).items()},
        "idle_agent": {"target_at_most_mib": IDLE_TARGET_MIB, **before, "after_training": last_report(console)},
        "token": console.all(REPORT)[-1][1][6],
        "watchdog": [said[0] for _, said in console.all(r"Using hardware watchdog.*")],
        "failed_units": [said[0] for _, said in console.all(r"systemd\[1\]: .*: Failed with result.*")],
        "rounds": rounds,
        "device": ready,
    }


def federate(console: Console, host: HostSide) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Runs the federation to its end, and returns what was seen when, and its rounds as the aggregator tells them."""
    at_s = {"aggregator_started": console.now_s}
    history = host.directory / "run/history.jsonl"
    with host.aggregator() as aggregator:
        while aggregator.poll() is None:
            if "first_update_merged" not in at_s and history.exists() and f'"{DEVICE}"' in history.read_text():
                at_s["first_update_merged"] = console.now_s
                print(f"{console.now_s:8.1f} s  first update merged", flush=True)
            wait_at_most(aggregator, 1)
            if console.now_s - at_s["aggregator_started"] > PATIENCE_S:
                raise TimeoutError("the federation does not come to its end")
    if aggregator.returncode != 0:
        raise RuntimeError(f"the aggregator ended with {aggregator.returncode}; see {host.directory}")
    at_s["federation_over"] = console.now_s
    print(f"{console.now_s:8.1f} s  federation over after {ROUNDS} rounds", flush=True)
    return at_s, [json.loads(line) for line in history.read_text().splitlines()]


def last_report(console: Console) -> dict[str, Any]:
    """Returns the agent's memory as it was told last; its worker ends after ten minutes, which are not waited for."""
    _, said = console.all(REPORT)[-1]
    return {"rss_mib": round(int(said[2]) / 1024, 1), "processes_of_its_own": int(said[5])}


def second_boot(console: Console, host: HostSide, before: str) -> dict[str, Any]:
    """Watches a board come back after its power was cut, and returns what was seen when."""
    at_s = {"multi_user": console.wait_for(STEPS["multi_user"], PATIENCE_S)[0]}
    host.wait_for_device(
        lambda device: device["state"]["status"] == "ready" and device["state"]["instance"] != before, PATIENCE_S
    )
    at_s["ready"] = console.now_s
    seen = idle(console)
    again = [name for name in ("building", "enrolled", "measuring") if console.all(STEPS[name])]
    print(f"{at_s['ready']:8.1f} s  ready again after a power cut; done once more: {again}", flush=True)
    return {"at_s": {name: round(seconds, 1) for name, seconds in at_s.items()}, "idle_agent": seen, "again": again}


def wait_at_most(process: subprocess.Popen[bytes], timeout_s: float) -> None:
    """Waits for a process for so long, or until it ends."""
    try:
        process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        return


def trimmed(log: Path) -> str:
    """Returns a console's log without what the kernel and the reports say over and over."""
    dull = re.compile(r"board report|kernel: |audit\[|\] systemd-journald|^ *[\d.]+ *$")
    lines = log.read_text().splitlines(keepends=True)
    return "".join(line for line in lines if not dull.search(line))


def main() -> int:
    """Make the board, flash it, boot it twice, write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scratch", type=Path, required=True, help="a directory for systems, wheels and disks: 12 GB")
    parser.add_argument("--memory-mib", type=int, default=4096)
    parser.add_argument("--cpus", type=int, default=4)
    options = parser.parse_args()
    board = VirtualBoard(options.scratch, REPOSITORY)
    board.make()
    host = HostSide(options.scratch / "host")
    root, flashed = flash(board, host, board.wheels)
    command = board.boot_command(board.new_disk(root), options.memory_mib, options.cpus)
    logs = [options.scratch / f"console-{boot}.log" for boot in (1, 2)]
    with host.broker():
        with switched_on(command, logs[0]) as console:
            first = first_boot(console, host)
        with switched_on(command, logs[1]) as console:
            instance = (host.device() or {})["state"]["instance"]
            second = second_boot(console, host, instance)
    RESULTS.mkdir(exist_ok=True)
    result = {
        "provenance": provenance(),
        "board": {"machine": "virt", "cpu": "cortex-a72", "cpus": options.cpus, "memory_mib": options.memory_mib},
        "flashed": {
            "board": flashed["board"],
            "files": len(flashed["write"]),
            "size_bytes": sum(file["size_bytes"] for file in flashed["write"]),
        },
        "first_boot": first,
        "second_boot": second,
    }
    (RESULTS / "virtual_board.json").write_text(json.dumps(result, indent=2) + "\n")
    for boot, log in enumerate(logs, 1):
        (RESULTS / f"console-{boot}.log").write_text(trimmed(log))
    return 0


if __name__ == "__main__":
    sys.exit(main())
