"""Flashing by cloud-init: a seed for its NoCloud source, which puts the agent onto a stock image at its first start.

The seed is `user-data`, `meta-data` and, with Wi-Fi, `network-config` (https://docs.cloud-init.io, NoCloud), and beside
them one archive with the files of the manifest. It works as files on the boot partition of a Raspberry Pi or in
`/var/lib/cloud/seed/nocloud`, and as a small disk labelled CIDATA.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

from edgefed.errors import FlashError
from edgefed.files import replace_file, temporary_beside
from edgefed.flashing.changes import Changes
from edgefed.flashing.wifi import Wifi

__all__ = ["ARCHIVE", "write_fat", "write_iso", "write_seed"]

ARCHIVE = "edgefed.tar"
_LABEL = "CIDATA"
_NAMES = (ARCHIVE, "network-config", "meta-data", "user-data")
_UNPRINTABLE = re.compile("[^\\x20-\\x7e\xa0-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]")
_FAT_SPARE_BYTES = 2 << 20
_FAT_CLUSTER_BYTES = 4096

Progress = Callable[[int], None]


def write_seed(
    directory: Path, changes: Changes, *, device: str, wifi: Wifi | None = None, progress: Progress = lambda _: None
) -> tuple[str, ...]:
    """Writes a seed's files into a directory, which is made where it is not there.

    Args:
        directory: where to.
        changes: what a board without edgefed gets.
        device: the board's name.
        wifi: a network to join.
        progress: called with the number of bytes written since the last call.

    Returns:
        The names of the files that are in the directory now.

    Raises:
        FlashError: a seed is there already, or the Wi-Fi name is no text.
        OSError: the system refuses. As after any other exception, nothing of the seed is left.
    """
    present = [name for name in _NAMES if (directory / name).exists()]
    if present:
        raise FlashError(f"{directory}: has {', '.join(present)} already: move that away, or name another directory")
    network = _network_config(wifi) if wifi else None
    with contextlib.ExitStack() as undo:
        if not directory.is_dir():
            directory.mkdir(parents=True)
            undo.callback(directory.rmdir)
        archive = directory / ARCHIVE
        undo.callback(archive.unlink, missing_ok=True)
        digest = _write_archive(archive, changes, progress)
        texts = {
            "network-config": network,
            "meta-data": _document({"instance-id": f"{device}-{digest[:16]}", "local-hostname": device}),
            # Last: a directory without it is no seed.
            "user-data": "#cloud-config\n" + _document({"runcmd": [["sh", "-c", f"digest={digest}\n{_script()}"]]}),
        }
        for name, text in texts.items():
            if text is not None:
                undo.callback((directory / name).unlink, missing_ok=True)
                replace_file(directory / name, [text.encode()])
        undo.pop_all()
    return ARCHIVE, *(name for name, text in texts.items() if text is not None)


def write_iso(directory: Path, image: Path) -> None:
    """Writes a directory's seed as an ISO 9660 image.

    Raises:
        FlashError: neither genisoimage nor xorriso is here, or it fails, or `image` is there already.
    """
    programs = (["genisoimage"], ["xorriso", "-as", "mkisofs"], ["mkisofs"])
    command = next((program for program in programs if shutil.which(program[0])), None)
    if command is None:
        raise FlashError("an ISO image takes genisoimage or xorriso: install one, or use --fat or the files")
    options = ["-quiet", "-volid", _LABEL, "-joliet", "-rock", "-output"]
    _make(image, lambda path: _run([*command, *options, str(path), *_sources(directory)]))


def write_fat(directory: Path, image: Path) -> None:
    """Writes a directory's seed as a FAT image.

    Raises:
        FlashError: mkfs.vfat or mcopy is not here, or fails, or `image` is there already.
    """
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    make, copy = shutil.which("mkfs.vfat", path=path), shutil.which("mcopy", path=path)
    if make is None or copy is None:
        raise FlashError("a FAT image takes mkfs.vfat and mcopy: install dosfstools and mtools, or use the files")
    sources = _sources(directory)
    contents_bytes = sum(Path(source).stat().st_size + _FAT_CLUSTER_BYTES for source in sources)
    blocks = (contents_bytes * 102 // 100 + _FAT_SPARE_BYTES) // 1024

    def build(new: Path) -> None:
        _run([make, "-n", _LABEL, "-C", str(new), str(blocks)])
        _run([copy, "-i", str(new), *sources, "::"])

    _make(image, build)


def _write_archive(path: Path, changes: Changes, progress: Progress) -> str:
    """Writes the archive and returns its sha256; the same files give the same archive."""
    with path.open("xb") as file:
        path.chmod(0o600)  # a key may be in it
        with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
            for entry in (*changes.write, changes.record_file(complete=True)):
                member = tarfile.TarInfo(entry.path.lstrip("/"))
                member.size, member.mode = entry.size_bytes, entry.mode
                with _opened(entry.source) as source:
                    archive.addfile(member, source)
                progress(entry.size_bytes)
            for link in changes.links:
                member = tarfile.TarInfo(link.path.lstrip("/"))
                member.type, member.linkname = tarfile.SYMTYPE, link.target
                archive.addfile(member)
        file.flush()
        os.fsync(file.fileno())
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _opened(source: bytes | Path) -> IO[bytes]:
    return io.BytesIO(source) if isinstance(source, bytes) else source.open("rb")


def _script() -> str:
    return (Path(__file__).parent / "seed.sh").read_text()


def _network_config(wifi: Wifi) -> str:
    try:
        wifi.ssid.encode()
    except UnicodeEncodeError:
        raise FlashError(f"the Wi-Fi name {wifi.ssid!r} is not UTF-8, which cloud-init takes alone") from None
    network = {"password": wifi.password} if wifi.password else {}
    country = {"regulatory-domain": wifi.country} if wifi.country else {}  # netplan has it since 0.105
    return _document(
        {
            "version": 2,
            "ethernets": {"wired": {"match": {"name": "e*"}, "dhcp4": True, "optional": True}},
            "wifis": {"wlan0": {"dhcp4": True, "optional": True, **country, "access-points": {wifi.ssid: network}}},
        }
    )


def _document(content: dict[str, object]) -> str:
    """Returns JSON that is YAML too: characters that YAML does not take raw are escaped in the way that it reads."""
    text = json.dumps(content, ensure_ascii=False)
    return _UNPRINTABLE.sub(lambda found: f"\\U{ord(found[0]):08x}", text) + "\n"


def _sources(directory: Path) -> list[str]:
    return [str(directory / name) for name in _NAMES if (directory / name).exists()]


def _make(image: Path, build: Callable[[Path], None]) -> None:
    if image.exists():
        raise FlashError(f"{image}: is there already: name another file, or move it away")
    temporary = temporary_beside(image)
    try:
        build(temporary)
        temporary.chmod(0o600)
        temporary.rename(image)
    finally:
        temporary.unlink(missing_ok=True)


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode != 0:
        raise FlashError(f"{command[0]} failed: {(done.stderr or done.stdout).decode(errors='replace').strip()}")
