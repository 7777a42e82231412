"""Runs damaged input through one reader, and tells what came out.

Allowed are a value and the project's own errors. Everything else is a defect: any other exception, more memory than the
input justifies, and an input that keeps the processor busy for seconds.
"""

from __future__ import annotations

import gc
import resource
import signal
import time
import tracemalloc
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Any

from edgefed.errors import EdgefedError
from tools.fuzzing.mutations import Mutation

__all__ = ["BYTES_PER_INPUT_BYTE", "PATIENCE_S", "Defect", "Tally", "Target", "fuzz"]

BYTES_PER_INPUT_BYTE = 64
"""A list of empty lists is 3 bytes of JSON and 64 bytes of Python's each, and growing it may double that."""
PATIENCE_S = 5.0
"""Seconds of processor time that one input may take."""
_SPARE_BYTES = 2 * 2**30
_MOST_DEFECTS = 20


@dataclass(frozen=True, slots=True)
class Target:
    """One reader.

    Attributes:
        name: for people.
        read: takes the input; what it returns does not matter.
        refuses: the one kind of error with which it may refuse; None where it takes, or leaves aside, whatever comes.
        samples: valid input, which `read` must take without an error.
        mutations: what is done to it; each is as likely as the others.
        constant_bytes: of memory that it may take however small its input is.
    """

    name: str
    read: Callable[[bytes], object]
    refuses: type[EdgefedError] | None
    samples: Sequence[bytes]
    mutations: Sequence[Mutation]
    constant_bytes: int = 2 * 2**20


@dataclass(frozen=True, slots=True)
class Defect:
    """An input that a reader did not stand, and what came of it."""

    input: bytes
    what: str


@dataclass(slots=True)
class Tally:
    """What came out.

    Attributes:
        inputs: how many were tried.
        read: of them, how many were read without an error.
        errors: by type, how many were refused with one of the project's own.
        seconds: that all took, tracing of memory included.
        slowest_s: processor time of the slowest input.
        peak_bytes: most memory that an input took.
        defects: at most 20; empty is good.
    """

    inputs: int = 0
    read: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    slowest_s: float = 0.0
    peak_bytes: int = 0
    defects: list[Defect] = field(default_factory=list)


class _TooSlow(BaseException):
    """Out of every `except Exception` that the reader has."""


def fuzz(target: Target, count: int, seed: int) -> Tally:
    """Returns what came of `count` damaged inputs; the same ones for the same seed.

    Call it in the main thread: it takes over the processor timer's signal.

    Raises:
        ValueError: the reader does not read a valid sample, so that nothing about it could be found out.
    """
    for sample in target.samples:
        try:
            target.read(sample)
        except EdgefedError as error:
            raise ValueError(f"{target.name} refuses a valid sample: {error}") from error
    random = Random(f"{target.name}/{seed}")
    tally = Tally()
    began_s = time.monotonic()
    with _bounds():
        for _ in range(count):
            _try(target, random.choice(target.mutations)(target.samples, random), tally)
            if len(tally.defects) >= _MOST_DEFECTS:
                break
    tally.seconds = time.monotonic() - began_s
    return tally


def _try(target: Target, payload: bytes, tally: Tally) -> None:
    tally.inputs += 1
    tracemalloc.reset_peak()
    before_bytes, _ = tracemalloc.get_traced_memory()
    began_s = time.process_time()
    signal.setitimer(signal.ITIMER_PROF, PATIENCE_S)
    what = ""
    try:
        result: Any = target.read(payload)
        del result
        tally.read += 1
    except EdgefedError as error:
        tally.errors[type(error).__name__] += 1
        what = _unprintable(error)
        if target.refuses is None or not isinstance(error, target.refuses):
            what = f"{type(error).__name__}, which is not what it refuses with: {error!s:.300}"
    except _TooSlow:
        what = f"more than {PATIENCE_S:g} s of processor time"
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 - this is what is looked for; a panic in Rust is no Exception
        what = f"{type(error).__name__}: {str(error)[:300]!r}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    tally.slowest_s = max(tally.slowest_s, time.process_time() - began_s)
    taken_bytes = tracemalloc.get_traced_memory()[1] - before_bytes
    tally.peak_bytes = max(tally.peak_bytes, taken_bytes)
    if not what and taken_bytes > target.constant_bytes + BYTES_PER_INPUT_BYTE * len(payload):
        what = f"{taken_bytes} bytes of memory for {len(payload)} bytes of input"
    if what:
        tally.defects.append(Defect(payload, what))


def _unprintable(error: EdgefedError) -> str:
    """Returns what is wrong with an error's message; it goes to logs, into messages and onto terminals."""
    try:
        str(error).encode()
    except UnicodeEncodeError:
        return f"a message that cannot be written: {str(error)!r:.300}"
    return ""


@contextmanager
def _bounds() -> Iterator[None]:
    """Traces memory, limits what is not traced (a library's own allocator), and arms the timer's signal."""

    def too_slow(_number: int, _frame: object) -> None:
        raise _TooSlow

    gc.collect()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    previous = signal.signal(signal.SIGPROF, too_slow)
    began = not tracemalloc.is_tracing()
    if began:
        tracemalloc.start()
    resource.setrlimit(resource.RLIMIT_AS, (_address_space_bytes() + _SPARE_BYTES, limits[1]))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
        signal.signal(signal.SIGPROF, previous)
        if began:
            tracemalloc.stop()


def _address_space_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123 - not worth a Path
        return int(file.read().split()[0]) * resource.getpagesize()
