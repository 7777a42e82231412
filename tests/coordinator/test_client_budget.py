from __future__ import annotations

import pytest

from edgefed.aggregation.options import CLIENT_ASSUMPTIONS, ClientPrivacy
from edgefed.coordinator.answers import MergedRound
from edgefed.coordinator.client_budget import spent_by, with_privacy
from edgefed.protocol.messages.manifest import Manifest


def merged(round_: int, *devices: str) -> MergedRound:
    return MergedRound(
        round=round_,
        manifest=Manifest(),
        devices=dict.fromkeys(devices, 1 / len(devices)),
        norm=1.0,
        merge_s=0.1,
        broadcast_bytes=0,
        received_bytes=0,
        opened_unix_s=0.0,
        merged_unix_s=1.0,
    )


EARLIER = [merged(1, "a", "b"), merged(2, "a", "c"), merged(3, "b", "c")]


def test_epsilon_is_that_of_the_device_in_the_most_sums() -> None:
    privacy = ClientPrivacy(noise_multiplier=4.0)
    told = with_privacy(merged(4, "a", "d"), EARLIER, privacy)
    assert told.epsilon == privacy.epsilon(3)
    assert (told.delta, told.privacy_assumptions) == (1e-5, CLIENT_ASSUMPTIONS)
    assert with_privacy(merged(4, "d"), EARLIER, privacy).epsilon == privacy.epsilon(2)


def test_without_noise_nothing_is_claimed_and_nothing_ends() -> None:
    last = merged(4, "a")
    assert with_privacy(last, EARLIER, ClientPrivacy()) == last
    assert spent_by(last, EARLIER, ClientPrivacy()) == ""
    assert spent_by(last, EARLIER, ClientPrivacy(noise_multiplier=4.0)) == ""


def test_it_ends_before_any_device_could_pass_the_budget() -> None:
    free = ClientPrivacy(noise_multiplier=4.0)
    privacy = ClientPrivacy(noise_multiplier=4.0, max_epsilon=free.epsilon(3))
    assert spent_by(merged(4, "d"), EARLIER, privacy) == "", "nobody was in more than two: a third is allowed"
    reason = spent_by(merged(4, "a"), EARLIER, privacy)
    assert reason.startswith("the privacy budget has run out: ε of devices is 1.7")
    assert f"{free.epsilon(4):.3g}" in reason


def test_a_budget_that_means_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="without noise there is no ε"):
        ClientPrivacy(max_epsilon=1.0)
    with pytest.raises(ValueError, match=r"one round costs 4\.38: raise noise_multiplier"):
        ClientPrivacy(noise_multiplier=1.0, max_epsilon=4.0)
