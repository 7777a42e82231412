"""What an operator wishes reaches the round machine and the devices, and what the broker retains is cleared."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from edgefed.coordinator import events
from edgefed.coordinator.ledger import Ledger
from edgefed.coordinator.outbox import Outbox
from edgefed.coordinator.roster import change_roster
from edgefed.coordinator.round_state import Rules
from edgefed.coordinator.run_directory import RunDirectory
from edgefed.coordinator.selection import Selection
from edgefed.coordinator.sightings import Sightings
from edgefed.coordinator.steward import Steward
from edgefed.coordinator.store import Store
from edgefed.errors import StoreError
from edgefed.protocol.messages.down import Duty, Standing
from edgefed.protocol.messages.retained import DeviceState
from edgefed.protocol.topics import Topics
from edgefed.transport.in_memory import InMemoryBroker

TOPICS = Topics("test")
RULES = Rules(rounds=3, selection=Selection(expected_devices=2))


class Said(Outbox):
    """An outbox that keeps what would go out."""

    def __init__(self) -> None:
        super().__init__(InMemoryBroker().connect("aggregator"), TOPICS)
        self.retained: dict[str, Standing] = {}
        self.cleared: list[str] = []

    def post(self, topic: str, message: msgspec.Struct) -> None:
        assert isinstance(message, Standing)
        self.retained[topic] = message

    def clear(self, topic: str) -> None:
        self.cleared.append(topic)


class Office:
    def __init__(self, store: Store, directory: RunDirectory) -> None:
        self.directory = directory
        self.ledger = Ledger(store, RULES)
        self.said = Said()
        self.sightings = Sightings(directory)
        self.let_go: list[str] = []
        self.performed: list[events.Action] = []
        self.steward = Steward(
            "run",
            TOPICS,
            directory,
            self.ledger,
            self.said,
            self.sightings,
            perform=self.performed.extend,
            let_go=self.let_go.append,
        )

    def wishes(self, duty: Duty, *devices: str, reason: str = "") -> None:
        change_roster(
            self.directory.roster, lambda before: before.with_duty(devices, duty, reason=reason, now_unix_s=1.0)
        )
        self.steward.look()

    def standing(self, device: str) -> Standing:
        return self.said.retained[TOPICS.device(device, "down")]


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path / "run")


@pytest.fixture
def store(directory: RunDirectory) -> Iterator[Store]:
    opened = Store.open(directory.path, {})
    yield opened
    opened.close()


@pytest.fixture
def office(store: Store, directory: RunDirectory) -> Office:
    """In the first round, which two devices train in."""
    made = Office(store, directory)
    made.steward.begin()
    for event in (events.Begin(), events.DeviceJoined("one"), events.DeviceJoined("two")):
        made.ledger.apply(event)
    assert made.ledger.state.outstanding == ("one", "two")
    return made


def test_a_wish_is_in_the_journal_and_told(office: Office, store: Store) -> None:
    office.wishes("paused", "one", reason="too warm")
    assert office.standing("one") == Standing(run="run", duty="paused", reason="paused by the operator: too warm")
    assert Ledger(store, RULES).state.held == (("one", "paused"),)
    assert not office.let_go
    office.wishes("active", "one")
    assert office.standing("one") == Standing(run="run", duty="active")
    assert Ledger(store, RULES).state.held == ()


def test_a_label_is_nobodys_business_but_the_operators(office: Office) -> None:
    change_roster(office.directory.roster, lambda before: before.with_labels(["one"], {"room": "lab"}))
    office.steward.look()
    assert not office.said.retained


def test_nothing_of_who_is_removed_remains(office: Office) -> None:
    office.sightings.hear_state("one", DeviceState(status="training", instance="i"))
    office.wishes("removed", "one")
    assert office.let_go == ["one"]
    assert office.ledger.state.outstanding == ("two",)
    assert office.said.cleared == [TOPICS.device("one", "state"), TOPICS.device("one", "profile")]
    assert not office.sightings.all()
    assert office.standing("one").duty == "removed"
    assert office.steward.has_removed("one")
    assert not office.steward.has_removed("two")
    assert len(office.said.cleared) == 4, "it has shown itself again"


def test_a_new_aggregator_says_it_again(office: Office, store: Store) -> None:
    office.wishes("draining", "two")
    later = Office(store, office.directory)
    later.steward.begin()
    assert later.standing("two").duty == "draining"
    assert not later.performed
    later.said.retained.clear()
    later.steward.show_again()
    assert later.standing("two").duty == "draining"


def test_what_was_wished_while_no_aggregator_ran_is_obeyed(office: Office, store: Store) -> None:
    change_roster(
        office.directory.roster, lambda before: before.with_duty(["one"], "removed", reason="", now_unix_s=1.0)
    )
    later = Office(store, office.directory)
    later.steward.begin()
    assert later.ledger.state.outstanding == ("two",)
    assert later.let_go == ["one"]


def test_who_owes_an_update_is_busy_while_it_works_on_it(office: Office) -> None:
    assert office.steward.busy() == {"one", "two"}
    update = events.Update(device="one", round=1, sha256="0" * 64, examples=1, rank=2, held_rank=2)
    office.ledger.apply(events.UpdateReceived(update))
    office.ledger.apply(events.DeviceLeft("two"))
    assert ("two" in {device for _, device in office.ledger.state.owed}, office.ledger.state.phase) == (True, "merging")
    assert office.steward.busy() == frozenset()
    office.sightings.hear_state("two", DeviceState(status="training", instance="i"))
    assert office.steward.busy() == {"two"}


def test_a_damaged_roster_changes_nothing_while_at_work_and_stops_a_start(office: Office, store: Store) -> None:
    office.wishes("paused", "one")
    office.directory.roster.write_text("{")
    office.steward.look()
    assert office.ledger.state.held == (("one", "paused"),)
    with pytest.raises(StoreError, match="is damaged"):
        Office(store, office.directory)
