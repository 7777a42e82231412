from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edgefed.transport.backoff import Backoff


def test_delays_double_up_to_the_cap() -> None:
    backoff = Backoff(0.5, 60.0, draw=lambda: 1.0)
    assert [backoff.next_delay_s() for _ in range(9)] == [0.5, 1, 2, 4, 8, 16, 32, 60, 60]


def test_jitter_spreads_a_delay_over_its_upper_half() -> None:
    assert Backoff(8.0, 60.0, draw=lambda: 0.0).next_delay_s() == 4.0
    assert Backoff(8.0, 60.0, draw=lambda: 0.5).next_delay_s() == 6.0


def test_only_a_lasting_success_starts_over_and_a_fleeting_one_changes_nothing() -> None:
    backoff = Backoff(1.0, 60.0, stable_s=30.0, draw=lambda: 1.0)
    for _ in range(4):
        backoff.next_delay_s()
    backoff.succeeded(lasted_s=0.9)
    assert backoff.next_delay_s() == 16.0
    backoff.succeeded(lasted_s=31.0)
    assert backoff.next_delay_s() == 1.0


def test_a_link_that_breaks_every_20_s_is_not_left_alone_for_longer_than_it_holds() -> None:
    backoff = Backoff(0.5, 60.0, draw=lambda: 1.0)
    for _ in range(10):
        backoff.succeeded(lasted_s=20.0)
        assert backoff.next_delay_s() <= 20.0 / 4


def test_a_link_that_breaks_every_2_s_is_tried_again_soon() -> None:
    backoff = Backoff(0.5, 60.0, draw=lambda: 1.0)
    for _ in range(10):
        backoff.succeeded(lasted_s=1.9)
        assert backoff.next_delay_s() <= 1.0


@given(lasted_s=st.floats(0, 29), failures=st.integers(0, 100))
def test_a_short_success_never_lengthens_a_delay(lasted_s: float, failures: int) -> None:
    with_it, without = Backoff(draw=lambda: 1.0), Backoff(draw=lambda: 1.0)
    for _ in range(failures):
        with_it.next_delay_s()
        without.next_delay_s()
    with_it.succeeded(lasted_s)
    assert with_it.next_delay_s() <= without.next_delay_s()


def test_a_failure_that_deserves_patience_gets_it_within_the_cap() -> None:
    assert Backoff(1.0, 60.0, draw=lambda: 1.0).next_delay_s(at_least_s=15.0) == 15.0
    assert Backoff(1.0, 5.0, draw=lambda: 1.0).next_delay_s(at_least_s=15.0) == 5.0


@given(first_s=st.floats(0.001, 100), max_s=st.floats(0.001, 100), draw=st.floats(0, 1), tries=st.integers(1, 3000))
def test_no_number_of_failures_leads_out_of_range(first_s: float, max_s: float, draw: float, tries: int) -> None:
    backoff = Backoff(first_s, max_s, draw=lambda: draw)
    for _ in range(tries):
        delay_s = backoff.next_delay_s()
    assert min(first_s, max_s) / 2 <= delay_s <= max_s
