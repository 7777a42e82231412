"""Flashing a board that runs: through ssh, as root, with what is sent lying beside its place until all of it is whole.

A file's name on the way is made from its content (`.NAME.` and the first digits of its sha256), so that flashing again
after a cut finds what has come through, even half a wheel, and sends the rest. Until the last byte was read back the
board is as it was; then one script, which needs the connection no more, renames everything.
"""

from __future__ import annotations

import io
import shlex
import tarfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath

from edgefed.errors import FlashError
from edgefed.flashing.changes import Changes
from edgefed.flashing.manifest import RECORD, File, read_record
from edgefed.flashing.remote import Shell
from edgefed.flashing.ssh_tree import SshTree, for_each
from edgefed.flashing.tree import follow

__all__ = ["check_running", "interrupted", "size_bytes", "write"]

_COPY_BYTES = 1 << 18
_SMALL_BYTES = 1 << 16
_SPARE_BYTES = 1 << 20
_DIGITS = 16  # of the sha256, in a name on the way: as many as `temporary_beside` has, so that others clean up after us

_SYSTEMD_RUNS = '[ -d /run/systemd/system ] || { echo "systemd does not run there" >&2; exit 1; }'
_SIZES = for_each('if [ -f "$path" ]; then stat -c %s -- "$path"; else echo 0; fi')
_FREE = for_each('stat -f -c "%i %a %S" -- "$path"')  # which file system, its free blocks, their size
_UNPACK = "umask 022 && exec tar -x -o -f - -C /"
_APPEND = """
umask 022 && mkdir -p -- "${1%/*}" && umask 077 && { [ "$2" -gt 0 ] || rm -f -- "$1"; } && exec cat >> "$1"
"""
# Synced and out of the cache, so that the card is read.
_READ_BACK = for_each(
    'if [ -f "$path" ]; then sync "$path"; dd if="$path" of=/dev/null iflag=nocache count=0 2> /dev/null; '
    'sha256sum < "$path"; else echo none; fi'
)
_DROP = for_each('rm -f -- "$path"')
_DROP_DIRECTORIES = for_each('{ rmdir -- "$path" 2> /dev/null || true; }')

Progress = Callable[[int], None]
"""Called with the number of bytes that were sent, or found to be there, since the last call."""


def check_running(shell: Shell) -> None:
    """Refuses what is reached by ssh and is no booted board: a container, a rescue system.

    Raises:
        FlashError: systemd does not run there.
    """
    shell.run(_SYSTEMD_RUNS)


def interrupted(tree: SshTree) -> bool:
    """Returns whether an earlier flashing was interrupted while files got their names, and is to be finished now."""
    path = follow(tree, RECORD)
    return tree.lookup(path) is not None and not read_record(tree.read(path), tree.name).complete


def write(shell: Shell, tree: SshTree, changes: Changes, progress: Progress = lambda _: None) -> None:
    """Makes the changes on the board; where there are none, nothing is sent.

    Args:
        shell: on it.
        tree: its root file system, as it was looked at.
        changes: what to do.
        progress: how far it is.

    Raises:
        FlashError: there is no space, or what was written does not read back the same: the board is then as it was. Or
            the connection was cut: what came through lies there for the next time.
    """
    if changes.is_empty:
        return
    records = changes.record_file(complete=False), changes.record_file(complete=True)
    files = (*records, *changes.write)
    _check_space(shell, tree, files)
    try:
        _send_all(shell, files, progress)
    except FlashError as error:
        if _is_cleaned(shell, tree, files):
            raise
        what = "the board is as it was, and keeps what has come through: run the same command again, and it goes on"
        raise FlashError(f"{error}: {what}") from error
    try:
        shell.run("exec sh -s", stdin=_commit(changes, *records).encode())
    except FlashError as error:
        what = "some files may have their names already: run the same command again, and it is finished"
        raise FlashError(f"{error}: {what}") from error


def _is_cleaned(shell: Shell, tree: SshTree, files: Sequence[File]) -> bool:
    """Removes what has come through, unless the connection is gone, which may be noticed only by this."""
    if not shell.alive:
        return False
    try:
        _clean(shell, tree, files)
    except FlashError:
        return False
    return True


def size_bytes(changes: Changes) -> int:
    """Returns how much progress there is to be told of when all is sent."""
    records = (changes.record_file(complete=complete).size_bytes for complete in (False, True))
    return 0 if changes.is_empty else changes.size_bytes + sum(records)


def _staged(file: File) -> str:
    """Returns a file's name on the way."""
    place = PurePosixPath(file.path)
    return str(place.with_name(f".{place.name}.{file.sha256[:_DIGITS]}"))


def _ask(shell: Shell, script: str, paths: Sequence[str]) -> list[str]:
    answers = shell.run(script, stdin="".join(f"{path}\0" for path in paths).encode())
    return [answer.strip() for answer in answers.decode(errors="replace").split("\0")[:-1]]


def _parts_there(shell: Shell, files: Sequence[File]) -> list[int]:
    """Returns how many bytes of each file an earlier flashing has brought over; 0 where they cannot be of it."""
    sizes = map(int, _ask(shell, _SIZES, [_staged(file) for file in files]))
    return [size if size <= file.size_bytes else 0 for file, size in zip(files, sizes, strict=True)]


def _check_space(shell: Shell, tree: SshTree, files: Sequence[File]) -> None:
    parents = [_existing_parent(tree, file.path) for file in files]
    needed_bytes: dict[str, int] = defaultdict(int)
    seen: dict[str, tuple[str, int]] = {}
    space = zip(parents, _ask(shell, _FREE, parents), _parts_there(shell, files), files, strict=True)
    for parent, said, there_bytes, file in space:
        system, free_blocks, block_bytes = said.split()
        needed_bytes[system] += file.size_bytes - there_bytes
        seen[system] = parent, int(free_blocks) * int(block_bytes)
    for system, (where, free_bytes) in seen.items():
        if needed_bytes[system] + _SPARE_BYTES > free_bytes:
            raise FlashError(
                f"{tree.name}: {needed_bytes[system]} bytes are to be written to the file system of {where}, and "
                f"{free_bytes} are free there: make room"
            )


def _existing_parent(tree: SshTree, path: str) -> str:
    return next(str(parent) for parent in PurePosixPath(path).parents if tree.lookup(str(parent)) is not None)


def _send_all(shell: Shell, files: Sequence[File], progress: Progress) -> None:
    """Brings files over under their names on the way, and reads them back."""
    for again in (False, True):
        # What came in two parts may be damaged where they meet: then once more, as a whole.
        offsets = [0] * len(files) if again else _parts_there(shell, files)
        progress(sum(offsets))
        _send(shell, [pair for pair in zip(files, offsets, strict=True) if pair[1] < pair[0].size_bytes], progress)
        found = _ask(shell, _READ_BACK, [_staged(file) for file in files])
        files = [file for file, digest in zip(files, found, strict=True) if digest.split()[0] != file.sha256]
        if not files:
            return
    raise FlashError(
        f"{shell.host}: {files[0].path}: what was written does not read back the same: is the card worn, or a "
        "wheel changing here?"
    )


def _send(shell: Shell, missing: Sequence[tuple[File, int]], progress: Progress) -> None:
    """Sends what is missing of files: small ones together, for every command takes a while on a slow link."""
    small = [file for file, _ in missing if file.size_bytes <= _SMALL_BYTES]
    if small:
        shell.run(_UNPACK, stdin=_archive(small))
        progress(sum(file.size_bytes for file in small))
    for file, offset in missing:
        if file.size_bytes > _SMALL_BYTES:
            shell.send(_APPEND, _staged(file), str(offset), blocks=_blocks(file.source, offset, progress))


def _archive(files: Sequence[File]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for file in files:
            content = file.source if isinstance(file.source, bytes) else file.source.read_bytes()
            member = tarfile.TarInfo(_staged(file).lstrip("/"))
            member.size, member.mode = len(content), 0o600
            archive.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def _blocks(source: bytes | Path, offset: int, progress: Progress) -> Iterator[bytes]:
    if isinstance(source, bytes):
        progress(len(source) - offset)
        yield source[offset:]
        return
    with source.open("rb") as file:
        file.seek(offset)
        while block := file.read(_COPY_BYTES):
            yield block
            progress(len(block))


def _clean(shell: Shell, tree: SshTree, files: Sequence[File]) -> None:
    """Removes what was sent, and the directories that were made for it."""
    made = {str(parent) for file in files for parent in PurePosixPath(file.path).parents}
    missing = [path for path in sorted(made, reverse=True) if tree.lookup(path) is None]
    _ask(shell, _DROP, [_staged(file) for file in files])
    _ask(shell, _DROP_DIRECTORIES, missing)


def _commit(changes: Changes, beginning: File, end: File) -> str:
    """Returns the script that gives everything its name; it does nothing before it was read to its end."""
    lines = [_put(beginning), _sync([beginning.path])]
    lines += [_put(file) for file in changes.write]
    lines += [shlex.join(("lead", link.path, link.target)) for link in changes.links]
    lines += [_sync([*(file.path for file in changes.write), *(link.path for link in changes.links)])]
    lines += [_put(end), _sync([end.path])]
    lines += [shlex.join(("rm", "-f", "--", path)) for path in changes.remove]
    lines += [f"rm -f -- {_leftovers(file.path)}" for file in (*changes.write, end)]
    # Wheels of an earlier flashing that was given up.
    wheelhouses = {str(PurePosixPath(file.path).parent) for file in changes.write if file.path.endswith(".whl")}
    lines += [f"rm -f -- {shlex.quote(directory)}/.*.whl.{'[0-9a-f]' * _DIGITS}" for directory in sorted(wheelhouses)]
    functions = (Path(__file__).parent / "ssh_commit.sh").read_text()
    body = "".join(f"    {line}\n" for line in lines)
    return f"{functions}\ncommit() {{\n{body}}}\ncommit\n"


def _put(file: File) -> str:
    return shlex.join(("put", _staged(file), file.path, f"{file.mode:04o}"))


def _sync(paths: Iterable[str]) -> str:
    """Returns the command that makes names survive a power cut."""
    return shlex.join(("sync", *sorted({str(PurePosixPath(path).parent) for path in paths})))


def _leftovers(path: str) -> str:
    """Returns a shell pattern of a file's names on the way."""
    place = PurePosixPath(path)
    return shlex.quote(str(place.with_name(f".{place.name}."))) + "[0-9a-f]" * _DIGITS
