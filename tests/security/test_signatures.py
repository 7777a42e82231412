from __future__ import annotations

import base64
import json
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st

from edgefed.errors import ConfigError, MessageError
from edgefed.security import certificates, keys
from edgefed.security.certificates import Authority
from edgefed.security.identities import AGGREGATOR, BROKER, Identity
from edgefed.security.keys import PrivateKey
from edgefed.security.signatures import SIGNATURE_ROOM_BYTES, Signer, Verifier, read_signer, read_verifier

NOW = datetime(2026, 3, 1, 12, tzinfo=timezone.utc)
NOW_S = NOW.timestamp() + 60
DEVICE = Identity("device", "board-07")
TOPIC = "edgefed/v1/kitchen/device/board-07/up"
AUTHORITY = certificates.make_authority("kitchen", days=3650, now=NOW)
VERIFIER = Verifier(AUTHORITY.certificate)


def member(
    identity: Identity, *, authority: Authority = AUTHORITY, key: PrivateKey | None = None, days: int = 30
) -> Signer:
    key = key or ed25519.Ed25519PrivateKey.generate()
    return Signer(certificates.issue(authority, identity, key.public_key(), days=days, now=NOW), key)


SIGNER = member(DEVICE)
documents = st.dictionaries(st.text(max_size=8), st.one_of(st.integers(), st.text(max_size=20)), min_size=1, max_size=4)


@given(document=documents, at_s=st.floats(0, 4e9), session_s=st.none() | st.floats(0, 4e9))
def test_what_was_signed_comes_back_to_the_byte(
    document: dict[str, object], at_s: float, session_s: float | None
) -> None:
    payload = json.dumps(document).encode()
    signed = SIGNER.sign(TOPIC, payload, at_s, session_s)
    found = VERIFIER.verify(TOPIC, signed, DEVICE, NOW_S)
    assert found.payload == payload
    assert found.at_unix_s == pytest.approx(at_s, abs=1e-6)
    assert found.session_unix_s == (None if session_s is None else round(session_s, 6))
    assert len(signed) - len(payload) < SIGNATURE_ROOM_BYTES


def test_who_knows_nothing_of_signatures_reads_the_document() -> None:
    shown = json.loads(SIGNER.sign(TOPIC, b'{"type":"join","round":3}', 1.5))
    assert shown.pop("signature").keys() == {"at_unix_s", "certificate", "value"}
    assert shown == {"type": "join", "round": 3}


@pytest.mark.filterwarnings("ignore:Parsed a serial number")  # of a certificate with a byte changed
@given(data=st.data())
def test_nothing_can_be_changed(data: st.DataObject) -> None:
    """Any one byte of it: the document, the time, the session, the certificate or the signature."""
    session_s = data.draw(st.sampled_from([None, 2.5]))
    signed = bytearray(SIGNER.sign(TOPIC, b'{"type":"join","round":3}', 1.5, session_s))
    place = data.draw(st.integers(0, len(signed) - 1))
    signed[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises(MessageError):
        VERIFIER.verify(TOPIC, bytes(signed), DEVICE, NOW_S)


@given(payload=st.binary(max_size=300), cut=st.integers(0, 300))
def test_any_bytes_are_a_message_or_an_error_of_ours(payload: bytes, cut: int) -> None:
    for attempt in (payload, SIGNER.sign(TOPIC, payload, 1.5)[cut:], payload + SIGNER.sign(TOPIC, b"{}", 1.5)[1:]):
        try:
            VERIFIER.verify(TOPIC, attempt, DEVICE, NOW_S)
        except MessageError:
            continue
        # `{` before the rest of a signed `{}` makes it whole again.
        assert attempt in (SIGNER.sign(TOPIC, payload, 1.5), SIGNER.sign(TOPIC, b"{}", 1.5))


def test_it_counts_on_its_own_topic_only() -> None:
    signed = SIGNER.sign(TOPIC, b'{"a":1}', 1.5)
    for other in ("edgefed/v1/barn/device/board-07/up", "edgefed/v1/kitchen/device/board-08/up"):
        with pytest.raises(MessageError, match="has signed something else"):
            VERIFIER.verify(other, signed, DEVICE, NOW_S)


def test_only_the_author_may_say_it() -> None:
    for other in (member(Identity("device", "board-08")), member(AGGREGATOR), member(Identity("claim", "board-07"))):
        with pytest.raises(MessageError, match="and only board-07 may say that"):
            VERIFIER.verify(TOPIC, other.sign(TOPIC, b'{"a":1}', 1.5), DEVICE, NOW_S)
    with pytest.raises(MessageError, match="it is not signed, and only board-07 may say that"):
        VERIFIER.verify(TOPIC, b'{"a":1}', DEVICE, NOW_S)


def test_another_authority_of_the_same_name_counts_for_nothing() -> None:
    other = certificates.make_authority("kitchen", days=3650, now=NOW)
    with pytest.raises(MessageError, match="not of the fleet's authority"):
        VERIFIER.verify(TOPIC, member(DEVICE, authority=other).sign(TOPIC, b'{"a":1}', 1.5), DEVICE, NOW_S)


def test_a_member_cannot_vouch_for_others() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    mine = Authority(certificates.issue(AUTHORITY, DEVICE, key.public_key(), days=30, now=NOW), key)
    with pytest.raises(MessageError, match="not of the fleet's authority"):
        VERIFIER.verify(TOPIC, member(AGGREGATOR, authority=mine).sign(TOPIC, b'{"a":1}', 1.5), AGGREGATOR, NOW_S)


def test_a_certificate_out_of_its_time_names_the_clock() -> None:
    signed = SIGNER.sign(TOPIC, b'{"a":1}', 1.5)
    for now_s in (0.0, NOW_S - 86400, (NOW + timedelta(days=31)).timestamp()):
        with pytest.raises(MessageError, match=r"this machine's clock says .*: is the clock right\?"):
            VERIFIER.verify(TOPIC, signed, DEVICE, now_s)


def test_the_brokers_certificate_signs_nothing() -> None:
    key = ed25519.Ed25519PrivateKey.generate()
    signer = Signer(certificates.issue(AUTHORITY, BROKER, key.public_key(), days=30, now=NOW, hosts=["b"]), key)
    with pytest.raises(MessageError, match="not a member's"):
        VERIFIER.verify(TOPIC, signer.sign(TOPIC, b'{"a":1}', 1.5), BROKER, NOW_S)


def test_keys_on_a_curve_sign_too_and_others_do_not() -> None:
    signer = member(DEVICE, key=ec.generate_private_key(ec.SECP256R1()))
    assert VERIFIER.verify(TOPIC, signer.sign(TOPIC, b'{"a":1}', 1.5), DEVICE, NOW_S).payload == b'{"a":1}'
    with pytest.raises(ConfigError, match="not the one of the certificate"):
        Signer(
            certificates.issue(AUTHORITY, DEVICE, rsa.generate_private_key(65537, 2048).public_key(), days=3, now=NOW),
            ed25519.Ed25519PrivateKey.generate(),
        )


def test_a_curve_whose_signatures_nobody_would_read_is_refused_before_it_signs() -> None:
    with pytest.raises(ConfigError, match="Ed25519 or P-256 keys"):
        member(DEVICE, key=ec.generate_private_key(ec.SECP384R1()))


def test_a_certificate_of_a_version_that_there_is_not() -> None:
    """A byte of it changed on the way: found by fuzzing, once the end of whoever read it."""
    signed = json.loads(SIGNER.sign(TOPIC, b'{"a":1}', 1.5))
    certificate = base64.b64decode(signed["signature"]["certificate"])
    version = b"\xa0\x03\x02\x01"  # [0] EXPLICIT INTEGER, of one byte
    assert version + b"\x02" in certificate
    changed = base64.b64encode(certificate.replace(version + b"\x02", version + b"\x0a", 1)).decode()
    signed["signature"]["certificate"] = changed
    payload = json.dumps(signed, separators=(",", ":")).encode().replace(b":1.5,", b":1.500000,")
    with pytest.raises(MessageError, match="not of the fleet's authority"):
        VERIFIER.verify(TOPIC, payload, DEVICE, NOW_S)
    pem = f"-----BEGIN CERTIFICATE-----\n{changed}\n-----END CERTIFICATE-----\n".encode()
    with pytest.raises(ConfigError, match="not a certificate"):
        certificates.read_certificate(pem, "here")


def test_from_files(tmp_path: Path) -> None:
    key = keys.new_key("device")
    made = certificates.issue(AUTHORITY, DEVICE, key.public_key(), days=30, now=NOW)
    (tmp_path / "key.pem").write_bytes(keys.key_pem(key))
    (tmp_path / "key.pem").chmod(0o600)
    (tmp_path / "certificate.pem").write_bytes(certificates.certificate_pem(made))
    (tmp_path / "ca.pem").write_bytes(certificates.certificate_pem(AUTHORITY.certificate))
    signer = read_signer(tmp_path / "certificate.pem", tmp_path / "key.pem")
    signed = signer.sign(TOPIC, b'{"a":1}', 1.5)
    assert read_verifier(tmp_path / "ca.pem").verify(TOPIC, signed, DEVICE, NOW_S).payload == b'{"a":1}'
    (tmp_path / "key.pem").chmod(0o644)
    with pytest.raises(ConfigError, match="its mode 0644"):
        read_signer(tmp_path / "certificate.pem", tmp_path / "key.pem")
    with pytest.raises(ConfigError, match=r"none\.pem: cannot be read"):
        read_verifier(tmp_path / "none.pem")
