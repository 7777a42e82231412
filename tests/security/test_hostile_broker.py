"""A broker that lets an enemy say and hear everything: what is signed from end to end stands, nothing else is heard.

The enemy is an enrolled device for which the rules of a real Mosquitto were lifted: it can do all that the broker's
operator could do without stopping the federation. The aggregator is a real process; the devices are stand-ins behind
the agent's own signatures.
"""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from edgefed.protocol.messages.manifest import Manifest, Part, Plan
from edgefed.protocol.messages.retained import FederationFinished, RoundOpen, decode_round
from edgefed.protocol.messages.up import Decline, UpdateOffer
from edgefed.protocol.messages.wire import encode
from edgefed.protocol.records import RoundRecord
from edgefed.protocol.topics import Topics
from edgefed.security.authorship import read_authorship
from edgefed.security.identities import AGGREGATOR
from edgefed.security.signatures import Signer, read_signer
from edgefed.transport.base import Transport
from edgefed.transport.signed import SignedTransport
from tests.federation.stand_in import StandIn, federation_toml, make_paper_model
from tests.security.secured import NAME, PATIENCE_S, Secured, device, listening, tls, until

pytestmark = pytest.mark.broker
TOPICS = Topics(NAME)
MALLORY = device("mallory")


def stand_in(secured: Secured, path: Path, model: Path, name: str) -> StandIn:
    place = secured.fleet.place(device(name))

    def signed(transport: Transport) -> Transport:
        files = {"ca": place / "ca.pem", "certificate": place / "certificate.pem", "key": place / "key.pem"}
        return SignedTransport(transport, read_authorship(TOPICS, device(name), path / f"{name}-memory", **files))

    return StandIn(name, model, path, secured.port, tls=tls(place), signed=signed)


def open_the_rules(secured: Secured) -> None:
    acl = secured.files / "acl"
    acl.write_text(re.sub(r"(?m)^user mallory$", "user mallory\ntopic readwrite #", acl.read_text()))
    secured.broker.reload()


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
    files = tls(secured.fleet.place(AGGREGATOR))
    files["tls_certificate"] = files.pop("tls_cert")
    lines = 'host = "127.0.0.1"\nsigned = true\n' + "".join(f'{key} = "{value}"\n' for key, value in files.items())
    selection = "expected_devices = 3\nquorum = 3\n"
    config, log = tmp_path / "federation.toml", tmp_path / "aggregator.log"
    config.write_text(federation_toml(model, tmp_path / "run", secured.port, selection=selection, broker=lines))
    with secured.running(), log.open("wb") as file:
        open_the_rules(secured)
        command = [sys.executable, "-m", "edgefed", "-v", "aggregator", "--config", str(config)]
        process = subprocess.Popen(command, stdout=file, stderr=file)
        try:
            asyncio.run(federate(secured, [stand_in(secured, tmp_path, model, f"dev-{number}") for number in range(3)]))
            assert process.wait(PATIENCE_S) == 0, log.read_text()
        finally:
            process.kill()
            process.wait()
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
