"""The rows for EMQX, judged as EMQX documents that it judges them: the first rule that matches, else deny."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefed.protocol.topics import Topics
from edgefed.security.broker_rules import rules_for
from edgefed.security.emqx_rules import EMQX_SETTINGS, emqx_rules
from edgefed.security.identities import AGGREGATOR, BROKER, Identity
from edgefed.transport.topic_filter import topic_matches

TOPICS = Topics("kitchen")
IDS = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?", fullmatch=True)
MEMBERS = st.one_of(
    st.just(AGGREGATOR), st.builds(Identity, st.sampled_from(["device", "observer", "claim"]), IDS)
)  # fmt: skip
WORDS = {"publish": "says", "subscribe": "hears"}


def covers(rule_topic: str, asked: str) -> bool:
    """Whether a rule is about a topic or a filter: level by level, and no wildcard for what begins with a dollar."""
    if asked.startswith("$") and rule_topic[0] in "+#":
        return False
    rule, levels = rule_topic.split("/"), asked.split("/")
    for index, word in enumerate(rule):
        if word == "#":
            return True
        if index >= len(levels) or word not in ("+", levels[index]):
            return False
    return len(rule) == len(levels)


def decided(member: Identity, action: str, topic: str, *, former: bool = False) -> str:
    rows = emqx_rules(TOPICS, *(([], [member]) if former else ([member], [])))
    (row,) = rows
    assert row["username"] == member.common_name
    for rule in row["rules"]:  # type: ignore[attr-defined]
        if rule["action"] in (action, "all") and covers(rule["topic"], topic):
            return str(rule["permission"])
    return "unmatched"


@given(member=MEMBERS, name=IDS, channel=st.sampled_from(["state", "profile", "up", "down"]))
@pytest.mark.parametrize("action", ["publish", "subscribe"])
def test_a_row_says_what_the_table_says(action: str, member: Identity, name: str, channel: str) -> None:
    for topic in (TOPICS.device(name, channel), TOPICS.round, TOPICS.aggregator_state, TOPICS.claim(name, "up")):  # type: ignore[arg-type]
        rules = rules_for(member, TOPICS)
        allowed = any(rule.access in (WORDS[action], "both") and topic_matches(rule.topic, topic) for rule in rules)
        assert decided(member, action, topic) == ("allow" if allowed else "deny")


@given(member=MEMBERS, name=IDS)
def test_no_filter_and_no_special_topic_gets_around_it(member: Identity, name: str) -> None:
    filters = ["#", "+/#", f"{TOPICS.root}/#", "edgefed/+/+/round", "$SYS/#", "$SYS/brokers/+/clients/#"]
    assert {decided(member, "subscribe", topic) for topic in filters} == {"deny"}
    delayed = [f"$delayed/1/{topic}" for topic in (TOPICS.round, TOPICS.device(name, "down"))]
    assert {decided(member, "publish", topic) for topic in delayed} == {"deny"}


@given(member=MEMBERS)
def test_who_was_a_member_may_nothing(member: Identity) -> None:
    for rule in rules_for(member, TOPICS):
        for action in ("publish", "subscribe"):
            assert decided(member, action, rule.topic, former=True) == "deny"


def test_the_aggregator_hears_all_devices_by_one_filter() -> None:
    for channel in ("up", "state", "profile"):
        assert decided(AGGREGATOR, "subscribe", TOPICS.every_device(channel)) == "allow"  # type: ignore[arg-type]
        assert decided(Identity("device", "a"), "subscribe", TOPICS.every_device(channel)) == "deny"  # type: ignore[arg-type]


def test_the_broker_has_no_row_and_the_settings_close_what_rows_do_not() -> None:
    assert emqx_rules(TOPICS, [BROKER], [BROKER]) == []
    for setting in (
        "no_match = deny",
        "peer_cert_as_username = cn",
        "fail_if_no_peer_cert = true",
        "cache.enable = false",
    ):
        assert setting in EMQX_SETTINGS
