"""The directory in which an operator keeps a fleet's authority, and what it has issued.

::

    ca/ca.pem, ca/ca.key        the authority; with its key anybody can be made a member of the fleet
    ca/crl.pem                  what was taken back
    ca/issued/<serial>.pem      every certificate that was ever issued
    ca/tokens/<id>.json         claim tokens that were given out (`security.admissions`); never the tokens themselves
    aggregator/, broker/, devices/<id>/, observers/<name>/, claims/<name>/
                                what each of them needs: ca.pem, certificate.pem, key.pem
    aggregator/crl.pem          what was taken back, for the aggregator: it refuses what the revoked have signed

What the authority has signed is the record: there is no other list that could contradict it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from edgefed.errors import ConfigError
from edgefed.files import check_private, in_shell, replace_file, temporary_beside
from edgefed.protocol.topics import check_id
from edgefed.security import certificates, keys
from edgefed.security.certificates import Authority
from edgefed.security.identities import AGGREGATOR, BROKER, Identity
from edgefed.security.issued import Issued
from edgefed.security.keys import PublicKey
from edgefed.security.revocation_lists import make_revocation_list, read_revocation_list
from edgefed.security.signing_requests import key_of_request

__all__ = ["CA_FILE", "CERTIFICATE_FILE", "CRL_FILE", "KEY_FILE", "FleetDirectory", "Lifetimes"]

CA_FILE, CERTIFICATE_FILE, CRL_FILE, KEY_FILE = "ca.pem", "certificate.pem", "crl.pem", "key.pem"
_PLACES = {"device": "devices", "observer": "observers", "claim": "claims"}
_PUBLIC, _SECRET = 0o644, 0o600


@dataclass(frozen=True, slots=True, kw_only=True)
class Lifetimes:
    """For how many days certificates count.

    Attributes:
        authority_days: the authority's own.
        member_days: those that it issues.
    """

    authority_days: int = 3650
    member_days: int = 365


class FleetDirectory:
    """One fleet's directory.

    Attributes:
        path: where it is.
        fleet: the fleet's name, as the authority's certificate has it.
    """

    def __init__(self, path: Path) -> None:
        """Opens what `create` has made.

        Raises:
            ConfigError: no fleet was made there.
        """
        self.path = path
        try:
            pem = self.ca_file.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            raise ConfigError(f"{path} holds no fleet: `edgefed fleet init {in_shell(path)}` makes one") from None
        self.fleet = check_id(
            certificates.fleet_of(certificates.read_certificate(pem, str(self.ca_file))), f"{self.ca_file}: fleet name"
        )

    @classmethod
    def create(
        cls, path: Path, fleet: str, *, hosts: Sequence[str], lifetimes: Lifetimes, now: datetime
    ) -> FleetDirectory:
        """Makes a fleet's authority, and the certificates of its broker and its aggregator.

        Args:
            path: a directory that is not there yet, or is empty.
            fleet: its name.
            hosts: names and addresses under which the broker is reached.
            lifetimes: how long the certificates count.
            now: in UTC, with its zone.

        Raises:
            ConfigError: something is at `path` already, or a name cannot be used.
            OSError: it cannot be written.
        """
        check_id(fleet, "fleet name")
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise ConfigError(f"{path} exists already; a fleet's authority is never overwritten: name a new directory")
        path.parent.mkdir(parents=True, exist_ok=True)
        made = temporary_beside(path.absolute())
        try:
            authority = certificates.make_authority(fleet, days=lifetimes.authority_days, now=now)
            for directory in (made, made / "ca", made / "ca" / "issued"):
                directory.mkdir(mode=0o700)
            replace_file(made / "ca" / "ca.key", [keys.key_pem(authority.key)], mode=_SECRET)
            replace_file(made / "ca" / CA_FILE, [certificates.certificate_pem(authority.certificate)], mode=_PUBLIC)
            new = cls(made)
            new._write_revocation_list(authority, {}, number=1, now=now)
            new.enroll(BROKER, days=lifetimes.member_days, now=now, hosts=hosts)
            new.enroll(AGGREGATOR, days=lifetimes.member_days, now=now)
            made.rename(path)  # all of it or nothing; fails where somebody else was faster
        finally:
            shutil.rmtree(made, ignore_errors=True)
        return cls(path)

    @property
    def ca_file(self) -> Path:
        """The authority's certificate, which everybody in the fleet trusts."""
        return self.path / "ca" / CA_FILE

    @property
    def revocation_list(self) -> Path:
        """The list of what was taken back (CRL), for the broker."""
        return self.path / "ca" / CRL_FILE

    def place(self, identity: Identity) -> Path:
        """Returns the directory of one holder."""
        if identity.role in _PLACES:
            return self.path / _PLACES[identity.role] / identity.name
        return self.path / identity.role

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Keeps two commands from changing the directory at the same time."""
        lock = os.open(self.path / "ca", os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def issued(self) -> list[Issued]:
        """Returns every certificate that was issued, by name, and each holder's newest last.

        Raises:
            ConfigError: one of the files is damaged.
        """
        revoked, _ = self._revoked()
        found = [Issued.read(file, revoked) for file in (self.path / "ca" / "issued").glob("*.pem")]
        return sorted(found, key=lambda entry: (entry.identity.common_name, entry.serial))

    def members(self, now: datetime) -> list[Identity]:
        """Returns everybody who has a certificate that counts, once each, by name."""
        return list(dict.fromkeys(entry.identity for entry in self.issued() if entry.in_force(now)))

    def enroll(
        self,
        identity: Identity,
        *,
        days: int,
        now: datetime,
        renew: bool = False,
        request: Path | None = None,
        output: Path | None = None,
        hosts: Sequence[str] = (),
    ) -> Path:
        """Makes somebody a member of the fleet, and returns the directory with what they need.

        Args:
            identity: who.
            days: for how long.
            now: in UTC, with its zone.
            renew: give a member a new key and certificate. What they had before counts until it ends or is revoked, so
                that they can go on until they have the new one.
            request: a signing request whose key stays where it was made; None makes a key here.
            output: the directory that is written, in place of the fleet's own.
            hosts: names and addresses under which the broker is reached; for the broker only. A new certificate of its
                is for the same hosts where none are given.

        Raises:
            ConfigError: they are a member already, or were never one that is to `renew`, or the authority or the
                request cannot be used.
            OSError: something cannot be read or written.
        """
        with self.alone():
            held = self._held(identity)
            if renew and not held:
                raise ConfigError(
                    f"{identity.common_name} has no certificate to renew: `edgefed fleet enroll` makes one"
                )
            if not renew and any(entry.in_force(now) for entry in held):
                raise ConfigError(
                    f"{identity.common_name} is enrolled already: `edgefed fleet rotate` gives it a new certificate, "
                    "`edgefed fleet revoke` takes back what it has"
                )
            if renew and not hosts:
                hosts = certificates.hosts_of(self.certificate(held[-1]))
            _check_hosts(identity, hosts)
            key, secret = _key(identity, request)
            certificate = self.sign(identity, key, days=days, now=now, hosts=hosts)
            return self._hand_over(identity, certificate, secret, output)

    def revoke(self, identity: Identity, *, now: datetime, superseded_only: bool = False) -> list[int]:
        """Takes certificates back, and returns their serial numbers. Others go by it once they have the new list.

        Args:
            identity: whose.
            now: in UTC, with its zone.
            superseded_only: leave the newest one in force, after a renewal.

        Raises:
            ConfigError: there is nothing to take back.
            OSError: the list cannot be written.
        """
        with self.alone():
            revoked, number = self._revoked()
            serials = [entry.serial for entry in self._held(identity)]
            chosen = serials[:-1] if superseded_only else serials
            if not chosen:
                which = "no certificate but its newest" if superseded_only and serials else "no certificate"
                raise ConfigError(f"{identity.common_name} has {which} that could be taken back")
            revoked.update(dict.fromkeys(chosen, now))
            self._write_revocation_list(self._authority(), revoked, number=number + 1, now=now)
        return chosen

    def sign(
        self, identity: Identity, key: PublicKey, *, days: int, now: datetime, hosts: Sequence[str] = ()
    ) -> x509.Certificate:
        """Returns a new certificate, once it is on record. Only within `alone`, for who may have one.

        Args:
            identity: whose.
            key: their public key.
            days: for how long.
            now: in UTC, with its zone.
            hosts: as in `enroll`.

        Raises:
            ConfigError: the authority cannot be used.
            OSError: something cannot be read or written.
        """
        certificate = certificates.issue(self._authority(), identity, key, days=days, now=now, hosts=hosts)
        replace_file(self._record(certificate.serial_number), [certificates.certificate_pem(certificate)])
        return certificate

    def certificate(self, entry: Issued) -> x509.Certificate:
        """Returns a certificate that was issued.

        Raises:
            ConfigError: its file is damaged.
        """
        file = self._record(entry.serial)
        return certificates.read_certificate(file.read_bytes(), str(file))

    def _held(self, identity: Identity) -> list[Issued]:
        """Returns the certificates of somebody that were not taken back, the newest last."""
        return [entry for entry in self.issued() if entry.identity == identity and entry.revoked is None]

    def _hand_over(self, identity: Identity, certificate: x509.Certificate, secret: bytes, output: Path | None) -> Path:
        """Writes what somebody needs, and returns the directory."""
        place = output or self.place(identity)
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        if secret:
            replace_file(place / KEY_FILE, [secret], mode=_SECRET)
        elif output is None:
            (place / KEY_FILE).unlink(missing_ok=True)  # of an earlier certificate: it does not belong to this one
        replace_file(place / CERTIFICATE_FILE, [certificates.certificate_pem(certificate)], mode=_PUBLIC)
        replace_file(place / CA_FILE, [self.ca_file.read_bytes()], mode=_PUBLIC)
        if identity == AGGREGATOR:
            replace_file(place / CRL_FILE, [self.revocation_list.read_bytes()], mode=_PUBLIC)
        return place

    def _record(self, serial: int) -> Path:
        return self.path / "ca" / "issued" / f"{serial:040x}.pem"

    def _authority(self) -> Authority:
        file = self.path / "ca" / "ca.key"
        if not file.exists():
            raise ConfigError(
                f"{file} is not here, and without the authority's key nobody can be enrolled or revoked: bring it here "
                "from where it is kept; once it is lost, make a new fleet"
            )
        check_private(file)
        key = keys.read_key(file.read_bytes(), str(file))
        certificate = certificates.read_certificate(self.ca_file.read_bytes(), str(self.ca_file))
        if not isinstance(key, ec.EllipticCurvePrivateKey) or certificate.public_key() != key.public_key():
            raise ConfigError(f"{file} is not the key of {self.ca_file}")
        return Authority(certificate, key)

    def _revoked(self) -> tuple[dict[int, datetime], int]:
        return read_revocation_list(self.revocation_list.read_bytes(), str(self.revocation_list))

    def _write_revocation_list(
        self, authority: Authority, revoked: dict[int, datetime], *, number: int, now: datetime
    ) -> None:
        made = make_revocation_list(authority, revoked, number=number, now=now)
        replace_file(self.revocation_list, [made], mode=_PUBLIC)
        if self.place(AGGREGATOR).is_dir():
            replace_file(self.place(AGGREGATOR) / CRL_FILE, [made], mode=_PUBLIC)


def _check_hosts(identity: Identity, hosts: Sequence[str]) -> None:
    if hosts and identity != BROKER:
        raise ConfigError(f"hosts are for the certificate of {BROKER.common_name}, not of {identity.common_name}")
    if not hosts and identity == BROKER:
        raise ConfigError("under which name or address do the devices reach the broker? Give at least one")


def _key(identity: Identity, request: Path | None) -> tuple[PublicKey, bytes]:
    """Returns a public key, and the private one as PEM where it was made here."""
    if request is not None:
        return key_of_request(request.read_bytes(), identity, str(request)), b""
    key = keys.new_key(identity.role)
    return key.public_key(), keys.key_pem(key)
