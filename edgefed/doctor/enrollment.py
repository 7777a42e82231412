"""Whether the device is a member of its fleet yet."""

from __future__ import annotations

from pathlib import Path

from edgefed.doctor.findings import Board, Findings, ok, problem

__all__ = ["look_at_enrollment"]


def look_at_enrollment(board: Board) -> Findings:
    """Yields whether the device has a certificate, waits for one, or has not asked."""
    assert board.options is not None
    broker = board.options.broker
    if not broker.tls_certificate:
        yield ok("the device needs no certificate: agent.toml names none")
    elif Path(broker.tls_certificate).exists():
        yield ok(f"the device has a certificate ({broker.tls_certificate})")
    elif Path(broker.tls_key).exists():
        yield problem(
            f"the device has made its key, and has no certificate yet: {broker.tls_certificate} is not there",
            "it waits for the fleet's operator (`edgefed fleet admit`); `edgefed agent --enroll TOKEN` asks again, and "
            "does no harm",
        )
    else:
        yield problem(
            f"the device is not enrolled: neither {broker.tls_certificate} nor {broker.tls_key} is there",
            "ask with a token (`edgefed agent --enroll TOKEN`), or copy what `edgefed fleet enroll` wrote",
        )
