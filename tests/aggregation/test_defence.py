"""What bounds and rules make of updates, hostile ones among them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgefed.aggregation.defence import Verdict, check_defence, defend
from edgefed.aggregation.method import Aggregation, Contribution
from edgefed.aggregation.methods import METHODS
from edgefed.aggregation.robustness import UNDEFENDED, Robustness
from edgefed.errors import AdapterError, ConfigError
from edgefed.lora.low_rank import LowRank

SHAPES = {"encoder.q": (14, 18), "decoder.wo": (20, 14)}
RANK = 4
METHOD = st.sampled_from(sorted(METHODS)).map(METHODS.__getitem__)
ATTACK = st.sampled_from(["huge", "flipped", "random", "same"])


def start_of(method: Aggregation) -> dict[str, LowRank]:
    """Orthonormal rows and zero columns, as a federation begins."""
    return dict(method.init(SHAPES, RANK, 0).adapter)


def honest(method: Aggregation, device: str, seed: int, *, size: float = 1.0) -> Contribution:
    """A step along one common direction, with noise of a tenth of it."""
    common, own = np.random.default_rng(7), np.random.default_rng(seed)
    rank = RANK if method.equal_ranks else int(own.integers(1, RANK + 1))
    start = start_of(method)
    update = {}
    for module, (m, n) in SHAPES.items():
        left = common.standard_normal((m, RANK)) + 0.1 * own.standard_normal((m, RANK))
        right = common.standard_normal((RANK, n)) + 0.1 * own.standard_normal((RANK, n))
        left[:, 1:] *= 0.1  # most of it is in the first component, which a device of any rank holds
        update[module] = LowRank((size * left[:, :rank]).astype("f4"), right[:rank].astype("f4"))
    return Contribution(device, 10.0, rank, min(rank, RANK), update.__getitem__, start.__getitem__, 1)


def hostile(method: Aggregation, device: str, seed: int, attack: str) -> Contribution:
    size = {"huge": 1e6, "flipped": -20.0, "random": 30.0, "same": 50.0}[attack]
    one = honest(method, device, 1 if attack == "same" else seed)
    rng = np.random.default_rng(seed)

    def update(module: str) -> LowRank:
        matrix = one.update(module)
        if attack == "random":
            matrix = LowRank(rng.standard_normal(matrix.left.shape).astype("f4"), matrix.right)
        return matrix.scaled(size)

    fixed = {module: update(module) for module in SHAPES}
    return replace(one, update=fixed.__getitem__, weight=1e9)


@settings(max_examples=60, deadline=None)
@given(METHOD, st.integers(1, 3), st.integers(0, 3), st.lists(ATTACK, min_size=3, max_size=3), st.integers(0, 10**6))
def test_multi_krum_leaves_out_every_attacker(method, byzantine, more, attacks, seed):
    count = byzantine + 3 + more
    good = [honest(method, f"good-{at}", seed + at) for at in range(count)]
    bad = [hostile(method, f"bad-{at}", seed + 100 + at, attacks[at]) for at in range(byzantine)]
    contributions = [*bad, *good]
    np.random.default_rng(seed).shuffle(contributions)  # type: ignore[arg-type]
    verdicts = defend(method, Robustness(rule="multi_krum", byzantine=byzantine), contributions, SHAPES)
    kept = {one.device for one, verdict in zip(contributions, verdicts, strict=True) if verdict.weight > 0}
    assert kept == {one.device for one in good}
    assert all(verdict.reason.startswith("multi_krum: ") for verdict in verdicts if not verdict.weight)


@settings(max_examples=40, deadline=None)
@given(METHOD, st.integers(0, 10**6), st.floats(0.1, 10.0))
def test_a_clipped_change_has_the_size_of_the_bound(method, seed, limit):
    from edgefed.aggregation.changes import inner_products, shortened

    contributions = [honest(method, f"d{at}", seed + at, size=10.0**at) for at in range(3)]
    verdicts = defend(method, Robustness(max_update_norm=limit), contributions, SHAPES)
    before = np.sqrt(np.diag(inner_products(method, contributions, SHAPES)))
    for one, verdict, norm in zip(contributions, verdicts, before, strict=True):
        assert verdict.weight == one.weight
        assert (verdict.share < 1) == (norm > limit) == bool(verdict.reason)
        if verdict.share < 1:
            less = shortened(method, one, verdict.share)
            assert np.sqrt(inner_products(method, [less], SHAPES)[0, 0]) == pytest.approx(limit, rel=1e-3)


def test_a_claim_of_a_billion_examples_gets_the_largest_share_and_no_more():
    method = METHODS["flexlora"]
    contributions = [replace(honest(method, f"d{at}", at), weight=float(10 + at)) for at in range(4)]
    contributions.append(replace(honest(method, "liar", 9), weight=1e9))
    verdicts = defend(method, Robustness(max_weight_share=0.3), contributions, SHAPES)
    assert sum(verdict.weight for verdict in verdicts) == pytest.approx(1.0)
    assert verdicts[4].weight == pytest.approx(0.3)
    assert [verdict.weight for verdict in verdicts[:4]] == pytest.approx([0.7 * (10 + at) / 46 for at in range(4)])


def test_the_share_is_of_a_device_and_not_of_an_update():
    method = METHODS["flexlora"]
    late = [replace(honest(method, "busy", at), weight=100.0, round=at) for at in range(4)]
    others = [replace(honest(method, f"d{at}", at), weight=1.0, round=3) for at in range(3)]
    verdicts = defend(method, Robustness(max_weight_share=0.4), [*late, *others], SHAPES)
    assert [verdict.weight for verdict in verdicts] == pytest.approx([0.1] * 4 + [0.2] * 3)


def test_under_a_rule_a_device_has_one_voice():
    method = METHODS["frozen_global"]
    contributions = [honest(method, f"d{at}", at) for at in range(5)]
    contributions.append(replace(honest(method, "d0", 0), round=0))
    verdicts = defend(method, Robustness(rule="multi_krum", byzantine=1), contributions, SHAPES)
    assert verdicts[5] == Verdict(0.0, reason="the device's update of round 1 is in the same sum")
    with pytest.raises(AdapterError, match="multi_krum with byzantine = 1 needs updates of 5 devices and has 4"):
        defend(method, Robustness(rule="multi_krum", byzantine=1), [*contributions[:4], contributions[5]], SHAPES)


def test_without_bounds_all_stay_as_they_are():
    contributions = [honest(METHODS["delta"], f"d{at}", at) for at in range(3)]
    assert defend(METHODS["delta"], UNDEFENDED, contributions, SHAPES) == [Verdict(one.weight) for one in contributions]


def test_a_share_that_a_method_cannot_keep_to_is_refused():
    with pytest.raises(ConfigError, match="max_weight_share bounds nothing with aggregation hetlora"):
        check_defence(METHODS["hetlora"], Robustness(max_weight_share=0.5))


@pytest.mark.parametrize(("name", "why"), [("hetlora", "padding would be trimmed"), ("flora", "no stack")])
def test_a_trimmed_mean_that_a_method_cannot_take_is_refused(name, why):
    with pytest.raises(ConfigError, match=f"trimmed_mean does not go with aggregation {name}: .*{why}.*multi_krum"):
        check_defence(METHODS[name], Robustness(rule="trimmed_mean", byzantine=1))
