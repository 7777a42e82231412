"""All checks in their order, and one examination after the other. To add a check, write its module and name it here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edgefed.agent.options import AgentOptions
from edgefed.config import read_agent
from edgefed.doctor.broker import look_at_broker
from edgefed.doctor.certificate import look_at_certificate
from edgefed.doctor.clock import look_at_clock
from edgefed.doctor.configuration import look_at_configuration
from edgefed.doctor.disk import look_at_disk
from edgefed.doctor.enrollment import look_at_enrollment
from edgefed.doctor.findings import Board, Finding, Findings, Status, note, worst
from edgefed.doctor.flashed import look_at_flashed_files
from edgefed.doctor.kernels import look_at_bitsandbytes, look_at_onnxruntime, look_at_torch
from edgefed.doctor.memory import look_at_memory
from edgefed.doctor.power import look_at_power
from edgefed.doctor.python import look_at_python
from edgefed.doctor.service import look_at_service
from edgefed.errors import ConfigError, EdgefedError

__all__ = ["CHECKS", "Check", "Examined", "choose_checks", "examine", "meet_board"]


@dataclass(frozen=True, slots=True)
class Check:
    """One check.

    Attributes:
        name: by which it is chosen.
        look: yields what it finds.
        configured: it needs to know what agent.toml says.
    """

    name: str
    look: Callable[[Board], Findings]
    configured: bool = False


class Examined(msgspec.Struct, frozen=True, kw_only=True):
    """What one check came to."""

    check: str
    status: Status
    findings: tuple[Finding, ...]


CHECKS: tuple[Check, ...] = (
    Check("configuration", look_at_configuration),
    Check("python", look_at_python),
    Check("memory", look_at_memory),
    Check("disk", look_at_disk, configured=True),
    Check("clock", look_at_clock),
    Check("enrollment", look_at_enrollment, configured=True),
    Check("certificate", look_at_certificate, configured=True),
    Check("broker", look_at_broker, configured=True),
    Check("service", look_at_service),
    Check("flash", look_at_flashed_files),
    Check("power", look_at_power),
    Check("torch", look_at_torch),
    Check("bitsandbytes", look_at_bitsandbytes),
    Check("onnxruntime", look_at_onnxruntime),
)
"""What stops the agent comes first, and what takes long comes last."""


def choose_checks(only: Sequence[str], skip: Sequence[str]) -> tuple[Check, ...]:
    """Returns the checks that are wanted, in their order.

    Args:
        only: names; empty wants all.
        skip: names of those that are not wanted.

    Raises:
        ConfigError: there is no check of that name, or none is left.
    """
    known = [check.name for check in CHECKS]
    unknown = [name for name in (*only, *skip) if name not in known]
    if unknown:
        raise ConfigError(f"there is no check {unknown[0]!r}; the checks are {', '.join(known)}")
    chosen = tuple(check for check in CHECKS if (not only or check.name in only) and check.name not in skip)
    if not chosen:
        raise ConfigError("no check is left: all that --only names are skipped")
    return chosen


def meet_board(config: Path, *, kernel_patience_s: float) -> Board:
    """Returns the board that an agent.toml describes; where that cannot be used, this machine as far as it is known."""
    options: AgentOptions | None = None
    why = ""
    try:
        options = read_agent(config)
    except ConfigError as error:
        why = str(error)
    root = Path(options.root if options is not None else "/")
    return Board(config=config, options=options, why_no_options=why, root=root, kernel_patience_s=kernel_patience_s)


def examine(board: Board, check: Check) -> Examined:
    """Returns what a check finds. A check that the machine does not let look is a note, and no end."""
    findings = tuple(_findings(board, check))
    return Examined(check=check.name, status=worst(findings), findings=findings)


def _findings(board: Board, check: Check) -> Iterator[Finding]:
    if check.configured and board.options is None:
        yield note("not looked at: it needs an agent.toml that can be used")
        return
    try:
        yield from check.look(board)
    except (EdgefedError, OSError) as error:
        yield note(f"could not be looked at further: {error}", "run the doctor as the agent's user, or as root")
