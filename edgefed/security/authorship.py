"""Who alone may say what: signs what a member says, and lets in what was said by whoever may say it.

==================  ==========  ==================================================================
topic               author      signed
==================  ==========  ==================================================================
round               aggregator  announcements, with task, method and manifest; an older one is refused
device/<id>/down    aggregator  acceptances, grants, acknowledgements
device/<id>/up      the device  joins, offers of updates with their records, what is asked for
==================  ==========  ==================================================================

Chunks are not signed: they are named by a hash that stands in a signed message. States and profiles are not either: it
is the broker itself that publishes the last state of whoever is gone.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from edgefed.errors import ConfigError, MessageError
from edgefed.files import replace_file
from edgefed.protocol.chunks import is_chunk
from edgefed.protocol.topics import Topics
from edgefed.security.identities import AGGREGATOR, Identity
from edgefed.security.signatures import SIGNATURE_ROOM_BYTES, Signer, Verifier, read_signer, read_verifier

__all__ = ["Authorship", "LatestTime", "read_authorship"]

_STEP_S = 1e-3


class LatestTime:
    """The time of the latest announcement, on disk: no restart makes an older one new again.

    Attributes:
        path: the file; it need not be there yet.
        unix_s: the time; 0 before the first announcement.

    Raises:
        ConfigError: it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.unix_s = float(path.read_text())
        except FileNotFoundError:
            self.unix_s = 0.0
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path} cannot be read: {error}; without it, old rounds could be played again") from None

    def advance(self, unix_s: float) -> None:
        """Takes a later time."""
        if unix_s > self.unix_s:
            replace_file(self.path, [b"%.6f\n" % unix_s])
            self.unix_s = unix_s


class Authorship:
    """One member's signatures, and its judgement of others'.

    Args:
        topics: of the fleet.
        signer: of this member.
        verifier: of the others.
        latest: the latest announcement that was made, or obeyed.
        clock: seconds since 1970.
    """

    room_bytes = SIGNATURE_ROOM_BYTES

    def __init__(
        self,
        topics: Topics,
        signer: Signer,
        verifier: Verifier,
        latest: LatestTime,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._topics = topics
        self._signer = signer
        self._verifier = verifier
        self._latest = latest
        self._clock = clock

    def outgoing(self, topic: str, payload: bytes) -> bytes:
        """Returns a message as it is to be published: signed, where this member is the one who may say it."""
        if not payload or is_chunk(payload) or self._author(topic) != self._signer.identity:
            return payload
        at_unix_s = self._clock()
        if topic == self._topics.round:
            # Later than any before, whatever becomes of this machine's clock.
            at_unix_s = max(at_unix_s, self._latest.unix_s + _STEP_S)
            self._latest.advance(at_unix_s)
        return self._signer.sign(topic, payload, at_unix_s)

    def incoming(self, topic: str, payload: bytes) -> bytes:
        """Returns what was said, without its signature.

        Raises:
            MessageError: somebody else has said it, it was changed, or it is an old announcement.
        """
        author = self._author(topic)
        if author is None or not payload or is_chunk(payload):
            return payload
        signed = self._verifier.verify(topic, payload, author, self._clock())
        if topic == self._topics.round:
            if signed.at_unix_s < self._latest.unix_s:
                raise MessageError(
                    f"it is {self._latest.unix_s - signed.at_unix_s:.3f} s older than an announcement that was obeyed: "
                    "somebody plays it again, or the aggregator's clock was put back; then, and only then, remove "
                    f"{self._latest.path}"
                )
            self._latest.advance(signed.at_unix_s)
        return signed.payload

    def _author(self, topic: str) -> Identity | None:
        if topic == self._topics.round:
            return AGGREGATOR
        device = self._topics.parse_device(topic)
        if device is None or device.channel not in ("up", "down"):
            return None
        return AGGREGATOR if device.channel == "down" else Identity("device", device.device)


def read_authorship(
    topics: Topics, own: Identity, latest: Path, *, ca: Path, certificate: Path, key: Path
) -> Authorship:
    """Returns the authorship of a member whose files these are.

    Args:
        topics: of the fleet.
        own: who this member has to be.
        latest: where the time of the latest announcement is kept.
        ca: the authority's certificate.
        certificate: this member's.
        key: its private key.

    Raises:
        ConfigError: a file cannot be used, or the certificate is somebody else's.
    """
    signer = read_signer(certificate, key)
    if signer.identity != own:
        raise ConfigError(
            f"{certificate} is of {signer.identity.common_name}, and messages are to be signed as {own.common_name}: "
            f"name the certificate and the key of {own.common_name} in [broker]"
        )
    return Authorship(topics, signer, read_verifier(ca), LatestTime(latest))
