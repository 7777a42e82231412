"""What devices say, and the answers they get: who may join, which updates are welcome, which are refused and why."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edgefed.aggregation.exchange import Exchange
from edgefed.coordinator import events
from edgefed.coordinator.answers import Answer, Outcome
from edgefed.coordinator.broadcast import Broadcast
from edgefed.coordinator.echo import Echo
from edgefed.coordinator.evaluations import Credibility
from edgefed.coordinator.intake import Intake
from edgefed.coordinator.ledger import Ledger
from edgefed.coordinator.offers import judge_offer
from edgefed.coordinator.options import FederationOptions
from edgefed.coordinator.refusals import Refusals
from edgefed.coordinator.run_directory import RunDirectory
from edgefed.coordinator.sightings import Sightings
from edgefed.coordinator.store import Store
from edgefed.coordinator.word_limit import WordLimit
from edgefed.devices.profile import DeviceProfile
from edgefed.errors import AdapterError, ChunkError, MessageError
from edgefed.files import hash_file
from edgefed.protocol.chunks import Ranges, is_chunk
from edgefed.protocol.messages.down import Acknowledged, DownMessage, Refused
from edgefed.protocol.messages.retained import decode_device_state
from edgefed.protocol.messages.up import (
    Decline,
    EvaluationReport,
    Join,
    PartsWanted,
    Ping,
    RoundWord,
    UpdateOffer,
    decode_up,
)
from edgefed.protocol.messages.wire import decode
from edgefed.protocol.tasks import ModelReference
from edgefed.protocol.topics import Topics
from edgefed.transport.base import Message

if TYPE_CHECKING:
    from edgefed.security.sealing import SealingKey

__all__ = ["Reception"]

_log = logging.getLogger(__name__)

_ACKNOWLEDGED_AS: dict[Outcome, str] = {
    "counted": "counted",
    "late": "late",
    "dropped": "dropped",
    "rejected": "rejected",
    "evaluated": "counted",
}


class Reception:
    """Listens to devices on the aggregator's behalf.

    Args:
        options: what `federation.toml` says.
        model: the base model with its fingerprint.
        run: id of this run; messages of other runs are not for us.
        store, ledger, exchange, directory, intake, broadcast, sightings: the aggregator's.
        tell: sends a message to a device.
        perform: carries out actions of the round machine.
        is_removed: tells whether the operator wants nothing more of a device.
        releases: broadcasts new releases of the agent.
        sealing: opens updates, which then have to be sealed for it; None where they come unsealed.
    """

    def __init__(
        self,
        options: FederationOptions,
        model: ModelReference,
        run: str,
        store: Store,
        ledger: Ledger,
        exchange: Exchange,
        directory: RunDirectory,
        intake: Intake,
        broadcast: Broadcast,
        sightings: Sightings,
        *,
        tell: Callable[[str, DownMessage], None],
        perform: Callable[[tuple[events.Action, ...]], None],
        is_removed: Callable[[str], bool] = lambda _: False,
        releases: Broadcast | None = None,
        sealing: SealingKey | None = None,
    ) -> None:
        self._sealing = sealing
        self._topics = Topics(options.fleet)
        self._rules = options.rules
        self._max_update_bytes = options.transfers.max_update_bytes
        self._model = model
        self._run = run
        self._store = store
        self._ledger = ledger
        self._exchange = exchange
        self._directory = directory
        self._intake = intake
        self._sightings = sightings
        self._is_removed = is_removed
        self._broadcasts = (broadcast,) if releases is None else (broadcast, releases)
        self._tell = tell
        self._perform = perform
        self._echo = Echo(tell)
        self._credibility = Credibility(options.evaluation, options.task)
        self._limit = WordLimit(options.transfers.max_messages_per_minute)
        self._messages_per_minute = options.transfers.max_messages_per_minute
        self.refusals = Refusals(store)

    def hear(self, message: Message) -> None:
        """Takes a message from a device's `up`, `state` or `profile` topic.

        Raises:
            MessageError: it does not decode.
        """
        topic = self._topics.parse_device(message.topic)
        if topic is None:
            return
        if topic.channel in ("state", "profile"):
            if message.payload and self._may_speak(topic.device) and not self._is_removed(topic.device):
                self._hear_retained(topic.device, topic.channel, message.payload)
        elif is_chunk(message.payload):
            self._intake.chunk(topic.device, message.payload)
        else:
            self._hear_word(topic.device, message.payload)

    async def take_in(self, device: str, offer: UpdateOffer, path: Path) -> None:
        """Judges an update that has arrived whole, keeps it, and acknowledges it."""
        if self._is_answered(device, offer):  # offered once more between its last byte and this moment
            path.unlink(missing_ok=True)
            return
        verdict = judge_offer(self._ledger.state, self._rules, device, offer.round)
        if verdict not in ("wanted", "late"):
            path.unlink(missing_ok=True)
            if verdict != "removed":
                self._drop(device, offer, "its round closed before it had arrived")
            return
        try:  # whoever takes updates in does nothing else meanwhile, so the verdict holds until the end
            path = await asyncio.to_thread(self._opened, device, offer, path)
            kept_sha256 = "" if self._sealing is None else await asyncio.to_thread(hash_file, path)
            start = self._directory.state(offer.round - 1)
            await asyncio.to_thread(self._exchange.check, path, offer.plan, start)
        except (AdapterError, ChunkError) as error:
            path.unlink(missing_ok=True)
            self._reject(device, offer, str(error))
            return
        self._directory.take_update(path, device, offer.round, offer.sha256)
        outcome: Outcome = "counted" if verdict == "wanted" else "late"
        evaluation = offer.record.evaluation
        loss, tokens = (None, 0) if evaluation is None else self._credibility.weigh(device, evaluation)
        event = events.UpdateReceived(
            events.Update(
                device=device,
                round=offer.round,
                sha256=offer.sha256,
                examples=offer.examples,
                rank=offer.plan.rank,
                held_rank=offer.plan.held_rank,
                kept_sha256=kept_sha256,
            ),
            loss=loss,
            target_tokens=tokens,
        )
        actions = self._ledger.apply(event, answer=_answer(device, offer, outcome))
        self._acknowledge(device, offer.round, offer.sha256, outcome)
        self._perform(actions)

    # --- messages -------------------------------------------------------------------------------------------------

    def _hear_retained(self, device: str, channel: str, payload: bytes) -> None:
        if channel == "profile":
            self._sightings.hear_profile(device, decode(payload, DeviceProfile, "device profile"))
            return
        state = decode_device_state(payload)
        self._sightings.hear_state(device, state)
        status = state.status
        if status in ("lost", "disconnected"):
            self._intake.give_up_on(device)
            self._perform(self._ledger.apply(events.DeviceLeft(device)))
        elif status in ("training", "downloading", "uploading"):
            self._perform(self._ledger.apply(events.DeviceReturned(device)))

    def _may_speak(self, device: str) -> bool:
        hearing = self._limit.hear(device)
        if hearing == "silenced":
            about = {"device": device, "limit": self._messages_per_minute}
            _log.warning("device %(device)s sends more than %(limit)d messages a minute", about)
            self.refusals.take_silenced(device, self._ledger.state.round, self._messages_per_minute)
        return hearing == "heard"

    def _hear_word(self, device: str, payload: bytes) -> None:
        try:
            word = decode_up(payload)
        except MessageError:
            if self._may_speak(device):
                raise
            return
        if isinstance(word, Ping):
            self._echo.answer(device, word)
        elif not self._may_speak(device):
            return
        else:
            self._sightings.hear(device)
            self._hear_of_a_round(device, word)

    def _hear_of_a_round(self, device: str, word: RoundWord) -> None:
        if word.run != self._run:
            self._answer_a_stranger(device, word)
        elif isinstance(word, Join):
            self._join(device, word)
        elif isinstance(word, Decline):
            self._decline(device, word)
        elif isinstance(word, PartsWanted):
            for broadcast in self._broadcasts:  # each has what it has on offer
                broadcast.want(device, {part.sha256: Ranges(part.missing) for part in word.parts})
        elif isinstance(word, UpdateOffer):
            self._consider(device, word)
        else:
            self._take_report(device, word)

    def _answer_a_stranger(self, device: str, word: object) -> None:
        """A device with something from another run is told once that nobody waits for it."""
        if isinstance(word, UpdateOffer | EvaluationReport):
            sha256 = word.sha256 if isinstance(word, UpdateOffer) else ""
            reason = "it belongs to another run of the federation"
            self._tell(
                device,
                Acknowledged(run=word.run, round=word.round, sha256=sha256, outcome="dropped", reason=reason),
            )

    def _join(self, device: str, join: Join) -> None:
        if join.round != self._ledger.state.round:
            return  # it will see the present announcement and join that
        if self._model.fingerprint != join.fingerprint:
            reason = self._wrong_model(join.model, join.fingerprint)
            _log.warning("device %(device)s may not take part: %(reason)s", {"device": device, "reason": reason})
            self._tell(device, Refused(run=self._run, round=join.round, reason=reason, final=True))
            return
        self._sightings.hear_plan(device, join.plan)
        self._perform(self._ledger.apply(events.DeviceJoined(device)))

    def _decline(self, device: str, decline: Decline) -> None:
        about = {"device": device, "round": decline.round, "reason": decline.reason}
        _log.warning("device %(device)s does not take part in round %(round)d: %(reason)s", about)
        if decline.round == self._ledger.state.round:
            self._intake.give_up_on(device)
            self._perform(self._ledger.apply(events.DeviceLeft(device, decline.diverged)))

    def _consider(self, device: str, offer: UpdateOffer) -> None:
        if self._is_answered(device, offer):
            return
        verdict = judge_offer(self._ledger.state, self._rules, device, offer.round)
        if self._model.fingerprint != offer.fingerprint:
            self._reject(device, offer, self._wrong_model(offer.model, offer.fingerprint))
        elif offer.sealed_for != (self._sealing.public if self._sealing else ""):
            self._reject(device, offer, self._wrong_seal(offer))
        elif offer.size_bytes > self._max_update_bytes:
            self._reject(device, offer, f"{offer.size_bytes} bytes are over the limit of {self._max_update_bytes}")
        elif verdict in ("wanted", "late"):
            self._intake.offer(device, offer)
        elif verdict != "removed":  # it knows where it stands, and what it has is welcome should it be taken back
            self._drop(device, offer, _WHY_DROPPED[verdict])

    def _take_report(self, device: str, report: EvaluationReport) -> None:
        state, evaluation = self._ledger.state, report.record.evaluation
        if state.kind != "evaluate" or report.round != state.round or evaluation is None:
            self._acknowledge(device, report.round, "", "dropped", "nobody waits for this evaluation")
        elif device in state.delivered:
            self._acknowledge(device, report.round, "", "evaluated")
        elif device in state.taken_out:
            return  # as with an update
        elif device not in state.participants:
            self._acknowledge(device, report.round, "", "dropped", _WHY_DROPPED["unknown"])
        elif state.phase != "training":
            self._acknowledge(device, report.round, "", "dropped", _WHY_DROPPED["dropped"])
        else:
            loss, tokens = self._credibility.weigh(device, evaluation)
            event = events.EvaluationReceived(device, report.round, loss, tokens)
            answer = Answer(
                round=report.round, device=device, sha256="", size_bytes=0, outcome="evaluated", record=report.record
            )
            actions = self._ledger.apply(event, answer=answer)
            self._acknowledge(device, report.round, "", "evaluated")
            self._perform(actions)

    def _is_answered(self, device: str, offer: UpdateOffer) -> bool:
        """Returns whether it was answered before; the answer is then given again."""
        known = self._store.find_answer(offer.round, device, offer.sha256)
        if known is not None:
            self._acknowledge(device, offer.round, offer.sha256, known.outcome, known.reason)
        return known is not None

    # --- answers --------------------------------------------------------------------------------------------------

    def _reject(self, device: str, offer: UpdateOffer, reason: str) -> None:
        about = {"device": device, "round": offer.round, "reason": reason}
        _log.warning("device %(device)s: update of round %(round)d rejected: %(reason)s", about)
        answer = _answer(device, offer, "rejected", reason)
        self._store.add_answer(answer)
        self.refusals.take_answer(msgspec.structs.replace(answer, received_unix_s=time.time()))
        self._acknowledge(device, offer.round, offer.sha256, "rejected", reason)
        if offer.round == self._ledger.state.round:
            self._perform(self._ledger.apply(events.DeviceLeft(device)))

    def _drop(self, device: str, offer: UpdateOffer, reason: str) -> None:
        self._store.add_answer(_answer(device, offer, "dropped", reason))
        self._acknowledge(device, offer.round, offer.sha256, "dropped", reason)

    def _acknowledge(self, device: str, round_: int, sha256: str, outcome: Outcome, reason: str = "") -> None:
        acknowledged = Acknowledged(
            run=self._run,
            round=round_,
            sha256=sha256,
            outcome=_ACKNOWLEDGED_AS[outcome],  # type: ignore[arg-type]
            reason=reason[:4096],
        )
        self._tell(device, acknowledged)

    def _opened(self, device: str, offer: UpdateOffer, path: Path) -> Path:
        """Returns what an update has in it, in a file of its own where it came sealed; the sealed one is gone then."""
        if self._sealing is None:
            return path
        from edgefed.security.sealing import sealing_context

        opened = path.with_name(f"{path.name}.opened")
        self._sealing.open(path, opened, sealing_context(self._topics.fleet, self._run, offer.round, device))
        path.unlink()
        return opened

    def _wrong_seal(self, offer: UpdateOffer) -> str:
        if self._sealing is None:
            return "it is sealed, and this aggregator has no `sealed = true`"
        return "it is sealed for another key" if offer.sealed_for else "it is not sealed, and has to be"

    def _wrong_model(self, name: str, fingerprint: str) -> str:
        return (
            f"the device's base model {name!r} ({fingerprint[:16]}…) is not the federation's "
            f"{self._model.name!r} ({self._model.fingerprint[:16]}…)"
        )


_WHY_DROPPED: dict[str, str] = {
    "dropped": "its round is over",
    "duplicate": "another update of this device for this round is in",
    "unknown": "the device was not accepted into this round",
}


def _answer(device: str, offer: UpdateOffer, outcome: Outcome, reason: str = "") -> Answer:
    return Answer(
        round=offer.round,
        device=device,
        sha256=offer.sha256,
        size_bytes=offer.size_bytes,
        outcome=outcome,
        reason=reason,
        record=offer.record,
    )
