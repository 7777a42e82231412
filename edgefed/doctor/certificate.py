"""The device's certificate, its key and its authority, as far as the files tell: the broker has its own check."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from edgefed.agent.options import AgentOptions
from edgefed.doctor.findings import Board, Finding, Findings, note, ok, problem, utc
from edgefed.errors import ConfigError
from edgefed.files import check_private, in_shell
from edgefed.security.certificates import common_name, fleet_of, is_issued_by, read_certificate
from edgefed.security.keys import PrivateKey, fingerprint, read_key, signs_messages
from edgefed.transport.options import Broker

__all__ = ["look_at_certificate"]

_SOON = timedelta(days=30)
_AGAIN = "give the device a new one: `edgefed fleet rotate {}` at the fleet's operator"


def look_at_certificate(board: Board) -> Findings:
    """Yields what is wrong with the files that [broker] names, or that nothing is."""
    assert board.options is not None
    broker = board.options.broker
    if not broker.tls_ca:
        yield note(
            "the connection is not encrypted: agent.toml names no tls_ca",
            "on a network that others use, make a fleet with certificates: `edgefed fleet init`",
        )
        return
    if broker.tls_certificate and not Path(broker.tls_certificate).exists():
        yield ok("there is none to look at before the device is enrolled")
        return
    now = board.now()
    authority = _read(Path(broker.tls_ca), "the authority's certificate")
    if isinstance(authority, Finding):
        yield authority
    else:
        yield from _about_time(authority, "the authority", now, "the fleet needs a new one: `edgefed fleet init`")
    if not broker.tls_certificate:
        return
    ours = _read(Path(broker.tls_certificate), "the device's certificate")
    if isinstance(ours, Finding):
        yield ours
        return
    yield from _about_time(ours, "the device's certificate", now, _AGAIN.format(board.options.device))
    issuer = None if isinstance(authority, Finding) else authority
    yield from _about_identity(board.options, ours, issuer)
    yield from _about_key(board.options, ours)


def _read(file: Path, what: str) -> x509.Certificate | Finding:
    try:
        return read_certificate(file.read_bytes(), str(file))
    except FileNotFoundError:
        return problem(f"{what} is not there: {file}", "copy it from the fleet's directory, or enroll the device")
    except OSError as error:
        return problem(f"{file} cannot be read: {error.strerror}", "let the agent's user read it")
    except ConfigError as error:
        return problem(str(error), "copy it again from the fleet's directory")


def _about_time(certificate: x509.Certificate, what: str, now: datetime, remedy: str) -> Findings:
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now < begins:
        yield problem(
            f"{what} counts only from {utc(begins)}, and this machine's clock says {utc(now)}",
            "the clock is most likely wrong: set it right",
        )
    elif now >= ends:
        yield problem(
            f"{what} has ended on {utc(ends)}, and this machine's clock says {utc(now)}",
            f"if the clock is right, {remedy}",
        )
    elif ends - now < _SOON:
        yield note(f"{what} ends soon, on {utc(ends)}", remedy)
    else:
        yield ok(f"{what} counts until {utc(ends)}")


def _about_identity(options: AgentOptions, ours: x509.Certificate, authority: x509.Certificate | None) -> Findings:
    broker, name = options.broker, common_name(ours)
    if name != options.device:
        yield problem(
            f"{broker.tls_certificate} is of {name!r}, and agent.toml says that this is {options.device!r}",
            "put this device's own certificate and key there, or correct `device`",
        )
    fleet = fleet_of(authority) if authority is not None else ""
    if fleet and fleet != options.fleet:
        yield problem(
            f"{broker.tls_ca} is of the authority of fleet {fleet!r}, and agent.toml says {options.fleet!r}",
            "correct `fleet`, or put the certificates of that fleet there",
        )
    if authority is not None and not is_issued_by(ours, authority):
        yield problem(
            f"{broker.tls_certificate} is not of the authority in {broker.tls_ca}: they are of different fleets",
            "copy both from the same fleet's directory, or enroll the device again",
        )
    if list(_uses(ours)) != [ExtendedKeyUsageOID.CLIENT_AUTH]:
        yield problem(
            f"{broker.tls_certificate} is not a member's certificate: it is for something else than a client",
            _AGAIN.format(options.device),
        )


def _about_key(options: AgentOptions, ours: x509.Certificate) -> Findings:
    file = Path(options.broker.tls_key)
    try:
        check_private(file)
        key = read_key(file.read_bytes(), str(file))
    except FileNotFoundError:
        yield problem(f"the device's key is not there: {file}", _AGAIN.format(options.device))
    except OSError as error:
        owned = f"the agent's user has to own it: chown … {in_shell(file)}"
        yield problem(f"{file} cannot be read: {error.strerror}", owned)
    except ConfigError as error:
        yield _about_unusable_key(options.broker, error)
    else:
        yield _about_usable_key(options, ours, key)


def _about_usable_key(options: AgentOptions, ours: x509.Certificate, key: PrivateKey) -> Finding:
    file = options.broker.tls_key
    if key.public_key() != ours.public_key():
        return problem(
            f"{file} is not the key of {options.broker.tls_certificate}",
            "copy both again, from the same place; the key that a certificate is of cannot be made again",
        )
    if options.broker.signed and not signs_messages(key):
        return problem(
            f"{file} cannot sign messages, which takes an Ed25519 or P-256 key, and [broker] signed is on",
            _AGAIN.format(options.device),
        )
    known_by = fingerprint(key.public_key())[:16]
    return ok(f"the key is the certificate's, and nobody else may read it (key {known_by})")


def _about_unusable_key(broker: Broker, error: ConfigError) -> Finding:
    file = Path(broker.tls_key)
    if file.stat().st_mode & 0o077:
        return problem(str(error), f"chmod 600 {in_shell(file)}")
    if not broker.signed and b"PRIVATE KEY" in file.read_bytes():
        # TLS takes keys that edgefed does not make, such as RSA; only signatures do not.
        return note(f"{error}; TLS may still take it")
    return problem(str(error), "give the device a key of a kind that edgefed knows: `edgefed fleet rotate`")


def _uses(certificate: x509.Certificate) -> Iterator[x509.ObjectIdentifier]:
    try:
        yield from certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return
