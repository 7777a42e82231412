"""What becomes of a federation in trouble: cases run, survived, updates lost, updates counted twice.

python -m benchmarks.faults.run [--repeats N] [--broker-gone-s S] [--stories N] [--only CASE ...]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from benchmarks.provenance import provenance
from tests.faults import fleet as fleet_module
from tests.faults.cases import CASES, Case, broker_gone, play
from tests.faults.fleet import Account
from tests.faults.slow_link import move_update
from tests.faults.test_crash_points import play as play_with_crashes
from tests.faults.test_service_machine import Story, TestStory
from tools.mosquitto import running_mosquitto

RESULTS = Path(__file__).parent / "results"
UPDATE_BYTES, RATE_BYTES_PER_S, LATENCY_S, CUT_EVERY_S = 2_000_000, 32_000, 0.5, 20.0
MOST_OVERHEAD = 1.15


@dataclass
class Row:
    """One line of the table."""

    case: str
    run: int = 0
    survived: int = 0
    lost: int = 0
    counted_twice: int = 0
    different: int = 0
    longest_s: float = 0.0
    note: str = ""


async def play_case(case: Case, repeats: int, at_once: asyncio.Semaphore, undisturbed: Account | None) -> Row:
    row = Row(case.what)

    async def once(directory: Path) -> None:
        async with at_once:
            started_s = time.monotonic()
            row.run += 1
            try:
                account = await play(case, directory)
            except AssertionError as error:
                row.note = str(error).splitlines()[0]
                return
            row.survived += 1
            row.lost += account.lost
            row.counted_twice += account.counted_twice
            row.different += case.everybody and undisturbed is not None and account.adapter != undisturbed.adapter
            row.longest_s = max(row.longest_s, time.monotonic() - started_s)

    with tempfile.TemporaryDirectory() as scratch:
        await asyncio.gather(*(once(Path(scratch, str(number))) for number in range(repeats)))
    show(row)
    return row


async def play_crash_points() -> list[Row]:
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        undisturbed = await play_with_crashes(Path(scratch, "undisturbed"), None)
        for side in ("before", "after"):
            started_s = time.monotonic()
            killed = await play_with_crashes(Path(scratch, side), side)  # type: ignore[arg-type]
            rows.append(
                Row(
                    f"the aggregator is killed {side} each durable write in turn",
                    run=killed.deaths,
                    survived=killed.deaths,
                    lost=len(killed.told - set(killed.answers)),
                    counted_twice=sum(count > 1 for count in killed.answers.values()),
                    different=int(killed.adapter != undisturbed.adapter or killed.weights != undisturbed.weights),
                    longest_s=time.monotonic() - started_s,
                    note="one federation, killed so often",
                )
            )
            show(rows[-1])
    return rows


async def move_over_a_bad_link(seeds: Iterable[int]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch, running_mosquitto() as broker:
        moved = await asyncio.gather(
            *(
                move_update(
                    Path(scratch, str(seed)),
                    broker.port,
                    UPDATE_BYTES,
                    bytes_per_s=RATE_BYTES_PER_S,
                    delay_s=LATENCY_S / 2,
                    cut_every_s=CUT_EVERY_S,
                    seed=seed,
                    device=f"device-{seed}",
                )
                for seed in seeds
            )
        )
    worst = max(one.overhead for one in moved)
    print(f"bad link: {worst:.3f} × the payload at worst, of {MOST_OVERHEAD} allowed")
    return {
        "payload_bytes": UPDATE_BYTES,
        "rate_bytes_per_s": RATE_BYTES_PER_S,
        "round_trip_s": LATENCY_S,
        "cut_every_s": CUT_EVERY_S,
        "shortest_possible_s": UPDATE_BYTES / RATE_BYTES_PER_S,
        "runs": [{**asdict(one), "overhead": one.overhead} for one in moved],
        "within_limit": worst <= MOST_OVERHEAD,
    }


def tell_stories(number: int) -> Row:
    row = Row("the aggregator in a made-up world: loss, repetition, disorder, sleep, kills, clock jumps", run=number)
    started_s = time.monotonic()
    run_state_machine_as_test(Story, settings=settings(TestStory.settings, max_examples=number, database=None))
    row.survived, row.longest_s, row.note = number, 0.0, f"all in {time.monotonic() - started_s:.0f} s"
    show(row)
    return row


def show(row: Row) -> None:
    print(
        f"{row.case:90} run {row.run:5} survived {row.survived:5} lost {row.lost} twice {row.counted_twice} "
        f"different {row.different} longest {row.longest_s:.0f} s {row.note}",
        flush=True,
    )


async def play_cases(options: argparse.Namespace) -> list[Row]:
    gone_s = options.broker_gone_s
    cases = {**CASES, "broker-gone": Case(f"the broker is gone for {gone_s:.0f} s", broker_gone(gone_s))}
    chosen = {name: case for name, case in cases.items() if name in (options.only or cases) and name != "undisturbed"}
    fleet_module.PATIENCE_S = 120.0 + 2 * gone_s
    with tempfile.TemporaryDirectory() as scratch:
        undisturbed = await play(CASES["undisturbed"], Path(scratch, "undisturbed"))
    at_once = asyncio.Semaphore(options.at_once)
    return await asyncio.gather(*(play_case(case, options.repeats, at_once, undisturbed) for case in chosen.values()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3, help="of each case")
    parser.add_argument("--at-once", type=int, default=4, help="federations side by side")
    parser.add_argument("--broker-gone-s", type=float, default=300.0)
    parser.add_argument("--stories", type=int, default=2000)
    parser.add_argument("--only", nargs="*", help="these cases and nothing else; no result is written")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    origin = provenance()  # of what is started, whatever happens to the working tree meanwhile
    rows = asyncio.run(play_cases(options))
    if options.only:
        return
    rows += asyncio.run(play_crash_points())
    link = asyncio.run(move_over_a_bad_link(range(1, options.repeats + 1)))
    rows.append(tell_stories(options.stories))
    RESULTS.mkdir(exist_ok=True)
    result = {"provenance": origin, "cases": [asdict(row) for row in rows], "bad_link": link}
    (RESULTS / "faults.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
