"""Copies of images onto a disk that ends in the middle of them."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest

from edgefed.errors import FlashError
from edgefed.flashing.disk_files import copy_image
from tests.faults.small_disk import may_mount, small_disk

KIB = 1 << 10


@pytest.mark.parametrize("kind", ["plain", "gzip"])
@pytest.mark.parametrize("room_kib", [1024, 2048 + 300, 2048 + 596])
def test_a_disk_that_ends_in_the_middle_of_an_image_is_told(tmp_path: Path, kind: str, room_kib: int) -> None:
    if not may_mount(tmp_path):
        pytest.skip("this process may not mount file systems")
    content = os.urandom((2048 + 600) * KIB)
    source = tmp_path / "image"
    source.write_bytes(gzip.compress(content, 1) if kind == "gzip" else content)
    with (
        small_disk(tmp_path / "disk", size_bytes=room_kib * KIB) as disk,
        (disk.path / "copy").open("x+b", buffering=0) as copy,
        pytest.raises(FlashError, match=r"no space|are free"),
    ):
        copy_image(source, copy, lambda _: None)
