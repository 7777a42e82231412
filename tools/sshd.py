"""Start a real OpenSSH server on a loopback port whose logins land in a directory, as if that were a board's root.

with running_sshd(scratch, root) as board:
    ... ssh -F board.config board ...
    board.cut()    # what a cable pulled out does to every connection
"""

from __future__ import annotations

import contextlib
import getpass
import os
import shlex
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from tools.mosquitto import free_port

__all__ = ["RunningSshd", "missing", "running_sshd"]

_ANSWER_TIMEOUT_S = 20.0
_SBIN = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"


class RunningSshd:
    """An OpenSSH server.

    Attributes:
        config: For ssh's `-F`: the host `board` is this server, with a key of its own and its own known hosts.
        known_hosts: What the client takes as the server's key.
        log_path: What the server writes.
    """

    def __init__(self, directory: Path, root: Path) -> None:
        self.config, self.known_hosts = directory / "client.conf", directory / "known_hosts"
        self.log_path = directory / "sshd.log"
        self.root = root
        self._directory = directory
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        _new_key(directory / "user_key")
        shutil.copy(directory / "user_key.pub", directory / "authorized_keys")
        self.new_host_key()
        self.know_host_key()
        self.land_in()
        self._configure()

    def new_host_key(self) -> None:
        """Give the server another key; it counts after a start."""
        for name in ("host_key", "host_key.pub"):
            (self._directory / name).unlink(missing_ok=True)
        _new_key(self._directory / "host_key")

    def know_host_key(self) -> None:
        """Have the client know the server's key."""
        self.known_hosts.write_text(f"[127.0.0.1]:{self._port} {(self._directory / 'host_key.pub').read_text()}")

    def land_in(self, *, user: str = "", setup: str = "true") -> None:
        """Say what a login is.

        Args:
            user: UID:GID there instead of root's; only root can do that.
            setup: A shell command that runs before every one of the client's, outside of the root.
        """
        root = shlex.quote(str(self.root))
        enter = f'exec chroot --userspec={user} {root} /bin/sh -c "$SSH_ORIGINAL_COMMAND"'
        inside = f"mount --rbind /proc {root}/proc && mount --rbind /dev {root}/dev && {setup} && {enter}"
        script = self._directory / "land"
        script.write_text(f"#!/bin/sh\nPATH={_SBIN}\nexec {shlex.join(_unshare())} sh -c {shlex.quote(inside)}\n")
        script.chmod(0o755)

    def start(self, mount: str = "true") -> None:
        """Start it and wait until it answers; `mount` is a command for the mounts that its logins see."""
        self.stop()
        binary = shutil.which("sshd", path=_SBIN)
        assert binary is not None
        command = [binary, "-D", "-e", "-f", str(self._directory / "sshd.conf")]
        if os.geteuid() == 0:
            # Root's server wants a directory that only a service has; nobody else shall see it.
            inside = f"mount -t tmpfs tmpfs /run && mkdir /run/sshd && {mount} && exec {shlex.join(command)}"
            command = ["unshare", "--mount", "sh", "-c", inside]
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        deadline_s = time.monotonic() + _ANSWER_TIMEOUT_S
        while time.monotonic() < deadline_s and self._process.poll() is None:
            with (
                contextlib.suppress(OSError),
                socket.create_connection(("127.0.0.1", self._port), timeout=1) as probe,
            ):
                probe.recv(4)
                return
            time.sleep(0.02)
        self.stop()
        raise RuntimeError(f"sshd did not come up; it wrote:\n{self.log_path.read_text(errors='replace')}")

    def cut(self) -> None:
        """Kill what serves the connections that there are; new ones are taken."""
        assert self._process is not None
        for child in psutil.Process(self._process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if child.name().startswith("sshd"):  # and not what runs on the board
                    child.kill()

    def stop(self) -> None:
        """End it, and its connections."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self.cut()
        self._process.terminate()
        self._process.wait(timeout=_ANSWER_TIMEOUT_S)
        self._process = None

    def _configure(self) -> None:
        here = self._directory
        settings = {
            "Port": self._port,
            "ListenAddress": "127.0.0.1",
            "HostKey": here / "host_key",
            "AuthorizedKeysFile": here / "authorized_keys",
            "ForceCommand": here / "land",
            "StrictModes": "no",
            "UsePAM": "no",
            "SetEnv": "SHLVL=9",  # so that a bash does not read the .bashrc of whoever runs this
            "PidFile": "none",
            "PasswordAuthentication": "no",
            "KbdInteractiveAuthentication": "no",
        }
        (here / "sshd.conf").write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
        client = {
            "HostName": "127.0.0.1",
            "Port": self._port,
            "User": getpass.getuser(),
            "IdentityFile": here / "user_key",
            "IdentitiesOnly": "yes",
            "UserKnownHostsFile": self.known_hosts,
            "GlobalKnownHostsFile": "/dev/null",
        }
        self.config.write_text("Host board\n" + "".join(f"  {name} {value}\n" for name, value in client.items()))


@contextlib.contextmanager
def running_sshd(directory: Path, root: Path) -> Iterator[RunningSshd]:
    """Run a server for the length of the block.

    Args:
        directory: For its keys and configuration; it is made.
        root: What its logins see as `/`; it needs a shell at /bin/sh, /proc and /dev.
    """
    directory.mkdir()
    server = RunningSshd(directory, root)
    try:
        server.start()
        yield server
    finally:
        server.stop()


def missing() -> str:
    """Return why no such server can run here; an empty string where it can."""
    if any(shutil.which(name, path=_SBIN) is None for name in ("sshd", "ssh", "ssh-keygen")):
        return "OpenSSH is not here: apt-get install openssh-server openssh-client"
    if shutil.which("unshare") is None or subprocess.run([*_unshare(), "true"], capture_output=True).returncode != 0:
        return "only root, or who may make user namespaces, can give a login another root"
    return ""


def _unshare() -> list[str]:
    as_root = [] if os.geteuid() == 0 else ["--map-root-user"]
    return ["unshare", *as_root, "--mount"]


def _new_key(path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", str(path)], check=True)
