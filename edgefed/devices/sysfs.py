"""Small files of the kernel: one value each, and any of them may be missing, locked, or say that it has none now."""

from __future__ import annotations

from pathlib import Path

__all__ = ["board_model", "read_integer", "read_text"]


def read_text(path: Path) -> str | None:
    """Returns what a file says, without the white space and zeros around it; None where it cannot be read."""
    try:
        return path.read_text(errors="replace").strip(" \t\n\0")
    except OSError:
        return None


def read_integer(path: Path) -> int | None:
    """Returns the integer in a file; None where it cannot be read or says something else."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def board_model(root: Path = Path("/")) -> str:
    """Returns what the device tree calls this board, such as "Raspberry Pi 5 Model B Rev 1.0"; "" without one."""
    return read_text(root / "proc/device-tree/model") or ""
