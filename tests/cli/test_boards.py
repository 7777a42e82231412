"""`edgefed boards`: a table for people, a document for programs, and words for a board that is not there."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from edgefed.devices.board_files import board_ids

Run = Callable[..., Any]


def test_all_boards_are_listed(edgefed: Run) -> None:
    done = edgefed("boards")
    assert (done.code, done.err) == (0, "")
    header, *rows = [line.split("\t") for line in done.out.splitlines()]
    assert [row[0] for row in rows] == board_ids()
    assert all(len(row) == len(header) for row in rows)
    by_id = {row[0]: dict(zip(header, row, strict=True)) for row in rows}
    orin = by_id["jetson-agx-orin-64gb"]
    assert (orin["GiB"], orin["fp32/s"], orin["bf16/s"], orin["int8/s"]) == ("64", "5.3 T", "42.6 T", "85 T")
    assert orin["delivered in"] == "MODE_30W"
    assert by_id["jetson-nano-4gb"]["bf16/s"] == by_id["jetson-nano-4gb"]["int8/s"] == "—"


def test_one_board_is_shown_with_its_sources(edgefed: Run) -> None:
    done = edgefed("boards", "jetson-orin-nano-8gb")
    assert done.code == 0, done.err
    rows = [tuple(line.split("\t")) for line in done.out.splitlines()]
    assert ("bandwidth_bytes_per_s", "6.8e+10", "verified", "S3") in rows
    assert ("fp32_flops_per_s", "1.28e+12", "derived", "sm_count * gpu_clock_max_hz * 256") in rows
    (slow,) = [row for row in rows if row[0] == "7W"]
    assert slow[1:8] == ("1", "4", "408 MHz", "68 GB/s", "7 W", "418 GFLOP/s", "3.34 TFLOP/s")
    (source,) = [row for row in rows if row[0] == "S3"]
    assert "developer kit sheet" in source[1]


def test_programs_get_the_whole_sheet(edgefed: Run) -> None:
    everything = json.loads(edgefed("boards", "--json").out)
    assert [board["id"] for board in everything] == board_ids()
    board = json.loads(edgefed("boards", "--json", "jetson-agx-orin-64gb").out)
    assert board in everything
    assert board["figures"]["tdp_w"] == {"value": 60, "status": "verified", "source": "S6", "formula": ""}
    assert board["in_mode"]["MODE_30W"]["peaks"]["bf16"] == pytest.approx(10.0e12, rel=0.01)


def test_an_unknown_board_is_an_error_with_near_names(edgefed: Run) -> None:
    done = edgefed("boards", "orin-nano-8gb")
    assert done.code == 3
    assert "there is no board 'orin-nano-8gb'; did you mean jetson-orin-nano-8gb" in done.err


def test_a_board_without_modes_has_no_table_of_them(edgefed: Run) -> None:
    done = edgefed("boards", "h100-sxm")
    assert done.code == 0, done.err
    assert "power mode" not in done.out
    assert "bf16_flops_per_s\t9.89e+14\tverified\tS22, S23" in done.out
