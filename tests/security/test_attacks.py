"""What members and strangers try against a real Mosquitto with the generated configuration, while a federation goes on.

The federation's aggregator is a real process; its devices are stand-ins, all of them over mutual TLS. Two of three have
joined the first round when the attacks begin; the third comes when they are over, and only then can the rounds go on.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from edgefed.errors import BrokerRefused, BrokerUnreachable
from edgefed.protocol.messages.retained import AggregatorState, RoundOpen, decode_round
from edgefed.protocol.messages.wire import encode
from edgefed.protocol.topics import Topics
from edgefed.security import certificates, keys
from edgefed.security.broker_password import LOCAL_AGGREGATOR, broker_password
from edgefed.security.fleet_directory import FleetDirectory, Lifetimes
from edgefed.security.identities import AGGREGATOR, Identity
from edgefed.security.signing_requests import make_request
from edgefed.transport.base import Will
from tests.federation.stand_in import StandIn, federation_toml, make_paper_model
from tests.security.secured import (
    NAME,
    PATIENCE_S,
    Secured,
    connect_packet,
    device,
    listening,
    now,
    publish_packet,
    tls,
    until,
)

pytestmark = pytest.mark.broker
TOPICS = Topics(NAME)
MALLORY, VICTIM = device("mallory"), device("victim")
OBSERVER = Identity("observer", "desk")
HONEST = ["dev-0", "dev-1", "dev-2"]


class Federation:
    """An honest federation over mutual TLS; its devices run in a thread of their own."""

    def __init__(self, secured: Secured, path: Path) -> None:
        model = make_paper_model(path / "model")
        self.run = path / "run"
        files = tls(secured.fleet.place(AGGREGATOR))
        files["tls_certificate"] = files.pop("tls_cert")
        lines = 'host = "127.0.0.1"\n' + "".join(f'{key} = "{value}"\n' for key, value in files.items())
        selection = "expected_devices = 3\nquorum = 3\n"
        config = path / "federation.toml"
        config.write_text(federation_toml(model, self.run, secured.port, selection=selection, broker=lines))
        self.log = path / "aggregator.log"
        with self.log.open("ab") as log:
            command = [sys.executable, "-m", "edgefed", "-v", "aggregator", "--config", str(config)]
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        self.devices = [
            StandIn(name, model, path, secured.port, examples=10, tls=tls(secured.fleet.place(device(name))))
            for name in HONEST
        ]
        self._go_on = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._take_part()))
        self._thread.start()

    async def _take_part(self) -> None:
        early = [asyncio.create_task(one.take_part()) for one in self.devices[:2]]
        await asyncio.to_thread(self._go_on.wait)
        if self.process.poll() is None:
            await asyncio.wait_for(asyncio.gather(*early, self.devices[2].take_part()), PATIENCE_S)
        for task in early:
            task.cancel()
        await asyncio.gather(*early, return_exceptions=True)

    def finish(self) -> None:
        """Lets the third device come, and waits for the end."""
        self._go_on.set()
        self._thread.join()

    def kill(self) -> None:
        """Ends what is still going on."""
        self.process.kill()
        self.process.wait()
        self.finish()


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    arena = Secured(tmp_path_factory.mktemp("secured"))
    for name in HONEST:
        arena.enroll(device(name))
    arena.enroll(MALLORY)
    arena.enroll(VICTIM)
    arena.enroll(OBSERVER)
    arena.enroll(Identity("claim", "red-7"))
    with arena.running():
        yield arena


@pytest.fixture(scope="module", autouse=True)
def federation(secured: Secured, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    honest = Federation(secured, tmp_path_factory.mktemp("federation"))
    try:
        asyncio.run(announced(secured))
        yield honest
    finally:
        honest.kill()


async def announced(secured: Secured) -> RoundOpen:
    """Returns the round that the broker keeps, as a newcomer hears of it."""
    async with secured.connect(OBSERVER) as transport, listening(transport) as ear:
        await transport.subscribe(TOPICS.round)
        await until(lambda: ear.heard)
        message = decode_round(ear.heard[0].payload)
        assert isinstance(message, RoundOpen)
        return message


FORBIDDEN = [
    TOPICS.round,
    TOPICS.aggregator_state,
    TOPICS.blob("f" * 64),
    TOPICS.device("victim", "state"),
    TOPICS.device("victim", "profile"),
    TOPICS.device("victim", "up"),
    TOPICS.device("victim", "down"),
    TOPICS.device("mallory", "down"),
    TOPICS.device("nobody", "up"),
    TOPICS.claim("red-7", "up"),
    TOPICS.claim("mallory", "up"),
    "edgefed/v1/other/round",
    "$CONTROL/dynamic-security/v1",
    "$SYS/broker/uptime",
    "anything/else",
]


@pytest.mark.parametrize("topic", FORBIDDEN)
async def test_a_device_cannot_speak_for_others(secured: Secured, topic: str) -> None:
    async with secured.connect(MALLORY) as transport:
        with pytest.raises(BrokerRefused, match="Not authorized"):
            await transport.publish(topic, b"forged", retain=True)
        await transport.publish(TOPICS.device("mallory", "profile"), b"{}")  # and its own work


async def test_a_forgery_reaches_nobody_where_the_broker_cannot_say_no(secured: Secured) -> None:
    """MQTT 3.1.1 acknowledges what it discards."""
    before = await announced(secured)
    async with secured.spy() as ear, secured.connect(MALLORY, protocol="3.1.1") as transport:
        for topic in FORBIDDEN:
            if not topic.startswith("$"):
                await transport.publish(topic, b"forged", retain=True)
        await transport.publish(TOPICS.device("mallory", "up"), b"the last word")
        await until(lambda: b"the last word" in ear.payloads)
        assert b"forged" not in ear.payloads
    assert await announced(secured) == before


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
async def test_a_device_hears_what_is_meant_for_it_whatever_it_subscribes_to(secured: Secured, protocol: str) -> None:
    filters = ["#", "+/#", f"{TOPICS.root}/#", TOPICS.every_device("up"), TOPICS.every_device("down"), "$SYS/#"]
    shared = ["$share/m/#", f"$share/m/{TOPICS.every_device('up')}"] if protocol == "5" else []
    async with (
        secured.connect(MALLORY, protocol=protocol) as mallory,
        listening(mallory) as ear,
        secured.connect(VICTIM) as victim,
        secured.connect(AGGREGATOR) as aggregator,
    ):
        for topic_filter in filters + shared:
            try:
                await mallory.subscribe(topic_filter)
            except BrokerRefused:
                continue
        for _ in range(3):
            await victim.publish(TOPICS.device("victim", "up"), b"secret")
            await victim.publish(TOPICS.device("victim", "state"), b"secret")
            await victim.publish(TOPICS.device("victim", "profile"), b"secret", retain=True)
            await aggregator.publish(TOPICS.device("victim", "down"), b"secret")
            await aggregator.publish(TOPICS.claim("red-7", "down"), b"secret")
        await aggregator.publish(TOPICS.device("mallory", "down"), b"for mallory")
        await until(lambda: b"for mallory" in ear.payloads)
        mine = re.compile(rf"{TOPICS.root}/(round|blob/\w+|aggregator/state|device/mallory/(state|down))")
        assert [message.topic for message in ear.heard if not mine.fullmatch(message.topic)] == []
        assert b"secret" not in ear.payloads


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
async def test_a_will_has_no_more_rights_than_its_owner(secured: Secured, protocol: str) -> None:
    before = await announced(secured)
    for topic in (TOPICS.device("victim", "state"), TOPICS.aggregator_state, TOPICS.round):
        async with secured.spy() as ear:
            try:
                async with secured.connect(MALLORY, will=Will(topic, b"forged"), protocol=protocol) as transport:
                    transport._connection.abort("without a word")  # type: ignore[attr-defined]
            except BrokerRefused:
                pass
            async with secured.connect(MALLORY) as transport:
                await transport.publish(TOPICS.device("mallory", "up"), b"the last word")
            await until(lambda ear=ear: b"the last word" in ear.payloads)
            assert b"forged" not in ear.payloads
    assert await announced(secured) == before


async def test_a_name_in_the_packet_counts_for_nothing(secured: Secured) -> None:
    async with secured.connect(MALLORY, username="role:aggregator", password="x") as transport:
        with pytest.raises(BrokerRefused, match="Not authorized"):
            await transport.publish(TOPICS.round, b"forged")
        await transport.publish(TOPICS.device("mallory", "up"), b"{}")


async def test_without_its_password_the_local_port_lets_nobody_in(secured: Secured) -> None:
    wrong: list[dict[str, str | None]] = [
        {"password": "a guess"},
        {"password": None},
        {"username": None, "password": None},
        *({"username": name} for name in ("role:aggregator", "role", "mallory", "dev-0", "")),
    ]
    for words in wrong:
        with pytest.raises((BrokerRefused, BrokerUnreachable)):
            async with secured.connect_locally(**words):
                pass


async def test_the_password_counts_for_nothing_at_the_port_of_everybody(secured: Secured) -> None:
    password = broker_password(secured.fleet, now())
    async with secured.connect(MALLORY, username=LOCAL_AGGREGATOR, password=password) as transport:
        with pytest.raises(BrokerRefused, match="Not authorized"):
            await transport.publish(TOPICS.round, b"forged")


async def test_at_the_local_port_the_aggregator_is_the_aggregator_and_no_more(secured: Secured) -> None:
    before = await announced(secured)
    async with secured.connect_locally() as transport, secured.connect(VICTIM) as victim, listening(victim) as ear:
        down = TOPICS.device("victim", "down")
        await victim.subscribe(down)
        await transport.publish(down, b"heard")
        await until(lambda: b"heard" in ear.payloads)
        with pytest.raises(BrokerRefused, match="Not authorized"):
            await transport.publish(TOPICS.device("victim", "up"), b"forged")
    assert await announced(secured) == before


async def test_no_client_id_can_be_stolen(secured: Secured) -> None:
    """Whoever connects with another's client id ends that connection; so nobody may be able to know one."""
    log = secured.broker.log_path.read_text()
    known = re.findall(rf" as ((?:{NAME}-aggregator|stand-in-dev-\d)-\w+) \(p\d", log)
    assert len(known) >= 3
    async with secured.spy() as spy, secured.connect(OBSERVER) as transport, listening(transport) as ear:
        for topic_filter in (TOPICS.round, TOPICS.aggregator_state, TOPICS.every_device("state")):
            await transport.subscribe(topic_filter)
        for guess in (f"{NAME}-aggregator", f"{NAME}-dev-0", "dev-0", "role:aggregator"):
            async with secured.connect(MALLORY, client_id=guess) as mallory:
                await mallory.publish(TOPICS.device("mallory", "up"), guess.encode())
            await until(lambda guess=guess: guess.encode() in spy.payloads)
        await until(lambda: any(message.topic == TOPICS.aggregator_state for message in ear.heard))
        said = b"".join(ear.payloads)
        for name in known:
            assert name.encode() not in said
            assert name.rpartition("-")[2].encode() not in said
        for message in spy.heard:
            if message.topic == TOPICS.aggregator_state:
                assert b'"lost"' not in message.payload


def foreign(tmp_path: Path, secured: Secured) -> Path:
    """Returns a certificate of another authority that calls itself the same, with our authority to trust."""
    other = FleetDirectory.create(tmp_path / "o", NAME, hosts=["b"], lifetimes=Lifetimes(), now=now())
    place = other.enroll(VICTIM, days=30, now=now())
    (place / "ca.pem").write_bytes(secured.fleet.ca_file.read_bytes())
    return place


def expired(tmp_path: Path, secured: Secured) -> Path:
    authority = secured.fleet._authority()
    key = keys.new_key("device")
    begin = authority.certificate.not_valid_before_utc + timedelta(seconds=1)
    made = certificates.issue(authority, VICTIM, key.public_key(), days=0, now=begin + timedelta(minutes=1))
    return bundle(tmp_path, secured, certificates.certificate_pem(made), keys.key_pem(key))


def not_yet(tmp_path: Path, secured: Secured) -> Path:
    key = keys.new_key("device")
    later = now() + timedelta(days=3)
    made = certificates.issue(secured.fleet._authority(), VICTIM, key.public_key(), days=9, now=later)
    return bundle(tmp_path, secured, certificates.certificate_pem(made), keys.key_pem(key))


def revoked(tmp_path: Path, secured: Secured) -> Path:
    place = secured.enroll(device("gone"))
    secured.fleet.revoke(device("gone"), now=now())
    secured.write()
    secured.broker.reload()
    return place


def made_by_a_member(tmp_path: Path, secured: Secured) -> Path:
    """Returns a certificate for the aggregator that a device has signed, with the device's own behind it."""
    signing = ec.generate_private_key(ec.SECP256R1())
    (tmp_path / "mine.csr").write_bytes(make_request(signing, MALLORY))
    place = secured.fleet.enroll(
        MALLORY, days=9, now=now(), renew=True, request=tmp_path / "mine.csr", output=tmp_path / "mine"
    )
    mine = certificates.Authority(certificates.read_certificate((place / "certificate.pem").read_bytes(), ""), signing)
    key = keys.new_key("device")
    made = certificates.issue(mine, AGGREGATOR, key.public_key(), days=1, now=now())
    chain = certificates.certificate_pem(made) + certificates.certificate_pem(mine.certificate)
    return bundle(tmp_path, secured, chain, keys.key_pem(key))


def the_brokers_own(tmp_path: Path, secured: Secured) -> Path:
    return secured.fleet.path / "broker"


def bundle(tmp_path: Path, secured: Secured, certificate: bytes, key: bytes) -> Path:
    (tmp_path / "ca.pem").write_bytes(secured.fleet.ca_file.read_bytes())
    (tmp_path / "certificate.pem").write_bytes(certificate)
    (tmp_path / "key.pem").write_bytes(key)
    (tmp_path / "key.pem").chmod(0o600)
    return tmp_path


@pytest.mark.parametrize(
    ("make", "hint"),
    [
        (foreign, "is not of the fleet's authority in .*: it is another fleet's"),
        (expired, r"our certificate .* counts from .*, and this machine's clock says .*: is the clock right\?"),
        (not_yet, r"our certificate .* counts from .*, and this machine's clock says .*: is the clock right\?"),
        (revoked, "may have been revoked, or the broker's clock may be wrong"),
        (made_by_a_member, "is not of the fleet's authority"),
        (the_brokers_own, "is not a member's, but a broker's or an authority's"),
    ],
)
async def test_a_certificate_that_does_not_count(secured: Secured, tmp_path: Path, make: object, hint: str) -> None:
    assert callable(make)
    place = make(tmp_path, secured)
    client_id = secrets.token_hex(8)
    for protocol in ("5", "3.1.1"):
        with pytest.raises(BrokerUnreachable, match=hint):
            async with secured.connect(place, client_id=client_id, protocol=protocol):
                pass
    assert client_id not in secured.broker.log_path.read_text()


async def test_a_client_without_a_certificate(secured: Secured) -> None:
    with pytest.raises(BrokerUnreachable, match="the broker may want a certificate of its clients"):
        async with secured.connect(VICTIM, tls_cert=None, tls_key=None):
            pass


async def test_a_connection_that_outlives_its_certificate_has_no_rights_left(secured: Secured) -> None:
    short = device("short")
    secured.enroll(short)
    secured.write()
    secured.broker.reload()
    async with secured.connect(short) as transport, listening(transport) as ear:
        await transport.subscribe(TOPICS.device("short", "down"))
        await transport.publish(TOPICS.device("short", "up"), b"{}")
        secured.fleet.revoke(short, now=now())
        secured.write()
        secured.broker.reload()
        with pytest.raises(BrokerRefused, match="Not authorized"):
            await transport.publish(TOPICS.device("short", "up"), b"{}")
        async with secured.connect(AGGREGATOR) as aggregator:
            await aggregator.publish(TOPICS.device("short", "down"), b"secret")
            async with secured.spy() as spy, secured.connect(MALLORY) as other:
                await other.publish(TOPICS.device("mallory", "up"), b"a moment later")
                await until(lambda: b"a moment later" in spy.payloads)
        assert ear.payloads == []


async def test_who_is_not_entered_at_the_broker_has_no_rights(secured: Secured) -> None:
    early = secured.enroll(device("early"))
    async with secured.connect(early) as transport:
        with pytest.raises(BrokerRefused, match="Not authorized"):
            await transport.publish(TOPICS.device("early", "up"), b"{}")


async def test_an_observer_only_looks_and_a_claim_only_claims(secured: Secured) -> None:
    async with secured.connect(OBSERVER) as transport:
        for topic in (TOPICS.round, TOPICS.device("desk", "up"), TOPICS.device("victim", "state")):
            with pytest.raises(BrokerRefused, match="Not authorized"):
                await transport.publish(topic, b"forged")
    async with (
        secured.connect(Identity("claim", "red-7")) as claim,
        listening(claim) as ear,
        secured.connect(AGGREGATOR) as aggregator,
        listening(aggregator) as answers,
    ):
        await aggregator.subscribe(TOPICS.claim("+", "up"))
        await claim.subscribe("#")
        await claim.publish(TOPICS.claim("red-7", "up"), b"here I am")
        await until(lambda: answers.payloads)
        await aggregator.publish(TOPICS.claim("red-8", "down"), b"secret")
        await aggregator.publish(TOPICS.claim("red-7", "down"), b"welcome")
        await until(lambda: b"welcome" in ear.payloads)
        assert ear.payloads == [b"welcome"]
        for topic in (TOPICS.claim("red-8", "up"), TOPICS.device("red-7", "up"), TOPICS.round):
            with pytest.raises(BrokerRefused, match="Not authorized"):
                await claim.publish(topic, b"forged")


def test_plain_text_gets_no_answer(secured: Secured) -> None:
    with socket.create_connection(("127.0.0.1", secured.port), timeout=10) as plain:
        plain.sendall(connect_packet("plain"))
        answer = b""
        try:
            while part := plain.recv(100):
                answer += part
        except ConnectionResetError:
            pass
    assert answer[:1] != b"\x20"  # CONNACK; what comes is TLS's own alert, or nothing
    assert " as plain " not in secured.broker.log_path.read_text()


@pytest.mark.parametrize(("version", "accepted"), [("-tls1_1", False), ("-tls1_2", True), ("-tls1_3", True)])
def test_old_versions_of_tls_are_refused(secured: Secured, version: str, accepted: bool) -> None:
    place = secured.fleet.place(MALLORY)
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{secured.port}", version, "-cipher", "ALL:@SECLEVEL=0"]
    files = ["-CAfile", place / "ca.pem", "-cert", place / "certificate.pem", "-key", place / "key.pem"]
    done = subprocess.run([*command, *files], input=b"", capture_output=True, check=False, timeout=PATIENCE_S)
    assert (b"Verify return code: 0 (ok)" in done.stdout and b"Cipher is (NONE)" not in done.stdout) == accepted


def ends(connection: ssl.SSLSocket, packet: bytes) -> bool:
    """Whether a broker closes a connection over a packet; a timeout says that it did not."""
    try:
        connection.sendall(packet)
        return connection.recv(1000) == b""
    except TimeoutError:
        return False
    except OSError:
        return True


@pytest.mark.parametrize("kind", ["publish", "never-ending"])
def test_an_oversized_packet_ends_its_own_connection_only(secured: Secured, kind: str) -> None:
    with secured.raw(MALLORY) as connection:
        connection.sendall(connect_packet(f"big-{kind}"))
        assert connection.recv(4) == b"\x20\x02\x00\x00"
        packet = publish_packet(TOPICS.device("mallory", "up"), 300_000)
        if kind == "never-ending":
            packet = b"\x30\xff\xff\xff\x7f" + bytes(1000)  # 256 MiB are announced
        assert ends(connection, packet)
    with secured.raw(MALLORY) as connection:  # the broker goes on
        connection.sendall(connect_packet("small"))
        assert connection.recv(4) == b"\x20\x02\x00\x00"


async def test_a_retained_forgery_of_an_old_life_is_corrected(secured: Secured) -> None:
    """The will of an aggregator that lost power comes after its successor has said that it is there."""
    async with secured.connect(AGGREGATOR) as transport, listening(transport) as ear:
        await transport.subscribe(TOPICS.aggregator_state)
        lost = encode(AggregatorState(status="lost", instance=""))
        await transport.publish(TOPICS.aggregator_state, lost, retain=True)
        await until(lambda: lost in ear.payloads and b'"online"' in ear.payloads[-1])


def test_the_federation_ends_as_if_nothing_had_been(federation: Federation) -> None:
    assert federation.process.poll() is None, federation.log.read_text()
    federation.finish()
    assert federation.process.wait(PATIENCE_S) == 0, federation.log.read_text()
    for one in federation.devices:
        assert [word.outcome for word in one.acknowledged] == ["counted"] * 4  # three rounds and the evaluation
        assert one.refused == []
    assert len((federation.run / "history.jsonl").read_text().splitlines()) == 4
