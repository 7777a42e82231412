"""A whole federation in one thread: the real aggregator on a real store, toy devices, and a network that a test plays.

Nothing moves by itself. A test delivers, repeats, loses and reorders each message, lets time pass, and kills the
aggregator at any durable write. An update's content says who made it, so that the sums can be audited.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from edgefed.aggregation.exchange import Chosen, Delivered, MergedState
from edgefed.coordinator.crash_points import AtWrite, Side
from edgefed.coordinator.ledger import Ledger
from edgefed.coordinator.options import FederationOptions
from edgefed.coordinator.round_state import State
from edgefed.coordinator.run_directory import RunDirectory
from edgefed.coordinator.service import Aggregator
from edgefed.coordinator.store import Store
from edgefed.errors import AdapterError
from edgefed.files import hash_file, replace_file
from edgefed.protocol.chunks import Ranges, encode_chunk
from edgefed.protocol.messages.down import Accepted, Acknowledged, DownMessage, UploadGrant, decode_down
from edgefed.protocol.messages.manifest import Manifest, Plan
from edgefed.protocol.messages.retained import (
    AggregatorState,
    DeviceState,
    FederationFinished,
    RoundMessage,
    decode_round,
)
from edgefed.protocol.messages.up import EvaluationReport, Join, UpdateOffer, UpMessage
from edgefed.protocol.messages.wire import encode
from edgefed.protocol.records import EvaluationRecord, RoundRecord
from edgefed.protocol.topics import Topics
from edgefed.transport.base import Event, Message
from tests.faults.virtual_time import VirtualLoop

__all__ = ["Killed", "Phone", "TallyExchange", "World", "WrittenUpdate"]

UPDATE_BYTES = 1500
CHUNK_BYTES = 1024


class Killed(BaseException):
    """The aggregator's process is gone. No `except Exception` of the product may catch that."""


@dataclass(frozen=True, order=True)
class WrittenUpdate:
    """One update, by what is written in it."""

    device: str
    round: int
    attempt: int

    @property
    def blob(self) -> bytes:
        return json.dumps([self.device, self.round, self.attempt]).encode().ljust(UPDATE_BYTES)

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.blob).hexdigest()


class TallyExchange:
    """A method whose global state is the list of all updates that went into it, each with the round that took it."""

    def __init__(self, at_write: AtWrite) -> None:
        self._at_write = at_write

    def begin(self, directory: Path) -> MergedState:
        if not directory.is_dir():
            self._write(directory, [])
        return self.load(directory)

    def load(self, directory: Path) -> MergedState:
        self.tally(directory)
        return MergedState(Manifest(), {}, 0.0)

    def check(self, update: Path, plan: Plan, start: Path) -> None:
        if not update.is_file():
            raise AdapterError(f"{update}: No such file or directory")

    def choose(self, delivered: Sequence[Delivered]) -> Chosen:
        return Chosen(tuple(delivered))

    def merge(self, before: Path, delivered: Sequence[Delivered], round_: int, after: Path) -> MergedState:
        tally = self.tally(before)
        for one in delivered:
            assert one.start.is_dir(), f"the state that {one} started from is gone"
            tally.append((WrittenUpdate(*json.loads(one.update.read_bytes())), round_))
        self._at_write("before")
        self._write(after, tally)
        self._at_write("after")
        return self.load(after)

    def export(self, state: Path, output: Path, *, rank: int | None = None) -> None:
        replace_file(output, [(state / "tally.json").read_bytes()])

    def tally(self, directory: Path) -> list[tuple[WrittenUpdate, int]]:
        rows = json.loads((directory / "tally.json").read_bytes())
        return [(WrittenUpdate(*update), merged_in) for update, merged_in in rows]

    def _write(self, directory: Path, tally: list[tuple[WrittenUpdate, int]]) -> None:
        directory.mkdir(exist_ok=True)
        rows = [[[update.device, update.round, update.attempt], merged_in] for update, merged_in in tally]
        replace_file(directory / "tally.json", [json.dumps(rows).encode()])


@dataclass
class Phone:
    """A device. It keeps what it made until that is acknowledged.

    Attributes:
        name: device id.
        awake: whether it hears and says anything.
        acknowledged: what the aggregator said of each update, in the order it said it.
        held: what it has to deliver, by round; None for an evaluation.
        done: rounds that it need not do any more, with their kind.
        losses: what it finds of the adapter that a round starts from, where that is not what a good one has.
    """

    name: str
    awake: bool = True
    announced: RoundMessage | None = None
    acknowledged: list[Acknowledged] = field(default_factory=list)
    held: dict[int, WrittenUpdate | None] = field(default_factory=dict)
    done: set[tuple[int, str]] = field(default_factory=set)
    losses: dict[int, float] = field(default_factory=dict)
    made: int = 0

    def hear(self, message: object) -> list[UpMessage | bytes]:
        """Returns what it says to a message."""
        if isinstance(message, RoundMessage):
            self.announced = message
            return self.nag()
        if isinstance(message, Accepted):
            return self._make(message.round)
        if isinstance(message, UploadGrant):
            return self._send(message)
        if isinstance(message, Acknowledged):
            self._settle(message)
        return []

    def nag(self) -> list[UpMessage | bytes]:
        """Returns what it says when nobody has answered for a while: what it has to deliver, else that it joins."""
        announced = self.announced
        if announced is None or isinstance(announced, FederationFinished):
            return []
        if self.held:
            return [self._offer(round_) for round_ in sorted(self.held)]
        if (announced.round, announced.kind) in self.done:
            return []
        join = Join(
            run=announced.run,
            round=announced.round,
            plan=_PLAN,
            fingerprint=announced.model.fingerprint,
            examples=10,
        )
        return [join]

    def forget(self) -> None:
        """Loses what was not yet delivered, and what it knew: its disk was wiped."""
        self.held.clear()
        self.done.clear()

    def _make(self, round_: int) -> list[UpMessage | bytes]:
        announced = self.announced
        if announced is None or isinstance(announced, FederationFinished):
            return []
        if round_ != announced.round or (round_, announced.kind) in self.done:
            return []
        if round_ not in self.held:
            self.made += 1
            self.held[round_] = None if announced.kind == "evaluate" else WrittenUpdate(self.name, round_, self.made)
        return [self._offer(round_)]

    def _offer(self, round_: int) -> UpMessage:
        announced, update = self.announced, self.held[round_]
        assert announced is not None
        evaluation = EvaluationRecord(
            loss=self.losses.get(round_, 2.0 / round_), target_tokens=100, examples=5, evaluate_s=0.1
        )
        record = RoundRecord(
            device=self.name,
            round=round_,
            rank=2,
            held_rank=2,
            quantization="fp32",
            examples=10,
            evaluation=evaluation,
        )
        if update is None:
            return EvaluationReport(run=announced.run, round=round_, record=record)
        return UpdateOffer(
            run=announced.run,
            round=round_,
            sha256=update.sha256,
            size_bytes=UPDATE_BYTES,
            plan=_PLAN,
            fingerprint=announced.model.fingerprint if not isinstance(announced, FederationFinished) else "",
            examples=10,
            record=record,
        )

    def _send(self, grant: UploadGrant) -> list[UpMessage | bytes]:
        for update in self.held.values():
            if update is not None and update.sha256 == grant.sha256:
                pieces = Ranges(grant.missing).chunked(grant.chunk_bytes)
                return [encode_chunk(grant.sha256, lo, UPDATE_BYTES, update.blob[lo:hi]) for lo, hi in pieces]
        return []

    def _settle(self, word: Acknowledged) -> None:
        self.acknowledged.append(word)
        held = self.held.get(word.round)
        if word.round in self.held and (held.sha256 if held else "") == word.sha256:
            del self.held[word.round]
            self.done.add((word.round, "train" if held else "evaluate"))


_PLAN = Plan(rank=2, held_rank=2, quantization="fp32")


def _raise_unless_killed(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    if not isinstance(context.get("exception"), Killed):
        loop.default_exception_handler(context)


class _Line:
    """The aggregator's transport: what it publishes is in the world's hands."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.inbox: asyncio.Queue[Event] = asyncio.Queue()
        self.max_payload_bytes = 1_000_000

    async def publish(
        self, topic: str, payload: bytes, *, retain: bool = False, timeout_s: float | None = None
    ) -> None:
        if self is self._world.line:  # a dead process says nothing
            self._world.heard_from_aggregator(topic, payload)

    async def subscribe(self, topic_filter: str) -> None:
        if topic_filter == self._world.topics.aggregator_state:  # the will of the one before
            gone = AggregatorState(status="lost", instance="")
            self.inbox.put_nowait(Message(topic_filter, encode(gone)))

    async def unsubscribe(self, topic_filter: str) -> None:
        pass

    async def events(self) -> AsyncIterator[Event]:
        while True:
            yield await self.inbox.get()

    async def close(self, final: Message | None = None) -> None:
        pass


class World:
    """The aggregator, its disk, the devices, and all messages on their way.

    Attributes:
        up, down: messages on their way: topic and payload; device and message.
        phones: the devices by name.
        state: the round machine's, as last seen.
        kills: how often the aggregator died.
        writes: durable writes so far.
    """

    def __init__(self, options: FederationOptions, names: Sequence[str], *, threads_take_s: float = 0.0) -> None:
        self.options = options
        self.loop = VirtualLoop()
        self.loop.threads_take_s = threads_take_s
        self.loop.set_exception_handler(_raise_unless_killed)
        self.wall_offset_s = 0.0
        clock = SimpleNamespace(monotonic=lambda: self.loop.now_s, time=lambda: self.loop.now_s + self.wall_offset_s)
        modules = ("intake", "service", "notices", "merging", "rollout_desk", "store", "tenure")
        self._patches = [mock.patch(f"edgefed.coordinator.{name}.time", clock) for name in modules]
        self._patches.append(mock.patch.dict(Ledger.__init__.__kwdefaults__, monotonic_s=clock.monotonic))
        for patch in self._patches:
            patch.start()
        self.topics = Topics(options.fleet)
        self.phones = {name: Phone(name) for name in names}
        self.up: list[tuple[str, bytes]] = []
        self.down: list[tuple[str, RoundMessage | DownMessage]] = []
        self.announcement: RoundMessage | None = None
        self.line: _Line | None = None
        self.kills = 0
        self.writes = 0
        self._fatal: tuple[Side, int] | None = None
        self._tally: list[tuple[WrittenUpdate, int]] = []
        self._tally_at: tuple[int, int] | None = None
        self._dead = False
        self.exchange = TallyExchange(self._at_write)
        self.directory = RunDirectory(Path(options.directory))
        self.start()

    # --- the aggregator's process ---------------------------------------------------------------------------------

    def start(self) -> None:
        """Starts the aggregator on what is on disk; again, if it dies while starting."""
        while True:
            self._dead = False
            try:
                self.store = Store.open(Path(self.options.directory), {}, at_write=self._at_write)
                self.line = _Line(self)
                self.aggregator = Aggregator(
                    self.options,
                    self.options.model,
                    self.store.run,
                    uuid.uuid4().hex,
                    self.line,
                    self.store,
                    self.exchange,
                )
                self._running = self.loop.create_task(self.aggregator.run())
                self.loop.settle()
            except Killed:  # before it ran
                self._bury(None)
                continue
            if not self._notice_death():
                return

    def kill(self) -> None:
        """Kills it now; it is started again at once."""
        self._dead = True
        self._notice_death()
        self.start()

    def kill_at(self, side: Side, in_writes: int) -> None:
        """Lets it die at a durable write to come, the first being 1."""
        self._fatal = (side, self.writes + in_writes)

    @property
    def finished(self) -> bool:
        """Whether the aggregator has come to its end by itself."""
        return self._running.done() and not self._dead

    @property
    def state(self) -> State:
        return self.aggregator._ledger.state

    def journalled(self) -> State:
        """What the journal replays to."""
        return Ledger(self.store, self.options.rules).state

    def close(self) -> None:
        self._dead = True
        self._notice_death()
        self.loop.close()
        for patch in self._patches:
            patch.stop()

    def _at_write(self, side: Side) -> None:
        self.writes += side == "before"
        if self._dead or self._fatal == (side, self.writes):
            self._dead, self._fatal = True, None
            raise Killed

    def _notice_death(self) -> bool:
        """Returns whether the aggregator died. What it does in its death throes reaches neither store nor network."""
        if self._dead:
            self.line = None
            self._running.cancel()
            self.loop.settle()
            while not self._running.done():
                self.loop.advance(self.loop.threads_take_s)
            self._bury(self._running)
            return True
        if self._running.done():
            self._running.result()
        return False

    def _bury(self, task: asyncio.Task[str] | None) -> None:
        self.kills += 1
        self.line = None
        self.up.clear()  # its session at the broker ends with the connection
        if task is not None:
            if not task.cancelled():
                task.exception()  # seen: it was killed
            self.store.close()

    # --- the network ----------------------------------------------------------------------------------------------

    def heard_from_aggregator(self, topic: str, payload: bytes) -> None:
        """Takes what the aggregator publishes."""
        if topic == self.topics.round:
            self.announcement = announced = decode_round(payload)
            self.down.extend((name, announced) for name, phone in self.phones.items() if phone.awake)
        else:
            device = self.topics.parse_device(topic)
            if device is not None and device.channel == "down":  # else it takes away what the broker retained
                self.down.append((device.device, decode_down(payload)))

    def deliver_up(self, index: int, *, keep: bool = False, settle: bool = True) -> None:
        """Hands a message to the aggregator."""
        topic, payload = self.up[index] if keep else self.up.pop(index)
        if self.line is not None:
            self.line.inbox.put_nowait(Message(topic, payload))
        if settle:
            self.settle()

    def deliver_down(self, index: int, *, keep: bool = False) -> None:
        """Hands a message to a device; one that is asleep misses it."""
        name, message = self.down[index] if keep else self.down.pop(index)
        phone = self.phones[name]
        if phone.awake:
            self._say(phone, phone.hear(message))

    def settle(self) -> None:
        """Lets the aggregator do what it can now, and starts it again if it dies of it."""
        self.loop.settle()
        if self._notice_death():
            self.start()

    def pass_time(self, seconds: float) -> None:
        self.loop.advance(seconds)
        if self._notice_death():
            self.start()

    # --- devices --------------------------------------------------------------------------------------------------

    def nag(self, name: str) -> None:
        """A device that has waited long enough says again what it wants."""
        phone = self.phones[name]
        if phone.awake:
            self._say(phone, phone.nag())

    def sleep(self, name: str) -> None:
        """A device vanishes; the broker says so."""
        self.phones[name].awake = False
        self._show(name, "lost")

    def wake(self, name: str) -> None:
        """A device comes back and reads what the broker has kept."""
        phone = self.phones[name]
        if not phone.awake:
            phone.awake = True
            self._show(name, "uploading" if phone.held else "ready")
            if self.announcement is not None:
                self.down.append((name, self.announcement))

    def _show(self, name: str, status: str) -> None:
        state = DeviceState(status=status, instance=name)  # type: ignore[arg-type]
        self.up.append((self.topics.device(name, "state"), encode(state)))

    def _say(self, phone: Phone, messages: list[UpMessage | bytes]) -> None:
        topic = self.topics.device(phone.name, "up")
        self.up.extend((topic, one if isinstance(one, bytes) else encode(one)) for one in messages)

    # --- the account ----------------------------------------------------------------------------------------------

    def tally(self) -> list[tuple[WrittenUpdate, int]]:
        """What is in the latest sum that counts."""
        if self._tally_at != (self.writes, self.kills):
            self._tally_at = (self.writes, self.kills)
            self._tally = self.exchange.tally(self.directory.state(len(self.store.merged_rounds())))
        return self._tally

    def check_hashes(self) -> None:
        """Every update that waits for its merge is on disk, whole."""
        state = self.state
        for update in (*state.updates, *state.carried, *state.waiting):
            assert hash_file(self.directory.update(update.device, update.round, update.sha256)) == update.sha256
