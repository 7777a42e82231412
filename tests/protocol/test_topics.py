from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefed.errors import ConfigError
from edgefed.protocol.topics import MAX_ID_LENGTH, DeviceTopic, Topics, check_id
from edgefed.transport.topic_filter import topic_matches

ids = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,62}[a-z0-9])?", fullmatch=True)
CHANNELS = ("state", "profile", "up", "down")


@pytest.mark.parametrize("value", ["a", "7", "board-03", "a--b", "x" * MAX_ID_LENGTH])
def test_ids_that_can_be_topic_levels(value: str) -> None:
    assert check_id(value, "device id") == value


@pytest.mark.parametrize(
    "value",
    ["", "-a", "a-", "A", "a_b", "a.b", "a b", "a/b", "+", "#", "a\n", "ä", "..", "x" * (MAX_ID_LENGTH + 1)],
)
def test_ids_that_cannot(value: str) -> None:
    with pytest.raises(ConfigError, match=r"device id .* not usable"):
        check_id(value, "device id")


def test_a_fleet_name_is_checked() -> None:
    with pytest.raises(ConfigError, match="fleet name"):
        Topics("Barn/#")


@given(fleet=ids, device=ids, channel=st.sampled_from(CHANNELS))
def test_device_topics_parse_back(fleet: str, device: str, channel: str) -> None:
    topics = Topics(fleet)
    topic = topics.device(device, channel)  # type: ignore[arg-type]
    assert topics.parse_device(topic) == DeviceTopic(device, channel)  # type: ignore[arg-type]
    assert topic_matches(topics.every_device(channel), topic)  # type: ignore[arg-type]
    assert not topics.is_blob(topic)


@given(text=st.text(), fleet=ids)
def test_other_topics_parse_to_nothing(text: str, fleet: str) -> None:
    parsed = Topics(fleet).parse_device(f"edgefed/v1/{fleet}/device/{text}")
    if parsed is not None:
        assert text == f"{parsed.device}/{parsed.channel}"


@pytest.mark.parametrize(
    "topic",
    [
        "edgefed/v1/barn/device/a/up/more",
        "edgefed/v1/barn/device/a/down\n",
        "edgefed/v1/barn/device/a/other",
        "edgefed/v1/barn/device/A/up",
        "edgefed/v1/barn/device//up",
        "edgefed/v1/barn/device/up",
        "edgefed/v1/stable/device/a/up",
        "edgefed/v2/barn/device/a/up",
        "edgefed/v1/barn/round",
    ],
)
def test_topics_of_no_device_of_this_fleet(topic: str) -> None:
    assert Topics("barn").parse_device(topic) is None


def test_the_names_are_the_documented_ones() -> None:
    topics = Topics("barn")
    assert topics.aggregator_state == "edgefed/v1/barn/aggregator/state"
    assert topics.claim("red-7", "up") == "edgefed/v1/barn/claim/red-7/up"
    assert topics.round == "edgefed/v1/barn/round"
    assert topics.blob("0123456789abcdef" * 4) == "edgefed/v1/barn/blob/0123456789abcdef"
    assert topics.is_blob(topics.blob("f" * 64))
    assert topic_matches(topics.every_blob, topics.blob("f" * 64))
    assert not topics.is_blob("edgefed/v1/stable/blob/0123456789abcdef")
    assert topics.device("a", "up") == "edgefed/v1/barn/device/a/up"
    assert topics.every_device("state") == "edgefed/v1/barn/device/+/state"


@given(fleet=ids, device=ids, channel=st.sampled_from(CHANNELS))
def test_every_topic_keeps_the_limits_of_every_broker(fleet: str, device: str, channel: str) -> None:
    topics = Topics(fleet)
    for topic in (topics.device(device, channel), topics.blob("f" * 64), topics.aggregator_state):  # type: ignore[arg-type]
        assert topic.count("/") <= 7
        assert len(topic.encode()) <= 256
