"""What was not taken as it came, and why: totals and the latest cases, for whoever watches a federation."""

from __future__ import annotations

import time
from collections import Counter, deque

from edgefed.coordinator.answers import Answer, MergedRound
from edgefed.coordinator.store import Store
from edgefed.protocol.messages.retained import Refusal, RefusalKind
from edgefed.protocol.topics import Topics
from edgefed.transport.base import Distrusted

__all__ = ["Refusals"]

_LATEST = 5
_REASON_CHARACTERS = 300


class Refusals:
    """Counts refusals and remembers the latest; what the store has of them survives a restart.

    Args:
        store: of the run.

    Attributes:
        given_up: whole rounds that were given up.
        gave_up: which was the latest, and why.
    """

    def __init__(self, store: Store) -> None:
        self._totals: Counter[RefusalKind] = Counter()
        self._latest: deque[Refusal] = deque()
        self.given_up = 0
        self.gave_up = ""
        for answer in store.latest_rejected(_LATEST):
            self.take_answer(answer)
        for merged in store.merged_rounds():
            self.take_merged(merged)
        self._totals["rejected"] = store.count_rejected()
        self._latest = deque(sorted(self._latest, key=lambda one: one.unix_s), maxlen=_LATEST)

    @property
    def totals(self) -> dict[RefusalKind, int]:
        """How many there were of each kind."""
        return {what: count for what, count in self._totals.items() if count}

    @property
    def latest(self) -> list[Refusal]:
        """The latest few, newest last."""
        return list(self._latest)

    def take_answer(self, rejected: Answer) -> None:
        """Takes an update that was rejected."""
        self._add("rejected", rejected.device, rejected.round, rejected.reason, rejected.received_unix_s)

    def take_merged(self, merged: MergedRound) -> None:
        """Takes what a merge did about single updates, or that its round was given up."""
        if merged.copied is not None:
            self.given_up += 1
            self.gave_up = f"round {merged.round}: {merged.given_up_because}"
        for one in merged.interventions:
            self._add(one.what, one.device, one.round, one.reason, merged.merged_unix_s)

    def take_silenced(self, device: str, round_: int, per_minute: int) -> None:
        """Takes a device that says too much; nothing of it is kept on disk."""
        self._add("silenced", device, round_, f"it sends more than {per_minute} messages a minute", time.time())

    def take_distrusted(self, topics: Topics, what: Distrusted, round_: int) -> None:
        """Takes a message that was not listened to; nothing of it is kept on disk.

        Args:
            topics: of the fleet.
            what: where it arrived, and what was wrong with it.
            round_: the open round.
        """
        topic = topics.parse_device(what.topic)
        author = "the aggregator" if topic is None else topic.device
        channel = what.topic.rpartition("/")[2]
        kind: RefusalKind = "outdated" if what.outdated else "distrusted"
        for earlier in [one for one in self._latest if (one.what, one.device) == (kind, author)]:
            self._latest.remove(earlier)  # one is told; whoever forges many does not drive out what else there is
        self._add(kind, author, round_, f"on {channel}: {what.reason}", time.time())

    def _add(self, what: RefusalKind, device: str, round_: int, reason: str, unix_s: float) -> None:
        self._totals[what] += 1
        short = reason if len(reason) <= _REASON_CHARACTERS else reason[: _REASON_CHARACTERS - 1] + "…"
        self._latest.append(Refusal(what=what, device=device, round=round_, reason=short, unix_s=unix_s))
