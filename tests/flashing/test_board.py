"""What is found out about a root file system, and which ones are refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from edgefed.errors import FlashError
from edgefed.flashing.board import Board, inspect
from edgefed.flashing.rootfs import DirectoryTree
from tests.flashing.small_boards import MACHINE, Rootfs


def found(root: Path) -> Board:
    return inspect(DirectoryTree(root))


def test_a_root_file_system_tells_what_it_is(rootfs: Rootfs) -> None:
    board = found(rootfs(python="3.12", l4t="38.2.1"))
    assert board == Board(
        architecture=MACHINE, python=(3, 12), glibc=(2, 36), system="Test Linux 1 (small)", l4t="38.2.1"
    )
    assert board.words == f"Test Linux 1 (small), L4T 38.2.1, JetPack 7, {MACHINE}, Python 3.12"


def test_what_a_system_calls_itself_commands_no_terminal(rootfs: Rootfs) -> None:
    root = rootfs()
    (root / "usr/lib/os-release").write_text('PRETTY_NAME="Nice \x1b[2J"\n')
    assert found(root).system == "Nice \\u001b[2J"


def test_the_architecture_is_that_of_the_shell(rootfs: Rootfs) -> None:
    root = rootfs()
    header = bytearray((root / "usr/bin/dash").read_bytes()[:64])
    header[18:20] = (183).to_bytes(2, "little")
    (root / "usr/bin/dash").write_bytes(header)
    assert found(root).architecture == "aarch64"
    header[18:20] = (22).to_bytes(2, "little")
    (root / "usr/bin/dash").write_bytes(header)
    with pytest.raises(FlashError, match="ELF machine 22"):
        found(root)


def test_an_old_python_is_named_with_the_way_out(rootfs: Rootfs) -> None:
    with pytest.raises(FlashError, match=r"L4T 35\.4\.1, JetPack 5.*Python 3\.8\).*an Orin takes JetPack 6"):
        found(rootfs("jetson", python="3.8", l4t="35.4.1"))
    with pytest.raises(FlashError, match=r"Python 3\.9\).*newer release of this system"):
        found(rootfs("other", python="3.9"))


def test_a_python_that_is_no_link_is_told_by_its_neighbour(rootfs: Rootfs) -> None:
    root = rootfs(python="3.11")
    (root / "usr/bin/python3").unlink()
    (root / "usr/bin/python3").write_bytes(b"")
    assert found(root).python == (3, 11)


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        ("usr/bin/dash", "no program at /bin/sh"),
        ("usr/bin/sh", "no program at /bin/sh"),
        ("usr/lib/systemd", "no systemd"),
        ("usr/bin/python3", "install python3 there"),
        ("usr/lib/python3.11", "no module venv"),
    ],
)
def test_what_is_missing_is_named(rootfs: Rootfs, gone: str, message: str) -> None:
    root = rootfs(python="3.11")
    path = root / gone
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    with pytest.raises(FlashError, match=message):
        found(root)


def test_links_in_a_circle_are_noticed(rootfs: Rootfs) -> None:
    root = rootfs()
    (root / "usr/bin/sh").unlink()
    (root / "usr/bin/sh").symlink_to("/bin/sh")
    with pytest.raises(FlashError, match="lead in a circle"):
        found(root)


def test_links_out_of_the_tree_stay_in_it(rootfs: Rootfs) -> None:
    root = rootfs()
    (root / "etc/os-release").unlink()
    (root / "etc/os-release").symlink_to("../../../../../../usr/lib/os-release")
    assert found(root).system == "Test Linux 1 (small)"


def test_what_is_no_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FlashError, match="is not a directory"):
        DirectoryTree(tmp_path / "nothing")
    with pytest.raises(FlashError, match="this machine's own root"):
        DirectoryTree(Path("/"))
