"""One trial: a federation, devices alone, or everything in one place, from the same start to the same number of steps.

A federation runs in this process on the code that devices and aggregator run: `lora_round.Rounds` trains from files to
a file, `LoraExchange` checks, merges and writes the next round's files. Nothing but the broker and the processes is
left out, and `over_broker.py` shows that these change nothing.
"""

from __future__ import annotations

import json
import random
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any, Literal

import msgspec
import torch

from benchmarks.aggregation_quality.corpora import Task, one_task, three_tasks
from edgefed.agent.options import Limits
from edgefed.agent.plan import parts_to_fetch, plan_round
from edgefed.aggregation.exchange import Delivered, MergedState
from edgefed.aggregation.lora_exchange import LoraExchange, state_adapter
from edgefed.aggregation.options import OptimizerName, ServerOptimizer
from edgefed.data.examples import Example
from edgefed.data.source import DataSource
from edgefed.protocol.messages.retained import RoundOpen
from edgefed.protocol.tasks import Aggregation, Evaluation, LoraMethod, ModelReference, SummarizationTask, Training
from edgefed.training.base_model import LoadedModel, load_base
from edgefed.training.evaluate import Model, summarise, token_loss, with_adapter
from edgefed.training.lora_round import Rounds
from edgefed.training.round_work import RoundWork, residual_beside
from edgefed.training.standalone import train_alone
from edgefed.training.summarization import rouge

__all__ = ["RANKS", "Federation", "Trial", "run_trial", "task_of", "write_rows"]

RANKS = (2, 2, 4, 4, 8, 8, 16, 32)
"""What each device's owner allows."""

ALL_LINEAR = ("q", "k", "v", "o", "wi_0", "wi_1", "wo")
BATCH = 4
Who = Aggregation | Literal["local_only", "centralized", "base"]


@dataclass(frozen=True, slots=True)
class Trial:
    """What is tried.

    Attributes:
        scenario: `section_header` and `dirichlet` split MTS-Dialog; `three_tasks` gives devices different data sets.
        who: a way to aggregate, or a baseline.
        seed: of the split, the factors and the batches.
        learning_rate: of the devices' AdamW.
        rounds: of the federation.
        local_steps: of every device in a round.
        optimizer: the server's.
        server_rate: its learning rate; null is its default.
        purpose: `compare`, `tune` the learning rate, or `sweep`.
    """

    scenario: Literal["section_header", "dirichlet", "three_tasks"]
    who: Who
    seed: int
    learning_rate: float
    rounds: int
    local_steps: int
    optimizer: OptimizerName = "averaging"
    server_rate: float | None = None
    purpose: Literal["compare", "tune", "sweep"] = "compare"

    @property
    def id(self) -> str:
        """A name that no other trial has."""
        return "/".join(f"{key}={value}" for key, value in asdict(self).items())

    @property
    def modules(self) -> Sequence[str]:
        """The adapted layers: attention's q and v, or everything where rank is meant to limit."""
        return ALL_LINEAR if self.scenario == "three_tasks" else ("q", "v")

    @property
    def text(self) -> SummarizationTask:
        """How texts become tokens."""
        return SummarizationTask(
            source="source", target="target", max_source_tokens=80, max_target_tokens=32, prompt="summarize: {source}"
        )

    @property
    def method(self) -> LoraMethod:
        """What is exchanged: fedit trains the rank that all devices can."""
        if self.who == "fedit":
            return LoraMethod(aggregation="fedit", ranks=[min(RANKS)], target_modules=list(self.modules))
        name: Aggregation = self.who if self.who not in ("local_only", "centralized", "base") else "delta"
        return LoraMethod(aggregation=name, ranks=sorted(set(RANKS)), target_modules=list(self.modules))

    @property
    def training(self) -> Training:
        """Local training of one round."""
        return Training(local_steps=self.local_steps, batch_size=BATCH, learning_rate=self.learning_rate)


def run_trial(trial: Trial, model: Path, data: Path) -> dict[str, Any]:
    """Return the trial's settings and what came out of it."""
    torch.set_num_threads(1)
    task = task_of(trial, data)
    started_s = time.monotonic()
    if trial.who == "base":
        result = _judged(load_base(model, "fp32", "cpu"), task, trial)
    elif trial.who == "local_only":
        result = _local_only(trial, task, model)
    elif trial.who == "centralized":
        result = _centralized(trial, task, model)
    else:
        with tempfile.TemporaryDirectory(prefix="edgefed-quality-") as directory:
            result = Federation(trial, task, model, Path(directory)).run()
    return asdict(trial) | result | {"seconds": round(time.monotonic() - started_s, 1)}


def task_of(trial: Trial, data: Path) -> Task:
    """Return what the devices of a trial have."""
    if trial.scenario == "three_tasks":
        return three_tasks(data, seed=trial.seed)
    return one_task(data, trial.scenario, len(RANKS), seed=trial.seed)


class Federation:
    """Rounds in one process, with files in between, all of them in `directory`."""

    def __init__(self, trial: Trial, task: Task, model: Path, directory: Path) -> None:
        self._trial, self._task = trial, task
        self._root = directory
        self._name = str(model)
        self._exchange = LoraExchange(
            trial.method,
            ServerOptimizer(name=trial.optimizer, learning_rate=trial.server_rate),
            model_path=model,
            model_name=self._name,
            seed=trial.seed,
        )
        self._rounds = Rounds()
        self._base = load_base(model, "fp32", "cpu")

    def run(self) -> dict[str, Any]:
        """Return losses by round and the final figures."""
        sources = [write_rows(self._root / f"device-{i}.jsonl", rows) for i, rows in enumerate(self._task.devices)]
        state = self._exchange.begin(self.state(0))
        curve: list[dict[str, float]] = []
        for round_ in range(1, self._trial.rounds + 1):
            delivered = [self._device(state, round_, device, source) for device, source in enumerate(sources)]
            state = self._exchange.merge(self.state(round_ - 1), delivered, round_, self.state(round_))
            if round_ < self._trial.rounds:
                with with_adapter(self._base, state_adapter(self.state(round_))) as model:
                    curve.append(_losses(model, self._task, self._trial, limit=48))
        with with_adapter(self._base, state_adapter(self.state(self._trial.rounds))) as model:
            judged = _judged(model, self._task, self._trial)
        return judged | {"curve": curve, "global_rank": state.manifest.rank, "norm": state.norm}

    def state(self, round_: int) -> Path:
        """Where the state after so many merged rounds lies."""
        return self._root / f"state-{round_}"

    def _device(self, state: MergedState, round_: int, device: int, source: DataSource) -> Delivered:
        """Train one device and return its update, checked as the aggregator checks it."""
        trial = self._trial
        announced = RoundOpen(
            run="quality",
            round=round_,
            rounds=trial.rounds,
            kind="train",
            model=ModelReference(name=self._name),
            task=trial.text,
            method=trial.method,
            training=trial.training,
            evaluation=Evaluation(every=0),
            evaluates=False,
            deadline_s=1e9,
            seed=trial.seed,
            manifest=state.manifest,
        )
        plan = plan_round(announced, Limits(max_rank=RANKS[device]))
        update, residual = (self._root / f"{kind}-{device}.safetensors" for kind in ("update", "residual"))
        work = RoundWork(
            announced=announced,
            device=f"device-{device}",
            data=source,
            models={},
            plan=plan,
            parts=[str(state.files[part.sha256]) for part in parts_to_fetch(state.manifest, plan)],
            output=str(update),
            residual=str(residual),
            threads=1,
            hardware="cpu",
        )
        record = self._rounds.run(work, lambda *_: None)
        self._exchange.check(update, plan, self.state(round_ - 1))
        residual_beside(update).replace(residual)  # every update counts here
        return Delivered(
            device=work.device,
            round=round_,
            weight=float(record.examples),
            rank=plan.rank,
            held_rank=plan.held_rank,
            update=update,
            start=self.state(round_ - 1),
        )


def write_rows(path: Path, rows: Sequence[Example]) -> DataSource:
    """Write a device's rows as JSON lines."""
    path.write_text("".join(json.dumps({"source": row.source, "target": row.target}) + "\n" for row in rows))
    return DataSource(path=str(path))


def _local_only(trial: Trial, task: Task, model: Path) -> dict[str, Any]:
    """Every device alone, on its own rows and at its own rank; figures are means over the devices."""
    base = load_base(model, "fp32", "cpu")
    scores = [
        _alone(trial, task, model, base, rows, rank, BATCH, trial.training)
        for rows, rank in zip(task.devices, RANKS, strict=True)
    ]
    keys = [key for key, value in scores[0].items() if isinstance(value, float)]
    return {key: mean(score[key] for score in scores) for key in keys} | {"devices": scores}


def _centralized(trial: Trial, task: Task, model: Path) -> dict[str, Any]:
    """All rows in one place, as many optimizer steps as a device took and as many examples as all of them."""
    rows = [row for device in task.devices for row in device]
    random.Random(trial.seed).shuffle(rows)
    batch = BATCH * len(task.devices)
    training = msgspec.structs.replace(trial.training, batch_size=batch, micro_batch_size=BATCH)
    return _alone(trial, task, model, load_base(model, "fp32", "cpu"), rows, max(RANKS), batch, training)


def _alone(
    trial: Trial,
    task: Task,
    path: Path,
    base: LoadedModel,
    rows: Sequence[Example],
    rank: int,
    batch: int,
    training: Training,
) -> dict[str, Any]:
    assert training.batch_size == batch
    model, _ = train_alone(
        base,
        path,
        rows,
        task=trial.text,
        method=trial.method,
        training=training,
        rank=rank,
        steps=trial.rounds * trial.local_steps,
        seed=trial.seed,
    )
    try:
        return _judged(model, task, trial)
    finally:
        model.remove()


def _losses(model: Model, task: Task, trial: Trial, *, limit: int) -> dict[str, float]:
    return {
        f"loss_{name}": token_loss(model, _share(rows, limit, len(task.validation)), trial.text)[0]
        for name, rows in task.validation.items()
    }


def _judged(model: Model, task: Task, trial: Trial) -> dict[str, Any]:
    """Return validation loss (nats per token) and ROUGE-L, each by data set and as the mean over data sets."""
    found: dict[str, Any] = _losses(model, task, trial, limit=100)
    if trial.purpose == "compare":
        for name, rows in task.validation.items():
            some = _share(rows, 48, len(task.validation))
            texts = summarise(model, [row.source for row in some], trial.text)
            found[f"rouge_l_{name}"] = rouge(texts, [row.target for row in some]).rouge_l
    return found | _means(found)


def _means(found: Mapping[str, float]) -> dict[str, float]:
    kinds = {"loss": "loss_", "rouge_l": "rouge_l_"}
    return {
        kind: mean(value for key, value in found.items() if key.startswith(prefix))
        for kind, prefix in kinds.items()
        if any(key.startswith(prefix) for key in found)
    }


def _share(rows: Sequence[Example], limit: int, data_sets: int) -> Sequence[Example]:
    """Return the first rows: as many as `limit` over all data sets, at least 30 of each."""
    return rows[: max(30, limit // data_sets)]
