"""The `agent.toml` of a board that is being flashed: few lines, with the places that the units know."""

from __future__ import annotations

import json
from dataclasses import dataclass

import msgspec

from edgefed.agent.options import AgentOptions
from edgefed.errors import FlashError

__all__ = [
    "CA",
    "CERTIFICATE",
    "CLAIM",
    "CLAIM_TOKEN",
    "CONFIG",
    "DATA",
    "KEY",
    "PASSWORD",
    "STATE",
    "Access",
    "agent_toml",
    "check_data",
]

CONFIG = "/etc/edgefed/agent.toml"
PASSWORD = "/etc/edgefed/password"
CA, CERTIFICATE, KEY = (f"/etc/edgefed/tls/{name}.pem" for name in ("ca", "certificate", "key"))
CLAIM = "/etc/edgefed/claim"
"""The agent may remove what is in here: it is a directory for that reason alone."""
CLAIM_TOKEN = f"{CLAIM}/token"
STATE = "/var/lib/edgefed"
_ENROLLED = {f"tls_{name}": f"{STATE}/tls/{name}.pem" for name in ("ca", "certificate", "key")}
"""Where enrolling writes: /etc is not the agent's."""
DATA = f"{STATE}/data"
_HIDDEN = ("/home/", "/root/", "/tmp/", "/var/tmp/")


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """How a device reaches its fleet.

    Attributes:
        device: its id.
        fleet: the fleet's name.
        host: of the broker.
        port: of the broker; None takes 8883 with TLS and 1883 without.
        username: at the broker; empty where it wants none.
        has_password: a password is written beside.
        has_ca: the authority's certificate is written beside.
        has_certificate: the device's own certificate and key are written beside.
        has_token: a claim token is written beside, by which the board gets all three.
        signed: it signs what it says, as all members of its fleet do.
        data: where the examples are on the board; empty takes the directory that is made for them.
    """

    device: str
    fleet: str
    host: str
    port: int | None = None
    username: str = ""
    has_password: bool = False
    has_ca: bool = False
    has_certificate: bool = False
    has_token: bool = False
    signed: bool = False
    data: str = ""


def agent_toml(access: Access) -> bytes:
    """Returns the text of a board's `agent.toml`.

    Raises:
        FlashError: it says something that the agent would refuse.
    """
    usual_port = 8883 if access.has_ca or access.has_token else 1883
    broker: dict[str, str | int] = {"host": access.host, "port": access.port or usual_port}
    if access.username:
        broker["username"] = access.username
    if access.has_password:
        broker["password_file"] = PASSWORD
    if access.has_token:
        broker |= _ENROLLED
    if access.has_ca:
        broker["tls_ca"] = CA
    if access.has_certificate:
        broker |= {"tls_certificate": CERTIFICATE, "tls_key": KEY}
    if access.signed:
        broker["signed"] = True
    data = access.data or DATA
    check_data(data)
    top: dict[str, str | int] = {"device": access.device, "fleet": access.fleet, "state": f"{STATE}/state"}
    tables: dict[str, dict[str, str | int]] = {"broker": broker, "data": {"path": data}}
    try:
        msgspec.convert({**top, **tables}, AgentOptions)
    except msgspec.ValidationError as error:
        raise FlashError(f"the board's agent.toml would be refused: {error}") from None
    parts = ["# Written by edgefed flash; `edgefed init` shows everything that may stand here.\n", *_lines(top)]
    for name in tables:
        parts += [f"\n[{name}]\n", *_lines(tables[name])]
    return "".join(parts).encode()


def check_data(data: str) -> None:
    """Refuses a place for the examples that the agent's unit does not let it see.

    Raises:
        FlashError: it is relative, or hidden.
    """
    if not data.startswith("/") or f"{data}/".startswith(_HIDDEN):
        raise FlashError(
            f"{data} on the board is no place for the examples: name an absolute path outside "
            f"{', '.join(_HIDDEN)}, which are hidden from the agent"
        )


def _lines(table: dict[str, str | int]) -> list[str]:
    """Returns a table's lines; JSON writes these strings as TOML does, but for one character that TOML must escape."""
    return [
        f"{key} = {json.dumps(value, ensure_ascii=False)}\n".replace("\x7f", "\\u007f") for key, value in table.items()
    ]
