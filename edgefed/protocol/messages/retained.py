"""What the broker keeps for whoever comes later: the aggregator's state, the devices' states, the open round."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from edgefed.protocol.messages.manifest import Manifest
from edgefed.protocol.messages.wire import RunId, SealingKeyText, Text, Wire, decode
from edgefed.protocol.records import Count, PositiveCount
from edgefed.protocol.tasks import Evaluation, Method, ModelReference, Privacy, SummarizationTask, Training

__all__ = [
    "AggregatorState",
    "DeviceState",
    "FederationFinished",
    "Instance",
    "Phase",
    "Refusal",
    "RefusalKind",
    "RoundMessage",
    "RoundOpen",
    "decode_aggregator_state",
    "decode_device_state",
    "decode_round",
]

Instance = Annotated[str, Meta(max_length=64)]
"""The name of a process, which others remember."""

Phase = Literal["gathering", "training", "merging", "finished"]


RefusalKind = Literal["rejected", "excluded", "clipped", "silenced", "distrusted", "outdated"]


class Refusal(Wire, frozen=True, kw_only=True):
    """Something of a device that was not taken as it came.

    Attributes:
        what: an update was `rejected` on arrival, `excluded` from its sum, or `clipped` to a bound in it; or the device
            was `silenced` for a while. Or a message in its name was `distrusted`: not signed by it, or with a
            certificate that does not count; or `outdated`: it had said something later before.
        device: whose; the aggregator itself, where a message was in its name.
        round: of the update, or the open one.
        reason: why.
        unix_s: when, by the aggregator's wall clock.
    """

    what: RefusalKind
    device: str
    round: Count
    reason: Text
    unix_s: Annotated[float, Meta(ge=0, lt=253_402_300_800)]  # what a calendar has names for


class AggregatorState(Wire, frozen=True, kw_only=True):
    """Host state. `status` is `lost` in the will; devices then keep what they have and wait.

    `epsilon` is what the sums so far have cost of the devices' privacy at `delta`; null where no noise is added.
    `joined` counts devices that asked to take part in the open round, `accepted` those of them that were selected.
    Bytes are those of the rounds merged so far, by whichever process, and what this one has moved since.
    `given_up` counts rounds that were given up because an adapter had diverged; `gave_up` says of the latest why.
    `rejected`, `excluded`, `clipped`, `silenced`, `distrusted` and `outdated` count refusals, and `refusals` are the
    latest of them, newest last.
    """

    status: Literal["online", "finished", "stopped", "lost"]
    instance: Instance
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
    epsilon: float | None = None
    delta: float | None = None
    note: Text = ""
    excluded: Count = 0
    clipped: Count = 0
    silenced: Count = 0
    refusals: list[Refusal] = msgspec.field(default_factory=list)
    distrusted: Count = 0
    outdated: Count = 0
    given_up: Count = 0
    gave_up: Text = ""


class DeviceState(Wire, frozen=True, kw_only=True):
    """What a device is doing.

    `instance` tells two processes with one device id apart; `objects_to` names an instance that has no right to the id.
    """

    status: Literal["init", "ready", "downloading", "training", "uploading", "sleeping", "disconnected", "lost"]
    instance: Instance
    since_unix_s: float = 0.0
    round: Count = 0
    step: Count = 0
    steps: Count = 0
    loss: float | None = None
    note: Text = ""
    host: str = ""
    pid: Count = 0
    objects_to: str = ""


class RoundOpen(Wire, frozen=True, kw_only=True, tag="round-open"):
    """The open round. A device that wants to take part answers with `Join`.

    Attributes:
        run: id of this federation; a device forgets what it kept for another run.
        kind: `train`, or `evaluate` for the last look at the final adapter, which nobody trains in.
        deadline_s: seconds that the round stays open once it has gathered its participants.
        evaluation: how the received adapter is evaluated on the device, and what is held back for that in every round.
        evaluates: whether this round does so.
        late_is_used: whether an update that comes after the round has closed still counts for something.
        privacy: what the examples on a device are protected by.
        seed: the federation's; devices derive their own from it, the round and their id.
        sealing_key: public key that updates have to be sealed for, in hexadecimal digits; empty where they need not be.
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
    privacy: Privacy = Privacy()
    seed: int
    manifest: Manifest
    sealing_key: SealingKeyText = ""


class FederationFinished(Wire, frozen=True, kw_only=True, tag="finished"):
    """No further round will come in this run."""

    run: RunId
    round: Count
    reason: Text = ""


RoundMessage = RoundOpen | FederationFinished


def decode_round(payload: bytes) -> RoundMessage:
    """Returns what the round topic holds. Raises `MessageError` if it is none."""
    message: RoundMessage = decode(payload, RoundMessage, "round announcement")
    return message


def decode_device_state(payload: bytes) -> DeviceState:
    """Returns a device's state. Raises `MessageError` if it is none."""
    state: DeviceState = decode(payload, DeviceState, "device state")
    return state


def decode_aggregator_state(payload: bytes) -> AggregatorState:
    """Returns the aggregator's state. Raises `MessageError` if it is none."""
    state: AggregatorState = decode(payload, AggregatorState, "aggregator state")
    return state
