from __future__ import annotations

import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgefed.aggregation.exchange import Delivered
from edgefed.aggregation.lora_exchange import LoraExchange, state_adapter
from edgefed.aggregation.options import ClientPrivacy, ServerOptimizer
from edgefed.aggregation.robustness import UNDEFENDED, Robustness
from edgefed.errors import AdapterError, ConfigError
from edgefed.lora.files import write_adapter
from edgefed.lora.low_rank import LowRank
from edgefed.lora.merge import sufficient_bytes
from edgefed.models.checkpoint import linear_shapes
from edgefed.protocol.messages.manifest import Plan
from edgefed.protocol.tasks import LoraMethod
from tests.federation.stand_in import make_paper_model

SIZE, RANK, DEVICES = 512, 8, 70  # more ranks together than a matrix has rows: the fastest way is the dense one


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_paper_model(tmp_path_factory.mktemp("model"), size=SIZE)


def exchange(
    model: Path,
    limit_bytes: int | None,
    optimizer: str = "averaging",
    aggregation: str = "flexlora",
    robustness: Robustness = UNDEFENDED,
    privacy: ClientPrivacy | None = None,
) -> LoraExchange:
    method = LoraMethod(aggregation=aggregation, ranks=[RANK])  # type: ignore[arg-type]
    server = ServerOptimizer(optimizer)  # type: ignore[arg-type]
    return LoraExchange(
        method,
        server,
        model_path=model,
        model_name="m",
        seed=0,
        memory_limit_bytes=limit_bytes,
        privacy=privacy,
        robustness=robustness,
    )


@pytest.fixture(scope="module")
def updates(model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    directory = tmp_path_factory.mktemp("updates")
    paths = []
    for device in range(DEVICES):
        random = np.random.default_rng(device)
        adapter = {
            module: LowRank(random.normal(size=(m, RANK)).astype("f4"), random.normal(size=(RANK, n)).astype("f4"))
            for module, (m, n) in linear_shapes(model, ["q", "v"]).items()
        }
        paths.append(directory / f"{device}.safetensors")
        write_adapter(paths[-1], adapter, precision="fp32")
    return paths


def merge(using: LoraExchange, updates: list[Path], directory: Path) -> int:
    """Merges a round, and returns the most memory that took."""
    using.begin(directory / "0")
    delivered = [
        Delivered(str(at), round=1, weight=1.0, rank=RANK, held_rank=RANK, update=path, start=directory / "0")
        for at, path in enumerate(updates)
    ]
    tracemalloc.start()
    try:
        using.merge(directory / "0", delivered, 1, directory / "1")
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_merge_keeps_to_its_memory_limit(model: Path, updates: list[Path], tmp_path: Path) -> None:
    limit_bytes = sufficient_bytes((SIZE, SIZE), RANK)
    free_bytes = merge(exchange(model, None), updates, tmp_path / "free")
    bounded_bytes = merge(exchange(model, limit_bytes), updates, tmp_path / "bounded")
    assert 3 * bounded_bytes < free_bytes  # the limit is a tenth; what 140 open files take comes on top of both


@pytest.mark.parametrize(("optimizer", "rank"), [("averaging", RANK), ("momentum", 2 * RANK)])
def test_the_least_limit_that_is_taken_is_enough(
    model: Path, updates: list[Path], tmp_path: Path, optimizer: str, rank: int
) -> None:
    least_bytes = sufficient_bytes((SIZE, SIZE), rank)
    merge(exchange(model, least_bytes, optimizer), updates, tmp_path)
    with pytest.raises(
        ConfigError, match=rf"merge_memory_bytes is {least_bytes - 1}, .* needs {least_bytes}: raise it"
    ):
        exchange(model, least_bytes - 1, optimizer)


@pytest.mark.parametrize(
    ("aggregation", "optimizer", "what"),
    [("hetlora", "averaging", "aggregation hetlora"), ("delta", "adam", "server optimizer adam")],
)
def test_a_limit_that_nothing_keeps_to_is_refused(model: Path, aggregation: str, optimizer: str, what: str) -> None:
    with pytest.raises(ConfigError, match=f"merge_memory_bytes has no effect on {what}: leave it out"):
        exchange(model, 1 << 30, optimizer, aggregation)


def plan(*, held_rank: int = RANK) -> Plan:
    return Plan(rank=RANK, held_rank=held_rank, quantization="fp32")


def delivered(updates: list[Path], start: Path) -> list[Delivered]:
    return [
        Delivered(f"d{at}", round=1, weight=10.0**at, rank=RANK, held_rank=RANK, update=path, start=start)
        for at, path in enumerate(updates)
    ]


def test_an_update_over_the_norm_is_refused_with_both_figures(model: Path, updates: list[Path], tmp_path: Path) -> None:
    def reject(limit: float) -> LoraExchange:
        return exchange(model, None, robustness=Robustness(max_update_norm=limit, over_norm="reject"))

    reject(1e4).begin(tmp_path / "0")
    reject(1e4).check(updates[0], plan(), tmp_path / "0")
    with pytest.raises(AdapterError, match=r"its change has norm 2886; at most 100 is allowed"):
        reject(100.0).check(updates[0], plan(), tmp_path / "0")


def test_a_start_that_was_never_published_is_refused(model: Path, updates: list[Path], tmp_path: Path) -> None:
    exchange(model, None).begin(tmp_path / "0")
    with pytest.raises(AdapterError, match="held rank 9 was announced, and the round's adapter had 8"):
        exchange(model, None).check(updates[0], plan(held_rank=9), tmp_path / "0")


def test_without_bounds_what_was_delivered_is_what_is_merged(model: Path, updates: list[Path], tmp_path: Path) -> None:
    given = delivered(updates[:3], tmp_path / "0")
    chosen = exchange(model, None).choose(given)
    assert (chosen.delivered, chosen.interventions) == (tuple(given), ())


def test_a_clipped_sum_is_no_larger_than_the_bound(model: Path, updates: list[Path], tmp_path: Path) -> None:
    bounded = exchange(model, None, robustness=Robustness(max_update_norm=5.0, max_weight_share=0.5))
    bounded.begin(tmp_path / "0")
    chosen = bounded.choose(delivered(updates[:3], tmp_path / "0"))
    assert {one.device: one.weight for one in chosen.delivered} == pytest.approx(
        {"d0": 1 / 22, "d1": 10 / 22, "d2": 0.5}
    )
    assert [(one.device, one.what) for one in chosen.interventions] == [(f"d{at}", "clipped") for at in range(3)]
    assert chosen.interventions[0].reason == "its change has norm 2886 and was clipped to 5"
    state = bounded.merge(tmp_path / "0", chosen.delivered, 1, tmp_path / "1")
    assert 0 < state.norm <= 5.0 * (1 + 1e-6)
    assert state_adapter(tmp_path / "1").keys() == linear_shapes(model, ["q", "v"]).keys()


def test_a_rule_is_used_by_the_merge_and_keeps_to_no_memory_limit(
    model: Path, updates: list[Path], tmp_path: Path
) -> None:
    huge = write_huge(model, tmp_path / "huge.safetensors")
    norms = {}
    for rule in ("none", "multi_krum", "trimmed_mean"):
        robustness = UNDEFENDED if rule == "none" else Robustness(rule=rule, byzantine=1)  # type: ignore[arg-type]
        using = exchange(model, None, robustness=robustness)
        using.begin(tmp_path / rule / "0")
        chosen = using.choose(delivered([*updates[:4], huge], tmp_path / rule / "0"))
        norms[rule] = using.merge(tmp_path / rule / "0", chosen.delivered, 1, tmp_path / rule / "1").norm
        excluded = [one.device for one in chosen.interventions if one.what == "excluded"]
        assert excluded == (["d4"] if rule == "multi_krum" else [])
    assert norms["none"] > 1e5
    assert norms["multi_krum"] < 3000
    assert norms["trimmed_mean"] < 3000
    with pytest.raises(ConfigError, match=r"merge_memory_bytes has no effect on robustness\.rule trimmed_mean"):
        exchange(model, 1 << 30, robustness=Robustness(rule="trimmed_mean", byzantine=1))


def test_the_least_limit_that_is_taken_is_enough_for_clipped_updates(
    model: Path, updates: list[Path], tmp_path: Path
) -> None:
    bounds = Robustness(max_update_norm=5.0)
    least_bytes = sufficient_bytes((SIZE, SIZE), 2 * RANK)
    with pytest.raises(ConfigError, match=rf"needs {least_bytes}: raise it"):
        exchange(model, least_bytes - 1, robustness=bounds)
    using = exchange(model, least_bytes, robustness=bounds)
    using.begin(tmp_path / "0")
    chosen = using.choose([replace(one, weight=1.0) for one in delivered(updates, tmp_path / "0")])
    assert len(chosen.interventions) == DEVICES
    assert using.merge(tmp_path / "0", chosen.delivered, 1, tmp_path / "1").norm <= 5.0 * (1 + 1e-6)


def write_huge(model: Path, path: Path) -> Path:
    adapter = {
        module: LowRank(np.full((m, RANK), 100.0, "f4"), np.ones((RANK, n), "f4"))
        for module, (m, n) in linear_shapes(model, ["q", "v"]).items()
    }
    write_adapter(path, adapter, precision="fp32")
    return path


@pytest.mark.parametrize(
    ("robustness", "named"),
    [
        (Robustness(rule="multi_krum", byzantine=1), "robustness.rule, robustness.byzantine"),
        (Robustness(rule="trimmed_mean", byzantine=1), "robustness.rule, robustness.byzantine"),
        (Robustness(max_weight_share=0.5), "robustness.max_weight_share"),
        (Robustness(max_examples=10), "robustness.max_examples"),
        (Robustness(max_update_norm=1.0), "robustness.max_update_norm"),
        (Robustness(max_update_norm=1.0, over_norm="reject"), "robustness.max_update_norm, robustness.over_norm"),
    ],
)
def test_client_privacy_takes_no_bounds_that_weigh_devices_by_what_they_send(
    model: Path, robustness: Robustness, named: str
) -> None:
    with pytest.raises(ConfigError, match=f"client_privacy and {named} do not go together"):
        exchange(model, None, aggregation="delta", robustness=robustness, privacy=ClientPrivacy(noise_multiplier=1.0))
    exchange(model, None, aggregation="delta", robustness=robustness, privacy=ClientPrivacy())


def test_under_client_privacy_every_device_is_chosen_with_the_weight_it_came_with(
    model: Path, updates: list[Path], tmp_path: Path
) -> None:
    private = exchange(model, None, aggregation="delta", privacy=ClientPrivacy(noise_multiplier=1.0))
    plain = exchange(model, None, aggregation="delta")
    private.begin(tmp_path / "0")
    delivered = [
        Delivered(str(at), round=1, weight=1.0, rank=RANK, held_rank=0, update=path, start=tmp_path / "0")
        for at, path in enumerate(updates[:3])
    ]
    chosen = private.choose(delivered)
    assert chosen.delivered == tuple(delivered)
    assert not chosen.interventions
    norms = [using.merge(tmp_path / "0", chosen.delivered, 1, tmp_path / "1").norm for using in (private, plain)]
    assert norms[0] < norms[1], "cut to the clip norm of 1, with noise that is less than these huge updates"
