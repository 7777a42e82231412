"""Control messages: typed, tagged JSON, so that `mosquitto_sub -v` is a debugger.

Strict on the way in: a message of an unknown type, with a missing field, a wrong type or a value out of range is a
`MessageError`, never a half-read value. The evolution rules stand in `edgefed.protocol.tasks`.

::

    topic              types
    aggregator/state   AggregatorState
    round              RoundOpen | FederationFinished
    device/<id>/state  DeviceState
    device/<id>/profile  DeviceProfile (edgefed.devices.profile)
    device/<id>/up     Join | Decline | PartsWanted | UpdateOffer | EvaluationReport
    device/<id>/down   Accepted | Refused | UploadGrant | UploadProgress | Acknowledged
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from edgefed.errors import MessageError
from edgefed.protocol.chunks import MAX_WIRE_RANGES
from edgefed.protocol.records import Count, PositiveCount, RoundRecord
from edgefed.protocol.tasks import (
    Evaluation,
    Method,
    ModelReference,
    Quantization,
    SummarizationTask,
    Training,
)

__all__ = [
    "MAX_RANGES",
    "Accepted",
    "Acknowledged",
    "AggregatorState",
    "Decline",
    "DeviceState",
    "DownMessage",
    "EvaluationReport",
    "FederationFinished",
    "Join",
    "Manifest",
    "Part",
    "PartRanges",
    "PartsWanted",
    "Phase",
    "Plan",
    "Refused",
    "RoundMessage",
    "RoundOpen",
    "UpMessage",
    "UpdateOffer",
    "UploadGrant",
    "UploadProgress",
    "decode_aggregator_state",
    "decode_device_state",
    "decode_down",
    "decode_round",
    "decode_up",
    "encode",
]

MAX_RANGES = MAX_WIRE_RANGES
"""A list of missing ranges is cut there; the receiver asks again for the rest."""

Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
RangeList = Annotated[list[tuple[Count, Count]], Meta(max_length=MAX_RANGES)]
Text = Annotated[str, Meta(max_length=4096)]
RunId = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,63}\Z")]  # devices name a directory by it
Phase = Literal["gathering", "training", "merging", "finished"]


class _Wire(msgspec.Struct, frozen=True, kw_only=True):
    """Common base: frozen, keyword-only, unknown fields ignored."""


class Part(_Wire, frozen=True, kw_only=True):
    """One blob of the global state: a rank layer [rank_lo, rank_hi) of the adapter."""

    sha256: Sha256
    size_bytes: PositiveCount
    rank_lo: Count = 0
    rank_hi: Count = 0


class Manifest(_Wire, frozen=True, kw_only=True):
    """The global adapter that a round starts from, as parts in order; none before anything was learned."""

    parts: list[Part] = []

    @property
    def size_bytes(self) -> int:
        """Bytes of all parts together."""
        return sum(part.size_bytes for part in self.parts)

    @property
    def rank(self) -> int:
        """Rank of the whole global adapter."""
        return max((part.rank_hi for part in self.parts), default=0)


class Plan(_Wire, frozen=True, kw_only=True):
    """What a device intends: the rank it trains, the prefix of the global adapter it holds, its base precision."""

    rank: PositiveCount
    held_rank: Count
    quantization: Quantization


# --- retained -------------------------------------------------------------------------------------------------------


class AggregatorState(_Wire, frozen=True, kw_only=True):
    """Host state. `status` is `lost` in the will; devices then keep what they have and wait."""

    status: Literal["online", "finished", "stopped", "lost"]
    instance: str
    run: str = ""
    phase: Phase = "gathering"
    round: Count = 0
    rounds: Count = 0
    joined: Count = 0
    accepted: Count = 0
    updates: Count = 0
    quorum: Count = 0
    rejected: Count = 0
    best_round: Count | None = None
    best_loss: float | None = None
    last_loss: float | None = None
    received_bytes: Count = 0
    broadcast_bytes: Count = 0
    note: Text = ""


class DeviceState(_Wire, frozen=True, kw_only=True):
    """What a device is doing.

    `instance` tells two processes with one device id apart; `objects_to` names an instance that has no right to the id.
    """

    status: Literal["init", "ready", "downloading", "training", "uploading", "sleeping", "disconnected", "lost"]
    instance: str
    since_unix_s: float = 0.0
    round: Count = 0
    step: Count = 0
    steps: Count = 0
    loss: float | None = None
    note: Text = ""
    host: str = ""
    pid: Count = 0
    objects_to: str = ""


class RoundOpen(_Wire, frozen=True, kw_only=True, tag="round-open"):
    """The open round. A device that wants to take part answers with `Join`.

    Attributes:
        run: id of this federation; a device forgets what it kept for another run.
        kind: `train`, or `evaluate` for the last look at the final adapter, which nobody trains in.
        deadline_s: seconds that the round stays open once it has gathered its participants.
        evaluation: how the received adapter is evaluated on the device, and what is held back for that in every round.
        evaluates: whether this round does so.
        late_is_used: whether an update that comes after the round has closed still counts for something.
        seed: the federation's; devices derive their own from it, the round and their id.
    """

    run: RunId
    round: PositiveCount
    rounds: PositiveCount
    kind: Literal["train", "evaluate"]
    model: ModelReference
    task: SummarizationTask
    method: Method
    training: Training
    evaluation: Evaluation
    evaluates: bool
    deadline_s: float
    late_is_used: bool = False
    seed: int
    manifest: Manifest


class FederationFinished(_Wire, frozen=True, kw_only=True, tag="finished"):
    """No further round will come in this run."""

    run: RunId
    round: Count
    reason: Text = ""


# --- device -> aggregator -------------------------------------------------------------------------------------------


class Join(_Wire, frozen=True, kw_only=True, tag="join"):
    """Asks to take part in the open round."""

    run: RunId
    round: Count
    plan: Plan
    fingerprint: str
    model: str = ""
    examples: Count


class Decline(_Wire, frozen=True, kw_only=True, tag="decline"):
    """Will not take part, or gives up, and why."""

    run: RunId
    round: Count
    reason: Text


class PartRanges(_Wire, frozen=True, kw_only=True):
    """What is missing of one part."""

    sha256: Sha256
    missing: RangeList


class PartsWanted(_Wire, frozen=True, kw_only=True, tag="parts-wanted"):
    """Negative acknowledgement: what has not arrived of the broadcast parts.

    All parts in one message: the broadcast begins once everybody has asked, and must then know everything that is
    wanted, or it would send some of it twice.
    """

    run: RunId
    parts: Annotated[list[PartRanges], Meta(max_length=MAX_RANGES)]


class UpdateOffer(_Wire, frozen=True, kw_only=True, tag="update-offer"):
    """Announces an update; answered by `UploadGrant`, or at once by `Acknowledged`.

    Idempotent by (round, device, sha256).
    """

    run: RunId
    round: PositiveCount
    sha256: Sha256
    size_bytes: PositiveCount
    plan: Plan
    fingerprint: str
    model: str = ""
    examples: PositiveCount
    record: RoundRecord


class EvaluationReport(_Wire, frozen=True, kw_only=True, tag="evaluation-report"):
    """The answer to a round of kind `evaluate`: a record and no update."""

    run: RunId
    round: PositiveCount
    record: RoundRecord


# --- aggregator -> device -------------------------------------------------------------------------------------------


class Accepted(_Wire, frozen=True, kw_only=True, tag="accepted"):
    """Take part: this many seconds are left (relative, because clocks on boards are often wrong)."""

    run: RunId
    round: Count
    remaining_s: float


class Refused(_Wire, frozen=True, kw_only=True, tag="refused"):
    """Do not take part in this round. `final`: not in any later round of this run either."""

    run: RunId
    round: Count
    reason: Text
    final: bool = False


class UploadGrant(_Wire, frozen=True, kw_only=True, tag="upload-grant"):
    """Send these ranges in such chunks, at most `window_chunks` beyond what `UploadProgress` has confirmed.

    A list of ranges that was too long is cut; the rest is asked for once these have arrived.
    """

    sha256: Sha256
    missing: RangeList
    chunk_bytes: PositiveCount
    window_chunks: PositiveCount


class UploadProgress(_Wire, frozen=True, kw_only=True, tag="upload-progress"):
    """How much has arrived in total: moves the sender's window."""

    sha256: Sha256
    received_bytes: Count


class Acknowledged(_Wire, frozen=True, kw_only=True, tag="acknowledged"):
    """The aggregator has the update (or report) durably and will never need it again, or refuses it for good.

    `counted`: in this round's sum. `late`: kept, and used in a later sum with a discount. `dropped`: arrived after its
    round and not used. `rejected`: refused, for the reason given.
    """

    run: RunId
    round: Count
    sha256: str
    outcome: Literal["counted", "late", "dropped", "rejected"]
    reason: Text = ""


RoundMessage = RoundOpen | FederationFinished
UpMessage = Join | Decline | PartsWanted | UpdateOffer | EvaluationReport
DownMessage = Accepted | Refused | UploadGrant | UploadProgress | Acknowledged

_T = TypeVar("_T")

_encoder = msgspec.json.Encoder()


def encode(message: msgspec.Struct) -> bytes:
    """Returns the message as one line of JSON."""
    return _encoder.encode(message)


def _decode(payload: bytes, kind: Any, what: str) -> Any:
    try:
        return msgspec.json.decode(payload, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise MessageError(f"not a valid {what}: {error}") from None


def decode_up(payload: bytes) -> UpMessage:
    """Returns a message from a device. Raises `MessageError` if it is none."""
    message: UpMessage = _decode(payload, UpMessage, "message from a device")
    return message


def decode_down(payload: bytes) -> DownMessage:
    """Returns a message to a device. Raises `MessageError` if it is none."""
    message: DownMessage = _decode(payload, DownMessage, "message to a device")
    return message


def decode_round(payload: bytes) -> RoundMessage:
    """Returns what the round topic holds. Raises `MessageError` if it is none."""
    message: RoundMessage = _decode(payload, RoundMessage, "round announcement")
    return message


def decode_device_state(payload: bytes) -> DeviceState:
    """Returns a device's state. Raises `MessageError` if it is none."""
    state: DeviceState = _decode(payload, DeviceState, "device state")
    return state


def decode_aggregator_state(payload: bytes) -> AggregatorState:
    """Returns the aggregator's state. Raises `MessageError` if it is none."""
    state: AggregatorState = _decode(payload, AggregatorState, "aggregator state")
    return state
