"""Two runs side by side: the same figure of each, and how the second differs."""

from __future__ import annotations

import msgspec

from edgefed.reports.report import DeviceReport, Report
from edgefed.reports.utilization import Figure

__all__ = ["Change", "Comparison", "compare"]


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One figure of two runs.

    Attributes:
        of: whose: a device, or "" for the fleet.
        name: which figure, unit included.
        unit: in which people read it; see `edgefed.reports.wording.figure_text`.
        before: of the run that is compared with.
        after: of the run that is reported.
        change: after / before − 1.
    """

    of: str
    name: str
    unit: str
    before: Figure
    after: Figure
    change: Figure


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """A run beside another one.

    Attributes:
        schema: names this layout.
        before: the run that is compared with.
        after: the run that is reported.
        changes: of the fleet, then of each device in both, by id.
        only_before, only_after: devices that are in one run only.
    """

    schema: str = "edgefed-comparison/1"
    before: Report
    after: Report
    changes: tuple[Change, ...]
    only_before: tuple[str, ...]
    only_after: tuple[str, ...]


def compare(before: Report, after: Report) -> Comparison:
    """Returns the second report beside the first."""
    devices = {device.device: device for device in before.devices}
    names = {device.device for device in after.devices}
    changes = _changes("", _of_fleet(before), _of_fleet(after))
    for device in after.devices:
        if device.device in devices:
            changes += _changes(device.device, _of_device(devices[device.device]), _of_device(device))
    return Comparison(
        before=before,
        after=after,
        changes=tuple(changes),
        only_before=tuple(sorted(devices.keys() - names)),
        only_after=tuple(sorted(names - devices.keys())),
    )


_Figures = dict[str, tuple[str, Figure]]


def _changes(of: str, before: _Figures, after: _Figures) -> list[Change]:
    return [
        Change(
            of=of,
            name=name,
            unit=unit,
            before=before[name][1],
            after=figure,
            change=_relative(before[name][1], figure),
        )
        for name, (unit, figure) in after.items()
    ]


def _relative(before: Figure, after: Figure) -> Figure:
    if before.value is None or after.value is None:
        return Figure.unknown(after.reason if after.value is None else before.reason)
    if before.value == 0:
        return Figure(0.0) if after.value == 0 else Figure.unknown("it was 0 before")
    return Figure(after.value / before.value - 1.0)


def _of_fleet(report: Report) -> _Figures:
    totals = report.totals
    losses = [one.loss for one in report.rounds if one.loss.value is not None]
    none_evaluated = Figure.unknown("no device evaluated")
    return {
        "last evaluated loss": ("", losses[-1] if losses else none_evaluated),
        "rounds": ("count", Figure(sum(one.kind == "train" for one in report.rounds))),
        "wall time": ("s", Figure(totals.wall_s) if totals.wall_s is not None else Figure.unknown("no round yet")),
        "compute time": ("s", Figure(totals.compute_s)),
        "tokens": ("count", Figure(totals.tokens)),
        "energy": ("J", totals.joules),
        "sent by devices": ("B", Figure(totals.upload_bytes)),
        "taken by devices": ("B", Figure(totals.download_bytes)),
        "broadcast": ("B", Figure(totals.broadcast_bytes)),
    }


def _of_device(device: DeviceReport) -> _Figures:
    use = device.use
    return {
        "tokens/s": ("", use.tokens_per_s),
        "MFU, live": ("%", use.mfu_live),
        "tokens/s/W": ("", use.tokens_per_s_per_w),
        "energy": ("J", use.joules),
        "peak memory": ("B", use.peak_memory_bytes),
        "step": ("s", use.step_s),
        "granularity": ("", use.granularity),
    }
