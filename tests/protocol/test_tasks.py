from __future__ import annotations

from typing import Any

import msgspec
import pytest

from edgefed.protocol.tasks import Evaluation, LoraMethod, ModelReference, Privacy, SummarizationTask, Training


@pytest.mark.parametrize(
    ("kind", "fields", "said"),
    [
        (LoraMethod, {"aggregation": "fedit"}, r"fedit averages factors of one rank only, .*\[2, 4, 8, 16, 32\]"),
        (LoraMethod, {"aggregation": "hetlora", "server_rank": 8}, r"server_rank \(8\) .* largest of ranks \(32\)"),
        (LoraMethod, {"aggregation": "fedit", "ranks": [4, 4], "server_rank": 2}, r"server_rank \(2\)"),
        (LoraMethod, {"ranks": []}, r"\$\.ranks"),
        (LoraMethod, {"ranks": [0]}, r"\$\.ranks"),
        (LoraMethod, {"target_modules": []}, r"\$\.target_modules"),
        (LoraMethod, {"alpha": 0}, r"\$\.alpha"),
        (LoraMethod, {"dropout": 1.0}, r"\$\.dropout"),
        (SummarizationTask, {"prompt": "summarize this"}, r"prompt must contain \{source\}"),
        (SummarizationTask, {"max_source_tokens": 0}, r"\$\.max_source_tokens"),
        (Training, {"batch_size": 8, "micro_batch_size": 3}, r"batch_size \(8\) .* micro_batch_size \(3\)"),
        (Training, {"local_steps": 0}, r"\$\.local_steps"),
        (Training, {"learning_rate": 0.0}, r"\$\.learning_rate"),
        (Evaluation, {"share": 1.0}, r"\$\.share"),
        (ModelReference, {"name": ""}, r"\$\.name"),
    ],
)
def test_what_cannot_be_is_refused(kind: type[Any], fields: dict[str, Any], said: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=said):
        msgspec.convert(fields, kind)


@pytest.mark.parametrize(
    ("aggregation", "ranks", "start"),
    [
        ("flexlora", [2, 4], "truncated"),
        ("delta", [2, 4], "truncated"),
        ("hetlora", [2, 4], "truncated"),
        ("fedit", [4], "truncated"),
        ("frozen_global", [2, 4], "frozen"),
        ("flora", [2, 4], "frozen"),
    ],
)
def test_every_aggregation_says_how_devices_start(aggregation: Any, ranks: list[int], start: str) -> None:
    assert LoraMethod(aggregation=aggregation, ranks=ranks).start == start


def test_the_global_rank_is_the_servers_or_the_largest() -> None:
    assert LoraMethod(ranks=[8, 2]).global_rank == 8
    assert LoraMethod(ranks=[8, 2], server_rank=64).global_rank == 64
    assert LoraMethod(ranks=[8, 2], server_rank=4, aggregation="delta").global_rank == 4


def test_a_batch_may_be_cut_into_equal_parts_or_left_whole() -> None:
    assert Training(batch_size=8, micro_batch_size=2).micro_batch_size == 2
    assert Training(batch_size=8, micro_batch_size=0).micro_batch_size == 0


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"max_epsilon": 8.0}, "without noise there is no ε"),
        ({"example_noise_multiplier": 0.1}, "ε says nothing"),
        ({"example_noise_multiplier": -1.0}, "example_noise_multiplier"),
        ({"delta": 0.0, "example_noise_multiplier": 1.0}, "delta"),
        ({"example_clip_norm": 0.0}, "example_clip_norm"),
    ],
)
def test_privacy_that_means_nothing_is_refused(fields: dict[str, float], said: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=said):
        msgspec.convert(fields, Privacy)
    assert msgspec.convert({"example_noise_multiplier": 1.0, "max_epsilon": 8.0}, Privacy).max_epsilon == 8.0
