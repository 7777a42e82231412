"""What devices deliver to a round, updates and evaluations, and what becomes of each: judged, kept, acknowledged."""

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
from edgefed.coordinator.evaluations import Credibility
from edgefed.coordinator.intake import Intake
from edgefed.coordinator.ledger import Ledger
from edgefed.coordinator.offers import judge_offer
from edgefed.coordinator.options import FederationOptions
from edgefed.coordinator.refusals import Refusals
from edgefed.coordinator.run_directory import RunDirectory
from edgefed.coordinator.store import Store
from edgefed.errors import AdapterError, ChunkError
from edgefed.files import hash_file
from edgefed.protocol.messages.down import Acknowledged, DownMessage
from edgefed.protocol.messages.up import EvaluationReport, UpdateOffer
from edgefed.protocol.tasks import ModelReference

if TYPE_CHECKING:
    from edgefed.security.sealing import SealingKey

__all__ = ["Deliveries", "other_model"]

_log = logging.getLogger(__name__)

_ACKNOWLEDGED_AS: dict[Outcome, str] = {
    "counted": "counted",
    "late": "late",
    "dropped": "dropped",
    "rejected": "rejected",
    "evaluated": "counted",
}


class Deliveries:
    """Takes in what devices have made.

    Args:
        options: what `federation.toml` says.
        model: the base model with its fingerprint.
        run: id of this run.
        store, ledger, exchange, directory, intake, refusals: the aggregator's.
        tell: sends a message to a device.
        perform: carries out actions of the round machine.
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
        refusals: Refusals,
        *,
        tell: Callable[[str, DownMessage], None],
        perform: Callable[[tuple[events.Action, ...]], None],
        sealing: SealingKey | None = None,
    ) -> None:
        self._fleet = options.fleet
        self._rules = options.rules
        self._max_update_bytes = options.transfers.max_update_bytes
        self._model = model
        self._run = run
        self._store = store
        self._ledger = ledger
        self._exchange = exchange
        self._directory = directory
        self._intake = intake
        self._refusals = refusals
        self._tell = tell
        self._perform = perform
        self._sealing = sealing
        self._credibility = Credibility(options.evaluation, options.task)

    def consider(self, device: str, offer: UpdateOffer) -> None:
        """Answers an offer: with a grant, or with what becomes of the update without being sent."""
        if self._is_answered(device, offer):
            return
        verdict = judge_offer(self._ledger.state, self._rules, device, offer.round)
        if self._model.fingerprint != offer.fingerprint:
            self._reject(device, offer, other_model(self._model, offer.model, offer.fingerprint))
        elif offer.sealed_for != (self._sealing.public if self._sealing else ""):
            self._reject(device, offer, self._wrong_seal(offer))
        elif offer.size_bytes > self._max_update_bytes:
            self._reject(device, offer, f"{offer.size_bytes} bytes are over the limit of {self._max_update_bytes}")
        elif verdict in ("wanted", "late"):
            self._intake.offer(device, offer)
        elif verdict != "removed":  # it knows where it stands, and what it has is welcome should it be taken back
            self._drop(device, offer, _WHY_DROPPED[verdict])

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

    def take_report(self, device: str, report: EvaluationReport) -> None:
        """Takes an evaluation of the final adapter, and acknowledges it."""
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

    # --- answers --------------------------------------------------------------------------------------------------

    def _is_answered(self, device: str, offer: UpdateOffer) -> bool:
        """Returns whether it was answered before; the answer is then given again."""
        known = self._store.find_answer(offer.round, device, offer.sha256)
        if known is not None:
            self._acknowledge(device, offer.round, offer.sha256, known.outcome, known.reason)
        return known is not None

    def _reject(self, device: str, offer: UpdateOffer, reason: str) -> None:
        about = {"device": device, "round": offer.round, "reason": reason}
        _log.warning("device %(device)s: update of round %(round)d rejected: %(reason)s", about)
        answer = _answer(device, offer, "rejected", reason)
        self._store.add_answer(answer)
        self._intake.forget(device, offer)
        self._refusals.take_answer(msgspec.structs.replace(answer, received_unix_s=time.time()))
        self._acknowledge(device, offer.round, offer.sha256, "rejected", reason)
        if offer.round == self._ledger.state.round:
            self._perform(self._ledger.apply(events.DeviceLeft(device)))

    def _drop(self, device: str, offer: UpdateOffer, reason: str) -> None:
        self._store.add_answer(_answer(device, offer, "dropped", reason))
        self._intake.forget(device, offer)
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
        self._sealing.open(path, opened, sealing_context(self._fleet, self._run, offer.round, device))
        path.unlink()
        return opened

    def _wrong_seal(self, offer: UpdateOffer) -> str:
        if self._sealing is None:
            return "it is sealed, and this aggregator has no `sealed = true`"
        return "it is sealed for another key" if offer.sealed_for else "it is not sealed, and has to be"


def other_model(model: ModelReference, name: str, fingerprint: str) -> str:
    """Returns what to say of a device whose base model is not the federation's."""
    return (
        f"the device's base model {name!r} ({fingerprint[:16]}…) is not the federation's "
        f"{model.name!r} ({model.fingerprint[:16]}…)"
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
