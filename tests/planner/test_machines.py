from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from edgefed.devices.board_files import find_board
from edgefed.devices.compute import LEFT_OUT, ComputeProfile
from edgefed.devices.emulation import emulate
from edgefed.devices.measurement import absent, measured
from edgefed.devices.memory import read_host_memory, training_memory
from edgefed.devices.profile import DeviceProfile, read_profile
from edgefed.errors import ConfigError
from edgefed.planner.machines import SHEET_SHARE, machine_of


def profile(tmp_path: Path) -> DeviceProfile:
    compute = ComputeProfile(
        hardware="cpu",
        threads=1,
        flops_per_s={
            "fp32": measured(2e11, "mm"),
            "bf16": measured(1e11, "mm"),
            "int8": absent(LEFT_OUT),
            "nf4": absent("it does not run here: no kernel"),
        },
        memory_bandwidth_bytes_per_s=measured(1e10, "copy"),
    )
    read = read_profile(tmp_path, quantization="auto", max_rank=0)
    return msgspec.structs.replace(read, compute=compute, memory=training_memory(read_host_memory(), None))


def test_what_was_measured_is_what_may_be_used(tmp_path: Path) -> None:
    machine = machine_of(profile(tmp_path))
    assert machine.flops_per_s == {"fp32": 2e11, "bf16": 1e11, "int8": 2e11}  # int8 is dequantized to fp32 here
    assert machine.unavailable == {"nf4": "it does not run here: no kernel"}
    assert (machine.hardware, machine.memory_kind, machine.native_bf16) == ("cpu", "host", False)
    assert machine.uplink_bytes_per_s is None


def test_a_board_that_is_played_is_taken_at_a_share_of_its_sheet(tmp_path: Path) -> None:
    board = find_board("jetson-orin-nano-8gb")
    machine = machine_of(emulate(profile(tmp_path), board.sheet("15W")))
    assert machine.emulated == "jetson-orin-nano-8gb"
    assert machine.name == "jetson-orin-nano-8gb in 15W (emulated)"
    assert machine.flops_per_s["bf16"] == pytest.approx(SHEET_SHARE * board.in_mode("15W").peaks["bf16"])
    assert machine.native_bf16
    assert machine.memory_kind == "unified"


def test_a_device_that_was_not_measured_cannot_be_planned_for(tmp_path: Path) -> None:
    unmeasured = read_profile(tmp_path, quantization="auto", max_rank=0)
    with pytest.raises(ConfigError, match="was not measured; run `edgefed profile`"):
        machine_of(unmeasured)
    failed = msgspec.structs.replace(unmeasured, why_null={"compute": "torch is not installed"})
    with pytest.raises(ConfigError, match="compute: torch is not installed"):
        machine_of(failed)
    nothing = msgspec.structs.replace(
        profile(tmp_path),
        compute=ComputeProfile(
            hardware="cpu",
            threads=1,
            flops_per_s={"fp32": absent("broken")},
            memory_bandwidth_bytes_per_s=measured(1e10, "copy"),
        ),
    )
    with pytest.raises(ConfigError, match="nothing is known to run on this device: fp32: broken"):
        machine_of(nothing)
