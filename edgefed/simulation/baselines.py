"""What a federation is compared with, in a process of its own: `python -m edgefed.simulation.baselines PLAN RESULT`.

On held-out examples: the base model, the federation's adapter, each device alone (local-only), and all examples in one
place (centralized). Every one of them takes as many optimizer steps as a device took in the federation; the centralized
one with the devices' batches put together, so that it sees as many examples as the federation.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from edgefed.coordinator.options import FederationOptions

__all__ = ["Baselines", "Comparison", "Job", "Participant", "Score"]


class Participant(msgspec.Struct, frozen=True, kw_only=True):
    """A device whose local-only training is wanted: its examples and rank."""

    name: str
    data: str
    rank: int


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What to compare.

    Attributes:
        options: the federation's settings.
        adapter: the federation's PEFT adapter.
        held_out: examples that nobody trained on.
        participants: the devices.
        scored_examples: how many of the held-out examples are summarized for ROUGE.
        samples: how many of them are shown in full.
        threads: CPU threads.
    """

    options: FederationOptions
    adapter: str
    held_out: str
    participants: list[Participant]
    scored_examples: int = 64
    samples: int = 3
    threads: int = 2


class Score(msgspec.Struct, frozen=True, kw_only=True):
    """How well one model summarizes the held-out examples: nats per target token, and F1 of ROUGE-1, -2 and -L."""

    name: str
    loss: float
    rouge1: float
    rouge2: float
    rouge_l: float


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One held-out example and what was made of it."""

    source: str
    reference: str
    base: str
    federation: str


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """The result. `local` has one score per device; `samples` shows texts."""

    steps: int
    base: Score
    federation: Score
    local: list[Score]
    centralized: Score
    samples: list[Sample]

    @property
    def median_local(self) -> Score:
        """The device whose local-only training came out in the middle by ROUGE-L (the lower one of two)."""
        ranked = sorted(self.local, key=lambda score: score.rouge_l)
        return ranked[(len(ranked) - 1) // 2]


class Baselines:
    """Does a job; loads the base model once.

    Args:
        job: what to compare.
        tell: called with a line of text when something begins.
    """

    def __init__(self, job: Job, tell: Callable[[str], None]) -> None:
        import torch

        from edgefed.data.examples import Example, read_examples
        from edgefed.models.finding import resolve_model
        from edgefed.training.base_model import load_base

        torch.set_num_threads(job.threads)
        self._job = job
        self._tell = tell
        self._options = job.options
        task = self._options.task
        self._task = task

        def read(path: str) -> list[Example]:
            return read_examples(Path(path), source_field=task.source, target_field=task.target)

        self._read = read
        self._held_out = read(job.held_out)[: job.scored_examples]
        self._model_path = resolve_model(self._options.model.name, self._options.models)
        self._base = load_base(self._model_path, "fp32", "cpu")

    def run(self) -> Comparison:
        """Returns the comparison."""
        base, base_texts = self._score("base model", None)
        federation, federation_texts = self._score("federation", Path(self._job.adapter))
        local = [self._trained(one.name, self._read(one.data), one.rank, 1) for one in self._job.participants]
        everything = [example for one in self._job.participants for example in self._read(one.data)]
        rank = max(one.rank for one in self._job.participants)
        centralized = self._trained("centralized", everything, rank, len(self._job.participants))
        samples = [
            Sample(source=example.source, reference=example.target, base=before, federation=after)
            for example, before, after in zip(self._held_out, base_texts, federation_texts, strict=True)
        ]
        return Comparison(
            steps=self._steps,
            base=base,
            federation=federation,
            local=local,
            centralized=centralized,
            samples=samples[: self._job.samples],
        )

    @property
    def _steps(self) -> int:
        return self._options.rounds * self._options.training.local_steps

    def _trained(self, name: str, examples: Sequence[object], rank: int, batches: int) -> Score:
        from edgefed.training.standalone import train_alone

        self._tell(f"training {name} alone" if batches == 1 else "training on everything in one place")
        training = self._options.training
        model, _ = train_alone(
            self._base,
            self._model_path,
            examples,  # type: ignore[arg-type]
            task=self._task,
            method=self._options.method,
            training=msgspec.structs.replace(training, batch_size=training.batch_size * batches),
            rank=rank,
            steps=self._steps,
            seed=self._options.seed,
        )
        try:
            return self._scored(name, model)[0]
        finally:
            model.remove()

    def _score(self, name: str, adapter: Path | None) -> tuple[Score, list[str]]:
        from edgefed.training.evaluate import with_adapter

        self._tell(f"evaluating the {name}")
        with with_adapter(self._base, adapter) as model:
            return self._scored(name, model)

    def _scored(self, name: str, model: object) -> tuple[Score, list[str]]:
        from edgefed.training.evaluate import summarise, validation_loss
        from edgefed.training.summarization import rouge

        loss = validation_loss(model, self._held_out, self._task)  # type: ignore[arg-type]
        texts = summarise(model, [example.source for example in self._held_out], self._task)  # type: ignore[arg-type]
        found = rouge(texts, [example.target for example in self._held_out])
        return Score(name=name, loss=loss, rouge1=found.rouge1, rouge2=found.rouge2, rouge_l=found.rouge_l), texts


def main() -> None:
    """Reads a job from the first argument's file and writes the comparison to the second's; progress on stdout."""
    job = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=Job)

    def tell(line: str) -> None:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    Path(sys.argv[2]).write_bytes(msgspec.json.encode(Baselines(job, tell).run()))


if __name__ == "__main__":
    main()
