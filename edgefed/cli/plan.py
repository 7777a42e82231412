"""`edgefed plan`: what a device would take on, and why."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from edgefed.devices.profile import DeviceProfile
    from edgefed.models.layout import ModelLayout
    from edgefed.planner.history import History
    from edgefed.planner.values import Limits, Machine, Workload

__all__ = ["plan"]


def plan(
    model: Annotated[
        str | None,
        typer.Option(help="google/flan-t5-small to -xxl (needs no files), or a directory with a T5; the federation's."),
    ] = None,
    profile: Annotated[
        str | None,
        typer.Option(metavar="BOARD[:MODE]", help="Plan for a board of `edgefed boards` instead of this machine."),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", help="An agent.toml: its profile, limits and experience are used."),
    ] = None,
    federation: Annotated[
        Path | None, typer.Option("--federation", "-f", help="A federation.toml: its model, method and training.")
    ] = None,
    deadline: Annotated[str | None, typer.Option(help="Of a round, such as 300s or 10min.")] = None,
    lengths: Annotated[
        str | None, typer.Option(metavar="SOURCE,TARGET", help="Tokens of the longest text and summary.")
    ] = None,
    rank: Annotated[int | None, typer.Option(min=1, help="Pin the trained rank.")] = None,
    quantization: Annotated[str | None, typer.Option(help="Pin the precision: fp32, bf16, int8 or nf4.")] = None,
    uplink: Annotated[str | None, typer.Option(help="Assume this rate to the aggregator, such as 256kbit/s.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Write one JSON document.")] = False,
) -> None:
    """Show the LoRA rank, precision and micro-batch that a device would choose, with the alternatives.

    The agent decides every round by the same rule: the largest rank, then the best precision (bf16 where the hardware
    multiplies it much faster, else the most exact), whose predicted peak memory leaves a reserve and whose predicted
    time leaves a margin before the deadline. Every plan that lost says
    why. Without --profile and --config this machine is measured first, which takes about 3 s.

    Exit code 13 where nothing fits: the message says what the nearest plan needs.

    Examples:
      edgefed plan --model google/flan-t5-base                         on this machine
      edgefed plan --model google/flan-t5-xl --profile jetson-orin-nano-8gb:15W --deadline 10min
      edgefed plan --federation federation.toml --config agent.toml    as this agent would in that federation
    """
    from edgefed.cli.plan_view import plan_document, print_plan
    from edgefed.errors import NoPlan
    from edgefed.planner.plan import decide

    workload = _workload(model, federation, lengths=lengths, deadline=deadline, rank=rank)
    machine, limits, history = _machine(profile, config, uplink)
    decision = decide(machine, workload, _pinned(limits, rank, quantization), history)
    if json:
        from edgefed.cli.output import write_json

        write_json(plan_document(machine, workload, decision))
    else:
        print_plan(machine, workload, decision)
    if decision.chosen is None:
        raise NoPlan(decision.reason)


def _workload(
    model: str | None, federation: Path | None, *, lengths: str | None, deadline: str | None, rank: int | None
) -> Workload:
    from dataclasses import replace

    from edgefed.cli.quantities import seconds
    from edgefed.errors import ConfigError
    from edgefed.planner.workloads import workload_of
    from edgefed.protocol.tasks import LoraMethod, SummarizationTask, Training

    method, training, task, deadline_s, models = LoraMethod(), Training(), SummarizationTask(), None, {}
    private = False
    if federation is not None:
        from edgefed.config import read_federation

        options = read_federation(federation)
        method, training, task, models = options.method, options.training, options.task, options.models
        deadline_s, private = options.selection.deadline_s, options.privacy.example_noise_multiplier > 0
        model = model or options.model.name
    if model is None:
        raise ConfigError("which model? name it with --model google/flan-t5-base, or a federation with --federation")
    source, target = _lengths(lengths) if lengths else (task.max_source_tokens, task.max_target_tokens)
    workload = workload_of(
        _layout(model, models),
        method,
        training,
        source_tokens=source,
        target_tokens=target,
        global_rank=method.global_rank,
        deadline_s=seconds(deadline, "--deadline") if deadline else deadline_s,
        private=private,
    )
    return replace(workload, ranks=(rank,)) if rank else workload


def _layout(model: str, models: dict[str, str]) -> ModelLayout:
    """Returns a known layout without a file, or that of a model on this machine."""
    from edgefed.errors import ModelError
    from edgefed.models.finding import BUNDLED, resolve_model
    from edgefed.models.layout import FLAN_T5, find_layout, read_layout

    known = find_layout(model)
    if known is not None and model not in models:
        return known
    if model in models or model in BUNDLED or Path(model).expanduser().is_dir():
        return read_layout(resolve_model(model, models), model)
    raise ModelError(
        f"the layout of {model!r} is not known: plans need no files for {', '.join(FLAN_T5)}; any other T5 must be a "
        "directory on this machine"
    )


def _lengths(text: str) -> tuple[int, int]:
    from edgefed.errors import ConfigError

    parts = text.split(",")
    if len(parts) != 2 or not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise ConfigError(f"--lengths is {text!r}; it must be two numbers of tokens, such as 512,128")
    return int(parts[0]), int(parts[1])


def _machine(profile: str | None, config: Path | None, uplink: str | None) -> tuple[Machine, Limits, History]:
    from dataclasses import replace

    from edgefed.cli.quantities import bits_per_second
    from edgefed.errors import ConfigError
    from edgefed.planner.history import History
    from edgefed.planner.machines import machine_of
    from edgefed.planner.values import Limits

    if profile is not None and config is not None:
        raise ConfigError("--profile plans for a board and --config for an agent: give one of them")
    limits, history = Limits(), History()
    if config is not None:
        machine, limits, history = _of_agent(config)
    elif profile is not None:
        machine = machine_of(_of_board(profile))
    else:
        from edgefed.cli.profile import measure

        machine = machine_of(asyncio.run(measure(None, quick=True)))
    if uplink is not None:
        machine = replace(machine, uplink_bytes_per_s=bits_per_second(uplink, "--uplink") / 8)
    return machine, limits, history


def _of_agent(config: Path) -> tuple[Machine, Limits, History]:
    """Returns what an agent plans by: its remembered profile, measured now where there is none, and its experience."""
    from edgefed.agent.planning import limits_of
    from edgefed.cli.profile import measure
    from edgefed.config import read_agent
    from edgefed.planner.history import decode_history
    from edgefed.planner.machines import machine_of

    options = read_agent(config)
    kept = Path(options.state) / "plans.json"
    history = decode_history(kept.read_bytes() if kept.is_file() else b"{}")
    return machine_of(asyncio.run(measure(config, quick=True))), limits_of(options.limits), history


def _of_board(name: str) -> DeviceProfile:
    """Returns the profile of a board, as an agent that plays it would have it."""
    from edgefed.devices.board_files import find_board
    from edgefed.devices.emulation import emulate
    from edgefed.devices.memory import read_host_memory, training_memory
    from edgefed.devices.profile import read_profile

    board, _, mode = name.partition(":")
    sheet = find_board(board).sheet(mode or None)
    import msgspec

    here = read_profile(Path(), quantization="auto", max_rank=0)
    return emulate(msgspec.structs.replace(here, memory=training_memory(read_host_memory(), None)), sheet)


def _pinned(limits: Limits, rank: int | None, quantization: str | None) -> Limits:
    from dataclasses import replace

    from edgefed.errors import ConfigError
    from edgefed.planner.values import QUANTIZATIONS

    if rank is not None:
        limits = replace(limits, max_rank=max(rank, limits.max_rank or 0))
    if quantization is not None:
        if quantization not in QUANTIZATIONS:
            raise ConfigError(f"--quantization is {quantization!r}; it must be one of {', '.join(QUANTIZATIONS)}")
        limits = replace(limits, quantizations=(quantization,))
    return limits
