"""A bench's results as people read them: a line per figure, a column per precision; and beside a reference."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec

from edgefed.cli.output import write_json, write_table
from edgefed.protocol.records import RoundRecord
from edgefed.reports.reference import BenchFile, BenchResult, Reference
from edgefed.reports.utilization import Figure, Utilization, measure
from edgefed.reports.wording import figure_text, number

__all__ = ["compared", "result_rows", "write_results"]

_MEASURES: tuple[tuple[str, str, Callable[[Utilization], Figure]], ...] = (
    ("step", "s", lambda use: use.step_s),
    ("tokens/s", "", lambda use: use.tokens_per_s),
    ("model FLOP/s", "FLOP/s", lambda use: use.flops_per_s),
    ("MFU, of the measured peak", "%", lambda use: use.mfu_live),
    ("MFU, of the sheet's peak", "%", lambda use: use.mfu_sheet),
    ("peak memory of training", "B", lambda use: use.peak_memory_bytes),
    ("mean power", "W", lambda use: use.mean_w),
    ("tokens/s per watt", "", lambda use: use.tokens_per_s_per_w),
    ("processor load, %", "", lambda use: use.cpu_percent),
    ("hottest sensor", "°C", lambda use: use.temperature_max_c),
)
_BESIDE: tuple[tuple[str, Callable[[Utilization], Figure]], ...] = (
    ("step", lambda use: use.step_s),
    ("tokens/s", lambda use: use.tokens_per_s),
    ("MFU, measured peak", lambda use: use.mfu_live),
    ("peak memory", lambda use: use.peak_memory_bytes),
    ("tokens/s per watt", lambda use: use.tokens_per_s_per_w),
)


def write_results(results: Sequence[BenchResult], references: Sequence[Reference], *, as_json: bool) -> None:
    """Writes results to stdout; as JSON they are a reference as well, with measures and comparisons added.

    Nothing is written of no results.
    """
    if not results:
        return
    pairs = compared(results, references)
    if as_json:
        document: dict[str, Any] = msgspec.to_builtins(BenchFile(results=list(results)))
        for line, result in zip(document["results"], results, strict=True):
            line["use"] = msgspec.to_builtins(measure(result.record))
        write_json({**document, "comparisons": pairs} if references else document)
        return
    write_table(("figure", *(one.record.quantization for one in results), "why there is none"), result_rows(results))
    if references:
        names = [name for name, _ in _BESIDE]
        rows = [(one["result"], one["reference"], *(_factor(one[name]) for name in names)) for one in pairs]
        write_table(("this machine", "over the reference", *names), rows)


def result_rows(results: Sequence[BenchResult]) -> list[tuple[str, ...]]:
    """Returns a row per figure: its name, its value in every result, and why one is missing."""
    uses = [measure(one.record) for one in results]
    rows = [*_phases(results)]
    for name, unit, read in _MEASURES:
        figures = [read(use) for use in uses]
        reasons = dict.fromkeys(figure.reason for figure in figures if figure.value is None)
        rows.append((name, *(figure_text(figure, unit) for figure in figures), "; ".join(reasons)))
    return rows


def _phases(results: Sequence[BenchResult]) -> Iterator[tuple[str, ...]]:
    """Yields seconds of a step's phases, of loading, and what the process held while it loaded or trained."""
    reads: tuple[tuple[str, str, Callable[[RoundRecord], float | None]], ...] = (
        ("loading", "s", lambda record: record.load_s),
        ("peak resident, loading included", "B", lambda record: record.peak_resident_bytes),
        ("measured peak", "FLOP/s", lambda record: record.live_peak_flops_per_s),
        ("steps", "count", lambda record: record.steps),
        ("data, a step", "s", lambda record: record.data_s / record.steps),
        ("forward, a step", "s", lambda record: record.forward_s / record.steps),
        ("backward, a step", "s", lambda record: record.backward_s / record.steps),
        ("optimizer, a step", "s", lambda record: record.optimizer_s / record.steps),
    )
    for name, unit, read in reads:
        yield (name, *(figure_text(Figure(read(one.record)), unit) for one in results), "")


def compared(results: Sequence[BenchResult], references: Sequence[Reference]) -> list[dict[str, Any]]:
    """Returns the ratios here / reference, null where either is not known, of every result with its references.

    Those are the ones of the same precision and those that have none; where there are none of either, all.
    """
    pairs = []
    for result in results:
        wanted = (result.record.quantization, "")
        beside = [one for one in references if one.quantization in wanted] or references
        use = measure(result.record)
        pairs += [{"result": result.name, "reference": one.name, **_ratios(use, one.use)} for one in beside]
    return pairs


def _factor(ratio: float | None) -> str:
    return "–" if ratio is None else f"×{number(ratio)}"


def _ratios(here: Utilization, there: Utilization) -> dict[str, float | None]:
    ratios: dict[str, float | None] = {}
    for name, read in _BESIDE:
        above, below = read(here).value, read(there).value
        ratios[name] = None if above is None or not below else above / below
    return ratios
