"""The three data sets as rows with a source, a target and a group, and their splits over devices.

Validation texts are the official ones (MTS-Dialog, SciTLDR) or every fifth row (MeQSum, which has no split of its own).
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from benchmarks.aggregation_quality.pretrain import meqsum_is_held_out
from edgefed.data.examples import Example
from edgefed.data.partition import by_key, dirichlet, uniform

__all__ = ["Corpus", "Split", "Task", "one_task", "three_tasks"]

Split = Literal["section_header", "dirichlet"]


@dataclass(frozen=True, slots=True)
class Corpus:
    """One data set: training rows, the group of each, and validation rows."""

    training: Sequence[Example]
    groups: Sequence[str]
    validation: Sequence[Example]


@dataclass(frozen=True, slots=True)
class Task:
    """What the devices of one federation have, and what the result is judged by: validation rows by data set."""

    devices: Sequence[Sequence[Example]]
    validation: dict[str, Sequence[Example]]


def one_task(data: Path, split: Split, devices: int, *, seed: int) -> Task:
    """Return MTS-Dialog over the devices: whole sections, or a Dirichlet draw with alpha 0.3 of the sections."""
    corpus = _mts_dialog(data)
    if split == "section_header":
        shares = by_key(corpus.groups, devices)
    else:
        shares = dirichlet(corpus.groups, devices, alpha=0.3, seed=seed, minimum=8)
    return Task([[corpus.training[row] for row in share] for share in shares], {"mts_dialog": corpus.validation})


def three_tasks(data: Path, *, seed: int) -> Task:
    """Return eight devices: dialogues on three of them, health questions on three, abstracts on two."""
    corpora = {"mts_dialog": (_mts_dialog(data), 3), "meqsum": (_meqsum(data), 3), "scitldr": (_scitldr(data), 2)}
    devices: list[list[Example]] = []
    for corpus, count in corpora.values():
        shares = uniform(len(corpus.training), count, seed=seed)
        devices += [[corpus.training[row] for row in share] for share in shares]
    # Ranks are given out in order: interleave, so that every data set is on small and on large devices.
    order = [0, 3, 6, 1, 4, 7, 2, 5]
    return Task([devices[i] for i in order], {name: corpus.validation for name, (corpus, _) in corpora.items()})


def _mts_dialog(data: Path) -> Corpus:
    def rows(name: str) -> list[dict[str, str]]:
        with (data / "mts_dialog" / f"MTS-Dialog-{name}Set.csv").open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))

    def example(row: dict[str, str]) -> Example:
        return Example(row["dialogue"], row["section_text"])

    training = rows("Training")
    return Corpus(
        [example(row) for row in training],
        [row["section_header"] for row in training],
        [example(row) for row in rows("Validation")],
    )


def _meqsum(data: Path) -> Corpus:
    with (data / "meqsum" / "meqsum.csv").open(encoding="utf-8", newline="") as file:
        rows = list(enumerate(csv.DictReader(file)))
    return _ungrouped([(Example(row["CHQ"], row["Summary"]), meqsum_is_held_out(index)) for index, row in rows])


def _scitldr(data: Path) -> Corpus:
    def read(name: str) -> list[Example]:
        with (data / "scitldr_a" / f"{name}.jsonl").open(encoding="utf-8") as file:
            papers = [json.loads(line) for line in file]
        return [Example(" ".join(paper["source"]), paper["target"][0]) for paper in papers]

    return _ungrouped([(one, False) for one in read("train")] + [(one, True) for one in read("dev")])


def _ungrouped(rows: Sequence[tuple[Example, bool]]) -> Corpus:
    keep: Callable[[bool], list[Example]] = lambda held: [one for one, is_held in rows if is_held == held]  # noqa: E731
    training = keep(False)
    return Corpus(training, [""] * len(training), keep(True))
