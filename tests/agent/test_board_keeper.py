"""What the sheets add to a profile: the board, what cannot be true of it, and the peak that work is related to."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from edgefed.agent.board_keeper import BoardKeeper, Yardstick
from edgefed.agent.options import Emulate
from edgefed.config import read_agent
from edgefed.devices.compute import ComputeProfile, DataType
from edgefed.devices.gpu import GpuProfile
from edgefed.devices.measurement import measured
from edgefed.devices.memory import HostMemory, training_memory
from edgefed.devices.profile import DeviceProfile, read_profile
from edgefed.devices.sensors import PowerProfile
from edgefed.errors import ConfigError

GIB = 1 << 30
TERA = 1e12


def machine(
    tmp_path: Path,
    rates: dict[DataType, float],
    *,
    model: str | None = None,
    gpu: GpuProfile | None = None,
    memory_gib: float = 62.0,
    mode: str | None = None,
) -> DeviceProfile:
    total = int(memory_gib * GIB)
    return msgspec.structs.replace(
        read_profile(tmp_path, quantization="fp32", max_rank=8, root=tmp_path),
        model=model,
        memory_total_bytes=total,
        memory=training_memory(HostMemory(total_bytes=total, available_bytes=total // 2), gpu),
        gpu=gpu,
        compute=ComputeProfile(
            hardware="cpu" if gpu is None else "cuda",
            threads=4,
            flops_per_s={kind: measured(rate, "torch.mm") for kind, rate in rates.items()},
            memory_bandwidth_bytes_per_s=measured(1e10, "copy"),
        ),
        power=PowerProfile(mode=mode, mode_reason="" if mode else "no nvpmodel"),
    )


def orin(tmp_path: Path, rates: dict[DataType, float], *, mode: str | None, cuda: bool = True) -> DeviceProfile:
    gpu = GpuProfile(
        name="Orin",
        compute_capability=8.7,
        integrated=True,
        memory_total_bytes=61 * GIB,
        memory_free_bytes=50 * GIB,
        sm_count=8,
    )
    model = "NVIDIA Jetson AGX Orin Developer Kit"
    return machine(tmp_path, rates, model=model, gpu=gpu if cuda else None, memory_gib=61.0, mode=mode)


def card(tmp_path: Path, rates: dict[DataType, float]) -> DeviceProfile:
    gpu = GpuProfile(
        name="NVIDIA GeForce RTX 4090",
        compute_capability=8.9,
        integrated=False,
        memory_total_bytes=int(23.6 * GIB),
        memory_free_bytes=23 * GIB,
        sm_count=128,
    )
    return machine(tmp_path, rates, model="MS-7C37", gpu=gpu)


def test_a_known_card_has_its_id_and_its_peak(tmp_path: Path) -> None:
    keeper, profile = BoardKeeper(Emulate()), card(tmp_path, {"fp32": 60 * TERA, "bf16": 150 * TERA})
    known = keeper.recognize(profile)
    assert (known.board, known.warnings, known.emulated) == ("rtx-4090", (), None)
    assert keeper.play(known) is known
    assert keeper.yardstick(profile, "bf16") == Yardstick(150 * TERA, 165.2 * TERA, "rtx-4090", None)
    assert keeper.yardstick(profile, "fp32").sheet_peak_flops_per_s == 82.6 * TERA


def test_a_rate_above_what_the_board_can_do_is_a_warning(tmp_path: Path) -> None:
    rates: dict[DataType, float] = {"fp32": 60 * TERA, "bf16": 400 * TERA, "int8": 900 * TERA}
    (warning,) = BoardKeeper(Emulate()).recognize(card(tmp_path, rates)).warnings
    assert warning.startswith("bf16 was measured at 4e+14 FLOP/s, 2.4 times the peak of rtx-4090")


def test_the_peak_is_that_of_the_live_power_mode(tmp_path: Path) -> None:
    keeper = BoardKeeper(Emulate())
    rates: dict[DataType, float] = {"bf16": 9 * TERA}
    slow = keeper.yardstick(orin(tmp_path, rates, mode="MODE_30W"), "bf16")
    fast = keeper.yardstick(orin(tmp_path, rates, mode="MAXN"), "bf16")
    assert slow.board == fast.board == "jetson-agx-orin-64gb"
    assert slow.sheet_peak_flops_per_s == pytest.approx(10.0 * TERA, rel=0.01)
    assert fast.sheet_peak_flops_per_s == pytest.approx(42.6 * TERA, rel=0.01)


def test_a_rate_may_be_true_in_one_mode_and_not_in_another(tmp_path: Path) -> None:
    rates: dict[DataType, float] = {"bf16": 20 * TERA}
    keeper = BoardKeeper(Emulate())
    assert keeper.recognize(orin(tmp_path, rates, mode="MAXN")).warnings == ()
    (warning,) = keeper.recognize(orin(tmp_path, rates, mode="MODE_30W")).warnings
    assert "jetson-agx-orin-64gb in MODE_30W" in warning


def test_a_mode_that_the_sheet_does_not_know_has_no_peak(tmp_path: Path) -> None:
    keeper, profile = BoardKeeper(Emulate()), orin(tmp_path, {"bf16": 9 * TERA}, mode="my own mode")
    assert keeper.recognize(profile).warnings == ()
    assert keeper.yardstick(profile, "bf16") == Yardstick(9 * TERA, None, "jetson-agx-orin-64gb", None)


def test_work_on_the_processor_is_not_related_to_the_gpu(tmp_path: Path) -> None:
    keeper, profile = BoardKeeper(Emulate()), orin(tmp_path, {"fp32": 1e11}, mode="MAXN", cuda=False)
    assert keeper.recognize(profile).board == "jetson-agx-orin-64gb"
    assert keeper.yardstick(profile, "fp32") == Yardstick(1e11, None, "jetson-agx-orin-64gb", None)


def test_a_raspberry_pi_is_related_to_its_processor(tmp_path: Path) -> None:
    profile = machine(tmp_path, {"fp32": 9e10}, model="Raspberry Pi 5 Model B Rev 1.0", memory_gib=7.9)
    peak = BoardKeeper(Emulate()).yardstick(profile, "fp32").sheet_peak_flops_per_s
    assert peak == pytest.approx(153.6e9)


def test_an_unknown_machine_is_no_board_and_says_so(tmp_path: Path) -> None:
    keeper, profile = BoardKeeper(Emulate()), machine(tmp_path, {"fp32": 2e11}, model="Standard PC (Q35)")
    known = keeper.recognize(profile)
    assert known.board is None
    assert "no board of device_profiles fits" in known.why_null["board"]
    assert keeper.yardstick(profile, "fp32") == Yardstick(live_peak_flops_per_s=2e11)


def test_who_plays_a_board_is_related_to_what_he_is(tmp_path: Path) -> None:
    keeper = BoardKeeper(Emulate(board="jetson-orin-nano-8gb", power_mode="7W", memory_available_bytes=2 * GIB))
    profile = card(tmp_path, {"bf16": 150 * TERA})
    played = keeper.play(keeper.recognize(profile))
    assert (played.emulated, played.board) == ("jetson-orin-nano-8gb", "jetson-orin-nano-8gb")
    assert played.real is not None
    assert played.real.board == "rtx-4090"
    assert played.power is not None
    assert played.power.mode == "7W"
    assert played.memory is not None
    assert played.memory.available_bytes == 2 * GIB
    assert played.compute is not None
    assert played.compute.flops_per_s["bf16"].value == pytest.approx(3.34 * TERA, rel=0.01)
    assert keeper.yardstick(profile, "bf16") == Yardstick(150 * TERA, 165.2 * TERA, "rtx-4090", "jetson-orin-nano-8gb")


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ('board = "orin-nano-8gb"', r"\[emulate\]: there is no board 'orin-nano-8gb'; did you mean jetson-orin"),
        ('board = "rtx-4090"\npower_mode = "MAXN"', r"\[emulate\]: rtx-4090 has no power mode 'MAXN'; its sheet"),
        ('board = "jetson-nano-4gb"\npower_mode = "7W"', r"no power mode '7W'; it has MAXN, 5W"),
        ('power_mode = "7W"', r"\[emulate\]: power_mode is given, and board is not"),
        ('board = "jetson-nano-4gb"\nmemory_available_bytes = 5_000_000_000', "nano-4gb has at most 4294967296"),
        ('board = "jetson-nano-4gb"\nuplink_bits_per_s = 0', r"uplink_bits_per_s is 0; allowed is a number, above 0"),
    ],
)
def test_what_cannot_be_played_is_refused_when_the_file_is_read(tmp_path: Path, table: str, said: str) -> None:
    path = tmp_path / "agent.toml"
    path.write_text(f'device = "d"\nfleet = "f"\ndata.path = "d.jsonl"\n[emulate]\n{table}\n')
    with pytest.raises(ConfigError, match=said) as refused:
        read_agent(path)
    assert str(path) in str(refused.value)


def test_the_network_of_the_board_is_what_the_owner_says(tmp_path: Path) -> None:
    keeper = BoardKeeper(Emulate(board="raspberry-pi-5-8gb", uplink_bits_per_s=8e6))
    network = keeper.play(machine(tmp_path, {"fp32": 2e11})).network
    assert network is not None
    assert network.uplink_bytes_per_s.value == 1e6
