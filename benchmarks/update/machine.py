"""A board whose PID 1 is a real systemd: this machine's own root, copied on write, booted by systemd-nspawn."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

__all__ = ["Machine", "overlaid", "until"]

PATIENCE_S = 900


def until(condition: Callable[[], object], what: str) -> float:
    """Waits for something to hold, and returns for how many seconds.

    Raises:
        TimeoutError: it does not come.
    """
    start_s = time.monotonic()
    while not condition():
        if time.monotonic() - start_s > PATIENCE_S:
            raise TimeoutError(f"{what} did not come within {PATIENCE_S} s")
        time.sleep(0.1)
    return time.monotonic() - start_s


@contextlib.contextmanager
def overlaid(scratch: Path) -> Iterator[Path]:
    """Gives a writable copy of this machine's root while the block runs; takes root, and an `unshare --mount`."""
    root, upper, work = (scratch / name for name in ("root", "upper", "work"))
    for directory in (root, upper, work):
        directory.mkdir()
    options = f"lowerdir=/,upperdir={upper},workdir={work}"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, str(root)], check=True)
    try:
        yield root
    finally:
        subprocess.run(["umount", "--lazy", str(root)], check=True)


class Machine:
    """It boots into multi-user.target, with the network of this machine.

    Args:
        root: its file system.
        log: takes its console.
    """

    def __init__(self, root: Path, log: Path) -> None:
        self.root = root
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def boot(self) -> None:
        """Starts it, and returns at once."""
        command = ["systemd-nspawn", "--register=no", "--keep-unit", "--quiet", "--console=pipe"]
        command += ["--resolv-conf=off", "--timezone=off", "-D", str(self.root), "-b", "systemd.unit=multi-user.target"]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def cut_power(self) -> None:
        """Ends every process in it at once."""
        assert self._process is not None
        init = self._init()
        if init is None:
            self._process.kill()
        else:
            os.kill(init, signal.SIGKILL)
        self._process.wait()

    def run(self, *command: str) -> str:
        """Returns what a command in it says; nothing before it has begun to boot."""
        init = self._init()
        if init is None:
            return ""
        inside = ["nsenter", "--all", "--target", str(init), *command]
        return subprocess.run(inside, capture_output=True, text=True, check=False).stdout

    @property
    def runs(self) -> bool:
        """Whether it has not ended."""
        return self._process is not None and self._process.poll() is None

    def _init(self) -> int | None:
        """Returns the process that is PID 1 in there."""
        assert self._process is not None
        try:
            children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        except FileNotFoundError:
            return None
        return int(children[0]) if children else None
