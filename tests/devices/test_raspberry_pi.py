"""Words of `vcgencmd get_throttled` (Raspberry Pi documentation, Utilities)."""

from __future__ import annotations

import pytest

from edgefed.devices.raspberry_pi import read_throttled
from tests.shared.power_reader_suite import FIXTURES, recorded


@pytest.mark.parametrize(
    ("said", "throttled", "words"),
    [
        ("throttled=0x0\n", False, ""),
        ("throttled=0x50000\n", False, ""),
        ("throttled=0x50005\n", True, "its supply's voltage is too low; it is throttled"),
        ("throttled=0xE0008\n", True, "it is too hot"),
        ("VCHI initialization failed\n", None, "vcgencmd get_throttled does not answer"),
        (None, None, "vcgencmd get_throttled does not answer"),
    ],
)
def test_only_what_holds_now_is_throttling(said: str | None, throttled: bool | None, words: str) -> None:
    assert read_throttled(lambda _: said) == (throttled, words)


def test_a_recorded_board() -> None:
    assert read_throttled(recorded(FIXTURES / "raspberry-pi-5")) == (False, "")
