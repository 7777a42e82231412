"""Sealed updates: they open for one key, device and round, whole and unchanged, or not at all."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from edgefed.agent.options import AgentOptions
from edgefed.agent.plan import CannotTakePart
from edgefed.agent.sealed_updates import check_sealing, seal_update
from edgefed.data.source import DataSource
from edgefed.errors import ChunkError, ConfigError
from edgefed.protocol.chunks import decode_chunk, is_chunk
from edgefed.protocol.messages.manifest import Manifest
from edgefed.protocol.messages.retained import RoundOpen
from edgefed.protocol.messages.up import UpdateOffer
from edgefed.protocol.tasks import Evaluation, LoraMethod, ModelReference, SummarizationTask, Training
from edgefed.protocol.topics import Topics
from edgefed.security.authorship import read_authorship
from edgefed.security.identities import AGGREGATOR
from edgefed.security.sealing import SealingKey, seal, sealing_context
from edgefed.transport.base import Transport
from edgefed.transport.options import Broker
from edgefed.transport.signed import SignedTransport
from tests.federation.stand_in import StandIn, federation_toml, make_paper_model
from tests.security.secured import NAME, PATIENCE_S, Secured, device, listening, tls

TOPICS = Topics(NAME)
BLOCK = 64 * 1024
OURS = sealing_context("kitchen", "0a1b2c3d", 2, "board-07")


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> SealingKey:
    return SealingKey.read_or_make(tmp_path_factory.mktemp("key") / "sealing.key")


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scratch")


def sealed(key: SealingKey, scratch: Path, plain: bytes, context: bytes = OURS) -> bytes:
    (scratch / "plain").write_bytes(plain)
    seal(scratch / "plain", scratch / "sealed", key.public, context)
    return (scratch / "sealed").read_bytes()


def opened(key: SealingKey, scratch: Path, content: bytes, context: bytes = OURS) -> bytes:
    (scratch / "opened").unlink(missing_ok=True)
    (scratch / "sealed").write_bytes(content)
    key.open(scratch / "sealed", scratch / "opened", context)
    return (scratch / "opened").read_bytes()


@pytest.mark.parametrize("size", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, 3 * BLOCK + 17])
def test_it_opens_as_it_was_and_costs_little(key: SealingKey, scratch: Path, size: int) -> None:
    plain = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    content = sealed(key, scratch, plain)
    assert opened(key, scratch, content) == plain
    assert (scratch / "opened").stat().st_mode & 0o077 == 0
    assert len(content) == size + 48 + 16 * max(1, -(-size // BLOCK))
    assert content != sealed(key, scratch, plain)  # a key of its own for every file


def test_nothing_of_it_can_be_read(key: SealingKey, scratch: Path) -> None:
    content = sealed(key, scratch, b"weights " * 20_000)
    assert b"weights" not in content
    assert content.count(content[100:108]) == 1


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2 * BLOCK + 48 + 48 + 99), st.integers(1, 255))
@example(0, 1)
@example(20, 128)
@example(48, 1)
def test_no_byte_of_it_can_be_changed(key: SealingKey, scratch: Path, at: int, by: int) -> None:
    content = bytearray(sealed(key, scratch, b"\1" * (2 * BLOCK + 100)))
    content[at] ^= by
    # Even the one bit of a public key that X25519 does not look at (RFC 7748, 5): the key is made of its bytes too.
    with pytest.raises(ChunkError):
        opened(key, scratch, bytes(content))
    assert not (scratch / "opened").exists()


def test_nothing_can_be_cut_off_left_out_moved_or_put_on(key: SealingKey, scratch: Path) -> None:
    content = sealed(key, scratch, b"\1" * (3 * BLOCK))
    head, step = content[:48], BLOCK + 16
    one, two, three = (content[48 + step * index : 48 + step * (index + 1)] for index in range(3))
    assert head + one + two + three == content
    wrong = [b"", head[:20], head, head + one, head + one + two, head + one + three, head + two + one + three,
             content + three, content + b"\0", content[:-1], head + one + two + three[:-16]]  # fmt: skip
    for changed in wrong:
        with pytest.raises(ChunkError):
            opened(key, scratch, changed)


def test_for_somebody_else(key: SealingKey, scratch: Path, tmp_path: Path) -> None:
    other = SealingKey.read_or_make(tmp_path / "other")
    content = sealed(key, scratch, b"update")
    with pytest.raises(ChunkError, match="sealed for another key, device or round"):
        opened(other, scratch, content)
    for context in (
        sealing_context("cellar", "0a1b2c3d", 2, "board-07"),
        sealing_context("kitchen", "ffffffff", 2, "board-07"),
        sealing_context("kitchen", "0a1b2c3d", 3, "board-07"),
        sealing_context("kitchen", "0a1b2c3d", 2, "board-08"),
    ):
        with pytest.raises(ChunkError, match="sealed for another key, device or round"):
            opened(key, scratch, content, context)


def test_a_public_key_that_gives_everybody_the_same_secret(key: SealingKey, scratch: Path) -> None:
    (scratch / "plain").write_bytes(b"update")
    with pytest.raises(ChunkError, match="a public key that is none"):
        seal(scratch / "plain", scratch / "sealed", "0" * 64, OURS)
    content = sealed(key, scratch, b"update")
    with pytest.raises(ChunkError, match="a public key that is none"):
        opened(key, scratch, content[:16] + bytes(32) + content[48:])


def test_a_key_is_made_once_and_kept_secret(tmp_path: Path) -> None:
    file = tmp_path / "sealing.key"
    made = SealingKey.read_or_make(file)
    assert file.stat().st_mode & 0o777 == 0o600
    assert SealingKey.read_or_make(file).public == made.public
    file.chmod(0o644)
    with pytest.raises(ConfigError, match="mode 0644 lets others"):
        SealingKey.read_or_make(file)
    file.chmod(0o600)
    file.write_bytes(b"short")
    with pytest.raises(ConfigError, match="is damaged: remove it"):
        SealingKey.read_or_make(file)


# --- on the device ----------------------------------------------------------------------------------------------------


def announcement(sealing_key: str) -> RoundOpen:
    return RoundOpen(
        run="0a1b2c3d", round=2, rounds=3, kind="train", model=ModelReference(name="m"), task=SummarizationTask(),
        method=LoraMethod(ranks=[2]), training=Training(), evaluation=Evaluation(), evaluates=False, deadline_s=1.0,
        seed=0, manifest=Manifest(), sealing_key=sealing_key,
    )  # fmt: skip


def board(*, insists: bool) -> AgentOptions:
    files = {"tls_ca": "a", "tls_certificate": "b", "tls_key": "c"}
    broker = Broker(**files, signed=True, sealed=insists)
    return AgentOptions(device="board-07", fleet="kitchen", data=DataSource(path="d"), broker=broker)


def test_a_device_seals_what_it_is_told_to_and_may_insist(key: SealingKey, tmp_path: Path) -> None:
    update = tmp_path / "update"
    update.write_bytes(b"weights")
    check_sealing(board(insists=False), announcement(""))
    seal_update(board(insists=False), announcement(""), update)
    assert update.read_bytes() == b"weights"
    check_sealing(board(insists=True), announcement(key.public))
    seal_update(board(insists=False), announcement(key.public), update)
    key.open(update, tmp_path / "opened", OURS)
    assert (tmp_path / "opened").read_bytes() == b"weights"
    with pytest.raises(CannotTakePart, match="sends sealed updates only"):
        check_sealing(board(insists=True), announcement(""))


def test_sealing_needs_signatures() -> None:
    with pytest.raises(ValueError, match="sealed needs signed = true"):
        Broker(sealed=True)


# --- a federation -----------------------------------------------------------------------------------------------------


@dataclass
class Sealer(StandIn):
    """A device that seals its updates as the agent does, or does it wrong."""

    wrong: str = ""
    public: str = ""

    def _write(self, announced: RoundOpen, path: Path) -> None:
        super()._write(announced, path)
        self.public = announced.sealing_key
        name = "dev-0" if self.wrong == "as another" else self.name
        if self.wrong != "not sealed":
            seal(path, path, self.public, sealing_context(NAME, announced.run, announced.round, name))
        if self.wrong == "changed":
            content = bytearray(path.read_bytes())
            content[-20] ^= 1
            path.write_bytes(content)

    def named(self, offer: UpdateOffer) -> UpdateOffer:
        return msgspec.structs.replace(offer, sealed_for="" if self.wrong == "not sealed" else self.public)


@pytest.mark.broker
def test_a_federation_that_its_broker_cannot_read(tmp_path: Path) -> None:
    """Of five devices one seals as another, one changes a byte, one does not seal: the other two are counted."""
    secured = Secured(tmp_path)
    model = make_paper_model(tmp_path / "model")
    wrongs = {"dev-0": "", "dev-1": "", "dev-2": "as another", "dev-3": "changed", "dev-4": "not sealed"}
    for name in (*wrongs, "ear"):
        secured.enroll(device(name))
    files = tls(secured.fleet.place(AGGREGATOR))
    files["tls_certificate"] = files.pop("tls_cert")
    lines = 'host = "127.0.0.1"\nsigned = true\nsealed = true\n'
    lines += "".join(f'{name} = "{value}"\n' for name, value in files.items())
    config, log = tmp_path / "federation.toml", tmp_path / "aggregator.log"
    selection = "expected_devices = 5\nquorum = 2\n"
    config.write_text(
        federation_toml(model, tmp_path / "run", secured.port, selection=selection, broker=lines).replace(
            "rounds = 3", "rounds = 1"
        )
    )
    devices = [sealer(secured, tmp_path, model, name, wrong) for name, wrong in wrongs.items()]
    with secured.running(), log.open("wb") as file:
        acl = secured.files / "acl"
        acl.write_text(acl.read_text() + "\nuser ear\ntopic read #\n")  # as the broker's operator hears
        secured.broker.reload()
        command = [sys.executable, "-m", "edgefed", "-v", "aggregator", "--config", str(config)]
        process = subprocess.Popen(command, stdout=file, stderr=file)
        try:
            heard = asyncio.run(federate(secured, devices))
            assert process.wait(PATIENCE_S) == 0, log.read_text()
        finally:
            process.kill()
            process.wait()
    said = log.read_text()
    for name, reason in (("dev-2", "sealed for another key, device or round"), ("dev-3", "was changed on the way")):
        assert any(name in line and reason in line and "rejected" in line for line in said.splitlines()), said
    assert any("dev-4" in line and "it is not sealed, and has to be" in line for line in said.splitlines()), said
    for one in devices:
        assert one.acknowledged[0].outcome == ("rejected" if one.wrong else "counted"), one
    sent = b"".join(heard)
    assert len(heard) > 3
    assert sent.count(b"edgefed sealed 1") >= 4
    assert b"SelfAttention" not in sent
    assert (tmp_path / "run" / "sealing.key").stat().st_mode & 0o077 == 0
    assert b"SelfAttention" in (tmp_path / "run" / "adapter" / "adapter_model.safetensors").read_bytes()


def sealer(secured: Secured, path: Path, model: Path, name: str, wrong: str) -> Sealer:
    place = secured.fleet.place(device(name))

    def signed(transport: Transport) -> Transport:
        files = {"ca": place / "ca.pem", "certificate": place / "certificate.pem", "key": place / "key.pem"}
        return SignedTransport(transport, read_authorship(TOPICS, device(name), path / f"{name}-memory", **files))

    one = Sealer(name, model, path, secured.port, tls=tls(place), signed=signed, wrong=wrong)
    one.offer_edit = one.named
    return one


async def federate(secured: Secured, devices: list[Sealer]) -> list[bytes]:
    """Returns what the devices' chunks had in them, as the broker saw it."""
    async with secured.connect(device("ear")) as transport, listening(transport) as ear:
        await transport.subscribe("#")
        await asyncio.wait_for(asyncio.gather(*(one.take_part() for one in devices)), PATIENCE_S)
        up = [message.payload for message in ear.heard if message.topic.endswith("/up")]
        return [bytes(decode_chunk(payload).data) for payload in up if is_chunk(payload)]
