"""What privacy costs: loss of a federation against ε, and the time of a private step over a plain one.

    python -m benchmarks.privacy.run --threads 1

The federation runs in this process on the code that devices and aggregator run, on the tiny T5 and the dialogues that
the package ships: from files to files, without the broker.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.provenance import provenance
from edgefed.aggregation.exchange import Delivered, MergedState
from edgefed.aggregation.lora_exchange import LoraExchange, state_adapter
from edgefed.aggregation.options import ClientPrivacy, ServerOptimizer
from edgefed.data.examples import read_examples
from edgefed.data.source import DataSource
from edgefed.models.checkpoint import linear_shapes
from edgefed.models.finding import resolve_model
from edgefed.protocol.messages.manifest import Plan
from edgefed.protocol.messages.retained import RoundOpen
from edgefed.protocol.tasks import Evaluation, LoraMethod, ModelReference, Privacy, SummarizationTask, Training
from edgefed.training.accounting import epsilon_of
from edgefed.training.adapters import install
from edgefed.training.base_model import load_base
from edgefed.training.evaluate import token_loss, with_adapter
from edgefed.training.loop import train
from edgefed.training.lora_round import Rounds
from edgefed.training.options import ExamplePrivacy, LoraOptions, TrainOptions, sample_rate
from edgefed.training.privacy_budget import SpentSteps
from edgefed.training.round_work import RoundWork

MODEL = "edgefed/tiny-t5"
DIALOGUES = Path(str(resources.files("edgefed.assets"))) / "dialogues"
TASK = SummarizationTask(max_source_tokens=96, max_target_tokens=32)
RANK, DEVICES, STEPS, BATCH = 4, 4, 8, 16
METHOD = LoraMethod(ranks=[RANK])
DELTA = 1e-5


@dataclass(frozen=True, slots=True)
class Setting:
    """One federation: noise on the devices, noise at the aggregator, or neither."""

    example_noise: float = 0.0
    example_clip: float = 1.0
    client_noise: float = 0.0
    client_clip: float = 1.0
    learning_rate: float = 5e-3


SETTINGS = (
    Setting(),
    *(Setting(example_noise=noise) for noise in (0.5, 1.0, 2.0, 4.0)),
    Setting(client_noise=0.2, client_clip=1.0),
    Setting(client_noise=1.0, client_clip=1.0),
    Setting(client_noise=1.0, client_clip=0.1),
)


class Federation:
    """Rounds of one setting, with files in between."""

    def __init__(self, setting: Setting, seed: int, rounds: int, root: Path) -> None:
        self._setting, self._seed, self._count, self._root = setting, seed, rounds, root
        self._model = resolve_model(MODEL)
        self._exchange = LoraExchange(
            METHOD,
            ServerOptimizer(),
            model_path=self._model,
            model_name=MODEL,
            seed=seed,
            privacy=ClientPrivacy(noise_multiplier=setting.client_noise, clip_norm=setting.client_clip),
        )
        self._rounds = Rounds()
        rows = (DIALOGUES / "train.jsonl").read_text().splitlines()
        self._examples = len(rows) // DEVICES
        for device in range(DEVICES):
            (root / f"{device}.jsonl").write_text("\n".join(rows[device::DEVICES][: self._examples]) + "\n")

    def run(self) -> dict[str, Any]:
        """Returns the loss of the shipped held-out dialogues before and after, and what it cost in ε."""
        base = load_base(self._model, "fp32", "cpu")
        held_out = read_examples(DIALOGUES / "held_out.jsonl", source_field="dialogue", target_field="summary")[:96]
        before = token_loss(base, held_out, TASK)[0]
        state = self._exchange.begin(self._root / "state-0")
        for round_ in range(1, self._count + 1):
            delivered = [self._device(state, round_, device) for device in range(DEVICES)]
            start, end = self._root / f"state-{round_ - 1}", self._root / f"state-{round_}"
            state = self._exchange.merge(start, delivered, round_, end)
        with with_adapter(base, state_adapter(self._root / f"state-{self._count}")) as model:
            after = token_loss(model, held_out, TASK)[0]
        return {**asdict(self._setting), "seed": self._seed, "before": before, "after": after, **self._epsilons()}

    def _epsilons(self) -> dict[str, float | None]:
        setting = self._setting
        rate = sample_rate(BATCH, self._examples)
        example = client = None
        if setting.example_noise:
            steps = STEPS * self._count
            spent = SpentSteps(noise_multiplier=setting.example_noise, sample_rate=rate, steps=steps)
            example = epsilon_of([spent], DELTA)
        if setting.client_noise:
            client = ClientPrivacy(noise_multiplier=setting.client_noise, delta=DELTA).epsilon(self._count)
        return {"example_epsilon": example, "client_epsilon": client}

    def _device(self, state: MergedState, round_: int, device: int) -> Delivered:
        setting, update = self._setting, self._root / f"update-{device}.safetensors"
        held = min(RANK, state.manifest.rank)
        announced = RoundOpen(
            run="privacy",
            round=round_,
            rounds=self._count,
            kind="train",
            model=ModelReference(name=MODEL),
            task=TASK,
            method=METHOD,
            training=Training(local_steps=STEPS, batch_size=BATCH, learning_rate=setting.learning_rate),
            evaluation=Evaluation(every=0),
            evaluates=False,
            deadline_s=1e9,
            privacy=Privacy(example_noise_multiplier=setting.example_noise, example_clip_norm=setting.example_clip),
            seed=self._seed,
            manifest=state.manifest,
        )
        work = RoundWork(
            announced=announced,
            device=f"device-{device}",
            data=DataSource(path=str(self._root / f"{device}.jsonl")),
            models={},
            plan=Plan(rank=RANK, held_rank=held, quantization="fp32"),
            parts=[str(state.files[part.sha256]) for part in state.manifest.parts],
            output=str(update),
            residual=str(self._root / f"residual-{device}"),
            hardware="cpu",
        )
        self._rounds.run(work, lambda *_: None)
        start = self._root / f"state-{round_ - 1}"
        self._exchange.check(update, work.plan)
        kept = update.rename(update.with_name(f"{round_}-{update.name}"))
        return Delivered(work.device, round=round_, weight=1.0, rank=RANK, held_rank=held, update=kept, start=start)


def step_times(turns: int) -> dict[str, Any]:
    """Returns ratios of a private step's seconds over a plain one's, in turns that change who goes first."""
    model_path = resolve_model(MODEL)
    examples = read_examples(DIALOGUES / "train.jsonl", source_field="dialogue", target_field="summary")
    base = load_base(model_path, "fp32", "cpu")
    model = install(base, list(linear_shapes(model_path, ["q", "v"])), LoraOptions(rank=RANK), seed=0)
    ways = {
        "plain": TrainOptions(steps=3, batch_size=BATCH),
        "private": TrainOptions(steps=3, batch_size=BATCH, privacy=ExamplePrivacy(1.0)),
        "one_by_one": TrainOptions(steps=3, batch_size=BATCH, privacy=ExamplePrivacy(1.0), gradient_checkpointing=True),
        "plain_checkpointed": TrainOptions(steps=3, batch_size=BATCH, gradient_checkpointing=True),
    }
    # As many examples as a batch: a private step then takes them all, every time, and both sides do the same work.
    some = examples[:BATCH]
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in _turns(list(ways), turns):
        for name in turn:
            started_s = time.perf_counter()
            train(model, some, TASK, ways[name])
            seconds[name].append((time.perf_counter() - started_s) / 3)
    of = {name: [one / plain for one, plain in zip(seconds[name], seconds["plain"], strict=True)] for name in ways}
    checkpointed = [a / b for a, b in zip(seconds["one_by_one"], seconds["plain_checkpointed"], strict=True)]
    return {
        "batch": BATCH,
        "median_step_s": {name: median(values) for name, values in seconds.items()},
        "over_plain": {name: median(values) for name, values in of.items()},
        "one_by_one_over_plain_checkpointed": median(checkpointed),
        "turns": turns,
    }


def _turns(names: list[str], turns: int) -> Iterator[list[str]]:
    for turn in range(turns + 1):
        order = names if turn % 2 else names[::-1]
        yield order


def main() -> None:
    """Measures everything and writes one file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "cpu.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    trials = []
    for seed in range(options.seeds):
        for setting in SETTINGS:
            with tempfile.TemporaryDirectory(prefix="edgefed-privacy-") as directory:
                trials.append(Federation(setting, seed, options.rounds, Path(directory)).run())
            print(json.dumps(trials[-1]), flush=True)
    result = {
        **provenance(),
        "load_average": os.getloadavg(),
        "config": {
            "devices": DEVICES,
            "steps": STEPS,
            "batch": BATCH,
            "rank": RANK,
            "delta": DELTA,
            "threads": options.threads,
            "rounds": options.rounds,
            "seeds": options.seeds,
        },
        "trials": trials,
        "step_time": step_times(options.turns),
    }
    print(json.dumps(result["step_time"], indent=2))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
