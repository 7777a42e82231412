"""Whatever passes the check on arrival can be merged: no update may stop the aggregator."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edgefed.aggregation.changes import check_summable
from edgefed.aggregation.defence import defend
from edgefed.aggregation.method import Contribution
from edgefed.aggregation.methods import METHODS
from edgefed.aggregation.robustness import UNDEFENDED, Robustness
from edgefed.aggregation.server_optimizers import ServerOptimizer
from edgefed.errors import AdapterError
from edgefed.lora.low_rank import LowRank

SHAPE, RANK = (5, 4), 2
SHARES = st.one_of(st.floats(-1, 1, width=32), st.sampled_from([0.0, 1.0, -1.0, 1e-7]).map(np.float32))
EXPONENTS = st.tuples(st.integers(-44, 29), st.integers(-44, 29)).map(
    lambda both: (both[0], min(both[1], 29 - both[0]))
)


@st.composite
def poison_of_any_size(draw):
    """Components from subnormal to the largest that pass, each side by itself."""
    exponents = np.array([draw(EXPONENTS) for _ in range(RANK)], np.float64)
    left = draw(arrays(np.float32, (SHAPE[0], RANK), elements=SHARES)) * 10.0 ** exponents[:, 0]
    right = draw(arrays(np.float32, (RANK, SHAPE[1]), elements=SHARES)) * 10.0 ** exponents[:, 1:]
    return LowRank(left.astype("f4"), right.astype("f4"))


def honest(seed: int) -> LowRank:
    rng = np.random.default_rng(seed)
    return LowRank(
        rng.standard_normal((SHAPE[0], RANK)).astype("f4"), rng.standard_normal((RANK, SHAPE[1])).astype("f4")
    )


@pytest.mark.parametrize(
    ("name", "optimizer"), [*((name, "averaging") for name in sorted(METHODS)), ("delta", "adam"), ("hetlora", "adam")]
)
@settings(max_examples=40, deadline=None)
@given(poison=poison_of_any_size(), seed=st.integers(0, 1000))
def test_what_passes_can_be_merged(name, optimizer, poison, seed):
    try:
        check_summable(poison, "module 'q'")
    except AdapterError:
        assume(False)
    method = METHODS[name]
    state = method.init({"q": SHAPE}, RANK, seed)
    updates = [poison, *(honest(seed + at) for at in range(4))]
    held = RANK if method.start == "truncated" else 0
    contributions = [
        Contribution(f"d{at}", 1.0, RANK, held, {"q": one}.__getitem__, state.adapter.__getitem__, 1)
        for at, one in enumerate(updates)
    ]
    for robustness in (UNDEFENDED, Robustness(rule="multi_krum", byzantine=1, max_update_norm=1.0)):
        verdicts = defend(method, robustness, contributions, {"q": SHAPE})
        kept = [one for one, verdict in zip(contributions, verdicts, strict=True) if verdict.weight]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            after = method.apply(state, kept, rank=RANK, optimizer=ServerOptimizer(optimizer), seed=seed)
            after.adapter["q"].check("the result")
