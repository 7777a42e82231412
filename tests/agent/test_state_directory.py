from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import edgefed
from edgefed.agent.state_directory import StateDirectory
from edgefed.errors import ConfigError
from edgefed.files import temporary_beside
from edgefed.protocol.messages.manifest import Plan
from edgefed.protocol.messages.up import EvaluationReport, UpdateOffer
from edgefed.protocol.messages.wire import encode
from edgefed.protocol.records import RoundRecord
from edgefed.training.round_work import residual_beside

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(edgefed.__file__).parents[1])}


@pytest.fixture
def state(tmp_path: Path) -> Iterator[StateDirectory]:
    directory = StateDirectory(tmp_path / "state")
    yield directory
    directory.close()


def record(round_: int) -> RoundRecord:
    return RoundRecord(device="a", round=round_, rank=4, held_rank=0, quantization="fp32", examples=7)


def offer(round_: int, run: str = "one") -> UpdateOffer:
    return UpdateOffer(
        run=run,
        round=round_,
        sha256="a" * 64,
        size_bytes=6,
        plan=Plan(rank=4, held_rank=0, quantization="fp32"),
        fingerprint="f",
        examples=7,
        record=record(round_),
    )


def keep(state: StateDirectory, round_: int, run: str = "one") -> UpdateOffer:
    state.update(run, round_).write_bytes(b"update")
    kept = offer(round_, run)
    state.save_offer(kept)
    return kept


def test_offers_come_back_oldest_first_until_settled(state: StateDirectory) -> None:
    kept = [keep(state, round_) for round_ in (10, 9, 11)]
    report = EvaluationReport(run="one", round=12, record=record(12))
    state.save_offer(report)
    assert state.offers("one") == [kept[1], kept[0], kept[2], report]
    assert state.offers("another") == []
    state.settle("one", 10, used=True)
    assert state.offers("one") == [kept[1], kept[2], report]
    assert not state.update("one", 10).exists()
    state.settle("one", 10, used=True)  # an acknowledgement may come twice


def test_a_residual_takes_effect_once_its_update_is_used(state: StateDirectory) -> None:
    for round_ in (1, 2, 3):
        keep(state, round_)
        residual_beside(state.update("one", round_)).write_text(f"lost in {round_}")
    state.settle("one", 1, used=True)
    assert state.residual("one").read_text() == "lost in 1"
    state.settle("one", 2, used=False)
    state.settle("one", 1, used=True)
    assert state.residual("one").read_text() == "lost in 1"
    assert not residual_beside(state.update("one", 2)).exists()
    state.settle("one", 3, used=True)
    assert state.residual("one").read_text() == "lost in 3"
    assert [path.name for path in state.residual("one").parent.iterdir()] == ["residual.safetensors"]


@pytest.mark.parametrize("removed", [0, 1, 2])
def test_settling_may_be_cut_short_anywhere(tmp_path: Path, removed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    state = StateDirectory(tmp_path)
    keep(state, 1)
    residual_beside(state.update("one", 1)).write_text("lost in 1")
    unlink, done = Path.unlink, []

    def unlink_a_few(path: Path, missing_ok: bool = False) -> None:
        if len(done) == removed:
            raise KeyboardInterrupt
        done.append(path)
        unlink(path, missing_ok=missing_ok)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", unlink_a_few)
        if removed < 2:
            with pytest.raises(KeyboardInterrupt):
                state.settle("one", 1, used=True)
        else:
            state.settle("one", 1, used=True)
    state.close()
    again = StateDirectory(tmp_path)
    for answer in again.offers("one"):  # delivered again, and acknowledged as before
        again.settle("one", answer.round, used=True)
    assert [path.name for path in again.residual("one").parent.iterdir()] == ["residual.safetensors"]
    assert again.residual("one").read_text() == "lost in 1"
    again.close()


def test_a_start_removes_what_a_kill_left_half_done(tmp_path: Path) -> None:
    state = StateDirectory(tmp_path)
    kept = keep(state, 1)
    residual_beside(state.update("one", 1)).write_text("lost in 1")
    unoffered = state.update("one", 2)
    suspended = unoffered.with_name(f"{unoffered.name}.suspended")
    for path in (unoffered, residual_beside(unoffered), suspended, temporary_beside(unoffered)):
        path.write_bytes(b"half")
    offer_file = unoffered.with_name("offer-2.json")
    for path in (offer_file, tmp_path / "profile.json", state.parts / "part"):
        temporary_beside(path).write_bytes(b"half")
    state.close()
    again = StateDirectory(tmp_path)
    assert again.offers("one") == [kept]
    assert sorted(path.name for path in unoffered.parent.iterdir()) == sorted(
        ["offer-1.json", "update-1.safetensors", "update-1.safetensors.residual", suspended.name]
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["agent.lock", "parts", "runs"]
    assert list(again.parts.iterdir()) == []
    again.close()


def test_an_offer_is_worth_nothing_without_its_update(state: StateDirectory) -> None:
    keep(state, 1)
    state.update("one", 1).unlink()
    assert state.offers("one") == []


@pytest.mark.parametrize(
    "content", [b"", b'{"type":"update-offer"', b'{"type":"decline","run":"one","round":1,"reason":""}']
)
def test_damaged_offers_are_left_out(state: StateDirectory, content: bytes) -> None:
    kept = keep(state, 1)
    (state.update("one", 1).parent / "offer-2.json").write_bytes(content)
    assert state.offers("one") == [kept]


def test_a_second_agent_needs_its_own_directory(tmp_path: Path) -> None:
    first = StateDirectory(tmp_path)
    with pytest.raises(ConfigError, match="another agent uses the directory"):
        StateDirectory(tmp_path)
    first.close()
    StateDirectory(tmp_path).close()


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_directory_that_cannot_be_made_is_refused(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=f"/{place} cannot be used: Not a directory$"):
        StateDirectory(tmp_path / place)


def test_only_what_the_present_run_needs_is_kept(state: StateDirectory) -> None:
    now, before = keep(state, 1), keep(state, 1, "older")
    state.residual("older").write_bytes(b"residual")
    for name in ("a" * 64, "b" * 64, "b" * 64 + ".part"):
        (state.parts / name).write_bytes(b"part")
    state.keep_only("one", ["b" * 64])
    assert state.offers("one") == [now]
    assert state.offers(before.run) == []
    assert not state.residual("older").exists()
    assert sorted(path.name for path in state.parts.iterdir()) == ["b" * 64, "b" * 64 + ".part"]


def test_what_else_the_owner_keeps_there_is_not_ours_to_delete(tmp_path: Path) -> None:
    (tmp_path / "documents").mkdir()
    (tmp_path / "documents" / "letter").write_text("dear")
    state = StateDirectory(tmp_path)
    keep(state, 1)
    state.keep_only("another", [])
    assert (tmp_path / "documents" / "letter").read_text() == "dear"
    state.close()


def test_a_stray_file_among_the_runs_keeps_no_agent_from_starting(tmp_path: Path) -> None:
    state = StateDirectory(tmp_path)
    kept = keep(state, 1)
    (state.path / "runs" / "notes.txt").write_text("of somebody who looked around")
    state.close()
    again = StateDirectory(state.path)
    again.keep_only("one", [])
    assert again.offers("one") == [kept]
    again.close()


def test_a_run_may_have_any_name_that_the_wire_allows(state: StateDirectory) -> None:
    for run in ("parts", "runs", "agent-lock"):
        kept = keep(state, 1, run)
        state.keep_only(run, [])
        assert state.offers(run) == [kept]
    assert state.parts.is_dir()


WRITER = """
import sys
from pathlib import Path
from edgefed.agent.state_directory import StateDirectory
from edgefed.protocol.messages.up import decode_up

state = StateDirectory(Path(sys.argv[1]))
offer = decode_up(sys.stdin.buffer.readline())
state.update(offer.run, offer.round).write_bytes(b"update")
while True:
    state.save_offer(offer)
    print("saved", flush=True)
"""


def test_an_offer_survives_a_kill_at_any_moment(tmp_path: Path) -> None:
    for kept in range(1, 4):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=ENVIRONMENT
        )
        with writer:
            assert writer.stdin is not None
            assert writer.stdout is not None
            writer.stdin.write(encode(offer(kept)) + b"\n")
            writer.stdin.flush()
            for _ in range(kept):
                assert writer.stdout.readline() == b"saved\n"
            writer.send_signal(signal.SIGKILL)
        state = StateDirectory(tmp_path)  # the killed one holds nothing
        assert state.offers("one") == [offer(round_) for round_ in range(1, kept + 1)]
        assert not [path for path in state.residual("one").parent.iterdir() if path.name.startswith(".")]
        state.close()
