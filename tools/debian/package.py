"""What is in the package: the manifest of flashing in the places that packages have, and what Debian wants besides."""

from __future__ import annotations

import gzip
import hashlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

from edgefed import __version__
from edgefed.flashing import agent_toml
from edgefed.flashing.manifest import File, Installation, manifest
from edgefed.flashing.wheelhouse import Wheel
from tools.debian.target import Target

__all__ = ["NAME", "Package", "stage"]

NAME = "edgefed-agent"
_HERE = Path(__file__).parent
_SCRIPTS = ("preinst", "postinst", "prerm", "postrm")
_EXAMPLE = f"{agent_toml.CONFIG}.example"
_PLACES = {"/etc/systemd/": "/usr/lib/systemd/", "/etc/udev/": "/usr/lib/udev/"}
"""Where flashing takes the administrator's directories, a package takes those that the administrator overrides."""
_DOCUMENTS = f"/usr/share/doc/{NAME}"
_DESCRIPTION = """federated fine-tuning on the device that holds the data: agent
 Takes part in federations of small language models over MQTT: it measures
 what the board has, trains on the board's own examples and sends small
 updates. The data stays where it is.
 .
 Its Python environment is built on the board from the wheels in this package,
 without a network. Training takes torch, which is not among them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """A package to be built.

    Attributes:
        target: what it is made for.
        wheels: of the agent's environment.
        maintainer: `Name <address>`.
        epoch_s: when its files were last changed, in seconds since 1970.
    """

    target: Target
    wheels: tuple[Wheel, ...]
    maintainer: str
    epoch_s: int

    @property
    def version(self) -> str:
        """The project's and the Python's, so that the package for a later release of the system counts as newer."""
        return f"{__version__}+py{self.target.python}"

    @property
    def file_name(self) -> str:
        """Of the package."""
        return f"{NAME}_{self.version}_{self.target.architecture}.deb"

    def files(self) -> tuple[File, ...]:
        """Returns what is installed, in the order of paths."""
        planned = manifest(Installation(wheels=self.wheels), self.target.board).files
        return tuple(sorted((*map(_placed, planned), *self._own_files()), key=lambda file: file.path))

    def _own_files(self) -> Iterator[File]:
        yield File(_EXAMPLE, _example())
        yield File(f"{_DOCUMENTS}/copyright", _HERE / "copyright")
        yield File(f"{_DOCUMENTS}/changelog.gz", gzip.compress(self._changelog().encode(), 9, mtime=0))
        yield File(f"/usr/share/lintian/overrides/{NAME}", _HERE / "lintian-overrides")

    def _changelog(self) -> str:
        date = datetime.fromtimestamp(self.epoch_s, timezone.utc).strftime("%a, %d %b %Y %H:%M:%S +0000")
        return (
            f"{NAME} ({self.version}) unstable; urgency=medium\n\n"
            f"  * Made from the project's sources; its CHANGELOG.md says what is new.\n\n"
            f" -- {self.maintainer}  {date}\n"
        )

    def control(self) -> str:
        """Returns the package's control file (deb-control(5))."""
        depends = (*self.target.python_dependencies, "python3-venv", "systemd", "init-system-helpers (>= 1.54~)")
        fields = {
            "Package": NAME,
            "Version": self.version,
            "Architecture": self.target.architecture,
            "Maintainer": self.maintainer,
            # KiB, each file rounded up (deb-substvars(5)).
            "Installed-Size": str(sum(-(-file.size_bytes // 1024) for file in self.files())),
            "Depends": ", ".join(depends),
            "Section": "science",
            "Priority": "optional",
            "Description": _DESCRIPTION,
        }
        return "".join(f"{name}: {value}\n" for name, value in fields.items())


def stage(package: Package, root: Path) -> None:
    """Writes the tree that `dpkg-deb --build` takes: the files, and in DEBIAN what dpkg reads."""
    files = package.files()
    for file in files:
        _write(root, file)
    digests = [f"{_md5(root / file.path[1:])}  {file.path[1:]}\n" for file in files if file.path != _EXAMPLE]
    control = {"control": package.control(), "conffiles": f"{_EXAMPLE}\n", "md5sums": "".join(digests)}
    for name, text in control.items():
        _write(root, File(f"/DEBIAN/{name}", text.encode()))
    for name in _SCRIPTS:
        _write(root, File(f"/DEBIAN/{name}", _HERE / "scripts" / name, 0o755))


def _placed(file: File) -> File:
    for ours, packages in _PLACES.items():
        if file.path.startswith(ours):
            return replace(file, path=packages + file.path.removeprefix(ours))
    return file


def _example() -> bytes:
    """Returns an example of the configuration, as flashing would write it for a fleet with certificates."""
    access = agent_toml.Access(
        device="board-01", fleet="my-fleet", host="broker.example", has_ca=True, has_certificate=True
    )
    _, _, settings = agent_toml.agent_toml(access).partition(b"\n")
    heading = (
        f"# An example: as {agent_toml.CONFIG} it is read, `/opt/edgefed/venv/bin/edgefed init` shows everything that\n"
        "# may stand there. Keys must be the user edgefed's alone (chown edgefed, chmod 0400).\n"
    )
    return heading.encode() + settings


def _write(root: Path, file: File) -> None:
    path = root / file.path.lstrip("/")
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(file.source, bytes):
        path.write_bytes(file.source)
    else:
        shutil.copyfile(file.source, path)
    path.chmod(file.mode)


def _md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
