from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefed.devices.power.counter import GrowingCounter
from edgefed.devices.power.rapl import find_rapl
from tests.shared.power_reader_suite import PowerReaderSuite, copy_of, without_privileges

PACKAGE_0 = "sys/class/powercap/intel-rapl:0/energy_uj"
RANGE_UJ = 262143328850


class TestRapl(PowerReaderSuite):
    boards = ("x86-rapl",)
    find = staticmethod(find_rapl)


def test_packages_are_added_and_what_lies_inside_or_around_them_is_not(tmp_path: Path) -> None:
    (reader,) = find_rapl(copy_of("x86-rapl", tmp_path)).readers
    assert reader.joules() == pytest.approx(262143.0 + 51200.4)
    assert reader.coverage.startswith("2 processor packages")


def test_a_counter_that_wraps_round_goes_on(tmp_path: Path) -> None:
    (reader,) = find_rapl(copy_of("x86-rapl", tmp_path)).readers
    before = reader.joules()
    (tmp_path / PACKAGE_0).write_text("150000000\n")
    after = reader.joules()
    assert before is not None
    assert after is not None
    assert after - before == pytest.approx((RANGE_UJ - 262143000000) / 1e6 + 150)


def test_one_package_that_does_not_answer_leaves_no_sum_and_loses_nothing(tmp_path: Path) -> None:
    (reader,) = find_rapl(copy_of("x86-rapl", tmp_path)).readers
    before = reader.joules()
    (tmp_path / PACKAGE_0).write_text("")
    assert reader.joules() is None
    (tmp_path / PACKAGE_0).write_text("262143100000\n")
    assert before is not None
    assert reader.joules() == pytest.approx(before + 0.1)


def test_a_locked_counter_is_absent_with_the_file_its_mode_and_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mode = 0o400 if os.geteuid() == 0 else 0o000  # to its owner, 0400 is no lock
    (copy_of("x86-rapl", tmp_path) / PACKAGE_0).chmod(mode)
    tmp_path.chmod(0o755)
    monkeypatch.chdir(tmp_path)  # the directories above it are nobody's business
    with without_privileges():
        found = find_rapl(Path())
    assert found.readers == ()
    (absent,) = found.absent
    assert PACKAGE_0 in absent.reason
    assert f"mode {mode:04o}" in absent.reason
    assert "0440" in absent.remedy


def test_zones_whose_links_lead_nowhere_are_hidden_by_a_container(tmp_path: Path) -> None:
    powercap = tmp_path / "sys/class/powercap"
    powercap.mkdir(parents=True)
    (powercap / "intel-rapl:0").symlink_to("../../devices/virtual/powercap/intel-rapl/intel-rapl:0")
    (absent,) = find_rapl(tmp_path).absent
    assert "container" in absent.reason


@given(st.lists(st.integers(0, 999), max_size=40), st.integers(0, 999))
def test_steps_shorter_than_the_range_are_counted_exactly(steps: list[int], start: int) -> None:
    counter, total = GrowingCounter(1000), start
    assert counter.read(start) == start
    for step in steps:
        total += step
        assert counter.read(total % 1000) == total


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1))
def test_a_counter_without_a_range_never_falls_either(readings: list[int]) -> None:
    counter = GrowingCounter()
    totals = [counter.read(reading) for reading in readings]
    assert totals == sorted(totals)
    assert totals[-1] >= max(readings)
