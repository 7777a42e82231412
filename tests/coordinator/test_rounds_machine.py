"""The round machine under random events: what must hold whatever devices, clocks and crashes do."""

from __future__ import annotations

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from edgefed.coordinator.divergence import Divergence
from edgefed.coordinator.events import (
    Accept,
    Begin,
    DeviceJoined,
    DeviceLeft,
    DeviceReturned,
    EvaluationReceived,
    Event,
    Finish,
    GivenUp,
    GiveUp,
    Merge,
    Merged,
    MergeFailed,
    Refuse,
    RosterRead,
    Stop,
    Tick,
    Update,
    UpdateReceived,
)
from edgefed.coordinator.offers import judge_offer
from edgefed.coordinator.round_state import Rules, State
from edgefed.coordinator.rounds import next_deadline, recover, step
from edgefed.coordinator.selection import Selection
from edgefed.protocol.messages.down import Duty

DEVICES = ("a", "b", "c", "d")


@st.composite
def rule_sets(draw: st.DrawFn) -> Rules:
    participants = draw(st.integers(0, 3))
    quorum = draw(st.integers(1, participants or 3))
    return Rules(
        rounds=draw(st.integers(1, 5)),
        selection=Selection(
            participants=participants,
            over_selection=draw(st.sampled_from([1.0, 1.5])),
            quorum=quorum,
            expected_devices=draw(st.sampled_from([0, 3])),
            gather_s=10.0,
            deadline_s=100.0,
            late=draw(st.sampled_from(["drop", "discount", "discount"])),
            max_staleness=draw(st.integers(1, 3)),
        ),
        final_evaluation=draw(st.booleans()),
        target_loss=draw(st.sampled_from([None, None, 1.0])),
        seed=draw(st.integers(0, 3)),
        divergence=Divergence(
            action=draw(st.sampled_from(["roll-back", "roll-back", "stop", "ignore"])),
            max_loss_rise=1.0,
            in_a_row=draw(st.integers(1, 3)),
        ),
    )


class RoundMachine(RuleBasedStateMachine):
    """Feeds events to the machine as the service would, and keeps account of every update."""

    devices = st.sampled_from(DEVICES)

    @initialize(rules=rule_sets())
    def begin(self, rules: Rules) -> None:
        self.rules = rules
        self.state = State()
        self.now_s = 0.0
        self.journal: list[tuple[Event, float]] = []
        self.accepted: set[tuple[str, int]] = set()
        self.merged: Counter[tuple[str, int]] = Counter()
        self.excluded: Counter[tuple[str, int]] = Counter()
        self.last_work: Merge | GiveUp | None = None
        self.expected: set[str] = set()  # taken in, and neither done nor gone
        self.happens(Begin())

    def happens(self, event: Event) -> None:
        before = self.state
        self.state, actions = step(before, event, self.now_s, self.rules)
        if self.state is not before:
            self.journal.append((event, self.now_s))
        self.check_transition(before, self.state)
        self.expect(before, event)
        for action in actions:
            if isinstance(action, Merge):
                own = [update for update in action.updates if update.round == action.round]
                assert len(own) >= self.rules.selection.quorum
                overdue = self.now_s >= before.training_since_s + self.rules.selection.deadline_s
                enough = 0 < self.rules.selection.participants <= len(own)
                assert enough or overdue or not self.expected
                self.expected.clear()
                self.merged.update((update.device, update.round) for update in action.updates)
                self.last_work = action
            elif isinstance(action, GiveUp):
                self.check_giving_up(before, action)
            elif isinstance(action, Accept):
                assert action.device in self.state.outstanding
                assert action.device not in dict(self.state.held) or action.device in before.participants
                self.expected.add(action.device)
            elif isinstance(action, Refuse):
                assert action.device not in self.state.outstanding
            elif isinstance(action, Finish):
                assert self.state.phase == "finished"

    def check_giving_up(self, before: State, action: GiveUp) -> None:
        """What was trained in the round is in no sum; what was late for an earlier one may be in the next."""
        assert 0 <= action.of < action.round == before.round
        assert all(update.round == action.round for update in action.updates) or action.round == self.rules.rounds
        assert self.state.given_up <= self.rules.divergence.in_a_row
        if before.phase == "merging":
            assert isinstance(self.last_work, Merge)
            self.merged.subtract((update.device, update.round) for update in self.last_work.updates)
            self.merged = +self.merged
        self.expected.clear()
        self.excluded.update((update.device, update.round) for update in action.updates)
        self.last_work = action

    def check_transition(self, before: State, after: State) -> None:
        assert after is before or after != before, "a new object that says the same would be journalled for nothing"
        assert after.round >= before.round
        assert before.phase != "finished" or after is before
        assert after.losses[: len(before.losses)] == before.losses

    def expect(self, before: State, event: Event) -> None:
        """Keeps account of whom the open round waits for, from what the events say."""
        if isinstance(event, DeviceLeft):
            self.expected.discard(event.device)
        elif isinstance(event, DeviceReturned):
            if event.device in set(self.state.participants) - self.state.delivered and before.phase == "training":
                self.expected.add(event.device)
        elif isinstance(event, UpdateReceived) and event.update.round == before.round:
            self.expected.discard(event.update.device)
        elif isinstance(event, RosterRead):
            self.expected -= {device for device, duty in event.held if duty == "removed"}

    # --- events ---------------------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([0.0, 1.0, 5.0, 10.0, 60.0, 100.0, 1000.0]))
    def time_passes(self, seconds: float) -> None:
        self.now_s += seconds
        self.happens(Tick())

    @rule(device=devices)
    def a_device_joins(self, device: str) -> None:
        self.happens(DeviceJoined(device))

    @rule(device=devices)
    def a_device_leaves(self, device: str) -> None:
        self.happens(DeviceLeft(device))

    @rule(device=devices)
    def a_device_diverges(self, device: str) -> None:
        self.happens(DeviceLeft(device, diverged=True))

    @rule(device=devices)
    def a_device_returns(self, device: str) -> None:
        self.happens(DeviceReturned(device))

    @rule(duties=st.dictionaries(devices, st.sampled_from(["paused", "draining", "removed"]), max_size=2))
    def the_operator_wishes(self, duties: dict[str, Duty]) -> None:
        before = self.state
        self.happens(RosterRead(tuple(sorted(duties.items()))))
        removed = {device for device, duty in duties.items() if duty == "removed"}
        if before.phase != "finished":
            assert not removed & {*self.state.candidates, *self.state.outstanding}
            assert self.state.updates == before.updates

    @rule(device=devices, age=st.integers(-1, 3), loss=st.sampled_from([None, 0.5, 2.0, 9.0]))
    def an_update_arrives(self, device: str, age: int, loss: float | None) -> None:
        round_ = self.state.round - age
        verdict = judge_offer(self.state, self.rules, device, round_)
        if verdict in ("wanted", "late"):
            assert (device, round_) not in self.accepted
            self.accepted.add((device, round_))
        before = self.state
        update = Update(device=device, round=round_, sha256="", examples=1, rank=1, held_rank=1)
        self.happens(UpdateReceived(update, loss, 7))
        if verdict in ("duplicate", "dropped", "unknown", "removed"):
            assert self.state.updates == before.updates
            assert self.state.carried + self.state.waiting == before.carried + before.waiting

    @rule(absent=st.sets(devices, max_size=2), and_late=st.booleans())
    def a_round_goes_by(self, absent: set[str], and_late: bool) -> None:
        """Everybody joins, and all but the absent deliver: so that stories get as far as the later rounds."""
        for device in DEVICES:
            self.happens(DeviceJoined(device))
        self.time_passes(10.0)
        for device in sorted(set(DEVICES) - absent):
            self.an_update_arrives(device, 0, None)
        self.time_passes(100.0)
        self.a_merge_is_reported(0)
        for device in sorted(absent) if and_late else ():
            self.an_update_arrives(device, 1, None)

    @rule(device=devices, age=st.integers(0, 1))
    def an_evaluation_arrives(self, device: str, age: int) -> None:
        self.happens(EvaluationReceived(device, self.state.round - age, 2.0, 7))

    @rule(age=st.integers(-1, 1))
    def a_merge_is_reported(self, age: int) -> None:
        giving_up = self.state.giving_up is not None
        round_ = self.state.round - age
        self.happens(GivenUp(round_) if giving_up else Merged(round_))

    @rule(age=st.integers(0, 1))
    def a_merge_fails(self, age: int) -> None:
        self.happens(MergeFailed(self.state.round - age, "the sum is not finite"))

    @precondition(lambda self: self.state.round > 2)
    @rule()
    def somebody_stops_it(self) -> None:
        self.happens(Stop("stopped"))

    # --- what always holds ----------------------------------------------------------------------------------------

    @invariant()
    def every_accepted_update_is_in_exactly_one_sum(self) -> None:
        state = self.state
        assert all(count == 1 for count in (*self.merged.values(), *self.excluded.values()))
        assert not self.merged.keys() & self.excluded.keys()
        in_hand = {(update.device, update.round) for update in (*state.carried, *state.updates, *state.waiting)}
        assert self.accepted == in_hand | self.merged.keys() | self.excluded.keys()
        if state.phase == "finished" and state.finished_reason != "stopped" and not state.failed:
            assert self.accepted == self.merged.keys() | self.excluded.keys()

    @invariant()
    def the_state_hangs_together(self) -> None:
        state = self.state
        assert set(state.outstanding) <= set(state.participants)
        assert set(state.overdue) <= set(state.outstanding)
        assert state.delivered <= set(state.participants)
        assert not set(state.outstanding) & state.delivered
        assert state.phase != "training" or state.kind != "train" or set(state.outstanding) == self.expected
        assert not (state.outstanding and state.phase != "training")
        assert list(state.participants) == sorted(set(state.participants))
        assert state.round <= self.rules.rounds + self.rules.final_evaluation
        oldest = state.round - self.rules.selection.max_staleness
        assert all(update.round >= oldest for update in state.carried)

    @invariant()
    def the_journal_gives_the_same_state(self) -> None:
        state = State()
        for event, now_s in self.journal:
            state, _ = step(state, event, now_s, self.rules)
        assert state == self.state

    @invariant()
    def recovery_starts_nothing_new(self) -> None:
        for action in recover(self.state):
            assert not isinstance(action, Merge | GiveUp) or action == self.last_work

    @invariant()
    def the_next_deadline_is_neither_early_nor_late(self) -> None:
        deadline_s = next_deadline(self.state, self.rules)
        idle_until_s = self.now_s + 1e6 if deadline_s is None else (self.now_s + deadline_s) / 2
        assert step(self.state, Tick(), idle_until_s, self.rules)[0] is self.state
        if deadline_s is not None:
            assert deadline_s > self.now_s
            assert step(self.state, Tick(), deadline_s, self.rules)[0] is not self.state

    def teardown(self) -> None:
        """However it got here: once everybody behaves, the federation comes to its end."""
        if not hasattr(self, "state"):
            return
        self.the_operator_wishes({})
        for _ in range(3 * (self.rules.rounds + 2)):
            if self.state.phase == "finished":
                break
            for device in DEVICES:
                self.happens(DeviceJoined(device))
            self.time_passes(10.0)
            for device in self.state.participants:
                self.an_update_arrives(device, 0, None)
                self.an_evaluation_arrives(device, 0)
            self.time_passes(100.0)
            self.a_merge_is_reported(0)
            self.every_accepted_update_is_in_exactly_one_sum()
            self.the_state_hangs_together()
        assert self.state.phase == "finished"


TestRoundMachine = RoundMachine.TestCase
TestRoundMachine.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
