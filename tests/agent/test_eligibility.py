from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefed.agent.eligibility import Guard, objections
from edgefed.agent.options import Eligibility
from edgefed.devices.conditions import Conditions, read_conditions

FINE = Conditions(
    local_time=datetime(2026, 3, 1, 12, 0).astimezone(),
    temperature_c=50.0,
    on_mains=True,
    battery_percent=None,
    interface="eth0",
    memory_available_bytes=2**30,
    load_per_core=0.3,
)


def at(clock: str) -> Conditions:
    hour, minute = clock.split(":")
    return replace(FINE, local_time=FINE.local_time.replace(hour=int(hour), minute=int(minute)))


def test_without_rules_a_device_on_mains_may_train() -> None:
    assert objections(Eligibility(), FINE) == []


@pytest.mark.parametrize(
    ("rules", "now", "says"),
    [
        (Eligibility(hours=["22:00-06:00"]), at("12:00"), "it is 12:00; training is allowed 22:00-06:00"),
        (Eligibility(max_temperature_c=70), replace(FINE, temperature_c=71.2), "reads 71 °C; at most 70 °C"),
        (Eligibility(), replace(FINE, on_mains=False, battery_percent=90.0), "it runs on its battery"),
        (
            Eligibility(on_battery=True),
            replace(FINE, on_mains=False, battery_percent=20.0),
            "the battery is at 20 %; 30 % are wanted",
        ),
        (Eligibility(), replace(FINE, interface="wwan0"), "metered network wwan0"),
        (Eligibility(min_free_memory_bytes=2**31), FINE, "1024 MiB of memory are free; 2048 MiB are wanted"),
        (Eligibility(max_load_per_core=0.25), FINE, "the load is 0.30 per core; at most 0.25"),
    ],
)
def test_every_rule_says_what_is_and_what_is_wanted(rules: Eligibility, now: Conditions, says: str) -> None:
    (objection,) = objections(rules, now)
    assert says in objection


def test_what_cannot_be_read_forbids_nothing() -> None:
    rules = Eligibility(max_temperature_c=10, min_battery_percent=100)
    unknown = replace(FINE, temperature_c=None, on_mains=None, battery_percent=None, interface=None)
    assert objections(rules, unknown) == []


def test_a_device_that_was_stopped_for_heat_cools_down_first() -> None:
    rules = Eligibility(max_temperature_c=70)
    warm = replace(FINE, temperature_c=67.0)
    assert objections(rules, warm) == []
    assert objections(rules, warm, stopped=True) == ["the hottest sensor reads 67 °C; at most 65 °C is allowed"]


@pytest.mark.parametrize(
    ("span", "inside", "outside"),
    [
        ("09:00-17:30", ["09:00", "17:29"], ["08:59", "17:30", "00:00"]),
        ("22:00-06:00", ["22:00", "23:59", "00:00", "05:59"], ["06:00", "21:59"]),
    ],
)
def test_hours_may_span_midnight(span: str, inside: list[str], outside: list[str]) -> None:
    rules = Eligibility(hours=[span])
    assert not any(objections(rules, at(clock)) for clock in inside)
    assert all(objections(rules, at(clock)) for clock in outside)


@given(st.times(), st.times(), st.times())
def test_a_span_and_the_one_from_its_end_to_its_start_share_the_day(start: object, end: object, now: object) -> None:
    first, second, clock = (f"{one:%H:%M}" for one in (start, end, now))
    if first == second:
        return
    allowed = [
        not objections(Eligibility(hours=[span]), at(clock)) for span in (f"{first}-{second}", f"{second}-{first}")
    ]
    assert sorted(allowed) == [False, True]


@pytest.mark.parametrize("span", ["24:00-01:00", "9:00-10:00", "09:00", "09:60-10:00", ""])
def test_hours_that_are_none_are_refused(span: str) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"hours": [span]}, Eligibility)


async def test_a_guard_tells_when_training_must_stop_and_when_it_may_go_on() -> None:
    now = FINE
    guard = Guard(Eligibility(max_temperature_c=70, check_every_s=0.01), lambda: now)
    stopping = asyncio.ensure_future(guard.until_forbidden())
    await asyncio.sleep(0.05)
    assert not stopping.done()
    now = replace(FINE, temperature_c=80.0)
    assert "80 °C" in await asyncio.wait_for(stopping, 5)
    going_on = asyncio.ensure_future(guard.until_allowed(stopped=True))
    now = replace(FINE, temperature_c=68.0)
    await asyncio.sleep(0.05)
    assert not going_on.done()
    now = replace(FINE, temperature_c=60.0)
    await asyncio.wait_for(going_on, 5)


# --- reading the conditions -------------------------------------------------------------------------------------------


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], None]:
    def write(name: str, text: str) -> None:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")

    return write


def test_a_board_without_battery_and_sensors(tmp_path: Path) -> None:
    found = read_conditions(tmp_path)
    assert (found.temperature_c, found.on_mains, found.battery_percent, found.interface) == (None, None, None, None)
    assert found.memory_available_bytes > 0
    assert found.local_time.tzinfo is not None


def test_a_laptop_on_its_battery_with_a_mouse(tmp_path: Path, write: Callable[[str, str], None]) -> None:
    for supply, values in {
        "AC": {"type": "Mains", "online": "0"},
        "BAT0": {"type": "Battery", "status": "Discharging", "capacity": "57"},
        "mouse": {"type": "Battery", "scope": "Device", "status": "Charging", "capacity": "3"},
    }.items():
        for name, value in values.items():
            write(f"sys/class/power_supply/{supply}/{name}", value)
    write("sys/class/thermal/thermal_zone0/temp", "41000")
    write("sys/class/thermal/thermal_zone1/temp", "63500")
    write("sys/class/thermal/thermal_zone2/temp", "not now")
    write(
        "proc/net/route",
        "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n"
        "wlan0\t00000000\t0100A8C0\t0003\t0\t0\t600\t00000000\t0\t0\t0\n"
        "wwan0\t00000000\t0100A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0\n"
        "eth0\t0000A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0",
    )
    found = read_conditions(tmp_path)
    assert (found.temperature_c, found.on_mains, found.battery_percent) == (63.5, False, 57.0)
    assert found.interface == "wwan0"


def test_a_battery_alone_tells_whether_it_is_fed(tmp_path: Path, write: Callable[[str, str], None]) -> None:
    write("sys/class/power_supply/BAT0/type", "Battery")
    write("sys/class/power_supply/BAT0/status", "Charging")
    assert read_conditions(tmp_path).on_mains is True
    write("sys/class/power_supply/BAT0/status", "Discharging")
    assert read_conditions(tmp_path).on_mains is False
