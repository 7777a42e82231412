"""Topic names: built and parsed in one place.

::

    edgefed/v1/<fleet>/aggregator/state        retained, will = lost     host state
    edgefed/v1/<fleet>/round                   retained                  the open round
    edgefed/v1/<fleet>/blob/<sha256-prefix>    broadcast chunks of one rank layer
    edgefed/v1/<fleet>/device/<id>/state       retained, will = lost     device state
    edgefed/v1/<fleet>/device/<id>/profile     retained                  what the device is
    edgefed/v1/<fleet>/device/<id>/up          from the device
    edgefed/v1/<fleet>/device/<id>/down        to the device
    edgefed/v1/<fleet>/claim/<name>/up         from a board that is not enrolled yet
    edgefed/v1/<fleet>/claim/<name>/down       to it

At most six levels, so the limits of every broker in use are kept (AWS IoT Core allows seven slashes and 256 bytes).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from edgefed.errors import ConfigError

__all__ = ["MAX_ID_LENGTH", "DeviceTopic", "Topics", "check_id"]

MAX_ID_LENGTH = 64
_ID = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,62}[a-z0-9])?\Z")
_BLOB_PREFIX_HEX = 16

Channel = Literal["state", "profile", "up", "down"]
_CHANNELS: tuple[Channel, ...] = ("state", "profile", "up", "down")


def check_id(value: str, what: str) -> str:
    """Returns `value` if it can stand as one topic level.

    Raises:
        ConfigError: it is not lower-case letters, digits and inner hyphens, at most 64 of them.
    """
    if not _ID.match(value):
        raise ConfigError(
            f"{what} {value!r} is not usable: allowed are a-z, 0-9 and hyphens (not first or last), "
            f"at most {MAX_ID_LENGTH} characters"
        )
    return value


@dataclass(frozen=True, slots=True)
class DeviceTopic:
    """A parsed `device/<id>/<channel>` topic."""

    device: str
    channel: Channel


@dataclass(frozen=True, slots=True)
class Topics:
    """The topic names of one fleet."""

    fleet: str

    def __post_init__(self) -> None:
        """Refuses a fleet name that could not be a topic level."""
        check_id(self.fleet, "fleet name")

    @property
    def root(self) -> str:
        """The prefix that every topic of this fleet starts with."""
        return f"edgefed/v1/{self.fleet}"

    @property
    def aggregator_state(self) -> str:
        """Retained host state, so that devices know when to wait."""
        return f"{self.root}/aggregator/state"

    @property
    def round(self) -> str:
        """Retained announcement of the open round."""
        return f"{self.root}/round"

    def blob(self, sha256: str) -> str:
        """The broadcast topic of one blob, named by the first 16 hex digits of its hash."""
        return f"{self.root}/blob/{sha256[:_BLOB_PREFIX_HEX]}"

    @property
    def every_blob(self) -> str:
        """A filter that matches the broadcast topics of all blobs."""
        return f"{self.root}/blob/+"

    def device(self, device: str, channel: Channel) -> str:
        """One channel of one device."""
        return f"{self.root}/device/{device}/{channel}"

    def every_device(self, channel: Channel) -> str:
        """A filter that matches one channel of all devices."""
        return f"{self.root}/device/+/{channel}"

    def claim(self, name: str, channel: Literal["up", "down"]) -> str:
        """One channel of one claim: all that a board may use before it is enrolled."""
        return f"{self.root}/claim/{name}/{channel}"

    def parse_claim(self, topic: str) -> str | None:
        """Returns whose `claim/<name>/up` topic of this fleet it is, or None for any other topic."""
        prefix, suffix = f"{self.root}/claim/", "/up"
        if not (topic.startswith(prefix) and topic.endswith(suffix)):
            return None
        name = topic[len(prefix) : -len(suffix)]
        return name if _ID.match(name) else None

    def is_blob(self, topic: str) -> bool:
        """Whether `topic` carries broadcast chunks of this fleet."""
        return topic.startswith(f"{self.root}/blob/")

    def parse_device(self, topic: str) -> DeviceTopic | None:
        """Returns the device and channel of a device topic of this fleet, or None for any other topic."""
        prefix = f"{self.root}/device/"
        if not topic.startswith(prefix):
            return None
        device, _, rest = topic[len(prefix) :].partition("/")
        for channel in _CHANNELS:
            if rest == channel and _ID.match(device):
                return DeviceTopic(device, channel)
        return None
