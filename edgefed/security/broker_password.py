"""The password with which the aggregator comes to a broker on its own machine, where it need not encrypt."""

from __future__ import annotations

import base64
import hashlib
import secrets
from datetime import datetime

from edgefed.errors import ConfigError
from edgefed.files import check_private, replace_file
from edgefed.security.fleet_directory import FleetDirectory
from edgefed.security.identities import AGGREGATOR

__all__ = ["LOCAL_AGGREGATOR", "PASSWORD_FILE", "broker_password", "mosquitto_passwords"]

LOCAL_AGGREGATOR = "aggregator.local"
"""The aggregator's user name there. No certificate has it: the names of members have no dot, and Mosquitto's password
files allow no colon, as in `role:aggregator`."""

PASSWORD_FILE = "broker-password"
_ITERATIONS = 101  # as mosquitto_passwd has it; nobody guesses 32 random bytes, however fast each guess is


def broker_password(fleet: FleetDirectory, now: datetime) -> str:
    """Returns the aggregator's password, which is made where there is none, and anew with each new certificate.

    It is the first line of `broker-password` beside the aggregator's key; the second tells which certificate it goes
    with, so that what is revoked does not come back by way of the password.

    Args:
        fleet: whose aggregator it is.
        now: in UTC, with its zone.

    Raises:
        ConfigError: the aggregator has no certificate in force, or others than its owner can read the password.
        OSError: the file cannot be read or written.
    """
    with fleet.alone():
        entries = [one for one in fleet.issued() if one.identity == AGGREGATOR and one.in_force(now)]
        if not entries:
            raise ConfigError(
                "the aggregator has no certificate in force, so there is nobody to let in at a local port: "
                "`edgefed fleet rotate role:aggregator` gives it one"
            )
        owner = f"# goes with certificate {entries[-1].serial:x}"
        file = fleet.place(AGGREGATOR) / PASSWORD_FILE
        if file.exists():
            check_private(file)
            password, *rest = file.read_text().splitlines() or [""]
            if password and rest == [owner]:
                return password
        password = secrets.token_urlsafe(32)
        replace_file(file, [f"{password}\n{owner}\n".encode()], mode=0o600)
        return password


def mosquitto_passwords(password: str) -> str:
    """Returns a password file of Mosquitto with the aggregator alone, salted and hashed (PBKDF2 with SHA-512)."""
    salt = secrets.token_bytes(12)
    value = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, _ITERATIONS)
    encoded = "$".join(base64.b64encode(part).decode() for part in (salt, value))
    return f"{LOCAL_AGGREGATOR}:$7${_ITERATIONS}${encoded}\n"
