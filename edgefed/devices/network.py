"""The way through the broker to the aggregator, as `edgefed.agent.network_probe` measures it."""

from __future__ import annotations

import msgspec

from edgefed.devices.measurement import Measurement, absent

__all__ = ["NetworkProfile", "unmeasured_network"]


class NetworkProfile(msgspec.Struct, frozen=True, kw_only=True):
    """Latency and throughput from device to aggregator and back, the broker included.

    Attributes:
        latency_s: of a round trip with an empty message.
        uplink_bytes_per_s: payload bytes, device to aggregator.
        downlink_bytes_per_s: payload bytes, aggregator to device.
    """

    latency_s: Measurement
    uplink_bytes_per_s: Measurement
    downlink_bytes_per_s: Measurement


def unmeasured_network(reason: str) -> NetworkProfile:
    """Returns a network profile of nulls."""
    nothing = absent(reason)
    return NetworkProfile(latency_s=nothing, uplink_bytes_per_s=nothing, downlink_bytes_per_s=nothing)
