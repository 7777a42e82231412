"""Who may serve a fleet, told from the retained state of whoever says that it does."""

from __future__ import annotations

import pytest

from edgefed.coordinator.claim import FleetClaim
from edgefed.errors import FleetTaken
from edgefed.protocol.messages.retained import AggregatorState
from edgefed.protocol.messages.wire import encode


def word(status: str, *, run: str, instance: str = "other") -> bytes:
    return encode(AggregatorState(status=status, run=run, instance=instance, round=4))  # type: ignore[arg-type]


@pytest.mark.parametrize("run", ["a", "z"])
def test_a_newcomer_gives_way_to_whoever_is_at_work_on_another_run(run: str) -> None:
    claim, other = FleetClaim("barn", "m", "me"), FleetClaim("barn", run, "other")
    other.take()
    assert claim.hear(word("online", run=run)) == "doubtful"
    assert claim.hear(encode(claim.challenge())) == "own"
    assert other.hear(encode(claim.challenge())) == "vacant", "so that it says again that it is there"
    with pytest.raises(FleetTaken, match=rf"run {run}, in round 4\) serves fleet 'barn'"):
        claim.hear(word("online", run=run))
    assert not claim.holds


def test_a_word_that_nobody_stands_by_any_more_is_no_objection() -> None:
    claim = FleetClaim("barn", "m", "me")
    assert claim.hear(word("online", run="a")) == "doubtful"
    claim.take()
    assert claim.holds


@pytest.mark.parametrize("status", ["lost", "stopped", "finished"])
def test_what_somebody_left_behind_is_no_objection(status: str) -> None:
    claim = FleetClaim("barn", "m", "me")
    assert claim.hear(word(status, run="a")) == "vacant"
    claim.take()
    assert claim.holds


def test_an_earlier_process_of_the_same_run_is_gone_since_the_store_is_ours() -> None:
    assert FleetClaim("barn", "m", "me").hear(word("online", run="m")) == "vacant"


def test_of_two_at_work_exactly_one_gives_way() -> None:
    first, second = FleetClaim("barn", "a", "1"), FleetClaim("barn", "b", "2")
    first.take()
    second.take()
    assert first.hear(word("online", run="b", instance="2")) == "vacant"
    with pytest.raises(FleetTaken):
        second.hear(word("online", run="a", instance="1"))
    assert first.holds
    assert not second.holds


def test_its_own_words_are_known() -> None:
    claim = FleetClaim("barn", "m", "me")
    assert claim.hear(word("online", run="m", instance="me")) == "own"
    claim.take()
    assert claim.hear(word("lost", run="m", instance="me")) == "vacant", "its will: it has to say that it is back"
    assert claim.holds


@pytest.mark.parametrize("run", ["a", "z"])
def test_one_that_yields_gives_way_to_whichever_comes(run: str) -> None:
    claim = FleetClaim("barn", "m", "me")
    claim.take()
    claim.yield_to_anybody()
    assert claim.hear(word("finished", run=run)) == "vacant"
    assert claim.hear(word("online", run="m", instance="me")) == "own"
    assert claim.holds
    with pytest.raises(FleetTaken):
        claim.hear(word("online", run=run))
    assert not claim.holds
