"""Make the tiny T5 that ships with edgefed: a tokenizer and 1.7 million weights that can read, copy and answer.

It is trained on fresh dialogues from `dialogue_topics`, never on a summary: copying words, masked spans, repeating a
turn, listing facts that were asked for, and filling blanks in senseless sentences. So it knows how to find things in a
dialogue and put them into a text, and does not know what a summary is: that is left for a federation to teach it.

    python -m tools.make_tiny_t5

About half an hour on one core. The same seed gives the same bytes on the same machine and versions.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import T5Config, T5ForConditionalGeneration

from tools.dialogue_grammar import Draft
from tools.dialogue_topics import TOPICS

ASSETS = Path(__file__).resolve().parents[1] / "edgefed" / "assets" / "tiny_t5"
PAD, END, SENTINELS = 0, 1, 32
LAYOUT: dict[str, Any] = {
    "architectures": ["T5ForConditionalGeneration"],
    "model_type": "t5",
    "d_model": 128,
    "d_kv": 32,
    "d_ff": 384,
    "num_layers": 3,
    "num_decoder_layers": 3,
    "num_heads": 4,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "dropout_rate": 0.0,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": True,
    "is_encoder_decoder": True,
    "layer_norm_epsilon": 1e-6,
    "pad_token_id": PAD,
    "eos_token_id": END,
    "decoder_start_token_id": PAD,
}


def drafts(rng: Random) -> Iterator[Draft]:
    """Yield dialogues of all topics for ever."""
    topics = sorted(TOPICS)
    while True:
        yield TOPICS[rng.choice(topics)](rng)


def make_tokenizer(seed: int, size: int) -> Tokenizer:
    """Train byte-pair merges on dialogues; digits stand alone, so that a number can be copied digit by digit.

    Not T5's unigram model: on so few different words it cuts even common ones to pieces.
    """
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(r"\s+"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(), pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.Punctuation()]
    )
    tokenizer.decoder = decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>", *(f"<extra_id_{i}>" for i in range(SENTINELS))]
    alphabet = [chr(c) for c in range(33, 127)]
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    stream = drafts(Random(f"tokenizer/{seed}"))
    tokenizer.train_from_iterator((next(stream).dialogue for _ in range(12_000)), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", END)]
    )
    return tokenizer


class Exercises:
    """Pre-training pairs of token ids."""

    def __init__(self, tokenizer: Tokenizer, seed: int) -> None:
        self.tokenizer = tokenizer
        self.rng = Random(f"exercises/{seed}")
        self.drafts = drafts(self.rng)
        seen = {w.strip(".,?!:") for _ in range(2000) for w in next(self.drafts).dialogue.split()}
        self.words = sorted(seen - {""})

    def copy(self) -> tuple[list[int], list[int]]:
        """Return random words to be written again: the first thing to learn, and quickly learnt from short texts."""
        words = " ".join(self.rng.choices(self.words, k=self.rng.randint(4, 14)))
        return self._ids(f"copy: {words}"), self._ids(words)

    def draw(self) -> tuple[list[int], list[int]]:
        """Return (source, target) of a random kind."""
        draft = next(self.drafts)
        kind = self.rng.random()
        if kind < 0.2:
            ids = self.tokenizer.encode(draft.dialogue, add_special_tokens=False).ids
            return self._mask(ids, *((0.15, 3) if kind < 0.15 else (0.4, 8)))
        make = self._fill if kind < 0.6 else self._list if kind < 0.85 else self._repeat
        question, answer = make(draft)
        return self._ids(f"{question} {draft.dialogue}"), self._ids(answer)

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text).ids)

    def _list(self, draft: Draft) -> tuple[str, str]:
        asked = self.rng.sample(sorted(draft.facts), self.rng.randint(1, min(4, len(draft.facts))))
        return f"list: {', '.join(asked)}.", "; ".join(draft.facts[name] for name in asked)

    def _fill(self, draft: Draft) -> tuple[str, str]:
        """A sentence of random words with blanks to fill: its words say nothing, so only reading helps."""
        asked = self.rng.sample(sorted(draft.facts), self.rng.randint(1, min(5, len(draft.facts))))
        blanks, filled = [], []
        for name in asked:
            words = self.rng.choices(self.words, k=self.rng.randint(0, 3))
            mark = self.rng.choice(("", "", "", ",", ":", ";", "."))
            blanks += [*words, f"[{name}]{mark}"]
            filled += [*words, f"{draft.facts[name]}{mark}"]
        return f"fill: {' '.join(blanks)} |", " ".join(filled)

    def _repeat(self, draft: Draft) -> tuple[str, str]:
        speaker, said = self.rng.choice(list(draft.turns))
        start = " ".join(said.split()[:2])
        if self.rng.random() < 0.5:
            return f"continue: {start}.", said
        return f"who said: {said}", speaker

    def _mask(self, ids: list[int], density: float, mean_span: int) -> tuple[list[int], list[int]]:
        masked = max(round(len(ids) * density), 1)
        spans = min(max(round(masked / mean_span), 1), SENTINELS)
        noise, kept = self._split(masked, min(spans, masked)), self._split(len(ids) - masked, min(spans, masked))
        source, target, at = [], [], 0
        first = self.tokenizer.token_to_id("<extra_id_0>")
        for i, (keep, drop) in enumerate(zip(kept, noise, strict=True)):
            source += [*ids[at : at + keep], first + i]
            target += [first + i, *ids[at + keep : at + keep + drop]]
            at += keep + drop
        return [*source, END], [*target, END]

    def _split(self, total: int, parts: int) -> list[int]:
        cuts = sorted(self.rng.sample(range(1, total), parts - 1))
        return [b - a for a, b in zip([0, *cuts], [*cuts, total], strict=True)]


def collate(pairs: list[tuple[list[int], list[int]]]) -> dict[str, torch.Tensor]:
    """Pad pairs to input_ids, attention_mask and labels of the longest."""
    longest_source, longest_target = (max(len(pair[side]) for pair in pairs) for side in (0, 1))
    ids = torch.tensor([source + [PAD] * (longest_source - len(source)) for source, _ in pairs])
    labels = torch.tensor([target + [-100] * (longest_target - len(target)) for _, target in pairs])
    return {"input_ids": ids, "attention_mask": (ids != PAD).long(), "labels": labels}


def pretrain(
    model: T5ForConditionalGeneration, exercises: Exercises, steps: int, stop_after: int, batch: int, rate: float
) -> None:
    """Train: copying words for the first sixth, then all exercises; warm-up, flat, linearly down over the last half.

    Matrices go by Muon, which finds out how to copy in a third of the steps that AdamW needs here; the embedding,
    norms and position biases go by AdamW.
    """
    for module in model.modules():
        if hasattr(module, "wi_0"):
            module.act = torch.nn.GELU(approximate="tanh")  # gelu_new in one pass over memory instead of eight
    hidden = [p for n, p in model.named_parameters() if p.ndim == 2 and "layer" in n and "relative" not in n]
    others = [p for p in model.parameters() if not any(p is q for q in hidden)]
    optimizers = [
        torch.optim.Muon(hidden, lr=rate, momentum=0.95, weight_decay=0.0),
        torch.optim.AdamW(others, lr=2.5 * rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    ]
    full_rates = [rate, 2.5 * rate]
    begun_s, recent = time.monotonic(), []
    for step in range(min(steps, stop_after)):
        factor = min(1.0, (step + 1) / 50, 2 * (1 - step / steps) + 0.02)
        draw = exercises.copy if step < steps // 6 else exercises.draw
        loss = model(**collate([draw() for _ in range(batch)])).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, full_rate in zip(optimizers, full_rates, strict=True):
            optimizer.param_groups[0]["lr"] = full_rate * factor
            optimizer.step()
            optimizer.zero_grad()
        recent.append(float(loss.detach()))
        if (step + 1) % 100 == 0:
            print(
                f"step {step + 1}: loss {sum(recent) / len(recent):.3f}, {time.monotonic() - begun_s:.0f} s", flush=True
            )
            recent = []


def save(model: T5ForConditionalGeneration, tokenizer: Tokenizer, directory: Path) -> None:
    """Write the directory: weights in bf16, half the size; what rounding changes is far below what training changes."""
    directory.mkdir(parents=True, exist_ok=True)
    tied = {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"}
    weights = {k: v.detach().to(torch.bfloat16).contiguous() for k, v in model.state_dict().items() if k not in tied}
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    config = LAYOUT | {"vocab_size": model.config.vocab_size, "dtype": "float32"}
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": "<pad>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "model_max_length": 512,
        "clean_up_tokenization_spaces": False,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Make tokenizer and model, and say how large they are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ASSETS)
    parser.add_argument("--vocabulary", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=4200, help="that the learning rate is planned for")
    parser.add_argument("--stop-after", type=int, default=2499, help="steps to take; the shipped weights took 2499")
    parser.add_argument("--batch", type=int, default=20)
    parser.add_argument("--learning-rate", type=float, default=8e-3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    tokenizer = make_tokenizer(options.seed, options.vocabulary)
    size = -(-tokenizer.get_vocab_size() // 64) * 64
    model = T5ForConditionalGeneration(T5Config(**LAYOUT, vocab_size=size))
    print(f"{size} entries, {sum(p.numel() for p in model.parameters())} weights", flush=True)
    exercises = Exercises(tokenizer, options.seed)
    pretrain(model, exercises, options.steps, options.stop_after, options.batch, options.learning_rate)
    save(model, tokenizer, options.output)
    print(f"{options.output}: {sum(f.stat().st_size for f in options.output.iterdir())} bytes")


if __name__ == "__main__":
    main()
