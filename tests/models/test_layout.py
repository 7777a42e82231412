from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgefed.errors import ModelError
from edgefed.models.checkpoint import linear_shapes
from edgefed.models.finding import resolve_model
from edgefed.models.layout import FLAN_T5, find_layout, read_layout


@pytest.fixture(scope="module")
def tiny() -> Path:
    return resolve_model("edgefed/tiny-t5")


@pytest.mark.parametrize(
    ("size", "millions"), [("small", 76.96), ("base", 247.58), ("large", 783.15), ("xl", 2849.76), ("xxl", 11135.33)]
)
def test_flan_t5_has_the_published_number_of_weights(size: str, millions: float) -> None:
    assert FLAN_T5[f"google/flan-t5-{size}"].parameters / 1e6 == pytest.approx(millions, abs=0.005)


@pytest.mark.parametrize(("size", "weights"), [("small", 344_064), ("base", 884_736), ("large", 2_359_296)])
def test_lora_of_rank_8_on_q_and_v_has_the_known_number_of_weights(size: str, weights: int) -> None:
    assert FLAN_T5[f"google/flan-t5-{size}"].lora_parameters(["q", "v"], 8) == weights


def test_a_checkpoint_tells_its_layout(tiny: Path) -> None:
    layout = read_layout(tiny, "edgefed/tiny-t5")
    assert (layout.name, layout.d_model, layout.encoder_layers, layout.decoder_layers) == ("edgefed/tiny-t5", 128, 3, 3)
    assert layout.tied
    assert layout.stored_bytes == (tiny / "model.safetensors").stat().st_size
    assert abs(layout.stored_bytes - 2 * layout.parameters) < 0.02 * layout.stored_bytes  # kept in 16 bits
    for names in (["q", "v"], ["wi_0", "wo"], ["k", "o", "wi_1"]):
        shapes = linear_shapes(tiny, names).values()
        assert layout.lora_parameters(names, 4) == 4 * sum(rows + columns for rows, columns in shapes)


def test_an_unknown_target_is_refused_with_what_there_is() -> None:
    with pytest.raises(ModelError, match=r"'query'.*'wi_0'"):
        FLAN_T5["google/flan-t5-small"].lora_parameters(["q", "query"], 4)


def test_a_name_that_says_nothing(tiny: Path) -> None:
    assert find_layout("google/flan-t5-base") is FLAN_T5["google/flan-t5-base"]
    assert find_layout(str(tiny)) is None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model_type": "bert"}, "holds a 'bert'"),
        ({"d_model": None}, "is no T5's"),
        ({"num_heads": "many"}, "is no T5's"),
    ],
)
def test_another_model_is_refused(tiny: Path, tmp_path: Path, change: dict[str, object], says: str) -> None:
    config = json.loads((tiny / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    (tmp_path / "model.safetensors").symlink_to(tiny / "model.safetensors")
    with pytest.raises(ModelError, match=says):
        read_layout(tmp_path)
