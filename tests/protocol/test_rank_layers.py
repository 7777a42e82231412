from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefed.errors import ConfigError
from edgefed.protocol.rank_layers import boundaries, layers_within

ranks = st.lists(st.integers(1, 70), max_size=8)


def test_the_documented_example() -> None:
    layers = boundaries([4, 8, 64], 64)
    assert layers == ((0, 4), (4, 8), (8, 64))
    assert [layers_within(layers, rank) for rank in (0, 4, 8, 64)] == [0, 1, 2, 3]


@given(ranks=ranks, total_rank=st.integers(0, 64))
def test_layers_cover_all_ranks_without_a_gap(ranks: list[int], total_rank: int) -> None:
    layers = boundaries(ranks, total_rank)
    assert [rank for lo, hi in layers for rank in range(lo, hi)] == list(range(total_rank))
    assert all(lo < hi for lo, hi in layers)


@given(ranks=ranks, total_rank=st.integers(1, 64), data=st.data())
def test_a_device_fetches_just_what_its_rank_needs(ranks: list[int], total_rank: int, data: st.DataObject) -> None:
    layers = boundaries(ranks, total_rank)
    rank = data.draw(st.sampled_from([*ranks, total_rank]))
    needed = layers[: layers_within(layers, rank)]
    assert needed[-1][1] == min(rank, total_rank), "every rank in use is a cut, so nothing is fetched in vain"


def test_between_cuts_the_surplus_is_fetched_too() -> None:
    assert layers_within(boundaries([4, 16], 16), 5) == 2


@pytest.mark.parametrize(("ranks", "total_rank"), [([0, 4], 8), ([-1], 8), ([4], -1)])
def test_impossible_ranks_are_refused(ranks: list[int], total_rank: int) -> None:
    with pytest.raises(ConfigError):
        boundaries(ranks, total_rank)
