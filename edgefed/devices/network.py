"""The way through the broker to the aggregator, as `edgefed.agent.network_probe` measures it."""

from __future__ import annotations

import socket

import msgspec

from edgefed.devices.measurement import Measurement, absent

__all__ = ["NetworkProfile", "local_address", "unmeasured_network"]


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


def local_address(host: str, port: int) -> str:
    """Returns this machine's own address on the way to a host, which changes with the network it is on.

    Nothing is sent, except to look the name up. "" where the host cannot be reached.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as end:
            end.connect(address)
            return str(end.getsockname()[0])
    except OSError:
        return ""
