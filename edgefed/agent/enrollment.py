"""A board's first step: with a claim token, it gets the certificate of the device that agent.toml says it is.

Its key is made here and stays here. What is on disk is at all times enough to go on: no key, or a key that asks again
and gets the same certificate, or both. The certificate is written last, so where it is, the board is enrolled.
"""

from __future__ import annotations

import asyncio
import logging
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.x509.oid import ExtendedKeyUsageOID
from msgspec.structs import replace

from edgefed.agent.options import AgentOptions
from edgefed.errors import ConfigError, Disconnected, MessageError, NotAdmitted
from edgefed.files import check_private, replace_file
from edgefed.protocol.messages.claims import Admitted, Claim, decode_claim_answer
from edgefed.protocol.messages.wire import encode
from edgefed.protocol.topics import Topics
from edgefed.security import certificates, keys
from edgefed.security.identities import AGGREGATOR, Identity
from edgefed.security.keys import PrivateKey
from edgefed.security.signatures import Verifier
from edgefed.security.signing_requests import make_request
from edgefed.security.tokens import TokenFile, make_claim, matches, request_id
from edgefed.transport.base import Message, Transport
from edgefed.transport.mqtt import connect_mqtt
from edgefed.transport.options import Broker, guarded_client_id

__all__ = ["check_meant_for", "enroll_board", "is_enrolled"]

_log = logging.getLogger(__name__)
_ASK_AGAIN_S = 10.0
_ASKED_IN_VAIN = 3


def is_enrolled(options: AgentOptions) -> bool:
    """Whether the device has a certificate, whole and not ended, and the key that it is for; else it asks with a token.

    Raises:
        ConfigError: agent.toml does not say where it would be, or it may not be read.
    """
    if not options.broker.tls_certificate:
        raise ConfigError(
            "enrolling writes the files that [broker] names as tls_ca, tls_certificate and tls_key: name them in "
            "agent.toml; they need not be there yet"
        )
    file, key_file = Path(options.broker.tls_certificate), Path(options.broker.tls_key)
    try:
        certificate = certificates.read_certificate(file.read_bytes(), str(file))
        key = keys.read_key(key_file.read_bytes(), str(key_file))
    except (FileNotFoundError, ConfigError):
        return False
    except OSError as error:
        raise ConfigError(f"{error.filename}: cannot be read: {error.strerror}") from error
    return certificate.public_key() == key.public_key() and datetime.now(timezone.utc) < certificate.not_valid_after_utc


async def enroll_board(
    options: AgentOptions, token: TokenFile, *, wait_for_broker: bool = True, ask_again_s: float = _ASK_AGAIN_S
) -> str:
    """Asks to be made a device until there is an answer, and writes certificate, key and authority.

    Args:
        options: what `agent.toml` says: who the board wants to be, and where the files go.
        token: what lets it ask.
        wait_for_broker: keep trying when no broker answers at first.
        ask_again_s: how long an answer may take before the board asks again.

    Returns:
        The fingerprint of the device's key.

    Raises:
        ConfigError: the token is for another fleet or device, or files of another fleet are in the way.
        NotAdmitted: the fleet does not take this board.
        TransportError: the broker does not let it ask, or none answers and `wait_for_broker` is off.
        OSError: a file cannot be read or written.
    """
    check_meant_for(options, token)
    broker = options.broker
    key = _own_key(Path(broker.tls_key))
    identity = Identity("device", options.device)
    request = make_request(key, identity)
    asking = _Asking(token, identity, key, request, ask_again_s)
    _log.info("asks fleet %s for a certificate (key %s)", token.fleet, asking.fingerprint[:16])
    with tempfile.TemporaryDirectory(prefix="edgefed-claim-") as scratch:  # its mode is 0700
        claimed = _as_claim(broker, token, Path(scratch))
        mqtt = claimed.mqtt(guarded_client_id(f"{token.fleet}-claim"), session_expiry_s=0)
        async with connect_mqtt(mqtt, retry_first=wait_for_broker) as transport:
            certificate = await asking.ask(transport)
    for file, content in ((broker.tls_ca, token.ca), (broker.tls_certificate, certificate)):
        Path(file).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        replace_file(Path(file), [content], mode=0o644)
    return asking.fingerprint


class _Asking:
    """One board's claim, and its judgement of the answers."""

    def __init__(
        self, token: TokenFile, identity: Identity, key: PrivateKey, request: bytes, ask_again_s: float
    ) -> None:
        self._authority = certificates.read_certificate(token.ca, "the token's authority")
        self._verifier = Verifier(self._authority)
        self._claim: Claim = make_claim(token, identity.name, request)
        self._identity = identity
        self._key = key.public_key()
        self._request = request_id(request)
        self._ask_again_s = ask_again_s
        topics = Topics(token.fleet)
        self._up, self._down = topics.claim(token.claim, "up"), topics.claim(token.claim, "down")

    @property
    def fingerprint(self) -> str:
        return keys.fingerprint(self._key)

    async def ask(self, transport: Transport) -> bytes:
        """Returns the certificate, in PEM."""
        await transport.subscribe(self._down)
        tasks = [asyncio.ensure_future(self._answer(transport)), asyncio.ensure_future(self._keep_asking(transport))]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            return done.pop().result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _keep_asking(self, transport: Transport) -> bytes:
        asked = 0
        while True:
            await transport.publish(self._up, encode(self._claim))
            asked += 1
            await asyncio.sleep(self._ask_again_s)
            if asked % _ASKED_IN_VAIN == 0:
                _log.warning("asked %d times without an answer: is `edgefed fleet admit` waiting for its yes?", asked)

    async def _answer(self, transport: Transport) -> bytes:
        async for event in transport.events():
            if not isinstance(event, Message):
                continue
            try:
                certificate = self._judge(event)
            except MessageError as error:
                _log.warning("an answer to our claim is not listened to: %s", error)
                continue
            if certificate is not None:
                return certificate
        raise Disconnected("the connection was closed before there was an answer")

    def _judge(self, message: Message) -> bytes | None:
        """Returns our certificate; None where somebody else is answered.

        Raises:
            NotAdmitted: we are refused.
            MessageError: the aggregator has not said that, or it is no certificate of ours.
        """
        said = self._verifier.verify(self._down, message.payload, AGGREGATOR, time.time())
        answer = decode_claim_answer(said.payload)
        if answer.request != self._request:
            return None
        if not isinstance(answer, Admitted):
            raise NotAdmitted(f"the fleet does not take {self._identity.name}: {answer.reason}")
        pem = answer.certificate.encode()
        try:
            self._check(certificates.read_certificate(pem, "the answer"))
        except ConfigError as error:
            raise MessageError(str(error)) from None
        return pem

    def _check(self, certificate: x509.Certificate) -> None:
        try:
            certificate.verify_directly_issued_by(self._authority)
            uses = list(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
        except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
            raise MessageError("its certificate is not one of the authority that our token names") from None
        if certificate.public_key() != self._key:
            raise MessageError("its certificate is for another key than ours")
        if certificates.common_name(certificate) != self._identity.common_name:
            raise MessageError(f"its certificate is for {certificates.common_name(certificate)!r}")
        if uses != [ExtendedKeyUsageOID.CLIENT_AUTH]:
            raise MessageError("its certificate is not for a member")
        now = datetime.now(timezone.utc)
        begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        if not begins <= now < ends:
            raise MessageError(
                f"its certificate counts from {begins:%Y-%m-%d %H:%M} to {ends:%Y-%m-%d %H:%M} UTC, and this machine's "
                f"clock says {now:%Y-%m-%d %H:%M}: is the clock right?"
            )


def check_meant_for(options: AgentOptions, token: TokenFile) -> None:
    """Sees to it that a token is for this device, and that what the device has already is of the same fleet.

    Raises:
        ConfigError: the token is for another device or fleet, or the authority that is there is another fleet's.
    """
    if token.fleet != options.fleet:
        raise ConfigError(f"the token is of fleet {token.fleet}, and agent.toml is for fleet {options.fleet}")
    if not matches(options.device, token.device):
        raise ConfigError(f"the token is for {token.device}, and agent.toml says that this is {options.device}")
    ca = Path(options.broker.tls_ca)
    if ca.exists():
        there = certificates.read_certificate(ca.read_bytes(), str(ca))
        if there != certificates.read_certificate(token.ca, "the token's authority"):
            raise ConfigError(
                f"{ca} is the authority of another fleet than the token's: if this board is to change fleets, remove "
                "it, the certificate and the key"
            )


def _own_key(file: Path) -> PrivateKey:
    """Returns the board's key, which is made and on disk before anybody hears of it."""
    if file.exists():
        check_private(file)
        return keys.read_key(file.read_bytes(), str(file))
    key = keys.new_key("device")
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    replace_file(file, [keys.key_pem(key)], mode=0o600)
    return key


def _as_claim(broker: Broker, token: TokenFile, scratch: Path) -> Broker:
    """Returns how to connect with the token's certificate; TLS reads files only."""
    ca, certificate, key = (scratch / f"{what}-of-the-token.pem" for what in ("authority", "certificate", "key"))
    for file, content in ((ca, token.ca), (certificate, token.certificate), (key, token.key)):
        replace_file(file, [content], mode=0o600)
    return replace(
        broker, tls_ca=str(ca), tls_certificate=str(certificate), tls_key=str(key), signed=False, sealed=False
    )
