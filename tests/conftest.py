"""Fixtures that more than one package's tests need."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tools.mosquitto import RunningMosquitto, running_mosquitto


@pytest.fixture
def mosquitto() -> Iterator[RunningMosquitto]:
    """A Mosquitto of the test's own, on a free port, that lets everybody in and forgets when it stops."""
    with running_mosquitto() as broker:
        yield broker
