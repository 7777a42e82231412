"""Where a process can be made to die: before and after each durable write of the store, told by its environment.

`EDGEFED_CRASH_AT=before:7` kills the process with SIGKILL before the seventh write that it makes, `after:7` right after
it. It is how the tests find out that a kill between any two writes costs nothing; nobody else sets it.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Mapping
from typing import Literal

from edgefed.errors import ConfigError

__all__ = ["CRASH_AT", "AtWrite", "Side", "crash_point"]

CRASH_AT = "EDGEFED_CRASH_AT"

Side = Literal["before", "after"]
AtWrite = Callable[[Side], None]


def crash_point(environment: Mapping[str, str]) -> AtWrite:
    """Returns what the store calls around each durable write: nothing happens there, or this process ends.

    Raises:
        ConfigError: the variable is set, and does not name a write.
    """
    wanted = environment.get(CRASH_AT)
    if wanted is None:
        return lambda _: None
    parsed = re.fullmatch(r"(before|after):([1-9][0-9]*)", wanted)
    if parsed is None:
        raise ConfigError(f"{CRASH_AT} is {wanted!r}; it must be before:N or after:N, with N from 1")
    fatal_side, fatal_write = parsed[1], int(parsed[2])
    begun = 0

    def at_write(side: Side) -> None:
        nonlocal begun
        begun += side == "before"
        if (side, begun) == (fatal_side, fatal_write):
            os.kill(os.getpid(), signal.SIGKILL)

    return at_write
