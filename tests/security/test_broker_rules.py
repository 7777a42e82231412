"""What the table of rules promises, for any names."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edgefed.protocol.topics import Topics
from edgefed.security.broker_rules import rules_for
from edgefed.security.identities import AGGREGATOR, BROKER, Identity
from edgefed.transport.topic_filter import topic_matches

IDS = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?", fullmatch=True)
TOPICS = Topics("kitchen")
CHANNELS = ("state", "profile", "up", "down")


def may(identity: Identity, access: str, topic: str, topics: Topics = TOPICS) -> bool:
    return any(
        rule.access in (access, "both") and topic_matches(rule.topic, topic) for rule in rules_for(identity, topics)
    )


@given(own=IDS, other=IDS, channel=st.sampled_from(CHANNELS), access=st.sampled_from(["hears", "says"]))
def test_a_device_has_its_own_topics_only(own: str, other: str, channel: str, access: str) -> None:
    allowed = {("state", "hears"), ("state", "says"), ("profile", "says"), ("up", "says"), ("down", "hears")}
    topic = TOPICS.device(other, channel)  # type: ignore[arg-type]
    assert may(Identity("device", own), access, topic) == (own == other and (channel, access) in allowed)


@given(name=IDS, blob=st.text("0123456789abcdef", min_size=64, max_size=64))
def test_only_the_aggregator_speaks_to_all(name: str, blob: str) -> None:
    for topic in (TOPICS.round, TOPICS.aggregator_state, TOPICS.blob(blob)):
        for role in ("device", "observer", "claim"):
            assert not may(Identity(role, name), "says", topic)  # type: ignore[arg-type]
        assert may(AGGREGATOR, "says", topic)
        assert may(Identity("device", name), "hears", topic)
        assert not may(Identity("claim", name), "hears", topic)


@given(name=IDS, other=IDS, channel=st.sampled_from(["up", "down"]))
def test_a_claim_has_its_own_topics_only(name: str, other: str, channel: str) -> None:
    claim = Identity("claim", name)
    topic = TOPICS.claim(other, channel)  # type: ignore[arg-type]
    assert may(claim, "says", topic) == (name == other and channel == "up")
    assert may(claim, "hears", topic) == (name == other and channel == "down")
    assert {rule.topic for rule in rules_for(claim, TOPICS)} == {TOPICS.claim(name, "up"), TOPICS.claim(name, "down")}


@given(name=IDS)
def test_an_observer_says_nothing_and_hears_no_update(name: str) -> None:
    rules = rules_for(Identity("observer", name), TOPICS)
    assert {rule.access for rule in rules} == {"hears"}
    for channel in ("up", "down"):
        assert not may(Identity("observer", name), "hears", TOPICS.device(name, channel))  # type: ignore[arg-type]


@given(name=IDS, fleet=IDS.filter(lambda fleet: fleet != "kitchen"))
def test_nobody_has_anything_in_another_fleet(name: str, fleet: str) -> None:
    other = Topics(fleet)
    for member in (AGGREGATOR, BROKER, Identity("device", name), Identity("observer", name), Identity("claim", name)):
        for topic in (other.round, other.aggregator_state, *(other.device(name, channel) for channel in CHANNELS)):  # type: ignore[arg-type]
            assert not may(member, "says", topic)
            assert not may(member, "hears", topic)


def test_nobody_may_use_a_filter_for_everything_and_the_broker_nothing() -> None:
    assert rules_for(BROKER, TOPICS) == ()
    for member in (AGGREGATOR, Identity("device", "a"), Identity("observer", "a"), Identity("claim", "a")):
        assert not any("#" in rule.topic for rule in rules_for(member, TOPICS))
