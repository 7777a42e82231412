"""A federation that is over while a release of the agent is on its way: its aggregator stays until that is there."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from edgefed.coordinator.rollout import OfferedBundle, Rollout
from edgefed.coordinator.rollout_desk import read_progress, write_rollout
from edgefed.devices.profile import read_profile
from edgefed.devices.release_state import ReleaseState
from edgefed.protocol.messages.retained import AggregatorState, DeviceState
from edgefed.protocol.messages.wire import encode
from edgefed.transport.base import Connected, Message
from edgefed.transport.options import Broker
from tests.faults.small_world import World
from tests.faults.test_stories import options, play

BUNDLE = OfferedBundle(
    sha256="a" * 64,
    size_bytes=8,
    name="spring",
    number=7,
    version="1.0",
    architecture=platform.machine(),
    python=".".join(platform.python_version_tuple()[:2]),
    lock_sha256="b" * 64,
)
WISH = Rollout(id="wish", bundles=(BUNDLE,), stages=(50, 100), began_unix_s=0.0)
SIGNED = Broker(signed=True, tls_ca="ca.pem", tls_certificate="certificate.pem", tls_key="key.pem")


def shows(world: World, release: ReleaseState | None = None) -> None:
    """Device one shows what it is, and how far it is with the release."""
    assert world.line is not None
    profile = replace(read_profile(world.directory.path, quantization="auto", max_rank=0), release=release)
    state = DeviceState(status="ready", instance="i")
    for channel, said in (("profile", profile), ("state", state)):
        world.line.inbox.put_nowait(Message(world.topics.device("one", channel), encode(said)))  # type: ignore[arg-type]
    world.settle()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A federation that has just come to its end, with a release that one device was offered and has not."""
    world = World(options(tmp_path, rounds=1, broker=SIGNED), ["one", "two"])
    place = world.directory.release(BUNDLE.sha256)
    place.parent.mkdir()
    place.write_bytes(b"a bundle")
    write_rollout(world.directory.path, WISH)
    shows(world)
    play(world, until_round=3)
    world.pass_time(60.0)
    assert world.state.phase == "finished"
    yield world
    world.close()


def test_it_leaves_once_the_release_is_there(world: World) -> None:
    assert not world.finished
    shows(world, ReleaseState(rollout="wish", bundle=BUNDLE.sha256, name="spring", number=7, state="installed"))
    world.pass_time(3.0)
    assert world.finished
    assert read_progress(world.directory.path, WISH).outcome == "done"
    left = world.aggregator.goodbye()
    assert left is not None
    assert left.status == "finished"


def test_it_waits_no_longer_than_a_device_may_be_silent(world: World) -> None:
    world.pass_time(WISH.patience_s)
    assert world.finished
    assert read_progress(world.directory.path, WISH).outcome == "failed"


def test_a_device_that_always_has_something_new_to_say_does_not_keep_it_for_ever(world: World) -> None:
    fetching = ReleaseState(rollout="wish", bundle=BUNDLE.sha256, name="spring", number=7, state="fetching")
    for minute in range(70):
        if world.finished:
            break
        shows(world, replace(fetching, received_bytes=minute % 2))
        world.pass_time(60.0)
    assert world.finished
    assert read_progress(world.directory.path, WISH).outcome == ""


def test_it_makes_room_for_another_federation_and_leaves_its_words_alone(world: World) -> None:
    assert world.line is not None
    world.announcement = None
    world.line.inbox.put_nowait(Connected(session_resumed=False, max_payload_bytes=1_000_000))
    world.settle()
    assert world.announcement is None, "another one may have announced a round while it was away"
    other = AggregatorState(status="online", instance="other", run="other", round=1)
    world.line.inbox.put_nowait(Message(world.topics.aggregator_state, encode(other)))
    world.pass_time(3.0)
    assert world.finished
    assert world.aggregator.goodbye() is None


def test_one_that_is_started_again_goes_on_with_it(world: World) -> None:
    world.kill()
    world.pass_time(60.0)
    assert not world.finished
    shows(world, ReleaseState(rollout="wish", bundle=BUNDLE.sha256, name="spring", number=7, state="installed"))
    world.pass_time(3.0)
    assert world.finished
