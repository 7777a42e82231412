"""Logging in to a real sshd: who is let in, who becomes root, and what is said where that does not work."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from edgefed.errors import FlashError
from edgefed.flashing.ssh_connection import connect
from tests.flashing.ssh_boards import needs_sshd, program
from tools.sshd import RunningSshd

pytestmark = needs_sshd
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can log in as somebody else here")


def test_a_script_gets_its_arguments_and_its_input_as_they_are(board: RunningSshd) -> None:
    odd = 'it\'s "$HOME" `id` \\ * ü\n!'
    everything = bytes(range(256)) * 5000
    board.land_in(setup="echo what startup files say")
    with connect("board", config=board.config) as connection:
        assert connection.run('printf %s "$1$2"; cat', odd, "x", stdin=everything) == odd.encode() + b"x" + everything
        connection.send('cat > "/tmp/$1"', odd.replace("/", ""), blocks=[everything, everything])
        assert connection.run("id -u") == b"0\n"
        with pytest.raises(FlashError, match="board: what went wrong"):
            connection.run("echo what went wrong >&2; exit 3")
    assert (board.root / "tmp" / odd).read_bytes() == everything * 2


def test_there_is_one_login_and_it_ends(board: RunningSshd) -> None:
    with connect("board", config=board.config) as connection:
        for _ in range(3):
            connection.run("true")
        assert connection.alive
    assert not connection.alive
    assert board.log_path.read_text().count("Accepted publickey") == 1
    with pytest.raises(FlashError, match="the connection was cut"):
        connection.run("true")
    assert board.log_path.read_text().count("Accepted publickey") == 1


def test_a_cut_is_told_whatever_is_under_way(board: RunningSshd) -> None:
    with connect("board", config=board.config) as connection:
        board.cut()
        with pytest.raises(FlashError, match="board: the connection was cut"):
            connection.send("cat > /dev/null", blocks=(bytes(1 << 16) for _ in range(100)))
        assert not connection.alive


def test_another_host_key_is_told_with_the_way_to_forget_the_old_one(board: RunningSshd) -> None:
    board.new_host_key()
    board.start()
    with (
        pytest.raises(FlashError, match="host key is not the one it had") as refused,
        connect("board", config=board.config),
    ):
        pass
    assert f"{board.known_hosts}, line 1, has another" in str(refused.value)
    command = re.search(r"ssh-keygen -f \S+ -R '\[127\.0\.0\.1\]:\d+'", str(refused.value))
    assert command is not None
    assert os.system(f"{command[0]} > /dev/null 2>&1") == 0
    with pytest.raises(FlashError, match="host key is not known here"), connect("board", config=board.config):
        pass
    assert "Accepted" not in board.log_path.read_text()


def test_an_unknown_host_key_is_not_taken_where_nobody_can_be_asked(board: RunningSshd) -> None:
    board.known_hosts.write_text("")
    with (
        pytest.raises(FlashError, match=r"host key is not known here, .* log in once by hand \(ssh board\)"),
        connect("board", config=board.config),
    ):
        pass
    assert board.known_hosts.read_text() == ""


def test_a_refused_login_is_told(board: RunningSshd) -> None:
    (board.config.parent / "authorized_keys").write_text("")
    with (
        pytest.raises(FlashError, match=r"board: does not let us in: .*Permission denied \(publickey"),
        connect("board", config=board.config),
    ):
        pass


def test_a_board_that_does_not_answer_is_told(board: RunningSshd) -> None:
    board.stop()
    with pytest.raises(FlashError, match="nobody answers at ssh's port"), connect("board", config=board.config):
        pass
    with pytest.raises(FlashError, match="its name is not known"), connect("no-such-board.invalid"):
        pass
    with pytest.raises(FlashError, match="-oProxyCommand=touch"), connect("-oProxyCommand=touch"):
        pass


def test_without_ssh_the_way_out_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FlashError, match="openssh-client"), connect("board"):
        pass


@needs_root
def test_somebody_becomes_root_by_sudo_or_is_told_how(board: RunningSshd) -> None:
    board.land_in(user="1000:1000")
    with (
        pytest.raises(FlashError, match=r"pi is not root .*\(there is no sudo\)"),
        connect("board", config=board.config),
    ):
        pass
    program(board.root, "sudo", "#!/bin/sh\necho 'sudo: a password is required' >&2\nexit 1\n")
    with (
        pytest.raises(FlashError, match=r"\(a password is required\): .* 'pi ALL=\(ALL\) NOPASSWD: ALL'"),
        connect("board", config=board.config),
    ):
        pass
    program(board.root, "sudo", '#!/bin/sh\n[ "$1" = -n ] || exit 1\nshift\nBECAME=root exec "$@"\n')
    with connect("board", config=board.config) as connection:
        assert connection.run("echo $BECAME") == b"root\n"
