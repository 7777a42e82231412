"""Checkpoints of random weights: what transformers makes of them, and what happens where there is no room."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from edgefed.errors import ModelError
from edgefed.models.checkpoint import check_directory
from edgefed.models.finding import resolve_model
from edgefed.models.layout import FLAN_T5, ModelLayout, read_layout
from edgefed.models.random_checkpoint import Stored, checkpoint_bytes, layout_tensors, write_random_checkpoint

TIED = read_layout(resolve_model("edgefed/tiny-t5"), "tiny")
UNTIED = replace(TIED, tied=False)


def shapes_in_transformers(layout: ModelLayout) -> dict[str, tuple[int, ...]]:
    """What transformers names the weights of such a model, made without memory for them."""
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=layout.vocabulary, d_model=layout.d_model, d_kv=layout.d_kv, d_ff=layout.d_ff,
        num_layers=layout.encoder_layers, num_decoder_layers=layout.decoder_layers, num_heads=layout.heads,
        feed_forward_proj="gated-gelu" if layout.gated else "relu", tie_word_embeddings=layout.tied,
    )  # fmt: skip
    with torch.device("meta"):
        model = T5ForConditionalGeneration(config)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if "embed_tokens" not in name}
    if layout.tied:
        del shapes["lm_head.weight"]
    return shapes


@pytest.mark.torch
@pytest.mark.parametrize(
    "layout",
    [TIED, replace(TIED, gated=False), *FLAN_T5.values()],
    ids=lambda layout: f"{layout.name}, gated {layout.gated}",
)
def test_names_and_shapes_are_those_of_transformers(layout: ModelLayout) -> None:
    tensors = list(layout_tensors(layout))
    assert {tensor.name: tensor.shape for tensor in tensors} == shapes_in_transformers(layout)
    assert sum(int(np.prod(tensor.shape, dtype=np.int64)) for tensor in tensors) == layout.parameters


@pytest.mark.torch
@pytest.mark.parametrize("stored", ["fp32", "bf16"])
@pytest.mark.parametrize("layout", [TIED, UNTIED], ids=["tied", "untied"])
def test_transformers_loads_it(tmp_path: Path, layout: ModelLayout, stored: Stored) -> None:
    import torch

    from edgefed.training.base_model import load_base

    directory = tmp_path / "model"
    write_random_checkpoint(directory, layout, stored=stored, seed=3)
    found = read_layout(check_directory(directory), layout.name)
    assert replace(found, stored_bytes=layout.stored_bytes) == layout
    base = load_base(directory, "fp32", "cpu")
    weights = {id(one): one for one in base.model.parameters()}.values()
    assert sum(one.numel() for one in weights) == layout.parameters
    embedding = base.model.get_input_embeddings().weight
    assert embedding.std().item() == pytest.approx(1.0, rel=0.02)
    norm = base.model.encoder.block[0].layer[0].layer_norm.weight
    assert torch.equal(norm, torch.ones_like(norm))
    assert (base.model.get_output_embeddings().weight is embedding) == layout.tied
    with torch.inference_mode():
        logits = base.model(input_ids=torch.tensor([[5, 6, 1]]), decoder_input_ids=torch.tensor([[0, 7]])).logits
    assert 0.3 < logits.std().item() < 3, "as of a T5 that was just initialised"


@pytest.mark.torch
def test_bf16_is_the_nearest_to_fp32(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    tensors = {}
    for stored in ("fp32", "bf16"):
        write_random_checkpoint(tmp_path / stored, UNTIED, stored=stored, seed=1)
        tensors[stored] = load_file(tmp_path / stored / "model.safetensors")
    for name, tensor in tensors["fp32"].items():
        assert tensor.bfloat16().equal(tensors["bf16"][name]), name
    assert (tmp_path / "bf16/model.safetensors").stat().st_size - checkpoint_bytes(UNTIED, "bf16") < 20_000


@pytest.mark.torch
def test_random_token_ids_are_a_text_that_comes_back(tmp_path: Path) -> None:
    from edgefed.training.base_model import load_tokenizer

    write_random_checkpoint(tmp_path / "model", TIED)
    tokenizer = load_tokenizer(tmp_path / "model")
    ids = [3, 700, TIED.vocabulary - 1, 44]
    text = tokenizer.decode(ids)
    assert tokenizer(text)["input_ids"] == [*ids, 1]
    assert tokenizer(text, max_length=3, truncation=True)["input_ids"] == [3, 700, 1]
    assert tokenizer("unheard of")["input_ids"] == [2, 2, 1]


def test_the_same_seed_gives_the_same_file(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_random_checkpoint(tmp_path / name, TIED, seed=seed)
    a, b, c = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert a == b
    assert a != c


def test_progress_goes_from_nothing_to_all_the_bytes(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    write_random_checkpoint(tmp_path / "model", TIED, report=lambda done, of: seen.append((done, of)))
    assert seen[0] == (0, checkpoint_bytes(TIED))
    assert seen[-1] == (checkpoint_bytes(TIED), checkpoint_bytes(TIED))
    assert seen == sorted(seen)


def test_an_interrupted_writing_leaves_nothing(tmp_path: Path) -> None:
    def stop(done: int, of: int) -> None:
        if done > of / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_random_checkpoint(tmp_path / "model", TIED, report=stop)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_without_room_is_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=6_000_000_000))
    with pytest.raises(ModelError, match=r"flan-t5-xl in fp32 needs 11\.5 GB, and .* has 6\.0 GB free: .*in bf16"):
        write_random_checkpoint(tmp_path / "model", FLAN_T5["google/flan-t5-xl"])
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_or_is_taken(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be written: No such file or directory"):
        write_random_checkpoint(tmp_path / "none/model", TIED)
    with pytest.raises(ModelError, match="is there already"):
        write_random_checkpoint(tmp_path, TIED)
