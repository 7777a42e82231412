"""A slow link that breaks again and again still moves an update; `benchmarks/faults` moves a large one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.slow_link import move_update
from tools.mosquitto import RunningMosquitto

RATE_BYTES_PER_S, DELAY_S = 32_000, 0.25
FIRST_PIECE_BYTES = 16_384


@pytest.mark.broker
async def test_a_cut_costs_a_slow_link_a_piece_and_what_was_on_its_way(
    tmp_path: Path, mosquitto: RunningMosquitto
) -> None:
    moved = await move_update(
        tmp_path, mosquitto.port, 256_000, bytes_per_s=RATE_BYTES_PER_S, delay_s=DELAY_S, cut_every_s=7.0, seed=2
    )
    assert moved.cuts >= 1
    talk_bytes = 1500  # connecting, subscribing, offering
    a_cut_bytes = FIRST_PIECE_BYTES + DELAY_S * RATE_BYTES_PER_S + talk_bytes
    assert moved.up_bytes <= 1.02 * moved.payload_bytes + talk_bytes + moved.cuts * a_cut_bytes
