"""What flashing has to do to one board: the manifest compared with what is there already.

A file that the board does not have is written. One that an earlier flashing wrote, and nobody has changed since, is
replaced. One that was changed on the board is left as it is, and told; one that edgefed never wrote stops it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from edgefed.errors import FlashError
from edgefed.flashing.agent_toml import CONFIG
from edgefed.flashing.manifest import (
    RECORD,
    REGULATORY,
    WHEELHOUSE,
    WIFI,
    File,
    FileRecord,
    Link,
    Manifest,
    Record,
    read_record,
)
from edgefed.flashing.tree import Entry, Tree, follow, read_text

__all__ = ["Changes", "compare", "for_new_board"]

_OURS = "/opt/edgefed/"
"""Nobody has a reason to change what is below."""
_REGULATORY_DATABASES = ("/lib/firmware/regulatory.db", "/usr/lib/crda/regulatory.bin", "/lib/crda/regulatory.bin")


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What is to be done. Paths are real ones: none of their parents is a link.

    Attributes:
        write: files, new ones and those that are replaced.
        links: to be made.
        remove: wheels that are wanted no more.
        kept: files and links that were changed on the board, and stay so.
        record_path: where the record lies.
        record: of the board as it is when all is done.
        before: the record that the board has now; None on a board without edgefed.
    """

    write: tuple[File, ...]
    links: tuple[Link, ...]
    remove: tuple[str, ...]
    kept: tuple[str, ...]
    record_path: str
    record: Record
    before: Record | None

    @property
    def is_empty(self) -> bool:
        """Whether the board is already as it should be."""
        return self.before == self.record and not (self.write or self.links or self.remove)

    @property
    def size_bytes(self) -> int:
        """Of all that is written."""
        return sum(file.size_bytes for file in self.write)

    def record_file(self, *, complete: bool) -> File:
        """Returns the record as a file: of a flashing under way, or of one that has come to its end."""
        record = self.record
        if not complete:
            # What an interrupted flashing may have left is either the old or the new: both must be known again.
            known = {**self.before.replaced, **self.before.files} if self.before else {}
            record = msgspec.structs.replace(record, complete=False, replaced=known)
        return File(self.record_path, msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n")


def compare(tree: Tree, manifest: Manifest, *, upgrade: bool) -> Changes:
    """Returns what is to be done to a board so that it has what the manifest says.

    Args:
        tree: the board's root file system.
        manifest: what it should have.
        upgrade: the board has edgefed already, and shall have this one.

    Raises:
        FlashError: the board has edgefed and `upgrade` is off, or has not and it is on; or something else is where
            edgefed's files go.
    """
    tree.expect([RECORD, *(file.path for file in manifest.files), *(link.path for link in manifest.links)])
    record_path = _real(tree, RECORD)
    before = read_record(tree.read(record_path), tree.name) if _lookup(tree, record_path) else None
    _check_intention(tree, manifest, before, upgrade=upgrade)
    states = {file.path: _state(tree, file, before) for file in manifest.files}
    link_states = {link.path: _link_state(tree, link, before) for link in manifest.links}
    both = {**states, **link_states}
    if foreign := [path for path, state in both.items() if state == "foreign"]:
        raise FlashError(
            f"{tree.name}: {', '.join(foreign)}: is there already, and edgefed did not write it: move it away"
        )
    kept = tuple(path for path, state in both.items() if state == "kept")
    record = _record_after(manifest, before, kept)
    return Changes(
        write=tuple(
            File(_real(tree, file.path), file.source, file.mode)
            for file in manifest.files
            if states[file.path] == "write"
        ),
        links=tuple(
            Link(_real(tree, link.path), link.target) for link in manifest.links if link_states[link.path] == "write"
        ),
        remove=tuple(_no_longer_wanted(tree, before, record)),
        kept=kept,
        record_path=record_path,
        record=record,
        before=before,
    )


def for_new_board(manifest: Manifest) -> Changes:
    """Returns what is done to a board that cannot be looked at, and is taken for one without edgefed.

    Raises:
        FlashError: the manifest does not say who the board is.
    """
    if CONFIG not in {file.path for file in manifest.files}:
        raise FlashError("the board needs to know who it is: name device, fleet and broker")
    return Changes(
        write=manifest.files,
        links=manifest.links,
        remove=(),
        kept=(),
        record_path=RECORD,
        record=manifest.record(),
        before=None,
    )


def _check_intention(tree: Tree, manifest: Manifest, before: Record | None, *, upgrade: bool) -> None:
    if before is not None and not upgrade:
        what = f"has edgefed {before.edgefed}" if before.complete else "was being flashed when that was interrupted"
        raise FlashError(
            f"{tree.name}: {what}; with --upgrade it gets this one, and keeps its configuration and its state"
        )
    if before is None and upgrade:
        raise FlashError(f"{tree.name}: there is no edgefed in it to upgrade: leave --upgrade out")
    paths = {file.path for file in manifest.files}
    if CONFIG not in paths and (before is None or CONFIG not in before.files):
        raise FlashError(f"{tree.name}: the board needs to know who it is: name device, fleet and broker")
    if WIFI in paths:
        _check_wifi(tree, has_country=REGULATORY in paths)


def _check_wifi(tree: Tree, *, has_country: bool) -> None:
    if tree.lookup(follow(tree, "/usr/sbin/NetworkManager")) is None:
        raise FlashError(
            f"{tree.name}: has no NetworkManager, by which edgefed sets up Wi-Fi: set it up there yourself"
        )
    # So it is in Raspberry Pi OS (pi-gen, stage2/02-net-tweaks): it radiates on no band before it knows the country.
    switched_off = "WirelessEnabled=false" in (read_text(tree, "/var/lib/NetworkManager/NetworkManager.state") or "")
    if switched_off and not has_country:
        raise FlashError(
            f"{tree.name}: Wi-Fi is switched off in it until somebody says in which country it is: add --wifi-country"
        )
    if has_country and not any(tree.lookup(follow(tree, path)) for path in _REGULATORY_DATABASES):
        raise FlashError(
            f"{tree.name}: has no database of what each country allows, so --wifi-country would do nothing: install "
            "wireless-regdb there first"
        )


def _state(tree: Tree, file: File, before: Record | None) -> str:
    """Returns what becomes of a file: write, same, kept or foreign."""
    real = _real(tree, file.path)
    entry = _lookup(tree, real)
    if entry is None:
        return "write"
    if entry.kind != "file":
        return "foreign"
    found = tree.sha256(real)
    if found == file.sha256:
        return "same"
    if before is None:
        return "foreign"
    written = [record[file.path].sha256 for record in (before.files, before.replaced) if file.path in record]
    if not written:
        return "foreign"
    return "write" if found in written or file.path.startswith(_OURS) else "kept"


def _link_state(tree: Tree, link: Link, before: Record | None) -> str:
    entry = _lookup(tree, _real(tree, link.path))
    if entry is not None:
        if entry.kind != "link":
            return "foreign"
        return "same" if entry.target == link.target else "kept" if before else "foreign"
    # A link that was made and is gone: somebody has disabled the unit.
    return "kept" if before is not None and before.complete and link.path in before.links else "write"


def _record_after(manifest: Manifest, before: Record | None, kept: tuple[str, ...]) -> Record:
    """Returns the manifest's record, with what stays from earlier: files changed there, and those not written now."""
    record = manifest.record()
    if before is None:
        return record
    earlier = {
        path: was
        for path, was in before.files.items()
        if path in kept or (path not in record.files and not path.startswith(f"{WHEELHOUSE}/"))
    }
    files: dict[str, FileRecord] = {**record.files, **earlier}
    return msgspec.structs.replace(record, files=dict(sorted(files.items())))


def _no_longer_wanted(tree: Tree, before: Record | None, after: Record) -> Iterator[str]:
    known = {**before.replaced, **before.files} if before else {}
    for path in sorted(known):
        if path.startswith(f"{WHEELHOUSE}/") and path not in after.files:
            real = _real(tree, path)
            entry = _lookup(tree, real)
            if entry is not None and entry.kind == "file":
                yield real


def _real(tree: Tree, path: str) -> str:
    return follow(tree, path, last=False)


def _lookup(tree: Tree, real: str) -> Entry | None:
    """Returns what is at a real path.

    Raises:
        FlashError: something on the way to it is no directory.
    """
    parts = real.strip("/").split("/")[:-1]
    for count in range(1, len(parts) + 1):
        parent = "/" + "/".join(parts[:count])
        entry = tree.lookup(parent)
        if entry is None:
            return None
        if entry.kind != "directory":
            raise FlashError(f"{tree.name}: {parent} is no directory, and {real} should lie in it")
    return tree.lookup(real)
