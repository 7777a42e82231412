"""A board that is reached by the system's OpenSSH: one login, and every command over it.

The user's configuration and known hosts count as they do for `ssh` itself. The first ssh logs in and serves the others
through a socket in a directory of our own; it ends with us, however we end, because its standard input does.
"""

from __future__ import annotations

import contextlib
import re
import shlex
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from edgefed.errors import FlashError
from edgefed.flashing.remote import answer, command_line

__all__ = ["Connection", "connect"]

_LOST = 255
"""Exit code of ssh where ssh itself failed."""
_GOODBYE_S = 5.0
_OPTIONS = (
    # A link that is gone shall not be waited for until TCP gives up.
    *("-o", "ConnectTimeout=30", "-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=4"),
    # What a configuration may have for sessions that a person types in.
    *("-o", "ClearAllForwardings=yes", "-o", "ForwardX11=no", "-o", "RemoteCommand=none", "-o", "RequestTTY=no"),
)
_CHANGED = re.compile(r"Host key for (\S+) has changed")
_OFFENDING = re.compile(r"Offending (?:\S+ )?key in (\S+):(\d+)")
_WHO = """
id -un
if [ "$(id -u)" -eq 0 ]; then echo root
elif ! command -v sudo > /dev/null; then echo "there is no sudo"
elif said=$(sudo -n sh -c : 2>&1); then echo sudo
else printf %s "$said" | tail -n 1
fi
"""


class Connection:
    """Commands on the board, as root.

    Args:
        host: what the user calls it.
        command: ssh with the options that lead through the login there is.
        master: the ssh that logged in.
    """

    def __init__(self, host: str, command: tuple[str, ...], master: subprocess.Popen[bytes]) -> None:
        self.host = host
        self._command = command
        self._master = master
        self._as_root = ""

    @property
    def alive(self) -> bool:
        """Whether the board can still be told something."""
        return self._master.poll() is None

    def become_root(self) -> None:
        """Sees to it that commands run as root from here on: the login is root's, or sudo asks for no password.

        Raises:
            FlashError: neither.
        """
        user, _, how = self.run(_WHO).decode(errors="replace").strip().partition("\n")
        if how not in ("root", "sudo"):
            raise FlashError(
                f"{self.host}: {user} is not root there and cannot become it ({how.removeprefix('sudo: ')}): log in as "
                f"root, or let {user} use sudo without a password: add '{user} ALL=(ALL) NOPASSWD: ALL' by "
                "`sudo visudo -f /etc/sudoers.d/edgefed` on the board"
            )
        self._as_root = "sudo -n " if how == "sudo" else ""

    def run(self, script: str, *arguments: str, stdin: bytes = b"") -> bytes:
        """Returns what a shell script on the board writes; see `Shell`."""
        process = self._start(script, arguments)
        said, complaint = process.communicate(stdin)
        return self._result(process.returncode, said, complaint)

    def send(self, script: str, *arguments: str, blocks: Iterable[bytes]) -> None:
        """Runs a script on the board that reads much; see `Shell`."""
        process = self._start(script, arguments)
        try:
            assert process.stdin is not None
            # A script that ends early says why.
            with contextlib.suppress(BrokenPipeError):
                for block in blocks:
                    process.stdin.write(block)
                process.stdin.flush()
        except BaseException:
            process.kill()
            process.wait()
            raise
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        process.stdin = None
        said, complaint = process.communicate()
        self._result(process.returncode, said, complaint)

    def _start(self, script: str, arguments: tuple[str, ...]) -> subprocess.Popen[bytes]:
        command = (*self._command, f"{self._as_root}{command_line(script, arguments)}")
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def _result(self, code: int, said: bytes, complaint: bytes) -> bytes:
        what = complaint.decode(errors="replace").strip()
        if code == _LOST or not self.alive:
            raise FlashError(f"{self.host}: the connection was cut ({_last_line(what)})")
        result = answer(said)
        if code != 0 or result is None:
            raise FlashError(f"{self.host}: {what or 'its shell runs no commands'}")
        return result


@contextlib.contextmanager
def connect(host: str, *, config: Path | None = None, terminal: bool = False) -> Iterator[Connection]:
    """Logs in, and gives what runs commands as root until the end of the block.

    Args:
        host: as ssh takes it: a name, an alias of its configuration, user@host, ssh://user@host:port.
        config: a configuration for ssh instead of the user's and the system's.
        terminal: whether somebody is there whom ssh may ask: for a password, or whether a host key is the right one.

    Raises:
        FlashError: there is no ssh, the board cannot be reached or is not the one it was, or does not let us in.
    """
    with tempfile.TemporaryDirectory(prefix="edgefed-ssh-") as private:
        options = (*(("-F", str(config)) if config else ()), *_OPTIONS, "-o", f"ControlPath={private}/login")
        batch = "no" if terminal else "yes"
        login = ("ssh", *options, "-o", "ControlMaster=yes", "-o", "ControlPersist=no", "-o", f"BatchMode={batch}")
        # Without its socket an ssh would log in anew: false keeps it from that.
        through = ("ssh", *options, "-o", "ControlMaster=no", "-o", "ProxyCommand=false", "-o", "BatchMode=yes")
        said = Path(private, "said")
        with said.open("wb") as errors:
            master = _started((*login, "--", host, command_line("exec cat", ())), errors.fileno())
        try:
            if not _is_in(master):
                raise FlashError(_refusal(host, said.read_text(errors="replace")))
            connection = Connection(host, (*through, "--", host), master)
            connection.become_root()
            yield connection
        finally:
            _end(master)


def _started(command: tuple[str, ...], errors: int) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors)
    except FileNotFoundError:
        raise FlashError("there is no ssh here: install OpenSSH's client (openssh-client)") from None


def _is_in(master: subprocess.Popen[bytes]) -> bool:
    """Waits until a login has come to its end, and returns whether it is one."""
    assert master.stdout is not None
    said = b""
    while byte := master.stdout.read(1):
        said += byte
        if answer(said) is not None:
            return True
    with contextlib.suppress(subprocess.TimeoutExpired):
        master.wait(_GOODBYE_S)  # its last words
    return False


def _end(master: subprocess.Popen[bytes]) -> None:
    assert master.stdin is not None
    assert master.stdout is not None
    with contextlib.suppress(BrokenPipeError):
        master.stdin.close()
    try:
        master.wait(_GOODBYE_S)
    except subprocess.TimeoutExpired:
        master.kill()
        master.wait()
    master.stdout.close()


def _refusal(host: str, said: str) -> str:
    """Returns why ssh could not log in, and what to do about it, from what OpenSSH said (sshconnect.c)."""
    if changed := _CHANGED.search(said):
        place = _OFFENDING.search(said)
        where = f"{place[1]}, line {place[2]}, has another" if place else "another is known"
        file = f"-f {shlex.quote(place[1])} " if place else ""
        return (
            f"{host}: its host key is not the one it had ({where}). If the board was set up anew since, forget the old "
            f"key: ssh-keygen {file}-R {shlex.quote(changed[1])}; if it was not, somebody may be in between: find out "
            "before going on"
        )
    if "Host key verification failed" in said:
        return (
            f"{host}: its host key is not known here, and nobody accepted it: log in once by hand (ssh "
            f"{shlex.quote(host)}) and compare the fingerprint, or add the key to known_hosts"
        )
    for words, meaning in (
        ("Permission denied", "does not let us in: no key or password that ssh has is right for this user there"),
        ("Too many authentication failures", "ssh offered it too many keys: name the right one in ssh's configuration"),
        ("Could not resolve hostname", "its name is not known"),
        ("Connection refused", "nobody answers at ssh's port there: is sshd running?"),
        ("timed out", "does not answer: is it on, and in this network?"),
        ("No route to host", "does not answer: is it on, and in this network?"),
        ("Bad owner or permissions", "ssh does not use its configuration"),
    ):
        if words in said:
            return f"{host}: {meaning} ({_last_line(said)})"
    return f"{host}: ssh could not log in: {_last_line(said)}"


def _last_line(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return lines[-1] if lines else "ssh says nothing about it"
