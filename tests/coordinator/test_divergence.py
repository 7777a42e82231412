"""Rounds that are given up because an adapter has diverged, one short story each."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefed.coordinator.divergence import (
    Divergence,
    last_good,
    most_have_diverged,
    typical_loss,
    why_diverged,
)
from edgefed.coordinator.events import (
    Announce,
    Begin,
    DeviceJoined,
    DeviceLeft,
    Finish,
    GivenUp,
    GiveUp,
    Merge,
    Merged,
    MergeFailed,
    Recovered,
    RosterRead,
    Tick,
    Update,
    UpdateReceived,
)
from edgefed.coordinator.offers import judge_offer
from edgefed.coordinator.round_state import Rules, State
from edgefed.coordinator.rounds import recover, step
from edgefed.coordinator.selection import Selection

DEVICES = ("a", "b", "c")


def update(device: str, round_: int) -> Update:
    return Update(device=device, round=round_, sha256=f"{device}{round_}", examples=1, rank=2, held_rank=2)


class Story:
    """A federation of three devices, from one round to the next."""

    def __init__(self, *, rounds: int = 9, **divergence: object) -> None:
        self.rules = Rules(
            rounds=rounds,
            selection=Selection(expected_devices=3, quorum=2, deadline_s=100.0),
            final_evaluation=False,
            divergence=Divergence(**divergence),  # type: ignore[arg-type]
        )
        self.state = State()
        self.actions: tuple[object, ...] = ()
        self.happens(Begin())

    def happens(self, *events: object, now_s: float = 0.0) -> tuple[object, ...]:
        for event in events:
            self.state, self.actions = step(self.state, event, now_s, self.rules)  # type: ignore[arg-type]
        return self.actions

    def joins(self) -> None:
        self.happens(*(DeviceJoined(device) for device in DEVICES))

    def trains(self, *losses: float | None) -> tuple[object, ...]:
        """All join and deliver, each with its loss of the adapter that the round starts from."""
        self.joins()
        round_ = self.state.round
        return self.happens(
            *(UpdateReceived(update(device, round_), loss, 7) for device, loss in zip(DEVICES, losses, strict=True))
        )

    def goes_well(self, *losses: float | None) -> None:
        (merge,) = self.trains(*losses)
        assert isinstance(merge, Merge)
        self.happens(Merged(merge.round))


def test_a_round_that_starts_from_a_much_worse_adapter_is_given_up_for_the_best_one() -> None:
    story = Story()
    story.goes_well(7.0, 7.0, 7.0)
    story.goes_well(5.0, 5.0, 5.0)  # of the adapter after round 1
    story.goes_well(6.0, 6.0, 6.0)  # a little worse
    (doing,) = story.trains(7.5, 7.5, 7.5)
    reason = (
        "the adapter has diverged: its median loss on the devices is 7.500, that after round 1 is 5.000, and "
        "divergence.max_loss_rise is 2"
    )
    assert doing == GiveUp(4, 1, reason, tuple(update(device, 4) for device in DEVICES))
    assert story.state.phase == "merging"
    assert recover(story.state) == (doing,)
    assert story.happens(Merged(4)) == (), "nothing was summed"
    assert story.happens(GivenUp(3)) == (), "that is another round"
    assert story.happens(GivenUp(4)) == (Announce(),)
    assert (story.state.round, story.state.phase, story.state.updates, story.state.carried) == (5, "gathering", (), ())
    (merge,) = story.trains(5.1, 5.1, 5.1)
    assert merge == Merge(5, tuple(update(device, 5) for device in DEVICES))


def test_a_minority_calls_nothing_bad_and_nothing_good() -> None:
    story = Story()
    story.goes_well(0.0, 6.0, 6.0)  # one that flatters
    story.goes_well(6.0, 6.0, 900.0)  # and one that blackens
    (doing,) = story.trains(0.0, 9.0, 9.0)
    assert isinstance(doing, GiveUp)
    assert "is 9.000" in doing.reason


def test_where_no_adapter_is_better_a_federation_ends_with_a_word() -> None:
    story = Story(in_a_row=2)
    story.goes_well(5.0, 5.0, 5.0)
    for _ in range(2):
        (doing,) = story.trains(9.0, 9.0, 9.0)
        assert isinstance(doing, GiveUp)
        story.happens(GivenUp(doing.round))
        story.goes_well(5.0, 5.0, 5.0)  # the copy is as good as it was, and proves nothing
    (end,) = story.trains(9.0, 9.0, 9.0)
    assert isinstance(end, Finish)
    assert end.failed
    assert end.reason.startswith("round 6 failed: the adapter has diverged")
    assert end.reason.endswith("; 2 rounds before it were given up for that")
    assert recover(story.state) == (end,)


def test_a_new_adapter_that_is_fine_sets_the_count_back() -> None:
    story = Story(in_a_row=1)
    story.goes_well(5.0, 5.0, 5.0)
    for _ in range(3):
        (doing,) = story.trains(9.0, 9.0, 9.0)
        assert isinstance(doing, GiveUp)
        story.happens(GivenUp(doing.round))
        story.goes_well(5.0, 5.0, 5.0)
        story.goes_well(4.9, 4.9, 4.9) if doing.round < 7 else None
        if story.state.phase == "finished":
            break
    assert not story.state.failed


@pytest.mark.parametrize("action", ["stop", "ignore"])
def test_an_operator_may_want_it_otherwise(action: str) -> None:
    story = Story(action=action)
    story.goes_well(5.0, 5.0, 5.0)
    (done,) = story.trains(9.0, 9.0, 9.0)
    if action == "ignore":
        assert isinstance(done, Merge)
        (done,) = story.happens(MergeFailed(2, "the sum is not finite"))
    assert isinstance(done, Finish)
    assert done.failed
    assert done.reason.startswith("round 2 failed: the ")


def test_a_sum_that_cannot_be_made_is_given_up() -> None:
    story = Story()
    story.goes_well(None, None, None)
    story.trains(None, None, None)
    assert story.happens(MergeFailed(1, "x")) == ()
    (doing,) = story.happens(MergeFailed(2, "the sum is not finite"))
    assert isinstance(doing, GiveUp)
    assert (doing.round, doing.of, doing.reason) == (2, 1, "the sum is not finite")
    assert story.happens(MergeFailed(2, "the sum is not finite")) == (), "it is being given up already"
    story.happens(GivenUp(2))
    assert story.state.given_up == 1
    story.goes_well(None, None, None)
    assert story.state.given_up == 0, "nobody evaluates: a sum is all there is to go by"


def test_most_of_a_round_that_diverges_ends_it() -> None:
    story = Story()
    story.joins()
    assert story.happens(DeviceLeft("a", diverged=True), DeviceLeft("b")) == ()
    (doing,) = story.happens(UpdateReceived(update("b", 1)), DeviceLeft("c", diverged=True))
    assert isinstance(doing, GiveUp)
    assert (doing.of, doing.reason) == (0, "2 of 3 participants say that training or the adapter has diverged")
    assert doing.updates == (update("b", 1),)


def test_who_took_no_part_has_no_voice() -> None:
    story = Story()
    story.happens(DeviceJoined("a"), DeviceJoined("b"), DeviceLeft("a", diverged=True), DeviceLeft("b", diverged=True))
    assert (story.state.phase, story.state.diverged) == ("gathering", ())
    story.joins()
    assert story.happens(*(DeviceLeft(one, diverged=True) for one in ("x", "y"))) == ()


def test_what_was_late_for_an_earlier_round_waits_for_the_next_sum() -> None:
    story = Story()
    story.goes_well(5.0, 5.0, 5.0)
    story.joins()
    story.happens(*(UpdateReceived(update(one, 2), 5.0, 7) for one in "ab"))
    story.happens(Tick(), now_s=200.0)
    story.happens(Merged(2))
    story.joins()
    story.happens(UpdateReceived(update("c", 2)))
    (doing,) = story.happens(*(UpdateReceived(update(one, 3), 9.0, 7) for one in DEVICES))
    assert isinstance(doing, GiveUp)
    assert update("c", 2) not in doing.updates
    assert judge_offer(story.state, story.rules, "a", 3) == "duplicate"
    story.happens(GivenUp(3))
    assert story.state.carried == (update("c", 2),)
    assert judge_offer(story.state, story.rules, "d", 3) == "dropped"


def test_a_recovered_federation_goes_on_in_a_new_round() -> None:
    story = Story(rounds=5)
    story.joins()
    losses, typical = ((0, 7.0), (1, 5.0)), ((0, 7.1), (1, 5.1))
    assert story.happens(Recovered(3, losses, typical), now_s=50.0) == (Announce(),)
    assert story.state == State(round=4, opened_at_s=50.0, losses=losses, typical=typical, copied=3)
    assert Story(rounds=5).happens(Recovered(5)) == (Finish("all 5 rounds are done"),)


@given(st.lists(st.floats(0.01, 100.0), max_size=8), st.floats(0.01, 100.0), st.floats(0.1, 5.0))
def test_only_a_rise_over_the_best_is_divergence(losses: list[float], latest: float, rise: float) -> None:
    typical = list(enumerate(losses))
    verdict = why_diverged(typical, latest, Divergence(max_loss_rise=rise))
    assert bool(verdict) == bool(losses and latest - min(losses) > rise)
    best = last_good(typical)
    assert best is None if not losses else best == (losses.index(min(losses)), min(losses))


@given(st.lists(st.floats(0.0, 1000.0), min_size=1, max_size=9), st.floats(0.0, 1000.0))
def test_a_minority_does_not_move_the_typical_loss_out_of_the_others(losses: list[float], lie: float) -> None:
    liars = (len(losses) - 1) // 2
    honest = losses[liars:]
    told = [("d", lie, 5)] * liars + [("d", loss, 5) for loss in honest] + [("silent", 0.0, 0)]
    typical = typical_loss(told)
    assert typical is not None
    assert min(honest) <= typical <= max(honest)
    assert typical_loss([("silent", 3.0, 0)]) is None


def test_what_was_in_a_sum_that_failed_is_in_no_other_however_late_it_was() -> None:
    story = Story()
    story.goes_well(None, None, None)
    story.joins()
    story.happens(*(UpdateReceived(update(one, 2)) for one in "ab"))
    story.happens(Tick(), now_s=200.0)
    story.happens(Merged(2))
    story.joins()
    story.happens(UpdateReceived(update("c", 2)))
    story.happens(*(UpdateReceived(update(one, 3)) for one in DEVICES))
    (doing,) = story.happens(MergeFailed(3, "the sum is not finite"))
    assert isinstance(doing, GiveUp)
    assert doing.updates == (update("c", 2), *(update(one, 3) for one in DEVICES))
    story.happens(GivenUp(3))
    assert story.state.carried == ()


def test_who_has_diverged_and_is_removed_has_no_voice() -> None:
    story = Story()
    story.joins()
    assert story.happens(DeviceLeft("b", diverged=True)) == ()
    assert story.happens(RosterRead((("b", "removed"), ("c", "removed")))) == ()
    assert (story.state.phase, story.state.participants, story.state.diverged) == ("training", ("a",), ())


def test_who_has_diverged_and_then_delivers_all_the_same_has_no_voice() -> None:
    story = Story()
    story.joins()
    story.happens(DeviceLeft("a", diverged=True), DeviceJoined("a"), UpdateReceived(update("a", 1)))
    assert story.happens(DeviceLeft("b", diverged=True)) == ()
    (merge,) = story.happens(UpdateReceived(update("c", 1)))
    assert isinstance(merge, Merge)


@given(st.integers(0, 9), st.integers(1, 9))
def test_more_than_half_is_most(diverged: int, participants: int) -> None:
    assert bool(most_have_diverged(diverged, participants)) == (diverged > participants / 2)
