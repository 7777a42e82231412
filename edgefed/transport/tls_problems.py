"""Words for a broker that does not answer over TLS: whose certificate it is about, and whether the clock may be wrong.

In TLS 1.3 a client hears of its own certificate's refusal only after the handshake, as a connection that is closed
(RFC 8446, 4.4.2.4 and E.1.2); so what can be known of it is looked up here.
"""

from __future__ import annotations

import ssl
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from edgefed.transport.mqtt_connection import NoAnswer
from edgefed.transport.mqtt_options import MqttOptions

if TYPE_CHECKING:
    from cryptography import x509

__all__ = ["explain_refusal", "explain_unreachable"]

# Of X509_verify_cert_error_string(3); the ssl module has no names for them.
_NO_LIST, _NOT_YET_VALID, _EXPIRED, _REVOKED, _WRONG_PURPOSE = 3, 9, 10, 23, 26
_FOREIGN = {7, 18, 19, 20, 21, 30}
_OTHER_HOST = {62, 64}


def explain_unreachable(options: MqttOptions, error: BaseException, now: datetime) -> str:
    """Returns what an operator should look at.

    Args:
        options: of the connection that did not come about.
        error: what `MqttConnection.open` raised.
        now: this machine's clock, in UTC with its zone.
    """
    if isinstance(error.__cause__, ssl.SSLCertVerificationError):
        return _about_theirs(options, error.__cause__.verify_code, now)
    if isinstance(error, NoAnswer) and options.tls_cert is not None:
        return _about_ours(Path(options.tls_cert), options, now)
    if isinstance(error, NoAnswer) and options.uses_tls:
        return "the broker may want a certificate of its clients: name ours (tls_certificate, tls_key)"
    return "is it running, and do host, port and TLS fit it?"


def explain_refusal(options: MqttOptions) -> str:
    """Returns whom the broker may take us for, where it forbids what we are about to do."""
    if options.tls_cert is None:
        return f"check what the broker allows user {options.username!r}" if options.username else "check its rules"
    from cryptography import x509

    try:
        ours = x509.load_pem_x509_certificate(Path(options.tls_cert).read_bytes())
    except (OSError, ValueError):
        return "check its rules"
    return (
        f"our certificate {options.tls_cert} is of {ours.subject.rfc4514_string()}: if that is who this should be, the "
        "broker needs its newest rules (`edgefed fleet broker-config`)"
    )


def _about_theirs(options: MqttOptions, code: int, now: datetime) -> str:
    if code in (_NOT_YET_VALID, _EXPIRED):
        when = "has ended" if code == _EXPIRED else "does not count yet"
        return (
            f"by this machine's clock, which says {_clock(now)}, its certificate {when}: is the clock right? If it is, "
            "the fleet's operator has to give the broker a new one: edgefed fleet rotate role:broker"
        )
    if code == _REVOKED:
        return f"its certificate was revoked ({options.tls_crl}): whoever answers there must not be the broker any more"
    if code == _NO_LIST:
        return f"the revocation list {options.tls_crl} is not of the authority in {options.tls_ca}"
    if code in _FOREIGN:
        return (
            f"its certificate is not of the authority in {options.tls_ca or 'this system'}: it is another fleet's "
            "broker, or somebody who poses as ours"
        )
    if code in _OTHER_HOST:
        return (
            f"its certificate is for other names than {options.host!r}: connect to one that it is for, or give it one "
            f"for this: edgefed fleet rotate role:broker --broker-host {options.host}"
        )
    if code == _WRONG_PURPOSE:
        return "its certificate is not a broker's: somebody with a device's certificate may pose as the broker"
    return "its certificate cannot be trusted"


def _about_ours(file: Path, options: MqttOptions, now: datetime) -> str:
    # Here and not above: an agent that has no trouble need not carry it.
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature

    try:
        ours = x509.load_pem_x509_certificate(file.read_bytes())
        authority = x509.load_pem_x509_certificate(Path(options.tls_ca).read_bytes()) if options.tls_ca else None
    except (OSError, ValueError):
        return "it closes a connection so when it does not accept a certificate, and ours cannot be read here"
    begins, ends = ours.not_valid_before_utc, ours.not_valid_after_utc
    if not begins <= now < ends:
        return (
            f"our certificate {file} counts from {_clock(begins)} to {_clock(ends)}, and this machine's clock says "
            f"{_clock(now)}: is the clock right? If it is, the fleet's operator has to rotate the certificate"
        )
    if authority is not None:
        try:
            ours.verify_directly_issued_by(authority)
        except (ValueError, TypeError, InvalidSignature):
            return f"our certificate {file} is not of the fleet's authority in {options.tls_ca}: it is another fleet's"
    if not _is_for_clients(ours):
        return f"our certificate {file} is not a member's, but a broker's or an authority's: name our own"
    return (
        f"it closes a connection so when it does not accept a certificate: ours ({file}) may have been revoked, or the "
        "broker's clock may be wrong"
    )


def _is_for_clients(certificate: x509.Certificate) -> bool:
    from cryptography import x509
    from cryptography.x509.oid import ExtendedKeyUsageOID

    try:
        uses = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return True  # it says nothing of its use, so it may be used for anything
    return ExtendedKeyUsageOID.CLIENT_AUTH in uses


def _clock(when: datetime) -> str:
    return f"{when:%Y-%m-%d %H:%M} UTC"
