"""The clock: whether it can be right, by all that must have happened before now, and whether anything keeps it right.

A board without a battery for its clock wakes up in the past, and then no certificate counts. What must lie behind us:
the last change of the agent's state, the installation, what systemd remembers of the last run, and the beginning of
each certificate that somebody with a better clock has issued.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import edgefed
from edgefed.doctor.broker_certificate import fetch_broker_certificate
from edgefed.doctor.findings import Board, Findings, note, ok, problem, utc
from edgefed.errors import ConfigError
from edgefed.security.certificates import read_certificate

__all__ = ["look_at_clock"]

_TOLERANCE = timedelta(minutes=2)  # of two clocks that are both called right
_MEMORIES = {
    "var/lib/systemd/timesync/clock": "systemd remembers a later time of an earlier run",
    "usr/lib/clock-epoch": "this system's release is later",
    "etc/edgefed/flash-manifest.json": "this board was flashed later",
}
_TIME_ERROR = 5  # of adjtimex(2): nothing has set the clock right, or long ago
_TIMEX_BYTES = 512  # struct timex has 208 on 64-bit Linux; its first field says that nothing shall be changed
_SET_IT = "set it right: `timedatectl set-ntp true` with a network, else `date -s`; a clock battery keeps it so"


def look_at_clock(board: Board) -> Findings:
    """Yields what speaks against the clock, and whether it is kept right."""
    now = board.now()
    later = [(what, when) for what, when in _past_events(board) if when > now + _TOLERANCE]
    uses_tls = board.options is not None and bool(board.options.broker.tls_ca)
    for what, when in later:
        seen = f"the clock says {utc(now)}, and it must be later: {what} ({utc(when)})"
        yield problem(seen, f"{_SET_IT}; until then no certificate counts") if uses_tls else note(seen, _SET_IT)
    if not later:
        yield ok(f"the clock says {utc(now)}, and nothing speaks against it")
    synchronized = _is_synchronized(board)
    if synchronized is None:
        yield note("nothing tells whether the clock is kept right")
    elif synchronized:
        yield ok("the kernel says that the clock is kept right")
    else:
        battery = "" if any(board.root.glob("sys/class/rtc/rtc*")) else ", and the board has no clock of its own"
        yield note(
            f"the kernel says that nothing keeps the clock right{battery}",
            "timedatectl set-ntp true, or install chrony",
        )


def _past_events(board: Board) -> Iterator[tuple[str, datetime]]:
    """Yields what has happened, and when."""
    yield "edgefed was installed later", _changed(Path(edgefed.__file__))
    for name, what in _MEMORIES.items():
        with contextlib.suppress(OSError):
            yield what, _changed(board.root / name)
    if board.options is None:
        return
    state = Path(board.options.state)
    with contextlib.suppress(OSError):
        newest = max((file for file in state.iterdir() if file.is_file()), key=_changed, default=None)
        if newest is not None:
            yield f"the agent has changed {newest} later", _changed(newest)
    broker = board.options.broker
    for what, name in (("authority's", broker.tls_ca), ("device's", broker.tls_certificate)):
        with contextlib.suppress(OSError, ConfigError):
            certificate = read_certificate(Path(name).read_bytes(), name)
            yield f"the {what} certificate begins later", certificate.not_valid_before_utc
    theirs = fetch_broker_certificate(broker)
    if theirs is not None:
        yield "the broker's certificate begins later", theirs.not_valid_before_utc


def _changed(file: Path) -> datetime:
    return datetime.fromtimestamp(file.stat().st_mtime, timezone.utc)


def _is_synchronized(board: Board) -> bool | None:
    """Returns whether something keeps the clock right; None where nothing tells."""
    state = _kernel_clock_state()
    if state is not None:
        return state != _TIME_ERROR
    said = board.run(("timedatectl", "show", "--property=NTPSynchronized", "--value"))
    return None if said is None or not said.strip() else said.strip() == "yes"


def _kernel_clock_state() -> int | None:
    """Returns what adjtimex(2) says of the clock; None where it may not be asked."""
    try:
        state = int(ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES)))
    except (OSError, AttributeError):
        return None
    return state if state >= 0 else None
