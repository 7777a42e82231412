"""The order of words, and what a restart leaves of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefed.errors import ConfigError, Outdated
from edgefed.security.memory import LatestTime, LatestWords, Memory, Word

NUMBERS = st.floats(0, 1e10, allow_nan=False)
WORDS = st.builds(Word, session_unix_s=NUMBERS, at_unix_s=NUMBERS, instance=st.sampled_from(["", "p1", "p2"]))


@given(st.lists(WORDS, max_size=20))
def test_what_is_taken_never_goes_back(words: list[Word]) -> None:
    latest, taken = LatestWords(None), []
    for word in words:
        try:
            latest.take("t", word)
        except Outdated:
            assert word.is_before(taken[-1])
        else:
            taken.append(word)
    order = [(word.session_unix_s, word.at_unix_s) for word in taken]
    assert order == sorted(order)


def test_words_are_written_now_and_then_and_at_the_end(tmp_path: Path) -> None:
    clock = [0.0]
    file = tmp_path / "words"

    def word(at_unix_s: float) -> Word:
        return Word(session_unix_s=1, at_unix_s=at_unix_s)

    latest = LatestWords(file, clock=lambda: clock[0])
    latest.keep(at_once=True)
    assert not file.exists()  # nothing was said
    for at_s in (0.0, 4.9, 5.1, 6.0):
        clock[0] = at_s
        latest.take("t", word(at_s))
        latest.keep()
    restarted = LatestWords(file)
    restarted.take("t", word(5.1))
    with pytest.raises(Outdated):
        restarted.take("t", word(5.0))
    written = file.stat().st_mtime_ns
    latest.keep(at_once=True)
    with pytest.raises(Outdated):
        LatestWords(file).take("t", word(5.9))
    latest.keep(at_once=True)
    assert file.stat().st_mtime_ns >= written


def test_a_will_of_somebody_unknown_is_believed_and_one_of_a_predecessor_is_not() -> None:
    latest = LatestWords(None)
    latest.check_will("t", "p1")
    latest.take("t", Word(session_unix_s=1, at_unix_s=1, instance="p2"))
    latest.check_will("t", "p2")
    latest.check_will("another", "p1")
    with pytest.raises(Outdated, match="of a process whose successor was heard before"):
        latest.check_will("t", "p1")


def test_a_disk_that_is_full_at_the_end_stops_nobody(tmp_path: Path) -> None:
    memory = Memory.open(tmp_path / "m")
    memory.words.take("t", Word(session_unix_s=1, at_unix_s=1))
    (tmp_path / "m").rmdir()
    memory.close()
    with pytest.raises(OSError, match="No such file"):
        memory.words.keep(at_once=True)


@pytest.mark.parametrize("content", [b"", b"{", b'{"t": 1}', b"\xff", b'{"t":' * 5000])
def test_damaged_words_are_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "latest-words.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"latest-words\.json cannot be read: .* Remove it to start anew"):
        Memory.open(tmp_path)


def test_a_time_without_a_file_only_grows_too() -> None:
    latest = LatestTime(None)
    for unix_s, expected in ((1.0, 1.0), (0.5, 1.0), (2.0, 2.0)):
        latest.advance(unix_s)
        assert latest.unix_s == expected


@pytest.mark.parametrize("content", ["", "nan", "inf", "-inf", "then"])
def test_a_damaged_time_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "latest-session").write_text(content)
    with pytest.raises(ConfigError, match=r"latest-session cannot be read: .* Remove it to start anew"):
        Memory.open(tmp_path)
