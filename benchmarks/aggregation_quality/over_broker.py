"""Do processes and a broker change the result? `python -m benchmarks.aggregation_quality.over_broker`.

Runs a trial twice: in one process, as `run.py` does, and as a federation of real agents, each with its worker, around a
real Mosquitto. The final global adapters must be equal to the last bit.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.aggregation_quality.run import best_rates, read, without_dropout
from benchmarks.aggregation_quality.trials import RANKS, Federation, Trial, task_of, write_rows
from benchmarks.provenance import provenance
from edgefed.aggregation.lora_exchange import state_adapter
from edgefed.simulation.local_fleet import LocalFleet
from tools.mosquitto import running_mosquitto

HERE = Path(__file__).parent

_FEDERATION = """\
fleet = "quality"
rounds = {trial.rounds}
seed = {trial.seed}
directory = "run"
model.name = "{model}"

[task]
source = "source"
target = "target"
prompt = "{text.prompt}"
max_source_tokens = {text.max_source_tokens}
max_target_tokens = {text.max_target_tokens}

[method]
type = "lora"
aggregation = "{method.aggregation}"
ranks = {method.ranks}
target_modules = {modules}

[training]
local_steps = {trial.local_steps}
batch_size = {training.batch_size}
learning_rate = {trial.learning_rate}

[evaluation]
every = 0

[selection]
expected_devices = {devices}
quorum = {devices}
gather_s = 600
deadline_s = 7200

[broker]
port = {port}
"""

_AGENT = """\
device = "device-{number}"
fleet = "quality"
state = "state-{number}"
data.path = "device-{number}.jsonl"
limits = {{ max_rank = {rank}, threads = 1 }}
broker.port = {port}
"""


async def over_broker(trial: Trial, model: Path, data: Path, directory: Path) -> Path:
    """Return the directory of the final state of a federation of real processes."""
    task = task_of(trial, data)
    with running_mosquitto() as broker:
        text = _FEDERATION.format(
            trial=trial,
            model=model,
            text=trial.text,
            method=trial.method,
            modules=json.dumps(list(trial.modules)),
            training=trial.training,
            devices=len(RANKS),
            port=broker.port,
        )
        (directory / "federation.toml").write_text(text)
        async with LocalFleet(directory / "logs") as fleet:
            aggregator = await fleet.start("aggregator", ["aggregator", "--config", str(directory / "federation.toml")])
            for number, (rows, rank) in enumerate(zip(task.devices, RANKS, strict=True)):
                write_rows(directory / f"device-{number}.jsonl", rows)
                agent = directory / f"agent-{number}.toml"
                agent.write_text(_AGENT.format(number=number, rank=rank, port=broker.port))
                await fleet.start(f"device-{number}", ["-v", "agent", "--once", "--config", str(agent)])
            if await aggregator.wait():
                raise RuntimeError(f"the aggregator failed:\n{fleet.last_words('aggregator')}")
    return directory / "run" / "global" / str(trial.rounds)


def compare(trial: Trial, model: Path, data: Path) -> dict[str, Any]:
    """Return whether both ways end in the same adapter, and the seconds of each."""
    with tempfile.TemporaryDirectory(prefix="edgefed-quality-") as scratch:
        alone = Path(scratch) / "alone"
        alone.mkdir()
        started_s = time.monotonic()
        federation = Federation(trial, task_of(trial, data), model, alone)
        found = federation.run()
        middle_s = time.monotonic()
        brokered = Path(scratch) / "brokered"
        brokered.mkdir()
        state = asyncio.run(over_broker(trial, model, data, brokered))
        ended_s = time.monotonic()
        ours, theirs = state_adapter(federation.state(trial.rounds)), state_adapter(state)
        equal = ours.keys() == theirs.keys() and all(
            one.left.tobytes() == theirs[name].left.tobytes() and one.right.tobytes() == theirs[name].right.tobytes()
            for name, one in ours.items()
        )
    return {
        "trial": trial.id,
        "loss": found["loss"],
        "adapters_equal_to_the_last_bit": equal,
        "one_process_s": round(middle_s - started_s, 1),
        "processes_and_mosquitto_s": round(ended_s - middle_s, 1),
    }


def main() -> None:
    """Run one trial of a truncated and one of a frozen method both ways."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="directory that pretrain.py made")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="with the three data sets")
    parser.add_argument("--trials", type=Path, default=HERE / "results" / "trials.jsonl", help="for learning rates")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "over_broker.json")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--who", nargs="+", default=["delta", "frozen_global"])
    options = parser.parse_args()
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
    rates = best_rates(read(options.trials))
    with tempfile.TemporaryDirectory(prefix="edgefed-quality-") as directory:
        model = without_dropout(options.model, Path(directory))
        trials = [Trial("dirichlet", who, 0, rates[who], options.rounds, 6) for who in options.who]
        # torch must start with one thread, as the workers do: setting it later changes the last bits
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            results = pool.starmap(compare, [(trial, model, options.data.resolve()) for trial in trials])
    options.output.write_text(json.dumps({"provenance": provenance(), "results": results}, indent=2) + "\n")
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
