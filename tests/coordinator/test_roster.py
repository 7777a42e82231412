"""The roster as a value, as a file that several command lines change, and as the aggregator watches it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefed.coordinator.roster import (
    Roster,
    RosterWatch,
    change_roster,
    parse_labels,
    read_roster,
    share_roster,
    why_held,
)
from edgefed.errors import ConfigError, StoreError
from edgefed.protocol.messages.down import Duty

WORDS = st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,10}[A-Za-z0-9])?", fullmatch=True)
DUTIES: list[Duty] = ["active", "paused", "draining", "removed"]


def test_the_time_of_a_wish_is_that_of_its_first_word() -> None:
    roster = Roster().with_duty(["a"], "paused", reason="heat", now_unix_s=1.0)
    again = roster.with_duty(["a", "b"], "paused", reason="more heat", now_unix_s=2.0)
    assert (again.entry("a").since_unix_s, again.entry("b").since_unix_s) == (1.0, 2.0)
    assert why_held(again.entry("a")) == "paused by the operator: more heat"
    assert again.with_duty(["a"], "paused", reason="", now_unix_s=3.0) == again, "no reason is not another reason"
    assert again.with_duty(["a"], "draining", reason="", now_unix_s=3.0).entry("a").reason == ""
    assert again.with_duty(["a"], "draining", reason="", now_unix_s=3.0).entry("a").since_unix_s == 3.0
    assert why_held(again.with_duty(["a"], "active", reason="", now_unix_s=3.0).entry("a")) == ""


@given(duties=st.dictionaries(WORDS, st.sampled_from(DUTIES)))
def test_everybody_but_the_active_is_held(duties: dict[str, Duty]) -> None:
    roster = Roster()
    for device, duty in duties.items():
        roster = roster.with_duty([device], duty, reason="", now_unix_s=1.0)
    assert dict(roster.held) == {device: duty for device, duty in duties.items() if duty != "active"}
    assert list(roster.held) == sorted(roster.held)


@given(labels=st.dictionaries(WORDS, WORDS, max_size=4), more=st.dictionaries(WORDS, WORDS | st.just(""), max_size=4))
def test_labels_are_set_kept_and_taken_away(labels: dict[str, str], more: dict[str, str]) -> None:
    roster = Roster().with_labels(["a"], parse_labels(f"{key}={value}" for key, value in labels.items()))
    assert roster.has("a", labels)
    now = roster.with_labels(["a"], parse_labels([f"{k}={v}" for k, v in more.items()], removable=True))
    assert now.entry("a").labels == {key: value for key, value in {**labels, **more}.items() if value}


@pytest.mark.parametrize("text", ["room", "=lab", "room=", "a room=lab", "room=lab\n", "room=" + "x" * 65])
def test_what_is_no_label(text: str) -> None:
    with pytest.raises(ConfigError, match="is no label: write KEY=VALUE"):
        parse_labels([text])


def test_a_label_cannot_be_two_things() -> None:
    with pytest.raises(ConfigError, match="label room is there twice, as 'lab' and 'hall'"):
        parse_labels(["room=lab", "room=hall"])


def test_several_command_lines_take_turns(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from edgefed.coordinator.roster import change_roster\n"
        "for i in range(20): change_roster(Path(sys.argv[1]), lambda before: before.with_duty("
        "[f'{sys.argv[2]}-{i}'], 'paused', reason='', now_unix_s=1.0))"
    )
    path = tmp_path / "roster.json"
    writers = [subprocess.Popen([sys.executable, "-c", script, path, name]) for name in ("a", "b", "c")]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    assert len(read_roster(path).devices) == 60


def test_a_watch_tells_of_each_change_once(tmp_path: Path) -> None:
    path = tmp_path / "roster.json"
    watch = RosterWatch(path)
    assert watch.look() == Roster(), "there is none yet"
    assert watch.look() is None
    made = change_roster(path, lambda before: before.with_duty(["a"], "paused", reason="", now_unix_s=1.0))
    assert watch.look() == made
    assert watch.look() is None
    path.write_text('{"devices": 7}')
    with pytest.raises(StoreError, match="is damaged"):
        watch.look()
    assert watch.look() is None
    path.unlink()
    assert watch.look() == Roster()


@pytest.mark.parametrize(
    "text", ["", "[]", '{"version": 2}', '{"devices": {"a": {"duty": "asleep"}}}', '{"device": {}}', "\xff"]
)
def test_a_damaged_roster_is_never_replaced(tmp_path: Path, text: str) -> None:
    path = tmp_path / "roster.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(StoreError, match="is damaged"):
        change_roster(path, lambda before: before)
    assert path.read_text(encoding="latin-1") == text


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="the roster cannot be written"):
        change_roster(tmp_path / "none" / "roster.json", lambda before: before)


def paused(path: Path, device: str) -> Roster:
    return change_roster(path, lambda before: before.with_duty([device], "paused", reason="", now_unix_s=1.0))


def test_what_one_run_says_of_a_device_holds_in_the_next_that_shares_its_roster(tmp_path: Path) -> None:
    first, second, shared = tmp_path / "first.json", tmp_path / "second.json", tmp_path / "shared.json"
    said = paused(first, "a")
    share_roster(first, shared)
    share_roster(second, shared)
    assert read_roster(shared) == read_roster(first) == read_roster(second) == said
    watch = RosterWatch(first)
    assert watch.look() == said
    said = paused(second, "b")
    assert second.is_symlink(), "what is said through the link does not take its place"
    assert watch.look() == read_roster(shared) == said
    share_roster(second, shared)
    assert read_roster(second) == said

    share_roster(second, None)  # and its own again, as it was
    paused(second, "c")
    assert read_roster(first) == said
    assert set(read_roster(second).devices) == {"a", "b", "c"}


def test_two_rosters_that_contradict_each_other_are_for_the_operator_to_settle(tmp_path: Path) -> None:
    own, shared = tmp_path / "own.json", tmp_path / "shared.json"
    paused(own, "a")
    paused(shared, "b")
    with pytest.raises(ConfigError, match=r"own.json and .*shared.json want different things of devices: remove"):
        share_roster(own, shared)
    assert set(read_roster(own).devices) == {"a"}
    own.unlink()
    share_roster(own, shared)
    assert set(read_roster(own).devices) == {"b"}


def test_a_shared_roster_that_is_damaged_or_has_no_place_is_named(tmp_path: Path) -> None:
    own, shared = tmp_path / "own.json", tmp_path / "shared.json"
    share_roster(own, shared)
    shared.write_text("{")
    with pytest.raises(StoreError, match=r"the roster .*shared.json is damaged"):
        read_roster(own)
    with pytest.raises(StoreError, match=r"the roster cannot be written: .*nowhere"):
        share_roster(own, tmp_path / "nowhere" / "shared.json")


def test_a_shared_roster_that_is_gone_takes_nobody_back(tmp_path: Path) -> None:
    own, shared = tmp_path / "own.json", tmp_path / "shared.json"
    share_roster(own, shared)
    said = paused(own, "a")
    watch = RosterWatch(own)
    assert watch.look() == said
    shared.unlink()  # as a disk that is not mounted
    for look in (watch.look, lambda: read_roster(own), lambda: share_roster(own, shared), lambda: paused(own, "b")):
        with pytest.raises(StoreError, match=r"the roster .*shared.json is gone: bring it back, or remove .*own.json"):
            look()
    assert not shared.exists()


def test_a_roster_that_is_shared_with_itself_is_the_runs_own(tmp_path: Path) -> None:
    said = paused(tmp_path / "own.json", "a")
    share_roster(tmp_path / "own.json", tmp_path / "own.json")
    assert not (tmp_path / "own.json").is_symlink()
    assert read_roster(tmp_path / "own.json") == said
