"""Where an MQTT broker is and how to talk to it."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from typing import Literal

from edgefed.errors import ConfigError
from edgefed.transport.base import DEFAULT_MAX_PAYLOAD_BYTES
from edgefed.transport.tls_files import make_tls_context

__all__ = ["MqttOptions"]


@dataclass(frozen=True, slots=True)
class MqttOptions:
    """Where the broker is and how to talk to it.

    Attributes:
        host: Name or address.
        port: TCP port; 8883 is usual with TLS.
        client_id: Names the session at the broker. No two clients may use the same one at a time.
        username: With ``password``, or alone, as the broker wants it.
        password: See ``username``.
        tls: Encrypt, and check the broker's certificate against the system's authorities or ``tls_ca``.
        tls_ca: PEM file of the authority that signed the broker's certificate; implies ``tls``.
        tls_cert: PEM file of our certificate, where the broker asks for one; implies ``tls``.
        tls_key: PEM file of its key.
        tls_crl: PEM file of what the authority in ``tls_ca`` has taken back: no broker with such a certificate.
        keepalive_s: A connection on which nothing moved for so long is probed, and ended after as long again.
        protocol: ``"5"``, ``"3.1.1"``, or ``"auto"`` for the newer one that works.
        session_expiry_s: How long the broker keeps messages for us while we are away. 0: no session. MQTT 3.1.1
            knows only 0 and for ever.
        max_payload_bytes: Largest payload we publish, or less where the broker tells a lower limit.
        connect_timeout_s: For one attempt to connect, and for the broker's answer to a subscription.
        reconnect_max_s: Longest pause between two attempts.
    """

    host: str
    port: int = 1883
    client_id: str = ""
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: bool = False
    tls_ca: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    tls_crl: str | None = None
    keepalive_s: int = 30
    protocol: Literal["auto", "5", "3.1.1"] = "auto"
    session_expiry_s: int = 3600
    max_payload_bytes: int = DEFAULT_MAX_PAYLOAD_BYTES
    connect_timeout_s: float = 10.0
    reconnect_max_s: float = 60.0

    def __post_init__(self) -> None:
        problems = [
            (not self.host, "host must not be empty"),
            (not 1 <= self.port <= 65535, f"port must be within 1 and 65535, not {self.port}"),
            (not self.client_id, "client_id must not be empty: it names this client's session at the broker"),
            (self.protocol not in ("auto", "5", "3.1.1"), f'protocol is "auto", "5" or "3.1.1", not {self.protocol!r}'),
            (not 1 <= self.keepalive_s <= 65535, f"keepalive_s must be within 1 and 65535, not {self.keepalive_s}"),
            (not 0 <= self.session_expiry_s < 1 << 32, f"session_expiry_s is out of range: {self.session_expiry_s}"),
            (self.max_payload_bytes < 1024, f"max_payload_bytes must be at least 1024, not {self.max_payload_bytes}"),
            (self.connect_timeout_s <= 0, f"connect_timeout_s must be positive, not {self.connect_timeout_s}"),
            (self.reconnect_max_s <= 0, f"reconnect_max_s must be positive, not {self.reconnect_max_s}"),
            (self.password is not None and self.username is None, "password without username"),
            ((self.tls_cert is None) != (self.tls_key is None), "tls_cert and tls_key belong together"),
            (self.tls_crl is not None and self.tls_ca is None, "tls_crl needs tls_ca, the authority whose list it is"),
        ]
        for wrong, message in problems:
            if wrong:
                raise ConfigError(f"MQTT options: {message}")

    @property
    def uses_tls(self) -> bool:
        """Whether the connection is encrypted."""
        return self.tls or self.tls_ca is not None or self.tls_cert is not None

    @property
    def address(self) -> str:
        """``host:port``, for messages."""
        return f"{self.host}:{self.port}"

    def check_files(self) -> None:
        """Sees to it that the TLS files are there and fit each other, for whoever reads them before it connects.

        Raises:
            ConfigError: As ``tls_context``.
        """
        if self.uses_tls:
            self.tls_context()

    def tls_context(self) -> ssl.SSLContext:
        """Return what checks the broker's certificate and shows ours.

        Raises:
            ConfigError: A file is missing or is not what its option says, or others than its owner can read the key.
        """
        context = make_tls_context(self.tls_ca, self.tls_cert, self.tls_key, self.tls_crl)
        context.sslsocket_class = _TlsSocket
        return context


class _TlsSocket(ssl.SSLSocket):
    """A socket that does not stay open when the certificate is not accepted; paho forgets it then."""

    def do_handshake(self, block: bool = False) -> None:
        try:
            super().do_handshake(block)
        except BaseException:
            self.close()
            raise
