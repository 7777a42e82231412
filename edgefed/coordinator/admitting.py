"""Listens for boards that claim to be devices of the fleet, and answers them: `edgefed fleet admit`.

Answers are signed by the aggregator's key, so that a broker can keep a board waiting but cannot turn it away. A board
asks until it is answered, so nothing that is lost here needs a memory of its own.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import datetime, timezone

from edgefed.errors import BrokerRefused, Disconnected, MessageError, NotAdmitted, PayloadTooLarge
from edgefed.protocol.messages.claims import Admitted, Claim, ClaimAnswer, ClaimRefused, decode_claim
from edgefed.protocol.messages.wire import encode
from edgefed.protocol.topics import Topics
from edgefed.security import certificates
from edgefed.security.admissions import Admissions, Candidate
from edgefed.security.signatures import Signer
from edgefed.security.tokens import request_id
from edgefed.transport.base import Message, Transport

__all__ = ["Admitting"]

_log = logging.getLogger(__name__)


class Admitting:
    """One operator's ear for claims.

    Args:
        topics: of the fleet.
        admissions: its tokens.
        signer: of the aggregator, in whose name boards are answered.
        transport: connected as the aggregator.
        days: for how long the devices' certificates count.
        approve: says whether a board that nobody knows yet may come in. Its no is remembered, so that nobody is asked
            again; where a rule says no, it raises `NotAdmitted` instead, and the board is told that.
        welcome: called when a board has its certificate on record, before it is answered; where it says no, because
            the broker could not be told, the board is not answered and asks again.
        tell: called with what happened, in words.
    """

    def __init__(
        self,
        topics: Topics,
        admissions: Admissions,
        signer: Signer,
        transport: Transport,
        *,
        days: int,
        approve: Callable[[Candidate], Awaitable[bool]],
        welcome: Callable[[Candidate], Awaitable[bool]],
        tell: Callable[[str], None],
    ) -> None:
        self._topics = topics
        self._admissions = admissions
        self._signer = signer
        self._transport = transport
        self._days = days
        self._approve = approve
        self._welcome = welcome
        self._tell = tell
        self._declined: set[str] = set()  # tokens: whoever holds one does not ask the operator again and again

    async def run(self) -> None:
        """Listens until it is cancelled.

        Raises:
            ConfigError: the fleet's directory is damaged, or its authority cannot be used.
            TransportError: the broker does not let us hear claims.
            OSError: the fleet's directory cannot be read or written.
        """
        await self._transport.subscribe(self._topics.claim("+", "up"))
        async for event in self._transport.events():
            name = self._topics.parse_claim(event.topic) if isinstance(event, Message) else None
            if not isinstance(event, Message) or name is None:
                continue
            try:
                claim = decode_claim(event.payload)
            except MessageError as error:
                _log.warning("a message on %s is not listened to: %s", event.topic, error)
                continue
            answer = await self._decide(claim, name)
            if answer is not None:
                await self._send(self._topics.claim(name, "down"), answer)

    async def _decide(self, claim: Claim, name: str) -> ClaimAnswer | None:
        request = request_id(claim.request.encode())
        try:
            candidate = await asyncio.to_thread(self._admissions.check, claim, name, _now())
            if not candidate.known:
                await self._ask(candidate)
            certificate = await asyncio.to_thread(
                self._admissions.admit, claim, name, now=_now(), days=self._days
            )  # fmt: skip
        except NotAdmitted as refused:
            # The id is what somebody claims to be: shown as text, whatever is in it.
            self._tell(f"refused {claim.device!r} on claim {name}: {refused}")
            return ClaimRefused(request=request, reason=str(refused)[:4096])
        if not await self._welcome(candidate):
            return None
        again = " once more, with the same certificate" if candidate.known else ""
        self._tell(f"admitted {candidate.identity.name}{again} (key {candidate.fingerprint[:16]})")
        return Admitted(request=request, certificate=certificates.certificate_pem(certificate).decode())

    async def _ask(self, candidate: Candidate) -> None:
        if candidate.token in self._declined or not await self._approve(candidate):
            self._declined.add(candidate.token)
            raise NotAdmitted("the operator has said no")

    async def _send(self, topic: str, answer: ClaimAnswer) -> None:
        signed = self._signer.sign(topic, encode(answer), _now().timestamp())
        try:
            await self._transport.publish(topic, signed)
        except (BrokerRefused, Disconnected, PayloadTooLarge) as error:
            _log.warning("an answer did not get out, and is given again when the board asks again: %s", error)


def _now() -> datetime:
    return datetime.now(timezone.utc)
