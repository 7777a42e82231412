"""The clock: whether it can be right, by all that must have happened before now, and whether anything keeps it right.

A board without a battery for its clock wakes up in the past, and then no certificate counts. What must lie behind us:
the last change of the agent's state, the installation, what systemd remembers of the last run, and the beginning of
each certificate that somebody with a better clock has issued.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta, timezone
from pathlib import Path

from cryptography import x509

import edgefed
from edgefed.doctor.broker_certificate import fetch_broker_certificate
from edgefed.doctor.findings import Board, Finding, Findings, note, ok, problem, utc
from edgefed.errors import ConfigError
from edgefed.security.certificates import read_certificate

__all__ = ["look_at_clock"]

_TOLERANCE = timedelta(minutes=2)  # of two clocks that are both called right
_MEMORIES = {
    "var/lib/systemd/timesync/clock": "the clock was last right",
    "usr/lib/clock-epoch": "this system was released",
    "etc/edgefed/flash-manifest.json": "this board was flashed",
}
_BROKERS = "the broker's"
_TIME_ERROR = 5  # of adjtimex(2): nothing has set the clock right, or long ago
_TIMEX_BYTES = 512  # struct timex has 208 on 64-bit Linux; its first field says that nothing shall be changed
_SET_IT = "set it right: `timedatectl set-ntp true` with a network, else `date -s`; a clock battery keeps it so"


def look_at_clock(board: Board) -> Findings:
    """Yields what speaks against the clock, and whether it is kept right."""
    now = board.now()
    certificates = dict(_certificates(board))
    yield _about_the_past(board, certificates, now)
    theirs = certificates.get(_BROKERS)
    if theirs is not None and theirs.not_valid_after_utc <= now:
        yield note(
            f"the clock says {utc(now)}, and the broker uses a certificate that has ended by then, on "
            f"{utc(theirs.not_valid_after_utc)}: the clock may be ahead",
            f"{_SET_IT}; if it is right, the broker needs a new certificate",
        )
    yield _about_what_keeps_it_right(board)


def _about_the_past(board: Board, certificates: Mapping[str, x509.Certificate], now: datetime) -> Finding:
    """Returns whether all that must lie behind us does."""
    events = list(_past_events(board))
    events += [(f"{what} begins", certificate.not_valid_before_utc) for what, certificate in certificates.items()]
    later = [f"{what} {utc(when)}" for what, when in events if when > now + _TOLERANCE]
    if not later:
        return ok(f"the clock says {utc(now)}, and all that must have happened before lies before")
    seen = f"the clock says {utc(now)}, and it must be later: {'; '.join(later)}"
    return problem(seen, f"{_SET_IT}; until then no certificate counts") if certificates else note(seen, _SET_IT)


def _about_what_keeps_it_right(board: Board) -> Finding:
    synchronized = _is_synchronized(board)
    if synchronized is None:
        return note("nothing tells whether the clock is kept right")
    if synchronized:
        return ok("the kernel says that the clock is kept right")
    battery = "" if any(board.root.glob("sys/class/rtc/rtc*")) else ", and the board has no clock of its own"
    seen = f"the kernel says that nothing keeps the clock right{battery}"
    return note(seen, "timedatectl set-ntp true, or install chrony")


def _past_events(board: Board) -> Iterator[tuple[str, datetime]]:
    """Yields what has happened on this board, and when, by the clock of then."""
    yield "edgefed was installed", _changed(Path(edgefed.__file__))
    for name, what in _MEMORIES.items():
        with contextlib.suppress(OSError):
            yield what, _changed(board.root / name)
    if board.options is not None:
        with contextlib.suppress(OSError):
            files = (file for file in Path(board.options.state).iterdir() if file.is_file())
            newest = max(files, key=_changed, default=None)
            if newest is not None:
                yield f"the agent has changed {newest}", _changed(newest)


def _certificates(board: Board) -> Iterator[tuple[str, x509.Certificate]]:
    """Yields the certificates that others have made, by their clocks."""
    if board.options is None:
        return
    broker = board.options.broker
    for what, name in (("the authority's certificate", broker.tls_ca), ("the device's", broker.tls_certificate)):
        with contextlib.suppress(OSError, ConfigError):
            yield what, read_certificate(Path(name).read_bytes(), name)
    theirs = fetch_broker_certificate(broker)
    if theirs is not None:
        yield _BROKERS, theirs


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
