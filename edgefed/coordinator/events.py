"""What happens to a federation, and what the round machine wants done about it, as values.

Events serialise, because the store keeps them as its journal.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from edgefed.protocol.messages.down import Duty

__all__ = [
    "Accept",
    "Action",
    "Announce",
    "Begin",
    "DeviceJoined",
    "DeviceLeft",
    "DeviceReturned",
    "EvaluationReceived",
    "Event",
    "Finish",
    "Merge",
    "Merged",
    "Refuse",
    "RosterRead",
    "Stop",
    "Tick",
    "Update",
    "UpdateReceived",
]


class Update(msgspec.Struct, frozen=True, kw_only=True):
    """An update that is safely in the store.

    Attributes:
        device: who sent it.
        round: the round it was trained in.
        sha256: of its blob.
        examples: training examples behind it, its weight before any discount.
        rank, held_rank: trained rank, and how much of the round's global adapter it started from.
    """

    device: str
    round: int
    sha256: str
    examples: int
    rank: int
    held_rank: int


# --- events -----------------------------------------------------------------------------------------------------------


class Begin(msgspec.Struct, frozen=True, tag="begin"):
    """The federation starts."""


class DeviceJoined(msgspec.Struct, frozen=True, tag="joined"):
    """A device asked to take part in the open round."""

    device: str


class DeviceLeft(msgspec.Struct, frozen=True, tag="left"):
    """A device declined, gave up, or was lost."""

    device: str


class DeviceReturned(msgspec.Struct, frozen=True, tag="returned"):
    """A participant that was lost is back and goes on with the round."""

    device: str


class UpdateReceived(msgspec.Struct, frozen=True, tag="update"):
    """An update has been checked and is durable.

    `loss` and `target_tokens` are of the device's evaluation of the adapter it received, where it made one.
    """

    update: Update
    loss: float | None = None
    target_tokens: int = 0


class EvaluationReceived(msgspec.Struct, frozen=True, tag="evaluation"):
    """A device has evaluated the final adapter."""

    device: str
    round: int
    loss: float
    target_tokens: int


class Merged(msgspec.Struct, frozen=True, tag="merged"):
    """The round's sum is durable. `last_because` says why no other may follow; "" where one may."""

    round: int
    last_because: str = ""


class Tick(msgspec.Struct, frozen=True, tag="tick"):
    """Time passed."""


class Stop(msgspec.Struct, frozen=True, tag="stop"):
    """Somebody ended the federation."""

    reason: str


class RosterRead(msgspec.Struct, frozen=True, tag="roster"):
    """The operator's wishes have changed.

    Attributes:
        held: every device that gets no new task, with what is wanted of it, sorted; all others may take part.
    """

    held: tuple[tuple[str, Duty], ...]


Event = (
    Begin
    | DeviceJoined
    | DeviceLeft
    | DeviceReturned
    | UpdateReceived
    | EvaluationReceived
    | Merged
    | Tick
    | Stop
    | RosterRead
)


# --- actions: what to do about it -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Announce:
    """Publish the open round (again)."""


@dataclass(frozen=True, slots=True)
class Accept:
    """Tell a device that it takes part."""

    device: str
    remaining_s: float


@dataclass(frozen=True, slots=True)
class Refuse:
    """Tell a device that it does not take part in this round."""

    device: str
    reason: str


@dataclass(frozen=True, slots=True)
class Merge:
    """Combine these updates into the global adapter, then report `Merged`."""

    round: int
    updates: tuple[Update, ...]


@dataclass(frozen=True, slots=True)
class Finish:
    """Announce the end."""

    reason: str


Action = Announce | Accept | Refuse | Merge | Finish
