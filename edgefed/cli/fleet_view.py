"""What a fleet looks like from the broker: retained states, gathered into one value, drawn as a table or as JSON."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import msgspec

from edgefed.cli.profile_view import describe_board, human
from edgefed.devices.profile import DeviceProfile
from edgefed.errors import MessageError
from edgefed.logs import printable
from edgefed.protocol.messages.retained import (
    AggregatorState,
    DeviceState,
    decode_aggregator_state,
    decode_device_state,
)
from edgefed.protocol.messages.wire import decode
from edgefed.protocol.topics import Topics

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["COLUMNS", "FleetView", "describe_aggregator", "describe_refusals", "human_bytes"]

COLUMNS = (
    "device", "hardware", "memory", "best rate", "max rank", "base", "status", "round", "step", "loss", "note",
)  # fmt: skip
"""What is told of a device, in order."""

_GIVEN_UP = ("base", "max rank", "best rate", "memory", "hardware")
"""What a narrow terminal is not told, what is missed least first: it does not change from one look to the next."""
_NUMBERS = ("max rank", "round", "step", "loss")
_NOTE_WIDTH = 24  # enough of a note to know it again; the rest takes what is left of the line
_BETWEEN = 3  # rich's padding and divider

_STYLES = {
    "training": "green",
    "downloading": "cyan",
    "uploading": "cyan",
    "ready": "",
    "init": "dim",
    "sleeping": "dim",
    "disconnected": "dim",
    "lost": "red",
}


def human_bytes(count: int) -> str:
    """Returns a byte count with a decimal unit: 1.5 MB."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def describe_aggregator(state: AggregatorState) -> str:
    """Returns one line: round, phase, updates, losses, bytes."""
    if state.status == "lost":
        return "the aggregator is gone (its broker lost it)"
    last = "final evaluation" if state.round > state.rounds else f"round {state.round} of {state.rounds}"
    parts = [last, state.phase if state.status == "online" else state.status]
    if state.phase == "training":
        parts.append(f"{state.updates} of {state.accepted} answers")
    if state.last_loss is not None:
        parts.append(f"loss {state.last_loss:.3f}")
    if state.best_loss is not None:
        parts.append(f"best {state.best_loss:.3f} after round {state.best_round}")
    parts.append(f"in {human_bytes(state.received_bytes)}, out {human_bytes(state.broadcast_bytes)}")
    if state.epsilon is not None and state.delta is not None:
        parts.append(f"ε of devices {state.epsilon:.3g} at δ = {state.delta:g}")
    parts += _trouble(state)
    if state.note:
        parts.append(state.note)
    return printable(" · ".join(parts))


def _trouble(state: AggregatorState) -> list[str]:
    """Returns what was refused, and what was given up, as far as there is any of it."""
    counts = (
        (state.rejected, "update", "rejected"),
        (state.excluded, "update", "excluded"),
        (state.clipped, "update", "clipped"),
        (state.distrusted, "message", "not trusted"),
        (state.outdated, "message", "out of date"),
        (state.given_up, "round", f"given up, the latest {state.gave_up}"),
    )
    parts = [f"{count} {thing}{'s' if count > 1 else ''} {what}" for count, thing, what in counts if count]
    if state.silenced:
        parts.append(f"{state.silenced} times a device was silenced")
    return parts


def describe_refusals(state: AggregatorState) -> list[str]:
    """Returns one line for each of the latest refusals, newest last: time, device, round, what, why."""
    return [
        f"{datetime.fromtimestamp(one.unix_s, timezone.utc):%Y-%m-%d %H:%M:%S}Z  {one.device}, round {one.round}: "
        f"{one.what}: {printable(one.reason)}"
        for one in state.refusals
    ]


class FleetView:
    """Collects what is published about a fleet.

    Attributes:
        topics: of the fleet.
        aggregator: its latest state; None where none was heard.
        devices: the latest state of each.
        profiles: of each.
        distrusted: by topic, why its latest message was left aside, where one was.
    """

    def __init__(self, fleet: str) -> None:
        self.topics = Topics(fleet)
        self.aggregator: AggregatorState | None = None
        self.devices: dict[str, DeviceState] = {}
        self.profiles: dict[str, DeviceProfile] = {}
        self.distrusted: dict[str, str] = {}

    @property
    def filters(self) -> tuple[str, ...]:
        """The topics to subscribe to."""
        return self.topics.aggregator_state, self.topics.every_device("state"), self.topics.every_device("profile")

    def hear(self, topic: str, payload: bytes) -> None:
        """Takes a message; what does not decode is left aside."""
        device = self.topics.parse_device(topic)
        try:
            if topic == self.topics.aggregator_state and payload:
                self.aggregator = decode_aggregator_state(payload)
            elif device is not None and device.channel == "state":
                self._hear_state(device.device, payload)
            elif device is not None and device.channel == "profile" and payload:
                self.profiles[device.device] = decode(payload, DeviceProfile, "device profile")
        except MessageError:
            return

    def _hear_state(self, device: str, payload: bytes) -> None:
        if payload:
            self.devices[device] = decode_device_state(payload)
        else:
            self.devices.pop(device, None)

    def describe_distrusted(self) -> list[str]:
        """Returns a line for each author and reason for which something was left aside."""
        said: dict[tuple[str, str], list[str]] = {}
        for topic, reason in sorted(self.distrusted.items()):
            device = self.topics.parse_device(topic)
            author = "the aggregator" if device is None else device.device
            said.setdefault((author, reason), []).append(topic.rpartition("/")[2])
        return [
            f"left aside the {' and the '.join(what)} of {author}: {reason}" for (author, reason), what in said.items()
        ]

    def as_json(self) -> dict[str, Any]:
        """Returns a document with all of it: states and profiles by device, and what was left aside by topic."""
        return {
            "fleet": self.topics.fleet,
            "aggregator": msgspec.to_builtins(self.aggregator),
            "devices": {
                device: {
                    "state": msgspec.to_builtins(state),
                    "profile": msgspec.to_builtins(self.profiles.get(device)),
                }
                for device, state in sorted(self.devices.items())
            },
            "distrusted": dict(sorted(self.distrusted.items())),
        }

    def rows(self) -> list[tuple[str, ...]]:
        """Returns a row of text per device, in the order of `COLUMNS`."""
        rows: list[tuple[str, ...]] = []
        for device, state in sorted(self.devices.items()):
            profile = self.profiles.get(device)
            progress = f"{state.step}/{state.steps}" if state.steps else ""
            cells = (
                device,
                *(("", "", "") if profile is None else _hardware(profile)),
                "" if profile is None else str(profile.max_rank or "auto"),
                "" if profile is None else profile.quantization,
                state.status,
                str(state.round or ""),
                progress,
                "" if state.loss is None else f"{state.loss:.3f}",
                state.note,
            )
            rows.append(tuple(map(printable, cells)))
        return rows

    def fitting_columns(self, width: int) -> tuple[str, ...]:
        """Returns the columns for which a terminal of so many characters has room."""
        rows = (COLUMNS, *self.rows())
        needed = {name: max(len(row[at]) for row in rows) + _BETWEEN for at, name in enumerate(COLUMNS)}
        needed["note"] = min(needed["note"], _NOTE_WIDTH + _BETWEEN)
        columns = list(COLUMNS)
        for name in _GIVEN_UP:
            if sum(needed[column] for column in columns) <= width:
                break
            columns.remove(name)
        return tuple(columns)

    def render(self, width: int) -> RenderableType:
        """Returns the fleet as rich draws it on a terminal of so many characters."""
        from rich import box
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        table = Table(box=box.SIMPLE_HEAD, expand=False, padding=(0, 1))
        columns = self.fitting_columns(width)
        for name in columns:
            # The note is cut where there is no room; all else is whole.
            table.add_column(name, justify="right" if name in _NUMBERS else "left", no_wrap=name != "note")
        for row in self.rows():
            cells = {
                name: Text(cell, no_wrap=True, overflow="ellipsis") for name, cell in zip(COLUMNS, row, strict=True)
            }
            cells["status"].stylize(_STYLES.get(cells["status"].plain, ""))
            table.add_row(*(cells[name] for name in columns))
        state = self.aggregator
        if state is None:
            return Group(Text("no aggregator yet", style="dim"), table)
        done = min(state.rounds, max(0, state.round - (state.status != "finished")))
        bar = ProgressBar(total=max(1, state.rounds), completed=done, width=40)
        refusals = [Text(line, style="yellow") for line in describe_refusals(state)]
        aside = [Text(line, style="red") for line in self.describe_distrusted()]
        return Group(Text(describe_aggregator(state), style="bold"), bar, table, *refusals, *aside)


def _hardware(profile: DeviceProfile) -> tuple[str, str, str]:
    """Returns the board, the memory that training may use, and the best rate; "" for what was not measured."""
    memory = "" if profile.memory is None else human(profile.memory.total_bytes, "B")
    best = None if profile.compute is None else profile.compute.best()
    return describe_board(profile), memory, "" if best is None else f"{human(best[1], 'FLOP/s')} {best[0]}"
