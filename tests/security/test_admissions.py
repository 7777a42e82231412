"""Tokens and what they get: the operator's side, without a network."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from datetime import timedelta
from pathlib import Path
from unittest.mock import Mock

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefed.errors import ConfigError, NotAdmitted
from edgefed.protocol.messages.claims import Claim
from edgefed.security import certificates, keys, tokens
from edgefed.security.admissions import Admissions
from edgefed.security.fleet_directory import FleetDirectory, Lifetimes
from edgefed.security.identities import Identity
from edgefed.security.keys import PrivateKey
from edgefed.security.signing_requests import make_request
from edgefed.security.tokens import TokenFile
from tests.security.secured import device, now

FIELD = Identity("claim", "field")


@pytest.fixture
def fleet(tmp_path: Path) -> FleetDirectory:
    return FleetDirectory.create(tmp_path / "kitchen", "kitchen", hosts=["b"], lifetimes=Lifetimes(), now=now())


@pytest.fixture
def admissions(fleet: FleetDirectory) -> Admissions:
    return Admissions(fleet)


def give(admissions: Admissions, pattern: str = "board-*", hours: float = 1) -> TokenFile:
    return admissions.give_token(pattern, FIELD, expires=now() + timedelta(hours=hours), now=now(), days=30)


def ask(token: TokenFile, name: str, key: PrivateKey | None = None) -> Claim:
    key = key or keys.new_key("device")
    return tokens.make_claim(token, name, make_request(key, device(name)))


def test_a_token_gets_one_certificate_for_the_key_that_asked(admissions: Admissions, fleet: FleetDirectory) -> None:
    token, key = give(admissions), keys.new_key("device")
    claim = ask(token, "board-07", key)
    assert not admissions.check(claim, "field", now()).known
    made = admissions.admit(claim, "field", now=now(), days=30)
    assert certificates.common_name(made) == "board-07"
    assert made.public_key() == key.public_key()
    assert device("board-07") in fleet.members(now())


def test_the_same_key_gets_the_same_certificate_even_when_the_token_has_expired(admissions: Admissions) -> None:
    claim = ask(give(admissions), "board-07")
    made = admissions.admit(claim, "field", now=now(), days=30)
    later = now() + timedelta(days=2)
    assert admissions.check(claim, "field", later).known
    assert admissions.admit(claim, "field", now=later, days=30) == made
    with pytest.raises(NotAdmitted, match="got with this token has ended on"):
        admissions.admit(claim, "field", now=later + timedelta(days=30), days=30)


def test_a_revoked_board_does_not_come_back_with_its_old_token(admissions: Admissions, fleet: FleetDirectory) -> None:
    claim = ask(give(admissions), "board-07")
    admissions.admit(claim, "field", now=now(), days=30)
    fleet.revoke(device("board-07"), now=now())
    with pytest.raises(NotAdmitted, match="certificate that board-07 got with this token was revoked"):
        admissions.admit(claim, "field", now=now(), days=30)


def test_a_board_whose_certificate_has_ended_gets_another_for_its_key(admissions: Admissions) -> None:
    key, later = keys.new_key("device"), now() + timedelta(days=31)
    old = admissions.admit(ask(give(admissions), "board-07", key), "field", now=now(), days=30)
    claim = ask(give(admissions, hours=24 * 40), "board-07", key)
    made = admissions.admit(claim, "field", now=later, days=30)
    assert (made.public_key(), made.not_valid_after_utc > later) == (old.public_key(), True)
    assert admissions.admit(claim, "field", now=later, days=30) == made, "its answer may be lost"


def test_a_key_that_was_revoked_gets_nothing_with_a_new_token_either(
    admissions: Admissions, fleet: FleetDirectory
) -> None:
    key = keys.new_key("device")
    admissions.admit(ask(give(admissions), "board-07", key), "field", now=now(), days=30)
    fleet.revoke(device("board-07"), now=now())
    token = give(admissions)
    with pytest.raises(NotAdmitted, match="this key of board-07 was revoked: remove the file that tls_key names"):
        admissions.admit(ask(token, "board-07", key), "field", now=now(), days=30)
    admissions.admit(ask(token, "board-07"), "field", now=now(), days=30)


def test_a_token_is_used_once(admissions: Admissions, fleet: FleetDirectory) -> None:
    token = give(admissions)
    admissions.admit(ask(token, "board-07"), "field", now=now(), days=30)
    for name in ("board-07", "board-08"):
        with pytest.raises(NotAdmitted, match="the token was used already, by board-07 on"):
            admissions.admit(ask(token, name), "field", now=now(), days=30)
    assert device("board-08") not in fleet.members(now())


def test_a_withdrawn_token_is_refused(admissions: Admissions, fleet: FleetDirectory) -> None:
    token, other = give(admissions), give(admissions)
    claim = ask(token, "board-07")
    assert admissions.withdraw(token.id[:8], now()).id == token.id
    for _ in range(2):
        with pytest.raises(NotAdmitted, match=r"the token was withdrawn on .* UTC: ask for a new one"):
            admissions.admit(claim, "field", now=now(), days=30)
    assert device("board-07") not in fleet.members(now())
    with pytest.raises(ConfigError, match=f"token {token.id} was withdrawn before"):
        admissions.withdraw(token.id, now())
    admissions.admit(ask(other, "board-07"), "field", now=now(), days=30)


def test_a_used_token_is_not_withdrawn_but_revoked(admissions: Admissions) -> None:
    token = give(admissions)
    claim = ask(token, "board-07")
    admissions.admit(claim, "field", now=now(), days=30)
    with pytest.raises(ConfigError, match=r"was used by board-07 on .*: `edgefed fleet revoke board-07` takes back"):
        admissions.withdraw(token.id, now())
    assert admissions.check(claim, "field", now()).known


def test_a_token_with_nothing_to_show_for_it_is_withdrawn(
    admissions: Admissions, fleet: FleetDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tied to a key, and nobody came to sign: there is no certificate that could be revoked."""
    token = give(admissions)
    monkeypatch.setattr(fleet, "sign", Mock(side_effect=OSError("disk")))
    with pytest.raises(OSError, match="disk"):
        admissions.admit(ask(token, "board-07"), "field", now=now(), days=30)
    assert [record.state(now()) for record in admissions.given_out()] == ["used"]
    admissions.withdraw(token.id, now())
    assert [record.state(now()) for record in admissions.given_out()] == ["withdrawn"]


def test_the_state_of_a_token(admissions: Admissions) -> None:
    short, long, used = give(admissions, hours=1), give(admissions, hours=9), give(admissions, hours=5)
    admissions.admit(ask(used, "board-07"), "field", now=now(), days=30)
    records = admissions.given_out()
    assert [record.id for record in records] == [short.id, used.id, long.id]
    assert [record.state(now() + timedelta(hours=2)) for record in records] == ["expired", "used", "open"]


def test_the_beginning_of_an_id_must_mean_one_token(admissions: Admissions, fleet: FleetDirectory) -> None:
    token = give(admissions)
    record = fleet.path / "ca" / "tokens" / f"{token.id}.json"
    record.with_name(f"{token.id[:6]}{'0' * 26}.json").write_bytes(record.read_bytes())
    with pytest.raises(ConfigError, match=f"2 tokens begin with {token.id[:6]}"):
        admissions.withdraw(token.id[:6], now())


def test_a_token_that_has_expired(admissions: Admissions) -> None:
    claim = ask(give(admissions), "board-07")
    with pytest.raises(
        NotAdmitted, match=r"the token has expired on .* UTC, and the fleet's clock says .*: ask for a new one"
    ):
        admissions.check(claim, "field", now() + timedelta(hours=2))


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("oven-1", "the token is for board-\\*, not for oven-1"),
        ("role:aggregator", "device id 'role:aggregator' is not usable"),
        ("board-\0", "is not usable"),
    ],
)
def test_a_name_that_the_token_is_not_for(admissions: Admissions, name: str, problem: str) -> None:
    key = keys.new_key("device")
    claim = tokens.make_claim(give(admissions), name, make_request(key, device("board-07")))
    with pytest.raises(NotAdmitted, match=problem):
        admissions.check(claim, "field", now())


def test_what_was_changed_on_the_way(admissions: Admissions) -> None:
    claim, other = ask(give(admissions), "board-07"), ask(give(admissions), "board-07")
    changed = [
        msgspec.structs.replace(claim, request=other.request),  # another's key in our name
        msgspec.structs.replace(claim, device="board-08"),
        msgspec.structs.replace(claim, proof=other.proof),
        msgspec.structs.replace(claim, token=other.token),
        msgspec.structs.replace(claim, proof="0" * 128),
    ]
    for one in changed:
        with pytest.raises(NotAdmitted, match="was not made with its token, or was changed on the way"):
            admissions.check(one, "field", now())
    for one, topic in ((claim, "cellar"), (msgspec.structs.replace(claim, token="0" * 32), "field")):
        with pytest.raises(NotAdmitted, match="given out no such token"):
            admissions.check(one, topic, now())


def test_a_request_for_somebody_else_and_one_that_is_none(admissions: Admissions) -> None:
    token = give(admissions)
    request = make_request(keys.new_key("device"), device("board-08"))
    for wrong, problem in ((request, "is for 'board-08', not for 'board-07'"), (b"no", "not a certificate signing")):
        with pytest.raises(NotAdmitted, match=problem):
            admissions.check(tokens.make_claim(token, "board-07", wrong), "field", now())


def test_who_is_a_member_cannot_be_claimed(admissions: Admissions, fleet: FleetDirectory) -> None:
    token = give(admissions)
    fleet.enroll(device("board-07"), days=30, now=now())
    with pytest.raises(NotAdmitted, match="board-07 is enrolled already, with another key"):
        admissions.check(ask(token, "board-07"), "field", now())
    with pytest.raises(ConfigError, match="board-07 is enrolled already"):
        give(admissions, "board-07")


def test_killed_between_token_and_certificate(admissions: Admissions, fleet: FleetDirectory, tmp_path: Path) -> None:
    """The process is killed when it is about to sign; the token is then good for that key, and for no other."""
    token = give(admissions)
    claim = ask(token, "board-07")
    (tmp_path / "claim.json").write_bytes(msgspec.json.encode(claim))
    program = textwrap.dedent(
        """
        import os, signal, sys
        from datetime import datetime, timezone
        from pathlib import Path
        from edgefed.protocol.messages.claims import decode_claim
        from edgefed.security.admissions import Admissions
        from edgefed.security.fleet_directory import FleetDirectory

        FleetDirectory.sign = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
        claim = decode_claim(Path(sys.argv[2]).read_bytes())
        Admissions(FleetDirectory(Path(sys.argv[1]))).admit(claim, "field", now=datetime.now(timezone.utc), days=30)
        """
    )
    done = subprocess.run([sys.executable, "-c", program, fleet.path, tmp_path / "claim.json"], check=False)
    assert done.returncode == -signal.SIGKILL
    assert device("board-07") not in fleet.members(now())
    with pytest.raises(NotAdmitted, match="used already"):
        admissions.admit(ask(token, "board-08"), "field", now=now(), days=30)
    made = admissions.admit(claim, "field", now=now(), days=30)
    assert admissions.admit(claim, "field", now=now(), days=30) == made
    assert [entry.identity for entry in fleet.issued()].count(device("board-07")) == 1


def test_the_directory_has_nothing_with_which_a_token_could_be_used(
    admissions: Admissions, fleet: FleetDirectory
) -> None:
    token = give(admissions)
    kept = b"".join(path.read_bytes() for path in fleet.path.rglob("*") if path.is_file())
    assert token.secret not in kept
    assert token.secret.hex().encode() not in kept
    assert token.secret.hex() not in repr(token)
    assert repr(token.secret) not in repr(token)
    for path in (fleet.path / "ca" / "tokens").iterdir():
        assert path.stat().st_mode & 0o077 == 0


def test_one_claim_certificate_serves_many_tokens(admissions: Admissions, fleet: FleetDirectory) -> None:
    first, second = give(admissions), give(admissions, "oven-1")
    assert (first.certificate, first.key) == (second.certificate, second.key)
    assert first.secret != second.secret
    (fleet.place(FIELD) / "key.pem").unlink()
    with pytest.raises(ConfigError, match="`edgefed fleet rotate claim:field` makes one"):
        give(admissions)


def test_a_damaged_record_is_named(admissions: Admissions, fleet: FleetDirectory) -> None:
    claim = ask(give(admissions), "board-07")
    (record,) = (fleet.path / "ca" / "tokens").iterdir()
    record.write_bytes(record.read_bytes()[:-9])
    with pytest.raises(ConfigError, match=f"{record.name}: is damaged"):
        admissions.check(claim, "field", now())


def test_a_token_file_is_read_as_it_was_written(admissions: Admissions, tmp_path: Path) -> None:
    token, path = give(admissions), tmp_path / "t"
    tokens.write_token(path, token)
    assert path.stat().st_mode & 0o777 == 0o600
    assert tokens.read_token(path) == token
    with pytest.raises(ConfigError, match="never overwritten"):
        tokens.write_token(path, token)


def test_token_files_that_cannot_be_used(admissions: Admissions, tmp_path: Path) -> None:
    token, path = give(admissions), tmp_path / "t"
    tokens.write_token(path, token)
    whole = path.read_text()
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="holds a secret, and its mode 0640"):
        tokens.read_token(path)
    path.chmod(0o600)
    for damaged in (
        whole[:-40], "{}", whole.replace(token.secret.hex(), "zz"), whole.replace(token.secret.hex(), "00"),
        whole.replace('"version": 1', '"version": 2'), whole.replace("-BEGIN CERTIFICATE-", "-", 1),
    ):  # fmt: skip
        path.write_text(damaged)
        with pytest.raises(ConfigError) as refused:
            tokens.read_token(path)
        assert str(path) in str(refused.value)
        assert token.secret.hex() not in str(refused.value)
    with pytest.raises(ConfigError, match="No such file"):
        tokens.read_token(tmp_path / "none")


@pytest.mark.parametrize("pattern", ["", "Board-*", "board-[0-9]", "a/b", "claim:x", "-a", "x" * 65])
def test_what_is_no_pattern(pattern: str) -> None:
    with pytest.raises(ConfigError):
        tokens.check_pattern(pattern)


@given(st.binary(min_size=32, max_size=32), st.text("ab-", min_size=1), st.binary(max_size=64), st.integers(0, 511))
def test_a_proof_is_of_every_bit(secret: bytes, name: str, request: bytes, bit: int) -> None:
    token = TokenFile(
        fleet="f", claim="c", device="*", expires=now(), secret=secret, ca=b"", certificate=b"", key=b""
    )  # fmt: skip
    claim = tokens.make_claim(token, name, request.hex().encode())
    verifier = tokens.verifier_of(secret)
    assert tokens.is_proven(claim, "f", "c", verifier)
    flipped = (int(claim.proof, 16) ^ 1 << bit).to_bytes(64, "big").hex()
    assert not tokens.is_proven(msgspec.structs.replace(claim, proof=flipped), "f", "c", verifier)
    assert not tokens.is_proven(claim, "g", "c", verifier)
    assert not tokens.is_proven(claim, "f", "d", verifier)
    assert not tokens.is_proven(claim, "f", "c", tokens.verifier_of(os.urandom(32)))
