"""An MQTT 3.1.1 broker in this process, for trying things out; a real deployment runs Mosquitto, EMQX or another.

It lets everybody in and keeps everything in memory. Retained messages, wills, sessions and packets of 256 KiB
work as with a real broker; it is about a third as fast as Mosquitto.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgefed.errors import BrokerUnreachable, ConfigError

if TYPE_CHECKING:
    from edgefed.transport.amqtt_broker import RepairedBroker

__all__ = ["EmbeddedBroker", "embedded_broker"]


@dataclass(frozen=True, slots=True)
class EmbeddedBroker:
    """A broker that is running.

    Attributes:
        host: Where it listens.
        port: Where it listens.
    """

    host: str
    port: int


@contextlib.asynccontextmanager
async def embedded_broker(host: str = "127.0.0.1", port: int = 1883) -> AsyncIterator[EmbeddedBroker]:
    """Run a broker for the length of the block.

    Args:
        host: Address to listen on; ``0.0.0.0`` for all of this machine.
        port: TCP port; 0 takes a free one.

    Raises:
        ConfigError: amqtt is not installed.
        BrokerUnreachable: The port cannot be had.
    """
    # amqtt logs what it raises as well, with a traceback; its everyday messages are of no use to an operator.
    _quiet("amqtt", logging.CRITICAL)
    _quiet("transitions", logging.WARNING)
    broker = _make(host, port)
    try:
        await broker.start()
    except Exception as error:
        raise BrokerUnreachable(f"a broker cannot listen on {host}:{port}: {error.__cause__ or error}") from error
    try:
        yield EmbeddedBroker(host, broker.port)
    finally:
        await broker.shutdown()


def _make(host: str, port: int) -> RepairedBroker:
    try:
        from edgefed.transport.amqtt_broker import RepairedBroker, broker_config
    except ImportError as error:
        raise ConfigError(
            f"the embedded broker needs amqtt ({error}); install it with: pip install 'edgefed[broker]', "
            "or run another MQTT broker such as Mosquitto"
        ) from error
    return RepairedBroker(broker_config(host, port))


def _quiet(name: str, level: int) -> None:
    logger = logging.getLogger(name)
    if logger.level == logging.NOTSET:  # whoever configured it wants it otherwise
        logger.setLevel(level)
