"""Where the partitions of a disk image are: MBR, with logical ones, and GPT (UEFI specification, chapter 5)."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from edgefed.errors import FlashError

__all__ = ["Partition", "find_partitions"]

_SECTOR_BYTES = 512
_GPT_SECTORS = (512, 4096)
_BOOT_MARK = b"\x55\xaa"
_TABLE_OFFSET, _ENTRY_BYTES = 446, 16
_PROTECTIVE, _EXTENDED = 0xEE, (0x05, 0x0F, 0x85)
_GPT_HEADER = struct.Struct("<8sIIIIQQQQ16sQIII")
_MAX_ENTRIES_BYTES = 1 << 20
_MAX_LOGICAL = 128
_EXT_MAGIC_OFFSET = 1080
_SIGNATURES = (
    (_EXT_MAGIC_OFFSET, b"\x53\xef", "ext4"),  # or one of its predecessors
    (65600, b"_BHRfS_M", "btrfs"),
    (1024, b"\x10\x20\xf5\xf2", "f2fs"),
    (0, b"XFSB", "xfs"),
    (0, b"hsqs", "squashfs"),
    (0, b"LUKS\xba\xbe", "encrypted (LUKS)"),
    (512, b"LABELONE", "LVM"),
    (54, b"FAT", "FAT"),
    (82, b"FAT32", "FAT"),
)


@dataclass(frozen=True, slots=True)
class Partition:
    """A part of a disk.

    Attributes:
        number: as Linux counts them; 0 where a file system takes the whole image.
        start_bytes: from the beginning of the image.
        size_bytes: of it.
        holds: the file system in it; empty where it is none that is known.
    """

    number: int
    start_bytes: int
    size_bytes: int
    holds: str


def find_partitions(image: BinaryIO, name: str) -> list[Partition]:
    """Returns the partitions of an image, in the order of their numbers.

    Raises:
        FlashError: it has none that can be understood, or ends before they do.
    """
    size_bytes = image.seek(0, 2)
    start = _read(image, 0, _SECTOR_BYTES)
    whole = _holds(image, 0, size_bytes)
    found: list[tuple[int, int, int]] = []
    if start[510:] == _BOOT_MARK and whole != "FAT":  # the boot sector of a FAT has the mark as well
        protected = any(kind == _PROTECTIVE for kind, _, _ in _entries(start))
        found = _gpt(image, name) if protected else list(_mbr(image, start))
    if not found and whole:
        found = [(0, 0, size_bytes)]
    if not found:
        raise FlashError(f"{name}: is not a disk image: it has no partition table (MBR or GPT) and no file system")
    for number, offset, length in found:
        if offset + length > size_bytes:
            raise FlashError(
                f"{name}: is truncated: partition {number} ends at byte {offset + length}, the image at {size_bytes}"
            )
    return [Partition(number, offset, length, _holds(image, offset, length)) for number, offset, length in found]


def _entries(sector: bytes) -> list[tuple[int, int, int]]:
    """Returns (kind, first sector, sectors) of the four entries of a boot sector; unused ones are left out."""
    entries = []
    for index in range(4):
        entry = sector[_TABLE_OFFSET + index * _ENTRY_BYTES :][:_ENTRY_BYTES]
        status, kind, first, count = entry[0], entry[4], *struct.unpack("<II", entry[8:16])
        entries.append((kind if status in (0x00, 0x80) and count else 0, first, count))
    return entries if any(kind for kind, _, _ in entries) else []


def _mbr(image: BinaryIO, sector: bytes) -> Iterator[tuple[int, int, int]]:
    for index, (kind, first, count) in enumerate(_entries(sector)):
        if kind in _EXTENDED:
            yield from _logical(image, first)
        elif kind:
            yield index + 1, first * _SECTOR_BYTES, count * _SECTOR_BYTES


def _logical(image: BinaryIO, extended: int) -> Iterator[tuple[int, int, int]]:
    """Yields the logical partitions: a chain of boot sectors, each with one partition and the way to the next."""
    here = extended
    for number in range(5, 5 + _MAX_LOGICAL):  # a chain that bites its own tail ends as well
        sector = _read(image, here * _SECTOR_BYTES, _SECTOR_BYTES)
        if sector[510:] != _BOOT_MARK or not (entries := _entries(sector)):
            return
        (kind, first, count), (onward, step, _) = entries[0], entries[1]
        if kind:
            yield number, (here + first) * _SECTOR_BYTES, count * _SECTOR_BYTES
        if onward not in _EXTENDED or step == 0:
            return
        here = extended + step


def _gpt(image: BinaryIO, name: str) -> list[tuple[int, int, int]]:
    for sector_bytes in _GPT_SECTORS:
        header = _read(image, sector_bytes, _GPT_HEADER.size)
        (mark, _, length, checksum, _, _, _, _, _, _, table, count, entry_bytes, table_checksum) = _GPT_HEADER.unpack(
            header
        )
        if mark != b"EFI PART":
            continue
        if not _GPT_HEADER.size <= length <= sector_bytes or not 128 <= entry_bytes <= _MAX_ENTRIES_BYTES:
            break
        whole = bytearray(_read(image, sector_bytes, length))
        whole[16:20] = bytes(4)  # the checksum is of the header with this field empty
        entries = _read(image, table * sector_bytes, min(count * entry_bytes, _MAX_ENTRIES_BYTES))
        if zlib.crc32(whole) != checksum or zlib.crc32(entries) != table_checksum:
            break
        found = []
        for index in range(count):
            entry = entries[index * entry_bytes :][:entry_bytes]
            first, last = struct.unpack("<QQ", entry[32:48])
            if any(entry[:16]):
                found.append((index + 1, first * sector_bytes, (last - first + 1) * sector_bytes))
        return found
    raise FlashError(f"{name}: its GPT is damaged: get the image again, or repair it with sgdisk or parted")


def _holds(image: BinaryIO, start_bytes: int, size_bytes: int) -> str:
    for offset, mark, kind in _SIGNATURES:
        if offset + len(mark) <= size_bytes and _read(image, start_bytes + offset, len(mark)) == mark:
            return kind
    return ""


def _read(image: BinaryIO, offset: int, size_bytes: int) -> bytes:
    """Returns so many bytes; zeros where the image has none."""
    image.seek(offset)
    return image.read(size_bytes).ljust(size_bytes, b"\0")
