"""What openssl, another implementation, makes of a fleet's certificates."""

from __future__ import annotations

import subprocess
from datetime import datetime, timezone
from pathlib import Path

from cryptography import x509

from edgefed.security import certificates
from edgefed.security.certificates import Authority

NOW = datetime(2026, 3, 1, 12, 0, 0, 250, tzinfo=timezone.utc)


def openssl(*arguments: object) -> str:
    """Runs openssl, and returns what it says."""
    done = subprocess.run(["openssl", *map(str, arguments)], capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def verify(tmp_path: Path, authority: Authority, certificate: x509.Certificate, *options: str) -> str:
    (tmp_path / "ca.pem").write_bytes(certificates.certificate_pem(authority.certificate))
    (tmp_path / "it.pem").write_bytes(certificates.certificate_pem(certificate))
    when = str(int(NOW.timestamp()) + 60)
    return openssl(
        "verify", "-x509_strict", "-attime", when, "-CAfile", tmp_path / "ca.pem", *options, tmp_path / "it.pem"
    )
