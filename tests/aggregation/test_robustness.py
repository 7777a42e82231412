from __future__ import annotations

import pytest

from edgefed.aggregation.robustness import UNDEFENDED, Robustness


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"byzantine": 1}, "byzantine has no effect without a rule"),
        ({"rule": "multi_krum"}, "multi_krum must know how many devices may be hostile"),
        ({"over_norm": "reject"}, "over_norm has no effect without max_update_norm"),
    ],
)
def test_options_that_do_nothing_are_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Robustness(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(("rule", "needed"), [("multi_krum", 7), ("trimmed_mean", 5)])
def test_a_quorum_too_small_for_the_rule_is_refused(rule: str, needed: int) -> None:
    robustness = Robustness(rule=rule, byzantine=2)  # type: ignore[arg-type]
    robustness.check_quorum(needed)
    with pytest.raises(ValueError, match=rf"{rule} with byzantine = 2 needs {needed} .* raise selection.quorum to"):
        robustness.check_quorum(needed - 1)


def test_a_share_that_the_quorum_cannot_keep_to_is_refused() -> None:
    Robustness(max_weight_share=0.25).check_quorum(4)
    with pytest.raises(ValueError, match=r"may be the sum of 3 updates, one of which has at least 0.333"):
        Robustness(max_weight_share=0.25).check_quorum(3)
    with pytest.raises(ValueError, match=r"may be the sum of 4 updates"):  # of 5, one is left out
        Robustness(max_weight_share=0.2, rule="multi_krum", byzantine=1).check_quorum(5)


def test_nobody_is_bounded_unless_asked_for() -> None:
    UNDEFENDED.check_quorum(1)
