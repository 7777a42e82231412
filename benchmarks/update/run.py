"""What becomes of a board's agent when it is updated under a real systemd? See README.md."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.provenance import provenance
from benchmarks.update.machine import Machine, overlaid, until
from edgefed.flashing.board import Board, inspect
from edgefed.flashing.release import bundle_wheelhouse
from edgefed.flashing.rootfs import DirectoryTree
from edgefed.security import certificates, keys
from edgefed.security.identities import AGGREGATOR
from edgefed.security.signatures import Signer, read_signer
from edgefed.updates.health import Health, read_health
from edgefed.updates.places import Home, incoming
from edgefed.updates.record import read_record
from edgefed.updates.release import Result
from tests.security.secured import NAME, Secured, device, now

DEVICE = device("board-07")
RESULT = Path(__file__).parent / "results" / "nspawn.json"
MAIN = "edgefed/cli/agent_process.py"
CRASH = "    manager = service_manager()\n", '    raise RuntimeError("this release does not work")\n'


def release(wheels: Path, to: Path, version: str, *, crashes: bool = False) -> Path:
    """Writes a wheelhouse in which edgefed has another version, and returns it."""
    shutil.copytree(wheels, to)
    (own,) = to.glob("edgefed-*.whl")
    with zipfile.ZipFile(own) as old, zipfile.ZipFile(to / f"edgefed-{version}-py3-none-any.whl", "w") as new:
        (info,) = {name.split("/")[0] for name in old.namelist() if ".dist-info/" in name}
        before = info.removeprefix("edgefed-").removesuffix(".dist-info")
        for name in old.namelist():
            content = old.read(name)
            if name in ("edgefed/__init__.py", f"{info}/METADATA"):
                content = content.replace(before.encode(), version.encode())
            if name == MAIN and crashes:
                assert CRASH[0].encode() in content
                content = content.replace(CRASH[0].encode(), CRASH[1].encode())
            if name != f"{info}/RECORD":
                new.writestr(name.replace(info, f"edgefed-{version}.dist-info"), content)
        new.writestr(f"edgefed-{version}.dist-info/RECORD", "")
    own.unlink()
    return to


class Device:
    """The board, seen through its disk."""

    def __init__(self, machine: Machine, board: Board, signer: Signer, scratch: Path) -> None:
        self.machine = machine
        self._board = board
        self._signer = signer
        self._scratch = scratch
        self._number = 0
        self.home = Home(machine.root / "opt/edgefed")
        self.state = machine.root / "var/lib/edgefed/state"

    def deliver(self, wheels: Path, signer: Signer | None = None) -> None:
        """Puts a release where the agent puts it, in the agent's name."""
        self._number += 1
        bundle = bundle_wheelhouse(
            self._scratch / "made",
            wheels,
            self._board,
            fleet=NAME,
            number=self._number,
            signer=signer or self._signer,
            at_unix_s=time.time(),
        )
        passwd = (self.machine.root / "etc/passwd").read_text().splitlines()
        user = next(line.split(":") for line in passwd if line.startswith("edgefed:"))
        directory = incoming(self.state)
        for place in (directory.parent, directory):
            place.mkdir(mode=0o700, exist_ok=True)
            os.chown(place, int(user[2]), int(user[3]))
        arriving = directory.parent / "arriving"
        shutil.copy(bundle.path, arriving)
        os.chown(arriving, int(user[2]), int(user[3]))
        arriving.rename(directory / f"{self._number}.bundle")

    @property
    def health(self) -> Health | None:
        """What the agent shows, where it is the one that is connected."""
        health = read_health(self.state)
        return health if health is not None and health.connected else None

    def runs(self, version: str) -> bool:
        """Whether the agent that is connected is of this version, and lives."""
        shown = self.machine.run("systemctl", "show", "--property=MainPID,ActiveState", "edgefed-agent.service")
        health = self.health
        return health is not None and health.version == version and f"MainPID={health.pid}\nActiveState=active" in shown

    def result(self) -> Result | None:
        """What came of the latest release; None where there is none yet."""
        result = read_record(self.home).result
        return result if result is not None and result.file == f"{self._number}.bundle" else None

    def wait(self) -> dict[str, Any]:
        """Waits for what comes of the latest release, and returns it."""
        wait_s = until(self.result, "a result")
        result = self.result()
        assert result is not None
        until(lambda: self.health, "an agent that is connected")
        health = self.health
        assert health is not None
        return {
            "outcome": result.outcome,
            "reason": result.reason,
            "seconds": round(wait_s, 1),
            "agent_version_after": health.version,
        }


def cases(device_: Device, wheels: Path, scratch: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields what was done, and what came of it."""
    yield "flashed and booted", {"seconds": round(until(lambda: device_.runs("0.1.0"), "the agent"), 1)}

    device_.deliver(release(wheels, scratch / "good", "0.2.0"))
    yield "a good release", device_.wait()
    until(lambda: device_.runs("0.2.0"), "the new agent")

    device_.deliver(release(wheels, scratch / "crashing", "0.3.0", crashes=True))
    yield "a release that crashes at start", device_.wait()
    until(lambda: device_.runs("0.2.0"), "the agent of before")

    authority = certificates.make_authority(NAME, days=90, now=now())
    key = keys.new_key("aggregator")
    stranger = Signer(certificates.issue(authority, AGGREGATOR, key.public_key(), days=30, now=now()), key)
    device_.deliver(release(wheels, scratch / "stranger", "0.4.0"), stranger)
    yield "a release of a stranger", device_.wait()
    until(lambda: device_.runs("0.2.0"), "the agent of before")

    device_.deliver(release(wheels, scratch / "later", "0.5.0"))
    until(lambda: device_.runs("0.5.0"), "the new agent")
    assert device_.home.trial.exists()
    device_.machine.cut_power()
    device_.machine.boot()
    back_s = until(lambda: device_.runs("0.2.0"), "the agent of before")
    yield "the power goes while it is on trial: the old one is back", {"seconds": round(back_s, 1)}
    yield "and the release is tried again by itself", device_.wait()
    until(lambda: device_.runs("0.5.0"), "the new agent")

    before = device_.home.link.readlink()
    device_.machine.cut_power()
    device_.machine.boot()
    yield "a boot after that", {"seconds": round(until(lambda: device_.runs("0.5.0"), "the agent"), 1)}
    assert device_.home.link.readlink() == before


@contextlib.contextmanager
def flashed(scratch: Path, secured: Secured, wheels: Path) -> Iterator[Machine]:
    """Gives a machine that `edgefed flash rootfs` has put the agent onto, off."""
    place = secured.fleet.place(DEVICE)
    config = scratch / "agent.toml"
    tls = "\n".join(f'tls_{name} = "/etc/edgefed/tls/{name}.pem"' for name in ("ca", "certificate", "key"))
    config.write_text(
        f'device = "{DEVICE.name}"\nfleet = "{NAME}"\nstate = "/var/lib/edgefed/state"\n'
        f'[data]\npath = "/var/lib/edgefed/data"\n[profile]\nmeasure = "quick"\n'
        f'[broker]\nhost = "127.0.0.1"\nport = {secured.port}\nsigned = true\n{tls}\n'
    )
    with overlaid(scratch) as root:
        command = [sys.executable, "-m", "edgefed", "flash", "rootfs", root, "--wheelhouse", wheels, "--config", config]
        for name in ("ca", "certificate", "key"):
            command += [f"--{name}", place / f"{name}.pem"]
        subprocess.run(command, check=True)
        machine = Machine(root, scratch / "console.log")
        try:
            yield machine
        finally:
            if machine.runs:
                machine.cut_power()


def main() -> None:
    """Do it, write the result, print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("wheelhouse", type=Path, help="wheels of edgefed 0.1.0, of all that it needs, and of pip")
    given = parser.parse_args()
    if pwd.getpwuid(os.geteuid()).pw_name != "root":
        parser.error("this takes root: it mounts, and boots a system")
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        scratch = Path(name)
        secured = Secured(scratch)
        secured.enroll(DEVICE)
        place = secured.fleet.place(AGGREGATOR)
        signer = read_signer(place / "certificate.pem", place / "key.pem")
        with secured.running(), flashed(scratch, secured, given.wheelhouse) as machine:
            board = inspect(DirectoryTree(machine.root))
            machine.boot()
            try:
                for what, result in cases(Device(machine, board, signer, scratch), given.wheelhouse, scratch):
                    found[what] = result
                    print(f"{what}: {json.dumps(result)}", flush=True)
            except BaseException:
                print((scratch / "console.log").read_text(errors="replace")[-3000:])
                print(machine.run("journalctl", "--no-pager", "-u", "edgefed-*", "-n", "150"))
                raise
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps({"provenance": provenance(), "board": board.words, "cases": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
