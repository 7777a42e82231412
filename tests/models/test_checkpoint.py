from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edgefed.errors import ModelError
from edgefed.models.checkpoint import fingerprint, linear_shapes, weight_files
from edgefed.models.finding import resolve_model


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the bundled model to spoil."""
    return Path(shutil.copytree(resolve_model("edgefed/tiny-t5"), tmp_path / "model"))


def edit_config(directory: Path, **changes: object) -> None:
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    (directory / "config.json").write_text(json.dumps(config | changes, indent=7), encoding="utf-8")


def test_the_bundled_model_and_directories_and_overrides(copy: Path) -> None:
    assert resolve_model("edgefed/tiny-t5") == resolve_model(str(resolve_model("edgefed/tiny-t5")))
    assert resolve_model(str(copy)) == copy
    assert resolve_model("google/flan-t5-small", {"google/flan-t5-small": str(copy)}) == copy


@pytest.mark.parametrize("name", ["/nowhere/model", "./nowhere", "a/b/c", ""])
def test_what_can_only_be_a_directory_is_not_looked_for_on_the_hub(name: str) -> None:
    with pytest.raises(ModelError, match="there is no model directory"):
        resolve_model(name)


def test_a_hub_id_that_cannot_be_fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = (
        "from edgefed.models.finding import resolve_model\n"
        "from edgefed.errors import ModelError\n"
        "try:\n    resolve_model('edgefed-tests/absent')\nexcept ModelError as error:\n    print(error)\n"
    )
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PATH": "", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert "'edgefed-tests/absent' is neither a directory here nor in the Hugging Face cache" in done.stdout


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("config.json", "has no config.json"),
        ("model.safetensors", "has no weights: model.safetensors is missing"),
        ("tokenizer.json", "has no tokenizer"),
    ],
)
def test_an_incomplete_directory_says_what_it_lacks(copy: Path, lost: str, message: str) -> None:
    (copy / lost).unlink()
    with pytest.raises(ModelError, match=message):
        resolve_model(str(copy))


def test_pickled_weights_are_named_and_not_loaded(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin is pickle"):
        resolve_model(str(copy))


def test_shards_are_found_by_the_index(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "model-1-of-1.safetensors")
    index = {"weight_map": {"shared.weight": "model-1-of-1.safetensors"}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    assert weight_files(copy) == [copy / "model-1-of-1.safetensors"]
    index["weight_map"]["lm_head.weight"] = "model-2-of-2.safetensors"
    (copy / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(ModelError, match=r"model-2-of-2\.safetensors is missing"):
        weight_files(copy)


def test_the_fingerprint_depends_on_what_counts_and_on_nothing_else(copy: Path) -> None:
    original = fingerprint(resolve_model("edgefed/tiny-t5"))
    assert fingerprint(copy) == original
    edit_config(copy, transformers_version="9.9", _name_or_path="elsewhere", dtype="bfloat16")
    assert fingerprint(copy) == original
    edit_config(copy, num_heads=8)
    other_config = fingerprint(copy)
    with (copy / "tokenizer.json").open("a", encoding="utf-8") as file:
        file.write("\n")
    other_tokenizer = fingerprint(copy)
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    assert len({original, other_config, other_tokenizer, fingerprint(copy)}) == 4


def test_linear_shapes_of_the_named_layers() -> None:
    shapes = linear_shapes(resolve_model("edgefed/tiny-t5"), ["q", "wo"])
    assert shapes["encoder.block.0.layer.0.SelfAttention.q"] == (128, 128)
    assert shapes["decoder.block.2.layer.2.DenseReluDense.wo"] == (128, 384)
    assert len(shapes) == 3 + 6 + 3 + 3
    assert list(shapes) == sorted(shapes)


@pytest.mark.parametrize(("names", "wrong"), [(["q", "wi"], "'wi'"), (["shared"], "'shared'"), ([], "an empty list")])
def test_unknown_layers_are_refused_with_the_ones_that_exist(names: list[str], wrong: str) -> None:
    with pytest.raises(ModelError, match=f"names {wrong}; .* are k, o, q, v, wi_0, wi_1, wo$"):
        linear_shapes(resolve_model("edgefed/tiny-t5"), names)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"abc",
        b"\xff" * 64,
        (10).to_bytes(8, "little") + b"0123456789",
        (4).to_bytes(8, "little") + b'{"":',
        (13).to_bytes(8, "little") + b'{"a":{"b":1}}',
    ],
)
def test_a_broken_header_is_a_model_error(copy: Path, content: bytes) -> None:
    (copy / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match="not a safetensors file"):
        linear_shapes(copy, ["q"])


def test_asking_about_models_loads_no_heavy_library() -> None:
    script = (
        "import sys; from edgefed.models.checkpoint import fingerprint, linear_shapes\n"
        "from edgefed.models.finding import resolve_model\n"
        "path = resolve_model('edgefed/tiny-t5'); fingerprint(path); linear_shapes(path, ['q'])\n"
        "print(sorted({'torch', 'numpy', 'transformers', 'safetensors', 'huggingface_hub'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
