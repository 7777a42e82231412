"""Real wheels and root file systems, as small as they can be, of this machine's kind."""

from __future__ import annotations

import ensurepip
import os
import platform
import shutil
import struct
import subprocess
import sys
import uuid
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pytest

from edgefed.flashing.board import Board

MACHINE = platform.machine()
HERE = Board(architecture=MACHINE, python=(sys.version_info[0], sys.version_info[1]), system="Test")


def make_wheel(
    directory: Path,
    name: str,
    version: str = "1.0",
    tags: str = "py3-none-any",
    requires: tuple[str, ...] = (),
    payload_bytes: int = 0,
) -> Path:
    """Writes a wheel with one empty package; an edgefed one has what the first boot looks for."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{name}-{version}-{tags}.whl"
    info = f"{name}-{version}.dist-info"
    packages = ["edgefed", "edgefed/cli", "edgefed/cli/agent_process"] if name == "edgefed" else [name]
    members = {f"{package}/__init__.py": "" for package in packages}
    members[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n" + "".join(
        f"Requires-Dist: {requirement}\n" for requirement in requires
    )
    members[f"{info}/WHEEL"] = f"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: {tags}\n"
    members[f"{info}/RECORD"] = "".join(f"{member},,\n" for member in (*members, f"{info}/RECORD"))
    with zipfile.ZipFile(path, "w") as archive:
        for member, text in members.items():
            archive.writestr(member, text)
        archive.writestr(f"{packages[-1]}/payload", os.urandom(payload_bytes))
    return path


def pip_wheel() -> Path | None:
    """Returns the wheel of pip that Python brings along; None where its packager has taken it out."""
    places = (Path(ensurepip.__file__).parent / "_bundled", Path("/usr/share/python-wheels"))
    return next((wheel for place in places for wheel in place.glob("pip-*.whl")), None)


Rootfs = Callable[..., Path]
"""Makes a root file system: (name, python=, l4t=) → its directory."""


def make_rootfs(root: Path, *, python: str = f"3.{sys.version_info[1]}", l4t: str = "") -> Path:
    """Makes a root file system of this machine's architecture, merged /usr and all, and returns it."""
    for directory in ("etc/systemd/system", "usr/bin", "usr/sbin", "usr/lib/systemd", "opt", "var/lib"):
        (root / directory).mkdir(parents=True)
    for link in ("bin", "sbin", "lib"):
        (root / link).symlink_to(f"usr/{link}")
    shutil.copy(Path("/bin/sh").resolve(), root / "usr/bin/dash")
    (root / "usr/bin/sh").symlink_to("/usr/bin/dash")  # absolute, as the board sees it
    (root / "usr/lib/systemd/systemd").write_bytes(b"")
    (root / "usr/bin" / f"python{python}").write_bytes(b"")
    (root / "usr/bin/python3").symlink_to(f"python{python}")
    venv = root / "usr/lib" / f"python{python}" / "venv"
    venv.mkdir(parents=True)
    (venv / "__main__.py").write_bytes(b"")
    (root / "usr/lib/os-release").write_text('PRETTY_NAME="Test Linux 1 (small)"\nID=test\n')
    (root / "etc/os-release").symlink_to("../usr/lib/os-release")
    libc = root / "usr/lib" / f"{MACHINE}-linux-gnu" / "libc.so.6"
    libc.parent.mkdir()
    libc.write_bytes(b"\x7fELF...GNU C Library (Test GLIBC 2.36-9) stable release version 2.36.\n")
    if l4t:
        major, _, rest = l4t.partition(".")
        (root / "etc/nv_tegra_release").write_text(f"# R{major} (release), REVISION: {rest}, GCID: 1, BOARD: t186\n")
    return root


MIB = 1 << 20
needs_e2fsprogs = pytest.mark.skipif(
    shutil.which("debugfs", path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None, reason="e2fsprogs is not here"
)
_LINUX, _FAT, _EXTENDED, _PROTECTIVE = 0x83, 0x0C, 0x05, 0xEE
_LINUX_GUID = uuid.UUID("0FC63DAF-8483-4772-8E79-3D69D8477DE4").bytes_le


def make_image(path: Path, root: Path, layout: str = "mbr", *, size_bytes: int = 48 * MIB, options: str = "") -> Path:
    """Writes a disk image with a FAT and then an ext4 partition that has `root` in it.

    Args:
        path: of the image.
        root: the content of the ext4 file system; it may be empty.
        layout: mbr, logical, gpt, gpt4k (large sectors), or bare for a file system without a table.
        size_bytes: of the ext4 file system.
        options: more options for mke2fs.
    """
    start = 0 if layout == "bare" else 4 * MIB
    with path.open("wb") as image:
        image.truncate(start + size_bytes + (0 if layout == "bare" else MIB))
        if layout != "bare":
            image.seek(MIB + 54)
            image.write(b"FAT16   ")
        tables = {"mbr": _write_mbr, "logical": _write_logical, "gpt": _write_gpt, "gpt4k": _write_gpt}
        if layout in tables:
            tables[layout](image, layout, start, size_bytes)
    command = ["mke2fs", "-q", "-t", "ext4", "-F", "-d", str(root), "-E", f"offset={start}", *options.split()]
    environment = {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
    subprocess.run([*command, str(path), f"{size_bytes // 1024}k"], check=True, env=environment)
    return path


def _entry(kind: int, first: int, count: int) -> bytes:
    return struct.pack("<B3xB3xII", 0, kind, first, count)


def _sector(*entries: bytes) -> bytes:
    return bytes(446) + b"".join(entries).ljust(64, b"\0") + b"\x55\xaa"


def _write_mbr(image: BinaryIO, _layout: str, start: int, size_bytes: int) -> None:
    image.seek(0)
    image.write(_sector(_entry(_FAT, 2048, 6000), _entry(_LINUX, start // 512, size_bytes // 512)))


def _write_logical(image: BinaryIO, _layout: str, start: int, size_bytes: int) -> None:
    """An extended partition with two logical ones: an empty one, and the root; their boot sectors lie before them."""
    extended, root = 3 * MIB // 512, start // 512
    image.seek(0)
    image.write(_sector(_entry(_FAT, 2048, 4000), _entry(_EXTENDED, extended, root - extended + size_bytes // 512)))
    image.seek(extended * 512)
    image.write(_sector(_entry(_LINUX, 8, 64), _entry(_EXTENDED, root - 8 - extended, size_bytes // 512)))
    image.seek((root - 8) * 512)
    image.write(_sector(_entry(_LINUX, 8, size_bytes // 512)))


def _write_gpt(image: BinaryIO, layout: str, start: int, size_bytes: int) -> None:
    sector_bytes = 4096 if layout == "gpt4k" else 512
    image.seek(0)
    image.write(_sector(_entry(_PROTECTIVE, 1, 0xFFFFFFFF)))
    spans = ((MIB, 2 * MIB), (start, size_bytes))
    entries = b"".join(
        _LINUX_GUID
        + uuid.UUID(int=number + 1).bytes_le
        + struct.pack("<QQQ72s", first // sector_bytes, (first + count) // sector_bytes - 1, 0, b"")
        for number, (first, count) in enumerate(spans)
    ).ljust(128 * 128, b"\0")
    head = struct.pack("<8sII", b"EFI PART", 0x10000, 92)
    tail = struct.pack("<QQQQ16sQIII", 1, 0, 34, 0, bytes(16), 2, 128, 128, zlib.crc32(entries))
    checksum = zlib.crc32(head + bytes(8) + tail)
    image.seek(sector_bytes)
    image.write(head + struct.pack("<II", checksum, 0) + tail)
    image.seek(2 * sector_bytes)
    image.write(entries)
