"""What the aggregator says to one device."""

from __future__ import annotations

from typing import Literal

from edgefed.protocol.messages.wire import Nonce, Padding, RangeList, RunId, Sha256, Text, Wire, check_ranges, decode
from edgefed.protocol.records import Count, PositiveCount

__all__ = [
    "Accepted",
    "Acknowledged",
    "DownMessage",
    "Duty",
    "Pong",
    "Refused",
    "ReleaseOffered",
    "RoundAnswer",
    "Standing",
    "UploadGrant",
    "UploadProgress",
    "decode_down",
]


class Accepted(Wire, frozen=True, kw_only=True, tag="accepted"):
    """Take part: this many seconds are left (relative, because clocks on boards are often wrong)."""

    run: RunId
    round: Count
    remaining_s: float


class Refused(Wire, frozen=True, kw_only=True, tag="refused"):
    """Do not take part in this round. `final`: not in any later round of this run either."""

    run: RunId
    round: Count
    reason: Text
    final: bool = False


class UploadGrant(Wire, frozen=True, kw_only=True, tag="upload-grant"):
    """Send these ranges in such chunks, at most `window_chunks` beyond what `UploadProgress` has confirmed.

    A list of ranges that was too long is cut; the rest is asked for once these have arrived.
    """

    sha256: Sha256
    missing: RangeList
    chunk_bytes: PositiveCount
    window_chunks: PositiveCount

    def __post_init__(self) -> None:
        """Refuses ranges that end before they start."""
        check_ranges(self.missing)


class UploadProgress(Wire, frozen=True, kw_only=True, tag="upload-progress"):
    """How much has arrived in total: moves the sender's window."""

    sha256: Sha256
    received_bytes: Count


class Acknowledged(Wire, frozen=True, kw_only=True, tag="acknowledged"):
    """The aggregator has the update (or report) durably and will never need it again, or refuses it for good.

    `counted`: in this round's sum. `late`: kept, and used in a later sum with a discount. `dropped`: arrived after its
    round and not used. `rejected`: refused, for the reason given.
    """

    run: RunId
    round: Count
    sha256: str
    outcome: Literal["counted", "late", "dropped", "rejected"]
    reason: Text = ""


class Pong(Wire, frozen=True, kw_only=True, tag="pong"):
    """The answer to `Ping`.

    Attributes:
        nonce, sequence: of the ping.
        padding: as many bytes as were wanted.
        refused: why the aggregator does not measure with this device now; "" where it does.
    """

    nonce: Nonce
    sequence: Count
    padding: Padding = ""
    refused: Text = ""


Duty = Literal["active", "paused", "draining", "removed"]
"""What an operator wants of a device: tasks; none for now; none after the one it has; nothing more, at once."""


class Standing(Wire, frozen=True, kw_only=True, tag="standing"):
    """Whether this device gets tasks in a run. Retained, so that it also reaches a device that was away.

    Attributes:
        run: that it is about.
        duty: what the operator wants.
        reason: why, in words to be logged and shown; "" where it is `active`.
    """

    run: RunId
    duty: Duty
    reason: Text = ""


class ReleaseOffered(Wire, frozen=True, kw_only=True, tag="release-offered"):
    """A release of the agent is to be had here; what becomes of it stands in the device's profile.

    It is said again until the device has answered, and costs nothing where it knows already.

    Attributes:
        run: that parts are asked for in.
        rollout: id of the operator's wish; the same release may be offered again under another.
        sha256: of the bundle's file, which is broadcast as a part of an adapter is.
        size_bytes: of it.
        name: what people call the release.
        number: of the release.
    """

    run: RunId
    rollout: RunId
    sha256: Sha256
    size_bytes: PositiveCount
    name: Text
    number: PositiveCount


RoundAnswer = Accepted | Refused | UploadGrant | UploadProgress | Acknowledged
DownMessage = RoundAnswer | Pong | Standing | ReleaseOffered


def decode_down(payload: bytes) -> DownMessage:
    """Returns a message to a device. Raises `MessageError` if it is none."""
    message: DownMessage = decode(payload, DownMessage, "message to a device")
    return message
