"""Boards that enroll from the field, over a real Mosquitto with the generated configuration."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgefed.agent.enrollment import enroll_board, is_enrolled
from edgefed.agent.options import AgentOptions
from edgefed.cli.fleet_claims import allow_only
from edgefed.config import read_agent
from edgefed.coordinator.admitting import Admitting
from edgefed.errors import BrokerRefused, ConfigError, NotAdmitted
from edgefed.protocol.messages.claims import Admitted, Claim, ClaimAnswer, ClaimRefused, decode_claim_answer
from edgefed.protocol.messages.wire import encode
from edgefed.protocol.topics import Topics
from edgefed.security import certificates, keys, tokens
from edgefed.security.admissions import Admissions, Candidate
from edgefed.security.fleet_directory import FleetDirectory, Lifetimes
from edgefed.security.identities import AGGREGATOR, Identity
from edgefed.security.signatures import read_signer
from edgefed.security.signing_requests import make_request
from edgefed.security.tokens import TokenFile
from tests.security.secured import NAME, PATIENCE_S, Secured, device, listening, now, until

pytestmark = pytest.mark.broker
TOPICS = Topics(NAME)
FIELD = Identity("claim", "field")
UP, DOWN = TOPICS.claim("field", "up"), TOPICS.claim("field", "down")
AGENT = """\
device = "{name}"
fleet = "{fleet}"
state = "state"
[broker]
host = "127.0.0.1"
port = {port}
tls_ca = "secrets/ca.pem"
tls_certificate = "secrets/certificate.pem"
tls_key = "secrets/key.pem"
signed = true
[data]
path = "data.jsonl"
[profile]
measure = "quick"
"""


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    arena = Secured(tmp_path_factory.mktemp("secured"))
    arena.enroll(FIELD)
    arena.enroll(Identity("claim", "cellar"))
    arena.enroll(device("victim"))
    arena.enroll(Identity("observer", "desk"))
    with arena.running():
        yield arena


def token_for(secured: Secured, pattern: str, hours: float = 1) -> TokenFile:
    expires = now() + timedelta(hours=hours)
    return Admissions(secured.fleet).give_token(pattern, FIELD, expires=expires, now=now(), days=30)


def board(secured: Secured, path: Path, name: str, fleet: str = NAME) -> AgentOptions:
    path.mkdir(exist_ok=True)
    (path / "data.jsonl").write_text('{"source": "a b c", "target": "d"}\n')
    (path / "agent.toml").write_text(AGENT.format(name=name, fleet=fleet, port=secured.port))
    return read_agent(path / "agent.toml")


async def yes(_: Candidate) -> bool:
    return True


async def no(_: Candidate) -> bool:
    return False


@contextlib.asynccontextmanager
async def admitting(secured: Secured, **options: Any) -> AsyncIterator[list[str]]:
    """An operator who listens during the block; what they are told."""
    told: list[str] = []
    place = secured.fleet.place(AGGREGATOR)
    signer = read_signer(place / "certificate.pem", place / "key.pem")
    async with secured.connect(AGGREGATOR) as transport:
        settings = {"days": 30, "approve": yes, "welcome": yes, "tell": told.append, **options}
        task = asyncio.create_task(
            Admitting(TOPICS, Admissions(secured.fleet), signer, transport, **settings).run()  # type: ignore[arg-type]
        )
        try:
            yield told
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def enroll(options: AgentOptions, token: TokenFile) -> str:
    return await asyncio.wait_for(enroll_board(options, token, wait_for_broker=False, ask_again_s=0.2), PATIENCE_S)


async def answered(secured: Secured, claim: Claim) -> ClaimAnswer:
    """Returns what somebody is answered who has a claim's certificate and says what they like."""
    async with secured.connect(FIELD) as transport, listening(transport) as ear:
        await transport.subscribe(DOWN)
        await transport.publish(UP, encode(claim))
        mine = tokens.request_id(claim.request.encode())
        found: list[ClaimAnswer] = []

        def heard() -> bool:
            answers = [decode_claim_answer(payload) for payload in ear.payloads]
            found.extend(answer for answer in answers if answer.request == mine)
            return bool(found)

        await until(heard)
        return found[0]


async def test_a_board_gets_its_certificate(secured: Secured, tmp_path: Path) -> None:
    options, token = board(secured, tmp_path, "oven-1"), token_for(secured, "oven-1")
    assert not is_enrolled(options)
    async with admitting(secured) as told:
        fingerprint = await enroll(options, token)
    assert is_enrolled(options)
    secrets = tmp_path / "secrets"
    assert {path.name: path.stat().st_mode & 0o077 for path in secrets.iterdir() if path.name == "key.pem"} == {
        "key.pem": 0
    }
    assert (secrets / "ca.pem").read_bytes() == secured.fleet.ca_file.read_bytes()
    assert told == [f"admitted oven-1 (key {fingerprint[:16]})"]
    secured.write()
    secured.broker.reload()
    async with secured.connect(secrets) as transport:
        await transport.publish(TOPICS.device("oven-1", "profile"), b"{}")
        with pytest.raises(BrokerRefused):
            await transport.publish(TOPICS.device("victim", "profile"), b"{}")


async def test_a_board_whose_certificate_has_ended_asks_anew_with_another_token(
    secured: Secured, tmp_path: Path
) -> None:
    options = board(secured, tmp_path, "kiln-1")
    async with admitting(secured):
        await enroll(options, token_for(secured, "kiln-1"))
    file = tmp_path / "secrets" / "certificate.pem"
    key = keys.read_key((tmp_path / "secrets" / "key.pem").read_bytes(), "the board's")
    then = now() - timedelta(days=9)
    long_ago = certificates.make_authority(NAME, days=90, now=then)
    ended = certificates.issue(long_ago, device("kiln-1"), key.public_key(), days=2, now=then)
    file.write_bytes(certificates.certificate_pem(ended))
    assert not is_enrolled(options)
    file.write_bytes(b"damaged")
    assert not is_enrolled(options)


async def test_a_certificate_without_its_key_is_asked_for_anew(secured: Secured, tmp_path: Path) -> None:
    options = board(secured, tmp_path, "kiln-2")
    async with admitting(secured):
        await enroll(options, token_for(secured, "kiln-2"))
    file = tmp_path / "secrets" / "key.pem"
    own = file.read_bytes()
    for other in (keys.key_pem(keys.new_key("device")), b"damaged"):
        file.write_bytes(other)
        assert not is_enrolled(options)
    file.unlink()
    assert not is_enrolled(options)
    file.write_bytes(own)
    assert is_enrolled(options)


async def test_nothing_of_the_token_or_the_key_travels_or_is_logged(
    secured: Secured, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    options, token = board(secured, tmp_path, "oven-2"), token_for(secured, "oven-2")
    async with (
        admitting(secured) as told,
        secured.connect(AGGREGATOR) as transport,
        listening(transport) as ear,
    ):
        await transport.subscribe(UP)
        await enroll(options, token)
        await until(lambda: ear.heard)
    key = (tmp_path / "secrets" / "key.pem").read_text().splitlines()[1]
    said = b"".join(ear.payloads).decode() + caplog.text + "".join(told)
    for secret in (token.secret.hex(), key, token.key.decode().splitlines()[1]):
        assert secret not in said


async def test_used_twice(secured: Secured, tmp_path: Path) -> None:
    token = token_for(secured, "pan-*")
    async with admitting(secured):
        await enroll(board(secured, tmp_path / "1", "pan-1"), token)
        for name in ("pan-1", "pan-2"):
            with pytest.raises(NotAdmitted, match=rf"take {name}: the token was used already, by pan-1 on"):
                await enroll(board(secured, tmp_path / f"again-{name}", name), token)
    assert device("pan-2") not in secured.fleet.members(now())


async def test_expired(secured: Secured, tmp_path: Path) -> None:
    async with admitting(secured) as told:
        with pytest.raises(NotAdmitted, match="the token has expired on"):
            await enroll(board(secured, tmp_path, "pot-1"), token_for(secured, "pot-1", hours=-1))
    assert told[0].startswith("refused 'pot-1' on claim field: the token has expired")


async def test_withdrawn(secured: Secured, tmp_path: Path) -> None:
    """Before the board comes, and while the operator thinks about it."""
    admissions = Admissions(secured.fleet)
    early, late = token_for(secured, "mug-1"), token_for(secured, "mug-2")
    admissions.withdraw(early.id, now())

    async def withdraw_and_say_yes(_: Candidate) -> bool:
        admissions.withdraw(late.id, now())
        return True

    async with admitting(secured, approve=withdraw_and_say_yes) as told:
        for name, token in (("mug-1", early), ("mug-2", late)):
            with pytest.raises(NotAdmitted, match=rf"take {name}: the token was withdrawn on .*: ask for a new one"):
                await enroll(board(secured, tmp_path / name, name), token)
    refused = {f"refused '{name}' on claim field" for name in ("mug-1", "mug-2")}
    assert {line.partition(":")[0] for line in told} == refused
    assert not {device("mug-1"), device("mug-2")} & set(secured.fleet.members(now()))


async def test_another_name_and_a_request_that_was_changed(secured: Secured, tmp_path: Path) -> None:
    token = token_for(secured, "lid-1")
    with pytest.raises(ConfigError, match=re.escape("for lid-1, and agent.toml says that this is victim")):
        await enroll(board(secured, tmp_path, "victim"), token)

    def forged(name: str) -> Claim:
        return tokens.make_claim(token, name, make_request(keys.new_key("device"), device(name)))

    changed = msgspec.structs.replace(forged("lid-1"), request=forged("lid-1").request)
    async with admitting(secured):
        wrong_name, wrong_request = await answered(secured, forged("victim")), await answered(secured, changed)
    assert isinstance(wrong_name, ClaimRefused)
    assert wrong_name.reason == "the token is for lid-1, not for victim"
    assert isinstance(wrong_request, ClaimRefused)
    assert wrong_request.reason == "the claim was not made with its token, or was changed on the way"


async def test_what_is_no_claim_at_all_does_no_harm(secured: Secured, tmp_path: Path) -> None:
    async with admitting(secured):
        async with secured.connect(FIELD) as transport:
            for payload in (b"", b"\xff", b"{}", b"[" * 100_000, b'{"type":"claim","token":"../../ca/ca"}'):
                await transport.publish(UP, payload)
        await enroll(board(secured, tmp_path, "cup-1"), token_for(secured, "cup-1"))


async def test_the_operator_says_no(secured: Secured, tmp_path: Path) -> None:
    token = token_for(secured, "jar-1")
    async with admitting(secured, approve=no):
        with pytest.raises(NotAdmitted, match="the operator has said no"):
            await enroll(board(secured, tmp_path, "jar-1"), token)
    assert device("jar-1") not in secured.fleet.members(now())
    async with admitting(secured):  # and changes their mind
        await enroll(board(secured, tmp_path, "jar-1"), token)


async def test_a_rule_says_no_and_is_not_held_against_the_token(secured: Secured, tmp_path: Path) -> None:
    """As with `--allow`: the next who comes with the token, whom the rule lets in, is not turned away."""
    token = token_for(secured, "pin-*")
    only_the_second = allow_only(["pin-2"])
    async with admitting(secured, approve=only_the_second) as told:
        with pytest.raises(NotAdmitted, match="take pin-1: pin-1 is not on the list of --allow"):
            await enroll(board(secured, tmp_path / "1", "pin-1"), token)
        await enroll(board(secured, tmp_path / "2", "pin-2"), token)
    refused, admitted = told
    assert refused.startswith("refused 'pin-1' on claim field: pin-1 is not on the list of --allow")
    assert admitted.startswith("admitted pin-2")


async def test_a_lost_answer_is_given_again(secured: Secured, tmp_path: Path) -> None:
    """The first answers are lost, then the board itself is: it ends up with the one certificate that was made."""
    options, token = board(secured, tmp_path, "tap-1"), token_for(secured, "tap-1")
    asked = 0

    async def lose(_: Candidate) -> bool:
        nonlocal asked
        asked += 1
        return False

    async with admitting(secured, welcome=lose):
        lost = asyncio.create_task(enroll(options, token))
        await until(lambda: asked >= 2)
        lost.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await lost
    assert not is_enrolled(options)
    async with admitting(secured) as told:
        await enroll(options, token)
    assert "admitted tap-1 once more, with the same certificate" in told[0]
    assert [entry.identity for entry in secured.fleet.issued()].count(device("tap-1")) == 1


def forgeries(secured: Secured, options: AgentOptions, scratch: Path) -> list[tuple[bytes, str]]:
    """Returns answers that are not to be listened to, and what is said of them."""
    own = keys.read_key(Path(options.broker.tls_key).read_bytes(), "key")
    request = tokens.request_id(make_request(own, device(options.device)))
    theirs = FleetDirectory.create(scratch / "theirs", NAME, hosts=["b"], lifetimes=Lifetimes(), now=now())

    def signed(fleet: FleetDirectory, who: Identity, answer: ClaimAnswer) -> bytes:
        place = fleet.place(who)
        signer = read_signer(place / "certificate.pem", place / "key.pem")
        return signer.sign(DOWN, encode(answer), now().timestamp())

    def admitted(fleet: FleetDirectory, name: str, key: keys.PublicKey, role: Any = "device") -> Admitted:
        made = certificates.issue(fleet._authority(), Identity(role, name), key, days=1, now=now(), hosts=["b"])
        return Admitted(request=request, certificate=certificates.certificate_pem(made).decode())

    ours, public = secured.fleet, own.public_key()
    refusal = ClaimRefused(request=request, reason="go away")
    return [
        (encode(refusal), "it is not signed"),
        (signed(ours, device("victim"), refusal), "it is signed by 'victim'"),
        (signed(theirs, AGGREGATOR, admitted(theirs, options.device, public)), "not of the fleet's authority"),
        (signed(ours, AGGREGATOR, admitted(theirs, options.device, public)), "not one of the authority that our token"),
        (signed(ours, AGGREGATOR, admitted(ours, "victim", public)), "its certificate is for 'victim'"),
        (signed(ours, AGGREGATOR, admitted(ours, options.device, keys.new_key("device").public_key())),
         "for another key than ours"),
        (signed(ours, AGGREGATOR, admitted(ours, "broker", public, "broker")), "its certificate is for 'role:broker'"),
        (signed(ours, AGGREGATOR, Admitted(request=request, certificate="no")), "not a certificate in PEM"),
        (signed(ours, AGGREGATOR, ClaimRefused(request="0" * 64, reason="for another board")), ""),
    ]  # fmt: skip


async def test_foreign_answers_are_not_listened_to(
    secured: Secured, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options, token = board(secured, tmp_path, "pin-1"), token_for(secured, "pin-1")
    asking = asyncio.create_task(enroll(options, token))
    async with secured.connect(AGGREGATOR) as transport, listening(transport) as ear:
        await transport.subscribe(UP)
        await until(lambda: ear.heard)
        forged = forgeries(secured, options, tmp_path)
        for payload, _ in forged:
            await transport.publish(DOWN, payload)
        for _, said in forged:
            await until(lambda said=said: said in caplog.text)  # type: ignore[misc]
        await until(lambda: len(ear.heard) > 3)  # it still asks
    assert not asking.done()
    async with admitting(secured):
        await asking
    assert is_enrolled(options)


@pytest.mark.parametrize(
    "topic",
    [
        DOWN,
        TOPICS.round,
        TOPICS.aggregator_state,
        TOPICS.blob("f" * 64),
        TOPICS.device("victim", "up"),
        TOPICS.device("victim", "down"),
        TOPICS.device("field", "up"),
        TOPICS.claim("cellar", "up"),
        TOPICS.claim("cellar", "down"),
        "$CONTROL/dynamic-security/v1",
        "anything",
    ],
)
async def test_a_claim_says_nothing_but_claims(secured: Secured, topic: str) -> None:
    async with secured.connect(FIELD) as transport:
        with pytest.raises(BrokerRefused, match="Not authorized"):
            await transport.publish(topic, b"forged")
        await transport.publish(UP, b"{}")


async def test_a_claim_hears_nothing_but_its_answers(secured: Secured) -> None:
    filters = ["#", "+/#", f"{TOPICS.root}/#", TOPICS.every_device("up"), TOPICS.claim("+", "up"), "$share/m/#"]
    async with (
        secured.connect(FIELD) as claim,
        listening(claim) as ear,
        secured.connect(device("victim")) as victim,
        secured.connect(AGGREGATOR) as aggregator,
    ):
        for topic_filter in [*filters, TOPICS.claim("cellar", "down"), DOWN]:
            with contextlib.suppress(BrokerRefused):  # Mosquitto takes most, and delivers what may be heard
                await claim.subscribe(topic_filter)
        await claim.publish(UP, b"ours")
        await victim.publish(TOPICS.device("victim", "up"), b"secret")
        for topic in (TOPICS.round, TOPICS.device("victim", "down"), TOPICS.claim("cellar", "down")):
            await aggregator.publish(topic, b"secret")
        await aggregator.publish(DOWN, b"for us")
        await until(lambda: b"for us" in ear.payloads)
        assert {message.topic for message in ear.heard} == {DOWN}


async def test_files_that_are_in_the_way(secured: Secured, tmp_path: Path) -> None:
    theirs = FleetDirectory.create(tmp_path / "theirs", NAME, hosts=["b"], lifetimes=Lifetimes(), now=now())
    options, token = board(secured, tmp_path / "board", "pip-1"), token_for(secured, "pip-1")
    (tmp_path / "board" / "secrets").mkdir()
    ca, key = (tmp_path / "board" / "secrets" / name for name in ("ca.pem", "key.pem"))
    ca.write_bytes(theirs.ca_file.read_bytes())
    with pytest.raises(ConfigError, match="is the authority of another fleet than the token's"):
        await enroll(options, token)
    ca.unlink()
    key.write_text("")
    key.chmod(0o644)
    with pytest.raises(ConfigError, match="mode 0644 lets others"):
        await enroll(options, token)
    with pytest.raises(ConfigError, match=re.escape("of fleet test, and agent.toml is for fleet other")):
        await enroll(board(secured, tmp_path / "other", "pip-1", fleet="other"), token)


def edgefed(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgefed", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE_S)


@contextlib.contextmanager
def process(log: Path, *arguments: object, stdin: int | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """Runs a command in the background; it ends with the block."""
    with log.open("ab") as file:
        started = subprocess.Popen(
            [sys.executable, "-m", "edgefed", *map(str, arguments)], stdin=stdin, stdout=file, stderr=file
        )
    try:
        yield started
    finally:
        with contextlib.suppress(ProcessLookupError):
            started.kill()
        started.wait()
        if started.stdin is not None:
            started.stdin.close()


def wait_for(condition: Callable[[], object], *logs: Path) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline_s, "\n".join(log.read_text() for log in logs if log.exists())
        time.sleep(0.05)


def test_from_token_to_ready_in_real_processes(secured: Secured, tmp_path: Path) -> None:
    """The board is killed while nobody listens, and goes on with its key; then it comes up as a device of the fleet."""
    options = board(secured, tmp_path / "board", "hob-1")
    file = tmp_path / "hob.token"
    made = edgefed("fleet", "token", "hob-*", "--fleet", secured.fleet.path, "--output", file)
    assert made.returncode == 0, made.stderr
    assert "the broker has to learn" not in made.stderr
    agent = ["-v", "agent", "--config", tmp_path / "board" / "agent.toml", "--enroll", file]
    logs = [tmp_path / "agent.log", tmp_path / "admit.log"]
    key = Path(options.broker.tls_key)
    with process(logs[0], *agent):
        wait_for(lambda: key.exists() and "connected to the broker" in logs[0].read_text(), *logs)
    before = key.read_bytes()
    tell = (
        f"{sys.executable} -m edgefed fleet broker-config mosquitto --fleet {secured.fleet.path} -o {secured.files} "
        f"--bind 127.0.0.1 --port {secured.port} && kill -HUP {secured.broker.pid} && echo told about $EDGEFED_DEVICE"
    )
    looking = ["--host", "127.0.0.1", "--port", secured.port, "--fleet", NAME]
    looking += ["--identity", secured.fleet.place(Identity("observer", "desk"))]
    listen = ["fleet", "admit", "--fleet", secured.fleet.path, "--port", secured.port, "--then", tell]
    with process(logs[1], *listen, stdin=subprocess.PIPE) as admit, process(logs[0], *agent) as running:
        wait_for(lambda: "admit hob-1, key " in logs[1].read_text(), *logs)
        assert not is_enrolled(options)
        assert admit.stdin is not None
        admit.stdin.write(b"y\n")
        admit.stdin.flush()
        wait_for(lambda: "hob-1" in edgefed("status", *looking, "--wait-s", 0.3).stdout, *logs)
        running.send_signal(signal.SIGTERM)
        assert running.wait(PATIENCE_S) == 0, logs[0].read_text()
        admit.send_signal(signal.SIGTERM)
        assert admit.wait(PATIENCE_S) == 0, logs[1].read_text()
    assert key.read_bytes() == before
    assert "told about hob-1" in logs[1].read_text()
    assert "enrolled as hob-1 of fleet test" in logs[0].read_text()
    file.unlink()  # nobody needs it any more
    with process(logs[0], *agent) as again:
        wait_for(lambda: logs[0].read_text().count("connected to the broker") > 3 or again.poll() is not None, *logs)
        assert again.poll() is None, logs[0].read_text()


def test_what_the_commands_refuse(secured: Secured, tmp_path: Path) -> None:
    """An agent that is refused says why and ends with a code of its own; only the aggregator admits."""
    board(secured, tmp_path, "wok-1")
    listen = ["fleet", "admit", "--fleet", secured.fleet.path, "--port", secured.port]
    made = edgefed("fleet", "token", "wok-1", "-f", secured.fleet.path, "-o", tmp_path / "t")
    assert made.returncode == 0, made.stderr
    log = tmp_path / "admit.log"
    with process(log, *listen, "--allow", "oven-*"):
        wait_for(lambda: "listening" in log.read_text(), log)
        done = edgefed("agent", "--config", tmp_path / "agent.toml", "--enroll", tmp_path / "t", "--require-broker")
    assert (done.returncode, "does not take wok-1: wok-1 is not on the list of --allow" in done.stderr) == (16, True), (
        done.stderr
    )
    wrong = edgefed(*listen, "--identity", secured.fleet.place(device("victim")))
    assert (wrong.returncode, "only the aggregator may admit" in wrong.stderr.replace("\n", " ")) == (2, True)
    again = edgefed("fleet", "token", "wok-1", "-f", secured.fleet.path, "-o", tmp_path / "t")
    assert (again.returncode, "never overwritten" in again.stderr) == (3, True)
