"""Flashing real disk images, as a user without any rights: every layout, every trap of debugfs, every bad image."""

from __future__ import annotations

import gzip
import hashlib
import lzma
import os
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgefed.errors import FlashError
from edgefed.flashing import ext4
from edgefed.flashing.board import inspect
from edgefed.flashing.changes import Changes, compare
from edgefed.flashing.ext4 import Ext4Tree
from edgefed.flashing.image import flash_image, output_of, root_tree
from edgefed.flashing.manifest import RECORD, Installation, manifest, read_record
from edgefed.flashing.wheelhouse import read_wheelhouse
from tests.flashing.small_boards import MIB, Rootfs, make_image, make_rootfs, make_wheel, needs_e2fsprogs

NOBODY = 65534
pytestmark = needs_e2fsprogs


def plan(wheels: Path, *, upgrade: bool = False, config: bytes | None = b"c") -> Callable[[Ext4Tree], Changes]:
    def planned(tree: Ext4Tree) -> Changes:
        board = inspect(tree)
        installation = Installation(wheels=read_wheelhouse(wheels, board), agent_toml=config, ca=b"a", key=b"k")
        return compare(tree, manifest(installation, board), upgrade=upgrade)

    return planned


def check_flashed(image: Path) -> None:
    """Reads everything back by the record in the image, with e2fsck's and debugfs' word for it."""
    with image.open("rb") as file:
        tree = root_tree(file, str(image))
        tree.check()
        record = read_record(tree.read(RECORD), "")
        assert len(record.files) > 10
        for path, written in record.files.items():
            entry = tree.lookup(path)
            assert entry is not None
            assert (entry.kind, f"{entry.mode:04o}", entry.uid, entry.gid) == ("file", written.mode, 0, 0)
            assert tree.sha256(path) == written.sha256
        for path, target in record.links.items():
            link = tree.lookup(path)
            assert link is not None
            assert (link.kind, link.target) == ("link", target)


@pytest.fixture
def root(rootfs: Rootfs) -> Path:
    root = rootfs()
    for number in range(300):  # a directory with an index, which debugfs must keep right
        (root / "etc/systemd/system" / f"some-unit-with-a-long-name-{number}.service").touch()
    return root


@pytest.fixture
def original(root: Path, tmp_path: Path) -> Path:
    return make_image(tmp_path / "os.img", root)


@pytest.mark.parametrize("layout", ["mbr", "logical", "gpt", "gpt4k", "bare"])
def test_every_layout_is_flashed(root: Path, tmp_path: Path, wheelhouse: Path, layout: str) -> None:
    original = make_image(tmp_path / "os.img", root, layout)
    before = original.read_bytes()
    done: list[int] = []
    changes = flash_image(original, tmp_path / "new.img", plan(wheelhouse), progress=done.append)
    check_flashed(tmp_path / "new.img")
    assert original.read_bytes() == before
    assert sum(done) == len(before) + changes.size_bytes + changes.record_file(complete=True).size_bytes
    assert (tmp_path / "new.img").stat().st_blocks * 512 < len(before) / 2, "holes stay holes"
    start = 0 if layout == "bare" else 4 * MIB
    assert (tmp_path / "new.img").read_bytes()[:start] == before[:start], "only the root file system is written to"


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory in which anybody may write; pytest's own are closed to others."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o777)
        yield Path(name)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # other tests' threads do not matter here
def test_no_rights_are_needed(root: Path, wheelhouse: Path, open_directory: Path) -> None:
    original = make_image(open_directory / "os.img", root)
    wheels = shutil.copytree(wheelhouse, open_directory / "wheels")
    child = os.fork()
    if child == 0:
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(NOBODY)
                os.setuid(NOBODY)
            flash_image(original, open_directory / "new.img", plan(wheels))
            os._exit(0)
        except BaseException:  # noqa: BLE001  # this is a process of its own, which must not go on as a test
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert (open_directory / "new.img").stat().st_uid in (NOBODY, os.geteuid())
    check_flashed(open_directory / "new.img")


def test_an_image_is_replaced_only_when_all_is_well(
    original: Path, wheelhouse: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = hashlib.sha256(original.read_bytes()).digest()
    with monkeypatch.context() as patch:

        def fail(_self: Ext4Tree) -> None:
            raise FlashError("e2fsck finds faults")

        patch.setattr(Ext4Tree, "check", fail)
        with pytest.raises(FlashError, match="e2fsck finds faults"):
            flash_image(original, output_of(original, None), plan(wheelhouse))
    assert hashlib.sha256(original.read_bytes()).digest() == before
    assert [path.name for path in original.parent.iterdir() if ".img" in path.name] == ["os.img"]
    original.chmod(0o640)
    flash_image(original, output_of(original, None), plan(wheelhouse))
    check_flashed(original)
    assert original.stat().st_mode & 0o777 == 0o640
    assert [path.name for path in original.parent.iterdir() if ".img" in path.name] == ["os.img"]


def test_a_flashed_image_is_upgraded(original: Path, wheelhouse: Path) -> None:
    flash_image(original, original, plan(wheelhouse))
    with pytest.raises(FlashError, match="with --upgrade"):
        flash_image(original, original, plan(wheelhouse))
    (wheelhouse / "needed_part-1.2-py3-none-any.whl").unlink()
    make_wheel(wheelhouse, "needed_part", "1.3")
    changes = flash_image(original, original, plan(wheelhouse, upgrade=True, config=None))
    assert changes.remove == ("/opt/edgefed/wheelhouse/needed_part-1.2-py3-none-any.whl",)
    check_flashed(original)
    with original.open("rb") as image:
        tree = root_tree(image, "image")
        assert tree.lookup("/opt/edgefed/wheelhouse/needed_part-1.2-py3-none-any.whl") is None
        assert tree.lookup("/opt/edgefed/wheelhouse/needed_part-1.3-py3-none-any.whl") is not None
        assert tree.read("/etc/edgefed/agent.toml") == b"c"


def test_links_are_followed_as_the_board_will(root: Path, tmp_path: Path, wheelhouse: Path) -> None:
    long = f"/{'a long name ' * 8}/data"  # longer than what an inode holds, and with blanks
    (root / long.lstrip("/")).mkdir(parents=True)
    (root / "opt").rmdir()
    (root / "opt").symlink_to(f"../../..{long}")
    original = make_image(tmp_path / "os.img", root)
    flash_image(original, original, plan(wheelhouse))
    with original.open("rb") as image:
        tree = root_tree(image, "image")
        tree.check()
        entry = tree.lookup("/opt")
        assert entry is not None
        assert entry.target == f"../../..{long}"
        assert tree.lookup(f"{long}/edgefed/bin/first-boot") is not None


@pytest.mark.parametrize("kind", ["xz", "zst", "gz"])
def test_a_compressed_image_is_unpacked_and_stays(original: Path, wheelhouse: Path, kind: str) -> None:
    packed = original.with_name(f"os.img.{kind}")
    if kind == "zst":
        if shutil.which("zstd") is None:
            pytest.skip("zstd is not here")
        subprocess.run(["zstd", "-q", str(original), "-o", str(packed)], check=True)
    else:
        pack = lzma.compress if kind == "xz" else gzip.compress
        packed.write_bytes(pack(original.read_bytes()))
    with pytest.raises(FlashError, match=r"os\.img: is there already"):
        output_of(packed, None)
    original.unlink()
    before = packed.read_bytes()
    target = output_of(packed, None)
    assert target == original
    assert flash_image(packed, None, plan(wheelhouse)).write, "a dry run"
    assert not target.exists()
    flash_image(packed, target, plan(wheelhouse))
    check_flashed(target)
    assert packed.read_bytes() == before

    target.unlink()
    packed.write_bytes(before[: len(before) // 2])
    with pytest.raises(FlashError, match="is cut off or damaged"):
        flash_image(packed, target, plan(wheelhouse))
    assert list(target.parent.glob("*os.img")) == []


def test_what_is_no_image_is_told(tmp_path: Path, wheelhouse: Path) -> None:
    def refused(path: Path) -> str:
        with pytest.raises(FlashError) as told:
            flash_image(path, tmp_path / "new.img", plan(wheelhouse))
        assert not (tmp_path / "new.img").exists()
        return str(told.value)

    text = tmp_path / "text"
    text.write_text("no image at all\n" * 1000)
    assert "no partition table (MBR or GPT) and no file system" in refused(text)
    text.write_bytes(b"")
    assert "is not a disk image" in refused(text)
    assert "No such file" in refused(tmp_path / "nowhere")
    assert "is not a file" in refused(wheelhouse)
    empty = tmp_path / "empty"
    empty.mkdir()
    no_root = make_image(tmp_path / "data.img", empty)
    assert "no partition holds a root file system on ext4 (1: FAT, 2: ext4)" in refused(no_root)
    with no_root.open("r+b") as image:
        image.seek(4 * MIB + 1080)
        image.write(b"\0\0")
        image.seek(4 * MIB + 65600)
        image.write(b"_BHRfS_M")
    assert "(1: FAT, 2: btrfs)" in refused(no_root)


def test_a_truncated_image_is_told(original: Path, wheelhouse: Path) -> None:
    os.truncate(original, 20 * MIB)
    with pytest.raises(FlashError, match=rf"truncated: partition 2 ends at byte {52 * MIB}, the image at {20 * MIB}"):
        flash_image(original, original, plan(wheelhouse))


@pytest.mark.parametrize("place", [16, 92, 1024])
def test_a_damaged_gpt_is_told(root: Path, tmp_path: Path, wheelhouse: Path, place: int) -> None:
    image = make_image(tmp_path / "os.img", root, "gpt")
    with image.open("r+b") as file:
        file.seek(512 + (place if place < 92 else 512))
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(FlashError, match="GPT is damaged"):
        flash_image(image, image, plan(wheelhouse))


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (58, 0, "was not unmounted cleanly: repair it with e2fsck -fy"),
        (58, 3, "has errors"),
        (96, None, "was not unmounted cleanly"),
        (4, 0xFF, "is truncated: the file system has"),
    ],
)
def test_a_file_system_in_disorder_is_told(
    original: Path, wheelhouse: Path, offset: int, value: int | None, message: str
) -> None:
    with original.open("r+b") as image:
        image.seek(4 * MIB + 1024 + offset)
        now = image.read(1)[0]
        image.seek(-1, 1)
        image.write(bytes([now | 4 if value is None else value]))
    before = hashlib.sha256(original.read_bytes()).digest()
    with pytest.raises(FlashError) as told:
        flash_image(original, original, plan(wheelhouse))
    assert message in str(told.value)
    assert hashlib.sha256(original.read_bytes()).digest() == before


def test_faults_that_were_there_before_are_told(original: Path, wheelhouse: Path) -> None:
    with original.open("r+b") as image:
        tree = root_tree(image, "image")
        tree.run(['sif "/etc/os-release" links_count 7'])
    before = hashlib.sha256(original.read_bytes()).digest()
    with pytest.raises(FlashError, match="e2fsck finds faults in its file system, and nothing was written"):
        flash_image(original, original, plan(wheelhouse))
    assert hashlib.sha256(original.read_bytes()).digest() == before


def test_debugfs_errors_are_not_missed(original: Path) -> None:
    with original.open("r+b") as image:
        tree = root_tree(image, "image")
        for command in ('mkdir "/nowhere/at/all"', 'write "/nowhere" "/x"', "sif /nowhere mode 0", "no-such-command"):
            with pytest.raises(FlashError, match="debugfs: "):
                tree.run([command])
        with pytest.raises(FlashError, match="does not take"):
            ext4.quoted('a"b')


def test_a_full_file_system_is_told_before_it_is_written_to(root: Path, tmp_path: Path, wheelhouse: Path) -> None:
    large = make_wheel(wheelhouse, "large_part", payload_bytes=12 * MIB)
    original = make_image(tmp_path / "os.img", root, size_bytes=10 * MIB)
    with pytest.raises(FlashError, match="bytes are to be written, and its root file system has"):
        flash_image(original, original, plan(wheelhouse))
    few_inodes = make_image(tmp_path / "few.img", make_rootfs(tmp_path / "other"), options="-N 48")
    large.unlink()
    with pytest.raises(FlashError, match="has no room for"):
        flash_image(few_inodes, few_inodes, plan(wheelhouse))


def test_no_space_for_the_copy_is_told(original: Path, wheelhouse: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = shutil.disk_usage(original.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free._replace(free=1000))
    with pytest.raises(FlashError, match=r"a copy takes \d+ bytes, and 1000 are free"):
        flash_image(original, original.with_name("new.img"), plan(wheelhouse))
    assert not original.with_name("new.img").exists()


def test_one_of_several_roots_must_be_chosen(root: Path, tmp_path: Path, wheelhouse: Path) -> None:
    small = make_rootfs(tmp_path / "small")
    image = make_image(tmp_path / "os.img", root, "gpt")
    other = make_image(tmp_path / "other.img", small, "bare", size_bytes=2 * MIB)
    with image.open("r+b") as file:
        file.seek(MIB)
        file.write(other.read_bytes())
    with pytest.raises(FlashError, match="partitions 1 and 2 each hold a root file system: choose one"):
        flash_image(image, image, plan(wheelhouse))
    with pytest.raises(FlashError, match=r"has no partition 7 \(1: ext4, 2: ext4\)"):
        flash_image(image, image, plan(wheelhouse), partition=7)
    flash_image(image, image, plan(wheelhouse), partition=2)
    with image.open("rb") as file:
        assert root_tree(file, "image", 1).lookup("/opt/edgefed") is None
        assert root_tree(file, "image", 2).lookup("/opt/edgefed") is not None


def test_what_reads_back_differently_is_told(original: Path, wheelhouse: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Ext4Tree.run

    def write_other_bytes(tree: Ext4Tree, commands: list[str]) -> None:
        run(tree, [command.replace("mode 0100600", "mode 0100644") for command in commands])

    monkeypatch.setattr(Ext4Tree, "run", write_other_bytes)
    with pytest.raises(FlashError, match=r"key\.pem was written, and is not there as it should be"):
        flash_image(original, original, plan(wheelhouse))
