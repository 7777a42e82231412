"""A training that was stopped between two steps, in a file: going on from it gives the bits of one never stopped.

A safetensors file with the trained factors, AdamW's moments and the random generators' states, and beside them, as JSON
in its metadata, the steps done. The key says which training it is: a file of another round, plan or machine is ignored.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec
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
        if [(one.shape, one.dtype) for one in parameters] != [(one.shape, one.dtype) for one in self.weights]:
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
    try:
        save_file(tensors, temporary, {"format": _FORMAT, "key": key, "steps": steps})
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


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
        steps = msgspec.convert(json.loads(metadata["steps"]), list[StepRecord])
        weights, random = _numbered(tensors, "weight"), _numbered(tensors, "random")
        moments = [_named(tensors, f"moment/{i}/") for i in range(len(weights))]
        _check(tensors, weights, moments, random)
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError, TypeError, msgspec.ValidationError):
        return None
    return Suspension(steps=steps, weights=weights, moments=moments, random=random)


def _numbered(tensors: Mapping[str, torch.Tensor], kind: str) -> list[torch.Tensor]:
    return [tensors[f"{kind}/{i}"] for i in range(sum(name.startswith(f"{kind}/") for name in tensors))]


def _named(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _check(
    tensors: Mapping[str, torch.Tensor],
    weights: Sequence[torch.Tensor],
    moments: Sequence[Mapping[str, torch.Tensor]],
    random: Sequence[torch.Tensor],
) -> None:
    """Refuse, with an error of Python's or torch's, what an optimizer or a generator would stumble over later."""
    if len(tensors) != len(weights) + sum(map(len, moments)) + len(random):
        raise ValueError("a tensor belongs to nothing")
    if not random:
        raise ValueError("no generator's state")
    if len({frozenset(names) for names in moments}) > 1:
        raise ValueError("the optimizer knows more of one weight than of another")
    for weight, named in zip(weights, moments, strict=True):
        for value in named.values():
            if value.dtype != weight.dtype or value.shape not in (weight.shape, ()):
                raise ValueError("a moment is not of its weight's shape and type")
            if not value.ndim and not value >= 1:
                raise ValueError("a counter of steps that were done counts none")
    torch.Generator().set_state(random[0])
