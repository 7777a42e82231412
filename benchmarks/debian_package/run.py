"""A package's life under dpkg and systemd, each of them real; see README.md."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from benchmarks.provenance import provenance
from tools.debian.build import build
from tools.debian.target import Target, find_target
from tools.debian.wheels import build_project, download
from tools.mosquitto import running_mosquitto

PROJECT = Path(__file__).resolve().parents[2]
RESULT = Path(__file__).parent / "results" / "life.json"
SUITE = "bookworm"
INCLUDED = "systemd,init-system-helpers,python3,python3-venv"
FLEET, DEVICE = "packaged", "board-01"
BUILT_UNIX_S = (1_700_000_000, 1_700_003_600)  # far enough apart for the clock of a wheel
PATIENCE_S = 60.0
AGENT = "edgefed-agent.service"


class Machine:
    """A booted system, seen from outside."""

    def __init__(self, root: Path, leader: int) -> None:
        self.root = root
        self._enter = ["nsenter", "--target", str(leader), "--mount", "--uts", "--ipc", "--pid", "--root", "--wd"]

    def run(self, *command: str, check: bool = True) -> str:
        """Run a command inside and return what it writes to stdout."""
        return subprocess.run([*self._enter, *command], check=check, stdout=subprocess.PIPE, text=True).stdout.strip()

    def until(self, holds: Callable[[], bool], what: str) -> float:
        """Wait for something and return how long that took, in seconds."""
        began_s = time.perf_counter()
        while not holds():
            if time.perf_counter() - began_s > PATIENCE_S:
                sys.exit(f"not within {PATIENCE_S:g} s: {what}")
            time.sleep(0.2)
        return round(time.perf_counter() - began_s, 1)

    def agent(self, what: str) -> str:
        """Return a property of the agent's unit."""
        return self.run("systemctl", "show", "--property", what, "--value", AGENT)

    def environments(self) -> list[str]:
        """Return the agent's Python environments."""
        return sorted(path.name for path in (self.root / "opt/edgefed/environments").iterdir())


@contextmanager
def booted(root: Path) -> Iterator[Machine]:
    """Boot a root file system and wait until it runs."""
    command = ["systemd-nspawn", "--quiet", "--directory", str(root), "--boot", "--register=no", "--keep-unit"]
    with (root.parent / "console").open("wb") as console:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=console, stderr=console)
    try:
        machine = Machine(root, _leader(process.pid))
        machine.until(lambda: "running" in machine.run("systemctl", "is-system-running", check=False), "the boot")
        yield machine
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


def _leader(nspawn: int) -> int:
    until_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < until_s:
        for child in psutil.Process(nspawn).children(recursive=True):
            if child.name() == "systemd":
                return child.pid
        time.sleep(0.2)
    sys.exit("systemd did not start")


def packages(scratch: Path, target: Target) -> list[Path]:
    """Build the package of two times."""
    built = []
    for epoch_s in BUILT_UNIX_S:
        wheels = scratch / f"wheels-{epoch_s}"
        build_project(PROJECT, wheels, epoch_s=epoch_s)
        download(wheels, target.board, PROJECT / "constraints.txt")
        directory = scratch / f"package-{epoch_s}"
        built.append(build(target, wheels, directory, maintainer="Test <test@example.org>", epoch_s=epoch_s))
    return built


def on_the_broker(port: int) -> str:
    """Return the device's status as `edgefed status` has it."""
    where = ["--host", "127.0.0.1", "--port", str(port), "--fleet", FLEET, "--json"]
    command = [sys.executable, "-m", "edgefed", "status", *where]
    known = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)["devices"]
    return str(known[DEVICE]["state"]["status"]) if DEVICE in known else ""


def dpkg(machine: Machine, *arguments: str) -> float:
    """Run dpkg inside and return its seconds."""
    began_s = time.perf_counter()
    machine.run("dpkg", *arguments)
    return round(time.perf_counter() - began_s, 1)


def live(machine: Machine, first: Path, second: Path, port: int) -> tuple[dict[str, float], dict[str, bool]]:
    """Install, start, upgrade, remove and purge; return seconds and checks."""
    seconds, checks = {}, {}
    for name, package in (("first", first), ("second", second)):
        shutil.copy(package, machine.root / "srv" / f"{name}.deb")
    seconds["install"] = dpkg(machine, "--install", "/srv/first.deb")
    checks["waits for its configuration"] = machine.agent("ActiveState") == "inactive"
    (machine.root / "etc/edgefed/agent.toml").write_text(
        f'device = "{DEVICE}"\nfleet = "{FLEET}"\nstate = "/var/lib/edgefed/state"\n'
        f'[broker]\nhost = "127.0.0.1"\nport = {port}\n[data]\npath = "/var/lib/edgefed/data"\n'
    )
    machine.run("systemctl", "start", AGENT)
    seconds["ready"] = machine.until(lambda: on_the_broker(port) == "ready", "the agent is ready")
    pid, environment = machine.agent("MainPID"), machine.environments()
    resident_kib = machine.run("sh", "-c", f"sed -n 's/^VmRSS:[^0-9]*\\([0-9]*\\).*/\\1/p' /proc/{pid}/status")
    seconds["resident_mib"] = round(int(resident_kib) / 1024, 1)
    lines = machine.run("journalctl", "--unit", AGENT, "--output", "json", f"_PID={pid}").splitlines()
    told = [entry for entry in map(json.loads, lines) if "connected to the broker" in str(entry["MESSAGE"])]
    checks["logs pairs, with priorities"] = [entry["PRIORITY"] for entry in told] == ["6"] and all(
        "logger=edgefed.transport.mqtt" in entry["MESSAGE"] for entry in told
    )

    seconds["upgrade"] = dpkg(machine, "--install", "/srv/second.deb")
    checks["the upgrade starts the new agent"] = machine.agent("MainPID") not in (pid, "0")
    seconds["old_environment_gone"] = machine.until(lambda: len(machine.environments()) == 1, "one environment is left")
    checks["the environment is that of the new wheels"] = machine.environments() != environment
    machine.until(lambda: on_the_broker(port) == "ready", "the new agent is ready")

    seconds["remove"] = dpkg(machine, "--remove", "edgefed-agent")
    checks["removing stops it in good order"] = on_the_broker(port) == "disconnected"
    checks["removing keeps its state and its configuration"] = all(
        (machine.root / path).exists() for path in ("var/lib/edgefed/state", "etc/edgefed/agent.toml")
    )
    checks["removing takes the environment away"] = not (machine.root / "opt/edgefed").exists()
    seconds["purge"] = dpkg(machine, "--purge", "edgefed-agent")
    checks["purging takes the state away"] = not (machine.root / "var/lib/edgefed").exists()
    checks["purging keeps the configuration"] = (machine.root / "etc/edgefed/agent.toml").exists()
    return seconds, checks


def main() -> None:
    """Run it all, write the result, print the checks."""
    if os.getuid() != 0:
        sys.exit("making and booting a system takes root")
    target = find_target("", "3.11")
    with tempfile.TemporaryDirectory(dir="/var/tmp") as temporary, running_mosquitto() as broker:
        scratch = Path(temporary)
        first, second = packages(scratch, target)
        root = scratch / "debian"
        command = ["debootstrap", "--variant=minbase", f"--include={INCLUDED}", SUITE, str(root)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        size_bytes = first.stat().st_size
        with booted(root) as machine:
            seconds, checks = live(machine, first, second, broker.port)
    resident_mib = seconds.pop("resident_mib")
    result: dict[str, Any] = {
        "provenance": provenance(),
        "system": SUITE,
        "package_bytes": size_bytes,
        "seconds": seconds,
        "idle_agent_resident_mib": resident_mib,
        "checks": checks,
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    for name, held in checks.items():
        print(f"{'yes' if held else 'NO '}  {name}")
    print(seconds)
    if not all(checks.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
