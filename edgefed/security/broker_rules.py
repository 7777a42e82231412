"""What each member of a fleet may say and hear: one table, which the configurations of all brokers are made of.

======================  ===========  ==========  ==========  =========
topic                   device       aggregator  observer    claim
======================  ===========  ==========  ==========  =========
aggregator/state        hears        both        hears
round                   hears        says        hears
blob/<any>              hears        says
device/<own>/state      both         both        hears
device/<own>/profile    says         both        hears
device/<own>/up         says         hears
device/<own>/down       hears        says
claim/<own>/up                       hears                   says
claim/<own>/down                     says                    hears
======================  ===========  ==========  ==========  =========

What is not in it is forbidden. A device hears its own state, because that is how a second agent of the same device is
found out; nobody but the aggregator and observers hears those of others. The aggregator takes away what the broker has
retained of a device that the operator removed.

The rules name each member, instead of a pattern that every certificate of the authority would fit: who has been taken
back, or was never entered, may say and hear nothing, even over a connection that is still up.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from edgefed.protocol.topics import Topics
from edgefed.security.identities import Identity

__all__ = ["Access", "Rule", "rules_for"]

Access = Literal["hears", "says", "both"]


@dataclass(frozen=True, slots=True)
class Rule:
    """One permission.

    Attributes:
        topic: a topic, or a filter that matches all that it is about.
        access: whether its owner may subscribe to it, publish to it, or both.
    """

    topic: str
    access: Access


def rules_for(identity: Identity, topics: Topics) -> tuple[Rule, ...]:
    """Returns all that one member may do; nothing for the broker itself, which connects to nobody."""
    return tuple(Rule(topic, access) for topic, access in _TABLE[identity.role](identity.name, topics))


def _device(name: str, topics: Topics) -> Iterator[tuple[str, Access]]:
    yield topics.device(name, "state"), "both"
    yield topics.device(name, "profile"), "says"
    yield topics.device(name, "up"), "says"
    yield topics.device(name, "down"), "hears"
    yield topics.aggregator_state, "hears"
    yield topics.round, "hears"
    yield topics.every_blob, "hears"


def _aggregator(_name: str, topics: Topics) -> Iterator[tuple[str, Access]]:
    yield topics.aggregator_state, "both"
    yield topics.round, "says"
    yield topics.every_blob, "says"
    yield topics.every_device("state"), "both"
    yield topics.every_device("profile"), "both"
    yield topics.every_device("up"), "hears"
    yield topics.every_device("down"), "says"
    yield topics.claim("+", "up"), "hears"
    yield topics.claim("+", "down"), "says"


def _observer(_name: str, topics: Topics) -> Iterator[tuple[str, Access]]:
    yield topics.aggregator_state, "hears"
    yield topics.round, "hears"
    yield topics.every_device("state"), "hears"
    yield topics.every_device("profile"), "hears"


def _claim(name: str, topics: Topics) -> Iterator[tuple[str, Access]]:
    yield topics.claim(name, "up"), "says"
    yield topics.claim(name, "down"), "hears"


def _broker(_name: str, _topics: Topics) -> Iterator[tuple[str, Access]]:
    return iter(())


_TABLE = {"device": _device, "aggregator": _aggregator, "observer": _observer, "claim": _claim, "broker": _broker}
