"""Who can hold a certificate of a fleet, and the common name (CN) in which the certificate says so.

::

    role         common name          holds
    device       <device id>          an agent's connection
    aggregator   role:aggregator      the aggregator's connection
    broker       role:broker          the broker's end of every connection
    observer     observer:<name>      somebody who only looks: `edgefed status`, a dashboard
    claim        claim:<name>         a board that is not enrolled yet

A device id has no colon, so no device can be taken for anything else. The broker takes the common name for the user
name, whatever a client calls itself in its packets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgefed.errors import ConfigError
from edgefed.protocol.topics import check_id

__all__ = ["AGGREGATOR", "BROKER", "Identity", "Role"]

Role = Literal["device", "aggregator", "broker", "observer", "claim"]

_MAX_COMMON_NAME = 64  # X.509's bound
_SINGLE: dict[str, Role] = {"role:aggregator": "aggregator", "role:broker": "broker"}
_NAMED: dict[str, Role] = {"observer": "observer", "claim": "claim"}


@dataclass(frozen=True, slots=True)
class Identity:
    """One holder of certificates.

    Attributes:
        role: what it is.
        name: which one it is; the role itself where there is only one.
    """

    role: Role
    name: str

    @classmethod
    def parse(cls, common_name: str) -> Identity:
        """Returns whom a common name stands for.

        Raises:
            ConfigError: it is none that a fleet has.
        """
        if common_name in _SINGLE:
            role = _SINGLE[common_name]
            return cls(role, role)
        prefix, colon, name = common_name.partition(":")
        if not colon:
            return cls("device", check_id(common_name, "device id"))
        if prefix not in _NAMED or len(common_name) > _MAX_COMMON_NAME:
            raise ConfigError(
                f"{common_name!r} is nobody in a fleet: give a device id, role:aggregator, role:broker, "
                f"observer:NAME or claim:NAME, at most {_MAX_COMMON_NAME} characters"
            )
        return cls(_NAMED[prefix], check_id(name, f"{prefix} name"))

    @property
    def common_name(self) -> str:
        """The CN of its certificates, and its user name at the broker."""
        if self.role == "device":
            return self.name
        return f"{self.role}:{self.name}" if self.role in _NAMED else f"role:{self.role}"


AGGREGATOR = Identity("aggregator", "aggregator")
BROKER = Identity("broker", "broker")
