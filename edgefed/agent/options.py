"""What the owner of a device says in `agent.toml`."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from edgefed.data.source import DataSource
from edgefed.errors import ConfigError
from edgefed.protocol.tasks import Quantization
from edgefed.protocol.topics import check_id
from edgefed.transport.options import Broker

__all__ = ["AgentOptions", "Limits", "Worker"]


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What the device can afford.

    Attributes:
        max_rank: largest LoRA rank it trains.
        max_held_rank: largest rank of the global adapter that it holds frozen beside its own; 0 holds all of it.
        quantization: precision of the base weights.
        threads: CPU threads for training; 0 leaves the choice to torch.
    """

    max_rank: Annotated[int, Meta(ge=1)] = 8
    max_held_rank: Annotated[int, Meta(ge=0)] = 0
    quantization: Quantization = "fp32"
    threads: Annotated[int, Meta(ge=0)] = 0


class Worker(msgspec.Struct, frozen=True, kw_only=True):
    """The training subprocess.

    Attributes:
        silence_s: a worker that says nothing for so long has hung and is ended.
        idle_s: a worker without work for so long is ended, to give its memory back.
        device: `auto` takes a GPU where torch finds one.
    """

    silence_s: Annotated[float, Meta(gt=0)] = 900.0
    idle_s: Annotated[float, Meta(gt=0)] = 600.0
    device: Literal["auto", "cpu", "cuda"] = "auto"


class AgentOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The whole of `agent.toml`.

    Attributes:
        device: this device's id in the fleet.
        fleet: the fleet it belongs to.
        state: directory that the agent keeps its state in.
        broker: how to reach the broker.
        data: where the examples are.
        limits: what the device can afford.
        worker: the training subprocess.
        models: local directories by the model names that federations use.
    """

    device: str
    fleet: str
    state: Annotated[str, Meta(min_length=1)] = "edgefed-state"
    broker: Broker = Broker()
    data: DataSource
    limits: Limits = Limits()
    worker: Worker = Worker()
    models: dict[str, str] = {}

    def __post_init__(self) -> None:
        """Refuses names that could not be topic levels."""
        try:
            check_id(self.device, "device id")
            check_id(self.fleet, "fleet name")
        except ConfigError as error:
            raise ValueError(str(error)) from None
