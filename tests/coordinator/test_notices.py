"""What the aggregator says about itself."""

from __future__ import annotations

from pathlib import Path

from edgefed.coordinator.notices import Notices
from edgefed.coordinator.options import FederationOptions
from edgefed.coordinator.outbox import Outbox
from edgefed.coordinator.refusals import Refusals
from edgefed.coordinator.round_state import State
from edgefed.coordinator.store import Store
from edgefed.protocol.tasks import ModelReference
from edgefed.protocol.topics import Topics
from edgefed.transport.in_memory import InMemoryBroker


def test_who_was_accepted_has_joined(tmp_path: Path) -> None:
    model = ModelReference(name="m", fingerprint="0" * 64)
    options = FederationOptions(fleet="test", rounds=3, model=model)
    notices = Notices(options, model, "run", "instance", Outbox(InMemoryBroker().connect("aggregator"), Topics("test")))
    store = Store.open(tmp_path, {})

    def counts(state: State) -> tuple[int, int]:
        told = notices.describe(state, refusals=Refusals(store), received_bytes=0, broadcast_bytes=0)
        return told.joined, told.accepted

    assert counts(State(round=1, candidates=("a", "b"))) == (2, 0)
    assert counts(State(round=1, phase="training", participants=("a", "b"), outstanding=("b",))) == (2, 2)
    assert counts(State(round=1, participants=("a", "b"), candidates=("b", "c"))) == (3, 2), "after a restart"
