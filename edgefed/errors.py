"""Every error that edgefed raises on purpose, as one tree; the number is the exit code of the command line.

::

    EdgefedError                 1   anything below that has no number of its own
    ├── ConfigError              3   a configuration file or option is wrong: file, key, what was found, what is allowed
    ├── DataError                4   training examples are missing or malformed: file, line, field
    ├── DiskFull                     a disk takes no more, or fails: what could not be written
    ├── ModelError               5   the base model is missing, unreadable, or not the one the federation names
    ├── TransportError           6   the broker
    │   ├── BrokerUnreachable        nobody answers at that address
    │   ├── BrokerRefused            the broker answered no (credentials, protocol version, id)
    │   ├── Disconnected             the connection went away while something waited on it
    │   └── PayloadTooLarge          the broker would not take a packet of that size
    ├── WireError                7   bytes from the network do not mean anything
    │   ├── MessageError             a control message that does not decode, or is not its author's
    │   │   └── Outdated                 a later one was heard before
    │   └── ChunkError               a chunk or a blob that contradicts its hash, size or offset
    ├── AdapterError             8   an adapter has wrong shapes, names, ranks or values
    ├── StoreError               9   the aggregator's durable store cannot be used
    ├── WorkerError             10   the training subprocess
    │   ├── Diverged                 the loss, or its gradient, is no longer finite
    │   ├── WorkerDied               it ended without an answer
    │   └── WorkerOutOfMemory        it ended, or said so, for lack of memory
    ├── DeviceIdTaken           11   another live agent uses this device id
    ├── FederationFailed        12   a federation ended without reaching its last round
    ├── NoPlan                  13   no allowed plan fits the machine, the deadline or the disk
    ├── FleetTaken              14   another live aggregator serves this fleet
    ├── FlashError              15   a board cannot take the agent, or what it should take is wrong
    ├── NotAdmitted             16   a board's claim to be a device of the fleet was refused
    ├── ProblemsFound           17   `edgefed doctor` found something that stops the agent
    └── UpdateError             18   a release of the agent is not what it should be, or cannot be installed
        └── SignatureError           it is not signed by the fleet's aggregator

Exit codes 0 (done), 2 (wrong command line) and 130 (interrupted) come from outside this tree.
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "AdapterError",
    "BrokerRefused",
    "BrokerUnreachable",
    "ChunkError",
    "ConfigError",
    "DataError",
    "DeviceIdTaken",
    "Disconnected",
    "DiskFull",
    "Diverged",
    "EdgefedError",
    "FederationFailed",
    "FlashError",
    "FleetTaken",
    "MessageError",
    "ModelError",
    "NoPlan",
    "NotAdmitted",
    "Outdated",
    "PayloadTooLarge",
    "ProblemsFound",
    "SignatureError",
    "StoreError",
    "TransportError",
    "UpdateError",
    "WireError",
    "WorkerDied",
    "WorkerError",
    "WorkerOutOfMemory",
]


class EdgefedError(Exception):
    """Root of the tree. The message says what was wrong, where, and what to do about it."""

    exit_code: ClassVar[int] = 1


class ConfigError(EdgefedError):
    """A configuration file or option is wrong."""

    exit_code = 3


class DataError(EdgefedError):
    """Training examples are missing or malformed."""

    exit_code = 4


class DiskFull(EdgefedError):
    """A disk takes no more, or fails."""


class ModelError(EdgefedError):
    """The base model is missing, unreadable, or not the one the federation names."""

    exit_code = 5


class TransportError(EdgefedError):
    """The broker could not be used."""

    exit_code = 6


class BrokerUnreachable(TransportError):
    """Nobody answers at the broker's address."""


class BrokerRefused(TransportError):
    """The broker answered, and the answer was no."""


class Disconnected(TransportError):
    """The connection went away while something waited on it."""


class PayloadTooLarge(TransportError):
    """A payload is larger than the broker takes."""

    def __init__(self, size_bytes: int, limit_bytes: int) -> None:
        super().__init__(f"a payload of {size_bytes} bytes is over the broker's limit of {limit_bytes} bytes")
        self.size_bytes = size_bytes
        self.limit_bytes = limit_bytes


class WireError(EdgefedError):
    """Bytes from the network do not mean anything."""

    exit_code = 7


class MessageError(WireError):
    """A control message does not decode, or was not said by whoever may say it."""


class Outdated(MessageError):
    """A message was overtaken by a later one, or somebody plays it again."""


class ChunkError(WireError):
    """A chunk or a blob contradicts its hash, size or offset."""


class AdapterError(EdgefedError):
    """An adapter has wrong shapes, names, ranks or values."""

    exit_code = 8


class StoreError(EdgefedError):
    """The aggregator's durable store cannot be used."""

    exit_code = 9


class WorkerError(EdgefedError):
    """The training subprocess failed."""

    exit_code = 10


class Diverged(WorkerError):
    """The loss, or its gradient, is no longer finite: in training, or of an adapter that is evaluated."""


class WorkerDied(WorkerError):
    """The training subprocess ended without an answer."""


class WorkerOutOfMemory(WorkerError):
    """The training subprocess ran out of memory."""


class DeviceIdTaken(EdgefedError):
    """Another live agent uses this device id."""

    exit_code = 11


class FederationFailed(EdgefedError):
    """A federation ended without reaching its last round."""

    exit_code = 12


class NoPlan(EdgefedError):
    """No plan that the federation and the owner allow fits the machine, the deadline or the disk."""

    exit_code = 13


class FleetTaken(EdgefedError):
    """Another live aggregator serves this fleet."""

    exit_code = 14


class FlashError(EdgefedError):
    """A board's file system or image cannot take the agent, or what it should take is wrong."""

    exit_code = 15


class NotAdmitted(EdgefedError):
    """A board's claim to be a device of the fleet was refused."""

    exit_code = 16


class ProblemsFound(EdgefedError):
    """`edgefed doctor` found something that stops the agent."""

    exit_code = 17


class UpdateError(EdgefedError):
    """A release of the agent is not what it should be, or cannot be installed."""

    exit_code = 18


class SignatureError(UpdateError):
    """A release is not signed by the fleet's aggregator."""
