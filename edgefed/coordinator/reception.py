"""What devices say: who may join, who is there, who has left; what they deliver goes to `deliveries`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from edgefed.coordinator import events
from edgefed.coordinator.broadcast import Broadcast
from edgefed.coordinator.deliveries import Deliveries, other_model
from edgefed.coordinator.echo import Echo
from edgefed.coordinator.intake import Intake
from edgefed.coordinator.ledger import Ledger
from edgefed.coordinator.options import FederationOptions
from edgefed.coordinator.refusals import Refusals
from edgefed.coordinator.sightings import Sightings
from edgefed.coordinator.word_limit import WordLimit
from edgefed.devices.profile import DeviceProfile
from edgefed.errors import MessageError
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

__all__ = ["Reception"]

_log = logging.getLogger(__name__)


class Reception:
    """Listens to devices on the aggregator's behalf.

    Args:
        options: what `federation.toml` says.
        model: the base model with its fingerprint.
        run: id of this run; messages of other runs are not for us.
        ledger, deliveries, intake, sightings, refusals: the aggregator's.
        broadcasts: of the global adapter, and of releases of the agent.
        tell: sends a message to a device.
        perform: carries out actions of the round machine.
        is_removed: tells whether the operator wants nothing more of a device.
    """

    def __init__(
        self,
        options: FederationOptions,
        model: ModelReference,
        run: str,
        ledger: Ledger,
        deliveries: Deliveries,
        intake: Intake,
        broadcasts: Sequence[Broadcast],
        sightings: Sightings,
        refusals: Refusals,
        *,
        tell: Callable[[str, DownMessage], None],
        perform: Callable[[tuple[events.Action, ...]], None],
        is_removed: Callable[[str], bool] = lambda _: False,
    ) -> None:
        self._topics = Topics(options.fleet)
        self._model = model
        self._run = run
        self._ledger = ledger
        self._deliveries = deliveries
        self._intake = intake
        self._broadcasts = broadcasts
        self._sightings = sightings
        self._refusals = refusals
        self._tell = tell
        self._perform = perform
        self._is_removed = is_removed
        self._echo = Echo(tell)
        self._limit = WordLimit(options.transfers.max_messages_per_minute)
        self._messages_per_minute = options.transfers.max_messages_per_minute

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

    # --- messages -------------------------------------------------------------------------------------------------

    def _hear_retained(self, device: str, channel: str, payload: bytes) -> None:
        if channel == "profile":
            self._sightings.hear_profile(device, decode(payload, DeviceProfile, "device profile"))
            return
        state = decode_device_state(payload)
        if state.objects_to:
            about = {"device": device, "pid": state.pid, "host": state.host}
            _log.warning("two agents have the id %(device)s: process %(pid)d on %(host)s keeps it", about)
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
            self._refusals.take_silenced(device, self._ledger.state.round, self._messages_per_minute)
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
            self._deliveries.consider(device, word)
        else:
            self._deliveries.take_report(device, word)

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
            reason = other_model(self._model, join.model, join.fingerprint)
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
