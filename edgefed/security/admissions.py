"""Who may be made a device by a claim token: the operator's side, on disk.

A token is good for one key. It is tied to the device and the key of the first claim that is admitted, before their
certificate is signed; from then on the same key gets the same certificate as often as it asks, so that a lost answer
or a kill on either side costs nothing, and every other key is told that the token was used.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal, cast

import msgspec
from cryptography import x509

from edgefed.errors import ConfigError, NotAdmitted
from edgefed.files import check_private, replace_file
from edgefed.protocol.messages.claims import Claim
from edgefed.protocol.topics import check_id
from edgefed.security import keys, tokens
from edgefed.security.fleet_directory import CERTIFICATE_FILE, KEY_FILE, FleetDirectory
from edgefed.security.identities import Identity
from edgefed.security.issued import Issued
from edgefed.security.keys import PublicKey
from edgefed.security.signing_requests import key_of_request
from edgefed.security.tokens import TokenFile

__all__ = ["Admissions", "Candidate", "Holder", "TokenRecord", "TokenState"]

_TOKEN_NAME = re.compile(r"[0-9a-f]{4,32}\Z")

TokenState = Literal["open", "used", "withdrawn", "expired"]


class Holder(msgspec.Struct, frozen=True, kw_only=True):
    """Who used a token.

    Attributes:
        device: the id that it got.
        fingerprint: of its public key.
        at: when, in UTC.
    """

    device: str
    fingerprint: str
    at: datetime


class TokenRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept of a token that was given out.

    Attributes:
        claim: on whose topics it can be used.
        device: the id that it is for, or a pattern of it.
        expires: until when it can be used, in UTC.
        verifier: what its proofs are checked with, in hexadecimal digits.
        holder: who used it; None while it is unused.
        withdrawn: since when it is refused, in UTC; None where it was never withdrawn.
    """

    claim: str
    device: str
    expires: datetime
    verifier: str
    holder: Holder | None = None
    withdrawn: datetime | None = None

    @property
    def id(self) -> str:
        """The name under which the token is spoken of."""
        return tokens.token_id(bytes.fromhex(self.verifier))

    def state(self, now: datetime) -> TokenState:
        """Returns what can still be done with it; an open token waits for its board."""
        if self.withdrawn is not None:
            return "withdrawn"
        if self.holder is not None:
            return "used"
        return "open" if now < self.expires else "expired"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A board whose claim is in order.

    Attributes:
        identity: the device that it would be.
        key: its public key.
        token: the id of its token.
        known: it was admitted before, and only its answer was lost.
    """

    identity: Identity
    key: PublicKey
    token: str
    known: bool

    @property
    def fingerprint(self) -> str:
        """What the board says of its key too, for people to compare."""
        return keys.fingerprint(self.key)


class Admissions:
    """The tokens of one fleet.

    Args:
        directory: the fleet's.
    """

    def __init__(self, directory: FleetDirectory) -> None:
        self._directory = directory
        self._place = directory.path / "ca" / "tokens"

    def give_token(self, device: str, claim: Identity, *, expires: datetime, now: datetime, days: int) -> TokenFile:
        """Returns a fresh token, once it is on record.

        Args:
            device: the id that it is for, or a pattern of it.
            claim: on whose topics it can be used; where it has no certificate in force, it is given one.
            expires: until when it can be used, in UTC.
            now: in UTC, with its zone.
            days: for how long a certificate of the claim counts that has to be made.

        Raises:
            ConfigError: a name cannot be used, the device is a member, or the claim's files are not here.
            OSError: something cannot be read or written.
        """
        tokens.check_pattern(device)
        members = self._directory.members(now)
        if any(member.role == "device" and member.name == device for member in members):
            raise ConfigError(
                f"{device} is enrolled already: `edgefed fleet revoke` takes back what it has, before it can claim anew"
            )
        if claim not in members:
            self._directory.enroll(claim, days=days, now=now)
        place = self._directory.place(claim)
        if not (place / KEY_FILE).exists():
            raise ConfigError(f"{place / KEY_FILE} is not here: `edgefed fleet rotate {claim.common_name}` makes one")
        check_private(place / KEY_FILE)
        secret = tokens.new_secret()
        verifier = tokens.verifier_of(secret)
        self._write(
            tokens.token_id(verifier),
            TokenRecord(claim=claim.name, device=device, expires=expires, verifier=verifier.hex()),
        )
        return TokenFile(
            fleet=self._directory.fleet,
            claim=claim.name,
            device=device,
            expires=expires,
            secret=secret,
            ca=self._directory.ca_file.read_bytes(),
            certificate=(place / CERTIFICATE_FILE).read_bytes(),
            key=(place / KEY_FILE).read_bytes(),
        )

    def take_back(self, token: TokenFile) -> None:
        """Makes a token useless; whoever has used it already keeps what they got."""
        self._file(token.id).unlink(missing_ok=True)

    def given_out(self) -> list[TokenRecord]:
        """Returns what is kept of every token, by when they expire.

        Raises:
            ConfigError: a record is damaged.
            OSError: one cannot be read.
        """
        records = [self._record(file.stem) for file in self._place.glob("*.json")]
        return sorted((record for record in records if record), key=lambda record: (record.expires, record.id))

    def withdraw(self, name: str, now: datetime) -> TokenRecord:
        """Takes a token back that nobody has got a certificate with, and returns its record.

        Args:
            name: its id, or so much of its beginning that no other token is meant.
            now: in UTC, with its zone.

        Raises:
            ConfigError: there is no such token, or more than one; it was withdrawn before; or it was used, and what it
                got has to be revoked.
            OSError: something cannot be read or written.
        """
        with self._directory.alone():
            record = self._find(name)
            if record.withdrawn is not None:
                raise ConfigError(f"token {record.id} was withdrawn before, on {record.withdrawn:%Y-%m-%d %H:%M} UTC")
            holder = record.holder
            if holder is not None and self._given(Identity("device", holder.device), holder.fingerprint):
                raise ConfigError(
                    f"token {record.id} was used by {holder.device} on {holder.at:%Y-%m-%d %H:%M} UTC: "
                    f"`edgefed fleet revoke {holder.device}` takes back what it got"
                )
            record = msgspec.structs.replace(record, withdrawn=now)
            self._write(record.id, record)
            return record

    def check(self, claim: Claim, claim_name: str, now: datetime) -> Candidate:
        """Returns who asks, if they may be admitted.

        Args:
            claim: what they ask.
            claim_name: the claim on whose topic they ask it.
            now: in UTC, with its zone.

        Raises:
            NotAdmitted: they may not, and why.
            ConfigError: the directory is damaged.
        """
        record = self._record(claim.token)
        try:
            check_id(claim.device, "device id")
        except ConfigError as error:
            raise NotAdmitted(str(error)) from None
        if record is None or record.claim != claim_name:
            raise NotAdmitted("this fleet has given out no such token")
        verifier = bytes.fromhex(record.verifier)
        if not tokens.is_proven(claim, self._directory.fleet, claim_name, verifier):
            raise NotAdmitted("the claim was not made with its token, or was changed on the way")
        if not tokens.matches(claim.device, record.device):
            raise NotAdmitted(f"the token is for {record.device}, not for {claim.device}")
        identity = Identity("device", claim.device)
        try:
            key = key_of_request(claim.request.encode(), identity, "the signing request")
        except ConfigError as error:
            raise NotAdmitted(str(error)) from None
        if record.withdrawn is not None:
            raise NotAdmitted(f"the token was withdrawn on {record.withdrawn:%Y-%m-%d %H:%M} UTC: ask for a new one")
        if record.holder is not None:
            self._check_holder(record.holder, identity, key, now)
        else:
            self._check_newcomer(record, identity, key, now)
        return Candidate(identity, key, claim.token, known=record.holder is not None)

    def admit(self, claim: Claim, claim_name: str, *, now: datetime, days: int) -> x509.Certificate:
        """Returns the certificate of who asks: a new one, or the one that they were given before.

        Args:
            claim: what they ask.
            claim_name: the claim on whose topic they ask it.
            now: in UTC, with its zone.
            days: for how long a new certificate counts.

        Raises:
            NotAdmitted: they may not be admitted, and why.
            ConfigError: the directory is damaged, or the authority cannot be used.
            OSError: something cannot be read or written.
        """
        with self._directory.alone():
            candidate = self.check(claim, claim_name, now)
            if not candidate.known:
                # Before there is a certificate: killed in between, the token is good for this key and no other.
                holder = Holder(device=candidate.identity.name, fingerprint=candidate.fingerprint, at=now)
                self._tie(candidate.token, holder)
            given = [one for one in self._given(candidate.identity, candidate.fingerprint) if one.in_force(now)]
            if given:
                return self._directory.certificate(given[-1])
            return self._directory.sign(candidate.identity, candidate.key, days=days, now=now)

    def _check_newcomer(self, record: TokenRecord, identity: Identity, key: PublicKey, now: datetime) -> None:
        if record.expires <= now:
            raise NotAdmitted(
                f"the token has expired on {record.expires:%Y-%m-%d %H:%M} UTC, and the fleet's clock says "
                f"{now:%Y-%m-%d %H:%M}: ask for a new one"
            )
        if identity in self._directory.members(now):
            raise NotAdmitted(f"{identity.name} is enrolled already, with another key")
        if any(entry.revoked for entry in self._given(identity, keys.fingerprint(key))):
            raise NotAdmitted(
                f"this key of {identity.name} was revoked: remove the file that tls_key names on the board, which then "
                "makes another"
            )

    def _check_holder(self, holder: Holder, identity: Identity, key: PublicKey, now: datetime) -> None:
        if (holder.device, holder.fingerprint) != (identity.name, keys.fingerprint(key)):
            raise NotAdmitted(
                f"the token was used already, by {holder.device} on {holder.at:%Y-%m-%d %H:%M} UTC: it is good for "
                "one board and one key. If that was this board, revoke it, and give it a new token"
            )
        given = self._given(identity, holder.fingerprint)
        if given and not given[-1].in_force(now):
            state = "was revoked" if given[-1].revoked else f"has ended on {given[-1].ends:%Y-%m-%d}"
            raise NotAdmitted(f"the certificate that {identity.name} got with this token {state}")

    def _given(self, identity: Identity, fingerprint: str) -> list[Issued]:
        """Returns the certificates of a key, the newest last."""
        entries = [entry for entry in self._directory.issued() if entry.identity == identity]
        return [entry for entry in entries if self._fingerprint(entry) == fingerprint]

    def _fingerprint(self, entry: Issued) -> str:
        # Whoever is enrolled has one of the kinds of key that requests may have: see `key_of_request`.
        return keys.fingerprint(cast(PublicKey, self._directory.certificate(entry).public_key()))

    def _find(self, name: str) -> TokenRecord:
        if not _TOKEN_NAME.match(name):
            raise ConfigError(f"{name!r} is no token's id: `edgefed fleet tokens` lists them; four digits are enough")
        found = [self._record(file.stem) for file in self._place.glob(f"{name}*.json")]
        records = [record for record in found if record is not None]
        if not records:
            raise ConfigError(f"this fleet has given out no token {name}: `edgefed fleet tokens` lists them")
        if len(records) > 1:
            raise ConfigError(f"{len(records)} tokens begin with {name}: give more of its digits")
        return records[0]

    def _file(self, token: str) -> Path:
        return self._place / f"{token}.json"

    def _record(self, token: str) -> TokenRecord | None:
        file = self._file(token)
        try:
            return msgspec.json.decode(file.read_bytes(), type=TokenRecord)
        except FileNotFoundError:
            return None
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise ConfigError(f"{file}: is damaged: {error}; remove it, and give out a new token") from None

    def _tie(self, token: str, holder: Holder) -> None:
        record = self._record(token)
        if record is None:
            raise NotAdmitted("the token was taken back")
        self._write(token, msgspec.structs.replace(record, holder=holder))

    def _write(self, token: str, record: TokenRecord) -> None:
        self._place.mkdir(mode=0o700, exist_ok=True)
        replace_file(self._file(token), [msgspec.json.encode(record)], mode=0o600)
