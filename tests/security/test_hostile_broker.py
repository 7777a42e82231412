"""A broker that lets an enemy say and hear everything: what is signed from end to end stands, nothing else is heard.

The enemy is an enrolled device for which the rules of a real Mosquitto were lifted: it can do all that the broker's
operator could do without stopping the federation. The aggregator is a real process; the devices are stand-ins behind
the agent's own signatures.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest

from edgefed.protocol.messages.manifest import Manifest, Part, Plan
from edgefed.protocol.messages.retained import (
    AggregatorState,
    DeviceState,
    FederationFinished,
    RoundOpen,
    decode_aggregator_state,
    decode_round,
)
from edgefed.protocol.messages.up import Decline, UpdateOffer
from edgefed.protocol.messages.wire import encode
from edgefed.protocol.records import RoundRecord
from edgefed.protocol.topics import Topics
from edgefed.security import certificates, keys
from edgefed.security.authorship import Authorship, read_authorship
from edgefed.security.identities import AGGREGATOR
from edgefed.security.signatures import Signer, read_signer
from edgefed.transport.base import Message, Transport, Will
from edgefed.transport.signed import SignedTransport, will_as_told
from tests.federation.stand_in import StandIn, federation_toml, make_paper_model
from tests.security.secured import NAME, PATIENCE_S, Ear, Secured, device, listening, now, tls, until

pytestmark = pytest.mark.broker
TOPICS = Topics(NAME)
MALLORY = device("mallory")


def stand_in(secured: Secured, path: Path, model: Path, name: str) -> StandIn:
    def signed(transport: Transport) -> Transport:
        return SignedTransport(transport, authorship(secured, path, name))

    return StandIn(name, model, path, secured.port, tls=tls(secured.fleet.place(device(name))), signed=signed)


def authorship(secured: Secured, path: Path, name: str) -> Authorship:
    place = secured.fleet.place(device(name))
    files = {"ca": place / "ca.pem", "certificate": place / "certificate.pem", "key": place / "key.pem"}
    return read_authorship(TOPICS, device(name), path / f"{name}-memory", **files)


def open_the_rules(secured: Secured) -> None:
    acl = secured.files / "acl"
    acl.write_text(re.sub(r"(?m)^user mallory$", "user mallory\ntopic readwrite #", acl.read_text()))
    secured.broker.reload()


@contextlib.contextmanager
def aggregator(secured: Secured, path: Path, model: Path, *, devices: int) -> Iterator[Path]:
    """Runs an aggregator, which has to come to its end by itself, and yields its log; federation.toml is in `path`."""
    place = secured.fleet.place(AGGREGATOR)
    files = {**tls(place), "tls_crl": str(place / "crl.pem")}
    files["tls_certificate"] = files.pop("tls_cert")
    lines = 'host = "127.0.0.1"\nsigned = true\n' + "".join(f'{key} = "{value}"\n' for key, value in files.items())
    selection = f"expected_devices = {devices}\nquorum = {devices}\n"
    config, log = path / "federation.toml", path / "aggregator.log"
    config.write_text(federation_toml(model, path / "run", secured.port, selection=selection, broker=lines))
    with log.open("wb") as file:
        command = [sys.executable, "-m", "edgefed", "-v", "aggregator", "--config", str(config)]
        process = subprocess.Popen(command, stdout=file, stderr=file)
        try:
            yield log
            assert process.wait(PATIENCE_S) == 0, log.read_text()
        finally:
            process.kill()
            process.wait()


async def attack(mallory: Transport, own: Signer, genuine: bytes) -> None:
    """Says what a hostile broker could say, in everybody's name."""
    announced = decode_round(genuine)
    assert isinstance(announced, RoundOpen)
    worse = msgspec.structs.replace(announced, training=msgspec.structs.replace(announced.training, learning_rate=9.0))
    poisoned = Manifest(parts=[Part(sha256="0" * 64, size_bytes=1000, rank_hi=2)])
    swapped = msgspec.structs.replace(announced, manifest=poisoned)
    for forged in (worse, swapped, FederationFinished(run=announced.run, round=announced.round, reason="go home")):
        payload = encode(forged)
        await mallory.publish(TOPICS.round, payload, retain=True)  # unsigned
        await mallory.publish(TOPICS.round, own.sign(TOPICS.round, payload, 4e9), retain=True)  # by a device
        signature = genuine[genuine.rindex(b',"signature"') :]
        await mallory.publish(TOPICS.round, payload[:-1] + signature, retain=True)  # by the aggregator, for another
    down = encode(Decline(run=announced.run, round=announced.round, reason="nonsense"))
    await mallory.publish(TOPICS.device("dev-0", "down"), down)
    await mallory.publish(TOPICS.device("dev-0", "down"), genuine)  # the right author, the wrong topic
    offer = forged_offer(announced)
    for name in ("dev-0", "dev-2"):
        for word in (offer, Decline(run=announced.run, round=announced.round, reason="ill")):
            topic = TOPICS.device(name, "up")
            await mallory.publish(topic, encode(word))
            await mallory.publish(topic, own.sign(topic, encode(word), 1.8e9))
    await mallory.publish(TOPICS.round, genuine, retain=True)  # what it had kept: the federation goes on


def forged_offer(announced: RoundOpen) -> UpdateOffer:
    record = RoundRecord(
        device="dev-0", round=announced.round, rank=2, held_rank=2, quantization="fp32", examples=10**9
    )
    return UpdateOffer(
        run=announced.run,
        round=announced.round,
        sha256="0" * 64,
        size_bytes=1000,
        plan=Plan(rank=2, held_rank=2, quantization="fp32"),
        fingerprint=announced.model.fingerprint,
        model=announced.model.name,
        examples=10**9,
        record=record,
    )


def test_a_federation_over_a_broker_that_lies(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    secured = Secured(tmp_path)
    model = make_paper_model(tmp_path / "model")
    for name in ("dev-0", "dev-1", "dev-2", "mallory"):
        secured.enroll(device(name))
    with secured.running():
        open_the_rules(secured)
        with aggregator(secured, tmp_path, model, devices=3) as log:
            asyncio.run(federate(secured, [stand_in(secured, tmp_path, model, f"dev-{number}") for number in range(3)]))
    said = log.read_text()
    for refused in ("it is not signed, and only dev-0 may", "it is signed by 'mallory', and only dev-2 may"):
        assert refused in said
    for refused in (
        "it is not signed, and only role:aggregator may",
        "it is signed by 'mallory', and only role:aggregator may",
        "role:aggregator has signed something else",
        "older than an announcement that was obeyed",
    ):
        assert refused in caplog.text
    assert "1000000000" not in (tmp_path / "run" / "history.jsonl").read_text()


async def federate(secured: Secured, honest: list[StandIn]) -> None:
    async with secured.connect(MALLORY) as mallory, listening(mallory) as ear:
        place = secured.fleet.place(MALLORY)
        await mallory.subscribe("#")
        taking_part = [asyncio.create_task(one.take_part()) for one in honest[:2]]
        await until(lambda: any(message.topic == TOPICS.round for message in ear.heard))
        first = next(message.payload for message in ear.heard if message.topic == TOPICS.round)
        await attack(mallory, read_signer(place / "certificate.pem", place / "key.pem"), first)

        def play_again(message: RoundOpen) -> None:
            if message.round == 3:
                replays.append(asyncio.ensure_future(mallory.publish(TOPICS.round, first)))

        replays: list[asyncio.Future[None]] = []
        last = honest[2].take_part(on_accepted=play_again)
        await asyncio.wait_for(asyncio.gather(*taking_part, last), PATIENCE_S)
        assert replays
        await asyncio.gather(*replays)
    for one in honest:
        assert [word.outcome for word in one.acknowledged] == ["counted"] * 4  # three rounds and the evaluation
        assert one.refused == []
        assert one.finished is not None
        assert one.finished.reason != "go home"


def ended(secured: Secured, name: str) -> Signer:
    """Returns who signs with a certificate that the authority has issued, and that counts no more."""
    authority = secured.fleet._authority()
    begin = authority.certificate.not_valid_before_utc + timedelta(seconds=1)
    key = keys.new_key("device")
    return Signer(certificates.issue(authority, device(name), key.public_key(), days=0, now=begin), key)


@contextlib.asynccontextmanager
async def life(secured: Secured, seal: Authorship, instance: str, *said: str) -> AsyncIterator[None]:
    """Says of dev-0 what an agent says of itself, and stays connected for the length of the block."""
    state_topic, profile_topic = TOPICS.device("dev-0", "state"), TOPICS.device("dev-0", "profile")
    async with secured.connect(device("dev-0")) as connected:
        transport = SignedTransport(connected, seal)
        for status in said:
            state = DeviceState(status=status, instance=instance)  # type: ignore[arg-type]
            await transport.publish(state_topic, encode(state), retain=True)
            await transport.publish(profile_topic, b'{"board":"%s"}' % instance.encode(), retain=True)
        yield


async def lie_about_states(mallory: Transport, secured: Secured, old: list[Message]) -> tuple[int, int]:
    """Says of others what they are not, and plays again what they were; returns how often each."""
    own = read_signer(*(secured.fleet.place(MALLORY) / file for file in ("certificate.pem", "key.pem")))
    gone = read_signer(*(secured.fleet.place(device("thief")) / file for file in ("certificate.pem", "key.pem")))
    lost = encode(DeviceState(status="lost", instance="p2"))
    over = encode(AggregatorState(status="finished", instance="forged"))
    decline = encode(Decline(run="any", round=1, reason="ill"))
    state, profile = (TOPICS.device("dev-0", channel) for channel in ("state", "profile"))  # type: ignore[arg-type]
    thiefs = [TOPICS.device("thief", channel) for channel in ("up", "state")]  # type: ignore[arg-type]
    forged = [
        (state, lost),
        (state, own.sign(state, lost, 4e9, 4e9)),
        (state, old[-1].payload.replace(b"p1", b"p2")),
        (profile, b'{"board":"better"}'),
        (profile, own.sign(profile, b'{"board":"better"}', 4e9, 4e9)),
        (TOPICS.aggregator_state, over),
        (TOPICS.aggregator_state, own.sign(TOPICS.aggregator_state, over, 4e9, 4e9)),
        *((topic, gone.sign(topic, lost, 4e9, 4e9)) for topic in thiefs),
        (TOPICS.device("dev-1", "up"), ended(secured, "dev-1").sign(TOPICS.device("dev-1", "up"), decline, 1.8e9)),
    ]
    for topic, payload in forged:
        await mallory.publish(topic, payload, retain=True)
    for message in old:
        await mallory.publish(message.topic, message.payload, retain=True)
    return len(forged), len(old)


def test_states_over_a_broker_that_lies(tmp_path: Path) -> None:
    """Forged, replayed, and signed by whom nobody should hear any more: counted, shown, and without effect."""
    secured = Secured(tmp_path)
    model = make_paper_model(tmp_path / "model")
    for name in ("dev-0", "dev-1", "mallory", "thief"):
        secured.enroll(device(name))
    with secured.running():
        open_the_rules(secured)
        secured.fleet.revoke(device("thief"), now=now())  # and the broker does not hear of it
        with aggregator(secured, tmp_path, model, devices=2) as log:
            asyncio.run(live_through_lies(secured, tmp_path, model))
    said = log.read_text()
    for refused in (
        "it is not signed, and only dev-0 may say that",
        "it is signed by 'mallory', and only dev-0 may say that",
        "dev-0 has signed something else",
        "it is signed by 'mallory', and only role:aggregator may say that",
        "it is signed with a certificate of thief that was revoked on",
        "it is signed with a certificate that counts from",
        "a later one was heard before, by a later process",
        "it is the will of a process whose successor was heard before",
    ):
        assert refused in said


def latest(topic: str, ear: Ear) -> bytes:
    return next(message.payload for message in reversed(ear.heard) if message.topic == topic)


async def live_through_lies(secured: Secured, path: Path, model: Path) -> None:
    honest = [stand_in(secured, path, model, f"dev-{number}") for number in range(2)]
    mine = [TOPICS.device("dev-0", "state"), TOPICS.device("dev-0", "profile")]

    def shown() -> AggregatorState:
        said = [message.payload for message in ear.heard if message.topic == TOPICS.aggregator_state]
        # What Mallory said there herself is no answer.
        true = [payload for payload in said if b'"instance":"forged"' not in payload]
        return decode_aggregator_state(true[-1]) if true else AggregatorState(status="lost", instance="")

    async with secured.connect(MALLORY) as mallory, listening(mallory) as ear:
        await mallory.subscribe("#")
        seal = authorship(secured, path, "dev-0")
        will = will_as_told(Will(mine[0], encode(DeviceState(status="lost", instance="p1"))), seal)
        async with life(secured, seal, "p1", "ready", "disconnected"):
            pass
        await until(lambda: sum(message.topic in mine for message in ear.heard) == 4)
        old = [message for message in ear.heard if message.topic in mine]
        old.append(Message(will.topic, will.payload))
        taking_part = asyncio.create_task(honest[0].take_part())
        await until(lambda: shown().joined == 1)
        async with life(secured, authorship(secured, path, "dev-0"), "p2", "ready"):
            counts = await lie_about_states(mallory, secured, old)
            await until(lambda: (shown().distrusted, shown().outdated) == counts)
        status = shown()
        await until(lambda: latest(TOPICS.aggregator_state, ear).count(b'"instance":"forged"') == 0)
        assert {one.device for one in status.refusals} <= {"dev-0", "dev-1", "thief", "the aggregator"}
        assert (status.status, status.joined, status.round) == ("online", 1, 1)
        await asyncio.wait_for(asyncio.gather(taking_part, honest[1].take_part()), PATIENCE_S)
    for one in honest:
        assert [word.outcome for word in one.acknowledged] == ["counted"] * 4  # three rounds and the evaluation
