from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import get_args

import pytest
import torch
from safetensors.torch import load_file, save_file

from edgefed.data.examples import Example
from edgefed.errors import ModelError
from edgefed.protocol.tasks import SummarizationTask
from edgefed.training.adapters import install
from edgefed.training.base_model import load_base
from edgefed.training.evaluate import validation_loss
from edgefed.training.loop import train
from edgefed.training.options import LoraOptions, Quantization, TrainOptions

pytestmark = pytest.mark.torch
QUANTIZATIONS = get_args(Quantization)


@pytest.fixture
def copy(tiny_path: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_path, tmp_path / "model"))


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_every_quantization_trains(
    tiny_path: Path,
    shapes: dict[str, tuple[int, int]],
    examples: list[Example],
    task: SummarizationTask,
    quantization: Quantization,
    capfd: pytest.CaptureFixture[str],
) -> None:
    base = load_base(tiny_path, quantization, "cpu", threads=1)
    model = install(base, list(shapes), LoraOptions(rank=4), seed=0)
    before = validation_loss(model, examples[:16], task)
    result = train(model, examples[:16], task, TrainOptions(steps=6, batch_size=8, learning_rate=5e-3))
    assert result.last_loss < result.first_loss
    assert validation_loss(model, examples[:16], task) < before
    for factor in model.get_factors().values():
        assert factor.left.any()
        factor.check("trained")
    assert capfd.readouterr() == ("", "")  # a worker's stdout is its protocol


def test_the_quantizations_differ_little_and_do_differ(
    tiny_path: Path, examples: list[Example], task: SummarizationTask
) -> None:
    losses = [validation_loss(load_base(tiny_path, q, "cpu", threads=1), examples[:16], task) for q in QUANTIZATIONS]
    assert len(set(losses)) == len(losses)
    assert max(losses) - min(losses) < 0.1 * max(losses)


def untie(directory: Path, tie_word_embeddings: bool) -> torch.Tensor:
    """Give the model an output layer of its own, as FLAN-T5 has."""
    weights = load_file(directory / "model.safetensors")
    head = torch.randn(weights["shared.weight"].shape, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    save_file(weights | {"lm_head.weight": head}, directory / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    config["tie_word_embeddings"] = tie_word_embeddings
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return head.float()


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
@pytest.mark.parametrize("declared_tied", [False, True])
def test_an_output_layer_of_its_own_is_not_replaced_by_the_embedding(
    copy: Path, quantization: Quantization, declared_tied: bool
) -> None:
    head = untie(copy, declared_tied)
    model = load_base(copy, quantization, "cpu").model
    assert torch.equal(model.lm_head.weight.float(), head)
    assert not torch.equal(model.shared.weight.float(), head)
    assert model.config.scale_decoder_outputs is declared_tied


@pytest.mark.parametrize("quantization", ["int8", "nf4"])
def test_embeddings_output_layer_and_wo_are_not_quantised(tiny_path: Path, quantization: Quantization) -> None:
    model = load_base(tiny_path, quantization, "cpu").model
    dtypes = {name: parameter.dtype for name, parameter in model.named_parameters()}
    assert dtypes["shared.weight"] == torch.float32
    assert model.lm_head.weight.dtype == torch.float32
    assert dtypes["encoder.block.0.layer.1.DenseReluDense.wo.weight"] == torch.float32
    assert dtypes["encoder.block.0.layer.0.SelfAttention.q.weight"] in (torch.int8, torch.uint8)


def test_the_base_is_frozen_and_its_dropout_off(tiny_path: Path) -> None:
    model = load_base(tiny_path, "fp32", "cpu").model
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_foreign_tokenizer_is_refused(copy: Path) -> None:
    tokenizer = json.loads((copy / "tokenizer.json").read_text(encoding="utf-8"))
    rows = load_file(copy / "model.safetensors")["shared.weight"].shape[0]
    tokenizer["added_tokens"].append(tokenizer["added_tokens"][-1] | {"id": rows, "content": "<new>"})
    tokenizer["model"]["vocab"] |= {f"<filler-{i}>": i for i in range(len(tokenizer["model"]["vocab"]), rows + 1)}
    (copy / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    with pytest.raises(ModelError, match=rf"the model's embedding has {rows} rows: they do not belong together"):
        load_base(copy, "fp32", "cpu")


def test_missing_weights_are_named(copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    del weights["encoder.block.0.layer.0.SelfAttention.q.weight"]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"the weights lack encoder\.block\.0\.layer\.0\.SelfAttention\.q\.weight"):
        load_base(copy, "fp32", "cpu")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("model.safetensors", b"garbage", "cannot be loaded as an encoder–decoder model"),
        ("config.json", b'{"model_type": "gpt2"}', "cannot be loaded as an encoder–decoder model"),
        ("config.json", b'{"model_type": "t5", "num_layers": "many"}', "num_layers|cannot be loaded"),
        ("tokenizer.json", b"{}", "the tokenizer in .* cannot be loaded"),
    ],
)
def test_spoiled_files_are_model_errors(copy: Path, file: str, content: bytes, message: str) -> None:
    (copy / file).write_bytes(content)
    with pytest.raises(ModelError, match=message):
        load_base(copy, "fp32", "cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_where_there_is_none(tiny_path: Path) -> None:
    with pytest.raises(ModelError, match="torch finds none"):
        load_base(tiny_path, "fp32", "cuda")
