"""Real agents with real workers on the shipped model: the whole way, and what a person may get wrong."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import paho.mqtt.publish
import pytest

from edgefed.models.finding import resolve_model
from edgefed.protocol.messages.retained import FederationFinished
from edgefed.protocol.messages.wire import encode
from edgefed.transport.base import Message, Transport
from edgefed.transport.mqtt import connect_mqtt
from edgefed.transport.mqtt_options import MqttOptions
from tests.shared.power_reader_suite import copy_of
from tools.mosquitto import RunningMosquitto

pytestmark = [pytest.mark.broker, pytest.mark.torch, pytest.mark.federation]
PATIENCE_S = 150
ASSETS = Path(str(resources.files("edgefed.assets")))

FEDERATION = """\
fleet = "test"
rounds = 2
directory = "run"
[model]
name = "edgefed/tiny-t5"
[task]
max_source_tokens = 64
max_target_tokens = 16
[method]
aggregation = "{aggregation}"
ranks = [2, 4]
[training]
local_steps = 2
batch_size = 4
[evaluation]
max_examples = 4
[selection]
expected_devices = 2
quorum = 2
[broker]
port = {port}
"""
AGENT = """\
device = "{name}"
fleet = "test"
state = "state-{name}"
[broker]
port = {port}
[data]
path = "{data}"
[profile]
measure = "quick"
[limits]
max_rank = {rank}
quantization = "{quantization}"
threads = 1
{more}
"""

PLAYS = '[emulate]\nboard = "jetson-orin-nano-8gb"'


class Place:
    """A directory in which agents and an aggregator run as processes."""

    def __init__(self, path: Path, port: int) -> None:
        self.path = path
        self.port = port
        self.processes: list[subprocess.Popen[bytes]] = []
        rows = (ASSETS / "dialogues" / "held_out.jsonl").read_text().splitlines()
        (path / "data.jsonl").write_text("\n".join(rows[:40]) + "\n")

    def federation(self, aggregation: str = "delta") -> None:
        (self.path / "federation.toml").write_text(FEDERATION.format(aggregation=aggregation, port=self.port))

    def agent(
        self, name: str, *, rank: int = 4, quantization: str = "fp32", data: str = "data.jsonl", more: str = ""
    ) -> Path:
        path = self.path / f"{name}.toml"
        text = AGENT.format(name=name, port=self.port, rank=rank, quantization=quantization, data=data, more=more)
        path.write_text(text)
        return path

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        with (self.path / f"{len(self.processes)}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "edgefed", "-vv", *arguments], cwd=self.path, stdout=log, stderr=log
            )
        self.processes.append(process)
        return process

    def log(self, process: subprocess.Popen[bytes]) -> str:
        return (self.path / f"{self.processes.index(process)}.log").read_text()

    def device_once_ready(self, device: str) -> dict[str, Any]:
        """Returns what the broker keeps of a device that has measured its machine and waits for a round."""
        command = [sys.executable, "-m", "edgefed", "status", "--port", str(self.port), "--fleet", "test", "--json"]
        until = time.monotonic() + PATIENCE_S
        while True:
            done = subprocess.run(command, capture_output=True, check=True)
            kept = json.loads(done.stdout)["devices"].get(device, {})
            if kept.get("profile") and kept["profile"]["measured_unix_s"] and kept["state"]["status"] == "ready":
                return dict(kept)
            assert time.monotonic() < until, kept
            time.sleep(0.2)

    def wait_for(self, process: subprocess.Popen[bytes], text: str) -> None:
        until = time.monotonic() + PATIENCE_S
        while text not in self.log(process):
            assert time.monotonic() < until, self.log(process)
            assert process.poll() is None, self.log(process)
            time.sleep(0.05)


@pytest.fixture
def place(tmp_path: Path, mosquitto: RunningMosquitto) -> Iterator[Place]:
    place = Place(tmp_path, mosquitto.port)
    yield place
    for process in place.processes:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        process.wait()


@pytest.mark.parametrize("aggregation", ["delta", "frozen_global"])
def test_a_federation_from_end_to_end(place: Place, aggregation: str) -> None:
    place.federation(aggregation)
    aggregator = place.start("aggregator", "-c", "federation.toml")
    agents = [
        place.start("agent", "--once", "-c", str(place.agent("one", rank=2))),
        place.start(
            "agent",
            "--once",
            "-c",
            str(_with_a_power_sensor(place.agent("two", rank=4, quantization="nf4", more=PLAYS))),
        ),
    ]
    assert aggregator.wait(PATIENCE_S) == 0, place.log(aggregator)
    for agent in agents:
        assert agent.wait(PATIENCE_S) == 0, place.log(agent)
        assert "counted" in place.log(agent)
    lines = [json.loads(line) for line in (place.path / "run" / "history.jsonl").read_text().splitlines()]
    assert [sorted(line["devices"]) for line in lines] == [["one", "two"]] * 3
    record = lines[0]["devices"]["two"]["record"]
    assert record["quantization"] == "nf4"
    assert record["steps"] == len(record["step_records"]) == 2
    assert all(record[phase] > 0 for phase in ("data_s", "forward_s", "backward_s", "optimizer_s"))
    assert record["upload_bytes"] > 0
    assert record["upload_s"] > 0
    assert record["model_flops"] > 0
    assert record["live_peak_flops_per_s"] > 0
    assert record["emulated"] == "jetson-orin-nano-8gb"
    assert record["board"] != record["emulated"], "what it plays is not what its work is related to"
    assert lines[0]["devices"]["one"]["record"]["emulated"] is None
    assert record["use"]["samples"] > 0
    assert record["use"]["worker_peak_resident_bytes"] > 50_000_000
    energy = record["use"]["energy"]
    assert (energy["scope"], energy["joules"]) == ("package", None), "the recorded counter stands still"
    assert "no power at all" in energy["reason"] or "window too short" in energy["reason"]
    assert (place.path / "run" / "report.html").is_file()
    _loads_without_edgefed(place.path / "run" / "adapter")


def _with_a_power_sensor(agent: Path) -> Path:
    """Gives an agent the recorded counters of a machine to look at, and the real /proc."""
    root = copy_of("x86-rapl", agent.parent / "machine")
    (root / "proc").symlink_to("/proc")
    agent.write_text(f'root = "{root}"\n{agent.read_text()}')
    return agent


def _loads_without_edgefed(adapter: Path) -> None:
    """PEFT loads the adapter in a process in which nothing of edgefed is imported, and it changes the output."""
    script = f"""
import sys, torch
from peft import PeftModel
from transformers import AutoModelForSeq2SeqLM
base = AutoModelForSeq2SeqLM.from_pretrained({str(resolve_model("edgefed/tiny-t5"))!r})
ids = torch.arange(2, 12)[None]
with torch.no_grad():
    before = base(input_ids=ids, decoder_input_ids=ids).logits
    after = PeftModel.from_pretrained(base, {str(adapter)!r})(input_ids=ids, decoder_input_ids=ids).logits
assert not torch.equal(before, after)
assert not any(name.startswith("edgefed") for name in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_a_killed_agent_and_a_killed_broker_do_not_stop_a_federation(place: Place, mosquitto: RunningMosquitto) -> None:
    place.federation()
    aggregator = place.start("aggregator", "-c", "federation.toml")
    one = place.start("agent", "--once", "-c", str(place.agent("one", rank=2)))
    two = place.start("agent", "--once", "-c", str(place.agent("two")))
    place.wait_for(aggregator, "round 2 of 2 is open")  # a restarted broker has forgotten that
    two.send_signal(signal.SIGKILL)
    mosquitto.kill()
    two.wait()
    mosquitto.restart()
    two = place.start("agent", "--once", "-c", str(place.agent("two")))
    assert aggregator.wait(PATIENCE_S) == 0, place.log(aggregator)
    assert one.wait(PATIENCE_S) == 0, place.log(one)
    assert two.wait(PATIENCE_S) == 0, place.log(two)
    lines = [json.loads(line) for line in (place.path / "run" / "history.jsonl").read_text().splitlines()]
    assert [sorted(line["devices"]) for line in lines[:2]] == [["one", "two"]] * 2


def test_a_device_that_gets_too_hot_sleeps_and_goes_on_where_it_was(place: Place) -> None:
    place.federation()
    federation = place.path / "federation.toml"
    federation.write_text(federation.read_text().replace("local_steps = 2", "local_steps = 40"))
    zone = place.path / "host" / "sys" / "class" / "thermal" / "thermal_zone0" / "temp"
    zone.parent.mkdir(parents=True)
    zone.write_text("40000\n")
    rules = "[eligibility]\nmax_temperature_c = 80.0\ncheck_every_s = 0.05\n"
    aggregator = place.start("aggregator", "-c", "federation.toml")
    path = place.agent("one", more=rules)
    path.write_text(path.read_text().replace("fleet =", 'root = "host"\nfleet ='))
    agent = place.start("agent", "--once", "-c", str(path))
    other = place.start("agent", "--once", "-c", str(place.agent("two")))
    kept = place.path / "state-one" / "runs"
    place.wait_for(agent, "step 3 of 40")
    zone.write_text("91000\n")
    place.wait_for(agent, "stopped, because the hottest sensor reads 91 °C; at most 80 °C is allowed")
    assert list(kept.glob("*/update-*.suspended")), "what was done is on disk"
    zone.write_text("60000\n")
    assert aggregator.wait(PATIENCE_S) == 0, place.log(aggregator)
    assert agent.wait(PATIENCE_S) == other.wait(PATIENCE_S) == 0
    assert "of 40 steps are done and kept" in place.log(agent)
    assert not list(kept.glob("*/update-*.suspended"))


def test_the_second_agent_with_an_id_gives_way(place: Place) -> None:
    config = place.agent("one")
    first = place.start("agent", "-c", str(config))
    known = place.device_once_ready("one")
    shutil.copy(config, place.path / "copy.toml")
    text = (place.path / "copy.toml").read_text().replace("state-one", "state-copy")
    (place.path / "copy.toml").write_text(text)
    second = place.start("agent", "-c", "copy.toml")
    assert second.wait(PATIENCE_S) == 11
    assert f"process {first.pid}" in place.log(second)
    assert first.poll() is None
    after = place.device_once_ready("one")
    measured = ("measured_unix_s", "compute", "storage")
    assert [after["profile"][what] for what in measured] == [known["profile"][what] for what in measured], (
        "the newcomer, who had measured nothing, left no trace"
    )
    assert after["state"]["pid"] == first.pid


def test_a_member_that_does_not_sign_is_told_that_nobody_hears_it(place: Place) -> None:
    agent = place.start("agent", "-c", str(place.agent("one")))
    place.device_once_ready("one")
    announced = FederationFinished(run="0a1b2c3d", round=1, reason="over")
    signed = encode(announced)[:-1] + b',"signature":{"at_unix_s":1.0,"certificate":"","value":""}}'
    paho.mqtt.publish.single("edgefed/v1/test/round", signed, qos=1, retain=True, hostname="localhost", port=place.port)
    place.wait_for(agent, "set signed = true")
    assert "set signed = true" in place.device_once_ready("one")["state"]["note"]
    assert "the federation is over" not in place.log(agent)


def test_mistakes_are_told_in_words(place: Place) -> None:
    missing = place.start("agent", "-c", str(place.agent("missing", data="nowhere.jsonl")))
    wrong_port = place.agent("wrong")
    wrong_port.write_text(wrong_port.read_text().replace(f"port = {place.port}", "port = 1"))
    unreachable = place.start("agent", "--require-broker", "-c", str(wrong_port))
    broken = place.agent("broken")
    broken.write_text(broken.read_text().replace("max_rank = 4", 'max_rank = "four"'))
    refused = place.start("agent", "-c", str(broken))
    assert missing.wait(PATIENCE_S) == 4
    assert "nowhere.jsonl" in place.log(missing)
    assert unreachable.wait(PATIENCE_S) == 6
    assert "localhost:1" in place.log(unreachable)
    assert refused.wait(PATIENCE_S) == 3
    assert "limits.max_rank" in place.log(refused)
    for process in (missing, unreachable, refused):
        assert "Traceback" not in place.log(process)


def test_bad_data_and_another_model_keep_a_device_out_with_a_reason(place: Place) -> None:
    place.federation()
    (place.path / "bad.jsonl").write_text('{"dialogue": "a", "summary": "b"}\nnot json\n')
    other = place.path / "other-model"
    shutil.copytree(resolve_model("edgefed/tiny-t5"), other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "dropout_rate": 0.5}))
    place.start("aggregator", "-c", "federation.toml")
    bad = place.start("agent", "-c", str(place.agent("bad", data="bad.jsonl")))
    stranger = place.start(
        "agent", "-c", str(place.agent("stranger", more='[models]\n"edgefed/tiny-t5" = "other-model"'))
    )
    place.wait_for(bad, "bad.jsonl")
    assert "line 2" in place.log(bad) or ":2" in place.log(bad)
    place.wait_for(stranger, "is not the federation's 'edgefed/tiny-t5'")
    assert "other-model" in place.log(stranger)


async def test_why_its_examples_cannot_be_used_leaves_the_device_without_them(place: Place) -> None:
    """A CSV file without a header: what is taken for names of its fields is the first patient's."""
    place.federation()
    (place.path / "bad.csv").write_text("Ada has a cough,cough\nBob is well,well\n")
    place.start("aggregator", "-c", "federation.toml")
    heard = bytearray()

    async def listen(transport: Transport) -> None:
        async for event in transport.events():
            heard.extend(event.payload if isinstance(event, Message) else b"")
            if b'"decline"' in heard and b"round 1: its examples cannot be used" in heard:
                return

    async with connect_mqtt(MqttOptions("localhost", place.port, client_id="listener")) as transport:
        await transport.subscribe("edgefed/v1/test/device/bad/#")
        bad = place.start("agent", "-c", str(place.agent("bad", data="bad.csv")))
        await asyncio.wait_for(listen(transport), PATIENCE_S)
    assert b"Ada" not in heard
    place.wait_for(bad, "the fields are 'Ada has a cough', 'cough'")


def test_a_device_whose_privacy_budget_has_run_out_declines_and_says_so(place: Place) -> None:
    place.federation()
    federation = place.path / "federation.toml"
    text = federation.read_text().replace("quorum = 2", "quorum = 1").replace("rounds = 2", "rounds = 3")
    text = text.replace("expected_devices = 2", "gather_s = 2.0")
    federation.write_text(text + "[privacy]\nexample_noise_multiplier = 1.0\n")
    aggregator = place.start("aggregator", "-c", "federation.toml")
    thrifty = place.start("agent", "-c", str(place.agent("one", more="[privacy]\nmax_epsilon = 2.7\n")))
    place.wait_for(thrifty, "round 1: counted")  # ε of one round is 2.55, of two 2.95
    other = place.start("agent", "--once", "-c", str(place.agent("two", rank=2)))
    assert aggregator.wait(PATIENCE_S) == 0, place.log(aggregator)
    assert other.wait(PATIENCE_S) == 0, place.log(other)
    assert "the privacy budget has run out: with this round ε" in place.log(thrifty)
    assert "and the owner allows 2.7" in place.log(thrifty)
    spent = json.loads((place.path / "state-one" / "privacy.json").read_text())
    assert [[steps["steps"] for steps in run] for run in spent.values()] == [[2]]
    lines = [json.loads(line) for line in (place.path / "run" / "history.jsonl").read_text().splitlines()]
    trained = [line["devices"] for line in lines if line["kind"] == "train"]
    assert "one" not in trained[1]
    assert "one" not in trained[2]
    records = [devices["two"]["record"] for devices in trained if "two" in devices]
    epsilons = [record["epsilon"] for record in records]
    assert len(epsilons) >= 2
    assert epsilons == sorted(epsilons)
    assert all(0 < epsilon < 10 for epsilon in epsilons)
    assert all(record["delta"] == 1e-5 and record["loss_mean"] is None for record in records)
    assert "more or less" in records[0]["privacy_assumptions"]
    page = (place.path / "run" / "report.html").read_text()
    assert f"ε = {epsilons[-1]:.3g} at δ = 1e-05" in page
    assert "private training does not tell its loss" in page
