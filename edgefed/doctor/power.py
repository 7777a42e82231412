"""The power sensors: which of them energy is told by, and why others do not answer."""

from __future__ import annotations

from edgefed.devices.instruments import find_instruments
from edgefed.devices.power_mode import read_power_mode
from edgefed.doctor.findings import Board, Findings, note, ok

__all__ = ["look_at_power"]


def look_at_power(board: Board) -> Findings:
    """Yields the sensor in use, the others, and those that one would expect here."""
    hardware = board.options.worker.device if board.options is not None else "auto"
    instruments = find_instruments(board.root, gpu=hardware != "cpu")
    reader = instruments.power_reader("cpu" if hardware == "cpu" else None)
    if reader is None:
        if not instruments.power.absent:
            yield note(f"records tell no energy: {instruments.why_no_power()}")
    else:
        watts = reader.watts()
        now = "" if watts is None else f", now {watts:.1f} W"
        yield ok(f"energy is told by {reader.name}: {reader.coverage}{now}")
    for other in instruments.power.readers:
        if other is not reader:
            yield ok(f"another sensor: {other.name}")
    for missing in instruments.power.absent:
        said = f"{missing.name}: {missing.reason}"
        yield note(said if reader is not None else f"records tell no energy ({said})", missing.remedy)
    mode, _ = read_power_mode(board.root)
    if mode is not None:
        yield ok(f"power mode {mode}")
