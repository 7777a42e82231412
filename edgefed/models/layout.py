"""The numbers that make up a T5: enough to count its weights and operations without loading it."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ModelLayout"]


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
        stored_bytes: of the checkpoint's weights, null where only the layout is known.
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
    stored_bytes: int | None = None
