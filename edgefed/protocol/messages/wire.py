"""What all control messages share: typed, tagged JSON, so that `mosquitto_sub -v` is a debugger.

Strict on the way in: a message of an unknown type, with a missing field, a wrong type or a value out of range is a
`MessageError`, never a half-read value. The evolution rules stand in `edgefed.protocol.tasks`.

::

    topic                module       types
    aggregator/state     retained.py  AggregatorState
    round                retained.py  RoundOpen | FederationFinished
    device/<id>/state    retained.py  DeviceState
    device/<id>/profile               DeviceProfile (edgefed.devices.profile)
    device/<id>/up       up.py        Join | Decline | PartsWanted | UpdateOffer | EvaluationReport | Ping
    device/<id>/down     down.py      Accepted | Refused | UploadGrant | UploadProgress | Acknowledged | Pong |
                                      ReleaseOffered | Standing (retained)
    claim/<name>/up      claims.py    Claim
    claim/<name>/down    claims.py    Admitted | ClaimRefused
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from edgefed.errors import MessageError
from edgefed.protocol.chunks import MAX_WIRE_RANGES
from edgefed.protocol.records import Count

__all__ = [
    "MAX_PADDING_BYTES",
    "MAX_RANGES",
    "Nonce",
    "Padding",
    "RangeList",
    "RunId",
    "SealingKeyText",
    "Sha256",
    "Text",
    "Wire",
    "check_ranges",
    "decode",
    "encode",
    "is_signed",
]

MAX_RANGES = MAX_WIRE_RANGES
"""A list of missing ranges is cut there; the receiver asks again for the rest."""

MAX_PADDING_BYTES = 256 * 1024
"""Of a message that measures the network."""

Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
SealingKeyText = Annotated[str, Meta(pattern=r"^([0-9a-f]{64})?\Z")]  # X25519; empty: none
RangeList = Annotated[list[tuple[Count, Count]], Meta(max_length=MAX_RANGES)]
Text = Annotated[str, Meta(max_length=4096)]
RunId = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,63}\Z")]  # devices name a directory by it

Nonce = Annotated[str, Meta(pattern=r"^[0-9a-f]{1,32}\Z")]
Padding = Annotated[str, Meta(max_length=MAX_PADDING_BYTES)]


class Wire(msgspec.Struct, frozen=True, kw_only=True):
    """Common base: frozen, keyword-only, unknown fields ignored."""


def check_ranges(ranges: Iterable[tuple[int, int]]) -> None:
    """Raises ValueError, which decoding makes a `MessageError`, where one of the ranges ends before it starts."""
    for lo, hi in ranges:
        if hi < lo:
            raise ValueError(f"[{lo}, {hi}) is not a range of bytes")


_encoder = msgspec.json.Encoder()


def encode(message: msgspec.Struct) -> bytes:
    """Returns the message as one line of JSON."""
    return _encoder.encode(message)


def decode(payload: bytes, kind: Any, what: str) -> Any:
    """Returns a message of a type, or of one of a union of types.

    Args:
        payload: what arrived.
        kind: the type, or the union.
        what: what the message should have been, for the error.

    Raises:
        MessageError: it is none.
    """
    try:
        return msgspec.json.decode(payload, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise MessageError(f"not a valid {what}: {error}") from None


class _Signed(msgspec.Struct):
    signature: msgspec.Raw


def is_signed(payload: bytes) -> bool:
    """Whether a message carries a signature, whoever has made it: members that do not sign read over it."""
    try:
        msgspec.json.decode(payload, type=_Signed)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False
    return True
