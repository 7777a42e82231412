"""Power modes, from files in the format that nvpmodel keeps (names as in NVIDIA's nvpmodel_*.conf)."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgefed.devices.power_mode import read_power_mode

CONFIGURATION = """\
# MAXN is the NONE power model to release all constraints
< POWER_MODEL ID=0 NAME=15W >
CPU_ONLINE CORE_0 1
< POWER_MODEL ID=1 NAME=7W >
CPU_ONLINE CORE_0 1
< PM_CONFIG DEFAULT=0 >
"""


def board(root: Path, status: str, configuration: str = CONFIGURATION) -> Path:
    (root / "var/lib/nvpmodel").mkdir(parents=True)
    (root / "var/lib/nvpmodel/status").write_text(status)
    (root / "etc").mkdir()
    (root / "etc/nvpmodel.conf").write_text(configuration)
    return root


@pytest.mark.parametrize(
    ("status", "mode"), [("pmode:0000 fmode:fanNull", "15W"), ("pmode:0001", "7W"), ("pmode:0002", "mode 2")]
)
def test_the_mode_is_told_by_name_or_else_by_number(tmp_path: Path, status: str, mode: str) -> None:
    assert read_power_mode(board(tmp_path, status)) == (mode, "")


def test_a_machine_without_modes_says_so(tmp_path: Path) -> None:
    mode, reason = read_power_mode(tmp_path)
    assert mode is None
    assert "no nvpmodel" in reason


def test_a_status_that_names_no_mode_is_quoted(tmp_path: Path) -> None:
    mode, reason = read_power_mode(board(tmp_path, "garbage \xff"))
    assert mode is None
    assert "'garbage" in reason
