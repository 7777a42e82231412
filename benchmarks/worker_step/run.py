"""What edgefed's training loop adds to a bare peft loop of the same model and batches.

    python -m benchmarks.worker_step.run

Both loops tokenise, collate, run forward, backward, clipping and AdamW, and read the loss; they take turns in one
process, a few steps each, so that whatever else the machine does meets both.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import T5Config, T5ForConditionalGeneration

from benchmarks.provenance import provenance
from edgefed.data.examples import Example, read_examples
from edgefed.models.checkpoint import linear_shapes
from edgefed.models.finding import resolve_model
from edgefed.protocol.tasks import SummarizationTask
from edgefed.training.adapters import AdaptedModel, install
from edgefed.training.base_model import load_base
from edgefed.training.loop import train
from edgefed.training.options import LoraOptions, TrainOptions

TARGETS = ["q", "v"]
LORA = LoraOptions(rank=8, alpha=16.0)
FLAN_T5_SMALL: dict[str, Any] = {
    "vocab_size": 32128,
    "d_model": 512,
    "d_kv": 64,
    "d_ff": 1024,
    "num_layers": 8,
    "num_heads": 6,
    "feed_forward_proj": "gated-gelu",
    "decoder_start_token_id": 0,
}


def flan_t5_small_layout(directory: Path) -> Path:
    """Write a model of FLAN-T5-small's shapes with random weights; the bundled tokenizer will do to make lengths."""
    torch.manual_seed(0)
    T5ForConditionalGeneration(T5Config(**FLAN_T5_SMALL)).save_pretrained(directory)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(resolve_model("edgefed/tiny-t5") / name, directory / name)
    return directory


def long_examples() -> list[Example]:
    """Return 32 examples longer than any length used here, so that all batches have the same shape."""
    path = Path(str(resources.files("edgefed.assets"))) / "dialogues" / "train.jsonl"
    found = read_examples(path, source_field="dialogue", target_field="summary")[:64]
    return [
        Example(" ".join(e.source for e in found[i : i + 4]), " ".join(e.target for e in found[i : i + 4]))
        for i in range(32)
    ]


class BareLoop:
    """What one would write with transformers and peft alone."""

    def __init__(self, path: Path, task: SummarizationTask, learning_rate: float) -> None:
        base = load_base(path, "fp32", "cpu")
        self.tokenizer, self.task = base.tokenizer, task
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            config = LoraConfig(r=LORA.rank, lora_alpha=LORA.alpha, target_modules=TARGETS, task_type="SEQ_2_SEQ_LM")
            self.model = get_peft_model(base.model, config)
        self.model.train()
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0)
        self.parameters = parameters

    def step(self, examples: Sequence[Example]) -> float:
        """Train on a batch; return its loss."""
        limits: dict[str, Any] = {"padding": True, "truncation": True, "return_tensors": "pt"}
        prompts = [self.task.prompt.replace("{source}", e.source) for e in examples]
        inputs = self.tokenizer(prompts, max_length=self.task.max_source_tokens, **limits)
        targets = [e.target for e in examples]
        labels = self.tokenizer(text_target=targets, max_length=self.task.max_target_tokens, **limits)["input_ids"]
        labels[labels == self.tokenizer.pad_token_id] = -100
        loss = self.model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(loss.detach())


def measure(path: Path, task: SummarizationTask, batch_size: int, steps: int, repeats: int) -> dict[str, Any]:
    """Return seconds per step of both loops and the median ratio of neighbours in time."""
    examples = long_examples()
    bare = BareLoop(path, task, 1e-3)
    ours = install(load_base(path, "fp32", "cpu"), list(linear_shapes(path, TARGETS)), LORA, seed=0)
    options = TrainOptions(steps=steps, batch_size=batch_size, learning_rate=1e-3)

    def bare_s() -> float:
        begun_s = time.perf_counter()
        for step in range(steps):
            start = step * batch_size % len(examples)
            bare.step([examples[(start + i) % len(examples)] for i in range(batch_size)])
        return (time.perf_counter() - begun_s) / steps

    bare_s(), edgefed_s(ours, examples, task, options)  # warm up
    pairs = []
    for repeat in range(repeats):
        if repeat % 2:
            theirs_s, ours_s = bare_s(), edgefed_s(ours, examples, task, options)
        else:
            ours_s, theirs_s = edgefed_s(ours, examples, task, options), bare_s()
        pairs.append((ours_s, theirs_s))
        print(
            f"  edgefed {ours_s * 1e3:.1f} ms, bare {theirs_s * 1e3:.1f} ms, ratio {ours_s / theirs_s:.3f}", flush=True
        )
    ratios = sorted(a / b for a, b in pairs)
    return {
        "edgefed_step_s": statistics.median(a for a, _ in pairs),
        "bare_step_s": statistics.median(b for _, b in pairs),
        "ratio_median": statistics.median(ratios),
        "ratio_quartiles": [ratios[len(ratios) // 4], ratios[3 * len(ratios) // 4]],
        "ratio_of_fastest": min(a for a, _ in pairs) / min(b for _, b in pairs),
        "repeats": repeats,
        "steps_per_repeat": steps,
    }


def edgefed_s(
    model: AdaptedModel, examples: Sequence[Example], task: SummarizationTask, options: TrainOptions
) -> float:
    """Return seconds per step of a whole call of `train`, its set-up included."""
    begun_s = time.perf_counter()
    train(model, examples, task, options)
    return (time.perf_counter() - begun_s) / options.steps


def main() -> None:
    """Measure both models and write results/cpu.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=24)
    parser.add_argument("--steps", type=int, default=5, help="per turn")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "cpu.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    task = SummarizationTask(max_source_tokens=128, max_target_tokens=32)
    found: dict[str, Any] = {"provenance": provenance(), "threads": options.threads, "batch": options.batch}
    found |= {"source_tokens": 128, "target_tokens": 32, "targets": TARGETS, "rank": LORA.rank, "models": {}}
    with tempfile.TemporaryDirectory() as scratch:
        models = {
            "tiny-t5": resolve_model("edgefed/tiny-t5"),
            "flan-t5-small layout": flan_t5_small_layout(Path(scratch)),
        }
        for name, path in models.items():
            print(name, flush=True)
            found["models"][name] = measure(path, task, options.batch, options.steps, options.repeats)
            print(json.dumps(found["models"][name]), flush=True)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
