"""Pre-train a T5 of FLAN-T5-small's layout on the training texts of the three data sets, for as long as told.

The result is a Hugging Face directory that every method of the benchmark starts from. Inputs and targets of a pair are
used as unrelated texts: no summary is ever shown beside its source, and validation and test texts are only read to
watch the denoising loss (MeQSum, which has no official split, keeps every fifth row back: ``meqsum_is_held_out``).

What makes a T5 learn in an hour of two CPU cores:

- The embedding and the output layer are one matrix E while training (logits = h·Eᵀ/√d, as the first T5 did), because
  copying then needs nothing from the attention but to point. A checkpoint unties them as FLAN-T5 does: lm_head = E/√d,
  an exact rewriting.
- AdamW's step is scaled by each matrix's initial size, as Adafactor does: T5 starts its embedding at 1 and its query
  matrices at 0.006.
- While training, the vocabulary is the 14,000 entries that occur. A checkpoint gives the others the mean row of the
  rarest, with noise in the embedding, which is about what a full softmax would have made of them, at half the work.
- A mixture of targets: short masked spans, long masked spans, and the sentence that overlaps most with the rest of its
  text, which teaches the decoder to read the encoder.

Stop it at any time; started again with the same output it goes on, with fresh AdamW moments and a short warm-up.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import random
import re
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, T5Config, T5ForConditionalGeneration

# google/flan-t5-small's config.json; built so, transformers 5 ties lm_head, which `untied` undoes.
LAYOUT: dict[str, Any] = {
    "architectures": ["T5ForConditionalGeneration"],
    "model_type": "t5",
    "vocab_size": 32128,
    "d_model": 512,
    "d_kv": 64,
    "d_ff": 1024,
    "num_layers": 8,
    "num_decoder_layers": 8,
    "num_heads": 6,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "dropout_rate": 0.1,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
    "is_encoder_decoder": True,
    "use_cache": True,
    "layer_norm_epsilon": 1e-6,
    "initializer_factor": 1.0,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
}
PAD, END, UNKNOWN = 0, 1, 2  # the same in the whole vocabulary and in the compact one
SENTINELS = range(32000, 32100)
Document = list[list[int]]  # sentences of token ids


class Vocabulary:
    """The entries that occur in the training texts, renumbered in order; `rare` are those that occur once."""

    def __init__(self, docs: list[Document], prompt: list[int]) -> None:
        counts = Counter(t for d in docs for s in d for t in s)
        self.entries = sorted({PAD, END, UNKNOWN, *counts, *prompt, *SENTINELS})
        self.compact = {entry: i for i, entry in enumerate(self.entries)}
        self.rare = [self.compact[t] for t, n in counts.items() if n == 1]

    def encode(self, ids: list[int]) -> list[int]:
        """Return compact numbers of whole-vocabulary ids."""
        return [self.compact.get(t, UNKNOWN) for t in ids]

    def expand(self, rows: torch.Tensor, noise: float) -> torch.Tensor:
        """Return rows for the whole vocabulary, (32128, d) float32, from rows of the compact one."""
        others = rows[self.rare].mean(0)
        generator = torch.Generator().manual_seed(0)
        whole = others + noise * torch.randn(LAYOUT["vocab_size"], rows.shape[1], generator=generator)
        whole[self.entries] = rows
        return whole


class Pair(NamedTuple):
    """One pre-training example, as token ids."""

    source: list[int]
    target: list[int]


def meqsum_is_held_out(row: int) -> bool:
    """Whether row `row` (from 0) of meqsum.csv belongs to the held-out fifth."""
    return row % 5 == 4


def training_texts(data: Path) -> list[str]:
    """Return the training texts of the three data sets, sources and targets side by side without their pairing."""
    texts: list[str] = []
    with (data / "mts_dialog" / "MTS-Dialog-TrainingSet.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            texts += [row["dialogue"], row["section_text"]]
    with (data / "meqsum" / "meqsum.csv").open(encoding="utf-8", newline="") as file:
        for i, row in enumerate(csv.DictReader(file)):
            if not meqsum_is_held_out(i):
                texts += [row["CHQ"], row["Summary"]]
    with (data / "scitldr_a" / "train.jsonl").open(encoding="utf-8") as file:
        for line in file:
            paper = json.loads(line)
            texts += [" ".join(paper["source"]), *paper["target"]]
    return texts


def held_out_texts(data: Path) -> list[str]:
    """Return validation texts of the same kinds, to watch the denoising loss on."""
    with (data / "mts_dialog" / "MTS-Dialog-ValidationSet.csv").open(encoding="utf-8", newline="") as file:
        texts = [row["dialogue"] for row in csv.DictReader(file)]
    with (data / "scitldr_a" / "dev.jsonl").open(encoding="utf-8") as file:
        texts += [" ".join(json.loads(line)["source"]) for line in list(file)[:100]]
    return texts


def documents(texts: list[str], tokenizer: Any, longest: int) -> list[Document]:
    """Split texts into sentences of token ids, none longer than `longest`."""
    found = []
    for text in texts:
        sentences = [s for s in re.split(r"(?<=[.?!])\s+|\n+", text.strip()) if s]
        encoded = tokenizer(sentences, add_special_tokens=False)["input_ids"] if sentences else []
        pieces = [ids[i : i + longest] for ids in encoded for i in range(0, len(ids), longest)]
        if sum(map(len, pieces)) >= 8:
            found.append(pieces)
    return found


def window(document: Document, longest: int, rng: random.Random) -> Document:
    """Return consecutive sentences from a random start, `longest` tokens at most."""
    start = rng.randrange(len(document))
    taken, size = [], 0
    for sentence in document[start:] if start else document:
        if size + len(sentence) > longest:
            break
        taken.append(sentence)
        size += len(sentence)
    return taken


def mask_spans(ids: list[int], first: int, density: float, mean_span: float, rng: random.Random) -> Pair:
    """T5's span corruption: spans become sentinels, from `first` down, and are spelled out in the target."""
    masked = min(max(round(len(ids) * density), 1), len(ids) - 1)
    spans = min(max(round(masked / mean_span), 1), len(ids) - masked, 100)
    noise, kept = _split(masked, spans, rng), _split(len(ids) - masked, spans, rng)
    source, target, at = [], [], 0
    for i, (keep, drop) in enumerate(zip(kept, noise, strict=True)):
        source += [*ids[at : at + keep], first - i]
        target += [first - i, *ids[at + keep : at + keep + drop]]
        at += keep + drop
    return Pair([*source, END], [*target, END])


def _split(total: int, parts: int, rng: random.Random) -> list[int]:
    """Split `total` into `parts` random positive whole numbers."""
    cuts = sorted(rng.sample(range(1, total), parts - 1))
    return [b - a for a, b in zip([0, *cuts], [*cuts, total], strict=True)]


def main_sentence(sentences: Document, prompt: list[int]) -> Pair:
    """Ask for the sentence that shares most of its tokens with the others."""

    def overlap(i: int) -> float:
        own = Counter(sentences[i])
        rest = Counter(t for j, s in enumerate(sentences) if j != i for t in s)
        shared = sum((own & rest).values())
        return 2 * shared / (len(sentences[i]) + sum(rest.values()))

    best = max(range(len(sentences)), key=overlap)
    return Pair([*prompt, *(t for s in sentences for t in s), END], [*sentences[best], END])


def draw_pair(sentences: Document, first: int, prompt: list[int], rng: random.Random) -> Pair:
    """Draw one of the three objectives for a window of text."""
    ids = [t for s in sentences for t in s]
    kind = rng.random()
    if kind < 0.35 and len(sentences) > 1:
        return main_sentence(sentences, prompt)
    if kind < 0.55:
        return mask_spans(ids, first, 0.4, 8, rng)
    return mask_spans(ids, first, 0.15, 3, rng)


def batches(
    docs: list[Document], batch: int, longest: int, first: int, prompt: list[int], seed: int
) -> Iterator[dict[str, torch.Tensor]]:
    """Yield padded batches for ever; neighbours in length share a batch, so little of it is padding."""
    rng = random.Random(seed)
    sizes = [min(sum(map(len, d)), 4 * longest) for d in docs]
    while True:
        drawn = (window(d, longest, rng) for d in rng.choices(docs, sizes, k=16 * batch))
        pairs = [draw_pair(w, first, prompt, rng) for w in drawn if sum(map(len, w)) >= 8]
        pairs.sort(key=lambda p: len(p.source))
        groups = [pairs[i : i + batch] for i in range(0, len(pairs), batch)]
        rng.shuffle(groups)
        for group in groups:
            yield collate(group)


def collate(pairs: list[Pair]) -> dict[str, torch.Tensor]:
    """Pad to the longest: input_ids, attention_mask (batch, source) and labels (batch, target), -100 where padded."""
    source = max(len(p.source) for p in pairs)
    target = max(len(p.target) for p in pairs)
    ids = torch.tensor([p.source + [PAD] * (source - len(p.source)) for p in pairs])
    labels = torch.tensor([p.target + [-100] * (target - len(p.target)) for p in pairs])
    return {"input_ids": ids, "attention_mask": (ids != PAD).long(), "labels": labels}


def held_out_batches(docs: list[Document], vocabulary: Vocabulary, longest: int) -> list[dict[str, torch.Tensor]]:
    """Return four fixed batches of 32 texts with masked spans."""
    rng = random.Random(1)
    windows = [vocabulary.encode([t for s in window(d, longest, rng) for t in s]) for d in docs]
    long_enough = [ids for ids in windows if len(ids) > 20]
    first = vocabulary.compact[SENTINELS[-1]]
    return [
        collate([mask_spans(ids, first, 0.15, 3, rng) for ids in long_enough[i : i + 32]]) for i in range(0, 128, 32)
    ]


def build(directory: Path, vocabulary: Vocabulary, seed: int) -> T5ForConditionalGeneration:
    """Build the model with E shared by input and output, from a checkpoint where there is one."""
    torch.manual_seed(seed)
    config = T5Config(
        **{**LAYOUT, "dropout_rate": 0.0, "tie_word_embeddings": True, "vocab_size": len(vocabulary.entries)}
    )
    model = T5ForConditionalGeneration(config)
    checkpoint = directory / "model.safetensors"
    if checkpoint.exists():
        weights = load_file(checkpoint)
        del weights["lm_head.weight"]
        weights["shared.weight"] = weights["shared.weight"][vocabulary.entries]
        model.load_state_dict(weights, strict=False)
    if model.lm_head.weight is not model.shared.weight:
        raise SystemExit("the embedding is not shared with the output layer in this version of transformers")
    for module in model.modules():
        if hasattr(module, "wi_0"):
            module.act = torch.nn.GELU(approximate="tanh")  # gelu_new in one pass over memory instead of eight
    return model


def save(
    model: T5ForConditionalGeneration,
    vocabulary: Vocabulary,
    directory: Path,
    tokenizer_files: Path,
    state: dict[str, float],
) -> None:
    """Write a FLAN-T5-like directory; model.safetensors is replaced in one step, so that it can always be read."""
    directory.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "spiece.model"):
        if not (directory / name).exists():
            shutil.copyfile(tokenizer_files / name, directory / name)
    (directory / "config.json").write_text(json.dumps(LAYOUT, indent=2) + "\n", encoding="utf-8")
    tied = {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"}
    weights = {k: v.detach().contiguous() for k, v in model.state_dict().items() if k not in tied}
    compact = weights["shared.weight"]
    weights["shared.weight"] = vocabulary.expand(compact, noise=1.0)
    weights["lm_head.weight"] = vocabulary.expand(compact, noise=0.0) * LAYOUT["d_model"] ** -0.5
    partial = directory / "model.safetensors.partial"
    save_file(weights, partial, metadata={"format": "pt"})
    partial.replace(directory / "model.safetensors")
    (directory / "pretraining.json").write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")


def parameter_groups(model: T5ForConditionalGeneration, learning_rate: float) -> list[dict[str, Any]]:
    """One group per size of initial values: the step is `learning_rate` times that size."""
    sizes: dict[float, list[torch.nn.Parameter]] = {}
    d, d_ff, inner = LAYOUT["d_model"], LAYOUT["d_ff"], LAYOUT["num_heads"] * LAYOUT["d_kv"]
    by_name = {"q": 2 * (d * LAYOUT["d_kv"]) ** -0.5, "o": inner**-0.5, "wo": d_ff**-0.5, "shared": 0.4}
    for name, parameter in model.named_parameters():
        kind = name.split(".")[-2]
        size = 0.2 if parameter.ndim == 1 else by_name.get(kind, d**-0.5)
        sizes.setdefault(size, []).append(parameter)
    return [{"params": p, "lr": learning_rate * size, "base_lr": learning_rate * size} for size, p in sizes.items()]


def schedule(elapsed_s: float, total_s: float, since_start_s: float) -> float:
    """Factor of the learning rate: warm-up over 3 % of the time, flat, and a linear fall to 5 % over the last 40 %."""
    warm_s = 0.03 * total_s
    rise = min(1.0, since_start_s / warm_s + 0.02)
    fall = min(1.0, max(0.05, (1 - elapsed_s / total_s) / 0.4))
    return rise * fall


def denoising_loss(model: T5ForConditionalGeneration, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the mean loss in nats per target token; the output layer, a third of the work, is spared the padding."""
    memory = model.encoder(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
    labels = batch["labels"]
    hidden = model.decoder(
        input_ids=model._shift_right(labels),
        encoder_hidden_states=memory,
        encoder_attention_mask=batch["attention_mask"],
        use_cache=False,
    ).last_hidden_state
    real = labels != -100
    logits = model.lm_head(hidden[real] * LAYOUT["d_model"] ** -0.5)
    return torch.nn.functional.cross_entropy(logits.float(), labels[real])


@torch.no_grad()
def held_out_loss(model: T5ForConditionalGeneration, fixed: list[dict[str, torch.Tensor]]) -> float:
    """Return the mean loss (nats per target token) over fixed batches of masked spans."""
    total, tokens = 0.0, 0
    for batch in fixed:
        count = int((batch["labels"] != -100).sum())
        total += float(denoising_loss(model, batch)) * count
        tokens += count
    return total / tokens


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    here = Path(__file__).resolve().parents[2]
    parser.add_argument(
        "--data", type=Path, default=here.parent / "shared" / "data", help="the three data sets and the tokenizer"
    )
    parser.add_argument("--output", type=Path, required=True, help="directory of the model; resumed where it exists")
    parser.add_argument("--minutes", type=float, default=60.0, help="minutes of training in all, earlier runs included")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=12)
    parser.add_argument("--length", type=int, default=120, help="tokens of a window")
    parser.add_argument("--learning-rate", type=float, default=0.008, help="relative to the size of the initial values")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of the matrix products")
    parser.add_argument("--checkpoint-minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    """Train until the minutes are over; a line of JSON every 20 steps."""
    options = arguments()
    torch.set_num_threads(options.threads)
    tokenizer_files = options.data / "t5_tokenizer"
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_files)
    prompt = tokenizer("extract: ", add_special_tokens=False)["input_ids"]
    docs = documents(training_texts(options.data), tokenizer, options.length)
    vocabulary = Vocabulary(docs, prompt)
    first, prompt = vocabulary.compact[SENTINELS[-1]], vocabulary.encode(prompt)
    docs = [[vocabulary.encode(s) for s in d] for d in docs]
    print(
        f"{len(docs)} texts, {sum(len(s) for d in docs for s in d)} tokens, {len(vocabulary.entries)} entries",
        flush=True,
    )
    fixed = held_out_batches(
        documents(held_out_texts(options.data), tokenizer, options.length), vocabulary, options.length
    )

    options.output.mkdir(parents=True, exist_ok=True)
    state = {"elapsed_s": 0.0, "step": 0.0, "tokens": 0.0}
    if (options.output / "pretraining.json").exists():
        state |= json.loads((options.output / "pretraining.json").read_text(encoding="utf-8"))
    model = build(options.output, vocabulary, options.seed)
    groups = parameter_groups(model, options.learning_rate)
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    stream = batches(docs, options.batch, options.length, first, prompt, options.seed + int(state["step"]))
    begun_s, earlier_s, total_s = time.monotonic(), state["elapsed_s"], 60 * options.minutes
    saved_s, losses = begun_s, []
    with (options.output / "pretraining.jsonl").open("a", encoding="utf-8") as log:
        while state["elapsed_s"] < total_s:
            since_s = time.monotonic() - begun_s
            state["elapsed_s"] = earlier_s + since_s
            factor = schedule(state["elapsed_s"], total_s, since_s)
            for group in optimizer.param_groups:
                group["lr"] = group["base_lr"] * factor
            batch = next(stream)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=options.precision == "bf16"):
                loss = denoising_loss(model, batch)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)  # fresh pages cost more than writing zeros
            if not math.isfinite(losses_now := float(loss.detach())):
                raise SystemExit(f"the loss is {losses_now} at step {state['step']:.0f}: lower --learning-rate")
            losses.append(losses_now)
            state["step"] += 1
            state["tokens"] += float(batch["attention_mask"].sum() + (batch["labels"] != -100).sum())
            if state["step"] % 20 == 0:
                line = {k: round(v, 1) for k, v in state.items()} | {
                    "loss": round(sum(losses) / len(losses), 4),
                    "factor": round(factor, 3),
                }
                losses = []
                if state["step"] % 200 == 0:
                    line["held_out_loss"] = round(held_out_loss(model, fixed), 4)
                log.write(json.dumps(line) + "\n")
                log.flush()
                print(line, flush=True)
            if time.monotonic() - saved_s > 60 * options.checkpoint_minutes:
                save(model, vocabulary, options.output, tokenizer_files, state)
                saved_s = time.monotonic()
    state["held_out_loss"] = held_out_loss(model, fixed)
    save(model, vocabulary, options.output, tokenizer_files, state)
    print(f"done: {options.output}, {state}", flush=True)


if __name__ == "__main__":
    main()
