"""What a board that is not enrolled yet says on its claim's topics, and what it is answered."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from edgefed.protocol.messages.wire import Sha256, Text, Wire, decode

__all__ = ["Admitted", "Claim", "ClaimAnswer", "ClaimRefused", "decode_claim", "decode_claim_answer"]

Pem = Annotated[str, Meta(max_length=8192)]


class Claim(Wire, frozen=True, kw_only=True, tag="claim"):
    """Asks to be made a device of the fleet; said again until it is answered.

    Attributes:
        token: which token proves it; not the token.
        device: the id that the board wants to have.
        request: its certificate signing request, in PEM.
        proof: made with the token, of all of this (`security.tokens`).
    """

    token: Annotated[str, Meta(pattern=r"^[0-9a-f]{32}\Z")]
    device: Annotated[str, Meta(max_length=64)]
    request: Pem
    proof: Annotated[str, Meta(pattern=r"^[0-9a-f]{128}\Z")]


class Admitted(Wire, frozen=True, kw_only=True, tag="admitted"):
    """The board's certificate.

    Attributes:
        request: sha256 of the signing request that this answers; boards may share a claim.
        certificate: in PEM.
    """

    request: Sha256
    certificate: Pem


class ClaimRefused(Wire, frozen=True, kw_only=True, tag="claim-refused"):
    """The board is not taken, and why.

    Attributes:
        request: as in `Admitted`.
        reason: in words.
    """

    request: Sha256
    reason: Text


ClaimAnswer = Admitted | ClaimRefused


def decode_claim(payload: bytes) -> Claim:
    """Returns what a board asks. Raises `MessageError` if it asks nothing."""
    message: Claim = decode(payload, Claim, "claim of a board")
    return message


def decode_claim_answer(payload: bytes) -> ClaimAnswer:
    """Returns what a board is answered. Raises `MessageError` if it is no answer."""
    message: ClaimAnswer = decode(payload, ClaimAnswer, "answer to a claim")
    return message
