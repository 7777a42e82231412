"""What `edgefed status` tells of a device's hardware, out of the profile that the device has published."""

from __future__ import annotations

import io
from pathlib import Path

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from edgefed.cli.fleet_view import COLUMNS, FleetView, describe_aggregator, describe_refusals
from edgefed.devices.compute import ComputeProfile
from edgefed.devices.measurement import absent, measured
from edgefed.devices.memory import HostMemory, training_memory
from edgefed.devices.profile import DeviceProfile, read_profile
from edgefed.protocol.messages.retained import AggregatorState, DeviceState, Refusal
from edgefed.protocol.messages.wire import encode


def row(tmp_path: Path, profile: DeviceProfile | None) -> dict[str, str]:
    view = FleetView("test")
    view.hear(view.topics.device("a", "state"), encode(DeviceState(status="ready", instance="x")))
    if profile is not None:
        view.hear(view.topics.device("a", "profile"), encode(profile))
    (cells,) = view.rows()
    return dict(zip(COLUMNS, cells, strict=True))


def measured_profile(tmp_path: Path) -> DeviceProfile:
    return msgspec.structs.replace(
        read_profile(tmp_path, quantization="nf4", max_rank=8, root=tmp_path),
        model="Raspberry Pi 5 Model B Rev 1.0",
        memory=training_memory(HostMemory(total_bytes=8_200_000_000, available_bytes=6_000_000_000), None),
        compute=ComputeProfile(
            hardware="cpu",
            threads=4,
            flops_per_s={"fp32": measured(6.1e10, "torch.mm"), "bf16": measured(2e10, "mm"), "nf4": absent("no")},
            memory_bandwidth_bytes_per_s=measured(1e10, "copy"),
        ),
    )


def test_hardware_memory_and_the_best_rate_are_told(tmp_path: Path) -> None:
    cells = row(tmp_path, measured_profile(tmp_path))
    told = (cells["hardware"], cells["memory"], cells["best rate"])
    assert told == ("Raspberry Pi 5 Model B Rev 1.0", "8.2 GB", "61 GFLOP/s fp32")


def test_an_emulated_board_is_marked(tmp_path: Path) -> None:
    emulated = msgspec.structs.replace(measured_profile(tmp_path), emulated="jetson-orin-nano-8gb")
    assert row(tmp_path, emulated)["hardware"] == "jetson-orin-nano-8gb (emulated)"


def test_a_device_that_has_measured_nothing_yet_leaves_the_cells_empty(tmp_path: Path) -> None:
    for profile in (None, read_profile(tmp_path, quantization="nf4", max_rank=8)):
        cells = row(tmp_path, profile)
        assert (cells["memory"], cells["best rate"], cells["status"]) == ("", "", "ready")


def drawn(view: FleetView, width: int) -> list[str]:
    stream = io.StringIO()
    Console(file=stream, width=width).print(view.render(width))
    return [line.rstrip() for line in stream.getvalue().splitlines() if line.strip()]


def busy_fleet(tmp_path: Path) -> FleetView:
    view = FleetView("test")
    for number in range(3):
        device = f"jetson-orin-0{number}"
        state = DeviceState(
            status="training", instance="x", round=12, step=345, steps=1000, loss=3.14159, note="rank 8, nf4 " * 9
        )
        view.hear(view.topics.device(device, "state"), encode(state))
        view.hear(view.topics.device(device, "profile"), encode(measured_profile(tmp_path)))
    return view


def test_a_narrow_terminal_gets_what_changes_and_a_wide_one_everything(tmp_path: Path) -> None:
    view = busy_fleet(tmp_path)
    _, header, _, *devices = drawn(view, 80)
    assert header.split() == ["device", "status", "round", "step", "loss", "note"]
    assert len(devices) == 3, "a line each"
    assert devices[0].split()[:5] == ["jetson-orin-00", "training", "12", "345/1000", "3.142"]
    assert "rank 8, nf4" in devices[0]
    assert view.fitting_columns(120)[:3] == ("device", "hardware", "status")
    _, header, _, first, *_ = drawn(view, 200)
    assert view.fitting_columns(200) == COLUMNS
    assert "Raspberry Pi 5 Model B Rev 1.0   8.2 GB   61 GFLOP/s fp32          8   nf4" in first


@given(st.integers(1, 300))
def test_what_fits_never_loses_what_changes(width: int) -> None:
    columns = busy_fleet(Path.cwd()).fitting_columns(width)
    assert set(columns) >= {"device", "status", "round", "step", "loss", "note"}
    assert list(columns) == [name for name in COLUMNS if name in columns]


def test_what_devices_say_is_only_text(tmp_path: Path) -> None:
    view = FleetView("test")
    evil = "\x1b[2J\nforged"
    view.hear(view.topics.device("a", "state"), encode(DeviceState(status="ready", instance="x", note=evil)))
    view.hear(
        view.topics.device("a", "profile"), encode(msgspec.structs.replace(measured_profile(tmp_path), model=evil))
    )
    (cells,) = view.rows()
    assert all(cell.isprintable() for cell in cells)
    assert cells[-1] == "\\u001b[2J\\nforged"
    refusal = Refusal(what="rejected", device="a", round=1, reason=evil, unix_s=0)
    state = AggregatorState(status="online", instance="x", note=evil, refusals=[refusal])
    assert describe_aggregator(state).isprintable()
    assert all(line.isprintable() for line in describe_refusals(state))


def test_what_is_left_aside_is_said_once_for_each_author_and_reason() -> None:
    view = FleetView("barn")
    profile, state, other = (view.topics.device(*at) for at in (("a", "profile"), ("a", "state"), ("b", "state")))
    view.distrusted = {
        state: "it was revoked",
        other: "it was revoked",
        profile: "it was revoked",
        view.topics.aggregator_state: "it is not signed",
    }
    assert view.describe_distrusted() == [
        "left aside the state of the aggregator: it is not signed",
        "left aside the profile and the state of a: it was revoked",
        "left aside the state of b: it was revoked",
    ]
    view.distrusted[state] = "it is not signed"
    assert view.describe_distrusted()[1:3] == [
        "left aside the profile of a: it was revoked",
        "left aside the state of a: it is not signed",
    ]
    assert view.as_json()["distrusted"] == dict(sorted(view.distrusted.items()))
