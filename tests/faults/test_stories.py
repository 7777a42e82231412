"""Single stories worth telling by themselves: what the random ones found, or reach too seldom."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from edgefed.coordinator.crash_points import Side
from edgefed.coordinator.ledger import Ledger
from edgefed.coordinator.options import FederationOptions, Transfers
from edgefed.coordinator.recovery import recover
from edgefed.coordinator.roster import change_roster
from edgefed.coordinator.round_records import read_records
from edgefed.coordinator.selection import Selection
from edgefed.coordinator.store import Store
from edgefed.errors import ConfigError
from edgefed.protocol.messages.down import Duty, UploadGrant
from edgefed.protocol.messages.retained import FederationFinished
from edgefed.protocol.messages.up import Ping
from edgefed.protocol.messages.wire import encode
from edgefed.protocol.tasks import Evaluation, ModelReference
from edgefed.transport.base import Connected, Message
from tests.faults.small_world import CHUNK_BYTES, UPDATE_BYTES, World

SELECTION = Selection(expected_devices=2, quorum=1, gather_s=2.0, deadline_s=8.0, late="discount", max_staleness=2)


def options(directory: Path, **changes: object) -> FederationOptions:
    return FederationOptions(
        fleet="test",
        directory=str(directory / "run"),
        model=ModelReference(name="none", fingerprint="f" * 64),
        evaluation=Evaluation(every=1),
        **{  # type: ignore[arg-type]
            "rounds": 2,
            "selection": SELECTION,
            "transfers": Transfers(chunk_bytes=CHUNK_BYTES),
            **changes,
        },
    )


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(options(tmp_path), ["one", "two"])
    yield world
    world.close()


def deliver(world: World, *, settle: bool = True) -> None:
    """Delivers all that is on its way up, then all that comes down; what devices say to that is on its way up after."""
    while world.up:
        world.deliver_up(0, settle=settle)
    world.settle()
    while world.down:
        world.deliver_down(0)


def test_an_update_offered_once_more_as_its_last_byte_arrives_counts_once(world: World) -> None:
    deliver(world)  # the announcement: both join
    deliver(world)  # both are accepted, and offer
    deliver(world)  # both may send
    world.nag("one")
    world.nag("two")  # behind the chunks
    deliver(world, settle=False)
    deliver(world)
    outcomes = [word.outcome for phone in world.phones.values() for word in phone.acknowledged]
    assert set(outcomes) == {"counted"}
    assert sorted((update.device, merged_in) for update, merged_in in world.tally()) == [("one", 1), ("two", 1)]


def play(world: World, *, until_round: int) -> None:
    """Everybody who is awake does what it should until a round is open."""
    for _ in range(20):
        if world.state.round == until_round:
            return
        deliver(world)
        if world.state.phase == "finished":  # not for long: it leaves soon after
            return
        world.pass_time(SELECTION.gather_s)
        for name in world.phones:
            world.nag(name)
    raise AssertionError(f"round {until_round} does not come: {world.state}")


def test_an_update_that_comes_late_to_the_last_sum_before_the_target_is_not_promised_a_place(tmp_path: Path) -> None:
    """It used to be acknowledged as late, for a next round that never came."""
    world = World(options(tmp_path, rounds=5, target_loss=1.1), ["one", "two"])
    try:
        deliver(world)
        deliver(world)  # both are accepted, and have something to deliver
        world.sleep("two")
        play(world, until_round=2)
        world.loop.threads_take_s = 5.0
        for _ in range(30):
            if world.state.phase == "merging":
                break
            world.nag("one")
            deliver(world)
            world.pass_time(1.0)
        assert world.state.losses[-1] == (1, 1.0)
        world.loop.threads_take_s = 0.0
        world.wake("two")
        for _ in range(5):
            deliver(world)
        (word,) = world.phones["two"].acknowledged
        assert (word.round, word.outcome) == (1, "dropped")
        world.pass_time(60.0)
        assert world.finished
        assert [(update.device, update.round) for update, _ in world.tally()] == [("one", 1), ("one", 2)]
    finally:
        world.close()


def test_a_clock_on_the_wall_that_jumps_a_day_makes_no_round_longer_or_shorter(world: World) -> None:
    lasted_s = []
    for round_, days in ((1, 1), (2, -2)):
        world.wall_offset_s += days * 86400
        play(world, until_round=round_ + 1)
        merged = world.store.merged_rounds()[-1]
        lasted_s.append(merged.merged_unix_s - merged.opened_unix_s)
    assert all(0 <= seconds <= 60 for seconds in lasted_s)


def test_a_broker_that_forgot_the_end_is_told_again(world: World) -> None:
    play(world, until_round=4)
    assert isinstance(world.announcement, FederationFinished)
    end, world.announcement = world.announcement, None
    assert world.line is not None
    world.line.inbox.put_nowait(Connected(session_resumed=False, max_payload_bytes=1_000_000))
    world.settle()
    assert world.announcement == end


def wishes(world: World, duty: Duty) -> None:
    """The operator says the same of all devices, and the aggregator reads it."""
    now = dict.fromkeys(world.phones, duty)
    change_roster(
        world.directory.roster, lambda roster: roster.with_duty(now, duty, reason="", now_unix_s=world.loop.now_s)
    )
    world.pass_time(2.0)


def test_all_who_are_removed_with_work_in_hand_and_taken_back_go_on(world: World) -> None:
    """They used to be told that it was dropped, so nobody had anything left to say, and the round never ended."""
    deliver(world)  # the announcement: both join
    deliver(world)  # both are accepted, and offer
    wishes(world, "removed")
    deliver(world)
    assert all(phone.held and not phone.acknowledged for phone in world.phones.values())
    wishes(world, "active")
    for name in world.phones:
        world.nag(name)
    play(world, until_round=2)
    assert [(update.device, update.attempt) for update, _ in world.tally()] == [("one", 1)]


def test_who_may_send_and_does_not_makes_room_though_others_never_stop_talking(tmp_path: Path) -> None:
    patient = Selection(expected_devices=2, deadline_s=3600.0)
    one_at_a_time = Transfers(chunk_bytes=CHUNK_BYTES, uploads_at_once=1)
    world = World(options(tmp_path, selection=patient, transfers=one_at_a_time), ["one", "two"])
    try:
        deliver(world)  # the announcement: both join
        deliver(world)  # both are accepted, and offer
        while world.up:
            world.deliver_up(0)
        (first,) = [name for name, word in world.down if isinstance(word, UploadGrant)]
        world.phones[first].awake = False  # it hangs, and the broker has not noticed
        ping = Message(world.topics.device("three", "up"), encode(Ping(nonce="0", sequence=0)))
        granted: list[str] = []
        for _ in range(90):
            assert world.line is not None
            world.line.inbox.put_nowait(ping)
            world.pass_time(0.5)
            granted += [name for name, word in world.down if isinstance(word, UploadGrant)]
            world.down = [(name, word) for name, word in world.down if not isinstance(word, UploadGrant)]
        assert set(granted) == {"one", "two"}
    finally:
        world.close()


def test_a_federation_whose_devices_are_all_paused_waits_says_why_and_goes_on(world: World) -> None:
    wishes(world, "paused")
    world.pass_time(4 * 3600.0)
    assert (world.state.round, world.state.phase) == (1, "gathering")
    assert world.aggregator._describe().note == "it waits for 1 device, and the operator has 2 paused"
    wishes(world, "active")
    assert world.aggregator._describe().note == ""
    play(world, until_round=2)


def play_with_a_bad_adapter(directory: Path, side: Side | None, write: int) -> tuple[int, object]:
    """Returns how often the aggregator was killed, and what the federation came to; its first sum has diverged."""
    both = Selection(expected_devices=2, quorum=2, gather_s=2.0, deadline_s=8.0)
    world = World(options(directory, rounds=3, selection=both), ["one", "two"])
    for phone in world.phones.values():
        phone.losses[2] = 9.0
    if side is not None:
        world.kill_at(side, write)
    try:
        for _ in range(60):
            if world.finished:
                break
            for name in world.phones:
                world.sleep(name)  # what was lost was lost with the connection
                world.wake(name)
                world.nag(name)
            deliver(world)
            world.pass_time(1.0)
        assert world.finished, f"it hangs: {world.state}"
        assert world.journalled() == world.state
        records = world.store.merged_rounds()
        assert sorted(read_records(world.directory.path), key=lambda one: one.round)[-1] == records[-1]
        came_to = [
            (one.copied, sorted(one.devices), sorted(who.device for who in one.interventions)) for one in records
        ]
        exported = json.loads(world.directory.adapter.read_bytes())
        return world.kills, (came_to, sorted((update[0], update[1], merged_in) for update, merged_in in exported))
    finally:
        world.close()


@pytest.mark.parametrize("side", ["before", "after"])
def test_a_kill_at_any_write_around_a_round_that_is_given_up_changes_nothing(tmp_path: Path, side: Side) -> None:
    _, undisturbed = play_with_a_bad_adapter(tmp_path / "undisturbed", None, 0)
    both = ["one", "two"]
    assert undisturbed == (
        [(None, both, []), (0, [], both), (None, both, [])],
        [("one", 3, 3), ("two", 3, 3)],
    )
    for write in range(18, 42):  # of some 57: around the round that is given up; the others are like any round
        kills, came_to = play_with_a_bad_adapter(tmp_path / str(write), side, write)
        assert kills == 1
        assert came_to == undisturbed, f"killed {side} write {write}"


def test_a_late_update_outlives_the_round_that_was_given_up_in_its_place(tmp_path: Path) -> None:
    """What it started from used to be gone by the next sum, and the aggregator ended with a damaged store."""
    impatient = msgspec.structs.replace(SELECTION, max_staleness=1)
    world = World(options(tmp_path, rounds=4, selection=impatient), ["one", "two"])
    for phone in world.phones.values():
        phone.losses |= {2: 2.5, 3: 9.0}  # the adapter before the first round stays the best
    try:
        play(world, until_round=2)
        for _ in range(3):  # both are accepted, and have something to deliver
            deliver(world)
            if world.phones["two"].held:
                break
        world.sleep("two")
        play(world, until_round=3)
        world.wake("two")
        play(world, until_round=4)
        assert {word.outcome for word in world.phones["two"].acknowledged if word.round == 2} == {"late"}
        assert world.store.merged_rounds()[-1].copied == 0
        play(world, until_round=5)
        assert ("two", 2, 4) in [(update.device, update.round, merged_in) for update, merged_in in world.tally()]
    finally:
        world.close()


def test_a_round_that_was_called_again_keeps_account_of_all_that_came_in(tmp_path: Path) -> None:
    both = Selection(expected_devices=2, quorum=2, gather_s=2.0, deadline_s=8.0)
    world = World(options(tmp_path, selection=both), ["one", "two"])
    try:
        opened_s = world.loop.now_s
        deliver(world)
        deliver(world)  # both are accepted, and offer
        world.sleep("two")
        for _ in range(3):
            deliver(world)
        assert world.state.delivered == {"one"}
        world.pass_time(10.0)  # below the quorum, everybody is called again
        world.wake("two")
        play(world, until_round=2)
        (merged,) = world.store.merged_rounds()
        assert merged.received_bytes == world.aggregator._intake.received_bytes > 2 * UPDATE_BYTES
        assert merged.merged_unix_s - merged.opened_unix_s == pytest.approx(world.loop.now_s - opened_s, abs=3.0)
    finally:
        world.close()


def go_on_with(gone: World, **changes: object) -> World:
    """Starts the aggregator of a world that was closed, with other options; the devices are the same, and there."""
    world = World(msgspec.structs.replace(gone.options, **changes), [])
    world.phones |= gone.phones
    assert world.announcement is not None
    world.down.extend((name, world.announcement) for name in world.phones)
    return world


@pytest.mark.parametrize("merged", [2, 3])
def test_a_federation_that_is_over_goes_on_when_more_rounds_are_wanted(tmp_path: Path, merged: int) -> None:
    """Its last look at the adapter was of a round that is now one of training, and the devices were done with that."""
    world = World(options(tmp_path, rounds=merged), ["one", "two"])
    play(world, until_round=merged + 2)
    assert world.state.phase == "finished"
    world.close()
    world = go_on_with(world, rounds=4)
    try:
        play(world, until_round=6)
        assert world.state.finished_reason == "all 4 rounds are done"
        assert sorted((update.device, update.round) for update, _ in world.tally()) == [
            (name, round_) for name in ("one", "two") for round_ in range(1, 5)
        ]
        assert [round_ for round_, _ in world.state.losses] == [0, 1, 2, 3, 4]
    finally:
        world.close()


@pytest.mark.parametrize("change", [{"rounds": 1}, {"target_loss": 1.2}])
def test_an_end_that_a_federation_is_past_is_refused_in_words(tmp_path: Path, change: dict[str, object]) -> None:
    """It used to end with a store that was said to be damaged, or as if it had made fewer rounds than it had."""
    world = World(options(tmp_path, rounds=4), ["one", "two"])
    play(world, until_round=6)
    world.close()
    rules = msgspec.structs.replace(world.options, **change).rules
    with closing(Store.open(world.directory.path, {})) as store:
        with pytest.raises(ConfigError, match=r"came too late for this run: .* would count for nothing"):
            Ledger(store, rules)
        assert Ledger(store, world.options.rules).state == world.state


def test_half_an_update_whose_round_is_over_does_not_stay_on_the_disk(tmp_path: Path) -> None:
    punctual = msgspec.structs.replace(SELECTION, late="drop")
    world = World(options(tmp_path, selection=punctual), ["one", "two"])
    try:
        deliver(world)  # the announcement: both join
        deliver(world)  # both are accepted, and offer
        deliver(world)  # both may send
        last_of_two = max(at for at, (topic, _) in enumerate(world.up) if topic == world.topics.device("two", "up"))
        del world.up[last_of_two]
        deliver(world)
        world.sleep("two")
        play(world, until_round=2)
        assert any((world.directory.incoming / "two").iterdir())
        world.wake("two")
        deliver(world)  # what was left of it is offered
        deliver(world)
        assert [word.outcome for word in world.phones["two"].acknowledged] == ["dropped"]
        assert not any((world.directory.incoming / "two").iterdir())
    finally:
        world.close()


def test_a_history_has_no_gap_after_a_record_was_lost(tmp_path: Path) -> None:
    """Lines were copied by their number, as if no record were missing, and others went missing with it."""
    world = World(options(tmp_path, rounds=20), ["one", "two"])
    for round_ in (5, 9, 13):
        play(world, until_round=round_)
    world.close()
    with closing(sqlite3.connect(world.directory.path / "store.sqlite")) as connection:
        connection.execute("UPDATE rounds SET merged = replace(merged, 'one', 'two') WHERE round = 4")
        connection.commit()
    assert recover(world.directory.path).given_up == 13
    world = go_on_with(world)
    try:
        play(world, until_round=15)
        lines = [json.loads(line) for line in world.directory.history.read_text().splitlines()]
        assert [line["round"] for line in lines] == [1, 2, 3, *range(5, 15)]
    finally:
        world.close()


def test_a_late_update_that_waited_when_the_store_was_damaged_is_accounted_for(tmp_path: Path) -> None:
    """It had been acknowledged, and was in no sum and in no list of what is in none."""
    world = World(options(tmp_path, rounds=4), ["one", "two"])
    deliver(world)
    deliver(world)  # both are accepted, and have something to deliver
    world.sleep("two")
    play(world, until_round=2)
    world.sleep("one")  # or the round would be over before the story is told
    world.wake("two")
    for _ in range(4):
        deliver(world)
    (late,) = [word for word in world.phones["two"].acknowledged if word.round == 1]
    assert late.outcome == "late"
    assert [update.device for update in world.state.carried] == ["two"]
    world.close()
    for given_up, names in ((2, {("two", 1)}), (3, set())):
        assert recover(world.directory.path).given_up == given_up
        with Store.reading(world.directory.path) as store:
            record = store.merged_rounds()[-1]
        found = {(one.device, one.round) for one in record.interventions if one.what == "excluded"}
        assert found - {("one", 2), ("two", 2)} == names
