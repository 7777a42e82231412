"""The aggregator and its store under every trouble at once: what it acknowledged is counted exactly once, and it ends.

`EDGEFED_FAULT_RUNS` sets the number of stories; each is told again from its seed when it fails.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import Counter
from pathlib import Path

import msgspec
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from edgefed.coordinator.options import FederationOptions, Transfers
from edgefed.coordinator.roster import Roster, change_roster
from edgefed.coordinator.selection import Selection
from edgefed.protocol.messages.down import Duty
from edgefed.protocol.tasks import Evaluation, ModelReference
from tests.faults.small_world import CHUNK_BYTES, World

RUNS = int(os.environ.get("EDGEFED_FAULT_RUNS", "2000"))
DEVICES = ("a", "b", "c")
GATHER_S, DEADLINE_S = 2.0, 8.0
MEMORY = Path("/dev/shm")  # a store syncs each write: thousands of stories want no real disk beneath it


@st.composite
def federations(draw: st.DrawFn) -> FederationOptions:
    participants = draw(st.integers(0, 2))
    return FederationOptions(
        fleet="test",
        rounds=draw(st.integers(1, 3)),
        target_loss=draw(st.sampled_from([None, None, 0.7])),
        model=ModelReference(name="none", fingerprint="f" * 64),
        evaluation=Evaluation(every=1),
        selection=Selection(
            participants=participants,
            over_selection=draw(st.sampled_from([1.0, 1.5])),
            quorum=draw(st.integers(1, participants or 2)),
            expected_devices=draw(st.sampled_from([0, 3])),
            gather_s=GATHER_S,
            deadline_s=DEADLINE_S,
            late=draw(st.sampled_from(["drop", "discount", "discount"])),
            max_staleness=draw(st.integers(1, 2)),
        ),
        transfers=Transfers(chunk_bytes=CHUNK_BYTES, uploads_at_once=draw(st.integers(1, 3))),
    )


class Story(RuleBasedStateMachine):
    """Plays a federation; the reference is a book of what every device was told, and of what is in the sums."""

    devices = st.sampled_from(DEVICES)

    @initialize(options=federations(), threads_take_s=st.sampled_from([0.0, 0.0, 1.0]))
    def begin(self, options: FederationOptions, threads_take_s: float) -> None:
        self.place = Path(tempfile.mkdtemp(prefix="edgefed-story-", dir=MEMORY if MEMORY.is_dir() else None))
        self.options = options = msgspec.structs.replace(options, directory=str(self.place / "run"))
        self.world = World(options, DEVICES, threads_take_s=threads_take_s)
        self.told: dict[tuple[str, int, str], str] = {}

    # --- what happens ---------------------------------------------------------------------------------------------

    @rule(program=st.binary(min_size=1, max_size=24))
    def messages_travel(self, program: bytes) -> None:
        """Each byte moves one message: which one, and whether it arrives, arrives and stays on its way, or is lost."""
        world = self.world
        for byte in program:
            fate, which, alone = byte & 7, (byte >> 3) & 15, byte < 128
            way = world.up if fate in (0, 1, 4, 6) else world.down
            if not way:
                continue
            index = which % len(way)
            if fate >= 6:
                way.pop(index)
            elif way is world.up:
                world.deliver_up(index, keep=fate == 4, settle=alone)
            else:
                world.deliver_down(index, keep=fate == 5)
        world.settle()

    @rule()
    def everything_arrives(self) -> None:
        self.deliver_everything()

    @rule(seconds=st.sampled_from([0.5, 2.5, 9.0, 40.0]))
    def time_passes(self, seconds: float) -> None:
        self.world.pass_time(seconds)

    @rule(days=st.sampled_from([-1, 1]))
    def the_clock_on_the_wall_jumps(self, days: int) -> None:
        self.world.wall_offset_s += days * 86400

    @rule(device=devices)
    def a_device_asks_again(self, device: str) -> None:
        self.world.nag(device)

    @rule(device=devices)
    def a_device_goes_to_sleep(self, device: str) -> None:
        self.world.sleep(device)

    @rule(device=devices)
    def a_device_wakes_up(self, device: str) -> None:
        self.world.wake(device)

    @rule(device=devices)
    def a_device_loses_its_disk(self, device: str) -> None:
        self.world.phones[device].forget()

    @rule(absent=st.sampled_from([*DEVICES, None]))
    def a_round_goes_by(self, absent: str | None) -> None:
        """Without one device, perhaps: so that stories get as far as the later rounds, and to late updates."""
        round_ = self.world.state.round
        for phone in self.world.phones.values():
            (self.world.sleep if phone.name == absent else self.world.wake)(phone.name)
        for _ in range(4):
            self.deliver_everything()
            if self.world.finished or self.world.state.round != round_:
                break
            self.world.pass_time(GATHER_S)
            for name in DEVICES:
                self.world.nag(name)

    @rule(duties=st.dictionaries(devices, st.sampled_from(["active", "paused", "draining", "removed"]), min_size=1))
    def the_operator_wishes(self, duties: dict[str, Duty]) -> None:
        def change(roster: Roster) -> Roster:
            for device, duty in duties.items():
                roster = roster.with_duty([device], duty, reason="", now_unix_s=1.0)
            return roster

        change_roster(self.world.directory.roster, change)

    @rule(side=st.sampled_from(["before", "after"]), in_writes=st.integers(1, 6), now=st.booleans())
    def the_aggregator_is_killed(self, side: str, in_writes: int, now: bool) -> None:
        """At a durable write to come: while it works, or while it starts again after a kill at this moment."""
        self.world.kill_at(side, in_writes)  # type: ignore[arg-type]
        if now:
            self.world.kill()

    # --- what always holds ----------------------------------------------------------------------------------------

    @invariant()
    def what_was_acknowledged_is_in_one_sum(self) -> None:
        tally, state = self.world.tally(), self.world.state
        counts = Counter((update.device, update.round) for update, _ in tally)
        assert not [key for key, count in counts.items() if count > 1], "counted twice"
        own = () if state.phase == "finished" else state.updates  # the last round's are shown on, and are in its sum
        held = [(u.device, u.round, u.sha256) for u in (*own, *state.carried, *state.waiting)]
        assert not {(device, round_) for device, round_, _ in held} & counts.keys(), "about to be counted twice"
        assert len(held) == len(set(held))
        safe = {*held, *((update.device, update.round, update.sha256) for update, _ in tally)}
        self.hear_acknowledgements()
        for key, outcome in self.told.items():
            assert (key in safe) == (outcome in ("counted", "late")), f"{key} was {outcome}"

    @invariant()
    def no_sum_takes_what_is_too_old(self) -> None:
        selection = self.options.selection
        oldest = selection.max_staleness if selection.late == "discount" else 0
        assert all(0 <= merged_in - update.round <= oldest for update, merged_in in self.world.tally())

    def hear_acknowledgements(self) -> None:
        for phone in self.world.phones.values():
            for word in phone.acknowledged:
                if word.sha256:
                    key = (phone.name, word.round, word.sha256)
                    assert self.told.setdefault(key, word.outcome) == word.outcome, f"{key} was told two things"
            phone.acknowledged.clear()

    # --- the end --------------------------------------------------------------------------------------------------

    def teardown(self) -> None:
        """However it got here: once the trouble stops, the federation ends, and the books agree."""
        if not hasattr(self, "world"):
            return
        try:
            self.everybody_behaves()
            self.what_was_acknowledged_is_in_one_sum()
            self.no_sum_takes_what_is_too_old()
            self.the_books_agree()
        finally:
            self.world.close()
            shutil.rmtree(self.place)

    def everybody_behaves(self) -> None:
        world = self.world
        self.the_operator_wishes(dict.fromkeys(DEVICES, "active"))
        for name in DEVICES:
            world.sleep(name)  # what was lost was lost with the connection: after a reconnect the broker says it again
        for _ in range(8 * (self.options.rounds + 2)):
            for name in DEVICES:
                world.wake(name)
                world.nag(name)
            self.deliver_everything()
            if world.finished:
                break
            world.pass_time(DEADLINE_S / 2)
        assert world.finished, f"it hangs: {world.state}"
        assert world.state.phase == "finished"

    def the_books_agree(self) -> None:
        """The store's answers, the sums and the journal tell one story."""
        world = self.world
        assert world.journalled() == world.state
        tally = {(update.device, update.round, update.sha256) for update, _ in world.tally()}
        answers = {
            (answer.device, answer.round, answer.sha256)
            for answer in world.store.answers()
            if answer.outcome in ("counted", "late")
        }
        assert answers == tally
        assert (
            world.directory.adapter.read_bytes()
            == (world.directory.state(len(world.store.merged_rounds())) / "tally.json").read_bytes()
        )

    def deliver_everything(self) -> None:
        world = self.world
        for _ in range(1000):
            while world.up:
                world.deliver_up(0, settle=False)
            world.settle()
            while world.down:
                world.deliver_down(0)
            if not world.up:
                return
        raise AssertionError("the messages never end")


TestStory = Story.TestCase
TestStory.settings = settings(
    max_examples=RUNS,
    stateful_step_count=16,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)
