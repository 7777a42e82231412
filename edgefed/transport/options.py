"""How to reach the broker, as the configuration files say it."""

from __future__ import annotations

import ipaddress
import secrets
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from edgefed.errors import ConfigError
from edgefed.files import check_private
from edgefed.transport.mqtt import MqttOptions

__all__ = ["Broker", "guarded_client_id"]


def guarded_client_id(name: str) -> str:
    """Returns a client id for one process that begins with `name` and that nobody else can guess.

    A broker ends a connection when another client comes with the same id, whoever that is.
    """
    return f"{name}-{secrets.token_hex(8)}"


class Broker(msgspec.Struct, frozen=True, kw_only=True):
    """The `[broker]` table of `agent.toml` and `federation.toml`.

    Attributes:
        host: name or address.
        port: usually 1883, or 8883 with TLS.
        username: where the broker wants one.
        password_file: a file whose first line is the password; it is never written into a configuration.
        protocol: MQTT version; `auto` tries 5 and falls back to 3.1.1.
        tls_ca, tls_certificate, tls_key: PEM files; naming `tls_ca` turns TLS on.
        local: the broker is on this machine, and lets us in at a port of loopback by name and password: nothing is
            encrypted where there is no network. The PEM files are for signatures alone then.
        tls_crl: PEM file of what the fleet's authority has taken back: no connection to a broker with such a
            certificate, and with signed, no ear for what was signed by one. It is read again when it changes.
        signed: sign what this member says with the key of its certificate, and listen only to what the others have
            signed; all members of a fleet have to agree.
        sealed: the aggregator takes only updates that are sealed for it, so that the broker cannot read them; a device
            takes part only where the aggregator does. Needs signed.
        keepalive_s: the broker notices a silent loss after one and a half times this.
        max_payload_bytes: largest message, where the broker does not say what it takes.
    """

    host: Annotated[str, Meta(min_length=1)] = "localhost"
    port: Annotated[int, Meta(ge=1, le=65535)] = 1883
    username: str = ""
    password_file: str = ""
    protocol: Literal["auto", "5", "3.1.1"] = "auto"
    tls_ca: str = ""
    tls_certificate: str = ""
    tls_key: str = ""
    tls_crl: str = ""
    local: bool = False
    signed: bool = False
    sealed: bool = False
    keepalive_s: Annotated[int, Meta(ge=5, le=3600)] = 30
    max_payload_bytes: Annotated[int, Meta(ge=4096, le=268_000_000)] = 262_144

    def __post_init__(self) -> None:
        """Refuses a client certificate without what belongs to it, and plain text on a network."""
        if self.local and not _is_loopback(self.host):
            raise ValueError(f"local is for a broker on this machine: host is localhost or 127.0.0.1, not {self.host}")
        if self.local and not (self.username and self.password_file):
            raise ValueError(
                "local needs username and password_file: see `edgefed fleet broker-config mosquitto --local-port`"
            )
        if bool(self.tls_certificate) != bool(self.tls_key):
            raise ValueError("tls_certificate and tls_key belong together: give both or neither")
        if self.tls_certificate and not self.tls_ca:
            raise ValueError("tls_certificate needs tls_ca, the authority that signed the broker's certificate")
        if self.signed and not self.tls_certificate:
            raise ValueError("signed needs tls_ca, tls_certificate and tls_key: `edgefed fleet enroll` makes them")
        if self.tls_crl and not self.tls_ca:
            raise ValueError("tls_crl needs tls_ca, the authority whose list it is")
        if self.sealed and not self.signed:
            raise ValueError("sealed needs signed = true: else the broker could name its own key to seal for")

    def mqtt(self, client_id: str, *, session_expiry_s: int) -> MqttOptions:
        """Returns the options of a connection under this client id.

        Args:
            client_id: names the session at the broker.
            session_expiry_s: how long the broker keeps messages for this client while it is away; 0 for no session.

        Raises:
            ConfigError: the password file cannot be read or is empty, or others than its owner can read it.
        """
        return MqttOptions(
            host=self.host,
            port=self.port,
            client_id=client_id,
            username=self.username or None,
            password=self._password(),
            tls_ca=self._for_tls(self.tls_ca),
            tls_cert=self._for_tls(self.tls_certificate),
            tls_key=self._for_tls(self.tls_key),
            tls_crl=self._for_tls(self.tls_crl),
            keepalive_s=self.keepalive_s,
            session_expiry_s=session_expiry_s,
            protocol=self.protocol,
            max_payload_bytes=self.max_payload_bytes,
        )

    def _for_tls(self, file: str) -> str | None:
        return None if self.local else file or None

    def _password(self) -> str | None:
        if not self.password_file:
            return None
        try:
            check_private(Path(self.password_file))
            lines = Path(self.password_file).read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"broker.password_file: {self.password_file} cannot be read: {error}") from error
        if not lines or not lines[0]:
            raise ConfigError(f"broker.password_file: the first line of {self.password_file} is empty")
        return lines[0]


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
