"""Two members and what each lets the other say, as a device and an aggregator have it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from edgefed.errors import ConfigError, MessageError
from edgefed.protocol.chunks import encode_chunk
from edgefed.protocol.topics import Topics
from edgefed.security.authorship import Authorship, read_authorship
from edgefed.security.fleet_directory import FleetDirectory, Lifetimes
from edgefed.security.identities import AGGREGATOR, Identity
from edgefed.transport.base import Message, Transport
from edgefed.transport.in_memory import InMemoryBroker
from edgefed.transport.signed import SignedTransport
from tests.security.secured import now

TOPICS = Topics("kitchen")
DEVICE = Identity("device", "board-07")
UP, DOWN = TOPICS.device("board-07", "up"), TOPICS.device("board-07", "down")
CHUNK = encode_chunk("ab" * 32, 0, 4, b"data")


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> FleetDirectory:
    path = tmp_path_factory.mktemp("fleet") / "kitchen"
    made = FleetDirectory.create(path, "kitchen", hosts=["b"], lifetimes=Lifetimes(), now=now())
    made.enroll(DEVICE, days=30, now=now())
    return made


@pytest.fixture
def join(fleet: FleetDirectory, tmp_path: Path) -> Callable[[Identity], Authorship]:
    def made(identity: Identity) -> Authorship:
        place = fleet.place(identity)
        return read_authorship(
            TOPICS,
            identity,
            tmp_path / f"{identity.name}-latest",
            ca=place / "ca.pem",
            certificate=place / "certificate.pem",
            key=place / "key.pem",
        )

    return made


Join = Callable[[Identity], Authorship]


@pytest.mark.parametrize(("topic", "author"), [(TOPICS.round, AGGREGATOR), (DOWN, AGGREGATOR), (UP, DEVICE)])
def test_each_signs_what_is_theirs_and_nothing_else(join: Join, topic: str, author: Identity) -> None:
    aggregator, device = join(AGGREGATOR), join(DEVICE)
    speaker, other = (aggregator, device) if author == AGGREGATOR else (device, aggregator)
    said = speaker.outgoing(topic, b'{"a":1}')
    assert other.incoming(topic, said) == b'{"a":1}'
    forged = other.outgoing(topic, b'{"a":1}')
    assert forged == b'{"a":1}'
    with pytest.raises(MessageError, match="it is not signed"):
        speaker.incoming(topic, forged)


@pytest.mark.parametrize(
    ("topic", "payload"),
    [
        (TOPICS.blob("f" * 64), CHUNK),
        (UP, CHUNK),
        (DOWN, CHUNK),
        (TOPICS.round, b""),
        (TOPICS.aggregator_state, b'{"a":1}'),
        (TOPICS.device("board-07", "state"), b'{"a":1}'),
    ],
)
def test_what_nobody_signs_passes(join: Join, topic: str, payload: bytes) -> None:
    for member in (join(AGGREGATOR), join(DEVICE)):
        assert member.outgoing(topic, payload) == payload
        assert member.incoming(topic, payload) == payload


def test_an_old_announcement_is_refused_also_after_a_restart(join: Join) -> None:
    aggregator = join(AGGREGATOR)
    first, second = (aggregator.outgoing(TOPICS.round, b'{"round":%d}' % number) for number in (1, 2))
    device = join(DEVICE)
    assert device.incoming(TOPICS.round, first) == b'{"round":1}'
    assert device.incoming(TOPICS.round, second) == b'{"round":2}'
    assert device.incoming(TOPICS.round, second) == b'{"round":2}'  # brokers deliver again what they keep
    for member in (device, join(DEVICE)):
        with pytest.raises(MessageError, match="older than an announcement that was obeyed: somebody plays it again"):
            member.incoming(TOPICS.round, first)


def test_a_clock_that_is_put_back_makes_no_announcement_old(fleet: FleetDirectory, join: Join, tmp_path: Path) -> None:
    clock = [now().timestamp()]
    device = join(DEVICE)
    for step_s in (0.0, -86400.0, 86400.0, -3600.0):
        clock[0] += step_s
        restarted = join(AGGREGATOR)
        restarted._clock = lambda: clock[0]
        for number in (1, 2):
            said = restarted.outgoing(TOPICS.round, b'{"round":%d}' % number)
            assert device.incoming(TOPICS.round, said) == b'{"round":%d}' % number


def test_a_certificate_of_somebody_else(fleet: FleetDirectory, tmp_path: Path) -> None:
    place = fleet.place(DEVICE)
    files = {"ca": place / "ca.pem", "certificate": place / "certificate.pem", "key": place / "key.pem"}
    with pytest.raises(ConfigError, match=r"is of board-07, and messages are to be signed as role:aggregator"):
        read_authorship(TOPICS, AGGREGATOR, tmp_path / "latest", **files)


def test_a_damaged_memory_is_no_licence(fleet: FleetDirectory, join: Join, tmp_path: Path) -> None:
    (tmp_path / "board-07-latest").write_text("not a time")
    with pytest.raises(ConfigError, match="old rounds could be played again"):
        join(DEVICE)


async def test_over_a_transport_only_the_signed_is_heard(join: Join, caplog: pytest.LogCaptureFixture) -> None:
    broker = InMemoryBroker()
    async with broker.connect("a") as one, broker.connect("d") as two, broker.connect("m") as mallory:
        aggregator: Transport = SignedTransport(one, join(AGGREGATOR))
        device: Transport = SignedTransport(two, join(DEVICE))
        await device.subscribe(DOWN)
        await mallory.publish(DOWN, b'{"forged":1}')
        await aggregator.publish(DOWN, b'{"true":1}')
        async for event in device.events():
            if isinstance(event, Message):
                assert event == Message(DOWN, b'{"true":1}', False)
                break
        assert f"a message on {DOWN} is not listened to: it is not signed" in caplog.text
        assert device.max_payload_bytes < two.max_payload_bytes
        largest = b'{"a":"' + b"x" * (aggregator.max_payload_bytes - 8) + b'"}'
        assert len(largest) == aggregator.max_payload_bytes
        await aggregator.publish(DOWN, largest)
