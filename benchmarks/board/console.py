"""A virtual board's console: every line with the time when it came, and what was waited for among them."""

from __future__ import annotations

import re
import subprocess
import threading
import time
from pathlib import Path

__all__ = ["Console", "GaveUpError"]


class GaveUpError(RuntimeError):
    """What was waited for did not come."""


class Console:
    """A board that is switched on.

    Args:
        command: starts it; its console is stdout.
        log: gets the lines, each with the seconds since the start.
    """

    def __init__(self, command: list[str], log: Path) -> None:
        self._started_s = time.monotonic()
        self._lines: list[tuple[float, str]] = []
        self._log = log
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def now_s(self) -> float:
        """Seconds since the board was switched on."""
        return time.monotonic() - self._started_s

    def wait_for(self, pattern: str, patience_s: float, *, after_s: float = 0.0) -> tuple[float, re.Match[str]]:
        """Returns when the first line came that has the pattern in it, not before `after_s`, and the match.

        Raises:
            GaveUpError: it did not come in time, or the board went off.
        """
        seen, until_s = 0, time.monotonic() + patience_s
        while time.monotonic() < until_s:
            ended = self._process.poll() is not None and not self._reader.is_alive()
            lines = self._lines[seen:]
            seen += len(lines)
            for at_s, line in lines:
                if at_s >= after_s and (found := re.search(pattern, line)):
                    return at_s, found
            if ended:
                break
            time.sleep(0.1)
        raise GaveUpError(f"no line with {pattern!r} came within {patience_s:g} s; see {self._log}")

    def all(self, pattern: str) -> list[tuple[float, re.Match[str]]]:
        """Returns every line so far that has the pattern in it: when it came, and the match."""
        return [(at_s, found) for at_s, line in tuple(self._lines) if (found := re.search(pattern, line))]

    def cut_power(self) -> None:
        """Ends it as a pulled plug does."""
        self._process.kill()
        self._process.wait()
        self._reader.join(10)

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._log.open("w") as log:
            for raw in self._process.stdout:
                line = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", raw.decode(errors="replace")).rstrip()
                at_s = self.now_s
                self._lines.append((at_s, line))
                log.write(f"{at_s:8.2f} {line}\n")
                log.flush()
