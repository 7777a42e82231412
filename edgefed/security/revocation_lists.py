"""Revocation lists (CRL, RFC 5280): how an authority says what it takes back, and how that is read."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from edgefed.errors import ConfigError
from edgefed.security.certificates import Authority

__all__ = ["make_revocation_list", "read_revocation_list"]


def make_revocation_list(authority: Authority, revoked: Mapping[int, datetime], *, number: int, now: datetime) -> bytes:
    """Returns the list (PEM) of what the authority takes back.

    It is good until the authority itself ends: a broker turns everybody away when its list is past its date, and nobody
    would renew it in time on a site without an operator.

    Args:
        authority: signs it.
        revoked: serial numbers, and since when they count no more.
        number: of this list; each is larger than the one before it.
        now: in UTC, with its zone.
    """
    issuer_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key())
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(authority.certificate.subject)
        .last_update(min(now, authority.certificate.not_valid_after_utc - timedelta(seconds=1)))
        .next_update(authority.certificate.not_valid_after_utc)
        .add_extension(x509.CRLNumber(number), critical=False)
        .add_extension(issuer_key, critical=False)
    )
    for serial, since in revoked.items():
        builder = builder.add_revoked_certificate(
            x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(since).build()
        )
    return builder.sign(authority.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def read_revocation_list(
    pem: bytes, where: str, *, authority: x509.Certificate | None = None
) -> tuple[dict[int, datetime], int]:
    """Returns what a list takes back, as serial number and since when, and the list's own number.

    Args:
        pem: the list.
        where: its file, for messages.
        authority: who has to have signed it; None where the file itself is trusted.

    Raises:
        ConfigError: there is no list in the file, or it is not the authority's.
    """
    try:
        found = x509.load_pem_x509_crl(pem)
        is_ours = authority is None or _is_signed_by(found, authority)
        number = found.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
        since = {entry.serial_number: entry.revocation_date_utc for entry in found}
    except (
        ValueError, UnsupportedAlgorithm, x509.InvalidVersion, x509.DuplicateExtension, x509.ExtensionNotFound
    ) as error:  # fmt: skip
        raise ConfigError(f"{where}: not a revocation list in PEM: {error}") from None
    if not is_ours:
        raise ConfigError(f"{where}: the list is not of the fleet's authority: it is another fleet's, or was changed")
    return since, number


def _is_signed_by(revoked: x509.CertificateRevocationList, authority: x509.Certificate) -> bool:
    key = authority.public_key()
    # Nobody signs a list with a key of another kind.
    return isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey) and revoked.is_signature_valid(key)
