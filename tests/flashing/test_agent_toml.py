from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefed.config import read_agent
from edgefed.errors import FlashError
from edgefed.flashing.agent_toml import Access, agent_toml


def test_the_agent_reads_what_is_written(tmp_path: Path) -> None:
    access = Access(
        device="board-07",
        fleet="kitchen",
        host="broker.local",
        username="board",
        has_password=True,
        has_ca=True,
        has_certificate=True,
        data="/srv/notes.jsonl",
    )
    (tmp_path / "agent.toml").write_bytes(agent_toml(access))
    options = read_agent(tmp_path / "agent.toml")
    assert (options.device, options.fleet, options.state) == ("board-07", "kitchen", "/var/lib/edgefed/state")
    assert options.data.path == "/srv/notes.jsonl"
    broker = options.broker
    assert (broker.host, broker.port, broker.username) == ("broker.local", 8883, "board")
    assert broker.password_file == "/etc/edgefed/password"
    assert [broker.tls_ca, broker.tls_certificate, broker.tls_key] == [
        f"/etc/edgefed/tls/{name}.pem" for name in ("ca", "certificate", "key")
    ]


def test_without_tls_and_data_the_usual_places_are_taken(tmp_path: Path) -> None:
    (tmp_path / "agent.toml").write_bytes(agent_toml(Access(device="a", fleet="b", host="h")))
    options = read_agent(tmp_path / "agent.toml")
    assert (options.broker.port, options.broker.tls_ca) == (1883, "")
    assert options.data.path == "/var/lib/edgefed/data"


def test_a_board_with_a_token_has_its_certificate_where_it_may_write(tmp_path: Path) -> None:
    (tmp_path / "agent.toml").write_bytes(agent_toml(Access(device="a", fleet="b", host="h", has_token=True)))
    broker = read_agent(tmp_path / "agent.toml").broker
    assert (broker.port, broker.signed) == (8883, False)
    (tmp_path / "agent.toml").write_bytes(
        agent_toml(Access(device="a", fleet="b", host="h", has_token=True, signed=True))
    )
    assert read_agent(tmp_path / "agent.toml").broker.signed
    assert [broker.tls_ca, broker.tls_certificate, broker.tls_key] == [
        f"/var/lib/edgefed/tls/{name}.pem" for name in ("ca", "certificate", "key")
    ]


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20))
def test_any_text_survives(tmp_path_factory: pytest.TempPathFactory, username: str) -> None:
    path = tmp_path_factory.mktemp("toml") / "agent.toml"
    path.write_bytes(agent_toml(Access(device="a", fleet="b", host="h", username=username)))
    assert read_agent(path).broker.username == username


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"device": "Board 7"}, "device id"),
        ({"fleet": "a/b"}, "fleet name"),
        ({"port": 70000}, "70000|65535"),
        ({"data": "data.jsonl"}, "absolute path"),
        ({"signed": True}, "signed needs tls_ca, tls_certificate and tls_key"),
        ({"data": "/home/me/data"}, "hidden from the agent"),
        ({"data": "/tmp"}, "hidden from the agent"),
    ],
)
def test_what_the_agent_would_refuse_is_refused(change: dict[str, str], message: str) -> None:
    with pytest.raises(FlashError, match=message):
        agent_toml(Access(**{"device": "a", "fleet": "b", "host": "h", **change}))  # type: ignore[arg-type]
