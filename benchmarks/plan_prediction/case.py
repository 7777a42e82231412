"""One configuration, measured in a process of its own: `python -m benchmarks.plan_prediction.case JSON`.

The worker's own code loads the model, installs LoRA and trains two steps on texts of the exact lengths. The kernel's
high-water mark of the resident set is read after loading and, set back, after training; seconds are the process's own
processor time on one thread, which others on the machine disturb least.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any


def measure(case: dict[str, Any]) -> dict[str, float]:
    """Return bytes and seconds."""
    import torch

    from edgefed.data.examples import Example
    from edgefed.models.checkpoint import linear_shapes
    from edgefed.protocol.tasks import SummarizationTask
    from edgefed.training.adapters import install
    from edgefed.training.base_model import load_base
    from edgefed.training.loop import train
    from edgefed.training.lora_round import Rounds  # what the worker imports
    from edgefed.training.options import LoraOptions, TrainOptions
    from edgefed.training.steps import StepRecord

    Rounds()
    torch.set_num_threads(1)
    path = Path(case["model"])
    base = load_base(path, case["quantization"], "cpu")
    load_peak = _high_water_bytes()
    modules = list(linear_shapes(path, case["target_modules"]))
    model = install(base, modules, LoraOptions(rank=case["rank"]), seed=0, held_rank=case["held_rank"])
    after_load = _resident_bytes()
    Path("/proc/self/clear_refs").write_text("5")  # sets the high-water mark back
    task = SummarizationTask(max_source_tokens=case["source"], max_target_tokens=case["target"], prompt="{source}")
    examples = [Example("hello " * case["source"], "hello " * case["target"])] * case["batch"]
    ends: list[float] = []
    flops: list[float] = []

    def on_step(step: StepRecord) -> None:
        ends.append(time.process_time())
        flops.append(step.model_flops)

    options = TrainOptions(
        steps=2,
        batch_size=case["batch"],
        micro_batch_size=case["micro_batch"],
        gradient_checkpointing=case["checkpointing"],
    )
    train(model, examples, task, options, on_step)
    return {
        "load_peak_bytes": load_peak,
        "loaded_bytes": after_load,
        "train_peak_bytes": _high_water_bytes(),
        "step_cpu_s": ends[1] - ends[0],
        "model_flops": flops[1],
    }


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise LookupError(field)


def _high_water_bytes() -> int:
    return _status("VmHWM:")


def _resident_bytes() -> int:
    return _status("VmRSS:")


if __name__ == "__main__":
    print(json.dumps(measure(json.loads(sys.argv[1]))))
