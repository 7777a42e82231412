"""Analytic operations of a training step against torch's own count: `python -m benchmarks.flops.run`.

Models have weights on the meta device, where torch computes shapes and nothing else, so that all sizes fit.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peft
import torch
from rich.progress import track
from torch.utils.flop_counter import FlopCounterMode
from transformers import T5Config, T5ForConditionalGeneration

from benchmarks.provenance import provenance
from edgefed.models.flops import Adaptation, step_flops
from edgefed.models.layout import FLAN_T5, ModelLayout

HERE = Path(__file__).parent
ALL = ("q", "k", "v", "o", "wi_0", "wi_1", "wo")


def cases() -> Iterator[tuple[ModelLayout, Adaptation, int, int, int, bool]]:
    """Yield (layout, what is trained, source, target, batch, checkpointing)."""
    for layout in FLAN_T5.values():
        yield layout, Adaptation(), 128, 32, 2, False
        yield layout, Adaptation(("q", "v"), 8), 512, 128, 2, False
        yield layout, Adaptation(ALL, 16), 256, 64, 2, False
        yield layout, Adaptation(("q", "v"), 4, held_rank=32), 128, 32, 1, False
        yield layout, Adaptation(("wi_0", "wi_1", "wo"), 64), 128, 48, 2, False
        yield layout, Adaptation(("q", "v"), 8), 256, 64, 2, True


def counted(layout: ModelLayout, adaptation: Adaptation, source: int, target: int, batch: int, again: bool) -> float:
    """Return torch's count of one forward and backward pass."""
    config = T5Config(
        vocab_size=layout.vocabulary,
        d_model=layout.d_model,
        d_kv=layout.d_kv,
        d_ff=layout.d_ff,
        num_layers=layout.encoder_layers,
        num_decoder_layers=layout.decoder_layers,
        num_heads=layout.heads,
        feed_forward_proj="gated-gelu" if layout.gated else "relu",
        tie_word_embeddings=layout.tied,
        decoder_start_token_id=0,
        use_cache=False,
    )
    with torch.device("meta"):
        model: Any = T5ForConditionalGeneration(config)
        if adaptation.rank:
            model = _adapted(model, adaptation)
        model.train()
        if again:
            base = model.base_model.model
            enable = getattr(base, "activation_checkpointing_enable", base.gradient_checkpointing_enable)
            enable({"use_reentrant": False})
        source_ids = torch.zeros(batch, source, dtype=torch.long)
        target_ids = torch.zeros(batch, target, dtype=torch.long)
        with FlopCounterMode(display=False) as counter:
            logits = model(input_ids=source_ids, decoder_input_ids=target_ids).logits
            logits.sum().backward()
    return float(counter.get_total_flops())


def _adapted(model: Any, adaptation: Adaptation) -> Any:
    model.requires_grad_(False)
    config = peft.LoraConfig(r=adaptation.rank, target_modules=list(adaptation.target_modules))
    adapted: Any = peft.get_peft_model(model, config, adapter_name="trained")
    if adaptation.held_rank:
        held = peft.LoraConfig(r=adaptation.held_rank, target_modules=list(adaptation.target_modules))
        adapted.add_adapter("held", held)
        adapted.base_model.set_adapter(["trained", "held"])
        for name, parameter in adapted.named_parameters():
            parameter.requires_grad_("trained" in name)
    return adapted


def main() -> None:
    """Compare, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=HERE / "results" / "flops.json")
    options = parser.parse_args()
    results = []
    for layout, adaptation, source, target, batch, again in track(list(cases()), description="counting"):
        ours = step_flops(layout, adaptation, source, target, batch)
        analytic = ours.model + (ours.recompute if again else 0.0)
        torchs = counted(layout, adaptation, source, target, batch, again)
        results.append(
            {
                "model": layout.name,
                "trained": "all weights" if not adaptation.rank else f"rank {adaptation.rank}",
                "target_modules": list(adaptation.target_modules),
                "held_rank": adaptation.held_rank,
                "source": source,
                "target": target,
                "batch": batch,
                "checkpointing": again,
                "analytic": analytic,
                "torch": torchs,
                "ratio": analytic / torchs,
            }
        )
        print(json.dumps(results[-1]))
    worst = max(abs(one["ratio"] - 1) for one in results)
    print(f"largest difference: {worst:.2%}")
    options.output.write_text(
        json.dumps({"provenance": provenance(), "largest_difference": worst, "results": results}, indent=2) + "\n"
    )


if __name__ == "__main__":
    main()
