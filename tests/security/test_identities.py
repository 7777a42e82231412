from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefed.errors import ConfigError
from edgefed.security.identities import AGGREGATOR, BROKER, Identity

IDS = st.text(string.ascii_lowercase + string.digits, min_size=1, max_size=40)


@given(
    st.one_of(
        st.builds(Identity, st.sampled_from(["device", "observer", "claim"]), IDS),
        st.sampled_from([AGGREGATOR, BROKER]),
    )
)
def test_a_common_name_says_who_it_is(identity: Identity) -> None:
    assert Identity.parse(identity.common_name) == identity


@given(IDS)
def test_no_device_can_be_taken_for_anything_else(name: str) -> None:
    assert Identity("device", name).common_name not in {
        Identity("observer", name).common_name,
        Identity("claim", name).common_name,
        AGGREGATOR.common_name,
        BROKER.common_name,
    }


@pytest.mark.parametrize(
    "common_name",
    [
        "",
        "#",
        "+",
        "a/b",
        "Board",
        "role:",
        "role:device",
        "observer:",
        "observer:#",
        "claim:a:b",
        "observer:" + "x" * 60,
    ],
)
def test_nobody_else_has_a_name_in_a_fleet(common_name: str) -> None:
    with pytest.raises(ConfigError, match=r"is nobody in a fleet|is not usable"):
        Identity.parse(common_name)
