"""How to reach the broker, as the configuration files say it."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

__all__ = ["Broker"]


class Broker(msgspec.Struct, frozen=True, kw_only=True):
    """The `[broker]` table of `agent.toml` and `federation.toml`.

    Attributes:
        host: name or address.
        port: usually 1883, or 8883 with TLS.
        username: where the broker wants one.
        password_file: a file whose first line is the password; it is never written into a configuration.
        protocol: MQTT version; `auto` tries 5 and falls back to 3.1.1.
        tls_ca, tls_certificate, tls_key: PEM files; naming `tls_ca` turns TLS on.
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
    keepalive_s: Annotated[int, Meta(ge=5, le=3600)] = 30
    max_payload_bytes: Annotated[int, Meta(ge=4096, le=268_000_000)] = 262_144

    def __post_init__(self) -> None:
        """Refuses a client certificate without what belongs to it."""
        if bool(self.tls_certificate) != bool(self.tls_key):
            raise ValueError("tls_certificate and tls_key belong together: give both or neither")
        if self.tls_certificate and not self.tls_ca:
            raise ValueError("tls_certificate needs tls_ca, the authority that signed the broker's certificate")
