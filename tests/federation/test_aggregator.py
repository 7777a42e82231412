"""The aggregator as a real process on a real Mosquitto, with stand-in devices: what it does, and what it refuses."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edgefed.errors import FederationFailed
from edgefed.files import temporary_beside
from edgefed.lora.low_rank import LowRank
from edgefed.lora.peft_files import read_peft
from edgefed.protocol.messages.retained import AggregatorState
from edgefed.protocol.messages.up import UpdateOffer
from edgefed.protocol.messages.wire import encode
from edgefed.protocol.topics import Topics
from edgefed.transport.mqtt import MqttOptions, connect_mqtt
from tests.federation.stand_in import FLEET, StandIn, federation_toml, make_paper_model
from tools.mosquitto import RunningMosquitto

pytestmark = pytest.mark.broker
PATIENCE_S = 60


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_paper_model(tmp_path / "model")


class Run:
    """An aggregator process and where it works."""

    def __init__(self, tmp_path: Path, toml: str) -> None:
        self.directory = tmp_path / "run"
        self.config = tmp_path / "federation.toml"
        self.config.write_text(toml)
        self.log = tmp_path / "aggregator.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *options: str, **environment: str) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "edgefed", "-v", "aggregator", "--config", str(self.config), *options],
                stdout=log,
                stderr=log,
                env={**os.environ, **environment},
            )
        return self.process

    def history(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in (self.directory / "history.jsonl").read_text().splitlines()]

    def end(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
        if self.process is not None:
            self.process.wait(PATIENCE_S)


@contextlib.contextmanager
def running(tmp_path: Path, toml: str) -> Iterator[Run]:
    run = Run(tmp_path, toml)
    run.start()
    try:
        yield run
    finally:
        run.end()


def finish(run: Run, devices: Sequence[StandIn]) -> None:
    """Lets the devices take part until the end, and the aggregator end by itself."""

    async def all_of_them() -> None:
        await asyncio.wait_for(asyncio.gather(*(device.take_part() for device in devices)), PATIENCE_S)

    asyncio.run(all_of_them())
    assert run.process is not None
    assert run.process.wait(PATIENCE_S) == 0, run.log.read_text()


def devices(model: Path, scratch: Path, port: int, count: int = 3) -> list[StandIn]:
    return [StandIn(f"dev-{i}", model, scratch, port, rank=(2, 4)[i % 2], examples=10 + i) for i in range(count)]


def test_a_federation_ends_with_an_adapter_and_a_history(
    tmp_path: Path, model: Path, mosquitto: RunningMosquitto
) -> None:
    toml = federation_toml(model, tmp_path / "run", mosquitto.port, selection="expected_devices = 3\n")
    left_over = temporary_beside(tmp_path / "run" / "history.jsonl")
    left_over.parent.mkdir()
    left_over.write_text("half a line")
    with running(tmp_path, toml) as run:
        fleet = devices(model, tmp_path, mosquitto.port)
        finish(run, fleet)
    assert not left_over.exists()
    for device in fleet:
        assert [word.outcome for word in device.acknowledged] == ["counted"] * 4  # three rounds and the evaluation
        assert device.finished is not None
    adapter, base = read_peft(run.directory / "adapter")
    assert base == str(model)
    assert {matrix.rank for matrix in adapter.values()} == {4}
    lines = run.history()
    assert [line["round"] for line in lines] == [1, 2, 3, 4]
    assert lines[0]["devices"]["dev-1"]["weight"] == pytest.approx(11 / 33)  # type: ignore[index]
    assert lines[3]["loss_before"] == pytest.approx(0.5)
    assert (run.directory / "adapter-best").is_dir()


def test_a_federation_that_has_diverged_for_good_ends_with_a_word_and_its_best_adapter(
    tmp_path: Path, model: Path, mosquitto: RunningMosquitto
) -> None:
    def worse(offer: UpdateOffer) -> UpdateOffer:
        assert offer.record.evaluation is not None
        loss = 50.0 if offer.round == 3 else 1.0 / offer.round
        evaluation = msgspec.structs.replace(offer.record.evaluation, loss=loss)
        return msgspec.structs.replace(offer, record=msgspec.structs.replace(offer.record, evaluation=evaluation))

    divergence = 'keepalive_s = 5\n[divergence]\naction = "stop"\n'
    toml = federation_toml(
        model, tmp_path / "run", mosquitto.port, selection="expected_devices = 3\n", broker=divergence
    )
    with running(tmp_path, toml) as run:
        fleet = devices(model, tmp_path, mosquitto.port)
        for device in fleet:
            device.offer_edit = worse

        async def all_of_them() -> None:
            await asyncio.wait_for(asyncio.gather(*(device.take_part() for device in fleet)), PATIENCE_S)

        asyncio.run(all_of_them())
        for _ in range(2):  # started again, it has nothing else to say
            assert run.process is not None
            assert run.process.wait(PATIENCE_S) == FederationFailed.exit_code, run.log.read_text()
            said = run.log.read_text().splitlines()[-1]
            assert said.startswith("edgefed: the federation has failed: round 3 failed: the adapter has diverged"), said
            run.start()
        run.process.wait(PATIENCE_S)
    assert "round 3" in (run.directory / "report.html").read_text()
    kept = run.directory / "global" / "1"  # evaluated in round 2, and better than what came before
    assert read_peft(run.directory / "adapter")[0].keys() == read_peft(run.directory / "adapter-best")[0].keys()
    assert kept.is_dir()
    adapters = [
        (run.directory / name / "adapter_model.safetensors").read_bytes() for name in ("adapter", "adapter-best")
    ]
    assert adapters[0] == adapters[1]


def test_adapters_come_out_of_a_run_at_any_rank_and_of_any_kept_round(
    tmp_path: Path, model: Path, mosquitto: RunningMosquitto
) -> None:
    def export(*options: str) -> subprocess.CompletedProcess[str]:
        command = [
            sys.executable,
            "-m",
            "edgefed",
            "export",
            str(run.directory),
            "-o",
            str(tmp_path / "out"),
            "--force",
        ]
        return subprocess.run([*command, *options], capture_output=True, text=True, check=False)

    toml = federation_toml(model, tmp_path / "run", mosquitto.port, selection="expected_devices = 3\n")
    while_running: list[subprocess.CompletedProcess[str]] = []

    def on_accepted(announced: object) -> None:
        if announced.round == 3 and not while_running:  # type: ignore[attr-defined]
            while_running.append(export("--round", "last"))

    with running(tmp_path, toml) as run:
        fleet = devices(model, tmp_path, mosquitto.port)

        async def all_of_them() -> None:
            parts = (device.take_part(on_accepted=on_accepted) for device in fleet)
            await asyncio.wait_for(asyncio.gather(*parts), PATIENCE_S)

        asyncio.run(all_of_them())
        assert run.process is not None
        assert run.process.wait(PATIENCE_S) == 0, run.log.read_text()
    assert while_running[0].stdout.endswith(f": rank 4 after 2 rounds, for {model}\n"), while_running[0].stderr

    before = sorted(run.directory.iterdir())
    assert export().stdout.endswith(f": rank 4 after 3 rounds (evaluated loss 0.5000 at rank 4), for {model}\n")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "out" / name).read_bytes() == (run.directory / "adapter-best" / name).read_bytes()
    assert export("--rank", "1", "--round", "best").returncode == 0
    whole, small = read_peft(run.directory / "adapter-best")[0], read_peft(tmp_path / "out")[0]
    for module, matrix in small.items():
        assert matrix.rank == 1
        np.testing.assert_allclose(matrix.dense(), whole[module].compressed(1).dense(), atol=1e-5)
    assert sorted(run.directory.iterdir()) == before, "reading leaves nothing behind"

    too_much = export("--rank", "5")
    assert (too_much.returncode, too_much.stderr) == (8, "edgefed: rank 5 is more than the adapter has: it has 4\n")
    gone = export("--round", "9")
    kept = ", ".join(
        sorted(path.name for path in (run.directory / "global").iterdir() if path.name.isdecimal() and path.name != "0")
    )
    assert gone.returncode == 8
    assert gone.stderr == f"edgefed: {run.directory} has no adapter after 9 rounds; it has those after: {kept}\n"


def test_a_kill_in_every_round_changes_no_bit_of_the_result(
    tmp_path: Path, model: Path, mosquitto: RunningMosquitto
) -> None:
    def result(name: str, *, kills: bool) -> bytes:
        directory = tmp_path / name
        directory.mkdir()
        toml = federation_toml(model, directory / "run", mosquitto.port, selection="expected_devices = 3\n")
        with running(directory, toml) as run:
            fleet = devices(model, directory, mosquitto.port)
            killed: set[int] = set()

            async def kill_once_per_round(round_: int) -> None:
                if kills and round_ not in killed:
                    killed.add(round_)
                    assert run.process is not None
                    run.process.send_signal(signal.SIGKILL)
                    await asyncio.to_thread(run.process.wait)
                    run.start()

            async def main() -> None:
                waiting: list[asyncio.Task[None]] = []

                def on_accepted(announced: object) -> None:
                    waiting.append(asyncio.ensure_future(kill_once_per_round(announced.round)))  # type: ignore[attr-defined]

                await asyncio.wait_for(
                    asyncio.gather(*(device.take_part(on_accepted=on_accepted) for device in fleet)), PATIENCE_S
                )
                await asyncio.gather(*waiting)

            asyncio.run(main())
            assert run.process is not None
            assert run.process.wait(PATIENCE_S) == 0, run.log.read_text()
            assert len(killed) == (4 if kills else 0)
        for line in run.history()[:3]:
            assert sorted(line["devices"]) == ["dev-0", "dev-1", "dev-2"]  # type: ignore[call-overload]
        return (run.directory / "adapter" / "adapter_model.safetensors").read_bytes()

    assert result("killed", kills=True) == result("undisturbed", kills=False)


def poisoned(adapter: dict[str, LowRank]) -> dict[str, LowRank]:
    # fp32 files are written from finite values only, so the NaN goes in by the back door
    module, matrix = next(iter(adapter.items()))
    return {**adapter, module: LowRank(matrix.left * np.float32(1e38) * np.float32(1e38), matrix.right)}


def cut_short(adapter: dict[str, LowRank]) -> dict[str, LowRank]:
    return {module: LowRank(matrix.left[:-1], matrix.right) for module, matrix in adapter.items()}


def one_missing(adapter: dict[str, LowRank]) -> dict[str, LowRank]:
    return dict(list(adapter.items())[1:])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"edit": cut_short}, "shape"),
        ({"edit": one_missing}, "missing"),
        ({"rank": 3}, "rank 3 is not allowed"),
        ({"write_raw": b"not an adapter at all"}, "safetensors"),
        ({"write_raw": "nan"}, "finite"),
        (
            {
                "offer_edit": lambda offer: msgspec.structs.replace(
                    offer, plan=msgspec.structs.replace(offer.plan, rank=4)
                )
            },
            "announced",
        ),
        ({"offer_edit": lambda offer: msgspec.structs.replace(offer, size_bytes=10**12)}, "over the limit"),
    ],
    ids=["shape", "module", "rank", "garbage", "nan", "another-rank", "too-large"],
)
def test_a_bad_update_is_rejected_with_its_reason_and_the_others_go_on(
    tmp_path: Path, model: Path, mosquitto: RunningMosquitto, change: dict[str, object], reason: str
) -> None:
    toml = federation_toml(
        model, tmp_path / "run", mosquitto.port, selection="expected_devices = 3\nquorum = 2\n", top=""
    ).replace("rounds = 3", "rounds = 1")
    if change.get("write_raw") == "nan":
        change = {"write_raw": nan_file(tmp_path, model)}
    with running(tmp_path, toml) as run:
        fleet = devices(model, tmp_path, mosquitto.port)
        for name, value in change.items():
            setattr(fleet[0], name, value)
        finish(run, fleet)
    assert fleet[0].acknowledged[0].outcome == "rejected"
    assert reason in fleet[0].acknowledged[0].reason
    (line,) = [line for line in run.history() if line["round"] == 1]
    assert sorted(line["devices"]) == ["dev-1", "dev-2"]  # type: ignore[call-overload]
    assert line["refused"][0]["device"] == "dev-0"  # type: ignore[index]


def nan_file(directory: Path, model: Path) -> bytes:
    """An otherwise good update of rank 2 with a NaN in it, which our own writer would refuse to make."""
    from edgefed.lora.files import write_adapter
    from edgefed.models.checkpoint import linear_shapes

    shapes = linear_shapes(model, ["q", "v"])
    ones = {name: LowRank(np.ones((m, 2), "f4"), np.ones((2, n), "f4")) for name, (m, n) in shapes.items()}
    path = directory / "nan.safetensors"
    write_adapter(path, ones, precision="fp32")
    content = bytearray(path.read_bytes())
    content[-4:] = np.float32("nan").tobytes()
    return bytes(content)


def test_a_device_with_another_base_model_is_refused_with_both_names(
    tmp_path: Path, model: Path, mosquitto: RunningMosquitto
) -> None:
    toml = federation_toml(model, tmp_path / "run", mosquitto.port, selection="expected_devices = 2\n").replace(
        "rounds = 3", "rounds = 1"
    )
    other = make_paper_model(tmp_path / "another-model", seed=5)
    with running(tmp_path, toml) as run:
        fleet = devices(model, tmp_path, mosquitto.port, count=2)
        stranger = StandIn("stranger", other, tmp_path, mosquitto.port)
        finish(run, [*fleet, stranger])
    assert not stranger.acknowledged
    assert "another-model" in stranger.refused[0]
    assert str(model) in stranger.refused[0]


def test_the_second_aggregator_of_a_run_is_refused(tmp_path: Path, model: Path, mosquitto: RunningMosquitto) -> None:
    toml = federation_toml(model, tmp_path / "run", mosquitto.port)
    with running(tmp_path, toml) as run:
        while not (run.directory / "store.sqlite").is_file():
            assert run.process is not None
            assert run.process.poll() is None, run.log.read_text()
            os.sched_yield()
        second = subprocess.run(
            [sys.executable, "-m", "edgefed", "aggregator", "--config", str(run.config)],
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
    assert second.returncode == 9
    assert "another aggregator" in second.stderr


def test_settings_that_changed_under_a_run_are_named(tmp_path: Path, model: Path, mosquitto: RunningMosquitto) -> None:
    selection = "expected_devices = 2\n"
    toml = federation_toml(model, tmp_path / "run", mosquitto.port, selection=selection).replace("= 3", "= 1", 1)
    with running(tmp_path, toml) as run:
        finish(run, devices(model, tmp_path, mosquitto.port, count=2))
    run.config.write_text(toml.replace("ranks = [2, 4]", "ranks = [2]"))
    again = run.start()
    assert again.wait(PATIENCE_S) == 9
    assert "method" in run.log.read_text().splitlines()[-1]


def test_totals_go_on_where_an_earlier_process_left_them(
    tmp_path: Path, model: Path, mosquitto: RunningMosquitto
) -> None:
    selection = "expected_devices = 2\n"
    toml = federation_toml(model, tmp_path / "run", mosquitto.port, selection=selection).replace("= 3", "= 2", 1)
    with running(tmp_path, toml) as run:
        finish(run, devices(model, tmp_path, mosquitto.port, count=2))
        run.log.write_text("")
        assert run.start("--json").wait(PATIENCE_S) == 0, run.log.read_text()
    states = [json.loads(line) for line in run.log.read_text().splitlines() if line.startswith("{")]
    rounds = [line for line in run.history() if line["kind"] == "train"]
    received, sent = ([int(str(line[f"{what}_bytes"])) for line in rounds] for what in ("received", "broadcast"))
    assert len(rounds) == 2
    assert min(received) > 0
    assert {(state["received_bytes"], state["broadcast_bytes"]) for state in states} == {(sum(received), sum(sent))}


def test_its_log_as_json_says_every_state_and_what_devices_said(
    tmp_path: Path, model: Path, mosquitto: RunningMosquitto
) -> None:
    evil = "\x1b[2J\nERROR forged\x9b"
    selection = "expected_devices = 2\n"
    toml = federation_toml(model, tmp_path / "run", mosquitto.port, selection=selection).replace("= 3", "= 1", 1)
    run = Run(tmp_path, toml)
    try:
        run.start("--log-json")
        pair = devices(model, tmp_path, mosquitto.port, count=2)
        pair[1].offer_edit = lambda offer: msgspec.structs.replace(offer, model=evil, fingerprint="0" * 64)
        finish(run, pair)
    finally:
        run.end()
    *lines, farewell = run.log.read_text().split("\n")[:-1]
    assert all(line.isprintable() for line in lines)
    assert "the adapter is in" in farewell, "which stdout says"
    entries = [json.loads(line) for line in lines]
    warnings = [entry for entry in entries if entry["level"] == "WARNING"]
    (rejected,) = [entry["fields"] for entry in warnings if "update of round 1 rejected" in entry["message"]]
    assert (rejected["device"], rejected["round"]) == ("dev-1", 1)
    assert repr(evil) in rejected["reason"]
    states = [entry["fields"] for entry in entries if entry["logger"] == "edgefed.cli.aggregator"]
    assert {state["phase"] for state in states} >= {"gathering", "finished"}
    opened = [entry["message"] for entry in entries if entry["message"].endswith("is open")]
    assert opened == ["round 1 of 1 is open", "the final evaluation is open"]


def test_no_broker_is_said_in_words(tmp_path: Path, model: Path) -> None:
    (tmp_path / "federation.toml").write_text(federation_toml(model, tmp_path / "run", 1))
    arguments = ["aggregator", "--require-broker", "--config", str(tmp_path / "federation.toml")]
    result = subprocess.run(
        [sys.executable, "-m", "edgefed", *arguments], capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert result.returncode == 6
    assert "localhost:1" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_private_federation_ends_in_order_when_its_budget_has_run_out(
    tmp_path: Path, model: Path, mosquitto: RunningMosquitto
) -> None:
    toml = federation_toml(
        model,
        tmp_path / "run",
        mosquitto.port,
        selection='expected_devices = 2\nquorum = 2\nlate = "drop"\n',
    )
    toml += "[client_privacy]\nnoise_multiplier = 4.0\nmax_epsilon = 1.5\n"  # one round 0.93, two 1.36, three 1.7
    with running(tmp_path, toml) as run:
        devices = [StandIn(name, model, tmp_path, mosquitto.port, examples=9**at) for at, name in enumerate("ab", 1)]
        finish(run, devices)
    reason = "the privacy budget has run out: ε of devices is 1.36 (δ = 1e-05), another round could make it 1.7"
    assert devices[0].finished is not None
    assert devices[0].finished.reason.startswith(reason)
    lines = [line for line in run.history() if line["kind"] == "train"]
    assert len(lines) == 2, "of three rounds"
    assert [round(line["epsilon"], 3) for line in lines] == [0.926, 1.356]  # type: ignore[call-overload]
    assert "aggregator is trusted" in str(lines[-1]["privacy_assumptions"])
    assert {device["weight"] for line in lines for device in line["devices"].values()} == {0.5}  # type: ignore[attr-defined]
    assert read_peft(run.directory / "adapter")[1] == str(model)
    assert "Privacy of devices: ε = 1.36 at δ = 1e-05" in (run.directory / "report.html").read_text()


@pytest.mark.parametrize(
    ("tables", "more", "noise", "said"),
    [
        ({"method": 'aggregation = "flexlora"\n'}, "", 4.0, "take delta or frozen_global, or leave client_privacy out"),
        ({}, "[aggregator]\nmerge_memory_bytes = 100000000\n", 4.0, "do not go together"),
        (
            {},
            "[robustness]\nmax_examples = 100\n",
            4.0,
            "client_privacy and robustness.max_examples do not go together",
        ),
        ({}, "", 0.1, "below 0.2 ε says nothing"),
        ({"selection": 'late = "discount"\n'}, "", 4.0, 'client_privacy needs selection.late = "drop"'),
    ],
)
def test_privacy_that_could_not_be_kept_is_refused_at_once(
    tmp_path: Path, model: Path, mosquitto: RunningMosquitto, tables: dict[str, str], more: str, noise: float, said: str
) -> None:
    tables = {"selection": 'late = "drop"\n', **tables}
    toml = federation_toml(model, tmp_path / "run", mosquitto.port, **tables) + more
    with running(tmp_path, toml + f"[client_privacy]\nnoise_multiplier = {noise}\n") as run:
        assert run.process is not None
        assert run.process.wait(PATIENCE_S) == 3
        assert said in run.log.read_text()


def test_a_second_aggregator_of_a_fleet_gives_way_and_the_first_goes_on(
    tmp_path: Path, model: Path, mosquitto: RunningMosquitto
) -> None:
    """Another run, in another directory, on the same broker: no lock on a file can tell."""
    first = federation_toml(model, tmp_path / "run", mosquitto.port, selection="expected_devices = 3\n")
    (tmp_path / "other").mkdir()
    other = Run(tmp_path / "other", first.replace(str(tmp_path / "run"), str(tmp_path / "other" / "run")))
    with running(tmp_path, first) as run:
        fleet = devices(model, tmp_path, mosquitto.port)
        refused: list[int] = []

        def on_accepted(announced: object) -> None:
            if not refused:
                refused.append(other.start().wait(PATIENCE_S))

        async def all_of_them() -> None:
            parts = (device.take_part(on_accepted=on_accepted) for device in fleet)
            await asyncio.wait_for(asyncio.gather(*parts), PATIENCE_S)

        asyncio.run(all_of_them())
        assert run.process is not None
        assert run.process.wait(PATIENCE_S) == 0, run.log.read_text()
    assert refused == [14], other.log.read_text()
    assert "serves fleet 'test'" in other.log.read_text()
    assert [sorted(line["devices"]) for line in run.history()] == [["dev-0", "dev-1", "dev-2"]] * 4  # type: ignore[call-overload]


def test_what_the_broker_kept_of_a_dead_aggregator_of_another_run_does_not_shut_out_a_new_one(
    tmp_path: Path, model: Path, mosquitto: RunningMosquitto
) -> None:
    """As after a power cut on the machine of both: nobody published the will."""
    dead = AggregatorState(status="online", instance="dead", run="another", round=2)

    async def leave_behind() -> None:
        options = MqttOptions("127.0.0.1", mosquitto.port, client_id="dead", session_expiry_s=0)
        async with connect_mqtt(options) as transport:
            await transport.publish(Topics(FLEET).aggregator_state, encode(dead), retain=True)

    asyncio.run(leave_behind())
    toml = federation_toml(model, tmp_path / "run", mosquitto.port, selection="expected_devices = 2\n")
    with running(tmp_path, toml.replace("rounds = 3", "rounds = 1")) as run:
        finish(run, devices(model, tmp_path, mosquitto.port, count=2))
