"""What a member remembers of who has said what when, so that no restart makes an old word new again.

States and profiles are kept by the broker, and the last state of whoever is gone is published by the broker itself: the
will, which was signed when the connection was made. So their order is not that in which they arrive. Each process of a
member has a session, a number larger than that of any process before it, and within it the time of signing grows from
word to word, whatever becomes of the clock. A word counts if it is not older, by session and then by time, than the
latest that was heard on its topic. A will ("lost") counts if it is of the process that was heard last: the broker may
publish it whenever it likes, as it may end the connection whenever it likes, and a device that is still there says so.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edgefed.errors import ConfigError, Outdated
from edgefed.files import is_disk_trouble, replace_file

__all__ = ["LatestTime", "LatestWords", "Memory", "Word"]

_log = logging.getLogger(__name__)

_KEEP_EVERY_S = 5.0


class LatestTime:
    """The latest of times that only grow, on disk.

    Attributes:
        path: the file; it need not be there yet. None keeps the time in this process alone.
        unix_s: the time; 0 before the first.

    Raises:
        ConfigError: it cannot be read.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.unix_s = 0.0
        if path is None:
            return
        try:
            self.unix_s = _time(path.read_text())
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"{path} cannot be read: {error}; without it, what is old could pass for new. Remove it to start anew"
            ) from None

    def advance(self, unix_s: float) -> None:
        """Takes a later time."""
        if unix_s > self.unix_s:
            self.unix_s = unix_s  # this process keeps to it, whatever becomes of the file
            if self.path is not None:
                _keep(self.path, b"%.6f\n" % unix_s)


class Word(msgspec.Struct, frozen=True, kw_only=True):
    """What is remembered of a state or a profile.

    Attributes:
        session_unix_s: the session of the process that said it.
        at_unix_s: when it was signed, by the clock of whoever did.
        instance: the process, as states name it; empty for a profile.
    """

    session_unix_s: float
    at_unix_s: float
    instance: str = ""

    def is_before(self, other: Word) -> bool:
        """Whether the other is the later one."""
        return (self.session_unix_s, self.at_unix_s) < (other.session_unix_s, other.at_unix_s)


class LatestWords:
    """The latest word on each topic that the broker keeps.

    They are written to disk every few seconds where there is something new, and at the end. What was heard since could
    be played again after a kill, and nothing older.

    Args:
        path: the file; it need not be there yet. None keeps them in this process alone.
        clock: seconds that only grow.

    Raises:
        ConfigError: it cannot be read.
    """

    def __init__(self, path: Path | None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._words: dict[str, Word] = {}
        self._kept_at_s = -_KEEP_EVERY_S
        self._is_kept = True
        if path is None:
            return
        try:
            self._words = msgspec.json.decode(path.read_bytes(), type=dict[str, Word])
        except FileNotFoundError:
            return
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise ConfigError(
                f"{path} cannot be read: {error}; without it, what is old could pass for new. Remove it to start anew"
            ) from None

    def take(self, topic: str, word: Word) -> None:
        """Remembers a word, if it is the latest.

        Raises:
            Outdated: a later one was heard before.
        """
        known = self._words.get(topic)
        if known is not None and word.is_before(known):
            raise Outdated(
                f"a later one was heard before, by {_distance(word, known)}: it was overtaken, or somebody plays an "
                f"old one again{self._way_out()}"
            )
        if word != known:
            self._words[topic] = word
            self._is_kept = False

    def _way_out(self) -> str:
        """Returns what to do where a member has begun anew: its memory lost, its clock further back than before."""
        if self._path is None:
            return ""
        # Its name only: what is refused is shown to the fleet.
        return (
            "; if its author was set up anew, and its clock was ahead before, stop whoever says this, and remove "
            f"{self._path.name} from its state"
        )

    def check_will(self, topic: str, instance: str) -> None:
        """Sees to it that a will is of the process that was heard last.

        Raises:
            Outdated: it is of another one.
        """
        known = self._words.get(topic)
        if known is not None and known.instance != instance:
            raise Outdated("it is the will of a process whose successor was heard before")

    def keep(self, *, at_once: bool = False) -> None:
        """Writes what is new to disk; not too often, unless `at_once`."""
        if self._is_kept or self._path is None:
            return
        now_s = self._clock()
        if at_once or now_s - self._kept_at_s >= _KEEP_EVERY_S:
            self._kept_at_s = now_s
            self._is_kept = _keep(self._path, msgspec.json.encode(self._words))


@dataclass(frozen=True, slots=True)
class Memory:
    """All that a member remembers.

    Attributes:
        announcement: when the latest announcement was made, or obeyed.
        session: the session of the latest process of this member.
        words: the latest states and profiles.
    """

    announcement: LatestTime
    session: LatestTime
    words: LatestWords

    @classmethod
    def open(cls, directory: Path | None) -> Memory:
        """Returns what is remembered in a directory, which is made where it is missing; None remembers nothing.

        Raises:
            ConfigError: a file cannot be read.
            OSError: the directory cannot be made.
        """
        if directory is None:
            return cls(LatestTime(None), LatestTime(None), LatestWords(None))
        directory.mkdir(parents=True, exist_ok=True)
        names = ("latest-announcement", "latest-session", "latest-words.json")
        announcement, session, words = (directory / name for name in names)
        return cls(LatestTime(announcement), LatestTime(session), LatestWords(words))

    def close(self) -> None:
        """Writes what is not on disk yet, as far as the disk lets it."""
        with contextlib.suppress(OSError):
            self.words.keep(at_once=True)


def _keep(path: Path, content: bytes) -> bool:
    """Returns whether there was room for it: a full disk ends nobody, and what it forgets is told."""
    try:
        replace_file(path, [content])
    except OSError as error:
        if not is_disk_trouble(error):
            raise
        _log.warning(
            "%s cannot be kept: %s; after a restart, older words than these could be played again", path, error
        )
        return False
    return True


def _time(text: str) -> float:
    """Returns a time; one that nothing is later than, or that is not one, would let everything or nothing pass."""
    unix_s = float(text)
    if not math.isfinite(unix_s):
        raise ValueError(f"{text.strip()} is no time")
    return unix_s


def _distance(word: Word, known: Word) -> str:
    if word.session_unix_s < known.session_unix_s:
        return "a later process"
    return f"{known.at_unix_s - word.at_unix_s:.3f} s"
