"""A training that was stopped between two steps, in a file: going on from it gives the bits of one never stopped.

A safetensors file with the trained factors, AdamW's moments and the random generators' states, and beside them, as JSON
in its metadata, the steps done. The key says which training it is: a file of another round, plan or machine is ignored.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from edgefed.errors import WorkerError
from edgefed.files import temporary_beside
from edgefed.training.steps import StepRecord

__all__ = ["Suspended", "Suspension", "read_suspension", "write_suspension"]

_FORMAT = "edgefed-suspension/1"


@dataclass(frozen=True, slots=True)
class Suspension:
    """Everything that the next step depends on.

    Attributes:
        steps: the steps done.
        weights: the trained factors, in the order of `AdaptedModel.parameters`.
        moments: the optimizer's tensors by name, per weight; empty dictionaries for an optimizer without memory.
        random: the generators' states, the CPU's first.
    """

    steps: Sequence[StepRecord]
    weights: Sequence[torch.Tensor]
    moments: Sequence[dict[str, torch.Tensor]]
    random: Sequence[torch.Tensor]

    @classmethod
    def of(
        cls, parameters: Sequence[torch.Tensor], optimizer: torch.optim.Optimizer, steps: Sequence[StepRecord]
    ) -> Suspension:
        """Return the present state, copied."""
        random = [torch.get_rng_state()]
        if parameters[0].is_cuda:
            random.append(torch.cuda.get_rng_state(parameters[0].device))
        return cls(
            steps=tuple(steps),
            weights=[one.detach().cpu().clone() for one in parameters],
            moments=[
                {name: value.detach().cpu().clone() for name, value in optimizer.state[one].items()}
                for one in parameters
            ],
            random=random,
        )

    def restore(self, parameters: Sequence[torch.Tensor], optimizer: torch.optim.Optimizer) -> None:
        """Put everything back where it was.

        Raises:
            WorkerError: it belongs to another model or rank.
        """
        if [one.shape for one in parameters] != [one.shape for one in self.weights]:
            raise WorkerError("the suspended training is of another model or rank")
        with torch.no_grad():
            for parameter, weight, moments in zip(parameters, self.weights, self.moments, strict=True):
                parameter.copy_(weight)
                for name, value in moments.items():  # AdamW keeps its step counter on the CPU
                    optimizer.state[parameter][name] = value.to(parameter.device) if value.ndim else value
        torch.set_rng_state(self.random[0])
        if parameters[0].is_cuda and len(self.random) > 1:
            torch.cuda.set_rng_state(self.random[1], parameters[0].device)


class Suspended(Exception):
    """Training has stopped on request; `suspension` is what it takes to go on."""

    def __init__(self, suspension: Suspension) -> None:
        super().__init__(f"suspended after {len(suspension.steps)} steps")
        self.suspension = suspension


def write_suspension(path: Path, key: str, suspension: Suspension) -> None:
    """Keep a suspension in a file, whole or not at all."""
    tensors = {f"weight/{i}": weight for i, weight in enumerate(suspension.weights)}
    for i, moments in enumerate(suspension.moments):
        tensors |= {f"moment/{i}/{name}": value for name, value in moments.items()}
    tensors |= {f"random/{i}": state for i, state in enumerate(suspension.random)}
    steps = json.dumps([asdict(step) for step in suspension.steps])
    temporary = temporary_beside(path)
    save_file(tensors, temporary, {"format": _FORMAT, "key": key, "steps": steps})
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)


def read_suspension(path: Path, key: str) -> Suspension | None:
    """Return what `write_suspension` kept under this key; None where there is nothing, or nothing that can be used."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if (metadata.get("format"), metadata.get("key")) != (_FORMAT, key):
                return None
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            steps = [StepRecord(**step) for step in json.loads(metadata["steps"])]
    except (SafetensorError, OSError, ValueError, TypeError, KeyError):
        return None
    count = sum(name.startswith("weight/") for name in tensors)
    moments: list[dict[str, torch.Tensor]] = [{} for _ in range(count)]
    for name, value in tensors.items():
        kind, _, rest = name.partition("/")
        if kind == "moment":
            number, _, what = rest.partition("/")
            moments[int(number)][what] = value
    return Suspension(
        steps=steps,
        weights=[tensors[f"weight/{i}"] for i in range(count)],
        moments=moments,
        random=[tensors[f"random/{i}"] for i in range(sum(name.startswith("random/") for name in tensors))],
    )
