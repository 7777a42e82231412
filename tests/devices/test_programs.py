from __future__ import annotations

import sys

import pytest

from edgefed.devices.programs import run_program


def test_what_a_program_prints_comes_back() -> None:
    assert run_program(("echo", "throttled=0x0")) == "throttled=0x0\n"


@pytest.mark.parametrize(
    "command",
    [
        ("no-such-program-anywhere",),
        (sys.executable, "-c", "print('half'); raise SystemExit(3)"),
        ("sleep", "60"),
    ],
)
def test_a_program_that_is_missing_fails_or_hangs_is_no_answer(command: tuple[str, ...]) -> None:
    assert run_program(command) is None
