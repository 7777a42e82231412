"""Who alone may say what: signs what a member says, and lets in what was said by whoever may say it.

===================  ==========  =================================================================
topic                author      signed
===================  ==========  =================================================================
round                aggregator  announcements, with task, method and manifest
aggregator/state     aggregator  its states, the will among them
device/<id>/down     aggregator  acceptances, grants, acknowledgements
device/<id>/up       the device  joins, offers of updates with their records, what is asked for
device/<id>/state    the device  its states, the will among them
device/<id>/profile  the device  what it is
===================  ==========  =================================================================

Chunks are not signed: they are named by a hash that stands in a signed message. What the broker keeps (announcements,
states, profiles) is refused where something later was heard before (`security.memory`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from edgefed.errors import ConfigError, MessageError, Outdated
from edgefed.protocol.chunks import is_chunk
from edgefed.protocol.messages.retained import Instance
from edgefed.protocol.topics import Topics
from edgefed.security.identities import AGGREGATOR, Identity
from edgefed.security.memory import Memory, Word
from edgefed.security.signatures import SIGNATURE_ROOM_BYTES, Signed, Signer, Verifier, read_signer, read_verifier

__all__ = ["Authorship", "read_authorship", "read_observation"]

_STEP_S = 1e-3


class Authorship:
    """One member's signatures, and its judgement of others'.

    Args:
        topics: of the fleet.
        signer: of this member; None for one that only listens.
        verifier: of the others.
        memory: what was said before.
        clock: seconds since 1970.
    """

    room_bytes = SIGNATURE_ROOM_BYTES

    def __init__(
        self,
        topics: Topics,
        signer: Signer | None,
        verifier: Verifier,
        memory: Memory,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._topics = topics
        self._signer = signer
        self._verifier = verifier
        self._memory = memory
        self._clock = clock
        self._session_unix_s = 0.0
        self._said_at_unix_s = 0.0
        if signer is not None:
            self._begin_session_after(memory.session.unix_s)

    def outgoing(self, topic: str, payload: bytes) -> bytes:
        """Returns a message as it is to be published: signed, where this member is the one who may say it."""
        signer = self._signer
        if signer is None or not payload or is_chunk(payload) or self._author(topic) != signer.identity:
            return payload
        if topic == self._topics.round:
            return signer.sign(topic, payload, self._announcement_unix_s())
        if not self._is_kept(topic):
            return signer.sign(topic, payload, self._clock())
        self._said_at_unix_s = max(self._clock(), self._said_at_unix_s + _STEP_S)
        return signer.sign(topic, payload, self._said_at_unix_s, self._session_unix_s)

    def incoming(self, topic: str, payload: bytes) -> bytes:
        """Returns what was said, without its signature.

        Raises:
            Outdated: a later announcement, state or profile was heard before.
            MessageError: somebody else has said it, or it was changed.
        """
        if not payload or is_chunk(payload):
            return payload
        author = self._author(topic)
        if author is None:
            return payload
        signed = self._verifier.verify(topic, payload, author, self._clock())
        if topic == self._topics.round:
            self._obey(signed)
        elif self._is_kept(topic):
            self._place(topic, author, signed)
        self._memory.words.keep()
        return signed.payload

    def close(self) -> None:
        """Keeps what is worth remembering."""
        self._memory.close()

    # --- announcements ----------------------------------------------------------------------------------------------

    def _announcement_unix_s(self) -> float:
        """Returns a time later than any before, whatever becomes of this machine's clock."""
        latest = self._memory.announcement
        at_unix_s = max(self._clock(), latest.unix_s + _STEP_S)
        latest.advance(at_unix_s)
        return at_unix_s

    def _obey(self, signed: Signed) -> None:
        latest = self._memory.announcement
        if signed.at_unix_s < latest.unix_s:
            raise Outdated(
                f"it is {latest.unix_s - signed.at_unix_s:.3f} s older than an announcement that was obeyed: somebody "
                "plays it again, or the aggregator's clock was put back; then, and only then, remove "
                f"{latest.path}"
            )
        latest.advance(signed.at_unix_s)

    # --- states and profiles ----------------------------------------------------------------------------------------

    def _is_kept(self, topic: str) -> bool:
        device = self._topics.parse_device(topic)
        return topic == self._topics.aggregator_state or (device is not None and device.channel in ("state", "profile"))

    def _place(self, topic: str, author: Identity, signed: Signed) -> None:
        """Sees to it that a state or a profile is not older than what was heard before."""
        if signed.session_unix_s is None:
            raise MessageError("its signature has no session: it was made for something else")
        about = _read_about(signed.payload) if topic.endswith("/state") else _About()
        is_own = self._signer is not None and author == self._signer.identity
        if is_own and signed.session_unix_s > self._session_unix_s:
            # Another process with our name. Whichever of the two gives way, the others have to hear this one.
            self._begin_session_after(signed.session_unix_s)
        if is_own and author.role == "device":
            return  # a second agent is to be heard even where its clock is behind
        word = Word(session_unix_s=signed.session_unix_s, at_unix_s=signed.at_unix_s, instance=about.instance)
        if about.status != "lost":
            self._memory.words.take(topic, word)
        elif not is_own:  # whatever stands there of an aggregator that is gone, the one that serves replaces it
            self._memory.words.check_will(topic, about.instance)

    def _begin_session_after(self, unix_s: float) -> None:
        # To the digit as it is signed, or our own words would seem to be of a later session.
        self._session_unix_s = round(max(self._clock(), unix_s + _STEP_S), 6)
        self._memory.session.advance(self._session_unix_s)

    def _author(self, topic: str) -> Identity | None:
        if topic in (self._topics.round, self._topics.aggregator_state):
            return AGGREGATOR
        device = self._topics.parse_device(topic)
        if device is None:
            return None
        return AGGREGATOR if device.channel == "down" else Identity("device", device.device)


class _About(msgspec.Struct, frozen=True):
    """Which process a state is of, and whether it is its will."""

    status: str = ""
    instance: Instance = ""


def _read_about(payload: bytes) -> _About:
    try:
        return msgspec.json.decode(payload, type=_About)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return _About()  # whoever reads the whole of it says what is wrong with it


def read_authorship(
    topics: Topics,
    own: Identity,
    memory: Path,
    *,
    ca: Path,
    certificate: Path,
    key: Path,
    revocations: Path | None = None,
) -> Authorship:
    """Returns the authorship of a member whose files these are.

    Args:
        topics: of the fleet.
        own: who this member has to be.
        memory: the directory in which it is kept who has said what when.
        ca: the authority's certificate.
        certificate: this member's.
        key: its private key.
        revocations: the fleet's revocation list; None where it is left to the broker.

    Raises:
        ConfigError: a file cannot be used, or is somebody else's or another fleet's.
    """
    signer = read_signer(certificate, key)
    if signer.identity != own:
        raise ConfigError(
            f"{certificate} is of {signer.identity.common_name}, and messages are to be signed as {own.common_name}: "
            f"name the certificate and the key of {own.common_name} in [broker]"
        )
    return Authorship(topics, signer, _verifier(topics, ca, revocations), Memory.open(memory))


def read_observation(topics: Topics, *, ca: Path, revocations: Path | None = None) -> Authorship:
    """Returns the judgement of somebody who signs nothing, and remembers nothing of earlier times.

    Args:
        topics: of the fleet.
        ca: the authority's certificate.
        revocations: the fleet's revocation list; None where it is left to the broker.

    Raises:
        ConfigError: a file cannot be used, or is another fleet's.
    """
    return Authorship(topics, None, _verifier(topics, ca, revocations), Memory.open(None))


def _verifier(topics: Topics, ca: Path, revocations: Path | None) -> Verifier:
    verifier = read_verifier(ca, revocations)
    if verifier.fleet and verifier.fleet != topics.fleet:
        # The broker would only say that it does not allow what we publish.
        raise ConfigError(
            f"{ca} is of the authority of fleet {verifier.fleet!r}, and this is to be a member of {topics.fleet!r}: "
            f"correct the fleet's name, or name the certificate and the key that {topics.fleet!r} has made"
        )
    return verifier
