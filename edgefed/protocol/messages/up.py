"""What a device says to the aggregator."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from edgefed.protocol.messages.manifest import Plan
from edgefed.protocol.messages.wire import (
    MAX_PADDING_BYTES,
    MAX_RANGES,
    Nonce,
    Padding,
    RangeList,
    RunId,
    SealingKeyText,
    Sha256,
    Text,
    Wire,
    check_ranges,
    decode,
)
from edgefed.protocol.records import Count, PositiveCount, RoundRecord

__all__ = [
    "Decline",
    "EvaluationReport",
    "Join",
    "PartRanges",
    "PartsWanted",
    "Ping",
    "RoundWord",
    "UpMessage",
    "UpdateOffer",
    "decode_up",
]


class Join(Wire, frozen=True, kw_only=True, tag="join"):
    """Asks to take part in the open round."""

    run: RunId
    round: Count
    plan: Plan
    fingerprint: str
    model: str = ""
    examples: Count


class Decline(Wire, frozen=True, kw_only=True, tag="decline"):
    """Will not take part, or gives up, and why.

    `diverged`: training, or the adapter that the round starts from, no longer gives finite losses here.
    """

    run: RunId
    round: Count
    reason: Text
    diverged: bool = False


class PartRanges(Wire, frozen=True, kw_only=True):
    """What is missing of one part."""

    sha256: Sha256
    missing: RangeList

    def __post_init__(self) -> None:
        """Refuses ranges that end before they start."""
        check_ranges(self.missing)


class PartsWanted(Wire, frozen=True, kw_only=True, tag="parts-wanted"):
    """Negative acknowledgement: what has not arrived of the broadcast parts.

    All parts in one message: the broadcast begins once everybody has asked, and must then know everything that is
    wanted, or it would send some of it twice.
    """

    run: RunId
    parts: Annotated[list[PartRanges], Meta(max_length=MAX_RANGES)]


class UpdateOffer(Wire, frozen=True, kw_only=True, tag="update-offer"):
    """Announces an update; answered by `UploadGrant`, or at once by `Acknowledged`.

    Idempotent by (round, device, sha256).

    Attributes:
        sha256: of the file as it is sent: of the sealed one, where it is sealed.
        sealed_for: the public key that it is sealed for; empty where it is not.
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
    sealed_for: SealingKeyText = ""


class EvaluationReport(Wire, frozen=True, kw_only=True, tag="evaluation-report"):
    """The answer to a round of kind `evaluate`: a record and no update."""

    run: RunId
    round: PositiveCount
    record: RoundRecord


class Ping(Wire, frozen=True, kw_only=True, tag="ping"):
    """Measures the way to the aggregator and back; belongs to no round, and is answered by `Pong`.

    Attributes:
        nonce: of one measurement; tells its answers from others'.
        sequence: of this ping in the measurement.
        answer_bytes: padding wanted in the answer.
        padding: what travels; its content does not matter.
    """

    nonce: Nonce
    sequence: Count
    answer_bytes: Annotated[int, Meta(ge=0, le=MAX_PADDING_BYTES)] = 0
    padding: Padding = ""


RoundWord = Join | Decline | PartsWanted | UpdateOffer | EvaluationReport
UpMessage = RoundWord | Ping


def decode_up(payload: bytes) -> UpMessage:
    """Returns a message from a device. Raises `MessageError` if it is none."""
    message: UpMessage = decode(payload, UpMessage, "message from a device")
    return message
