"""Flashing real directories: complete, nothing of others overwritten, upgraded with care, undone when it fails."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgefed.errors import FlashError
from edgefed.flashing import rootfs as module
from edgefed.flashing.board import inspect
from edgefed.flashing.changes import Changes, compare
from edgefed.flashing.manifest import RECORD, Installation, manifest
from edgefed.flashing.rootfs import DirectoryTree, write
from edgefed.flashing.wheelhouse import read_wheelhouse
from edgefed.flashing.wifi import Wifi
from tests.flashing.small_boards import Rootfs, make_wheel

CONFIG = b'device = "one"\n'
WHEEL = "opt/edgefed/wheelhouse/needed_part-1.2-py3-none-any.whl"


def flash(root: Path, wheels: Path, *, upgrade: bool = False, config: bytes | None = CONFIG, **more: object) -> Changes:
    tree = DirectoryTree(root)
    board = inspect(tree)
    installation = Installation(wheels=read_wheelhouse(wheels, board), agent_toml=config, **more)  # type: ignore[arg-type]
    changes = compare(tree, manifest(installation, board), upgrade=upgrade)
    write(tree, changes)
    return changes


def snapshot(root: Path) -> dict[str, tuple[int, bytes | str]]:
    """Everything below a directory: modes, contents, link targets."""

    def content(path: Path) -> bytes | str:
        if path.is_symlink():
            return str(path.readlink())
        return path.read_bytes() if path.is_file() else ""

    return {
        str(path.relative_to(root)): (path.lstat().st_mode, content(path))
        for directory, names, files in os.walk(root)
        for path in (Path(directory, name) for name in (*names, *files))
    }


def record(root: Path) -> dict[str, object]:
    document: dict[str, object] = json.loads((root / RECORD.lstrip("/")).read_text())
    return document


def test_everything_is_there_and_nothing_else(rootfs: Rootfs, wheelhouse: Path) -> None:
    root = rootfs()
    before = snapshot(root)
    flash(root, wheelhouse, key=b"k", ca=b"c", certificate=b"d")
    after = snapshot(root)
    assert {path: after[path] for path in before} == before
    new = {path for path in after.keys() - before.keys() if not stat.S_ISDIR(after[path][0])}
    written = record(root)
    assert isinstance(written["files"], dict)
    assert isinstance(written["links"], dict)
    assert {f"/{path}" for path in new} == {*written["files"], *written["links"], RECORD}
    assert written["complete"] is True
    for path, entry in written["files"].items():
        status = (root / path.lstrip("/")).lstat()
        assert f"{stat.S_IMODE(status.st_mode):04o}" == entry["mode"], path
        assert status.st_uid == root.stat().st_uid
    assert after["etc/edgefed/tls/key.pem"] == (stat.S_IFREG | 0o600, b"k")
    assert after["etc/systemd/system/multi-user.target.wants/edgefed-agent.service"][1] == (
        "/etc/systemd/system/edgefed-agent.service"
    )


def test_links_lead_nowhere_out_of_the_tree(rootfs: Rootfs, wheelhouse: Path, tmp_path: Path) -> None:
    root = rootfs()
    outside = tmp_path / "outside"
    outside.mkdir()
    (root / "opt").rmdir()
    (root / "opt").symlink_to(f"{'../' * 20}{str(outside).lstrip('/')}")
    (root / "etc/edgefed").symlink_to("/data/edgefed")
    flash(root, wheelhouse)
    assert list(outside.iterdir()) == []
    assert (root / str(outside).lstrip("/") / "edgefed/bin/first-boot").is_file()
    assert (root / "data/edgefed/agent.toml").read_bytes() == CONFIG


def test_a_file_of_others_is_not_overwritten(rootfs: Rootfs, wheelhouse: Path, tmp_path: Path) -> None:
    root = rootfs()
    (root / "etc/edgefed").mkdir()
    (root / "etc/edgefed/agent.toml").symlink_to(tmp_path / "elsewhere")
    unit = root / "etc/systemd/system/edgefed-agent.service"
    unit.write_text("mine")
    before = snapshot(root)
    with pytest.raises(FlashError, match=r"agent\.toml, /etc/.*edgefed-agent\.service: is there already, and edgefed"):
        flash(root, wheelhouse)
    assert snapshot(root) == before
    unit.unlink()
    (root / "etc/edgefed/agent.toml").unlink()
    (root / "etc/edgefed").rmdir()
    (root / "etc/edgefed").write_text("a file")
    with pytest.raises(FlashError, match="/etc/edgefed is no directory"):
        flash(root, wheelhouse)


def test_an_installation_is_upgraded_when_that_is_asked_for(rootfs: Rootfs, wheelhouse: Path) -> None:
    root = rootfs()
    with pytest.raises(FlashError, match="no edgefed in it to upgrade"):
        flash(root, wheelhouse, upgrade=True)
    flash(root, wheelhouse, key=b"k", ca=b"c", certificate=b"d")
    before = snapshot(root)
    with pytest.raises(FlashError, match=r"has edgefed .*; with --upgrade"):
        flash(root, wheelhouse)
    assert snapshot(root) == before

    (wheelhouse / Path(WHEEL).name).unlink()
    make_wheel(wheelhouse, "needed_part", "1.3")
    (root / "etc/edgefed/agent.toml").write_text("changed on the board")
    (root / "etc/systemd/system/multi-user.target.wants/edgefed-agent.service").unlink()
    lock = root / "opt/edgefed/wheelhouse/requirements.lock"
    lock.write_text("damaged")
    changes = flash(root, wheelhouse, upgrade=True, config=b'device = "two"\n')
    assert set(changes.kept) == {
        "/etc/edgefed/agent.toml",
        "/etc/systemd/system/multi-user.target.wants/edgefed-agent.service",
    }
    assert (root / "etc/edgefed/agent.toml").read_text() == "changed on the board"
    assert (root / "etc/edgefed/tls/key.pem").read_bytes() == b"k"
    assert not (root / WHEEL).exists()
    assert (root / WHEEL.replace("1.2", "1.3")).is_file()
    assert "needed-part==1.3 --hash" in lock.read_text()
    assert not (root / "etc/systemd/system/multi-user.target.wants/edgefed-agent.service").exists()
    files = record(root)["files"]
    assert isinstance(files, dict)
    assert f"/{WHEEL}" not in files
    assert "/etc/edgefed/tls/key.pem" in files, "what was not given again is still known"
    assert flash(root, wheelhouse, upgrade=True, config=None).write == (), "nothing is left to do"


def test_a_board_must_know_who_it_is(rootfs: Rootfs, wheelhouse: Path) -> None:
    with pytest.raises(FlashError, match="name device, fleet and broker"):
        flash(rootfs(), wheelhouse, config=None)


def test_wifi_needs_network_manager(rootfs: Rootfs, wheelhouse: Path) -> None:
    root = rootfs()
    wifi = Wifi("net", "long enough")
    with pytest.raises(FlashError, match="no NetworkManager"):
        flash(root, wheelhouse, wifi=wifi)
    (root / "usr/sbin/NetworkManager").write_bytes(b"")
    flash(root, wheelhouse, wifi=wifi)
    keyfile = root / "etc/NetworkManager/system-connections/edgefed-wifi.nmconnection"
    assert stat.S_IMODE(keyfile.stat().st_mode) == 0o600


def test_wifi_that_waits_for_its_country_is_not_flashed_without(rootfs: Rootfs, wheelhouse: Path) -> None:
    root = rootfs()
    (root / "usr/sbin/NetworkManager").write_bytes(b"")
    state = root / "var/lib/NetworkManager/NetworkManager.state"
    state.parent.mkdir()
    state.write_text("[main]\nWirelessEnabled=false\n")  # as Raspberry Pi OS comes
    with pytest.raises(FlashError, match=r"switched off in it until .* add --wifi-country"):
        flash(root, wheelhouse, wifi=Wifi("net", "long enough"))
    wifi = Wifi("net", "long enough", "GB")
    with pytest.raises(FlashError, match="wireless-regdb"):
        flash(root, wheelhouse, wifi=wifi)
    (root / "usr/lib/firmware").mkdir()
    (root / "etc/alternatives").mkdir()
    (root / "usr/lib/firmware/regulatory.db-debian").write_bytes(b"")
    (root / "etc/alternatives/regulatory.db").symlink_to("/lib/firmware/regulatory.db-debian")
    (root / "usr/lib/firmware/regulatory.db").symlink_to("/etc/alternatives/regulatory.db")
    flash(root, wheelhouse, wifi=wifi)
    assert (root / "etc/modprobe.d/edgefed-wifi.conf").read_text() == "options cfg80211 ieee80211_regdom=GB\n"
    assert (root / "etc/systemd/system/multi-user.target.wants/edgefed-wifi.service").is_symlink()


def failing_after(count: int, function: object) -> object:
    calls: Iterator[int] = iter(range(1000))

    def call(*arguments: object) -> object:
        if next(calls) == count:
            raise OSError(errno.ENOSPC, "No space left on device")
        return function(*arguments)  # type: ignore[operator]

    return call


def grow_old(root: Path) -> None:
    """Makes an installation one of an earlier version: some files have another content, and one is not there."""
    old = record(root)
    files = old["files"]
    assert isinstance(files, dict)
    for path, entry in files.items():
        if path.endswith((".conf", ".whl")):
            (root / path.lstrip("/")).write_bytes(b"older")
            entry["sha256"] = hashlib.sha256(b"older").hexdigest()
    (root / RECORD.lstrip("/")).write_text(json.dumps(old))
    (root / "opt/edgefed/bin/first-boot").unlink()


@pytest.mark.parametrize("step", ["_stage", "_rename"])
@pytest.mark.parametrize("count", [0, 3, 12])
@pytest.mark.parametrize("upgrade", [False, True])
def test_what_fails_is_undone(
    rootfs: Rootfs, wheelhouse: Path, monkeypatch: pytest.MonkeyPatch, step: str, count: int, upgrade: bool
) -> None:
    root = rootfs()
    if upgrade:
        flash(root, wheelhouse)
        grow_old(root)
    before = snapshot(root)
    with monkeypatch.context() as patch:
        patch.setattr(module, step, failing_after(min(count, 7) if upgrade else count, getattr(module, step)))
        with pytest.raises(OSError, match="No space left"):
            flash(root, wheelhouse, upgrade=upgrade)
    assert snapshot(root) == before
    flash(root, wheelhouse, upgrade=upgrade)
    assert not [path for path in snapshot(root) if Path(path).name.startswith(".")]


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # other tests' threads do not matter here
def test_a_killed_flashing_is_finished_by_the_next(rootfs: Rootfs, wheelhouse: Path) -> None:
    root = rootfs()
    child = os.fork()
    if child == 0:
        original = module._rename

        def rename(temporary: Path, path: Path, undo: object) -> None:
            if path.name == "first-boot":
                os._exit(9)  # as kill -9 does: nothing is undone
            original(temporary, path, undo)  # type: ignore[arg-type]

        module._rename = rename
        flash(root, wheelhouse)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 9
    assert record(root)["complete"] is False
    assert not (root / "opt/edgefed/bin/first-boot").exists()
    with pytest.raises(FlashError, match="was being flashed when that was interrupted; with --upgrade"):
        flash(root, wheelhouse)
    flash(root, wheelhouse, upgrade=True)
    assert record(root)["complete"] is True
    assert (root / "opt/edgefed/bin/first-boot").is_file()
    assert (root / "etc/systemd/system/multi-user.target.wants/edgefed-agent.service").is_symlink()
    assert not [path for path in snapshot(root) if Path(path).name.startswith(".")], "and cleaned up"


def test_a_wheel_that_changes_meanwhile_is_noticed(rootfs: Rootfs, wheelhouse: Path) -> None:
    tree = DirectoryTree(rootfs())
    before = snapshot(tree.root)
    board = inspect(tree)
    installation = Installation(wheels=read_wheelhouse(wheelhouse, board), agent_toml=CONFIG)
    changes = compare(tree, manifest(installation, board), upgrade=False)
    assert all(len(file.sha256) == 64 for file in changes.write)
    make_wheel(wheelhouse, "needed_part", "1.2", requires=("more",))
    with pytest.raises(FlashError, match="does not read back the same"):
        write(tree, changes)
    assert snapshot(tree.root) == before


def test_no_space_is_told_before_anything_is_written(
    rootfs: Rootfs, wheelhouse: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = rootfs()
    monkeypatch.setattr(module, "_SPARE_BYTES", 1 << 60)
    before = snapshot(root)
    with pytest.raises(FlashError, match=r"\d+ bytes are to be written, and \d+ are free"):
        flash(root, wheelhouse)
    assert snapshot(root) == before
