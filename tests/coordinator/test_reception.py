"""What the aggregator answers to devices that it did not ask."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgefed.aggregation.lora_exchange import LoraExchange
from edgefed.aggregation.options import ServerOptimizer
from edgefed.coordinator import events
from edgefed.coordinator.broadcast import Broadcast
from edgefed.coordinator.deliveries import Deliveries
from edgefed.coordinator.intake import Intake
from edgefed.coordinator.ledger import Ledger
from edgefed.coordinator.options import FederationOptions, Transfers
from edgefed.coordinator.reception import Reception
from edgefed.coordinator.refusals import Refusals
from edgefed.coordinator.run_directory import RunDirectory
from edgefed.coordinator.selection import Selection
from edgefed.coordinator.sightings import Sightings
from edgefed.coordinator.store import Store
from edgefed.errors import MessageError
from edgefed.models.checkpoint import fingerprint
from edgefed.protocol.messages.down import Acknowledged, DownMessage
from edgefed.protocol.messages.manifest import Plan
from edgefed.protocol.messages.retained import DeviceState
from edgefed.protocol.messages.up import Decline, EvaluationReport, Join, Ping
from edgefed.protocol.messages.wire import encode
from edgefed.protocol.records import EvaluationRecord, RoundRecord
from edgefed.protocol.tasks import LoraMethod, ModelReference
from edgefed.protocol.topics import Topics
from edgefed.transport.base import Message
from edgefed.transport.in_memory import InMemoryBroker
from tests.federation.stand_in import make_paper_model

FLEET = "test"
RUN = "run"


class Desk:
    """A reception with everything behind it, and what it said."""

    def __init__(self, store: Store, options: FederationOptions, model: ModelReference) -> None:
        self.store = store
        self.ledger = Ledger(store, options.rules)
        self.told: list[tuple[str, DownMessage]] = []
        directory = RunDirectory(store.directory)
        intake = Intake(
            directory.incoming,
            options.transfers,
            tell=self._tell,
            arrived=lambda *_: None,
            broke=lambda _: None,
            max_payload_bytes=lambda: 1_000_000,
        )
        topics = Topics(FLEET)
        transport = InMemoryBroker().connect("aggregator")
        exchange = LoraExchange(
            LoraMethod(ranks=[2]), ServerOptimizer(), model_path=Path(model.name), model_name=model.name, seed=0
        )
        self.refusals = Refusals(store)
        says: Any = {"tell": self._tell, "perform": lambda _: None}
        deliveries = Deliveries(
            options, model, RUN, store, self.ledger, exchange, directory, intake, self.refusals, **says
        )
        sightings = Sightings(directory)
        broadcasts = (Broadcast(transport, topics, chunk_bytes=1024, settle_s=0.0),)
        self.reception = Reception(
            options,
            model,
            RUN,
            self.ledger,
            deliveries,
            intake,
            broadcasts,
            sightings,
            self.refusals,
            **says,
        )

    def _tell(self, device: str, message: DownMessage) -> None:
        self.told.append((device, message))

    def hears(self, device: str, report: EvaluationReport) -> Acknowledged:
        """Returns the answer to a report."""
        self.reception.hear(Message(Topics(FLEET).device(device, "up"), encode(report)))
        to, answer = self.told[-1]
        assert to == device
        assert isinstance(answer, Acknowledged)
        return answer


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    """In its last round, which two devices evaluate; a third one was never asked."""
    path = make_paper_model(tmp_path / "model")
    model = ModelReference(name=str(path), fingerprint=fingerprint(path))
    selection = Selection(expected_devices=2)
    options = FederationOptions(
        fleet=FLEET,
        rounds=1,
        directory=str(tmp_path / "run"),
        model=model,
        selection=selection,
        transfers=Transfers(max_messages_per_minute=60),
    )
    store = Store.open(tmp_path / "run", {})
    desk = Desk(store, options, model)
    update = events.Update(device="one", round=1, sha256="0" * 64, examples=1, rank=2, held_rank=2)
    other = events.Update(device="two", round=1, sha256="1" * 64, examples=1, rank=2, held_rank=2)
    join = [events.DeviceJoined("one"), events.DeviceJoined("two")]
    received = [events.UpdateReceived(update), events.UpdateReceived(other)]
    for event in (events.Begin(), *join, *received, events.Merged(1), *join):
        desk.ledger.apply(event)
    assert (desk.ledger.state.kind, desk.ledger.state.phase) == ("evaluate", "training")
    yield desk
    store.close()


def report(
    device: str, round_: int = 2, run: str = RUN, *, loss: float = 1.0, target_tokens: int = 10
) -> EvaluationReport:
    evaluation = EvaluationRecord(loss=loss, target_tokens=target_tokens, examples=1, evaluate_s=0.1)
    record = RoundRecord(
        device=device, round=round_, rank=0, held_rank=2, quantization="fp32", examples=1, evaluation=evaluation
    )
    return EvaluationReport(run=run, round=round_, record=record)


def test_an_evaluation_counts_once_and_is_acknowledged_as_often_as_it_comes(desk: Desk) -> None:
    assert [desk.hears("one", report("one")).outcome for _ in range(2)] == ["counted", "counted"]
    assert desk.ledger.state.delivered == {"one"}
    assert [(answer.device, answer.outcome) for answer in desk.store.answers()] == [("one", "evaluated")]


def test_an_evaluation_of_one_that_was_not_accepted_is_refused(desk: Desk) -> None:
    answer = desk.hears("three", report("three"))
    assert (answer.outcome, answer.reason) == ("dropped", "the device was not accepted into this round")
    assert desk.store.answers() == []
    assert desk.ledger.state.delivered == set()


def test_an_evaluation_of_another_round_is_dropped_though_the_device_has_answered_this_one(desk: Desk) -> None:
    desk.hears("one", report("one"))
    answer = desk.hears("one", report("one", round_=1))
    assert (answer.outcome, answer.reason) == ("dropped", "nobody waits for this evaluation")


def test_an_evaluation_after_the_end_is_dropped(desk: Desk) -> None:
    desk.ledger.apply(events.Stop("enough"))
    answer = desk.hears("two", report("two"))
    assert (answer.outcome, answer.reason) == ("dropped", "its round is over")


def test_a_device_that_has_diverged_is_told_from_one_that_has_no_time(desk: Desk) -> None:
    for device, diverged in (("one", True), ("two", False)):
        decline = Decline(run=RUN, round=2, reason="why", diverged=diverged)
        desk.reception.hear(Message(Topics(FLEET).device(device, "up"), encode(decline)))
    assert desk.ledger.state.diverged == ("one",)
    assert desk.ledger.state.outstanding == ()


def test_a_flood_of_joins_and_goodbyes_writes_little_and_others_are_heard(desk: Desk) -> None:
    plan = Plan(rank=2, held_rank=2, quantization="fp32")
    join = Join(run=RUN, round=2, plan=plan, fingerprint=desk.reception._model.fingerprint, examples=1)
    decline = Decline(run=RUN, round=2, reason="no")
    written = len(list(desk.store.journal()))
    for _ in range(500):
        for word in (join, decline):
            desk.reception.hear(Message(Topics(FLEET).device("flood", "up"), encode(word)))
    assert len(list(desk.store.journal())) - written <= 62
    assert desk.refusals.totals == {"silenced": 1}
    (told,) = desk.refusals.latest
    assert (told.device, told.what, told.round) == ("flood", "silenced", 2)
    assert desk.hears("one", report("one")).outcome == "counted"


def test_states_and_nonsense_are_counted_too_and_measurements_are_not(desk: Desk) -> None:
    ping = encode(Ping(nonce="c0ffee", sequence=1))
    for _ in range(100):
        desk.reception.hear(Message(Topics(FLEET).device("loud", "up"), ping))
    assert "silenced" not in desk.refusals.totals
    with pytest.raises(MessageError):
        desk.reception.hear(Message(Topics(FLEET).device("loud", "up"), b"{"))
    state = encode(DeviceState(status="ready", instance="i"))
    for _ in range(100):
        desk.reception.hear(Message(Topics(FLEET).device("loud", "state"), state))
    assert desk.refusals.totals == {"silenced": 1}
    desk.reception.hear(Message(Topics(FLEET).device("loud", "up"), b"{"))  # is not even complained of


def test_a_claim_of_many_tokens_weighs_no_more_than_could_be_measured(desk: Desk) -> None:
    desk.hears("one", report("one", loss=4.0, target_tokens=8192))  # 64 examples of 128 tokens
    desk.hears("two", report("two", loss=2.0, target_tokens=2**53 - 1))
    assert desk.ledger.state.losses == ((1, pytest.approx(3.0)),)


@pytest.mark.parametrize("loss", [-1.0, 1e300])
def test_a_loss_that_cannot_be_is_taken_and_weighs_nothing(desk: Desk, loss: float) -> None:
    assert desk.hears("one", report("one", loss=loss)).outcome == "counted"
    desk.hears("two", report("two", loss=2.0))
    assert desk.ledger.state.losses == ((1, 2.0),)


def test_two_agents_with_one_id_are_told_to_whoever_runs_the_fleet(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    for objects_to in ("", "the-other"):
        state = DeviceState(status="ready", instance="this", host="barn-2", pid=71, objects_to=objects_to)
        desk.reception.hear(Message(Topics(FLEET).device("one", "state"), encode(state)))
    assert [record.getMessage() for record in caplog.records] == [
        "two agents have the id one: process 71 on barn-2 keeps it"
    ]
