"""Fixtures that more than one package's tests need."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from tools.mosquitto import RunningMosquitto, running_mosquitto

# No test asserts anything about time: a busy machine is no failure, nor is hypothesis building its table of Unicode,
# which takes seconds on a fresh one.
settings.register_profile("edgefed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("edgefed")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where several processes share the files, those with whole federations come first: a long one at the end would
    have one process work, and the others wait."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: item.get_closest_marker("federation") is None)


@pytest.fixture(autouse=True)
def _log_goes_where_it_went() -> Iterator[None]:
    """Takes back what a command that runs in this process does to the log."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def mosquitto() -> Iterator[RunningMosquitto]:
    """A Mosquitto of the test's own, on a free port, that lets everybody in and forgets when it stops."""
    with running_mosquitto() as broker:
        yield broker
