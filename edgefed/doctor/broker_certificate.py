"""The certificate that a broker shows, whether it can be trusted or not: evidence, to be judged by others."""

from __future__ import annotations

import contextlib
import socket
import ssl

from cryptography import x509

from edgefed.transport.options import Broker

__all__ = ["fetch_broker_certificate", "speaks_tls"]

_PATIENCE_S = 5.0


def fetch_broker_certificate(broker: Broker) -> x509.Certificate | None:
    """Returns the broker's certificate; None without TLS, and where nobody shows one."""
    if not broker.tls_ca:
        return None
    try:
        context = _trusting()
        if broker.tls_certificate:  # a broker that wants one may not finish a handshake of TLS 1.2 without it
            with contextlib.suppress(OSError):
                context.load_cert_chain(broker.tls_certificate, broker.tls_key)
        with (
            socket.create_connection((broker.host, broker.port), timeout=_PATIENCE_S) as plain,
            context.wrap_socket(plain, server_hostname=broker.host) as encrypted,
        ):
            shown = encrypted.getpeercert(binary_form=True)
        return x509.load_der_x509_certificate(shown) if shown else None
    except (OSError, ValueError):  # ssl.SSLError is an OSError
        return None


def speaks_tls(host: str, port: int) -> bool:
    """Returns whether somebody begins a TLS handshake there."""
    try:
        with socket.create_connection((host, port), timeout=_PATIENCE_S) as plain:
            _trusting().wrap_socket(plain, server_hostname=host).close()
    except ssl.SSLError as error:
        # An alert is an answer in TLS too, such as that of a broker that wants a certificate.
        return "ALERT" in (error.reason or "")
    except OSError:
        return False
    return True


def _trusting() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
