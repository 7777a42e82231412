"""A seed as cloud-init reads it, and what it does on a board, with the script and the archive that are in it."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefed.errors import FlashError
from edgefed.flashing.changes import Changes, for_new_board
from edgefed.flashing.manifest import RECORD, Installation, manifest
from edgefed.flashing.seed import _document, write_fat, write_iso, write_seed
from edgefed.flashing.wheelhouse import read_wheelhouse
from edgefed.flashing.wifi import Wifi
from tests.flashing.small_boards import HERE, make_wheel

yaml = pytest.importorskip("yaml")
SBIN = f"{os.environ['PATH']}:/usr/sbin:/sbin"


@pytest.fixture
def changes(wheelhouse: Path) -> Changes:
    installation = Installation(wheels=read_wheelhouse(wheelhouse, HERE), agent_toml=b"a", ca=b"c", key=b"k")
    return for_new_board(manifest(installation, HERE))


def document(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(path.read_text())
    return content


def test_the_documents_are_what_cloud_init_reads(changes: Changes, tmp_path: Path) -> None:
    wifi = Wifi('a "net": ü', "pass: #word'\\ ")
    write_seed(tmp_path / "seed", changes, device="board-07", wifi=wifi)
    names = {path.name for path in (tmp_path / "seed").iterdir()}
    assert names == {"user-data", "meta-data", "network-config", "edgefed.tar"}
    assert (tmp_path / "seed/user-data").read_text().startswith("#cloud-config\n")
    meta = document(tmp_path / "seed/meta-data")
    assert meta["local-hostname"] == "board-07"
    points = document(tmp_path / "seed/network-config")["wifis"]["wlan0"]["access-points"]
    assert points == {wifi.ssid: {"password": wifi.password}}
    abroad = Wifi("net", "long enough", "NO")
    write_seed(tmp_path / "abroad", changes, device="board-07", wifi=abroad)
    assert document(tmp_path / "abroad/network-config")["wifis"]["wlan0"]["regulatory-domain"] == "NO"
    write_seed(tmp_path / "again", changes, device="board-07")
    assert document(tmp_path / "again/meta-data") == meta, "the same seed is the same instance"
    assert not (tmp_path / "again/network-config").exists()
    assert (tmp_path / "seed/edgefed.tar").stat().st_mode & 0o777 == 0o600, "there may be a key in it"


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_comes_out_of_yaml_as_it_went_in(text: str) -> None:
    assert yaml.safe_load(_document({"key": [text]})) == {"key": [text]}


def run_script(seed: Path, root: Path) -> subprocess.CompletedProcess[str]:
    """Runs the user-data's script with the places of a board moved below `root`."""
    ((shell, option, script),) = document(seed / "user-data")["runcmd"]
    programs = root.parent / "programs"
    programs.mkdir(exist_ok=True)
    for name in ("systemctl", "udevadm", "mount", "umount"):
        result = 1 if name == "mount" else 0
        (programs / name).write_text(f'#!/bin/sh\necho "{name} $@" >> {root.parent}/told\nexit {result}\n')
        (programs / name).chmod(0o755)
    for there, here in (
        ("/boot/firmware ", f"{seed} "),
        ("--directory /", f"--directory {root}"),
        ("/etc/edgefed/", f"{root}/etc/edgefed/"),
        ("/dev/console", f"{root.parent}/console"),
    ):
        assert there in script
        script = script.replace(there, here)
    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"}
    return subprocess.run([shell, option, script], env=environment, capture_output=True, text=True, check=False)


def test_the_script_installs_everything_once(changes: Changes, tmp_path: Path) -> None:
    write_seed(tmp_path / "seed", changes, device="board-07")
    root = tmp_path / "root"
    root.mkdir()
    done = run_script(tmp_path / "seed", root)
    assert done.returncode == 0, done.stderr
    for file in (*changes.write, changes.record_file(complete=True)):
        status = (root / file.path.lstrip("/")).lstat()
        assert (stat.S_IMODE(status.st_mode), status.st_size) == (file.mode, file.size_bytes)
        assert status.st_uid == os.geteuid(), "0 where the script is run by root"
    for link in changes.links:
        assert str((root / link.path.lstrip("/")).readlink()) == link.target
    assert "systemctl start --no-block edgefed-firstboot.service" in (tmp_path / "told").read_text()
    (root / "etc/edgefed/agent.toml").write_text("mine")
    assert run_script(tmp_path / "seed", root).returncode == 0
    assert (root / "etc/edgefed/agent.toml").read_text() == "mine"
    assert "is on this board already" in (tmp_path / "console").read_text()


def test_a_damaged_archive_is_not_unpacked(changes: Changes, tmp_path: Path) -> None:
    write_seed(tmp_path / "seed", changes, device="board-07")
    with (tmp_path / "seed/edgefed.tar").open("r+b") as archive:
        archive.seek(700)
        archive.write(b"x")
    root = tmp_path / "root"
    root.mkdir()
    assert run_script(tmp_path / "seed", root).returncode == 1
    assert list(root.iterdir()) == []
    assert "no whole edgefed.tar" in (tmp_path / "console").read_text()


def test_files_in_the_archive_belong_to_root(changes: Changes, tmp_path: Path) -> None:
    write_seed(tmp_path / "seed", changes, device="board-07")
    with tarfile.open(tmp_path / "seed/edgefed.tar") as archive:
        members = archive.getmembers()
    assert {(member.uid, member.gid) for member in members} == {(0, 0)}
    assert RECORD.lstrip("/") in {member.name for member in members}


def test_a_seed_is_not_overwritten_and_a_failed_one_leaves_nothing(
    changes: Changes, wheelhouse: Path, tmp_path: Path
) -> None:
    seed = tmp_path / "seed"
    seed.mkdir()
    (seed / "user-data").write_text("#cloud-config\n")
    with pytest.raises(FlashError, match="has user-data already"):
        write_seed(seed, changes, device="board-07")
    assert [path.name for path in seed.iterdir()] == ["user-data"]
    (wheelhouse / "pip-24.0-py3-none-any.whl").unlink()
    with pytest.raises(FileNotFoundError):
        write_seed(tmp_path / "new", changes, device="board-07")
    assert not (tmp_path / "new").exists()
    make_wheel(wheelhouse, "pip", "24.0")
    with pytest.raises(FlashError, match="is not UTF-8"):
        write_seed(tmp_path / "new", changes, device="board-07", wifi=Wifi(os.fsdecode(b"\xe9"), ""))
    assert not (tmp_path / "new").exists()


@pytest.mark.skipif(shutil.which("genisoimage") is None, reason="genisoimage is not here")
def test_the_iso_has_the_label_and_the_files(changes: Changes, tmp_path: Path) -> None:
    write_seed(tmp_path / "seed", changes, device="board-07")
    iso = tmp_path / "seed.iso"
    write_iso(tmp_path / "seed", iso)
    with iso.open("rb") as file:
        file.seek(32768 + 40)
        assert file.read(32).strip() == b"CIDATA"
    if shutil.which("isoinfo"):
        for name in ("user-data", "meta-data", "edgefed.tar"):
            got = subprocess.run(["isoinfo", "-R", "-i", iso, "-x", f"/{name}"], capture_output=True, check=True)
            assert got.stdout == (tmp_path / "seed" / name).read_bytes()
    with pytest.raises(FlashError, match="is there already"):
        write_iso(tmp_path / "seed", iso)


@pytest.mark.skipif(not all(shutil.which(name, path=SBIN) for name in ("mkfs.vfat", "mcopy")), reason="no mtools here")
def test_the_fat_image_has_the_label_and_the_files(changes: Changes, tmp_path: Path) -> None:
    write_seed(tmp_path / "seed", changes, device="board-07")
    fat = tmp_path / "seed.fat"
    write_fat(tmp_path / "seed", fat)
    assert fat.read_bytes()[43:54] == b"CIDATA     "
    for name in ("user-data", "meta-data", "edgefed.tar"):
        subprocess.run(["mcopy", "-i", fat, f"::{name}", tmp_path / name], check=True)
        assert (tmp_path / name).read_bytes() == (tmp_path / "seed" / name).read_bytes()


@pytest.mark.parametrize(("write", "message"), [(write_iso, "genisoimage or xorriso"), (write_fat, "dosfstools")])
def test_without_the_programs_the_way_out_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, write: Any, message: str
) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    with pytest.raises(FlashError, match=message):
        write(tmp_path, tmp_path / "image")


def test_a_seed_must_say_who_the_board_is(wheelhouse: Path) -> None:
    with pytest.raises(FlashError, match="name device, fleet and broker"):
        for_new_board(manifest(Installation(wheels=read_wheelhouse(wheelhouse, HERE)), HERE))
