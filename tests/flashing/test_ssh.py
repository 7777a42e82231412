"""Flashing through a real sshd: what it writes, that it goes on after a cut, and what it says when it cannot."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from edgefed.errors import FlashError
from edgefed.flashing import ssh, ssh_start
from edgefed.flashing.board import inspect
from edgefed.flashing.changes import Changes, compare
from edgefed.flashing.manifest import RECORD, Installation, manifest
from edgefed.flashing.rootfs import DirectoryTree
from edgefed.flashing.rootfs import write as write_directory
from edgefed.flashing.ssh_connection import Connection, connect
from edgefed.flashing.ssh_start import AGENT, FIRST_BOOT, start, wait
from edgefed.flashing.ssh_tree import SshTree
from edgefed.flashing.wheelhouse import read_wheelhouse
from tests.flashing.small_boards import MIB, make_wheel
from tests.flashing.ssh_boards import make_running_root, needs_sshd, program, told
from tools.sshd import RunningSshd, running_sshd

pytestmark = needs_sshd
CONFIG = b'device = "one"\n'
WHEELHOUSE = "opt/edgefed/wheelhouse"


def flash(
    board: RunningSshd,
    wheels: Path,
    *,
    upgrade: bool = False,
    config: bytes | None = CONFIG,
    progress: Callable[[int], None] = lambda _: None,
) -> Changes:
    with connect("board", config=board.config) as connection:
        tree = SshTree(connection)
        system = inspect(tree)
        wanted = manifest(Installation(wheels=read_wheelhouse(wheels, system), agent_toml=config, key=b"k"), system)
        changes = compare(tree, wanted, upgrade=upgrade or ssh.interrupted(tree))
        ssh.write(connection, tree, changes, progress)
    return changes


def files(root: Path) -> dict[str, tuple[int, bytes | str]]:
    """Files and links that flashing may have written: modes, contents, targets."""
    return {
        str(path.relative_to(root)): (
            stat.S_IMODE(path.lstat().st_mode),
            str(path.readlink()) if path.is_symlink() else path.read_bytes(),
        )
        for top in ("etc", "opt", "usr/lib")
        for path in (root / top).rglob("*")
        if path.is_symlink() or path.is_file()
    }


def test_the_board_gets_what_a_directory_gets(board: RunningSshd, wheelhouse: Path, tmp_path: Path) -> None:
    directory = DirectoryTree(make_running_root(tmp_path / "directory"))
    system = inspect(directory)
    wanted = manifest(Installation(wheels=read_wheelhouse(wheelhouse, system), agent_toml=CONFIG, key=b"k"), system)
    write_directory(directory, compare(directory, wanted, upgrade=False))

    sent: list[int] = []
    changes = flash(board, wheelhouse, progress=sent.append)
    assert files(board.root) == files(directory.root)
    assert all(path.stat().st_uid == os.geteuid() for path in (board.root / "etc/edgefed").rglob("*"))
    assert (board.root / "opt/edgefed/bin").stat().st_mode & 0o777 == 0o755
    assert sum(sent) == ssh.size_bytes(changes)


def test_nothing_is_sent_twice_and_an_upgrade_keeps_what_was_changed(board: RunningSshd, wheelhouse: Path) -> None:
    flash(board, wheelhouse)
    before = files(board.root)
    with pytest.raises(FlashError, match=r"has edgefed .*; with --upgrade"):
        flash(board, wheelhouse)
    sent: list[int] = []
    assert flash(board, wheelhouse, upgrade=True, progress=sent.append).write == ()
    assert (sum(sent), files(board.root)) == (0, before)

    (wheelhouse / "needed_part-1.2-py3-none-any.whl").unlink()
    make_wheel(wheelhouse, "needed_part", "1.3")
    (board.root / "etc/edgefed/agent.toml").write_text("changed there")
    changes = flash(board, wheelhouse, upgrade=True, config=b'device = "two"\n')
    assert changes.kept == ("/etc/edgefed/agent.toml",)
    assert (board.root / "etc/edgefed/agent.toml").read_text() == "changed there"
    names = {path.name for path in (board.root / WHEELHOUSE).iterdir()}
    assert "needed_part-1.3-py3-none-any.whl" in names
    assert "needed_part-1.2-py3-none-any.whl" not in names
    assert {file.path for file in changes.write} == {
        f"/{WHEELHOUSE}/needed_part-1.3-py3-none-any.whl",
        f"/{WHEELHOUSE}/requirements.lock",
    }


@pytest.mark.parametrize("noticed", ["at once", "late"])
def test_a_cut_leaves_the_board_as_it_was_and_the_next_run_sends_the_rest(
    board: RunningSshd, wheelhouse: Path, monkeypatch: pytest.MonkeyPatch, noticed: str
) -> None:
    if noticed == "late":  # ssh's master takes a moment to end, and until then the connection seems to be there
        monkeypatch.setattr(Connection, "alive", True)
    big = make_wheel(wheelhouse, "zz_large", payload_bytes=12 * MIB)
    before = files(board.root)
    sent = 0

    def cut(count: int) -> None:
        nonlocal sent
        sent += count
        if sent > 8 * MIB:
            board.cut()

    with pytest.raises(FlashError, match=r"connection was cut .*: the board is as it was, .* and it goes on"):
        flash(board, wheelhouse, progress=cut)
    visible = {path: what for path, what in files(board.root).items() if not Path(path).name.startswith(".")}
    assert visible == before
    (part,) = (board.root / WHEELHOUSE).glob(f".{big.name}.*")
    part_bytes = part.stat().st_size
    assert 0 < part_bytes < big.stat().st_size
    assert part.read_bytes() == big.read_bytes()[:part_bytes]

    at_once: list[int] = []
    flash(board, wheelhouse, progress=at_once.append)
    assert max(at_once) >= part_bytes > MIB, "half a wheel is not sent again"
    assert (board.root / WHEELHOUSE / big.name).read_bytes() == big.read_bytes()
    assert not [path for path in files(board.root) if Path(path).name.startswith(".")]


def test_a_damaged_part_is_sent_again_as_a_whole(board: RunningSshd, wheelhouse: Path) -> None:
    wheel = next(wheelhouse.glob("needed_part*"))
    flash(board, wheelhouse)
    (board.root / WHEELHOUSE / wheel.name).unlink()
    with connect("board", config=board.config) as connection:
        tree = SshTree(connection)
        system = inspect(tree)
        wanted = manifest(Installation(wheels=read_wheelhouse(wheelhouse, system), agent_toml=CONFIG), system)
        changes = compare(tree, wanted, upgrade=True)
        staged = ssh._staged(next(file for file in changes.write if file.path.endswith(wheel.name)))
        (board.root / staged.lstrip("/")).write_bytes(b"other")
        ssh.write(connection, tree, changes)
    assert (board.root / WHEELHOUSE / wheel.name).read_bytes() == wheel.read_bytes()


def test_a_wheel_that_changes_meanwhile_is_noticed_and_nothing_stays(board: RunningSshd, wheelhouse: Path) -> None:
    before = sorted(board.root.rglob("*"))
    with connect("board", config=board.config) as connection:
        tree = SshTree(connection)
        system = inspect(tree)
        wanted = manifest(Installation(wheels=read_wheelhouse(wheelhouse, system), agent_toml=CONFIG), system)
        changes = compare(tree, wanted, upgrade=False)
        assert all(len(file.sha256) == 64 for file in changes.write)
        make_wheel(wheelhouse, "needed_part", "1.2", requires=("more",))
        with pytest.raises(FlashError, match=r"needed_part.* does not read back the same"):
            ssh.write(connection, tree, changes)
    assert sorted(board.root.rglob("*")) == before


def test_a_flashing_that_was_killed_while_renaming_is_finished(board: RunningSshd, wheelhouse: Path) -> None:
    # The fourth file gets its name, and then the power goes.
    program(board.root, "mv", f"#!/bin/sh\n{board_mv(board.root)}")
    with pytest.raises(FlashError, match="run the same command again, and it is finished"):
        flash(board, wheelhouse)
    assert json.loads((board.root / RECORD.lstrip("/")).read_text())["complete"] is False
    (board.root / "power-is-back").touch()
    flash(board, wheelhouse)
    assert json.loads((board.root / RECORD.lstrip("/")).read_text())["complete"] is True
    assert (board.root / "etc/systemd/system/multi-user.target.wants/edgefed-agent.service").is_symlink()
    assert not [path for path in files(board.root) if Path(path).name.startswith(".")]


def board_mv(root: Path) -> str:
    (root / "usr/bin/mv").rename(root / "usr/bin/real-mv")
    count = "echo x >> /renamed; [ $(stat -c %s /renamed) -lt 10 ] || [ -e /power-is-back ] || kill -9 $PPID"
    return f'{count}\nexec real-mv "$@"\n'


def test_links_on_the_board_are_followed_there(board: RunningSshd, wheelhouse: Path) -> None:
    (board.root / "opt").rmdir()
    (board.root / "data/more").mkdir(parents=True)
    (board.root / "opt").symlink_to("/data/../data/more")
    flash(board, wheelhouse)
    assert (board.root / "data/more/edgefed/bin/first-boot").is_file()


@pytest.mark.skipif(shutil.which("busybox") is None, reason="busybox is not here, of which the board is made")
def test_a_board_whose_programs_are_busybox(wheelhouse: Path, tmp_path: Path) -> None:
    root = make_running_root(tmp_path / "board", busybox=shutil.which("busybox"))
    with running_sshd(tmp_path / "sshd", root) as board:
        flash(board, wheelhouse)
        assert (root / "etc/edgefed/agent.toml").read_bytes() == CONFIG
        assert flash(board, wheelhouse, upgrade=True).is_empty
        assert not [path for path in files(root) if Path(path).name.startswith(".")]


def test_a_file_of_others_stops_it(board: RunningSshd, wheelhouse: Path) -> None:
    (board.root / "etc/edgefed").mkdir()
    (board.root / "etc/edgefed/agent.toml").write_text("mine")
    before = files(board.root)
    with pytest.raises(FlashError, match=r"board: /etc/edgefed/agent\.toml: is there already"):
        flash(board, wheelhouse)
    assert files(board.root) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small file system")
def test_no_space_is_told_before_anything_is_sent(board: RunningSshd, wheelhouse: Path) -> None:
    make_wheel(wheelhouse, "zz_large", payload_bytes=3 * MIB)
    board.start(mount=f"mount -t tmpfs -o size=2m tmpfs '{board.root}/opt'")
    before = files(board.root)
    with pytest.raises(
        FlashError, match=r"\d+ bytes are to be written to the file system of /opt, and 2097152 are free"
    ):
        flash(board, wheelhouse)
    assert files(board.root) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small file system")
def test_space_that_goes_meanwhile_is_told_and_given_back(
    board: RunningSshd, wheelhouse: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_wheel(wheelhouse, "zz_large", payload_bytes=3 * MIB)
    board.start(mount=f"mount -t tmpfs -o size=2m tmpfs '{board.root}/opt'")
    before = files(board.root)
    monkeypatch.setattr(ssh, "_check_space", lambda *_: None)
    with pytest.raises(FlashError, match="No space left on device"):
        flash(board, wheelhouse)
    assert files(board.root) == before
    with connect("board", config=board.config) as connection:
        assert connection.run("ls -A /opt || echo; for path in /opt/* /opt/.[!.]*; do echo $path; done").split() == [
            b"/opt/*",
            b"/opt/.[!.]*",
        ]


def test_the_agent_is_started_and_waited_for(
    board: RunningSshd, wheelhouse: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ssh_start, "_POLL_S", 0.01)
    (board.root / "answers/journalctl--q").write_text("edgefed first boot: building\nedgefed first boot: starting\n")
    changes = flash(board, wheelhouse)
    said: list[str] = []
    with connect("board", config=board.config) as connection:
        ssh.check_running(connection)
        wait(connection, start(connection, changes), said.append)
    assert said == ["edgefed first boot: building", "edgefed first boot: starting"]
    commands = [line for line in told(board.root) if "show" not in line and "journalctl" not in line]
    assert commands[:3] == [
        "systemctl daemon-reload",
        "udevadm control --reload",
        "systemctl restart edgefed-firstboot.service",
    ]
    beside = {Path(link.path).name for link in changes.links} - {AGENT, FIRST_BOOT}
    assert commands[3:] == ([f"systemctl start {' '.join(sorted(beside))}"] if beside else [])
    (board.root / "answers/journalctl--q").write_text("edgefed first boot: failed: what went wrong stands above\n")
    with connect("board", config=board.config) as connection, pytest.raises(FlashError, match=r"does not come up: .*"):
        wait(connection, 0)
    with connect("board", config=board.config) as connection:
        board.cut()
        with pytest.raises(FlashError, match=r"connection was cut .*: everything is in its place, but whether"):
            wait(connection, 0)
    (board.root / "run/systemd/system").rmdir()
    with connect("board", config=board.config) as connection, pytest.raises(FlashError, match="systemd does not run"):
        ssh.check_running(connection)


def test_a_changed_setting_restarts_an_agent_that_runs(board: RunningSshd, wheelhouse: Path) -> None:
    flash(board, wheelhouse)
    changes = flash(board, wheelhouse, upgrade=True, config=b'device = "two"\n')
    with connect("board", config=board.config) as connection:
        start(connection, changes)
        start(connection, flash(board, wheelhouse, upgrade=True, config=None))
    assert [line for line in told(board.root) if line.endswith(".service")] == [
        "systemctl restart edgefed-firstboot.service",  # gives the file to the agent, which can read it only then
        "systemctl try-restart edgefed-agent.service",
        "systemctl start edgefed-firstboot.service",
    ]
