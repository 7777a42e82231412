"""Answers devices that measure the way to the aggregator, within bounds: rounds come first, floods get no answer."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

from edgefed.protocol.messages.down import DownMessage, Pong
from edgefed.protocol.messages.up import Ping
from edgefed.protocol.messages.wire import MAX_PADDING_BYTES

__all__ = ["Echo"]

_DEVICE_BYTES = 4 << 20
_FLEET_BYTES = 64 << 20
_PERIOD_S = 30.0
_QUIET_S = 2.0
_MESSAGE_BYTES = 256
_MOST_DEVICES = 4096


@dataclass(slots=True)
class _Allowance:
    """Bytes that may still be answered in a period, which come back as time passes."""

    most_bytes: float
    left_bytes: float
    at_s: float

    def take(self, wanted_bytes: float, now_s: float) -> bool:
        self.left_bytes = min(self.most_bytes, self.left_bytes + (now_s - self.at_s) / _PERIOD_S * self.most_bytes)
        self.at_s = now_s
        if wanted_bytes > self.left_bytes:
            return False
        self.left_bytes -= wanted_bytes
        return True


@dataclass(slots=True)
class _Measurement:
    """What one device measures now."""

    allowance: _Allowance
    nonce: str
    heard_at_s: float
    refused_at_s: float = float("-inf")


class Echo:
    """One answer per ping: no state beyond what keeps a device from asking for too much.

    A device measures one thing at a time and gets 4 MiB in half a minute, all devices together 64 MiB. Beyond that it
    is told so once in a while, and not answered otherwise.

    Args:
        tell: sends a message to a device.
        clock: seconds, monotonic.
    """

    def __init__(
        self, tell: Callable[[str, DownMessage], None], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._tell = tell
        self._clock = clock
        self._devices: dict[str, _Measurement] = {}
        self._fleet = _Allowance(_FLEET_BYTES, _FLEET_BYTES, clock())
        self._padding = secrets.token_hex(MAX_PADDING_BYTES // 2)  # nothing on the way shall compress it to nothing

    def answer(self, device: str, ping: Ping) -> None:
        """Answers a ping, or says why not, or says nothing."""
        now_s = self._clock()
        measurement = self._measurement_of(device, ping, now_s)
        refused = self._refusal(measurement, ping, now_s)
        if not refused:
            padding = self._padding[: ping.answer_bytes]
            self._tell(device, Pong(nonce=ping.nonce, sequence=ping.sequence, padding=padding))
        elif now_s - measurement.refused_at_s >= _QUIET_S:
            measurement.refused_at_s = now_s
            self._tell(device, Pong(nonce=ping.nonce, sequence=ping.sequence, refused=refused))

    def _refusal(self, measurement: _Measurement, ping: Ping, now_s: float) -> str:
        if ping.nonce != measurement.nonce:
            if now_s - measurement.heard_at_s < _QUIET_S:
                return "another measurement of this device is under way"
            measurement.nonce = ping.nonce
        measurement.heard_at_s = now_s
        travels_bytes = len(ping.padding) + ping.answer_bytes + _MESSAGE_BYTES
        if not measurement.allowance.take(travels_bytes, now_s):
            return f"this device has measured {_DEVICE_BYTES >> 20} MiB within {_PERIOD_S:.0f} s"
        if not self._fleet.take(travels_bytes, now_s):
            return f"the fleet has measured {_FLEET_BYTES >> 20} MiB within {_PERIOD_S:.0f} s"
        return ""

    def _measurement_of(self, device: str, ping: Ping, now_s: float) -> _Measurement:
        known = self._devices.pop(device, None)
        if known is None:
            if len(self._devices) >= _MOST_DEVICES:
                del self._devices[next(iter(self._devices))]  # the one that was silent for longest
            known = _Measurement(_Allowance(_DEVICE_BYTES, _DEVICE_BYTES, now_s), ping.nonce, now_s)
        self._devices[device] = known
        return known
