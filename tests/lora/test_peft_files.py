from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgefed.errors import AdapterError
from edgefed.lora.low_rank import LowRank
from edgefed.lora.peft_files import read_peft, write_peft

SHAPES = {"encoder.q": (24, 32), "decoder.wo": (32, 48)}

# what transformers 5 says about peft's own calls, and torch about its compiled parts
peft_warnings = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")


def draw(shapes: dict[str, tuple[int, int]], ranks: list[int], seed: int = 0) -> dict[str, LowRank]:
    rng = np.random.default_rng(seed)
    return {
        module: LowRank(
            rng.standard_normal((m, rank)).astype(np.float32) * np.float32(0.1),
            rng.standard_normal((rank, n)).astype(np.float32),
        )
        for (module, (m, n)), rank in zip(shapes.items(), ranks * len(shapes), strict=False)
    }


def test_what_is_written_is_read(tmp_path):
    adapter = draw(SHAPES, [4, 3])
    write_peft(tmp_path / "adapter", adapter, base_model="google/flan-t5-small", target_modules=["q", "wo"])
    found, base_model = read_peft(tmp_path / "adapter")
    assert base_model == "google/flan-t5-small"
    for module, matrix in adapter.items():
        np.testing.assert_array_equal(found[module].left, matrix.left)
        np.testing.assert_array_equal(found[module].right, matrix.right)


def test_a_lower_rank_is_the_best_approximation(tmp_path):
    adapter = draw(SHAPES, [8, 2])
    write_peft(tmp_path / "adapter", adapter, base_model="x", rank=3)
    found, _ = read_peft(tmp_path / "adapter")
    assert {module: matrix.rank for module, matrix in found.items()} == {"encoder.q": 3, "decoder.wo": 2}
    exact = adapter["encoder.q"].dense()
    best = np.sqrt(np.sum(np.linalg.svd(exact, compute_uv=False)[3:] ** 2))
    assert np.linalg.norm(found["encoder.q"].dense() - exact) <= 1.0001 * best


def test_an_adapter_without_components_is_written_as_zeros(tmp_path):
    write_peft(tmp_path / "adapter", {"encoder.q": LowRank.zero((24, 32))}, base_model="x")
    found, _ = read_peft(tmp_path / "adapter")
    assert found["encoder.q"].rank == 1
    assert not found["encoder.q"].dense().any()


def test_writing_again_replaces_the_directory_and_leaves_nothing_beside_it(tmp_path):
    directory = tmp_path / "adapter"
    for seed in (0, 1):
        write_peft(directory, draw(SHAPES, [4], seed), base_model="x")
        np.testing.assert_array_equal(
            read_peft(directory)[0]["encoder.q"].left, draw(SHAPES, [4], seed)["encoder.q"].left
        )
        (directory / "README.md").write_text("gone after the next write")
    write_peft(directory, draw(SHAPES, [4]), base_model="x")
    assert sorted(path.name for path in directory.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_what_cannot_be_written_leaves_the_old_directory(tmp_path):
    directory = tmp_path / "adapter"
    write_peft(directory, draw(SHAPES, [4]), base_model="x")
    broken = draw(SHAPES, [4])
    broken["encoder.q"].right[0, 0] = np.inf
    for adapter, rank in ((broken, None), ({}, None), (draw(SHAPES, [4]), 0)):
        with pytest.raises(AdapterError):
            write_peft(directory, adapter, base_model="x", rank=rank)
    assert np.isfinite(read_peft(directory)[0]["encoder.q"].right).all()
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def _changed(directory: Path, **changes: Any) -> None:
    path = directory / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"peft_type": "LOHA"}, "peft_type is 'LOHA'"),
        ({"use_dora": True}, "use_dora is True"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"r": 5}, "config says rank 5"),
        ({"r": "4"}, "'4'; a number over 0"),
        ({"lora_alpha": None}, "None; a number over 0"),
        ({"rank_pattern": {"(": 3}}, "not a regular expression"),
    ],
)
def test_directories_that_are_not_plain_lora_are_refused(tmp_path, changes, words):
    directory = tmp_path / "adapter"
    write_peft(directory, draw(SHAPES, [4]), base_model="x")
    _changed(directory, **changes)
    with pytest.raises(AdapterError, match=words):
        read_peft(directory)


def test_missing_files_pickles_and_foreign_tensors_are_refused(tmp_path):
    directory = tmp_path / "adapter"
    with pytest.raises(AdapterError, match="No such file"):
        read_peft(directory)
    write_peft(directory, draw(SHAPES, [4]), base_model="x")
    (directory / "adapter_model.safetensors").rename(directory / "adapter_model.bin")
    with pytest.raises(AdapterError, match="pickle"):
        read_peft(directory)
    (directory / "adapter_model.bin").unlink()
    with pytest.raises(AdapterError, match="No such file"):
        read_peft(directory)
    (directory / "adapter_config.json").write_text("{")
    with pytest.raises(AdapterError, match="not JSON"):
        read_peft(directory)

    from safetensors.numpy import save_file

    write_peft(directory, draw(SHAPES, [4]), base_model="x")
    factor = np.ones((4, 8), np.float32)
    for name, words in (
        ("base_model.model.shared.lora_embedding_A", "is not a LoRA factor"),
        ("base_model.model.x.lora_B.weight", "has no lora_A"),
        ("base_model.model.x.lora_A.weight", "no tensor"),
    ):
        save_file({name: factor}, directory / "adapter_model.safetensors")
        with pytest.raises(AdapterError, match=words):
            read_peft(directory)
    save_file({}, directory / "adapter_model.safetensors")
    with pytest.raises(AdapterError, match="no LoRA factor"):
        read_peft(directory)


@pytest.fixture(scope="module")
def base() -> Any:
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    config = T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=2, decoder_start_token_id=0)
    return T5ForConditionalGeneration(config).eval()


def _targets(base: Any, names: tuple[str, ...]) -> dict[str, tuple[int, int]]:
    return {
        path: (module.out_features, module.in_features)
        for path, module in base.named_modules()
        if path.split(".")[-1] in names
    }


def _logits(model: Any) -> np.ndarray:
    import torch

    tokens = torch.arange(2, 42).reshape(2, 20)
    with torch.no_grad():
        return model(input_ids=tokens, decoder_input_ids=tokens[:, :7]).logits.numpy()


def _moved(base: Any, adapter: dict[str, LowRank]) -> Any:
    """The base with ΔW added to its weights."""
    import torch

    moved = copy.deepcopy(base)
    with torch.no_grad():
        for module, matrix in adapter.items():
            moved.get_submodule(module).weight += torch.from_numpy(matrix.dense())
    return moved


@pytest.mark.torch
@peft_warnings
@pytest.mark.parametrize("target_modules", [["q", "v", "wo"], None])
@pytest.mark.parametrize("ranks", [[4], [4, 2, 3]])
def test_peft_loads_the_directory_and_computes_base_plus_the_product(tmp_path, base, target_modules, ranks):
    from peft import PeftModel

    adapter = draw(_targets(base, ("q", "v", "wo")), ranks)
    write_peft(tmp_path / "adapter", adapter, base_model="x", target_modules=target_modules)
    loaded = PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path / "adapter"))
    expected = _logits(_moved(base, adapter))
    assert np.abs(expected - _logits(base)).max() > 0.01
    np.testing.assert_allclose(_logits(loaded), expected, atol=1e-4)


@pytest.mark.torch
@peft_warnings
@pytest.mark.parametrize(
    "settings",
    [
        {"r": 4, "lora_alpha": 32},
        {"r": 4, "lora_alpha": 7, "use_rslora": True},
        {"r": 4, "lora_alpha": 8, "rank_pattern": {"decoder.*q": 2, "v": 3}, "alpha_pattern": {"v": 5.5}},
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_directories_made_by_peft_are_read_with_their_scale(tmp_path, base, settings, dtype):
    import torch
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(target_modules=["q", "v"], init_lora_weights=False, **settings)
    model = get_peft_model(copy.deepcopy(base), config).eval().to(getattr(torch, dtype))
    model.save_pretrained(str(tmp_path))
    found, _ = read_peft(tmp_path)
    assert set(found) == set(_targets(base, ("q", "v")))
    wide = model.to(torch.float32)
    for module, matrix in found.items():
        expected = wide.base_model.model.get_submodule(module).get_delta_weight("default")
        np.testing.assert_allclose(matrix.dense(), expected.detach().numpy(), atol=1e-5)
