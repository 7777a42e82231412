"""Control messages: they come back as they went, refuse what is not theirs, and do not change by accident."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, reject, settings
from hypothesis import strategies as st
from msgspec import inspect

from edgefed.devices.compute import ComputeProfile
from edgefed.devices.cpu import CpuProfile
from edgefed.devices.flashed import Flashed
from edgefed.devices.gpu import GpuProfile
from edgefed.devices.measurement import absent, measured
from edgefed.devices.memory import HostMemory, MemoryProfile
from edgefed.devices.network import NetworkProfile
from edgefed.devices.profile import DeviceProfile
from edgefed.devices.release_state import ReleaseState
from edgefed.devices.sensors import AbsentSensor, PowerProfile, PowerSensor, ThermalProfile
from edgefed.devices.storage import StorageProfile
from edgefed.errors import MessageError
from edgefed.protocol.messages.claims import (
    Admitted,
    Claim,
    ClaimAnswer,
    ClaimRefused,
    decode_claim,
    decode_claim_answer,
)
from edgefed.protocol.messages.down import (
    Accepted,
    Acknowledged,
    DownMessage,
    Pong,
    Refused,
    ReleaseOffered,
    Standing,
    UploadGrant,
    UploadProgress,
    decode_down,
)
from edgefed.protocol.messages.manifest import Manifest, Part, Plan
from edgefed.protocol.messages.retained import (
    AggregatorState,
    DeviceState,
    FederationFinished,
    Refusal,
    RoundMessage,
    RoundOpen,
    decode_aggregator_state,
    decode_device_state,
    decode_round,
)
from edgefed.protocol.messages.up import (
    Decline,
    EvaluationReport,
    Join,
    PartRanges,
    PartsWanted,
    Ping,
    UpdateOffer,
    UpMessage,
    decode_up,
)
from edgefed.protocol.messages.wire import MAX_RANGES, encode, is_signed
from edgefed.protocol.records import MAX_STEP_RECORDS, EvaluationRecord, RoundRecord, StepRecord
from edgefed.protocol.tasks import Evaluation, LoraMethod, ModelReference, Privacy, SummarizationTask, Training

Decode = Callable[[bytes], msgspec.Struct]

DECODERS: dict[str, tuple[Decode, Any]] = {
    "up": (decode_up, UpMessage),
    "down": (decode_down, DownMessage),
    "round": (decode_round, RoundMessage),
    "device-state": (decode_device_state, DeviceState),
    "aggregator-state": (decode_aggregator_state, AggregatorState),
    "claim": (decode_claim, Claim),
    "claim-answer": (decode_claim_answer, ClaimAnswer),
}

SHA256 = "0123456789abcdef" * 4
PLAN = Plan(rank=4, held_rank=8, quantization="nf4")
RECORD = RoundRecord(
    device="board-03",
    round=2,
    rank=4,
    held_rank=8,
    quantization="nf4",
    examples=37,
    steps=1,
    loss_first=5.5,
    loss_mean=5.25,
    loss_last=5.0,
    data_s=0.125,
    forward_s=0.25,
    backward_s=0.5,
    optimizer_s=0.0625,
    train_s=1.0,
    load_s=2.5,
    source_tokens=512,
    target_tokens=64,
    download_bytes=4096,
    download_s=0.75,
    upload_bytes=2048,
    peak_resident_bytes=123456789,
    step_records=[
        StepRecord(
            loss=5.5,
            data_s=0.125,
            forward_s=0.25,
            backward_s=0.5,
            optimizer_s=0.0625,
            source_tokens=512,
            target_tokens=64,
        )
    ],
    evaluation=EvaluationRecord(loss=5.75, target_tokens=640, examples=10, evaluate_s=1.5),
    epsilon=2.5,
    delta=1e-5,
    privacy_assumptions="noise is exact",
)
MANIFEST = Manifest(
    parts=[
        Part(sha256=SHA256, size_bytes=4096, rank_lo=0, rank_hi=4),
        Part(sha256=SHA256[::-1], size_bytes=8192, rank_lo=4, rank_hi=16),
    ]
)

SAMPLES: dict[str, tuple[Decode, msgspec.Struct]] = {
    "aggregator-state": (
        decode_aggregator_state,
        AggregatorState(
            status="online",
            instance="c0ffee",
            run="0a1b2c3d",
            phase="training",
            round=2,
            rounds=10,
            joined=1,
            accepted=5,
            updates=3,
            quorum=2,
            rejected=1,
            best_round=1,
            best_loss=5.75,
            last_loss=6.0,
            received_bytes=2048,
            broadcast_bytes=4096,
            epsilon=3.5,
            delta=1e-6,
            note="so far",
            excluded=2,
            clipped=3,
            silenced=1,
            refusals=[Refusal(what="rejected", device="a", round=2, reason="NaN in it", unix_s=1.5)],
        ),
    ),
    "device-state": (
        decode_device_state,
        DeviceState(
            status="training",
            instance="c0ffee",
            since_unix_s=1700000000.5,
            round=2,
            step=3,
            steps=16,
            loss=5.25,
            note="training",
            host="barn",
            pid=77,
            objects_to="decaf",
        ),
    ),
    "round-open": (
        decode_round,
        RoundOpen(
            run="0a1b2c3d",
            round=2,
            rounds=10,
            kind="train",
            model=ModelReference(name="google/flan-t5-small", fingerprint=SHA256),
            task=SummarizationTask(),
            method=LoraMethod(
                aggregation="frozen_global", target_modules=["q", "v"], ranks=[4, 8], server_rank=16, alpha=16.0
            ),
            training=Training(),
            evaluation=Evaluation(),
            evaluates=True,
            deadline_s=600.0,
            late_is_used=True,
            privacy=Privacy(example_noise_multiplier=1.0, example_clip_norm=0.5, max_epsilon=8.0),
            seed=7,
            manifest=MANIFEST,
        ),
    ),
    "finished": (decode_round, FederationFinished(run="0a1b2c3d", round=11, reason="all 10 rounds are done")),
    "join": (
        decode_up,
        Join(run="0a1b2c3d", round=2, plan=PLAN, fingerprint=SHA256, model="google/flan-t5-small", examples=37),
    ),
    "decline": (decode_up, Decline(run="0a1b2c3d", round=2, reason="no time")),
    "parts-wanted": (
        decode_up,
        PartsWanted(run="0a1b2c3d", parts=[PartRanges(sha256=SHA256, missing=[(0, 1024), (2048, 4096)])]),
    ),
    "update-offer": (
        decode_up,
        UpdateOffer(
            run="0a1b2c3d",
            round=2,
            sha256=SHA256,
            size_bytes=2048,
            plan=PLAN,
            fingerprint=SHA256,
            model="google/flan-t5-small",
            examples=37,
            record=RECORD,
        ),
    ),
    "evaluation-report": (decode_up, EvaluationReport(run="0a1b2c3d", round=11, record=RECORD)),
    "ping": (decode_up, Ping(nonce="c0ffee", sequence=3, answer_bytes=8, padding="abcd")),
    "accepted": (decode_down, Accepted(run="0a1b2c3d", round=2, remaining_s=599.5)),
    "refused": (decode_down, Refused(run="0a1b2c3d", round=2, reason="not selected for this round", final=True)),
    "upload-grant": (
        decode_down,
        UploadGrant(sha256=SHA256, missing=[(0, 2048)], chunk_bytes=98304, window_chunks=64),
    ),
    "upload-progress": (decode_down, UploadProgress(sha256=SHA256, received_bytes=1024)),
    "acknowledged": (
        decode_down,
        Acknowledged(run="0a1b2c3d", round=2, sha256=SHA256, outcome="rejected", reason="NaN in it"),
    ),
    "pong": (decode_down, Pong(nonce="c0ffee", sequence=3, padding="01234567", refused="")),
    "standing": (decode_down, Standing(run="0a1b2c3d", duty="paused", reason="paused by the operator: too warm")),
    "release-offered": (
        decode_down,
        ReleaseOffered(
            run="0a1b2c3d", rollout="c0ffee00", sha256=SHA256, size_bytes=2_000_000, name="1.2", number=1_772_366_460
        ),
    ),
    "claim": (decode_claim, Claim(token="c0ffee00" * 4, device="board-03", request="PEM", proof="c0ffee00" * 16)),
    "admitted": (decode_claim_answer, Admitted(request=SHA256, certificate="PEM")),
    "claim-refused": (decode_claim_answer, ClaimRefused(request=SHA256, reason="the token was used already")),
    "device-profile": (
        lambda payload: msgspec.json.decode(payload, type=DeviceProfile),
        DeviceProfile(
            edgefed_version="0.1.0",
            host="barn",
            model="NVIDIA Jetson Orin Nano Developer Kit",
            architecture="aarch64",
            system="Linux 5.15.148-tegra",
            python="3.10.12",
            cpu_model=None,
            cpu_count=6,
            memory_total_bytes=7990894592,
            memory_available_bytes=6442450944,
            disk_free_bytes=107374182400,
            quantization="nf4",
            max_rank=8,
            board="jetson-orin-nano-8gb",
            memory=MemoryProfile(
                kind="unified",
                total_bytes=7990894592,
                available_bytes=6442450944,
                host=HostMemory(total_bytes=7990894592, available_bytes=6442450944),
                method="MemAvailable",
            ),
            cpu=CpuProfile(
                model=None,
                architecture="aarch64",
                usable=6,
                logical=6,
                physical=6,
                clock_max_hz=measured(1510400000.0, "cpufreq"),
                instructions=("asimd",),
            ),
            gpu=GpuProfile(
                name="Orin",
                compute_capability=8.7,
                integrated=True,
                memory_total_bytes=7990894592,
                memory_free_bytes=1073741824,
                sm_count=8,
                clock_hz=measured(624750000.0, "devfreq"),
            ),
            compute=ComputeProfile(
                hardware="cuda",
                threads=6,
                flops_per_s={"bf16": measured(8.0e12, "torch.mm"), "int8": absent("no kernel")},
                memory_bandwidth_bytes_per_s=measured(5.5e10, "copy"),
                torch_version="2.11.0",
                bitsandbytes_version=None,
            ),
            storage=StorageProfile(
                total_bytes=256000000000,
                free_bytes=107374182400,
                file_system="ext4",
                read_bytes_per_s=measured(1.5e9, "128 MiB"),
                write_bytes_per_s=measured(5.0e8, "128 MiB"),
                sync_s=measured(0.002, "fsync"),
            ),
            power=PowerProfile(
                mode="15W",
                sensors=(
                    PowerSensor(name="VDD_IN", method="ina3221", scope="module", coverage="the module", used=True),
                ),
                absent=(AbsentSensor(name="rapl", reason="no such directory", remedy=""),),
            ),
            thermal=ThermalProfile(temperature_c={"gpu-thermal": 48.5}, throttled=False),
            network=NetworkProfile(
                latency_s=measured(0.004, "median"),
                uplink_bytes_per_s=measured(1.0e7, "1 MiB"),
                downlink_bytes_per_s=absent("the aggregator declined"),
            ),
            why_null={"real": "nothing is emulated"},
            warnings=("hot",),
            measured_unix_s=1700000000.5,
            quick=True,
            flashed=Flashed(manifest_sha256="a" * 64, edgefed_version="0.1.0", board="Debian 12", complete=True),
            release=ReleaseState(
                rollout="1b2c3d4e",
                bundle=SHA256,
                name="0.2.0",
                number=7,
                state="rolled-back",
                reason="it did not come up",
            ),
        ),
    ),
}

# --- any message of any type, from the types themselves ---------------------------------------------------------------

TEXT = st.text(st.characters(codec="utf-8"), max_size=20)


def values_of(kind: inspect.Type) -> st.SearchStrategy[Any]:
    """Returns a strategy for what a msgspec type allows."""
    match kind:
        case inspect.ListType(item_type=item, min_length=shortest):
            return st.lists(values_of(item), min_size=shortest or 0, max_size=3)
        case inspect.TupleType(item_types=items):
            return st.tuples(*(values_of(item) for item in items))
        case inspect.UnionType(types=types):
            return st.one_of(*(values_of(one) for one in types))
        case inspect.StructType(cls=cls, fields=fields):
            return st.builds(_build, st.just(cls), st.fixed_dictionaries({f.name: values_of(f.type) for f in fields}))
    return _scalars_of(kind)


def _scalars_of(kind: inspect.Type) -> st.SearchStrategy[Any]:
    match kind:
        case inspect.IntType(ge=ge, le=le):
            return st.integers(ge, le if le is not None else 2**53)
        case inspect.FloatType(gt=gt, ge=ge, lt=lt, le=le):
            low = gt if gt is not None else ge
            open_ends = {"exclude_min": gt is not None, "exclude_max": lt is not None}
            high = lt if lt is not None else le
            return st.floats(low, high, allow_nan=False, allow_infinity=False, **open_ends)
        case inspect.StrType(pattern=str(pattern)):
            return st.from_regex(pattern)
        case inspect.StrType(min_length=shortest):
            return st.text(st.characters(codec="utf-8"), min_size=shortest or 0, max_size=20)
        case inspect.BoolType():
            return st.booleans()
        case inspect.NoneType():
            return st.none()
        case inspect.LiteralType(values=values):
            return st.sampled_from(values)
    raise NotImplementedError(kind)


def _build(cls: type[Any], fields: dict[str, Any]) -> Any:
    if cls is SummarizationTask:
        fields["prompt"] += "{source}"
    if cls is Training:
        fields["batch_size"] *= max(1, fields["micro_batch_size"])
    try:
        return cls(**fields)
    except ValueError:  # fields that do not go together, such as fedit and two ranks
        reject()


@pytest.mark.parametrize("channel", DECODERS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_every_message_comes_back_as_it_went(channel: str, data: st.DataObject) -> None:
    decode, kind = DECODERS[channel]
    message = data.draw(values_of(inspect.type_info(kind)))
    payload = encode(message)
    assert decode(payload) == message
    assert b"\n" not in payload


# --- what is not a message --------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)


def decodes_or_is_refused(payload: bytes) -> None:
    for decode, _ in DECODERS.values():
        try:
            decode(payload)
        except MessageError as error:
            assert "not a valid" in str(error)  # noqa: PT017 - most of these bytes may well decode


@given(payload=st.binary(max_size=200))
@example(payload=b"")
@example(payload=b"[" * 100_000)
@example(payload=b'{"type":' * 10_000)
@example(payload=b'{"type":"join","run":"\xff\xfe"}')
@example(payload=b'{"type":"decline","run":"\\ud800","round":1,"reason":""}')
@example(payload=b'{"type":"decline","run":"r","round":' + b"9" * 5000 + b',"reason":""}')
@example(payload=b'{"status":"ready","instance":"x","loss":1e999}')
@example(payload=b'{"status":"ready","instance":"x","loss":NaN}')
def test_random_bytes_are_refused_and_nothing_worse(payload: bytes) -> None:
    decodes_or_is_refused(payload)


@settings(max_examples=200, deadline=None)
@given(name=st.sampled_from(sorted(SAMPLES)), data=st.data())
def test_mutated_messages_are_read_or_refused_and_nothing_worse(name: str, data: st.DataObject) -> None:
    tree: Any = json.loads(encode(SAMPLES[name][1]))
    here = tree
    while True:
        key = data.draw(st.sampled_from(sorted(here) if isinstance(here, dict) else range(len(here))))
        if not (isinstance(here[key], dict | list) and here[key] and data.draw(st.booleans())):
            break
        here = here[key]
    if data.draw(st.booleans()):
        here[key] = data.draw(JSON)
    else:
        del here[key]
    decodes_or_is_refused(json.dumps(tree).encode())


@settings(max_examples=100, deadline=None)
@given(name=st.sampled_from(sorted(SAMPLES)), data=st.data())
def test_a_message_that_was_cut_short_is_refused(name: str, data: st.DataObject) -> None:
    decode, message = SAMPLES[name]
    payload = encode(message)
    with pytest.raises((MessageError, msgspec.DecodeError)):
        decode(payload[: data.draw(st.integers(0, len(payload) - 1))])


def changed(name: str, **fields: Any) -> bytes:
    return json.dumps({**json.loads(encode(SAMPLES[name][1])), **fields}).encode()


@pytest.mark.parametrize(
    ("name", "fields", "said"),
    [
        ("join", {"type": "jion"}, "Invalid value 'jion' - at `$.type`"),
        ("join", {"type": "accepted"}, "Invalid value 'accepted' - at `$.type`"),
        ("round-open", {"method": {"type": "p-tuning"}}, "Invalid value 'p-tuning' - at `$.method.type`"),
        ("join", {"round": "2"}, "Expected `int`, got `str` - at `$.round`"),
        ("join", {"round": -1}, "`$.round`"),
        ("join", {"examples": 2**53}, "`$.examples`"),
        ("join", {"plan": {"rank": 0, "held_rank": 0, "quantization": "nf4"}}, "`$.plan.rank`"),
        ("join", {"plan": {"rank": 4, "held_rank": 0, "quantization": "int3"}}, "`$.plan.quantization`"),
        ("join", {"run": "../../elsewhere"}, "`$.run`"),
        ("join", {"run": "run\n"}, "`$.run`"),
        ("join", {"run": ""}, "`$.run`"),
        ("decline", {"reason": "x" * 4097}, "`$.reason`"),
        ("upload-grant", {"sha256": SHA256.upper()}, "`$.sha256`"),
        ("upload-grant", {"sha256": SHA256 + "\n"}, "`$.sha256`"),
        ("upload-grant", {"missing": [[0, 1]] * (MAX_RANGES + 1)}, "`$.missing`"),
        ("upload-grant", {"missing": [[0, 1, 2]]}, "`$.missing[0]`"),
        ("update-offer", {"size_bytes": 0}, "`$.size_bytes`"),
        ("device-state", {"status": "asleep"}, "`$.status`"),
    ],
)
def test_a_wrong_field_is_named(name: str, fields: dict[str, Any], said: str) -> None:
    decode, _ = SAMPLES[name]
    with pytest.raises(MessageError) as caught:
        decode(changed(name, **fields))
    assert said in str(caught.value)


def test_a_record_cannot_grow_without_bound() -> None:
    record = json.loads(encode(RECORD))
    record["step_records"] *= MAX_STEP_RECORDS + 1
    with pytest.raises(MessageError, match="step_records"):
        decode_up(changed("update-offer", record=record))


# --- evolution --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SAMPLES)
def test_fields_of_a_newer_version_are_ignored(name: str) -> None:
    decode, message = SAMPLES[name]
    assert decode(changed(name, a_field_of_the_future=[1, {"two": 3}])) == message


def test_steps_of_a_newer_version_may_have_more_columns() -> None:
    record = json.loads(encode(RECORD))
    record["step_records"] = [[*step, "more"] for step in record["step_records"]]
    assert decode_up(changed("update-offer", record=record)) == SAMPLES["update-offer"][1]


@pytest.mark.parametrize(
    ("decode", "old", "message"),
    [
        (decode_device_state, {"status": "ready", "instance": "x"}, DeviceState(status="ready", instance="x")),
        (decode_aggregator_state, {"status": "lost", "instance": ""}, AggregatorState(status="lost", instance="")),
        (decode_round, {"type": "finished", "run": "r", "round": 3}, FederationFinished(run="r", round=3)),
        (
            SAMPLES["device-profile"][0],
            {
                "edgefed_version": "0.1.0",
                "host": "barn",
                "model": None,
                "architecture": "aarch64",
                "system": "Linux",
                "python": "3.10.12",
                "cpu_model": None,
                "cpu_count": 6,
                "memory_total_bytes": 8,
                "memory_available_bytes": 6,
                "disk_free_bytes": 9,
                "quantization": "nf4",
                "max_rank": 8,
            },
            DeviceProfile(
                edgefed_version="0.1.0",
                host="barn",
                model=None,
                architecture="aarch64",
                system="Linux",
                python="3.10.12",
                cpu_model=None,
                cpu_count=6,
                memory_total_bytes=8,
                memory_available_bytes=6,
                disk_free_bytes=9,
                quantization="nf4",
                max_rank=8,
            ),
        ),
        (
            decode_down,
            {"type": "refused", "run": "r", "round": 3, "reason": "full"},
            Refused(run="r", round=3, reason="full", final=False),
        ),
        (
            decode_up,
            {
                "type": "evaluation-report",
                "run": "r",
                "round": 3,
                "record": {
                    "device": "a",
                    "round": 3,
                    "rank": 0,
                    "held_rank": 4,
                    "quantization": "fp32",
                    "examples": 7,
                },
            },
            EvaluationReport(
                run="r",
                round=3,
                record=RoundRecord(device="a", round=3, rank=0, held_rank=4, quantization="fp32", examples=7),
            ),
        ),
    ],
)
def test_messages_from_before_a_field_existed_still_decode(
    decode: Decode, old: dict[str, Any], message: msgspec.Struct
) -> None:
    assert decode(json.dumps(old).encode()) == message


GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize("name", SAMPLES)
def test_the_bytes_on_the_wire_are_what_they_were(name: str) -> None:
    """Older devices read and write these bytes. If a change is meant and follows the rules in `protocol.tasks`, put the
    new bytes into the file by hand; the old ones must still decode."""
    decode, message = SAMPLES[name]
    golden = (GOLDEN / f"{name}.json").read_bytes().rstrip(b"\n")
    assert decode(golden) == message
    assert encode(message) == golden


@pytest.mark.parametrize(("name", "later"), [("round-open", "sealing_key"), ("update-offer", "sealed_for")])
def test_who_knows_nothing_of_sealing_is_understood(name: str, later: str) -> None:
    decode, message = SAMPLES[name]
    old = json.loads((GOLDEN / f"{name}.json").read_bytes())
    del old[later]
    assert decode(json.dumps(old).encode()) == message
    with pytest.raises(MessageError):
        decode(json.dumps({**old, later: "00"}).encode())


@pytest.mark.parametrize(
    ("payload", "signed"),
    [
        (b'{"run":"r","signature":{"value":""}}', True),
        (b'{"run":"r"}', False),
        (b"[" * 9999, False),
        (b"\xff", False),
        (b'"signature"', False),
    ],
)
def test_a_signature_is_seen_by_those_who_do_not_check_it(payload: bytes, signed: bool) -> None:
    assert is_signed(payload) is signed


def test_every_message_type_has_a_sample_and_every_golden_file_a_message() -> None:
    types = {type(message) for _, message in SAMPLES.values()}
    for _, kind in DECODERS.values():
        info = inspect.type_info(kind)
        alternatives = info.types if isinstance(info, inspect.UnionType) else (info,)
        assert {one.cls for one in alternatives if isinstance(one, inspect.StructType)} <= types
    assert {path.stem for path in GOLDEN.glob("*")} == set(SAMPLES)


# --- small computations -----------------------------------------------------------------------------------------------


def test_a_manifest_knows_its_size_and_rank() -> None:
    assert (MANIFEST.size_bytes, MANIFEST.rank) == (12288, 16)
    assert (Manifest().size_bytes, Manifest().rank) == (0, 0)


def test_decoded_messages_cannot_be_changed() -> None:
    message = decode_up(encode(SAMPLES["join"][1]))
    with pytest.raises(AttributeError):
        message.round = 3  # type: ignore[misc]
