"""Measure a grid of configurations: `python -m benchmarks.plan_prediction.measure`. Started again, it goes on.

Models have random weights of the exact layouts. The grid is drawn with a fixed seed, a step being limited to a terabyte
of operations so that one core finishes it in under half an hour; a hash of its name puts every configuration into the
half that the model's constants are fitted on, or into the half that is not looked at.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.progress import track

from benchmarks.provenance import provenance
from edgefed.models.flops import Adaptation, step_flops
from edgefed.models.layout import FLAN_T5, ModelLayout

HERE = Path(__file__).parent
ALL = ["q", "k", "v", "o", "wi_0", "wi_1", "wo"]
LARGEST_STEP_FLOPS = {"google/flan-t5-small": 5e11, "google/flan-t5-base": 8e11}
PRECISIONS = ("fp32", "bf16", "int8", "nf4")


def grid() -> Iterator[dict[str, Any]]:
    """Yield 48 configurations: all precisions equally, two thirds of the small layout."""
    draw = random.Random("memory")
    for number in range(48):
        name = "google/flan-t5-base" if number % 3 == 2 else "google/flan-t5-small"
        while True:
            micro = draw.choice([1, 2, 4, 8])
            case = {
                "layout": name,
                "quantization": PRECISIONS[(number // 3) % 4],
                "target_modules": draw.choice([["q", "v"], ["q", "v"], ALL]),
                "rank": draw.choice([2, 4, 8, 16, 32, 64]),
                "held_rank": draw.choice([0, 0, 32]),
                "batch": micro * draw.choice([1, 1, 2]),
                "micro_batch": micro,
                "source": draw.choice([128, 192, 256, 384, 512, 768, 1024]),
                "target": draw.choice([16, 32, 64, 128]),
                "checkpointing": draw.random() < 0.35,
            }
            if _flops(case) <= LARGEST_STEP_FLOPS[name]:
                break
        yield case


def is_held_out(case: dict[str, Any]) -> bool:
    """Whether a configuration is not looked at while the model is fitted."""
    return hashlib.sha256(json.dumps(case, sort_keys=True).encode()).digest()[0] % 2 == 1


def _flops(case: dict[str, Any]) -> float:
    adaptation = Adaptation(case["target_modules"], case["rank"], case["held_rank"])
    cost = step_flops(FLAN_T5[case["layout"]], adaptation, case["source"], case["target"], case["batch"])
    return cost.model + (cost.recompute if case["checkpointing"] else 0.0)


def write_model(layout: ModelLayout, tokenizer: Path, directory: Path) -> None:
    """Write a model of random weights as FLAN-T5 is stored: fp32, with an output layer of its own."""
    import torch
    from safetensors.torch import save_file
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        architectures=["T5ForConditionalGeneration"],
        vocab_size=layout.vocabulary,
        d_model=layout.d_model,
        d_kv=layout.d_kv,
        d_ff=layout.d_ff,
        num_layers=layout.encoder_layers,
        num_decoder_layers=layout.decoder_layers,
        num_heads=layout.heads,
        dropout_rate=0.1,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        decoder_start_token_id=0,
        dtype="float32",
    )
    directory.mkdir()
    model = T5ForConditionalGeneration(config)
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items() if "embed_tokens" not in name}
    tensors["lm_head.weight"] = torch.randn(layout.vocabulary, layout.d_model) * layout.d_model**-0.5
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    config.save_pretrained(directory)
    for file in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "spiece.model"):
        shutil.copyfile(tokenizer / file, directory / file)


def main() -> None:
    """Measure what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, default=Path("../shared/data/t5_tokenizer"))
    parser.add_argument("--output", type=Path, default=HERE / "results" / "measured.jsonl")
    options = parser.parse_args()
    options.output.parent.mkdir(exist_ok=True)
    known = [json.loads(line) for line in options.output.read_text().splitlines()] if options.output.is_file() else []
    missing = [case for case in grid() if case not in [one["case"] for one in known]]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory(prefix="edgefed-memory-") as scratch:
        for name in sorted({case["layout"] for case in missing}):
            write_model(FLAN_T5[name], options.tokenizer, Path(scratch) / name.replace("/", "-"))
        for case in track(missing, description="measuring"):
            given = json.dumps(case | {"model": str(Path(scratch) / case["layout"].replace("/", "-"))})
            command = [sys.executable, "-m", "benchmarks.plan_prediction.case", given]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment).stdout
            row = {"case": case, "held_out": is_held_out(case), "measured": json.loads(output.splitlines()[-1])}
            with options.output.open("a") as file:
                file.write(json.dumps(row | {"provenance": provenance()}) + "\n")


if __name__ == "__main__":
    main()
