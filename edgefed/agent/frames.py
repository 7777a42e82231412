"""What supervisor and worker say to each other: one JSON line per frame, requests on stdin, answers on stdout.

Paths, not tensors: what is large lies in files that both can read. A request is answered by exactly one final frame
(`Prepared`, `Finished`, `Probed`, `Benched` or `Failed`); `Progress` frames may come before it.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from edgefed.data.source import DataSource
from edgefed.devices.compute import MachineProbe
from edgefed.errors import WorkerError
from edgefed.protocol.messages.retained import RoundOpen
from edgefed.protocol.records import RoundRecord
from edgefed.training.bench_work import BenchOutcome, BenchWork
from edgefed.training.privacy_budget import PrivacyCost, PrivacySpent
from edgefed.training.round_work import RoundWork, TrainingSet

__all__ = [
    "MAX_FRAME_BYTES",
    "Answer",
    "Bench",
    "Benched",
    "Cancel",
    "Failed",
    "Finished",
    "Prepare",
    "Prepared",
    "Probe",
    "Probed",
    "Progress",
    "Request",
    "Suspend",
    "Work",
    "decode_answer",
    "decode_request",
    "encode_frame",
]

MAX_FRAME_BYTES = 4 * 1024 * 1024


class _Frame(msgspec.Struct, frozen=True, kw_only=True):
    """Common base."""


class Prepare(_Frame, frozen=True, kw_only=True, tag="prepare"):
    """Find the base model and read the examples that a round needs.

    Attributes:
        round: the announcement.
        data: where this device's examples are.
        models: local directories by model name.
        spent: of the examples' privacy, so far.
    """

    round: RoundOpen
    data: DataSource
    models: dict[str, str]
    spent: PrivacySpent = PrivacySpent()


class Work(_Frame, frozen=True, kw_only=True, tag="work"):
    """Do the device's share of a round: evaluate if asked, then train unless the round is for evaluation only."""

    work: RoundWork


class Probe(_Frame, frozen=True, kw_only=True, tag="probe"):
    """Measure what this machine can compute.

    Attributes:
        hardware: `auto` takes a GPU where there is one.
        threads: CPU threads; 0 leaves torch's choice.
        quick: leave out what takes more than a second.
    """

    hardware: Literal["auto", "cpu", "cuda"] = "auto"
    threads: Annotated[int, Meta(ge=0)] = 0
    quick: bool = False


class Bench(_Frame, frozen=True, kw_only=True, tag="bench"):
    """Time steps of training on random tokens. `Suspend` ends it early, with the steps that were measured."""

    work: BenchWork


class Cancel(_Frame, frozen=True, kw_only=True, tag="cancel"):
    """Stop the work under way at the next step; it is then answered by `Failed(kind="cancelled")`."""


class Suspend(_Frame, frozen=True, kw_only=True, tag="suspend"):
    """Stop the work under way between two steps and keep what was done; it is answered by `Failed(kind="suspended")`.

    The same `Work`, sent again to this or another worker, goes on from there. Work that is nearly over is finished.
    """


class Prepared(_Frame, frozen=True, kw_only=True, tag="prepared"):
    """The answer to `Prepare`: model path, fingerprint, what there is to train on, and what privacy that costs."""

    model_path: str
    fingerprint: str
    training_set: TrainingSet
    privacy: PrivacyCost | None = None


class Probed(_Frame, frozen=True, kw_only=True, tag="probed"):
    """The answer to `Probe`."""

    machine: MachineProbe


class Benched(_Frame, frozen=True, kw_only=True, tag="benched"):
    """The answer to `Bench`."""

    outcome: BenchOutcome


class Progress(_Frame, frozen=True, kw_only=True, tag="progress"):
    """One thing was done: a stage has begun, or an optimizer step is over. `what` is measured while `measuring`.

    Only a bench has the stages `writing`, whose steps are bytes of the checkpoint, and `warming`.
    """

    stage: Literal["loading", "evaluating", "training", "saving", "measuring", "writing", "warming"]
    step: int = 0
    steps: int = 0
    loss: float | None = None
    what: str = ""


class Finished(_Frame, frozen=True, kw_only=True, tag="finished"):
    """The answer to `Work`. The record lacks what only the supervisor knows (bytes and seconds of the transfers)."""

    record: RoundRecord


class Failed(_Frame, frozen=True, kw_only=True, tag="failed"):
    """The request could not be done. `kind` is the branch of the error tree."""

    kind: Literal[
        "memory", "data", "model", "adapter", "config", "disk", "diverged", "worker", "cancelled", "suspended"
    ]
    message: str


Request = Prepare | Work | Probe | Bench | Cancel | Suspend
Answer = Prepared | Progress | Finished | Probed | Benched | Failed

_encoder = msgspec.json.Encoder()


def encode_frame(frame: Request | Answer) -> bytes:
    """Returns the frame as one line."""
    return _encoder.encode(frame) + b"\n"


def decode_request(line: bytes) -> Request:
    """Returns the request in a line. Raises `WorkerError` if it is none."""
    try:
        request: Request = msgspec.json.decode(line, type=Request)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise WorkerError(f"not a request: {error}") from None
    return request


def decode_answer(line: bytes) -> Answer:
    """Returns the answer in a line. Raises `WorkerError` if it is none."""
    try:
        answer: Answer = msgspec.json.decode(line, type=Answer)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise WorkerError(f"the worker wrote something that is not an answer: {error}") from None
    return answer
