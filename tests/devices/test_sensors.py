"""Heat, from trees in the layout of the kernel's thermal class (Documentation/driver-api/thermal/sysfs-api.rst)."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgefed.devices.sensors import read_thermal


def put(root: Path, name: str, **files: str) -> None:
    directory = root / "sys/class/thermal" / name
    directory.mkdir(parents=True)
    for key, text in files.items():
        (directory / key).write_text(text + "\n")


def test_zones_are_told_by_their_names(tmp_path: Path) -> None:
    put(tmp_path, "thermal_zone0", type="cpu-thermal", temp="47500")
    put(tmp_path, "thermal_zone1", type="gpu-thermal", temp="46000")
    put(tmp_path, "thermal_zone2", type="cpu-thermal", temp="48000")
    put(tmp_path, "thermal_zone3", type="cv0-thermal", temp="not available")
    assert read_thermal(tmp_path).temperature_c == {
        "cpu-thermal": 47.5,
        "gpu-thermal": 46.0,
        "cpu-thermal (thermal_zone2)": 48.0,
    }


@pytest.mark.parametrize(
    ("coolers", "throttled"),
    [
        ([("Processor", "0"), ("Processor", "0")], False),
        ([("Processor", "0"), ("gpu-throttle-alert", "1")], True),
        ([("pwm-fan", "3")], None),
        ([("devfreq-17000000.gpu", "unknown")], None),
    ],
)
def test_a_cooling_device_in_force_is_throttling_unless_it_is_a_fan(
    tmp_path: Path, coolers: list[tuple[str, str]], throttled: bool | None
) -> None:
    for number, (kind, state) in enumerate(coolers):
        put(tmp_path, f"cooling_device{number}", type=kind, cur_state=state)
    thermal = read_thermal(tmp_path)
    assert thermal.throttled is throttled
    assert ("no cooling device tells" in thermal.reason) == (throttled is None)


def test_a_machine_without_zones_says_so(tmp_path: Path) -> None:
    thermal = read_thermal(tmp_path)
    assert thermal.temperature_c == {}
    assert "no thermal zone" in thermal.reason
