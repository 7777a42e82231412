"""Two members and what each lets the other say, as a device and an aggregator have it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from edgefed.errors import ConfigError, MessageError, Outdated
from edgefed.protocol.chunks import encode_chunk
from edgefed.protocol.messages.retained import AggregatorState, DeviceState, decode_device_state
from edgefed.protocol.messages.wire import encode
from edgefed.protocol.topics import Topics
from edgefed.security.authorship import Authorship, read_authorship, read_observation
from edgefed.security.fleet_directory import FleetDirectory, Lifetimes
from edgefed.security.identities import AGGREGATOR, Identity
from edgefed.security.signatures import read_signer
from edgefed.transport.base import Distrusted, Message, Transport
from edgefed.transport.in_memory import InMemoryBroker
from edgefed.transport.signed import SignedTransport
from tests.security.secured import now

TOPICS = Topics("kitchen")
DEVICE = Identity("device", "board-07")
UP, DOWN = TOPICS.device("board-07", "up"), TOPICS.device("board-07", "down")
STATE, PROFILE = TOPICS.device("board-07", "state"), TOPICS.device("board-07", "profile")
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
            tmp_path / f"{identity.name}-memory",
            ca=place / "ca.pem",
            certificate=place / "certificate.pem",
            key=place / "key.pem",
        )

    return made


Join = Callable[[Identity], Authorship]


@pytest.mark.parametrize(
    ("topic", "author"),
    [
        (TOPICS.round, AGGREGATOR),
        (TOPICS.aggregator_state, AGGREGATOR),
        (DOWN, AGGREGATOR),
        (UP, DEVICE),
        (STATE, DEVICE),
        (PROFILE, DEVICE),
    ],
)
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
        (STATE, b""),
        (TOPICS.claim("field", "up"), b'{"a":1}'),
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


def state(status: str, instance: str = "p1") -> bytes:
    return encode(DeviceState(status=status, instance=instance))  # type: ignore[arg-type]


def test_an_old_state_is_not_news(join: Join) -> None:
    device, aggregator = join(DEVICE), join(AGGREGATOR)
    init, ready, training = (device.outgoing(STATE, state(status)) for status in ("init", "ready", "training"))
    assert aggregator.incoming(STATE, init) == state("init")
    assert aggregator.incoming(STATE, training) == state("training")
    assert aggregator.incoming(STATE, training) == state("training")  # brokers deliver again what they keep
    for old in (init, ready):
        with pytest.raises(Outdated, match=r"a later one was heard before, by 0\.\d+ s: it was overtaken, or somebody"):
            aggregator.incoming(STATE, old)
    assert aggregator.incoming(PROFILE, device.outgoing(PROFILE, b'{"a":1}'))  # each topic has an order of its own


def test_what_an_earlier_process_said_is_not_news_whatever_the_clocks_say(join: Join) -> None:
    aggregator, said = join(AGGREGATOR), []
    for step_s in (0.0, 5.0, -86_400.0, 30.0, -1.7e9):
        device = join(DEVICE)
        device._clock = lambda step_s=step_s: max(0.0, now().timestamp() + step_s)  # type: ignore[misc]
        device._begin_session_after(device._memory.session.unix_s)
        for _ in range(3):
            said.append(device.outgoing(STATE, state("ready")))
            assert aggregator.incoming(STATE, said[-1]) == state("ready")
        for old in said[:-3]:
            with pytest.raises(Outdated, match="by a later process"):
                aggregator.incoming(STATE, old)
    aggregator.close()
    restarted = join(AGGREGATOR)
    for old in said[:-1]:
        with pytest.raises(Outdated):
            restarted.incoming(STATE, old)
    assert restarted.incoming(STATE, said[-1])


def test_a_will_speaks_for_the_process_that_left_it(join: Join) -> None:
    device, aggregator = join(DEVICE), join(AGGREGATOR)
    will = device.outgoing(STATE, state("lost"))
    assert join(AGGREGATOR).incoming(STATE, will)  # nothing else was ever heard of it
    for status in ("init", "ready"):
        aggregator.incoming(STATE, device.outgoing(STATE, state(status)))
    for _ in range(2):  # the connection was lost, came back, and was lost again: one will for the whole process
        assert aggregator.incoming(STATE, will) == state("lost")
        aggregator.incoming(STATE, device.outgoing(STATE, state("training")))
    successor = join(DEVICE)
    aggregator.incoming(STATE, successor.outgoing(STATE, state("init", "p2")))
    with pytest.raises(Outdated, match="the will of a process whose successor was heard before"):
        aggregator.incoming(STATE, will)


def test_two_agents_of_one_device_hear_each_other_and_the_one_that_stays_is_believed(
    fleet: FleetDirectory, join: Join, tmp_path: Path
) -> None:
    place = fleet.place(DEVICE)
    files = {"ca": place / "ca.pem", "certificate": place / "certificate.pem", "key": place / "key.pem"}
    aggregator, first = join(AGGREGATOR), join(DEVICE)
    aggregator.incoming(STATE, first.outgoing(STATE, state("training", "p1")))
    for memory, ahead_s in (("copy-1", 3600.0), ("copy-2", -3600.0)):
        second = read_authorship(TOPICS, DEVICE, tmp_path / memory, **files)
        second._clock = lambda ahead_s=ahead_s: now().timestamp() + ahead_s  # type: ignore[misc]
        second._begin_session_after(0)
        claimed = second.outgoing(STATE, state("init", memory))
        assert first.incoming(STATE, claimed)
        objection = first.outgoing(STATE, state("training", "p1"))
        assert second.incoming(STATE, objection)
        if ahead_s > 0:
            assert aggregator.incoming(STATE, claimed)
        assert aggregator.incoming(STATE, objection)


def test_an_aggregator_hears_its_rival_and_no_ghost(fleet: FleetDirectory, join: Join, tmp_path: Path) -> None:
    place, topic = fleet.place(AGGREGATOR), TOPICS.aggregator_state
    files = {"ca": place / "ca.pem", "certificate": place / "certificate.pem", "key": place / "key.pem"}

    def said(who: Authorship, instance: str, status: str = "online") -> bytes:
        return who.outgoing(topic, encode(AggregatorState(status=status, instance=instance)))  # type: ignore[arg-type]

    ghost = said(join(AGGREGATOR), "a0")
    rival = read_authorship(TOPICS, AGGREGATOR, tmp_path / "elsewhere", **files)
    newcomer = join(AGGREGATOR)
    left = said(rival, "b1")
    assert newcomer.incoming(topic, left)  # what the broker keeps of it: to be doubted, not to be overheard
    challenge = said(newcomer, "a1", "stopped")
    assert newcomer.incoming(topic, challenge)
    for old in (left, ghost):
        with pytest.raises(Outdated):
            newcomer.incoming(topic, old)  # nobody can answer the challenge with an old word
    assert rival.incoming(topic, challenge)
    assert newcomer.incoming(topic, said(rival, "b1"))
    assert newcomer.incoming(topic, said(rival, "b0", "lost"))  # so that whoever serves can replace it


def test_a_signature_of_one_kind_is_none_of_another(fleet: FleetDirectory, join: Join) -> None:
    place = fleet.place(DEVICE)
    signer = read_signer(place / "certificate.pem", place / "key.pem")
    plain = signer.sign(STATE, state("ready"), 1.8e9)
    with pytest.raises(MessageError, match="its signature has no session"):
        join(AGGREGATOR).incoming(STATE, plain)
    kept = signer.sign(STATE, state("ready"), 1.8e9, 1.7e9)
    session = b'"session_unix_s":1700000000.000000,'
    assert kept.count(session) == 1
    for changed in (kept.replace(session, b""), kept.replace(b"1700000000.000000", b"1700000001.000000")):
        with pytest.raises(MessageError, match="has signed something else"):
            join(AGGREGATOR).incoming(STATE, changed)


def test_an_observer_checks_and_signs_nothing(fleet: FleetDirectory, join: Join) -> None:
    observer = read_observation(TOPICS, ca=fleet.ca_file)
    device = join(DEVICE)
    said = [device.outgoing(STATE, state(status)) for status in ("init", "ready")]
    assert observer.incoming(STATE, said[1]) == state("ready")
    for wrong, problem in ((said[0], "a later one was heard"), (state("lost"), "it is not signed")):
        with pytest.raises(MessageError, match=problem):
            observer.incoming(STATE, wrong)
    for topic in (STATE, TOPICS.round, TOPICS.aggregator_state):
        assert observer.outgoing(topic, b'{"a":1}') == b'{"a":1}'


def test_a_certificate_of_somebody_else(fleet: FleetDirectory, tmp_path: Path) -> None:
    place = fleet.place(DEVICE)
    files = {"ca": place / "ca.pem", "certificate": place / "certificate.pem", "key": place / "key.pem"}
    with pytest.raises(ConfigError, match=r"is of board-07, and messages are to be signed as role:aggregator"):
        read_authorship(TOPICS, AGGREGATOR, tmp_path / "latest", **files)


def test_certificates_of_another_fleet(fleet: FleetDirectory, tmp_path: Path) -> None:
    place = fleet.place(DEVICE)
    files = {"ca": place / "ca.pem", "certificate": place / "certificate.pem", "key": place / "key.pem"}
    garage = Topics("garage")
    wrong = rf"is of the authority of fleet '{fleet.fleet}', and this is to be a member of 'garage'"
    with pytest.raises(ConfigError, match=wrong):
        read_authorship(garage, DEVICE, tmp_path / "latest", **files)
    with pytest.raises(ConfigError, match=wrong):
        read_observation(garage, ca=fleet.ca_file)


def test_a_board_that_was_set_up_anew_and_is_behind_itself_is_told_the_way_out(
    fleet: FleetDirectory, join: Join, tmp_path: Path
) -> None:
    """Its clock was ahead by years, it was flashed again, and the broker has forgotten what it had said."""
    place, memory = fleet.place(DEVICE), tmp_path / "aggregator-memory" / "latest-words.json"
    signer = read_signer(place / "certificate.pem", place / "key.pem")
    aggregator = join(AGGREGATOR)
    state = encode(DeviceState(status="ready", instance="before"))
    aggregator.incoming(STATE, signer.sign(STATE, state, 2e9, 2e9))
    said = join(DEVICE).outgoing(STATE, encode(DeviceState(status="ready", instance="anew")))
    with pytest.raises(Outdated, match=r"if its author was set up anew, .* and remove latest-words\.json"):
        aggregator.incoming(STATE, said)
    aggregator.close()
    memory.unlink()
    assert join(AGGREGATOR).incoming(STATE, said)


def test_what_is_remembered_of_a_word_has_a_size(fleet: FleetDirectory, join: Join, tmp_path: Path) -> None:
    """A device that names its process by a quarter of a megabyte has nobody write that down every few seconds."""
    aggregator, device = join(AGGREGATOR), join(DEVICE)
    said = encode(DeviceState(status="ready", instance="i" * 200_000))
    with pytest.raises(MessageError):
        decode_device_state(aggregator.incoming(STATE, device.outgoing(STATE, said)))
    aggregator.close()
    assert (tmp_path / "aggregator-memory" / "latest-words.json").stat().st_size < 1000


def test_a_damaged_memory_is_no_licence(fleet: FleetDirectory, join: Join, tmp_path: Path) -> None:
    join(DEVICE).close()
    for file in ("latest-announcement", "latest-session", "latest-words.json"):
        path = tmp_path / "board-07-memory" / file
        path.write_text("not a time")
        with pytest.raises(ConfigError, match=f"{file} cannot be read: .*; without it, what is old could pass for new"):
            join(DEVICE)
        path.unlink()


async def test_over_a_transport_only_the_signed_is_heard(join: Join, caplog: pytest.LogCaptureFixture) -> None:
    broker = InMemoryBroker()
    async with broker.connect("a") as one, broker.connect("d") as two, broker.connect("m") as mallory:
        aggregator: Transport = SignedTransport(one, join(AGGREGATOR))
        device: Transport = SignedTransport(two, join(DEVICE))
        await device.subscribe(DOWN)
        await mallory.publish(DOWN, b'{"forged":1}')
        await aggregator.publish(DOWN, b'{"true":1}')
        heard = []
        async for event in device.events():
            if isinstance(event, Message | Distrusted):
                heard.append(event)
            if isinstance(event, Message):
                break
        why = "it is not signed, and only role:aggregator may say that"
        assert heard == [Distrusted(DOWN, why, outdated=False), Message(DOWN, b'{"true":1}', False)]
        assert f"a message on {DOWN} is not listened to: it is not signed" in caplog.text
        assert device.max_payload_bytes < two.max_payload_bytes
        largest = b'{"a":"' + b"x" * (aggregator.max_payload_bytes - 8) + b'"}'
        assert len(largest) == aggregator.max_payload_bytes
        await aggregator.publish(DOWN, largest)
