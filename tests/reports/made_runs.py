"""Runs as an aggregator would have kept them, made from a seed: whole ones, poor ones and hostile ones."""

from __future__ import annotations

import random

from edgefed.devices.usage import Energy, HardwareUse
from edgefed.protocol.records import EvaluationRecord, RoundRecord, StepRecord
from edgefed.reports.run_records import Delivery, MergedFacts, RunRecords

HOSTILE = '"><script src="https://evil.example/x.js"></script><img src=x onerror=alert(1)>{{7*7}}'
BEGAN_UNIX_S = 1_795_235_763.0
ROUND_S = 46.0
BOARDS = (
    ("jetson-orin-nano-8gb", 8, "nf4", 1.7e12),
    ("jetson-agx-orin-64gb", 32, "bf16", 21.6e12),
    ("raspberry-pi-5-8gb", 4, "fp32", 5.2e10),
    ("rtx-4060", 16, "int8", 15.1e12),
)


def make_run(
    devices: int = 6, rounds: int = 5, *, seed: int = 1, name: str = "run", known: bool = True, hostile: bool = False
) -> RunRecords:
    """Returns a finished run.

    Args:
        devices: how many.
        rounds: merged rounds; an evaluation follows.
        seed: of the figures.
        name: of the run.
        known: False leaves everything null that may be null.
        hostile: texts that devices may choose hold markup.
    """
    dice = random.Random(seed)
    deliveries = [
        one
        for round_ in range(1, rounds + 2)
        for device in range(devices)
        for one in _deliveries(dice, device, round_, rounds, known=known, hostile=hostile)
    ]
    merged = tuple(
        MergedFacts(
            round=round_,
            opened_unix_s=_opened(round_),
            merged_unix_s=_opened(round_ + 1) - 0.1,
            merge_s=0.214 + 0.01 * round_,
            received_bytes=devices * 174_000,
            broadcast_bytes=689_008 if round_ > 1 else 0,
            adapter_rank=16,
        )
        for round_ in range(1, rounds + 1)
    )
    return RunRecords(
        name=HOSTILE if hostile else name,
        run="3f9c1b2d4e5f6071",
        fleet="harbour",
        model=HOSTILE if hostile else "google/flan-t5-base",
        method="lora, delta",
        rounds=merged,
        deliveries=tuple(deliveries),
    )


def _opened(round_: int) -> float:
    return BEGAN_UNIX_S + (round_ - 1) * ROUND_S


def _deliveries(
    dice: random.Random, device: int, round_: int, rounds: int, *, known: bool, hostile: bool
) -> list[Delivery]:
    board = BOARDS[device % len(BOARDS)][0]
    name = f"{board.split('-', 2)[1]}-{device:02}" if device % 5 else f"{board}-in-the-north-hall-{device:02}"
    received = _opened(round_) + ROUND_S * (0.55 + 0.4 * dice.random())
    record = (_full_record if known else _poor_record)(dice, name, device, round_, rounds)
    reason, outcome = "", "evaluated" if round_ > rounds else "counted"
    if device == 3 and round_ == 2:
        outcome, reason = "rejected", HOSTILE if hostile else "factor encoder.block.0.q: a value is not finite"
    if device == 4 and round_ == 3:
        outcome = "late"
    if hostile:
        import msgspec

        record = msgspec.structs.replace(record, plan_reason=HOSTILE, board=HOSTILE, emulated=HOSTILE)
        name += HOSTILE
    return [
        Delivery(
            device=name, round=round_, outcome=outcome, reason=reason, received_unix_s=received, record=record  # type: ignore[arg-type]
        )
    ]  # fmt: skip


def _poor_record(dice: random.Random, name: str, device: int, round_: int, rounds: int) -> RoundRecord:
    trains = round_ <= rounds
    return RoundRecord(
        device=name, round=round_, rank=4 if trains else 0, held_rank=4, quantization="fp32", examples=360,
        steps=10 if trains else 0, forward_s=1.2 if trains else 0.0, backward_s=1.1 if trains else 0.0,
        source_tokens=7350 if trains else 0, target_tokens=2633 if trains else 0, upload_bytes=97_400 if trains else 0,
    )  # fmt: skip


def _full_record(dice: random.Random, name: str, device: int, round_: int, rounds: int) -> RoundRecord:
    board, rank, quantization, peak = BOARDS[device % len(BOARDS)]
    emulated = board if device % 3 == 2 else None
    evaluation = EvaluationRecord(
        loss=6.7 / round_ + dice.random() / 10, target_tokens=800 + device, examples=24, evaluate_s=0.8
    )
    if round_ > rounds:
        return RoundRecord(
            device=name, round=round_, rank=0, held_rank=rank, quantization=quantization, examples=360,
            download_bytes=86_000 * rank, download_s=0.05 * rank, evaluation=evaluation, board=board, emulated=emulated,
        )  # fmt: skip
    forward_s, backward_s = 4 + 3 * dice.random(), 7 + 4 * dice.random()
    share = 0.04 + 0.2 * dice.random()
    peak_bytes = int((1.3 + 0.08 * rank) * 1e9)
    steps = [
        StepRecord(loss=6.0 / round_ - 0.1 * step, data_s=0.01, forward_s=forward_s / 10, backward_s=backward_s / 10,
                   optimizer_s=0.02, source_tokens=735, target_tokens=263)
        for step in range(10)
    ]  # fmt: skip
    return RoundRecord(
        device=name, round=round_, rank=rank, held_rank=min(rank, 16), quantization=quantization, examples=360,
        steps=10, loss_first=6.2 / round_, loss_mean=5.8 / round_, loss_last=5.5 / round_, data_s=0.12,
        forward_s=forward_s, backward_s=backward_s, optimizer_s=0.3, train_s=forward_s + backward_s + 0.5,
        load_s=6.3 if round_ == 1 else 0.0,
        source_tokens=7350, target_tokens=2633, download_bytes=86_000 * rank, download_s=0.05 * rank,
        upload_bytes=43_000 * rank, upload_s=0.03 * rank, peak_resident_bytes=peak_bytes, peak_memory_bytes=peak_bytes,
        predicted_peak_bytes=int(peak_bytes * (0.93 + 0.14 * dice.random())), predicted_step_s=1.2,
        micro_batch_size=(0, 4)[device % 2], gradient_checkpointing=device % 4 == 0,
        plan_reason=f"rank {rank} is the largest that fits the memory with 1.0 GB in reserve; {quantization} because "
        "fp32 would need 4.2 GB of 3.4 GB",
        model_flops=share * peak * (forward_s + backward_s + 0.42), live_peak_flops_per_s=peak,
        sheet_peak_flops_per_s=peak * 1.6 if device % 4 != 2 else None, board=board, emulated=emulated,
        use=_use(dice, device), step_records=steps, evaluation=evaluation,
    )  # fmt: skip


def _use(dice: random.Random, device: int) -> HardwareUse:
    window_s, watts = 15.0, 5 + 12 * dice.random()
    energy = Energy(
        joules=watts * window_s, mean_w=watts, method="ina3221", scope="module", measured_share=1.0,
        coverage="VDD_IN: the whole module without the carrier board",
    )  # fmt: skip
    if device % 4 == 2:
        energy = Energy(reason="/sys/class/powercap: permission denied; run as root or grant read access to energy_uj")
    return HardwareUse(
        window_s=window_s, samples=30, energy=energy, cpu_percent=80 * dice.random(),
        gpu_percent=None if device % 4 == 2 else 60 + 40 * dice.random(), temperature_max_c=55 + 20 * dice.random(),
        throttled_s=2.5 if device == 1 else 0.0, memory_available_min_bytes=1_200_000_000,
        worker_peak_resident_bytes=1_900_000_000, sampling_cpu_s=0.04,
    )  # fmt: skip
