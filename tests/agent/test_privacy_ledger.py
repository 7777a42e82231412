from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from edgefed.agent.options import PrivacyLimits
from edgefed.agent.plan import CannotTakePart
from edgefed.agent.privacy_ledger import PrivacyLedger
from edgefed.protocol.messages.retained import RoundOpen
from edgefed.protocol.records import RoundRecord
from edgefed.protocol.tasks import Privacy
from edgefed.training.privacy_budget import EXAMPLE_ASSUMPTIONS, PrivacyCost, SpentSteps

FREE = PrivacyLimits()


def cost(*, run: float = 1.0, device: float = 2.0, noise: float = 1.0, steps: int = 16) -> PrivacyCost:
    return PrivacyCost(
        steps=SpentSteps(noise_multiplier=noise, sample_rate=0.1, steps=steps), run_epsilon=run, device_epsilon=device
    )


@pytest.fixture
def private(announced: RoundOpen) -> RoundOpen:
    return msgspec.structs.replace(announced, privacy=Privacy(example_noise_multiplier=1.0, max_epsilon=8.0))


def test_what_was_charged_is_there_after_a_restart_and_counts_in_every_run(tmp_path: Path) -> None:
    path = tmp_path / "privacy.json"
    ledger = PrivacyLedger(FREE, path)
    for _ in range(3):
        ledger.charge("one", cost())
    ledger.charge("one", cost(noise=2.0))
    ledger.charge("two", cost(steps=5))
    spent = PrivacyLedger(PrivacyLimits(delta=1e-7), path).spent("one")
    assert [(steps.noise_multiplier, steps.steps) for steps in spent.this_run] == [(1.0, 48), (2.0, 16)]
    assert [steps.steps for steps in spent.other_runs] == [5]
    assert spent.owners_delta == 1e-7
    assert len(PrivacyLedger(FREE, path).spent("three").other_runs) == 3


def test_a_kill_right_after_the_charge_does_not_undo_it(tmp_path: Path) -> None:
    program = """
import os, signal, sys
from pathlib import Path
from edgefed.agent.options import PrivacyLimits
from edgefed.agent.privacy_ledger import PrivacyLedger
from edgefed.training.privacy_budget import PrivacyCost, SpentSteps
ledger = PrivacyLedger(PrivacyLimits(), Path(sys.argv[1]))
steps = SpentSteps(noise_multiplier=1.0, sample_rate=0.5, steps=4)
ledger.charge("r", PrivacyCost(steps=steps, run_epsilon=1.0, device_epsilon=1.0))
os.kill(os.getpid(), signal.SIGKILL)
"""
    path = tmp_path / "privacy.json"
    for times in (1, 2):
        done = subprocess.run([sys.executable, "-c", program, str(path)], check=False)
        assert done.returncode == -signal.SIGKILL
        assert [steps.steps for steps in PrivacyLedger(FREE, path).spent("r").this_run] == [4 * times]


@pytest.mark.parametrize(
    "content",
    [
        pytest.param("", id="empty"),
        pytest.param("{", id="cut"),
        pytest.param('{"r": [{"steps": 0}]}', id="out-of-range"),
        pytest.param("[]", id="another-shape"),
        pytest.param('{"r": "\udc80"}', id="no-text"),
        pytest.param("[" * 100_000, id="deep"),
        pytest.param('{"format": 2, "runs": {}}', id="newer-format"),
        pytest.param(
            '{"r": [{"noise_multiplier": 1.0, "sample_rate": 0.1, "steps": 4, "mechanism": "tree"}]}', id="newer-field"
        ),
    ],
)
def test_a_ledger_that_cannot_be_read_is_no_empty_one_and_is_left_as_it_is(tmp_path: Path, content: str) -> None:
    path = tmp_path / "privacy.json"
    path.write_bytes(content.encode(errors="surrogateescape"))
    ledger = PrivacyLedger(FREE, path)
    with pytest.raises(
        CannotTakePart, match=r"privacy\.json .* cannot be read.*newer release has written it"
    ) as declined:
        ledger.spent("r")
    assert str(tmp_path) not in str(declined.value), "it goes to the fleet"
    with pytest.raises(CannotTakePart, match="cannot be read"):
        ledger.charge("r", cost())
    assert path.read_bytes() == content.encode(errors="surrogateescape")


def test_a_round_within_both_limits_passes(tmp_path: Path, private: RoundOpen) -> None:
    PrivacyLedger(PrivacyLimits(max_epsilon=3.0), tmp_path / "p").check(private, cost(run=8.0, device=3.0))


def test_the_federations_limit_counts_this_run(tmp_path: Path, private: RoundOpen) -> None:
    with pytest.raises(CannotTakePart, match=r"run out: with this round ε would be 8\.01 .*the federation allows 8"):
        PrivacyLedger(FREE, tmp_path / "p").check(private, cost(run=8.01))


def test_the_owners_limit_counts_all_that_was_ever_sent(tmp_path: Path, private: RoundOpen) -> None:
    with pytest.raises(CannotTakePart, match=r"would be 3\.01 .*the owner allows 3"):
        PrivacyLedger(PrivacyLimits(max_epsilon=3.0), tmp_path / "p").check(private, cost(device=3.01))


def test_an_owner_with_a_limit_takes_no_part_where_nothing_is_private(tmp_path: Path, announced: RoundOpen) -> None:
    limited = PrivacyLedger(PrivacyLimits(max_epsilon=3.0), tmp_path / "p")
    with pytest.raises(CannotTakePart, match="trains without noise"):
        limited.check(announced, None)
    limited.check(msgspec.structs.replace(announced, kind="evaluate"), None)
    PrivacyLedger(FREE, tmp_path / "p").check(announced, None)


def test_the_record_says_what_epsilon_stands_on_in_a_text_that_travels(tmp_path: Path, private: RoundOpen) -> None:
    record = RoundRecord(device="a", round=2, rank=4, held_rank=0, quantization="fp32", examples=7)
    told = PrivacyLedger.described(record, private, cost(run=1.5))
    assert (told.epsilon, told.delta, told.privacy_assumptions) == (1.5, 1e-5, EXAMPLE_ASSUMPTIONS)
    assert msgspec.json.decode(msgspec.json.encode(told), type=RoundRecord) == told
    assert PrivacyLedger.described(record, private, None) == record
    assert json.loads(msgspec.json.encode(record))["epsilon"] is None
