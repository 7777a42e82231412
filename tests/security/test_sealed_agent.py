"""A real agent with a real worker, over mutual TLS, signed and sealed: its update arrives, and opens.

Its aggregator is beside the broker, and comes in by a password, without TLS.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest

from edgefed.security.broker_password import LOCAL_AGGREGATOR, PASSWORD_FILE, broker_password
from edgefed.security.identities import AGGREGATOR
from tests.security.secured import NAME, Secured, device, now, tls

pytestmark = [pytest.mark.broker, pytest.mark.torch, pytest.mark.federation]
PATIENCE_S = 150
BROKER = """\
[broker]
host = "127.0.0.1"
port = {port}
tls_ca = "{tls_ca}"
tls_certificate = "{tls_cert}"
tls_key = "{tls_key}"
signed = true
sealed = true
"""
FEDERATION = """\
fleet = "{fleet}"
rounds = 1
directory = "run"
[model]
name = "edgefed/tiny-t5"
[task]
max_source_tokens = 64
max_target_tokens = 16
[method]
ranks = [2]
[training]
local_steps = 1
batch_size = 2
[evaluation]
max_examples = 2
[selection]
expected_devices = 1
quorum = 1
"""
AGENT = """\
device = "board"
fleet = "{fleet}"
state = "state"
[data]
path = "data.jsonl"
[profile]
measure = "quick"
[limits]
max_rank = 2
quantization = "fp32"
threads = 1
"""


def test_an_agent_seals_what_it_has_trained_for_an_aggregator_beside_the_broker(tmp_path: Path) -> None:
    secured = Secured(tmp_path)
    secured.enroll(device("board"))
    rows = (Path(str(resources.files("edgefed.assets"))) / "dialogues" / "held_out.jsonl").read_text().splitlines()
    (tmp_path / "data.jsonl").write_text("\n".join(rows[:20]) + "\n")
    place = secured.fleet.place(AGGREGATOR)
    broker_password(secured.fleet, now())
    local = f'local = true\nusername = "{LOCAL_AGGREGATOR}"\npassword_file = "{place / PASSWORD_FILE}"\n'
    beside = BROKER.format(port=secured.local_port, **tls(place)) + local
    away = BROKER.format(port=secured.port, **tls(secured.fleet.place(device("board"))))
    for name, text, broker in (("federation", FEDERATION, beside), ("agent", AGENT, away)):
        (tmp_path / f"{name}.toml").write_text(text.format(fleet=NAME) + broker)
    logs = [tmp_path / "aggregator.log", tmp_path / "agent.log"]
    commands = [["aggregator", "-c", "federation.toml"], ["agent", "--once", "-c", "agent.toml"]]
    with secured.running(), contextlib.ExitStack() as stack:
        processes = []
        for log, command in zip(logs, commands, strict=True):
            file = stack.enter_context(log.open("wb"))
            process = subprocess.Popen(
                [sys.executable, "-m", "edgefed", "-v", *command], cwd=tmp_path, stdout=file, stderr=file
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            processes.append(process)
        for process in processes:
            assert process.wait(PATIENCE_S) == 0, "\n".join(log.read_text() for log in logs)
    assert "round 1: counted" in logs[1].read_text()
    first = json.loads((tmp_path / "run" / "history.jsonl").read_text().splitlines()[0])
    assert first["devices"]["board"]["record"]["upload_bytes"] > 0
    assert (tmp_path / "run" / "sealing.key").is_file()
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file()
