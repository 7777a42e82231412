"""Files of a real fleet, and what can be wrong with them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from edgefed.doctor.examination import Examined
from edgefed.doctor.findings import Board
from edgefed.security.admissions import Admissions
from edgefed.security.certificates import certificate_pem, issue
from edgefed.security.fleet_directory import FleetDirectory, Lifetimes
from edgefed.security.identities import BROKER, Identity
from edgefed.security.keys import key_pem
from edgefed.security.tokens import write_token

MakeBoard = Callable[..., Board]
Look = Callable[[Board, str], Examined]

TLS = """\
[broker]
tls_ca = "tls/ca.pem"
tls_certificate = "tls/certificate.pem"
tls_key = "tls/key.pem"
"""


def now() -> datetime:
    return datetime.now(timezone.utc)


def fleet(path: Path, name: str = "test") -> FleetDirectory:
    return FleetDirectory.create(path, name, hosts=["127.0.0.1"], lifetimes=Lifetimes(), now=now())


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """The files of board-07."""
    made = fleet(tmp_path / "fleet")
    return made.enroll(Identity("device", "board-07"), days=365, now=now(), output=tmp_path / "tls")


def problems(examined: Examined) -> str:
    return " | ".join(finding.seen for finding in examined.findings if finding.status == "problem")


def test_good_ones(board: MakeBoard, look: Look, files: Path) -> None:
    examined = look(board(TLS), "certificate")
    assert examined.status == "ok", examined
    assert "the key is the certificate's" in examined.findings[-1].seen
    assert look(board(TLS), "enrollment").status == "ok"


def test_without_tls(board: MakeBoard, look: Look) -> None:
    assert look(board(), "certificate").status == "note"
    assert look(board(), "enrollment").status == "ok"


@pytest.mark.parametrize(
    ("after_days", "status", "said"),
    [
        (340, "note", "ends soon"),
        (400, "problem", "has ended"),
        (-2, "problem", "counts only from"),
    ],
)
def test_out_of_its_time(board: MakeBoard, look: Look, files: Path, after_days: int, status: str, said: str) -> None:
    examined = look(board(TLS, now=lambda: now() + timedelta(days=after_days)), "certificate")
    assert examined.status == status
    found = next(finding for finding in examined.findings if "device's certificate" in finding.seen)
    assert said in found.seen
    assert "clock" in found.seen + found.remedy or status == "note"


def test_of_another_device(board: MakeBoard, look: Look, files: Path, tmp_path: Path) -> None:
    other = FleetDirectory(tmp_path / "fleet").enroll(Identity("device", "board-08"), days=9, now=now())
    for name in ("certificate.pem", "key.pem"):
        (files / name).write_bytes((other / name).read_bytes())
    assert "is of 'board-08'" in problems(look(board(TLS), "certificate"))


def test_of_another_fleet(board: MakeBoard, look: Look, files: Path, tmp_path: Path) -> None:
    other = fleet(tmp_path / "other").enroll(Identity("device", "board-07"), days=90, now=now())
    for name in ("certificate.pem", "key.pem"):
        (files / name).write_bytes((other / name).read_bytes())
    assert "different fleets" in problems(look(board(TLS), "certificate"))


def test_all_of_another_fleet(board: MakeBoard, look: Look, tmp_path: Path) -> None:
    garage = fleet(tmp_path / "other", "garage")
    garage.enroll(Identity("device", "board-07"), days=90, now=now(), output=tmp_path / "tls")
    assert "is of the authority of fleet 'garage', and agent.toml says 'test'" in problems(
        look(board(TLS), "certificate")
    )


def test_the_brokers_own(board: MakeBoard, look: Look, files: Path, tmp_path: Path) -> None:
    place = FleetDirectory(tmp_path / "fleet").place(BROKER)
    for name in ("certificate.pem", "key.pem"):
        (files / name).write_bytes((place / name).read_bytes())
    said = problems(look(board(TLS), "certificate"))
    assert "is not a member's certificate" in said


def test_another_key(board: MakeBoard, look: Look, files: Path, tmp_path: Path) -> None:
    other = FleetDirectory(tmp_path / "fleet").enroll(Identity("device", "board-08"), days=9, now=now())
    (files / "key.pem").write_bytes((other / "key.pem").read_bytes())
    assert "is not the key of" in problems(look(board(TLS), "certificate"))


def test_a_key_that_others_can_read(board: MakeBoard, look: Look, files: Path) -> None:
    (files / "key.pem").chmod(0o644)
    examined = look(board(TLS), "certificate")
    assert "its mode 0644" in problems(examined)
    assert examined.findings[-1].remedy.startswith("chmod 600")


@pytest.mark.parametrize(("signed", "status"), [(True, "problem"), (False, "note")])
def test_a_key_that_signs_no_messages(board: MakeBoard, look: Look, files: Path, signed: bool, status: str) -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    (files / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    found = look(board(TLS + f"signed = {str(signed).lower()}\n"), "certificate").findings[-1]
    assert found.status == status
    assert "of another kind" in found.seen


@pytest.mark.parametrize(("signed", "status"), [(True, "problem"), (False, "ok")])
def test_a_key_on_a_curve_that_signs_no_messages(
    board: MakeBoard, look: Look, files: Path, tmp_path: Path, signed: bool, status: str
) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    authority = FleetDirectory(tmp_path / "fleet")._authority()
    made = issue(authority, Identity("device", "board-07"), key.public_key(), days=90, now=now())
    (files / "certificate.pem").write_bytes(certificate_pem(made))
    (files / "key.pem").write_bytes(key_pem(key))
    found = look(board(TLS + f"signed = {str(signed).lower()}\n"), "certificate").findings[-1]
    assert found.status == status


@pytest.mark.parametrize("name", ["ca.pem", "certificate.pem", "key.pem"])
def test_a_file_that_is_something_else(board: MakeBoard, look: Look, files: Path, name: str) -> None:
    (files / name).write_text("hello")
    assert f"{name}: not a" in problems(look(board(TLS), "certificate"))


def test_files_that_are_not_there(board: MakeBoard, look: Look, files: Path) -> None:
    met = board(TLS)
    (files / "certificate.pem").unlink()
    examined = look(met, "enrollment")
    assert examined.status == "problem"
    assert "has no certificate" in examined.findings[0].seen
    assert "fleet admit" in examined.findings[0].remedy
    (files / "key.pem").unlink()
    assert "is not enrolled" in look(met, "enrollment").findings[0].seen
    assert look(met, "certificate").status == "ok"


def test_an_authority_that_is_not_there(board: MakeBoard, look: Look, files: Path) -> None:
    (files / "ca.pem").unlink()
    assert "the authority's certificate is not there" in problems(look(board(TLS), "certificate"))


@pytest.mark.parametrize(("hours", "status", "said"), [(1, "note", "is good until"), (-1, "problem", "has expired on")])
def test_a_board_that_waits_to_be_admitted(
    board: MakeBoard, look: Look, tmp_path: Path, hours: int, status: str, said: str
) -> None:
    made = fleet(tmp_path / "fleet")
    claim = Identity("claim", "field")
    token = Admissions(made).give_token("board-07", claim, expires=now() + timedelta(hours=hours), now=now(), days=9)
    met = board(TLS)
    place = tmp_path / "root/etc/edgefed/claim"
    place.mkdir(parents=True)
    write_token(place / "token", token)
    (found,) = look(met, "enrollment").findings
    assert (found.status, said in found.seen) == (status, True)
    (place / "token").write_text("{")
    assert "its token cannot be used" in look(met, "enrollment").findings[0].seen
