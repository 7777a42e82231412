"""Start a real Mosquitto on a loopback port: for tests and benchmarks.

with running_mosquitto() as broker:
    ... connect to 127.0.0.1, broker.port ...
    broker.kill()      # as kill -9 does
    broker.restart()   # on the same port

EDGEFED_MOSQUITTO names another program than the installed one, and EDGEFED_MOSQUITTO_ACL_PLUGIN the ACL plugin that
belongs to it (Mosquitto 2.1 and newer). The tests then run against that broker, with the configuration for its version.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

__all__ = [
    "MosquittoMissingError",
    "RunningMosquitto",
    "acl_plugin",
    "configured_mosquitto",
    "free_port",
    "mosquitto_version",
    "running_mosquitto",
]

_ANSWER_TIMEOUT_S = 10.0
_RELOADING = "Reloading config."
_RUNNING = re.compile(r"mosquitto version \S+ running")


class MosquittoMissingError(RuntimeError):
    """The program is not installed."""


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 on which nobody listens now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class RunningMosquitto:
    """A Mosquitto process.

    Attributes:
        port: Where it listens, on 127.0.0.1; the same after a restart.
        log_path: What it writes; every connection and refusal is there.
    """

    def __init__(self, port: int, config_path: Path, log_path: Path) -> None:
        self.port = port
        self.log_path = log_path
        self._config_path = config_path
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """The process id, or ``None`` while it is not running."""
        return self._process.pid if self._process is not None else None

    def restart(self) -> None:
        """Start it, or stop it first if it runs, and wait until it answers."""
        self._stop(subprocess.Popen.terminate)
        with self.log_path.open("ab") as log:
            started = log.tell()
            self._process = subprocess.Popen(
                [_binary(), "-c", str(self._config_path)], stdout=log, stderr=subprocess.STDOUT
            )
        self._wait_until_it_answers(started)

    def reload(self) -> None:
        """Let it read its configuration again, as SIGHUP does, and wait until it has."""
        assert self._process is not None
        seen = self.log_path.read_text(errors="replace").count(_RELOADING)
        self._process.send_signal(signal.SIGHUP)
        deadline_s = time.monotonic() + _ANSWER_TIMEOUT_S
        while self.log_path.read_text(errors="replace").count(_RELOADING) == seen:
            if time.monotonic() > deadline_s:
                raise RuntimeError("mosquitto does not read its configuration again")
            time.sleep(0.01)
        self._wait_until_it_answers()

    def kill(self) -> None:
        """End it with SIGKILL: nothing is written, nobody is told."""
        self._stop(subprocess.Popen.kill)

    def stop(self) -> None:
        """End it with SIGTERM: persistence, where configured, is written."""
        self._stop(subprocess.Popen.terminate)

    def _stop(self, how: object) -> None:
        if self._process is None:
            return
        assert callable(how)
        how(self._process)
        self._process.wait(timeout=_ANSWER_TIMEOUT_S)
        self._process = None

    def _wait_until_it_answers(self, log_from: int = 0) -> None:
        assert self._process is not None
        deadline_s = time.monotonic() + _ANSWER_TIMEOUT_S
        while time.monotonic() < deadline_s:
            if self._process.poll() is not None:
                break
            # It listens before it has its signal handlers: a SIGHUP in between would end it.
            if _RUNNING.search(self.log_path.read_bytes()[log_from:].decode(errors="replace")):
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                    return
            time.sleep(0.01)
        log = self.log_path.read_text(errors="replace")
        self.kill()
        raise RuntimeError(f"mosquitto did not come up on port {self.port}; it wrote:\n{log}")


@contextlib.contextmanager
def running_mosquitto(
    port: int | None = None,
    *,
    persistence_dir: Path | None = None,
    anonymous: bool = True,
    extra_config: str = "",
) -> Iterator[RunningMosquitto]:
    """Run a Mosquitto for the length of the block.

    Args:
        port: Where to listen on 127.0.0.1; ``None`` picks a free one.
        persistence_dir: Keep sessions and retained messages here across ``restart``; ``None`` forgets them.
        anonymous: Let clients in without a user name.
        extra_config: Further lines of mosquitto.conf.

    Raises:
        MosquittoMissingError: The program is not installed.
        RuntimeError: It does not come up; the message holds its log.
    """
    with tempfile.TemporaryDirectory(prefix="mosquitto-") as scratch:
        port = port or free_port()
        config_path, log_path = Path(scratch, "mosquitto.conf"), Path(scratch, "mosquitto.log")
        config_path.write_text(
            "\n".join(
                [
                    f"listener {port} 127.0.0.1",
                    f"allow_anonymous {str(anonymous).lower()}",
                    # Started as root it would become user "mosquitto", who cannot read our directories.
                    f"user {getpass.getuser()}",
                    "set_tcp_nodelay true",
                    f"persistence {str(persistence_dir is not None).lower()}",
                    *([f"persistence_location {persistence_dir}/"] if persistence_dir is not None else []),
                    extra_config,
                    "",
                ]
            )
        )
        broker = RunningMosquitto(port, config_path, log_path)
        try:
            broker.restart()
            yield broker
        finally:
            broker.kill()


@contextlib.contextmanager
def configured_mosquitto(config: Path, port: int) -> Iterator[RunningMosquitto]:
    """Run a Mosquitto with a configuration file as it is, for the length of the block.

    Args:
        config: The file; it is read again by ``reload`` and ``restart``.
        port: Where it says that it listens, on 127.0.0.1.

    Raises:
        MosquittoMissingError: The program is not installed.
        RuntimeError: It does not come up; the message holds its log.
    """
    with tempfile.TemporaryDirectory(prefix="mosquitto-") as scratch:
        included = Path(scratch, "included")
        included.mkdir()
        (included / "it.conf").symlink_to(config.absolute())
        whole = Path(scratch, "mosquitto.conf")
        whole.write_text(f"user {getpass.getuser()}\ninclude_dir {included}\n")  # see running_mosquitto
        broker = RunningMosquitto(port, whole, Path(scratch, "mosquitto.log"))
        try:
            broker.restart()
            yield broker
        finally:
            broker.kill()


def mosquitto_version() -> tuple[int, int]:
    """Return major and minor version of the program that is run here.

    Raises:
        MosquittoMissingError: The program is not installed, or does not say its version.
    """
    said = subprocess.run([_binary(), "-h"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"mosquitto version (\d+)\.(\d+)", said)
    if found is None:
        raise MosquittoMissingError(f"{_binary()} does not say its version; it said:\n{said}")
    return int(found[1]), int(found[2])


def acl_plugin() -> Path | None:
    """Return the ACL plugin that belongs to the program, where the environment names one."""
    path = os.environ.get("EDGEFED_MOSQUITTO_ACL_PLUGIN")
    return Path(path) if path else None


def _binary() -> str:
    named = os.environ.get("EDGEFED_MOSQUITTO")
    installed = "/usr/sbin:/usr/local/sbin:/opt/homebrew/sbin"
    path = shutil.which(named) if named else shutil.which("mosquitto", path=installed) or shutil.which("mosquitto")
    if path is None:
        what = f"EDGEFED_MOSQUITTO names {named}, which is no program" if named else "mosquitto is not installed"
        raise MosquittoMissingError(f"{what}; get it with: apt-get install mosquitto")
    return path
