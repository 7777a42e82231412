"""The numbers that make up a T5: enough to count its weights and operations without loading it.

Those of FLAN-T5 are the published ones (arXiv 2210.11416; `google/flan-t5-*` config.json): T5 1.1's layout with gated
GELU and an output layer of its own. `read_layout` takes those of a checkpoint from its files.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edgefed.errors import ModelError
from edgefed.models.checkpoint import read_config, tensor_shapes, weight_files

__all__ = ["FLAN_T5", "Linear", "ModelLayout", "find_layout", "read_layout"]


@dataclass(frozen=True, slots=True)
class Linear:
    """Linear layers of one shape that play one part, such as the q of all the encoder's attentions.

    Attributes:
        name: last component of their paths, as `target_modules` names them.
        part: `encoder`, `decoder` or `cross` (the decoder's attention to the encoder).
        rows: out_features.
        columns: in_features.
        count: how many there are.
    """

    name: str
    part: str
    rows: int
    columns: int
    count: int


@dataclass(frozen=True, slots=True)
class ModelLayout:
    """An encoder-decoder of the T5 family, by its numbers.

    Attributes:
        name: such as `google/flan-t5-small`.
        d_model: width of the residual stream.
        d_kv: width of one attention head.
        d_ff: width of the feed-forward part.
        encoder_layers: blocks of the encoder.
        decoder_layers: blocks of the decoder.
        heads: attention heads.
        vocabulary: rows of the embedding.
        gated: two input projections in the feed-forward part (T5 1.1 and FLAN-T5).
        tied: the output layer is the embedding; FLAN-T5 has its own.
        buckets: of the relative position bias.
        dropout: whether the base's own dropout is on while training.
        stored_bytes: of the checkpoint's weights, None where only the layout is known.
    """

    name: str
    d_model: int
    d_kv: int
    d_ff: int
    encoder_layers: int
    decoder_layers: int
    heads: int
    vocabulary: int
    gated: bool
    tied: bool
    buckets: int = 32
    dropout: bool = True
    stored_bytes: int | None = None

    @property
    def inner(self) -> int:
        """Width of all heads together."""
        return self.heads * self.d_kv

    def linears(self) -> Iterator[Linear]:
        """Yields the linear layers of the blocks; the output layer is not among them, it is never quantized."""
        wide = ("wi_0", "wi_1") if self.gated else ("wi",)
        for part, layers in (("encoder", self.encoder_layers), ("decoder", self.decoder_layers)):
            attentions = (part,) if part == "encoder" else (part, "cross")
            for attention in attentions:
                for name in ("q", "k", "v"):
                    yield Linear(name, attention, self.inner, self.d_model, layers)
                yield Linear("o", attention, self.d_model, self.inner, layers)
            for name in wide:
                yield Linear(name, part, self.d_ff, self.d_model, layers)
            yield Linear("wo", part, self.d_model, self.d_ff, layers)

    @property
    def linear_parameters(self) -> int:
        """Weights of the linear layers in the blocks."""
        return sum(one.rows * one.columns * one.count for one in self.linears())

    @property
    def embedding_parameters(self) -> int:
        """Weights of the embedding and, where it is not the same, of the output layer."""
        return self.vocabulary * self.d_model * (1 if self.tied else 2)

    @property
    def other_parameters(self) -> int:
        """Weights of the norms and of the relative position biases."""
        norms = 2 * self.encoder_layers + 1 + 3 * self.decoder_layers + 1
        return norms * self.d_model + 2 * self.buckets * self.heads

    @property
    def parameters(self) -> int:
        """All weights."""
        return self.linear_parameters + self.embedding_parameters + self.other_parameters

    def lora_parameters(self, target_modules: tuple[str, ...] | list[str], rank: int) -> int:
        """Weights of LoRA factors of a rank, r·(m + n) for every matrix.

        Raises:
            ModelError: no layer has such a name.
        """
        self.check_targets(target_modules)
        return sum(rank * (one.rows + one.columns) * one.count for one in self.linears() if one.name in target_modules)

    def check_targets(self, target_modules: tuple[str, ...] | list[str]) -> None:
        """Refuses names that no linear layer has.

        Raises:
            ModelError: says which names there are.
        """
        names = {one.name for one in self.linears()}
        unknown = [name for name in target_modules if name not in names]
        if unknown or not target_modules:
            wrong = ", ".join(map(repr, unknown)) or "an empty list"
            raise ModelError(f"target_modules names {wrong}; the linear layers of {self.name} are {sorted(names)}")


def _flan(size: str, d_model: int, d_ff: int, layers: int, heads: int) -> ModelLayout:
    return ModelLayout(
        name=f"google/flan-t5-{size}",
        d_model=d_model,
        d_kv=64,
        d_ff=d_ff,
        encoder_layers=layers,
        decoder_layers=layers,
        heads=heads,
        vocabulary=32128,
        gated=True,
        tied=False,
    )


FLAN_T5 = {
    layout.name: layout
    for layout in (
        _flan("small", 512, 1024, 8, 6),
        _flan("base", 768, 2048, 12, 12),
        _flan("large", 1024, 2816, 24, 16),
        _flan("xl", 2048, 5120, 24, 32),
        _flan("xxl", 4096, 10240, 24, 64),
    )
}
"""The published sizes by name: 77 M, 248 M, 783 M, 2.85 G and 11.1 G weights."""


def find_layout(name: str) -> ModelLayout | None:
    """Returns the layout of a model whose numbers are known without its files; None for any other."""
    return FLAN_T5.get(name)


def read_layout(directory: Path, name: str = "") -> ModelLayout:
    """Returns the layout of a checkpoint.

    Whether the output layer is tied is told by what is stored: transformers' own flag is wrong for FLAN-T5 checkpoints
    that were saved anew.

    Raises:
        ModelError: it is not a T5, or a file cannot be read.
    """
    config = read_config(directory)
    if config.get("model_type") not in ("t5", "mt5", "umt5"):
        raise ModelError(
            f"{directory} holds a {config.get('model_type')!r}; only models of the T5 family can be planned for"
        )
    files = weight_files(directory)
    tensors = {name for file in files for name in tensor_shapes(file)}
    try:
        layers = int(config["num_layers"])
        return ModelLayout(
            name=name or str(directory),
            d_model=int(config["d_model"]),
            d_kv=int(config["d_kv"]),
            d_ff=int(config["d_ff"]),
            encoder_layers=layers,
            decoder_layers=int(config.get("num_decoder_layers") or layers),
            heads=int(config["num_heads"]),
            vocabulary=int(config["vocab_size"]),
            gated=str(config.get("feed_forward_proj", "relu")).startswith("gated"),
            tied="lm_head.weight" not in tensors,
            buckets=int(config.get("relative_attention_num_buckets", 32)),
            dropout=float(config.get("dropout_rate", 0.1)) > 0,
            stored_bytes=sum(file.stat().st_size for file in files),
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ModelError(f"{directory}/config.json is no T5's: {error}") from error
