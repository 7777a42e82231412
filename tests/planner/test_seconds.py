from __future__ import annotations

import pytest

from edgefed.planner.seconds import pass_seconds, step_seconds, transfer_seconds, upload_bytes
from tests.planner.machines import BASE, choice, machine, workload


def test_a_faster_machine_takes_less_time_and_never_less_than_its_products() -> None:
    slow = step_seconds(machine(), workload(), choice())
    fast = step_seconds(machine(flops_per_s={"fp32": 2e12}, memory_bandwidth_bytes_per_s=1e11), workload(), choice())
    assert fast < slow / 5
    assert slow > 2 * pass_seconds(machine(), workload(), choice())["products"]


def test_a_step_is_as_many_passes_as_micro_batches() -> None:
    one = sum(pass_seconds(machine(), workload(), choice(micro_batch_size=2)).values())
    assert step_seconds(machine(), workload(batch_size=8), choice(micro_batch_size=2)) == pytest.approx(4 * one)


def test_recomputing_and_dequantizing_cost_time() -> None:
    plain = step_seconds(machine(), workload(), choice())
    assert step_seconds(machine(), workload(), choice(gradient_checkpointing=True)) > 1.1 * plain
    parts = pass_seconds(machine(), workload(), choice(quantization="nf4"))
    assert parts["dequantization"] > 0
    assert pass_seconds(machine(), workload(), choice())["dequantization"] == 0


def test_transfers_take_the_bytes_of_what_travels() -> None:
    asked = workload(upload_precision="fp16", broadcast_precision="int8")
    size = 2 * BASE.lora_parameters(["q", "v"], 8)
    assert size < upload_bytes(asked, choice()) < 1.1 * size
    down_s, up_s = transfer_seconds(machine(), asked, choice(held_rank=16))
    assert up_s == pytest.approx(upload_bytes(asked, choice()) / 1e6)
    assert down_s == pytest.approx(BASE.lora_parameters(["q", "v"], 16) / 2e6, rel=0.1)
    assert transfer_seconds(machine(uplink_bytes_per_s=None), asked, choice(held_rank=0)) == (0.0, None)
