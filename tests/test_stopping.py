from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

import pytest

from edgefed.stopping import heeded_interrupts


@pytest.fixture(autouse=True)
def _interruptible() -> Iterator[None]:
    """Also where the tests run as a job that nobody interrupts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interrupt_that_was_swallowed_is_raised_again() -> None:
    handler = signal.getsignal(signal.SIGINT)
    with heeded_interrupts() as heed:
        with contextlib.suppress(KeyboardInterrupt):  # as libraries do, around an import that may fail
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            heed()
    assert signal.getsignal(signal.SIGINT) is handler


def test_whoever_ignores_interrupts_goes_on_to() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with heeded_interrupts() as heed:
            signal.raise_signal(signal.SIGINT)
            heed()
    finally:
        signal.signal(signal.SIGINT, before)
