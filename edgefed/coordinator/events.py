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
    "GiveUp",
    "GivenUp",
    "Merge",
    "MergeFailed",
    "Merged",
    "Recovered",
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
        kept_sha256: of what is kept of it, where that is not the blob as it came but what was sealed in it.
    """

    device: str
    round: int
    sha256: str
    examples: int
    rank: int
    held_rank: int
    kept_sha256: str = ""


# --- events -----------------------------------------------------------------------------------------------------------


class Begin(msgspec.Struct, frozen=True, tag="begin"):
    """The federation starts."""


class DeviceJoined(msgspec.Struct, frozen=True, tag="joined"):
    """A device asked to take part in the open round."""

    device: str


class DeviceLeft(msgspec.Struct, frozen=True, tag="left"):
    """A device declined, gave up, or was lost. `diverged`: it has found values that are not finite."""

    device: str
    diverged: bool = False


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


class MergeFailed(msgspec.Struct, frozen=True, tag="merge-failed"):
    """The round's sum cannot be written down: it is not finite."""

    round: int
    reason: str


class GivenUp(msgspec.Struct, frozen=True, tag="given-up"):
    """The round is given up: its adapter is that of an earlier round once more, and that is durable."""

    round: int


class Recovered(msgspec.Struct, frozen=True, tag="recovered"):
    """The store was put right from what was whole: all rounds up to this one are over.

    Attributes:
        round: the last of them; its adapter is one that is whole.
        losses, typical: of evaluated adapters, as `State` has them.
    """

    round: int
    losses: tuple[tuple[int, float], ...] = ()
    typical: tuple[tuple[int, float], ...] = ()


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
    | MergeFailed
    | GivenUp
    | Recovered
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
class GiveUp:
    """Make the adapter of an earlier round that of this one, then report `GivenUp`.

    Attributes:
        round: the round.
        of: the earlier round; 0 is the adapter before the first.
        reason: why, in words.
        updates: what had been accepted, and will be in no sum.
    """

    round: int
    of: int
    reason: str
    updates: tuple[Update, ...]


@dataclass(frozen=True, slots=True)
class Finish:
    """Announce the end; `failed` where it came before the last round or the target."""

    reason: str
    failed: bool = False


Action = Announce | Accept | Refuse | Merge | GiveUp | Finish
