"""What an operator is told when a broker and its clients do not accept each other; both are real certificates."""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import threading
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from edgefed.errors import BrokerUnreachable, ConfigError
from edgefed.security import certificates, keys
from edgefed.security.certificates import Authority
from edgefed.security.identities import BROKER, Identity
from edgefed.transport.mqtt import MqttOptions, connect_mqtt

NOW = datetime.now(timezone.utc)
DEVICE = Identity("device", "board-07")


@pytest.fixture(scope="module")
def authority() -> Authority:
    return certificates.make_authority("kitchen", days=100, now=NOW - timedelta(days=50))


def write(directory: Path, authority: Authority, identity: Identity, *, begins: datetime, hosts: list[str]) -> Path:
    directory.mkdir()
    key = keys.new_key("device")
    made = certificates.issue(authority, identity, key.public_key(), days=10, now=begins, hosts=hosts)
    (directory / "certificate.pem").write_bytes(certificates.certificate_pem(made))
    (directory / "key.pem").write_bytes(keys.key_pem(key))
    (directory / "key.pem").chmod(0o600)
    (directory / "ca.pem").write_bytes(certificates.certificate_pem(authority.certificate))
    return directory


@contextlib.contextmanager
def answering(place: Path) -> Iterator[int]:
    """Something that does TLS with a certificate, wants none, and says nothing; yields its port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(place / "certificate.pem", place / "key.pem")
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError), context.wrap_socket(connection, server_side=True) as tls:
                tls.recv(10)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield server.getsockname()[1]
    finally:
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        thread.join()


async def refusal(port: int, member: Path, host: str = "127.0.0.1") -> str:
    options = MqttOptions(
        host,
        port,
        "x",
        tls_ca=str(member / "ca.pem"),
        tls_cert=str(member / "certificate.pem"),
        tls_key=str(member / "key.pem"),
    )
    with pytest.raises(BrokerUnreachable) as caught:
        async with connect_mqtt(options):
            pass
    return str(caught.value)


@pytest.mark.parametrize(
    ("identity", "age_days", "hosts", "hint"),
    [
        (
            BROKER,
            20,
            ["127.0.0.1"],
            r"by this machine's clock, which says .*, its certificate has ended: is the clock right",
        ),
        (BROKER, -5, ["127.0.0.1"], r"its certificate does not count yet: is the clock right\?"),
        (BROKER, 1, ["elsewhere.local"], "edgefed fleet rotate role:broker --broker-host 127.0.0.1"),
        (DEVICE, 1, [], "somebody with a device's certificate may pose as the broker"),
    ],
)
async def test_a_broker_with_the_wrong_certificate(
    tmp_path: Path, authority: Authority, identity: Identity, age_days: int, hosts: list[str], hint: str
) -> None:
    theirs = write(tmp_path / "theirs", authority, identity, begins=NOW - timedelta(days=age_days), hosts=hosts)
    ours = write(tmp_path / "ours", authority, DEVICE, begins=NOW, hosts=[])
    with answering(theirs) as port:
        assert re.search(hint, await refusal(port, ours))


async def test_a_broker_of_another_fleet(tmp_path: Path, authority: Authority) -> None:
    other = certificates.make_authority("kitchen", days=100, now=NOW)
    theirs = write(tmp_path / "theirs", other, BROKER, begins=NOW, hosts=["127.0.0.1"])
    ours = write(tmp_path / "ours", authority, DEVICE, begins=NOW, hosts=[])
    with answering(theirs) as port:
        assert "it is another fleet's broker, or somebody who poses as ours" in await refusal(port, ours)


@pytest.mark.parametrize("age_days", [20, -5])
async def test_our_own_certificate_out_of_its_time(tmp_path: Path, authority: Authority, age_days: int) -> None:
    theirs = write(tmp_path / "theirs", authority, BROKER, begins=NOW, hosts=["127.0.0.1"])
    ours = write(tmp_path / "ours", authority, DEVICE, begins=NOW - timedelta(days=age_days), hosts=[])
    with answering(theirs) as port:
        said = await refusal(port, ours)
    assert re.search(r"our certificate .* counts from .* and this machine's clock says .* is the clock right\?", said)


async def test_a_key_that_others_can_read(tmp_path: Path, authority: Authority) -> None:
    ours = write(tmp_path / "ours", authority, DEVICE, begins=NOW, hosts=[])
    (ours / "key.pem").chmod(0o640)
    files = {"tls_cert": str(ours / "certificate.pem"), "tls_key": str(ours / "key.pem")}
    with pytest.raises(ConfigError, match=r"key\.pem holds a secret, and its mode 0640 lets others"):
        async with connect_mqtt(MqttOptions("127.0.0.1", 1, "x", tls_ca=str(ours / "ca.pem"), **files)):
            pass
