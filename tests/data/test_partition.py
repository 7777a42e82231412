from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgefed.data.partition import by_key, dirichlet, uniform
from edgefed.errors import ConfigError

Shares = list[list[int]]

keys_of_rows = st.lists(st.sampled_from(["a", "b", "c", "d", 5, None]), min_size=1, max_size=80)


def check_every_row_once(shares: Shares, rows: int, devices: int) -> None:
    assert len(shares) == devices
    assert sorted(row for share in shares for row in share) == list(range(rows))
    assert all(share == sorted(share) for share in shares)


@given(devices=st.integers(1, 20), more=st.integers(0, 60), seed=st.integers())
def test_uniform_gives_every_row_once_in_equal_shares(devices: int, more: int, seed: int) -> None:
    rows = devices + more
    shares = uniform(rows, devices, seed=seed)
    check_every_row_once(shares, rows, devices)
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 1


@given(keys=keys_of_rows, data=st.data())
def test_by_key_gives_every_row_once_and_something_to_everybody(keys: list[object], data: st.DataObject) -> None:
    devices = data.draw(st.integers(1, len(keys)))
    shares = by_key(keys, devices)
    check_every_row_once(shares, len(keys), devices)
    assert all(shares)


@given(keys=keys_of_rows, data=st.data())
def test_by_key_keeps_groups_together_where_there_are_enough(keys: list[object], data: st.DataObject) -> None:
    devices = data.draw(st.integers(1, len(set(keys))))
    for key in set(keys):
        rows = {row for row, other in enumerate(keys) if other == key}
        assert sum(1 for share in by_key(keys, devices) if rows & set(share)) == 1


def test_by_key_halves_the_largest_group_where_there_are_too_few() -> None:
    keys = ["big"] * 8 + ["small"] * 2
    assert by_key(keys, 3) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_by_key_balances_what_it_deals() -> None:
    keys = [key for key, rows in (("a", 6), ("b", 5), ("c", 4), ("d", 3)) for _ in range(rows)]
    assert sorted(len(share) for share in by_key(keys, 2)) == [9, 9]


@settings(max_examples=200)
@given(
    keys=keys_of_rows,
    alpha=st.sampled_from([1e-300, 1e-3, 0.1, 0.3, 1.0, 100.0, 1e6]),
    seed=st.integers(0, 1000),
    data=st.data(),
)
def test_dirichlet_gives_every_row_once_and_everybody_the_minimum(
    keys: list[object], alpha: float, seed: int, data: st.DataObject
) -> None:
    devices = data.draw(st.integers(1, len(keys)))
    minimum = data.draw(st.integers(0, len(keys) // devices))
    shares = dirichlet(keys, devices, alpha=alpha, seed=seed, minimum=minimum)
    check_every_row_once(shares, len(keys), devices)
    assert min(len(share) for share in shares) >= minimum


@pytest.mark.parametrize(
    "split", [uniform, lambda rows, devices, seed: dirichlet([0] * rows, devices, alpha=1, seed=seed)]
)
def test_a_seed_gives_one_split(split: Callable[..., Shares]) -> None:
    assert split(50, 5, seed=1) == split(50, 5, seed=1)
    assert split(50, 5, seed=1) != split(50, 5, seed=2)


def test_alpha_says_how_uneven_the_shares_are() -> None:
    keys = [row % 4 for row in range(4000)]

    def largest_share_of_a_key(alpha: float) -> float:
        shares = dirichlet(keys, 5, alpha=alpha, seed=3)
        return max(sum(1 for row in share if keys[row] == key) / 1000 for share in shares for key in range(4))

    assert largest_share_of_a_key(1e6) == pytest.approx(0.2, abs=0.01)
    assert largest_share_of_a_key(0.01) > 0.9


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan"), float("inf"), 1e308])
def test_an_impossible_alpha_is_refused(alpha: float) -> None:
    with pytest.raises(ConfigError, match="alpha"):
        dirichlet(["a"] * 4, 2, alpha=alpha)


@pytest.mark.parametrize(
    ("split", "said"),
    [
        (lambda: uniform(3, 4), "3 rows cannot give 4 devices at least one each"),
        (lambda: by_key("abc", 4), "3 rows cannot give 4 devices at least one each"),
        (lambda: dirichlet("abc", 2, alpha=1, minimum=2), "3 rows cannot give 2 devices at least 2 each"),
        (lambda: dirichlet("abc", 2, alpha=1, minimum=-1), "at least -1 rows"),
        (lambda: uniform(3, 0), "needs at least one device"),
        (lambda: by_key("abc", -2), "needs at least one device"),
        (lambda: dirichlet("abc", 0, alpha=1), "needs at least one device"),
    ],
)
def test_what_cannot_be_split_is_refused(split: Callable[[], Shares], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        split()
