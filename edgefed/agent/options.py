"""What the owner of a device says in `agent.toml`."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from edgefed.data.source import DataSource
from edgefed.devices.board_files import find_board
from edgefed.errors import ConfigError
from edgefed.protocol.topics import check_id
from edgefed.transport.options import Broker

__all__ = ["AgentOptions", "Eligibility", "Emulate", "Limits", "PrivacyLimits", "Profiling", "Worker"]

_CLOCK = "([01][0-9]|2[0-3]):[0-5][0-9]"
_Hours = Annotated[
    str,
    Meta(pattern=rf"^{_CLOCK}-{_CLOCK}\Z", description='a span of local time such as "22:00-06:00", HH:MM to HH:MM'),
]


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What the device may take on. What is not said here is planned from what was measured.

    Attributes:
        max_rank: largest LoRA rank it trains; 0 leaves it to the plan.
        max_held_rank: largest rank of the global adapter that it holds frozen beside its own; 0 holds what fits.
        quantization: precision of the base weights; `auto` takes the most exact that fits.
        max_memory_bytes: most that training may take; 0 takes what is available less a reserve.
        threads: CPU threads for training; 0 leaves the choice to torch.
    """

    max_rank: Annotated[int, Meta(ge=0)] = 0
    max_held_rank: Annotated[int, Meta(ge=0)] = 0
    quantization: Literal["auto", "fp32", "bf16", "int8", "nf4"] = "auto"
    max_memory_bytes: Annotated[int, Meta(ge=0)] = 0
    threads: Annotated[int, Meta(ge=0, le=1024)] = 0


class PrivacyLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How much of the privacy of its examples the device may spend, whatever federations ask for.

    Attributes:
        max_epsilon: of everything that the device ever sends, all federations together; a federation that trains
            without noise is then declined. Without it the federation's own limit is the only one.
        delta: δ that this ε is counted at; well below one over the number of examples.
    """

    max_epsilon: Annotated[float, Meta(gt=0)] | None = None
    delta: Annotated[float, Meta(gt=0, lt=1)] = 1e-5


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


class Eligibility(msgspec.Struct, frozen=True, kw_only=True):
    """When this device may train, looked at before a round and during it. A reading that is missing forbids nothing.

    A device that must stop does so at its next step, keeps what it has done, says why, and goes on when it may.

    Attributes:
        hours: spans of local time, such as `22:00-06:00`; empty allows all day.
        max_temperature_c: of the hottest thermal zone; once stopped, it goes on 5 °C below.
        on_battery: whether it may train while it is not on mains.
        min_battery_percent: below that it does not train on battery either.
        metered_interfaces: network interfaces that cost money, by pattern; not while the default route goes there.
        min_free_memory_bytes: of the host, beside what training itself takes.
        max_load_per_core: runnable processes per processor over a minute; training itself counts, so choose it for a
            device with other work.
        check_every_s: how often the conditions are looked at.
    """

    hours: list[_Hours] = []
    max_temperature_c: float | None = None
    on_battery: bool = False
    min_battery_percent: Annotated[float, Meta(ge=0, le=100)] = 30.0
    metered_interfaces: list[str] = msgspec.field(default_factory=lambda: ["wwan*", "ppp*"])
    min_free_memory_bytes: Annotated[int, Meta(ge=0)] = 0
    max_load_per_core: Annotated[float, Meta(gt=0)] | None = None
    check_every_s: Annotated[float, Meta(gt=0)] = 10.0


class Profiling(msgspec.Struct, frozen=True, kw_only=True):
    """How the agent gets to know its machine: it measures at first start, and when something about it has changed.

    Attributes:
        measure: `full` takes about 15 seconds; `quick` two, and leaves int8 and nf4 out.
        recheck_s: how often an idle agent looks whether power mode, GPU, memory or network have changed.
    """

    measure: Literal["full", "quick"] = "full"
    recheck_s: Annotated[float, Meta(gt=0)] = 600.0


class Emulate(msgspec.Struct, frozen=True, kw_only=True):
    """A board that this machine plays: plans go by the board's sheet, marked as emulated; what is done is still real.

    Attributes:
        board: id of one that `edgefed boards` lists; empty plays none.
        power_mode: of that board; empty takes the one that it is delivered in.
        memory_available_bytes: of the board's memory, before any reserve; all that user space sees where it is left
            out.
        uplink_bits_per_s: of the board's network; as measured here where it is left out.
        downlink_bits_per_s: likewise for what it receives.
    """

    board: str = ""
    power_mode: str = ""
    memory_available_bytes: Annotated[int, Meta(ge=1)] | None = None
    uplink_bits_per_s: Annotated[float, Meta(gt=0)] | None = None
    downlink_bits_per_s: Annotated[float, Meta(gt=0)] | None = None

    def __post_init__(self) -> None:
        """Refuses a board, a power mode or an amount of memory that does not exist."""
        if not self.board:
            given = [name for name in self.__struct_fields__ if getattr(self, name)]
            if given:
                raise ValueError(f"{given[0]} is given, and board is not: it says nothing without one")
            return
        sheet = find_board(self.board).sheet(self.power_mode or None)
        if (self.memory_available_bytes or 0) > sheet.memory_total_bytes:
            raise ValueError(
                f"memory_available_bytes is {self.memory_available_bytes}; "
                f"{self.board} has at most {sheet.memory_total_bytes}"
            )


class AgentOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The whole of `agent.toml`.

    Attributes:
        device: this device's id in the fleet.
        fleet: the fleet it belongs to.
        state: directory that the agent keeps its state in.
        root: where the host's `proc` and `sys` are; another place only in a container that has them mounted there.
        broker: how to reach the broker.
        data: where the examples are.
        limits: what the device can afford.
        worker: the training subprocess.
        eligibility: when it may train.
        privacy: how much of the privacy of its examples it may spend.
        profile: how it gets to know its machine.
        emulate: a board that the machine plays, for trying a plan out before there is one.
        models: local directories by the model names that federations use.
    """

    device: str
    fleet: str
    state: Annotated[str, Meta(min_length=1)] = "edgefed-state"
    root: Annotated[str, Meta(min_length=1)] = "/"
    broker: Broker = Broker()
    data: DataSource
    limits: Limits = Limits()
    worker: Worker = Worker()
    eligibility: Eligibility = Eligibility()
    privacy: PrivacyLimits = PrivacyLimits()
    profile: Profiling = Profiling()
    emulate: Emulate = Emulate()
    models: dict[str, str] = {}

    def __post_init__(self) -> None:
        """Refuses names that could not be topic levels."""
        try:
            check_id(self.device, "device id")
            check_id(self.fleet, "fleet name")
        except ConfigError as error:
            raise ValueError(str(error)) from None
