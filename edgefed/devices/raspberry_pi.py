"""What a Raspberry Pi's firmware says of its throttling."""

from __future__ import annotations

import re

from edgefed.devices.programs import Run, run_program

__all__ = ["read_throttled"]

_REASONS = {0: "its supply's voltage is too low", 1: "its clock is capped", 2: "it is throttled", 3: "it is too hot"}
"""By bit of `vcgencmd get_throttled`; bits from 16 on say the same of any time since it was started."""


def read_throttled(run: Run = run_program) -> tuple[bool | None, str]:
    """Returns whether the board runs below its clock now, and why in words; None where the firmware does not answer.

    Args:
        run: runs a program.
    """
    said = run(("vcgencmd", "get_throttled")) or ""
    found = re.fullmatch(r"throttled=0x([0-9a-fA-F]+)", said.strip())
    if found is None:
        return None, "vcgencmd get_throttled does not answer"
    bits = int(found[1], 16)
    reasons = [words for bit, words in _REASONS.items() if bits >> bit & 1]
    return bool(reasons), "; ".join(reasons)
