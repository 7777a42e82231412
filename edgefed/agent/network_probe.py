"""Measures the way through the broker to the aggregator and back: latency, and throughput in both directions."""

from __future__ import annotations

import asyncio
import secrets
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from edgefed.devices.measurement import Measurement, absent, measured
from edgefed.devices.network import NetworkProfile, unmeasured_network
from edgefed.errors import TransportError
from edgefed.protocol.messages.down import Pong
from edgefed.protocol.messages.up import Ping
from edgefed.protocol.messages.wire import encode
from edgefed.protocol.topics import Topics
from edgefed.transport.base import Transport
from edgefed.waiting import wait_at_most

__all__ = ["NetworkProbe"]

_ROUND_TRIPS = 5
_FIRST_BYTES = 8 << 10
_LARGEST_BYTES = 96 << 10  # what every broker takes
_WRAPPING_BYTES = 512
_WINDOW = 8


class _Refused(Exception):
    """The aggregator does not measure with this device now; the message says why."""


@dataclass(slots=True)
class _Burst:
    """Arrivals of one direction: when, and how many bytes had come through by then."""

    started_s: float
    sent_bytes: int = 0
    arrived_bytes: int = 0
    arrivals: list[tuple[float, int]] = field(default_factory=list)

    def rate(self, latency_s: float) -> float:
        """Returns bytes per second.

        The first quarter is left out where the rest took longer than a round trip: messages are small and few until the
        way is known. On a long way that a burst does not fill, the result is a lower bound.
        """
        quarter = self.arrived_bytes / 4
        at_s, before = next((s, done) for s, done in self.arrivals if done >= quarter)
        last_s, total = self.arrivals[-1]
        if last_s - at_s > latency_s:
            return (total - before) / (last_s - at_s)
        took_s = last_s - self.started_s
        return total / (took_s - latency_s if took_s > 2 * latency_s else took_s)


class NetworkProbe:
    """Sends pings to the aggregator, one measurement at a time.

    Args:
        transport: connected; this device's `down` topic is subscribed to.
        topics: of the fleet.
        device: this device's id.
        clock: seconds, monotonic.
    """

    def __init__(
        self, transport: Transport, topics: Topics, device: str, *, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._transport = transport
        self._topic = topics.device(device, "up")
        self._clock = clock
        self._padding = secrets.token_hex(_LARGEST_BYTES // 2)  # nothing on the way shall compress it to nothing
        self._nonce = ""
        self._sequence = 0
        self._waiting: dict[int, asyncio.Future[Pong]] = {}

    def hear(self, pong: Pong) -> None:
        """Takes an answer of the aggregator; those of other measurements are left aside."""
        waiting = self._waiting.pop(pong.sequence, None) if pong.nonce == self._nonce else None
        if waiting is not None and not waiting.done():
            waiting.set_result(pong)

    async def measure(
        self, *, patience_s: float = 3.0, burst_bytes: int = 1 << 20, burst_s: float = 2.0
    ) -> NetworkProfile:
        """Returns what was measured; what could not be says why. Never raises for the network's sake.

        Args:
            patience_s: how long one answer is waited for.
            burst_bytes: at most so many bytes are sent each way.
            burst_s: at most so many seconds are spent on each way, and one message more.
        """
        self._nonce = secrets.token_hex(8)
        try:
            latency_s = [await self._round_trip(patience_s) for _ in range(_ROUND_TRIPS)]
        except asyncio.TimeoutError:
            return unmeasured_network(f"no aggregator answered within {patience_s:g} s: is one running?")
        except _Refused as refused:
            return unmeasured_network(f"the aggregator declined: {refused}")
        except TransportError as error:
            return unmeasured_network(f"the broker: {error}")
        latency = measured(
            statistics.median(latency_s), f"median of {_ROUND_TRIPS} round trips to the aggregator through the broker"
        )
        assert latency.value is not None
        return NetworkProfile(
            latency_s=latency,
            uplink_bytes_per_s=await self._throughput("up", latency.value, patience_s, burst_bytes, burst_s),
            downlink_bytes_per_s=await self._throughput("down", latency.value, patience_s, burst_bytes, burst_s),
        )

    async def _round_trip(self, patience_s: float) -> float:
        started_s = self._clock()
        await wait_at_most(self._ask(0, 0), patience_s)
        return self._clock() - started_s

    async def _throughput(
        self, way: str, latency_s: float, patience_s: float, burst_bytes: int, burst_s: float
    ) -> Measurement:
        burst = _Burst(self._clock())
        try:
            await wait_at_most(self._burst(way, burst, burst_bytes, burst_s), burst_s + patience_s)
        except asyncio.TimeoutError:
            if not burst.arrivals:
                return absent(f"not one message of {_FIRST_BYTES} bytes came through within {burst_s + patience_s:g} s")
        except _Refused as refused:
            return absent(f"the aggregator declined: {refused}")
        except TransportError as error:
            return absent(f"the broker: {error}")
        method = f"{burst.arrived_bytes >> 10} KiB through the broker in messages of up to {self._largest() >> 10} KiB"
        return measured(burst.rate(latency_s), method)

    async def _burst(self, way: str, burst: _Burst, burst_bytes: int, burst_s: float) -> None:
        """Keeps messages on the way: small ones and few at first, larger ones and more with each that comes through."""
        flying: dict[asyncio.Task[Pong], int] = {}
        try:
            while True:
                room = min(_WINDOW, len(burst.arrivals) + 1)
                in_time = self._clock() - burst.started_s < burst_s
                while in_time and burst.sent_bytes < burst_bytes and len(flying) < room:
                    size = min(self._largest(), _FIRST_BYTES << len(burst.arrivals), burst_bytes - burst.sent_bytes)
                    ask = self._ask(size, 0) if way == "up" else self._ask(0, size)
                    flying[asyncio.create_task(ask)] = size
                    burst.sent_bytes += size
                if not flying:
                    return
                done, _ = await asyncio.wait(flying, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
                    burst.arrived_bytes += flying.pop(task)
                    burst.arrivals.append((self._clock(), burst.arrived_bytes))
        finally:
            for task in flying:
                task.cancel()
            await asyncio.gather(*flying, return_exceptions=True)

    async def _ask(self, padding_bytes: int, answer_bytes: int) -> Pong:
        self._sequence += 1
        sequence = self._sequence
        answer: asyncio.Future[Pong] = asyncio.get_running_loop().create_future()
        self._waiting[sequence] = answer
        ping = Ping(
            nonce=self._nonce, sequence=sequence, answer_bytes=answer_bytes, padding=self._padding[:padding_bytes]
        )
        try:
            await self._transport.publish(self._topic, encode(ping))
            pong = await answer
        finally:
            self._waiting.pop(sequence, None)
        if pong.refused:
            raise _Refused(pong.refused)
        return pong

    def _largest(self) -> int:
        room = self._transport.max_payload_bytes - _WRAPPING_BYTES
        return max(_FIRST_BYTES, min(_LARGEST_BYTES, room))
