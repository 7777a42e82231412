"""Every transition of the round machine, one short story each. `test_rounds_machine` adds random ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from edgefed.coordinator.events import (
    Accept,
    Action,
    Announce,
    Begin,
    DeviceJoined,
    DeviceLeft,
    DeviceReturned,
    EvaluationReceived,
    Event,
    Finish,
    Merge,
    Merged,
    Refuse,
    RosterRead,
    Stop,
    Tick,
    Update,
    UpdateReceived,
)
from edgefed.coordinator.offers import judge_offer
from edgefed.coordinator.round_state import Rules, State
from edgefed.coordinator.rounds import next_deadline, recover, step
from edgefed.coordinator.selection import Selection


def update(device: str, round_: int = 1) -> Update:
    return Update(device=device, round=round_, sha256=f"{device}-{round_}", examples=10, rank=4, held_rank=4)


def received(device: str, round_: int = 1, loss: float | None = None, target_tokens: int = 0) -> UpdateReceived:
    return UpdateReceived(update(device, round_), loss, target_tokens)


def rules(
    *, rounds: int = 3, final_evaluation: bool = False, target_loss: float | None = None, **selection: Any
) -> Rules:
    defaults: dict[str, Any] = {"quorum": 1, "gather_s": 10.0, "deadline_s": 100.0}
    return Rules(
        rounds=rounds,
        selection=Selection(**{**defaults, **selection}),
        final_evaluation=final_evaluation,
        target_loss=target_loss,
    )


class Federation:
    """A machine with its state, for stories: `happens` returns the actions."""

    def __init__(self, told: Rules) -> None:
        self.rules = told
        self.state = State()

    def happens(self, now_s: float, *events: Event) -> list[Action]:
        actions: list[Action] = []
        for event in events:
            self.state, more = step(self.state, event, now_s, self.rules)
            actions += more
        return actions

    def begins(self, *devices: str, at_s: float = 0.0) -> list[Action]:
        """Round 1 opens, these devices join, and the window passes."""
        self.happens(at_s, Begin(), *(DeviceJoined(device) for device in devices))
        return self.happens(at_s + self.rules.selection.gather_s, Tick())

    def next_round(self, *devices: str, now_s: float) -> list[Action]:
        """The merge is reported, these devices join the next round, and the window passes."""
        self.happens(now_s, Merged(self.state.round), *(DeviceJoined(device) for device in devices))
        return self.happens(now_s + self.rules.selection.gather_s, Tick())


# --- gathering --------------------------------------------------------------------------------------------------------


def test_begin_opens_the_first_round_once() -> None:
    federation = Federation(rules())
    assert federation.happens(5.0, Begin()) == [Announce()]
    assert (federation.state.phase, federation.state.round, federation.state.opened_at_s) == ("gathering", 1, 5.0)
    assert federation.happens(6.0, Begin()) == []


def test_a_round_gathers_until_its_window_is_over() -> None:
    federation = Federation(rules(gather_s=10.0))
    assert federation.happens(0.0, Begin(), DeviceJoined("b"), DeviceJoined("a")) == [Announce()]
    assert federation.happens(9.9, Tick()) == []
    assert federation.happens(10.0, Tick()) == [Accept("a", 100.0), Accept("b", 100.0)]
    assert federation.state.phase == "training"
    assert federation.state.participants == federation.state.outstanding == ("a", "b")


def test_the_last_to_join_may_itself_end_the_window() -> None:
    federation = Federation(rules(gather_s=10.0, quorum=2))
    federation.happens(0.0, Begin(), DeviceJoined("a"))
    assert federation.happens(12.0, Tick()) == []
    assert federation.happens(15.0, DeviceJoined("b")) == [Accept("a", 100.0), Accept("b", 100.0)]


def test_gathering_goes_on_below_the_quorum_and_a_device_that_leaves_does_not_count() -> None:
    federation = Federation(rules(quorum=2))
    federation.happens(0.0, Begin(), DeviceJoined("a"), DeviceJoined("b"), DeviceLeft("b"))
    assert federation.happens(50.0, Tick()) == []
    assert federation.state.candidates == ("a",)


def test_expected_devices_end_the_window_early() -> None:
    federation = Federation(rules(expected_devices=2))
    federation.happens(0.0, Begin(), DeviceJoined("a"))
    assert federation.happens(1.0, DeviceJoined("b")) == [Accept("a", 100.0), Accept("b", 100.0)]


@pytest.mark.parametrize(("participants", "factor", "places"), [(4, 1.0, 4), (4, 1.25, 5), (4, 1.3, 6), (50, 1.1, 55)])
def test_over_selection_takes_in_more_than_are_wanted_and_refuses_the_rest(
    participants: int, factor: float, places: int
) -> None:
    federation = Federation(rules(participants=participants, over_selection=factor))
    actions = federation.begins(*(f"d{number:02}" for number in range(60)))
    accepted = [action.device for action in actions if isinstance(action, Accept)]
    refused = [action.device for action in actions if isinstance(action, Refuse)]
    assert len(accepted) == places
    assert sorted(accepted + refused) == [f"d{number:02}" for number in range(60)]
    assert federation.state.participants == tuple(sorted(accepted))


def test_selection_depends_on_seed_and_round_alone() -> None:
    devices = tuple(f"d{number:02}" for number in range(30))

    def chosen(seed: int, order: Sequence[str]) -> tuple[str, ...]:
        federation = Federation(replace(rules(participants=5), seed=seed))
        federation.begins(*order)
        return federation.state.participants

    assert chosen(1, devices) == chosen(1, devices[::-1])
    assert chosen(1, devices) != chosen(2, devices)


def test_one_joining_twice_changes_nothing() -> None:
    federation = Federation(rules())
    federation.happens(0.0, Begin(), DeviceJoined("a"))
    before = federation.state
    assert federation.happens(1.0, DeviceJoined("a")) == []
    assert federation.state is before


# --- training: who is in ----------------------------------------------------------------------------------------------


def test_a_newcomer_is_taken_in_with_what_time_is_left_while_there_is_place() -> None:
    federation = Federation(rules(participants=2, deadline_s=100.0))
    federation.begins("a")
    assert federation.happens(40.0, DeviceJoined("b")) == [Accept("b", 70.0)]
    assert federation.happens(41.0, DeviceJoined("c")) == [Refuse("c", "the round has its 2 participants")]
    assert federation.state.participants == ("a", "b")


def test_a_participant_that_asks_again_is_answered_again() -> None:
    federation = Federation(rules())
    federation.begins("a", "b")
    before = federation.state
    assert federation.happens(20.0, DeviceJoined("a")) == [Accept("a", 90.0)]
    assert federation.state is before


def test_one_that_has_delivered_need_not_join_again() -> None:
    federation = Federation(rules(quorum=2))
    federation.begins("a", "b")
    federation.happens(20.0, received("a"))
    (refusal,) = federation.happens(21.0, DeviceJoined("a"))
    assert isinstance(refusal, Refuse)
    assert federation.state.outstanding == ("b",)


def test_a_lost_device_frees_its_place_and_may_come_back() -> None:
    federation = Federation(rules(participants=2, quorum=2))
    federation.begins("a", "b")
    federation.happens(20.0, DeviceLeft("a"))
    assert federation.state.outstanding == ("b",)
    assert federation.happens(30.0, DeviceJoined("a")) == [Accept("a", 80.0)]
    assert federation.state.outstanding == ("a", "b")


def test_a_lost_participant_that_returns_is_waited_for_again() -> None:
    federation = Federation(rules(quorum=1))
    federation.begins("a", "b")
    federation.happens(20.0, DeviceLeft("a"), DeviceReturned("a"))
    assert federation.happens(21.0, received("b")) == []  # `a` is outstanding: not closed
    assert federation.happens(22.0, received("a")) == [Merge(1, (update("b"), update("a")))]


@pytest.mark.parametrize("device", ["a", "b", "stranger"])
def test_returning_means_nothing_for_one_that_is_not_gone(device: str) -> None:
    federation = Federation(rules(quorum=2))
    federation.begins("a", "b")
    federation.happens(20.0, received("a"))
    before = federation.state
    assert federation.happens(21.0, DeviceReturned(device)) == []
    assert federation.state is before


def test_a_lost_devices_update_still_counts() -> None:
    federation = Federation(rules(quorum=1))
    federation.begins("a", "b")
    federation.happens(20.0, DeviceLeft("a"))
    assert federation.happens(30.0, received("a")) == []
    assert federation.happens(31.0, received("b")) == [Merge(1, (update("a"), update("b")))]


# --- training: when it closes -----------------------------------------------------------------------------------------


def test_a_round_closes_when_all_have_delivered() -> None:
    federation = Federation(rules(quorum=1))
    federation.begins("a", "b")
    assert federation.happens(20.0, received("b")) == []
    assert federation.happens(21.0, received("a")) == [Merge(1, (update("b"), update("a")))]
    assert federation.state.phase == "merging"


def test_a_round_closes_when_the_last_one_outstanding_leaves() -> None:
    federation = Federation(rules(quorum=1))
    federation.begins("a", "b")
    federation.happens(20.0, received("a"))
    assert federation.happens(21.0, DeviceLeft("b")) == [Merge(1, (update("a"),))]


def test_over_selected_devices_are_not_waited_for() -> None:
    federation = Federation(rules(participants=2, over_selection=1.5))
    federation.begins("a", "b", "c")
    federation.happens(20.0, received("c"))
    assert federation.happens(21.0, received("a")) == [Merge(1, (update("c"), update("a")))]


@pytest.mark.parametrize(("answers", "closes"), [(1, False), (2, True), (3, True)])
def test_the_deadline_closes_a_round_at_or_above_its_quorum_only(answers: int, closes: bool) -> None:
    federation = Federation(rules(quorum=2, deadline_s=100.0))
    federation.begins("a", "b", "c", "d")
    arrived = [received(device) for device in "abc"[:answers]]
    federation.happens(20.0, *arrived)
    assert federation.happens(109.9, Tick()) == []
    actions = federation.happens(110.0, Tick())
    assert actions == ([Merge(1, tuple(event.update for event in arrived))] if closes else [Announce()])
    assert federation.state.phase == ("merging" if closes else "training")


def test_a_reopened_round_has_place_for_others_and_closes_when_the_wanted_number_is_in() -> None:
    federation = Federation(rules(participants=2, quorum=2))
    federation.begins("a", "b")
    federation.happens(20.0, received("a"))
    assert federation.happens(110.0, Tick()) == [Announce()]  # `b` hangs, and would block its place for ever
    assert federation.happens(111.0, DeviceJoined("c")) == [Accept("c", 99.0)]
    assert federation.happens(120.0, received("c")) == [Merge(1, (update("a"), update("c")))]


def test_a_reopened_round_waits_for_everybody_like_a_first_one() -> None:
    federation = Federation(rules(quorum=2))
    federation.begins("a", "b", "c", "d")
    assert federation.happens(110.0, Tick()) == [Announce()]
    assert federation.happens(111.0, DeviceJoined("e")) == [Accept("e", 99.0)]
    assert federation.happens(120.0, received("a"), received("b")) == []  # the quorum is in, and three are at it yet
    assert federation.happens(130.0, received("c"), DeviceLeft("d")) == []
    assert federation.happens(140.0, received("e")) == [Merge(1, tuple(update(device) for device in "abce"))]


def test_a_reopened_round_closes_with_its_quorum_at_its_new_deadline() -> None:
    federation = Federation(rules(quorum=2))
    federation.begins("a", "b", "c")
    federation.happens(110.0, Tick())
    assert federation.happens(209.9, received("a"), received("b"), Tick()) == []
    assert federation.happens(210.0, Tick()) == [Merge(1, (update("a"), update("b")))]


@pytest.mark.parametrize("sign", [DeviceJoined("b"), DeviceReturned("b")])
def test_one_that_is_heard_of_after_reopening_has_its_place_back(sign: Event) -> None:
    federation = Federation(rules(participants=2, quorum=2))
    federation.begins("a", "b")
    federation.happens(20.0, received("a"))
    federation.happens(110.0, Tick())
    assert federation.state.overdue == ("b",)
    federation.happens(111.0, sign)
    assert federation.happens(112.0, DeviceJoined("c")) == [Refuse("c", "the round has its 2 participants")]


def test_one_that_was_overdue_still_counts_after_reopening() -> None:
    federation = Federation(rules(quorum=2))
    federation.begins("a", "b")
    federation.happens(20.0, received("a"))
    federation.happens(110.0, Tick())
    assert judge_offer(federation.state, federation.rules, "b", 1) == "wanted"
    assert federation.happens(130.0, received("b")) == [Merge(1, (update("a"), update("b")))]


def test_a_round_below_its_quorum_with_nobody_outstanding_waits_for_others() -> None:
    federation = Federation(rules(quorum=2))
    federation.begins("a", "b")
    assert federation.happens(20.0, received("a"), DeviceLeft("b")) == []
    assert federation.happens(110.0, Tick()) == [Announce()]


def test_an_update_from_one_that_was_not_selected_is_left_aside() -> None:
    federation = Federation(rules(participants=1))
    federation.begins("a", "b")
    (other,) = {"a", "b"} - set(federation.state.participants)
    before = federation.state
    assert judge_offer(before, federation.rules, other, 1) == "unknown"
    assert federation.happens(20.0, received(other)) == []
    assert federation.state is before


# --- merging, and the next round --------------------------------------------------------------------------------------


def test_a_merged_round_opens_the_next() -> None:
    federation = Federation(rules())
    federation.begins("a")
    federation.happens(20.0, received("a"))
    assert federation.happens(30.0, Merged(1)) == [Announce()]
    assert federation.state == State(round=2, opened_at_s=30.0)


@pytest.mark.parametrize("event", [Merged(2), Merged(0), Tick(), DeviceLeft("a"), received("a"), DeviceReturned("a")])
def test_what_does_not_matter_while_merging_changes_nothing(event: Event) -> None:
    federation = Federation(rules())
    federation.begins("a")
    federation.happens(20.0, received("a"))
    before = federation.state
    assert federation.happens(1e6, event) == []
    assert federation.state is before


def test_a_merge_after_which_none_may_follow_ends_the_federation_with_the_reason() -> None:
    federation = Federation(rules(final_evaluation=True))
    federation.begins("a")
    federation.happens(20.0, received("a"))
    assert federation.happens(30.0, Merged(1, "the budget has run out")) == [Finish("the budget has run out")]
    assert federation.state.phase == "finished"
    assert recover(federation.state) == (Finish("the budget has run out"),)


def test_a_budget_that_lasts_just_to_the_last_round_changes_nothing() -> None:
    federation = Federation(rules(rounds=1, final_evaluation=True))
    federation.begins("a")
    federation.happens(20.0, received("a"))
    assert federation.happens(30.0, Merged(1, "the budget has run out")) == [Announce()]
    assert federation.state.kind == "evaluate"


def test_a_merge_is_reported_once() -> None:
    federation = Federation(rules())
    federation.begins("a")
    federation.happens(20.0, received("a"), Merged(1))
    before = federation.state
    assert federation.happens(31.0, Merged(1)) == []
    assert federation.state is before


def test_who_joins_while_merging_is_told_to_wait() -> None:
    federation = Federation(rules())
    federation.begins("a")
    federation.happens(20.0, received("a"))
    (refusal,) = federation.happens(21.0, DeviceJoined("b"))
    assert isinstance(refusal, Refuse)
    assert "merged" in refusal.reason


# --- late updates -----------------------------------------------------------------------------------------------------


def one_round_without(absent: str, **told: Any) -> Federation:
    """A federation in round 2 (gathering) whose round 1 closed at the deadline without `absent`."""
    federation = Federation(rules(**told))
    federation.begins("a", absent)
    federation.happens(20.0, received("a"))
    federation.happens(110.0, Tick(), Merged(1))
    return federation


def test_a_late_update_is_part_of_the_next_sum() -> None:
    federation = one_round_without("b")
    assert judge_offer(federation.state, federation.rules, "b", 1) == "late"
    federation.happens(111.0, received("b"), DeviceJoined("a"))
    federation.happens(120.0, Tick())
    assert federation.happens(125.0, received("a", 2)) == [Merge(2, (update("b", 1), update("a", 2)))]


def test_a_device_may_be_late_for_one_round_and_on_time_for_the_next() -> None:
    federation = one_round_without("b")
    federation.happens(111.0, DeviceJoined("b"))
    federation.happens(120.0, Tick())
    assert federation.happens(125.0, received("b", 1)) == []
    assert federation.happens(126.0, received("b", 2)) == [Merge(2, (update("b", 1), update("b", 2)))]


def test_an_update_that_comes_while_its_round_is_merged_waits_for_the_next_sum() -> None:
    federation = Federation(rules())
    federation.begins("a", "b")
    federation.happens(20.0, received("a"))
    assert federation.happens(110.0, Tick()) == [Merge(1, (update("a"),))]
    assert federation.happens(111.0, received("b")) == []
    assert recover(federation.state) == (Merge(1, (update("a"),)),)  # the sum under way stays what it was
    federation.next_round("a", now_s=112.0)
    assert federation.happens(130.0, received("a", 2)) == [Merge(2, (update("b", 1), update("a", 2)))]


def test_late_updates_are_dropped_where_that_is_configured() -> None:
    federation = one_round_without("b", late="drop")
    before = federation.state
    assert judge_offer(before, federation.rules, "b", 1) == "dropped"
    assert federation.happens(111.0, received("b")) == []
    assert federation.state is before


@pytest.mark.parametrize(("max_staleness", "verdict"), [(1, "dropped"), (2, "late")])
def test_staleness_is_limited(max_staleness: int, verdict: str) -> None:
    federation = one_round_without("b", max_staleness=max_staleness, rounds=5)
    federation.happens(111.0, DeviceJoined("a"))
    federation.happens(121.0, Tick(), received("a", 2), Merged(2))
    assert federation.state.round == 3
    assert judge_offer(federation.state, federation.rules, "b", 1) == verdict


def test_staleness_is_that_of_the_sum_which_the_update_would_be_in() -> None:
    federation = one_round_without("b", max_staleness=1, rounds=5)
    assert judge_offer(federation.state, federation.rules, "b", 1) == "late"
    federation.happens(111.0, DeviceJoined("a"))
    federation.happens(121.0, Tick(), received("a", 2))
    assert federation.state.phase == "merging"  # it would now be in the sum of round 3, two rounds old
    assert judge_offer(federation.state, federation.rules, "b", 1) == "dropped"


def test_no_update_is_taken_for_a_sum_that_will_not_be_made() -> None:
    federation = Federation(rules(rounds=1, final_evaluation=True))
    federation.begins("a", "b")
    federation.happens(20.0, received("a"))
    federation.happens(110.0, Tick())
    assert judge_offer(federation.state, federation.rules, "b", 1) == "dropped"  # merging the last round
    federation.happens(111.0, Merged(1))
    assert judge_offer(federation.state, federation.rules, "b", 1) == "dropped"  # evaluating


def test_an_update_is_counted_once_even_if_it_comes_again_rounds_later() -> None:
    federation = Federation(rules(quorum=2))
    federation.begins("a", "b")
    federation.happens(20.0, received("a"))
    assert judge_offer(federation.state, federation.rules, "a", 1) == "duplicate"
    federation.happens(21.0, received("a"), received("b"))
    federation.happens(30.0, Merged(1))
    before = federation.state
    assert judge_offer(before, federation.rules, "a", 1) == "dropped"
    assert federation.happens(31.0, received("a")) == []
    assert federation.state is before


def test_a_late_update_is_counted_once() -> None:
    federation = one_round_without("b")
    federation.happens(111.0, received("b"), received("b"), DeviceJoined("a"))
    assert judge_offer(federation.state, federation.rules, "b", 1) == "duplicate"
    federation.happens(121.0, Tick(), received("a", 2), Merged(2))
    assert judge_offer(federation.state, federation.rules, "b", 1) == "dropped"


def test_one_that_never_took_part_cannot_be_late() -> None:
    federation = one_round_without("b")
    assert judge_offer(federation.state, federation.rules, "stranger", 1) == "dropped"


def test_an_update_of_a_round_to_come_is_dropped() -> None:
    federation = Federation(rules())
    federation.begins("a")
    assert judge_offer(federation.state, federation.rules, "a", 2) == "dropped"


# --- the end ----------------------------------------------------------------------------------------------------------


def test_without_a_final_evaluation_the_last_merge_is_the_end() -> None:
    federation = Federation(rules(rounds=1))
    federation.begins("a")
    federation.happens(20.0, received("a"))
    assert federation.happens(30.0, Merged(1)) == [Finish("all 1 rounds are done")]
    assert federation.state.phase == "finished"


def in_final_evaluation(*devices: str, **told: Any) -> Federation:
    federation = Federation(rules(rounds=1, final_evaluation=True, **told))
    federation.begins("a", "b", "c")
    federation.happens(20.0, received("a"), received("b"), received("c"))
    federation.next_round(*devices, now_s=30.0)
    return federation


def test_the_final_evaluation_weighs_losses_by_tokens() -> None:
    federation = in_final_evaluation("a", "b")
    assert (federation.state.kind, federation.state.phase, federation.state.round) == ("evaluate", "training", 2)
    federation.happens(50.0, EvaluationReceived("a", 2, 1.0, 30))
    (end,) = federation.happens(51.0, EvaluationReceived("b", 2, 2.0, 10))
    assert end == Finish("all 1 rounds are done")
    assert federation.state.losses == ((1, 1.25),)


@pytest.mark.parametrize(
    "event",
    [
        EvaluationReceived("a", 1, 1.0, 30),  # of another round
        EvaluationReceived("stranger", 2, 1.0, 30),  # never accepted
        received("a", 2),  # nobody trains in it
        received("a", 1),  # nor adds to what is final
    ],
)
def test_the_final_evaluation_takes_nothing_else(event: Event) -> None:
    federation = in_final_evaluation("a", "b")
    before = federation.state
    assert federation.happens(50.0, event) == []
    assert federation.state is before


def test_an_evaluation_counts_once() -> None:
    federation = in_final_evaluation("a", "b")
    federation.happens(50.0, EvaluationReceived("a", 2, 1.0, 30), EvaluationReceived("a", 2, 9.0, 30))
    assert federation.state.evaluations == (("a", 1.0, 30),)


@pytest.mark.parametrize(("answers", "loss"), [(0, None), (1, 1.0)])
def test_a_final_evaluation_below_the_quorum_ends_at_the_deadline(answers: int, loss: float | None) -> None:
    federation = in_final_evaluation("a", "b", "c", quorum=3)
    federation.happens(50.0, *(EvaluationReceived(device, 2, 1.0, 30) for device in "ab"[:answers]))
    assert federation.happens(139.9, Tick()) == []
    assert federation.happens(140.0, Tick()) == [Finish("all 1 rounds are done")]
    assert federation.state.losses == (() if loss is None else ((1, loss),))


def test_a_final_evaluation_begins_with_those_that_are_left() -> None:
    federation = in_final_evaluation("a", quorum=3)
    assert (federation.state.phase, federation.state.participants) == ("training", ("a",))


def test_a_final_evaluation_that_nobody_comes_to_does_not_hold_up_the_end() -> None:
    federation = in_final_evaluation(quorum=3)
    assert federation.state.phase == "gathering"
    assert next_deadline(federation.state, federation.rules) == 140.0
    assert federation.happens(139.9, Tick()) == []
    assert federation.happens(140.0, Tick()) == [Finish("all 1 rounds are done")]


def test_the_target_loss_ends_the_federation_after_the_merge() -> None:
    federation = Federation(rules(target_loss=1.5, quorum=2))
    federation.begins("a", "b")
    federation.happens(20.0, received("a", 1, 1.6, 10), received("b", 1, 1.8, 10))
    assert federation.state.losses == ((0, pytest.approx(1.7)),)  # of the adapter that round 1 started from
    assert federation.happens(30.0, Merged(1)) == [Announce()]
    federation.happens(31.0, DeviceJoined("a"), DeviceJoined("b"))
    federation.happens(40.0, Tick(), received("a", 2, 1.4, 10), received("b", 2, 1.5, 10))
    (end,) = federation.happens(50.0, Merged(2))
    assert end == Finish("the target loss of 1.5 was reached")
    assert federation.state.best == (1, pytest.approx(1.45))


def test_updates_without_an_evaluation_leave_no_loss() -> None:
    federation = Federation(rules(quorum=2))
    federation.begins("a", "b")
    federation.happens(20.0, received("a", 1, None, 0), received("b", 1, 2.0, 0))
    assert federation.state.losses == ()
    assert federation.state.best is None


@pytest.mark.parametrize("events", [[], [Begin()], [Begin(), DeviceJoined("a")]])
def test_a_federation_can_be_stopped_at_any_time(events: list[Event]) -> None:
    federation = Federation(rules())
    federation.happens(0.0, *events)
    assert federation.happens(1.0, Stop("enough")) == [Finish("enough")]
    assert federation.state.phase == "finished"


@pytest.mark.parametrize(
    "event",
    [
        Begin(),
        DeviceJoined("a"),
        DeviceLeft("a"),
        DeviceReturned("a"),
        received("b"),
        EvaluationReceived("b", 1, 1.0, 1),
        Merged(1),
        Tick(),
        Stop("again"),
    ],
)
def test_a_finished_federation_ignores_everything(event: Event) -> None:
    federation = Federation(rules())
    federation.begins("a", "b")
    federation.happens(20.0, received("a"), Stop("enough"))
    before = federation.state
    assert federation.happens(1e9, event) == []
    assert federation.state is before
    assert next_deadline(before, federation.rules) is None
    assert judge_offer(before, federation.rules, "b", 1) == "dropped"


# --- when to look again, and what to do after a restart ---------------------------------------------------------------


def test_the_next_deadline_is_when_a_tick_changes_something() -> None:
    federation = Federation(rules(quorum=2))
    assert next_deadline(federation.state, federation.rules) is None
    federation.happens(5.0, Begin(), DeviceJoined("a"))
    assert next_deadline(federation.state, federation.rules) is None  # one alone is below the quorum for ever
    federation.happens(6.0, DeviceJoined("b"))
    assert next_deadline(federation.state, federation.rules) == 15.0
    federation.happens(15.0, Tick())
    assert next_deadline(federation.state, federation.rules) == 115.0
    federation.happens(115.0, Tick())  # reopened
    assert next_deadline(federation.state, federation.rules) == 215.0
    federation.happens(120.0, received("a"), received("b"))
    assert next_deadline(federation.state, federation.rules) is None


def test_recovery_repeats_what_the_phase_asks_for() -> None:
    federation = Federation(rules(rounds=1))
    assert recover(federation.state) == ()
    federation.happens(0.0, Begin())
    assert recover(federation.state) == (Announce(),)
    federation.happens(10.0, DeviceJoined("a"))
    assert federation.state.phase == "training"
    assert recover(federation.state) == (Announce(),)
    federation.happens(20.0, received("a"))
    assert recover(federation.state) == (Merge(1, (update("a"),)),)
    federation.happens(30.0, Merged(1))
    assert recover(federation.state) == (Finish("all 1 rounds are done"),)


# --- what the operator wishes -----------------------------------------------------------------------------------------


def test_who_is_paused_while_gathering_is_told_and_not_selected() -> None:
    federation = Federation(rules())
    federation.happens(0.0, Begin(), DeviceJoined("a"), DeviceJoined("b"))
    told = federation.happens(1.0, RosterRead((("b", "paused"),)))
    assert told == [Refuse("b", "the operator has paused this device")]
    assert federation.happens(2.0, DeviceJoined("b")) == told
    assert [action.device for action in federation.happens(10.0, Tick()) if isinstance(action, Accept)] == ["a"]


@pytest.mark.parametrize("duty", ["paused", "draining"])
def test_who_is_held_finishes_what_it_has_and_gets_no_other(duty: Any) -> None:
    federation = Federation(rules())
    federation.begins("a", "b")
    assert federation.happens(11.0, RosterRead((("b", duty),))) == []
    assert federation.happens(12.0, DeviceJoined("b")) == [Accept("b", 98.0)], "its acceptance may have got lost"
    assert judge_offer(federation.state, federation.rules, "b", 1) == "wanted"
    merging = federation.happens(13.0, received("a"), received("b"))
    assert merging == [Merge(1, (update("a"), update("b")))]
    told = federation.next_round("a", "b", now_s=20.0)
    assert [action.device for action in told if isinstance(action, Accept)] == ["a"]
    assert federation.state.held == (("b", duty),)


def test_nobody_waits_for_who_is_removed() -> None:
    federation = Federation(rules(late="discount"))
    federation.begins("a", "b", "c")
    federation.happens(11.0, received("c"), received("a"))
    assert federation.state.outstanding == ("b",)
    told = federation.happens(12.0, RosterRead((("b", "removed"), ("c", "removed"))))
    assert told == [Merge(1, (update("c"), update("a")))], "what was acknowledged counts"
    assert judge_offer(federation.state, federation.rules, "b", 1) == "removed"
    assert judge_offer(federation.state, federation.rules, "c", 1) == "duplicate"
    assert not federation.state.owed


def test_who_is_resumed_joins_the_open_round() -> None:
    federation = Federation(rules())
    federation.begins("a", "b")
    federation.happens(11.0, RosterRead((("b", "removed"),)))
    federation.happens(12.0, DeviceReturned("b"))
    assert federation.state.outstanding == ("a",)
    assert judge_offer(federation.state, federation.rules, "b", 1) == "removed"
    federation.happens(13.0, RosterRead(()))
    assert federation.happens(14.0, DeviceJoined("b")) == [Accept("b", 96.0)]
    assert judge_offer(federation.state, federation.rules, "b", 1) == "wanted"


def test_who_is_taken_back_may_deliver_what_it_had_begun() -> None:
    federation = Federation(rules())
    federation.begins("a", "b")
    federation.happens(11.0, RosterRead((("a", "removed"), ("b", "removed"))))
    assert (federation.state.participants, federation.state.taken_out) == ((), ("a", "b"))
    federation.happens(12.0, RosterRead((("b", "removed"),)))
    assert (federation.state.participants, federation.state.taken_out) == (("a",), ("b",))
    assert judge_offer(federation.state, federation.rules, "a", 1) == "wanted"
    assert federation.happens(13.0, received("a")) == [Merge(1, (update("a"),))]
    federation.happens(14.0, Merged(1))
    assert federation.state.taken_out == ()
