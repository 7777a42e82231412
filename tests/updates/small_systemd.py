"""What an installer needs of systemd, for one service: a `systemctl` that starts, restarts and shows real processes."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

CLIENT = """\
import socket, sys
with socket.socket(socket.AF_UNIX) as end:
    end.connect(sys.argv[1])
    end.sendall("\\0".join(sys.argv[2:]).encode())
    end.shutdown(socket.SHUT_WR)
    said = b"".join(iter(lambda: end.recv(4096), b"")).decode()
print(said, end="")
sys.exit(0 if said != "unknown" else 1)
"""
PATIENCE_S = 60
RESTART_S = 0.05


def plain_environment() -> dict[str, str]:
    """Returns this process's environment without what leads Python elsewhere, as a service has it."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


class SmallSystemd:
    """One service of `Type=notify` and `Restart=always`.

    Attributes:
        programs: a directory for the path, with `systemctl` in it.
        active: whether the service has said that it is ready.
        restarts: how often it ended by itself since somebody started it.
        starts: how often it was started at all.
    """

    def __init__(self, directory: Path, command: Sequence[str], log: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.programs = directory / "programs"
        self.programs.mkdir()
        self._command = command
        self._log = log
        self._lock = threading.RLock()
        self._process: subprocess.Popen[bytes] | None = None
        self._wanted = False
        self.active = False
        self.restarts = self.starts = 0
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notify.bind(str(directory / "notify"))
        self._control = socket.socket(socket.AF_UNIX)
        self._control.bind(str(directory / "control"))
        self._control.listen()
        self._environment = {**plain_environment(), "NOTIFY_SOCKET": str(directory / "notify")}
        client = directory / "client.py"
        client.write_text(CLIENT)
        self.program("systemctl", f'exec {sys.executable} -I -S {client} {directory / "control"} "$@"')
        for work in (self._hear, self._obey):
            threading.Thread(target=work, daemon=True).start()

    def program(self, name: str, script: str) -> None:
        """Puts a program on the path."""
        (self.programs / name).write_text(f"#!/bin/sh\n{script}\n")
        (self.programs / name).chmod(0o755)

    def environment(self) -> dict[str, str]:
        """Returns the environment of a service's process."""
        return {**plain_environment(), "PATH": f"{self.programs}:/usr/bin:/bin"}

    @property
    def pid(self) -> int:
        """Of the main process; 0 where there is none."""
        with self._lock:
            return self._process.pid if self._process is not None else 0

    def restart(self) -> None:
        """As `systemctl restart`."""
        with self._lock:
            self.stop()
            self.restarts = 0
            self._wanted = True
            self._start()

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """As `systemctl stop`; as a power cut with SIGKILL."""
        with self._lock:
            process, self._process = self._process, None
            self._wanted = self.active = False
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, how)
            process.wait(PATIENCE_S)

    def _start(self) -> None:
        self.starts += 1
        with self._log.open("ab") as log:
            process = subprocess.Popen(
                self._command, cwd="/", env=self._environment, stdout=log, stderr=log, start_new_session=True
            )
        self._process = process
        threading.Thread(target=self._attend, args=(process,), daemon=True).start()

    def _attend(self, process: subprocess.Popen[bytes]) -> None:
        process.wait()
        time.sleep(RESTART_S)
        with self._lock:
            if self._process is process and self._wanted:
                self.active = False
                self.restarts += 1
                self._start()

    def _hear(self) -> None:
        while True:
            said = self._notify.recv(4096)
            if b"READY=1" in said:
                with self._lock:
                    self.active = self._process is not None

    def _obey(self) -> None:
        while True:
            end, _ = self._control.accept()
            with end:
                with end.makefile("rb") as file:
                    asked = file.read().decode().split("\0")
                with contextlib.suppress(BrokenPipeError):
                    end.sendall(self._answer(asked).encode())

    def _answer(self, asked: Sequence[str]) -> str:
        if asked[0] == "restart":
            self.restart()
            return ""
        if asked[0] == "show":
            with self._lock:
                state = "active" if self.active else "activating"
                return f"ActiveState={state}\nMainPID={self.pid}\nNRestarts={self.restarts}\n"
        return "unknown"


@contextlib.contextmanager
def small_systemd(directory: Path, command: Sequence[str], log: Path) -> Iterator[SmallSystemd]:
    """Runs one while the block runs."""
    systemd = SmallSystemd(directory, command, log)
    try:
        yield systemd
    finally:
        systemd.stop(signal.SIGKILL)
