"""The sheets of the boards: they load, add up, and reproduce what is published; each power mode has its own peak."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefed.devices.board_files import board_ids, boards, find_board
from edgefed.devices.boards import RATE_TYPES, Board
from edgefed.devices.formulas import evaluate
from edgefed.devices.gpu_rates import peak_flops_per_s
from edgefed.errors import ConfigError

BOARDS = boards()
BY_ID = {board.id: board for board in BOARDS}
TERA = 1e12

# board, mode, powered SMs, fp32, bf16 and int8 in tera-operations per second: worked out by hand from NVIDIA's files
ORIN_MODES = [
    ("jetson-agx-orin-64gb", "MAXN", 16, 5.33, 42.6, 85),
    ("jetson-agx-orin-64gb", "50W", 16, 3.34, 26.7, 53),
    ("jetson-agx-orin-64gb", "30W", 8, 1.25, 10.0, 20),
    ("jetson-agx-orin-64gb", "15W", 6, 0.63, 5.0, 10),
    ("jetson-agx-orin-32gb", "MAXN", 14, 3.34, 26.7, 53),
    ("jetson-agx-orin-32gb", "40W", 14, 2.92, 23.4, 47),
    ("jetson-agx-orin-32gb", "30W", 8, 1.25, 10.0, 20),
    ("jetson-agx-orin-32gb", "15W", 6, 0.63, 5.0, 10),
    ("jetson-orin-nx-16gb", "MAXN", 8, 1.88, 15.0, 30),
    ("jetson-orin-nx-16gb", "25W", 8, 0.84, 6.7, 13),
    ("jetson-orin-nx-16gb", "15W", 4, 0.63, 5.0, 10),
    ("jetson-orin-nx-16gb", "10W", 4, 0.63, 5.0, 10),
    ("jetson-orin-nx-8gb", "MAXN", 8, 1.57, 12.5, 25),
    ("jetson-orin-nx-8gb", "20W", 8, 0.84, 6.7, 13),
    ("jetson-orin-nx-8gb", "15W", 4, 0.63, 5.0, 10),
    ("jetson-orin-nano-8gb", "15W", 8, 1.28, 10.2, 20),
    ("jetson-orin-nano-8gb", "7W", 4, 0.42, 3.3, 6.7),
    ("jetson-orin-nano-8gb-super", "15W", 8, 1.25, 10.0, 20),
    ("jetson-orin-nano-8gb-super", "25W", 8, 1.88, 15.0, 30),
    ("jetson-orin-nano-8gb-super", "MAXN_SUPER", 8, 2.09, 16.7, 33.4),
    ("jetson-orin-nano-4gb", "10W", 4, 0.64, 5.1, 10),
    ("jetson-orin-nano-4gb", "7W_AI", 4, 0.42, 3.3, 6.7),
    ("jetson-orin-nano-4gb", "7W_CPU", 4, 0.31, 2.5, 5),
    ("jetson-orin-nx-16gb-super", "40W", 8, 2.40, 19.2, 38.4),
]

# board, memory in GiB, bandwidth in GB/s, fp32, bf16, fp16, int8 in tera-operations per second
SHEETS = [
    ("jetson-nano-4gb", 4, 25.6, 0.236, None, 0.472, None),
    ("jetson-tx2-8gb", 8, 59.7, 0.665, None, 1.33, None),
    ("jetson-xavier-nx-8gb", 8, 59.7, 0.845, None, 6.8, 13.5),
    ("jetson-xavier-nx-16gb", 16, 59.7, 0.845, None, 6.8, 13.5),
    ("jetson-agx-xavier-32gb", 32, 137, 1.41, None, 11.3, 22.6),
    ("jetson-orin-nano-4gb", 4, 34, 0.64, 5.1, 5.1, 10),
    ("jetson-orin-nano-4gb-super", 4, 51, 1.04, 8.4, 8.4, 16.7),
    ("jetson-orin-nano-8gb", 8, 68, 1.28, 10.2, 10.2, 20),
    ("jetson-orin-nano-8gb-super", 8, 102, 2.09, 16.7, 16.7, 33.4),
    ("jetson-orin-nx-8gb", 8, 102.4, 1.57, 12.5, 12.5, 25),
    ("jetson-orin-nx-8gb-super", 8, 102.4, 2.40, 19.2, 19.2, 38.4),
    ("jetson-orin-nx-16gb", 16, 102.4, 1.88, 15.0, 15.0, 30),
    ("jetson-orin-nx-16gb-super", 16, 102.4, 2.40, 19.2, 19.2, 38.4),
    ("jetson-agx-orin-32gb", 32, 204.8, 3.34, 26.7, 26.7, 53.4),
    ("jetson-agx-orin-64gb", 64, 204.8, 5.33, 42.6, 42.6, 85),
    ("jetson-agx-thor-t5000", 128, 273, 8.06, 258, 258, 517),
    ("raspberry-pi-5-8gb", 8, 17.1, 0.154, None, 0.307, 0.61),
    ("raspberry-pi-5-16gb", 16, 17.1, 0.154, None, 0.307, 0.61),
    ("rtx-3060-12gb", 12, 360, 12.74, 25.5, 25.5, 102),
    ("rtx-4060", 8, 272, 15.11, 30.2, 30.2, 121),
    ("rtx-4060-laptop", 8, 256, 14.6, 29.1, 29.1, 116),
    ("rtx-4090", 24, 1008, 82.6, 165.2, 165.2, 660.6),
    ("rtx-5090", 32, 1792, 104.8, 209.5, 209.5, 838),
    ("a100-sxm-40gb", 40, 1555, 19.5, 312, 312, 624),
    ("a100-sxm-80gb", 80, 2039, 19.5, 312, 312, 624),
    ("h100-sxm", 80, 3350, 67, 989, 989, 1979),
    ("h200-sxm", 141, 4800, 66.9, 989, 989, 1979),
]


def close(value: float | None, published: float | None) -> bool:
    """Returns whether two figures agree to the digits that tables print."""
    if value is None or published is None:
        return value is published
    return value == pytest.approx(published, rel=0.02)


def test_every_board_is_in_the_table() -> None:
    assert sorted(row[0] for row in SHEETS) == board_ids()


@pytest.mark.parametrize(("board_id", "memory_gib", "bandwidth_gb", "fp32", "bf16", "fp16", "int8"), SHEETS)
def test_sheets_say_what_is_published(
    board_id: str,
    memory_gib: int,
    bandwidth_gb: float,
    fp32: float,
    bf16: float | None,
    fp16: float | None,
    int8: float | None,
) -> None:
    board = BY_ID[board_id]
    assert board.figures.memory_bytes.value == memory_gib << 30
    assert close(board.figures.bandwidth_bytes_per_s.value / 1e9, bandwidth_gb)
    for kind, published in zip(RATE_TYPES, (fp32, bf16, fp16, int8), strict=True):
        figure = board.peaks.figure(kind)
        assert close(None if figure is None else figure.value / TERA, published), kind
        assert (kind in board.absent) == (published is None)


@pytest.mark.parametrize(("board_id", "mode", "sm_count", "fp32", "bf16", "int8"), ORIN_MODES)
def test_each_power_mode_has_its_own_peak(
    board_id: str, mode: str, sm_count: int, fp32: float, bf16: float, int8: float
) -> None:
    now = BY_ID[board_id].in_mode(mode)
    assert now.sm_count == sm_count
    assert now.peaks["fp32"] / TERA == pytest.approx(fp32, abs=0.0101)
    assert now.peaks["bf16"] / TERA == pytest.approx(bf16, abs=0.051)
    assert now.peaks["int8"] / TERA == pytest.approx(int8, rel=0.035)


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.id)
def test_derived_figures_follow_from_their_formulas(board: Board) -> None:
    values = {key: figure.value for key, figure in board.named_figures()}
    for key, figure in board.named_figures():
        if figure.status == "derived":
            assert evaluate(figure.formula, values) == pytest.approx(figure.value, rel=0.01), key


@pytest.mark.parametrize("board", [board for board in BOARDS if board.gpu], ids=lambda board: board.id)
def test_peaks_of_gpus_follow_from_their_clocks(board: Board) -> None:
    whole, capability = board.in_mode(None), board.figures.compute_capability
    assert whole.sm_count is not None
    assert whole.gpu_clock_hz is not None
    assert capability is not None
    for kind in RATE_TYPES:
        expected = peak_flops_per_s(whole.sm_count, whole.gpu_clock_hz, capability.value, kind)
        published = whole.peaks.get(kind)
        # NVIDIA gives fp32 of H100 and H200 for a higher clock than that of the tensor cores
        tolerance = 0.09 if kind == "fp32" and capability.value == 9.0 else 0.03
        assert (expected is None) == (published is None)
        assert published is None or published == pytest.approx(expected, rel=tolerance), kind


@pytest.mark.parametrize("board", [board for board in BOARDS if board.power_modes], ids=lambda board: board.id)
def test_the_whole_board_is_its_fastest_mode(board: Board) -> None:
    fastest = max(board.in_mode(mode.name).peaks["fp32"] for mode in board.power_modes)
    assert fastest == pytest.approx(board.in_mode(None).peaks["fp32"], rel=0.01)


def test_the_default_mode_is_what_a_sheet_shows() -> None:
    sheet = find_board("jetson-agx-orin-64gb").sheet()
    assert sheet.power_mode == "MODE_30W"
    assert (sheet.sm_count, sheet.gpu_clock_hz) == (8, 612e6)
    assert sheet.flops_per_s["bf16"] == pytest.approx(10.0 * TERA, rel=0.01)
    assert sheet.memory_bandwidth_bytes_per_s == pytest.approx(204.8e9)
    slow = find_board("jetson-agx-orin-64gb").sheet("15w")
    assert slow.memory_bandwidth_bytes_per_s == pytest.approx(2133e6 * 2 * 32)
    assert slow.source == "sheet of jetson-agx-orin-64gb in MODE_15W"


def test_a_sheet_tells_the_memory_that_user_space_sees() -> None:
    nano = find_board("jetson-orin-nano-8gb")
    assert nano.sheet().memory_total_bytes == round(7.3 * (1 << 30))
    assert find_board("rtx-4090").sheet().memory_total_bytes == 24 << 30


def test_a_board_without_a_gpu_has_a_sheet_too() -> None:
    sheet = find_board("raspberry-pi-5-8gb").sheet()
    assert (sheet.gpu_name, sheet.sm_count, sheet.memory_kind, sheet.cores) == (None, None, "host", 4)
    assert sheet.power_mode is None
    assert "bf16" not in sheet.flops_per_s


def test_an_unknown_mode_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"no power mode '9W'; it has 15W, 7W$"):
        find_board("jetson-orin-nano-8gb").in_mode("9W")
    with pytest.raises(ConfigError, match=r"its sheet has no power modes"):
        find_board("rtx-4090").sheet("MAXN")


@given(st.floats(min_value=0.01, max_value=10.0))
def test_only_what_is_far_above_the_peak_is_suspicious(share: float) -> None:
    board = BY_ID["jetson-agx-orin-64gb"]
    said = board.sanity("bf16", share * board.in_mode("30W").peaks["bf16"], "30W")
    assert (said is not None) == (share > 1.3)
    assert said is None or "jetson-agx-orin-64gb in 30W" in said


def test_nothing_is_suspicious_where_nothing_is_known() -> None:
    assert BY_ID["jetson-nano-4gb"].sanity("bf16", 1e15) is None
    assert "the peak of rtx-5090 (2.1e+14)" in str(BY_ID["rtx-5090"].sanity("bf16", 400 * TERA))
    assert BY_ID["rtx-5090"].sanity("bf16", 224 * TERA) is None, "cards boost above the clock of the sheet"
