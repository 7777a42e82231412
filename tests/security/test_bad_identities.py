"""What the agent and the aggregator say of an identity with which they do not get in: whose, why, and what to do."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from edgefed.cli import agent_process
from edgefed.config import read_federation
from edgefed.coordinator.session import run_aggregator
from edgefed.errors import EdgefedError
from edgefed.security import certificates, keys
from edgefed.security.fleet_directory import FleetDirectory, Lifetimes
from edgefed.security.identities import AGGREGATOR, BROKER, Identity
from edgefed.stopping import run_stoppable
from tests.security.secured import NAME, Secured, device, now

pytestmark = pytest.mark.broker

BOARD, OTHER = device("board-07"), device("board-08")
TLS = """
[broker]
host = "127.0.0.1"
port = {port}
tls_ca = "{place}/ca.pem"
tls_certificate = "{place}/certificate.pem"
tls_key = "{place}/key.pem"
signed = {signed}
"""


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    made = Secured(tmp_path_factory.mktemp("fleet"))
    for identity in (BOARD, OTHER):
        made.enroll(identity)
    with made.running():
        yield made


@dataclass(frozen=True)
class Case:
    """Somebody who wants in, and the directory where their files shall be.

    Attributes:
        secured: the fleet.
        who: they are.
        place: of their files: at first good ones.
        scratch: for more.
    """

    secured: Secured
    who: Identity
    place: Path
    scratch: Path

    def take(self, source: Path, *names: str) -> None:
        for name in names or ("certificate.pem", "key.pem"):
            (self.place / name).write_bytes((source / name).read_bytes())

    def issue(self, *, begins: datetime, days: int) -> None:
        key = keys.new_key(self.who.role)
        authority = self.secured.fleet._authority()
        made = certificates.issue(authority, self.who, key.public_key(), days=days, now=begins)
        (self.place / "certificate.pem").write_bytes(certificates.certificate_pem(made))
        (self.place / "key.pem").write_bytes(keys.key_pem(key))


def expired(case: Case) -> None:
    begin = case.secured.fleet._authority().certificate.not_valid_before_utc
    case.issue(begins=begin + timedelta(minutes=1), days=0)


def not_yet(case: Case) -> None:
    case.issue(begins=now() + timedelta(days=3), days=9)


def foreign(case: Case) -> None:
    other = FleetDirectory.create(case.scratch / "o", NAME, hosts=["b"], lifetimes=Lifetimes(), now=now())
    case.take(other.place(case.who) if case.who == AGGREGATOR else other.enroll(case.who, days=9, now=now()))


def foreign_with_its_authority(case: Case) -> None:
    foreign(case)
    case.take(case.scratch / "o" / "aggregator", "ca.pem")


def anothers(case: Case) -> None:
    case.take(case.secured.fleet.place(OTHER))


def the_brokers(case: Case) -> None:
    case.take(case.secured.fleet.place(BROKER))


def anothers_key(case: Case) -> None:
    case.take(case.secured.fleet.place(OTHER), "key.pem")


def open_key(case: Case) -> None:
    (case.place / "key.pem").chmod(0o644)


def no_certificate(case: Case) -> None:
    (case.place / "certificate.pem").unlink()


def no_key(case: Case) -> None:
    (case.place / "key.pem").unlink()


CASES: list[tuple[Callable[[Case], None], int, list[str]]] = [
    (expired, 6, ["our certificate", "counts from", "this machine's clock says", "is the clock right?", "rotate"]),
    (not_yet, 6, ["our certificate", "counts from", "this machine's clock says", "is the clock right?"]),
    (foreign, 6, ["is not of the fleet's authority", "it is another fleet's"]),
    (foreign_with_its_authority, 6, ["its certificate is not of the authority in", "another fleet's broker"]),
    (anothers, 3, ["is of board-08, and messages are to be signed as", "in [broker]"]),
    (the_brokers, 3, ["is of role:broker, and messages are to be signed as", "in [broker]"]),
    (anothers_key, 3, ["tls_key", "is not the key of", "copy both again"]),
    (open_key, 3, ["holds a secret, and its mode 0644", "chmod 600"]),
    (no_certificate, 3, ["tls_certificate: there is no file", "enroll"]),
    (no_key, 3, ["tls_key: there is no file"]),
]


def agent(case: Case, capsys: pytest.CaptureFixture[str], *, signed: str = "true") -> tuple[int, str]:
    """Runs the agent's process, and returns its exit code and what it wrote."""
    (case.scratch / "data.jsonl").write_text('{"dialogue": "a", "summary": "b"}\n')
    text = f'device = "{case.who.name}"\nfleet = "{NAME}"\nworker.device = "cpu"\ndata.path = "data.jsonl"\n'
    config = case.scratch / "agent.toml"
    config.write_text(text + TLS.format(port=case.secured.port, place=case.place, signed=signed))
    code = agent_process.main([str(config), "--require-broker"])
    return code, capsys.readouterr().err


def aggregator(case: Case, _capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Runs an aggregator, and returns its exit code and what it says."""
    config = case.scratch / "federation.toml"
    text = f'fleet = "{NAME}"\ndirectory = "run"\nmodel.name = "edgefed/tiny-t5"\n'
    config.write_text(text + TLS.format(port=case.secured.port, place=case.place, signed="true"))
    with pytest.raises(EdgefedError) as refused:
        run_stoppable(run_aggregator(read_federation(config), watch=lambda _state: None, wait_for_broker=False))
    return refused.value.exit_code, str(refused.value)


@pytest.fixture(autouse=True)
def _logging_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)


def case_of(secured: Secured, who: Identity, tmp_path: Path) -> Case:
    place = tmp_path / "files"
    shutil.copytree(secured.fleet.place(who), place)
    return Case(secured, who, place, tmp_path)


@pytest.mark.parametrize(("who", "run"), [(BOARD, agent), (AGGREGATOR, aggregator)], ids=["agent", "aggregator"])
@pytest.mark.parametrize(("spoil", "code", "said"), CASES, ids=[case[0].__name__ for case in CASES])
def test_an_identity_that_does_not_get_in(
    secured: Secured,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    who: Identity,
    run: Callable[[Case, pytest.CaptureFixture[str]], tuple[int, str]],
    spoil: Callable[[Case], None],
    code: int,
    said: list[str],
) -> None:
    case = case_of(secured, who, tmp_path)
    spoil(case)
    found, words = run(case, capsys)
    assert found == code, words
    assert [part for part in said if part not in words] == [], words


def test_without_signatures_it_is_the_broker_who_tells_one_device_from_another(
    secured: Secured, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case = case_of(secured, BOARD, tmp_path)
    anothers(case)
    code, words = agent(case, capsys, signed="false")
    assert code == 6
    assert "is of CN=board-08: if that is who this should be" in words


def test_without_signatures_it_is_the_broker_who_tells_a_device_from_a_broker(
    secured: Secured, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case = case_of(secured, BOARD, tmp_path)
    the_brokers(case)
    code, words = agent(case, capsys, signed="false")
    assert code == 6
    assert "is not a member's, but a broker's" in words


def test_a_revoked_device(secured: Secured, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    secured.enroll(device("gone"))
    case = case_of(secured, device("gone"), tmp_path)
    secured.fleet.revoke(device("gone"), now=now())
    secured.write()
    secured.broker.reload()
    code, words = agent(case, capsys)
    assert code == 6, words
    assert "may have been revoked, or the broker's clock may be wrong" in words
