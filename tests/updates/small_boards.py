"""A board as small as it can be: a home with the real scripts, environments of real wheels, and an agent of few lines.

The wheels hold next to nothing, so that an environment is built in a moment: `edgefed` itself leads to this tree and to
the libraries that the tests run with, and their `pip` unpacks what it finds. `test_real_agent` has the real ones.
"""

from __future__ import annotations

import hashlib
import platform
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import edgefed
from edgefed.flashing import manifest
from edgefed.flashing.board import Board
from edgefed.flashing.wheelhouse import lock, read_wheelhouse
from edgefed.security.certificates import certificate_pem
from edgefed.updates.health import Health, read_health
from edgefed.updates.places import Home, incoming
from edgefed.updates.record import Record, read_record
from edgefed.updates.release import Result
from tests.updates.releases import AUTHORITY, FLEET, bundle
from tests.updates.small_systemd import SmallSystemd

HERE = Board(architecture=platform.machine(), python=(sys.version_info[0], sys.version_info[1]), system="Test")
SCRIPTS = Path(manifest.__file__).parent / "files/opt/edgefed/bin"
TREE = Path(edgefed.__file__).parent.parent
PATIENCE_S = 60

PIP = """\
import sys, sysconfig, zipfile
from pathlib import Path
wheels = Path(sys.argv[sys.argv.index("--find-links") + 1])
for wheel in wheels.glob("*.whl"):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(sysconfig.get_path("purelib"))
"""

AGENT = """\
import sys, time
from pathlib import Path
from edgefed.agent.service_manager import service_manager
from edgefed.updates.health import HealthFile
from release import BEHAVIOUR

if BEHAVIOUR == "crashes":
    sys.exit("this release does not work")
manager, health = service_manager(), HealthFile(Path(sys.argv[1]))
health.started()
if BEHAVIOUR != "is never ready":
    manager.tell("READY=1")
if BEHAVIOUR in ("works", "loses its connection"):
    health.connected()
while True:
    time.sleep(0.05)
    if BEHAVIOUR == "loses its connection":
        health.disconnected()
        health.connected()
"""


def zipped(path: Path, name: str, version: str, files: Mapping[str, str], requires: Sequence[str] = ()) -> Path:
    """Writes a wheel of these files, always the same bytes."""
    headers = "".join(f"Requires-Dist: {requirement}\n" for requirement in requires)
    info = f"{name}-{version}.dist-info"
    members = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{headers}",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    members[f"{info}/RECORD"] = "".join(f"{member},,\n" for member in (*members, f"{info}/RECORD"))
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for member, text in members.items():
            archive.writestr(zipfile.ZipInfo(member), text)
    return path


def small_wheels(directory: Path, version: str, behaviour: str = "works") -> Path:
    """Writes the wheels of a release whose agent behaves in a certain way, and returns their directory."""
    libraries = "\n".join([str(TREE), *(place for place in sys.path if place.endswith("site-packages"))])
    files = {"here.pth": libraries, "release.py": f"BEHAVIOUR = {behaviour!r}\n"}
    zipped(directory / f"edgefed-{version}-py3-none-any.whl", "edgefed", version, files)
    zipped(directory / "pip-1.0-py3-none-any.whl", "pip", "1.0", {"pip/__main__.py": PIP})
    return directory


def until(condition: Callable[[], object]) -> None:
    """Waits for something to hold, and fails where it does not come."""
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline_s, "still waiting"
        time.sleep(0.02)


class SmallBoard:
    """A board: what is on its disk, and how it boots.

    Attributes:
        path: holds everything.
        home: as `/opt/edgefed`.
        state: the agent's state directory.
        systemd: its service manager.
        releases: how many bundles were made for it.
    """

    def __init__(self, path: Path, *, signed: bool = True) -> None:
        self.path = path
        self.home = Home(path / "edgefed")
        self.state = path / "var" / "state"
        self.config = path / "etc" / "agent.toml"
        self.incoming = incoming(self.state)
        self.log = path / "agent.log"
        self.environments = self.home.path / "environments"
        self.signed = signed
        if not self.config.exists():
            for directory in (self.home.path, self.incoming, self.config.parent):
                directory.mkdir(parents=True)
            shutil.copytree(SCRIPTS, self.home.path / "bin")
            self.configure()
        python = str(self.home.link / "bin/python")
        self.systemd = SmallSystemd(path / "systemd", [python, *self.agent()], self.log)

    def configure(self) -> None:
        """Writes what is in `/etc/edgefed`."""
        (self.config.parent / "agent.py").write_text(AGENT)
        ca = self.config.parent / "ca.pem"
        ca.write_bytes(certificate_pem(AUTHORITY.certificate))
        self.config.write_text(
            f'device = "board-07"\nfleet = "{FLEET}"\nstate = "{self.state}"\n'
            f'[data]\npath = "d"\n[broker]\nsigned = {str(self.signed).lower()}\n'
            f'tls_ca = "{ca}"\ntls_certificate = "c.pem"\ntls_key = "k.pem"\n'
        )

    def agent(self) -> list[str]:
        """Returns the arguments with which Python is the agent."""
        return ["-I", str(self.config.parent / "agent.py"), str(self.state)]

    def flash(self, wheels: Path) -> None:
        """Writes other wheels, as `edgefed flash` does."""
        house = self.home.path / "wheelhouse"
        shutil.rmtree(house, ignore_errors=True)
        shutil.copytree(wheels, house)
        (house / "requirements.lock").write_text(lock(read_wheelhouse(wheels, HERE)))

    def boot(self) -> None:
        """What the units do, in their order."""
        home = str(self.home.path)
        guard = ["flock", "--nonblock", "--conflict-exit-code", "0", f"{home}/lock"]
        self._run(*guard, f"{home}/bin/environment", home, "recover")
        self._run("sh", f"{home}/bin/first-boot", home, "1")
        if self.systemd.pid == 0:
            self.systemd.restart()

    def power_cut(self) -> None:
        """Ends every process; what is on disk stays."""
        self.systemd.stop(signal.SIGKILL)

    def deliver(self, file: str, wheels: Path, **changes: Any) -> Path:
        """Has the agent put a release into its directory, and returns the bundle."""
        house = read_wheelhouse(wheels, HERE)
        settings: dict[str, Any] = {
            "name": file,
            "architecture": HERE.architecture,
            "python": f"{HERE.python[0]}.{HERE.python[1]}",
            "lock": lock(house).encode(),
            **changes,
        }
        made = bundle(self.path / "on-its-way", [wheel.path for wheel in house], **settings)
        return made.path.rename(self.incoming / f"{file}.bundle")

    @property
    def is_triggered(self) -> bool:
        """Whether the path unit would start the installer."""
        return self.home.trial.exists() or any(self.incoming.glob("*.bundle"))

    def update(
        self, *options: str, comes_s: float = PATIENCE_S, file_limit_bytes: int | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Runs what `edgefed-update.service` runs, once, and returns how it ended; a limit on files is a full disk."""
        limit = [] if file_limit_bytes is None else ["prlimit", f"--fsize={file_limit_bytes}"]
        command = [*limit, "sh", str(self.home.path / "bin/update"), str(self.home.path), str(self.config)]
        command += ["--stays", "0.3", "--comes", str(comes_s), *options]
        return subprocess.run(
            command, env=self.systemd.environment(), capture_output=True, text=True, timeout=PATIENCE_S, check=False
        )

    @property
    def record(self) -> Record:
        """What the installer remembers."""
        return read_record(self.home)

    @property
    def result(self) -> Result:
        """What came of the latest bundle."""
        result = self.record.result
        assert result is not None
        return result

    @property
    def in_use(self) -> str:
        """The environment that the agent is started from, seen to be whole."""
        name = self.home.link.readlink().name
        assert (self.environments / name / "complete").exists()
        return name

    def version(self) -> str:
        """Returns the version of the release that is in use, as Python sees it."""
        (info,) = (self.home.link / "lib").glob("python*/site-packages/edgefed-*.dist-info")
        return info.name.removeprefix("edgefed-").removesuffix(".dist-info")

    def agent_runs_in(self, environment: str) -> bool:
        """Whether the agent is there, connected, and in this environment."""
        health = read_health(self.state)
        if health is None or not self.systemd.active:
            return False
        return (health.environment, health.pid, health.connected) == (environment, self.systemd.pid, True)

    @property
    def health(self) -> Health:
        """What the agent shows."""
        health = read_health(self.state)
        assert health is not None
        return health

    def snapshot(self) -> dict[str, str]:
        """Returns the content of everything in the home, by path, but for compiled code and the lock."""
        found = {}
        for path in self.home.path.rglob("*"):
            if path.is_symlink():
                found[str(path)] = str(path.readlink())
            elif path.is_file() and path.suffix != ".pyc" and path.name not in ("lock", "record.json"):
                found[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest()
        return found

    def _run(self, *command: str) -> None:
        done = subprocess.run(command, env=self.systemd.environment(), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
