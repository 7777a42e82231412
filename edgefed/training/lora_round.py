"""A device's share of a LoRA round: put the global adapter in, evaluate it, train, write the update."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import msgspec
import torch

from edgefed.data.examples import Example, read_examples
from edgefed.data.source import DataSource, hold_back
from edgefed.errors import AdapterError, DataError
from edgefed.lora.adapters import Adapter, adapter_rank, levelled, truncated
from edgefed.lora.files import join_layers, read_adapter, write_adapter
from edgefed.lora.low_rank import LowRank
from edgefed.models.checkpoint import linear_shapes
from edgefed.models.finding import resolve_model
from edgefed.protocol.messages.retained import RoundOpen
from edgefed.protocol.records import MAX_STEP_RECORDS, EvaluationRecord, RoundRecord, StepRecord
from edgefed.protocol.tasks import Privacy, SummarizationTask
from edgefed.training.adapters import AdaptedModel, install
from edgefed.training.base_model import load_base, load_tokenizer
from edgefed.training.evaluate import token_loss
from edgefed.training.loop import train
from edgefed.training.options import ExamplePrivacy, LoraOptions, TrainOptions
from edgefed.training.round_work import RoundWork, TrainingSet, WorkSuspended, residual_beside
from edgefed.training.standalone import train_options
from edgefed.training.steps import StepRecord as LoopStep
from edgefed.training.steps import TrainResult
from edgefed.training.summarization import longest
from edgefed.training.suspension import Suspended, read_suspension, write_suspension
from edgefed.training.worker_memory import forget_peak, peak_memory_bytes, peak_resident_bytes

__all__ = ["Report", "Rounds", "read_split", "with_training"]

Report = Callable[[Literal["loading", "evaluating", "training", "saving"], int, int, float | None], None]


def read_split(announced: RoundOpen, data: DataSource) -> tuple[list[Example], list[Example]]:
    """Returns (training examples, examples held back to evaluate on); the same for every round of a run.

    Raises:
        DataError: the files are missing or malformed, or nothing is left to train on.
    """
    task = announced.task
    fields = {
        "source_field": data.fields.get(task.source, task.source),
        "target_field": data.fields.get(task.target, task.target),
    }
    examples = read_examples(Path(data.path), **fields)
    if data.validation:
        return examples, read_examples(Path(data.validation), **fields)
    if not announced.evaluation.every:
        return examples, []
    return hold_back(examples, announced.evaluation.share, seed=announced.seed)


class Rounds:
    """Does rounds, and keeps the base model in memory from one to the next."""

    def __init__(self) -> None:
        self._warm: tuple[tuple[object, ...], AdaptedModel] | None = None
        self._seen: tuple[tuple[object, ...], TrainingSet] | None = None

    def look_at(self, announced: RoundOpen, data: DataSource, model_path: Path) -> TrainingSet:
        """Returns how many examples there are to train on, and how long they are in the model's tokens.

        Raises:
            DataError: the files are missing or malformed.
            ModelError: there is no tokenizer in the model's directory.
        """
        key = (announced.run, announced.task, data, model_path)
        if self._seen is None or self._seen[0] != key:
            examples = read_split(announced, data)[0]
            source, target = longest(load_tokenizer(model_path), announced.task, examples)
            self._seen = (key, TrainingSet(examples=len(examples), source_tokens=source, target_tokens=target))
        return self._seen[1]

    def run(self, work: RoundWork, report: Report) -> RoundRecord:
        """Returns what was done; the update is in `work.output`, unless the round was for evaluation only.

        Raises:
            DataError, ModelError, AdapterError: what came in cannot be used.
            WorkerError: training diverged, or memory ran out.
            WorkSuspended: `report` raised `Suspend` between two steps.
        """
        announced, plan = work.announced, work.plan
        forget_peak()
        training, held_back = read_split(announced, work.data)
        report("loading", 0, 0, None)
        started_s = time.monotonic()
        model, loaded = self._model(work)
        load_s = time.monotonic() - started_s if loaded else 0.0
        _put_in(model, work)
        task = announced.task
        evaluation = None
        if announced.evaluates:
            report("evaluating", 0, 0, None)
            evaluation = _evaluate(model, held_back[: announced.evaluation.max_examples], task)
        record = RoundRecord(
            device=work.device,
            round=announced.round,
            rank=0,
            held_rank=plan.held_rank,
            quantization=plan.quantization,
            examples=len(training),
            load_s=load_s,
            evaluation=evaluation,
            peak_resident_bytes=peak_resident_bytes(),
            peak_memory_bytes=peak_memory_bytes(model.device),
        )
        if announced.kind == "evaluate":
            return record
        return self._train(model, training, task, work, record, report)

    def _model(self, work: RoundWork) -> tuple[AdaptedModel, bool]:
        """Returns the model with fresh factors of the plan's rank, and whether the base had to be loaded."""
        method, plan = work.announced.method, work.plan
        if work.threads:
            torch.set_num_threads(work.threads)
        options = LoraOptions(rank=plan.rank, alpha=method.alpha, dropout=method.dropout, scaling=method.rank_scaling)
        held_rank = plan.held_rank if method.start == "frozen" else 0
        seed = _seed(work)
        path = resolve_model(work.announced.model.name, work.models)
        key = (str(path), plan.quantization, work.hardware, tuple(method.target_modules))
        if self._warm is not None and self._warm[0] == key:
            self._warm[1].reinstall(options, seed=seed, held_rank=held_rank)
            return self._warm[1], False
        self._warm = None
        hardware: Literal["auto", "cpu", "cuda"] = work.hardware  # type: ignore[assignment]
        base = load_base(path, plan.quantization, hardware)
        modules = list(linear_shapes(path, method.target_modules))
        model = install(base, modules, options, seed=seed, held_rank=held_rank)
        self._warm = (key, model)
        return model, True

    def _train(
        self,
        model: AdaptedModel,
        examples: Sequence[Example],
        task: SummarizationTask,
        work: RoundWork,
        record: RoundRecord,
        report: Report,
    ) -> RoundRecord:
        options = _planned(work)
        steps: list[LoopStep] = []

        def on_step(step: LoopStep) -> None:
            steps.append(step)
            report("training", len(steps), options.steps, step.loss if options.privacy is None else None)

        report("training", 0, options.steps, None)
        kept, key = Path(f"{work.output}.suspended"), _suspension_key(work)
        resume = read_suspension(kept, key)
        steps += resume.steps if resume is not None else ()
        started_s = time.monotonic()
        try:
            result = train(model, examples, task, options, on_step, resume=resume)
        except Suspended as suspended:
            write_suspension(kept, key, suspended.suspension)
            raise WorkSuspended(f"{len(steps)} of {options.steps} steps are done and kept") from None
        kept.unlink(missing_ok=True)
        train_s = time.monotonic() - started_s
        report("saving", options.steps, options.steps, result.last_loss if options.privacy is None else None)
        _write_update(model, work)
        filled = _filled(record, work, result, steps, train_s)
        return msgspec.structs.replace(
            filled if options.privacy is None else _withheld(filled),
            micro_batch_size=options.micro_batch_size,
            gradient_checkpointing=options.gradient_checkpointing,
            peak_resident_bytes=peak_resident_bytes(),
            peak_memory_bytes=peak_memory_bytes(model.device),
        )


def _planned(work: RoundWork) -> TrainOptions:
    """Returns the federation's training as this device does it, in passes that its memory holds."""
    training, plan = work.announced.training, work.plan
    options = train_options(training, steps=training.local_steps, seed=_seed(work))
    return replace(
        options,
        micro_batch_size=plan.micro_batch_size or options.micro_batch_size,
        gradient_checkpointing=plan.gradient_checkpointing or options.gradient_checkpointing,
        privacy=_example_privacy(work.announced.privacy),
    )


def _example_privacy(asked: Privacy) -> ExamplePrivacy | None:
    if not asked.example_noise_multiplier:
        return None
    return ExamplePrivacy(noise_multiplier=asked.example_noise_multiplier, clip_norm=asked.example_clip_norm)


def _seed(work: RoundWork) -> int:
    """Returns a seed of this device's own for this round."""
    text = f"{work.announced.seed}/{work.announced.round}/{work.device}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def _suspension_key(work: RoundWork) -> str:
    """Returns what must be the same for a suspended training to go on: the round, the plan, and where it started."""
    announced = work.announced
    parts = [part.sha256 for part in announced.manifest.parts]
    of = [announced.run, announced.round, work.device, work.plan, announced.training, announced.privacy, parts]
    return msgspec.json.encode(of).decode()


def _put_in(model: AdaptedModel, work: RoundWork) -> None:
    """Puts the received global adapter where the method wants it: into the trained factors, or beside them."""
    if not work.parts or not work.plan.held_rank:
        return
    received = truncated(join_layers([Path(part) for part in work.parts]), work.plan.held_rank)
    if adapter_rank(received) != work.plan.held_rank:
        raise AdapterError(f"the parts hold rank {adapter_rank(received)}, and rank {work.plan.held_rank} is planned")
    if work.announced.method.start == "frozen":
        model.set_factors("held", levelled(received))
    elif work.plan.held_rank == work.plan.rank:
        model.set_factors("train", received)
    else:  # the server keeps fewer components than this device trains: the others stay fresh
        model.set_factors("train", _extended(received, model.get_factors()))


def _extended(known: Adapter, fresh: Adapter) -> dict[str, LowRank]:
    return {
        module: LowRank.stack([known[module], matrix.sliced(known[module].rank, matrix.rank)])
        for module, matrix in fresh.items()
    }


def _evaluate(model: AdaptedModel, examples: Sequence[Example], task: SummarizationTask) -> EvaluationRecord:
    if not examples:
        raise DataError("the round asks for an evaluation, and this device has too few examples to hold any back")
    started_s = time.monotonic()
    loss, tokens = token_loss(model, examples, task)
    return EvaluationRecord(
        loss=loss, target_tokens=tokens, examples=len(examples), evaluate_s=time.monotonic() - started_s
    )


def _write_update(model: AdaptedModel, work: RoundWork) -> None:
    """Writes the trained factors, and beside them what rounding lost, for the next update to make up for."""
    precision = work.announced.method.upload_precision
    residual, output = Path(work.residual), Path(work.output)
    owed = read_adapter(residual) if residual.is_file() else None
    lost = write_adapter(output, model.get_factors(), precision=precision, residual=owed)
    write_adapter(residual_beside(output), lost, precision="fp32")


def _filled(
    record: RoundRecord, work: RoundWork, result: TrainResult, steps: Sequence[LoopStep], train_s: float
) -> RoundRecord:
    return with_training(msgspec.structs.replace(record, rank=work.plan.rank), result, steps, train_s)


def _withheld(record: RoundRecord) -> RoundRecord:
    """Returns the record without what tells of the examples in other ways than through noise: losses and tokens."""
    return msgspec.structs.replace(
        record,
        loss_first=None,
        loss_mean=None,
        loss_last=None,
        source_tokens=0,
        target_tokens=0,
        model_flops=None,
        step_records=[],
    )


def with_training(record: RoundRecord, result: TrainResult, steps: Sequence[LoopStep], train_s: float) -> RoundRecord:
    """Returns the record with a training in it.

    Args:
        record: of what came before.
        result: the training in sums.
        steps: its steps.
        train_s: wall seconds of all of it.
    """
    stride = -(-len(steps) // MAX_STEP_RECORDS)
    return msgspec.structs.replace(
        record,
        steps=result.steps,
        loss_first=result.first_loss,
        loss_mean=result.mean_loss,
        loss_last=result.last_loss,
        data_s=result.data_s,
        forward_s=result.forward_s,
        backward_s=result.backward_s,
        optimizer_s=result.optimizer_s,
        train_s=train_s,
        source_tokens=result.source_tokens,
        target_tokens=result.target_tokens,
        model_flops=result.model_flops,
        step_records=[_step_record(step) for step in steps[::stride]],
    )


def _step_record(step: LoopStep) -> StepRecord:
    return StepRecord(
        loss=step.loss,
        data_s=step.data_s,
        forward_s=step.forward_s,
        backward_s=step.backward_s,
        optimizer_s=step.optimizer_s,
        source_tokens=step.source_tokens,
        target_tokens=step.target_tokens,
    )
