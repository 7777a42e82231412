"""Whether the device is a member of its fleet, waits to become one, or has nothing to become one by."""

from __future__ import annotations

from pathlib import Path

from edgefed.doctor.findings import Board, Finding, Findings, note, ok, problem, utc
from edgefed.errors import ConfigError
from edgefed.security.tokens import read_token

__all__ = ["look_at_enrollment"]

_TOKEN = "etc/edgefed/claim/token"  # where `edgefed flash` puts one
_ENROLL = "copy what `edgefed fleet enroll` wrote, or ask with a token: `edgefed agent --enroll TOKEN`"


def look_at_enrollment(board: Board) -> Findings:
    """Yields whether the device has a certificate, waits for one, or has not asked."""
    assert board.options is not None
    broker = board.options.broker
    token = board.root / _TOKEN
    if not broker.tls_certificate:
        yield ok("the device needs no certificate: agent.toml names none")
    elif Path(broker.tls_certificate).exists():
        yield ok(f"the device has a certificate ({broker.tls_certificate})")
    elif token.exists():
        yield _about_token(board, token)
    elif Path(broker.tls_key).exists():
        yield problem(
            f"the device has made its key, and has no certificate: {broker.tls_certificate} is not there",
            "`edgefed agent --enroll TOKEN` asks again, and does no harm; the fleet's operator has to admit it "
            "(`edgefed fleet admit`)",
        )
    else:
        yield problem(
            f"the device is not enrolled: neither {broker.tls_certificate} nor {broker.tls_key} is there", _ENROLL
        )


def _about_token(board: Board, file: Path) -> Finding:
    try:
        token = read_token(file)
    except ConfigError as error:
        return problem(f"the device is not enrolled, and its token cannot be used: {error}", _ENROLL)
    now = board.now()
    if token.expires <= now:
        return problem(
            f"the device is not enrolled, and its token has expired on {utc(token.expires)}; the clock says {utc(now)}",
            f"bring a new one (`edgefed fleet token`) to {file}",
        )
    return note(
        f"the device asks for its certificate with a token that is good until {utc(token.expires)}",
        "the fleet's operator has to admit it: `edgefed fleet admit`",
    )
