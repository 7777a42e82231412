"""What `edgefed status` tells of a device's hardware, out of the profile that the device has published."""

from __future__ import annotations

from pathlib import Path

import msgspec

from edgefed.cli.fleet_view import COLUMNS, FleetView
from edgefed.devices.compute import ComputeProfile
from edgefed.devices.measurement import absent, measured
from edgefed.devices.memory import HostMemory, training_memory
from edgefed.devices.profile import DeviceProfile, read_profile
from edgefed.protocol.messages.retained import DeviceState
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


def test_what_is_left_aside_is_said() -> None:
    view = FleetView("barn")
    topic = view.topics.device("a", "state")
    view.distrusted[topic] = "it is not signed, and only a may say that"
    assert view.describe_distrusted() == [f"left aside on {topic}: it is not signed, and only a may say that"]
    assert view.as_json()["distrusted"] == {topic: "it is not signed, and only a may say that"}
