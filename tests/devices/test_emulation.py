"""A machine that plays a board: the board's figures where a plan looks, the machine's own under `real`."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from edgefed.devices.compute import ComputeProfile
from edgefed.devices.emulation import Sheet, emulate, real_profile
from edgefed.devices.measurement import measured
from edgefed.devices.memory import HostMemory, training_memory
from edgefed.devices.network import NetworkProfile, unmeasured_network
from edgefed.devices.profile import DeviceProfile, read_profile

GIB = 1 << 30
ORIN_NANO = Sheet(
    board="jetson-orin-nano-8gb",
    power_mode="15W",
    memory_kind="unified",
    memory_total_bytes=15 * GIB // 2,
    memory_bandwidth_bytes_per_s=68e9,
    flops_per_s={"fp32": 1.28e12, "bf16": 10.2e12, "fp16": 10.2e12, "int8": 20.5e12},
    gpu_name="Orin",
    compute_capability=8.7,
    sm_count=8,
    gpu_clock_hz=625e6,
    cores=6,
)
NANO = msgspec.structs.replace(
    ORIN_NANO, board="jetson-nano-4gb", power_mode="10W", compute_capability=5.3, flops_per_s={"fp32": 2.36e11}
)
PI = Sheet(
    board="raspberry-pi-5-8gb",
    power_mode=None,
    memory_kind="host",
    memory_total_bytes=8 * GIB,
    memory_bandwidth_bytes_per_s=17.1e9,
    flops_per_s={"fp32": 1.54e11, "fp16": 3.07e11},
    cores=4,
)


@pytest.fixture
def real(tmp_path: Path) -> DeviceProfile:
    return msgspec.structs.replace(
        read_profile(tmp_path, quantization="nf4", max_rank=8),
        memory=training_memory(HostMemory(total_bytes=64 * GIB, available_bytes=50 * GIB), None),
        compute=ComputeProfile(
            hardware="cpu",
            threads=4,
            flops_per_s={"fp32": measured(2e11, "torch.mm")},
            memory_bandwidth_bytes_per_s=measured(1e10, "copy"),
        ),
        network=NetworkProfile(
            latency_s=measured(0.001, "median"),
            uplink_bytes_per_s=measured(1e8, "1 MiB"),
            downlink_bytes_per_s=measured(2e8, "1 MiB"),
        ),
        why_null={"gpu": "there is no NVIDIA driver on this machine"},
    )


def test_a_plan_sees_the_board_and_the_record_keeps_the_machine(real: DeviceProfile) -> None:
    played = emulate(real, ORIN_NANO)
    assert (played.emulated, played.board) == ("jetson-orin-nano-8gb", "jetson-orin-nano-8gb")
    assert played.memory is not None
    assert (played.memory.kind, played.memory.total_bytes) == ("unified", 15 * GIB // 2)
    assert played.gpu is not None
    assert (played.gpu.compute_capability, played.gpu.integrated, played.gpu.sm_count) == (8.7, True, 8)
    assert played.power is not None
    assert played.power.mode == "15W"
    assert played.real is not None
    assert (played.real.memory, played.real.compute, played.real.gpu) == (real.memory, real.compute, None)
    assert played.why_null == {"real.gpu": "there is no NVIDIA driver on this machine"}
    assert played.memory_total_bytes == real.memory_total_bytes, "the host is what it is"
    assert msgspec.json.decode(msgspec.json.encode(played), type=DeviceProfile) == played


def test_every_emulated_figure_names_the_sheet(real: DeviceProfile) -> None:
    compute = emulate(real, ORIN_NANO).compute
    assert compute is not None
    for rate in (*compute.flops_per_s.values(), compute.memory_bandwidth_bytes_per_s):
        assert rate.method.startswith("sheet of jetson-orin-nano-8gb in 15W, peak")


def test_quantized_layers_run_at_the_rate_of_the_type_they_compute_in(real: DeviceProfile) -> None:
    compute = emulate(real, ORIN_NANO).compute
    assert compute is not None
    assert compute.flops_per_s["nf4"].value == compute.flops_per_s["int8"].value == 10.2e12
    on_cpu = emulate(real, PI).compute
    assert on_cpu is not None
    assert on_cpu.flops_per_s["nf4"].value == 1.54e11


def test_what_a_board_does_not_have_is_null_with_a_reason(real: DeviceProfile) -> None:
    compute = emulate(real, NANO).compute
    assert compute is not None
    assert "has no bf16" in compute.flops_per_s["bf16"].reason
    assert "needs compute capability 6.0" in compute.flops_per_s["nf4"].reason
    played = emulate(real, PI)
    assert played.gpu is None
    assert played.why_null["gpu"] == "raspberry-pi-5-8gb computes on its CPU"
    assert played.power is not None
    assert "no power modes" in played.power.mode_reason


def test_what_the_owner_sets_is_taken_over_the_sheet(real: DeviceProfile) -> None:
    played = emulate(real, ORIN_NANO, memory_available_bytes=4 * GIB, uplink_bits_per_s=8e6, downlink_bits_per_s=16e6)
    assert played.memory is not None
    assert played.memory.available_bytes == 4 * GIB
    assert played.network is not None
    assert played.network.uplink_bytes_per_s.value == 1e6
    assert played.network.downlink_bytes_per_s.value == 2e6
    assert played.network.latency_s.value == 0.001, "it was not set"


def test_more_memory_than_the_board_has_is_not_available(real: DeviceProfile) -> None:
    memory = emulate(real, ORIN_NANO, memory_available_bytes=100 * GIB).memory
    assert memory is not None
    assert memory.available_bytes == memory.total_bytes


def test_a_link_can_be_emulated_where_none_was_measured(real: DeviceProfile) -> None:
    offline = msgspec.structs.replace(real, network=unmeasured_network("no broker"))
    network = emulate(offline, ORIN_NANO, uplink_bits_per_s=8e6).network
    assert network is not None
    assert network.uplink_bytes_per_s.value == 1e6
    assert network.downlink_bytes_per_s.reason == "no broker"


@pytest.mark.parametrize("sheet", [ORIN_NANO, NANO, PI])
def test_the_machine_behind_the_board_is_still_known(real: DeviceProfile, sheet: Sheet) -> None:
    behind = real_profile(emulate(real, sheet, uplink_bits_per_s=1e6))
    assert behind.power is not None
    assert msgspec.structs.replace(behind, power=real.power) == real
    assert behind.power.mode == (real.power.mode if real.power else None)
    assert real_profile(real) is real
