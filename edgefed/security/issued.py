"""A certificate that an authority has issued, and whether it counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from edgefed.security.certificates import common_name, read_certificate
from edgefed.security.identities import Identity

__all__ = ["Issued"]


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate that was issued.

    Attributes:
        identity: whose it is.
        serial: its number.
        begins: from when it counts, in UTC.
        ends: until when.
        revoked: since when it counts no more; None if it was never taken back.
    """

    identity: Identity
    serial: int
    begins: datetime
    ends: datetime
    revoked: datetime | None

    @classmethod
    def read(cls, file: Path, revoked: Mapping[int, datetime]) -> Issued:
        """Returns what the file of a certificate says.

        Args:
            file: the certificate, as PEM.
            revoked: the serial numbers that were taken back, and since when they count no more.

        Raises:
            ConfigError: the file is damaged.
            OSError: it cannot be read.
        """
        found = read_certificate(file.read_bytes(), str(file))
        whose = Identity.parse(common_name(found))
        serial = found.serial_number
        return cls(whose, serial, found.not_valid_before_utc, found.not_valid_after_utc, revoked.get(serial))

    def in_force(self, now: datetime) -> bool:
        """Whether it counts."""
        return self.revoked is None and self.begins <= now < self.ends
