"""Which board this machine is, and which one it plays where its owner wants that."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from edgefed.agent.options import Emulate
from edgefed.devices.board_files import find_board, match_board
from edgefed.devices.boards import RATE_TYPES, Board
from edgefed.devices.compute import DataType
from edgefed.devices.emulation import emulate
from edgefed.devices.profile import DeviceProfile
from edgefed.errors import ConfigError

__all__ = ["BoardKeeper", "Yardstick"]

_NO_BOARD = "no board of device_profiles fits what this machine says of itself"


@dataclass(frozen=True, slots=True)
class Yardstick:
    """What the work of a round is related to; fields as in `RoundRecord`, null where nothing is known."""

    live_peak_flops_per_s: float | None = None
    sheet_peak_flops_per_s: float | None = None
    board: str | None = None
    emulated: str | None = None


class BoardKeeper:
    """Adds to a profile what the sheets of the boards know. The sheets are read when something of the machine changed.

    Args:
        options: which board the machine shall play, if any; they were checked when they were read.
    """

    def __init__(self, options: Emulate) -> None:
        self._options = options
        self._played = find_board(options.board) if options.board else None
        self._known: tuple[object, Board | None] | None = None

    def recognize(self, profile: DeviceProfile) -> DeviceProfile:
        """Returns a measured profile with the board that the machine is, or why it is none, and what looks wrong."""
        board = self._match(profile)
        if board is None:
            return msgspec.structs.replace(profile, why_null={**profile.why_null, "board": _NO_BOARD})
        warnings = (*profile.warnings, *_suspicious(board, profile))
        return msgspec.structs.replace(profile, board=board.id, warnings=warnings)

    def play(self, profile: DeviceProfile) -> DeviceProfile:
        """Returns the profile of the board that the owner wants played; the machine's own where that is none."""
        if self._played is None:
            return profile
        return emulate(
            profile,
            self._played.sheet(self._options.power_mode or None),
            memory_available_bytes=self._options.memory_available_bytes,
            uplink_bits_per_s=self._options.uplink_bits_per_s,
            downlink_bits_per_s=self._options.downlink_bits_per_s,
        )

    def yardstick(self, profile: DeviceProfile, kind: DataType) -> Yardstick:
        """Returns what work in a data type is related to: always the real machine, whatever it plays.

        Args:
            profile: as measured.
            kind: that the work is computed in.
        """
        rate = profile.compute.flops_per_s.get(kind) if profile.compute else None
        board = self._match(profile)
        return Yardstick(
            live_peak_flops_per_s=rate.value if rate else None,
            sheet_peak_flops_per_s=_sheet_peak(board, profile, kind) if board else None,
            board=board.id if board else None,
            emulated=self._played.id if self._played else None,
        )

    def _match(self, profile: DeviceProfile) -> Board | None:
        gpu = profile.gpu
        key = (
            profile.model,
            gpu.name if gpu else None,
            gpu.memory_total_bytes if gpu and not gpu.integrated else profile.memory_total_bytes,
            profile.power.mode if profile.power else None,
        )
        if self._known is None or self._known[0] != key:
            model, name, memory_bytes, mode = key
            board = match_board(device_tree_model=model, gpu_name=name, memory_bytes=memory_bytes, power_mode=mode)
            self._known = (key, board)
        return self._known[1]


def _suspicious(board: Board, profile: DeviceProfile) -> list[str]:
    """Returns in words which measured rates cannot be true of the board."""
    if profile.compute is None or not _on_the_sheet(board, profile):
        return []
    mode = _live_mode(board, profile)
    said = []
    for kind in RATE_TYPES:
        rate = profile.compute.flops_per_s.get(kind)
        # int8 is measured as a layer that dequantizes and multiplies in another type: no matter of the int8 peak
        if rate is not None and rate.value is not None and kind != "int8":
            said.append(board.sanity(kind, rate.value, mode))
    return [words for words in said if words is not None]


def _sheet_peak(board: Board, profile: DeviceProfile, kind: DataType) -> float | None:
    """Returns the peak in the live power mode; None where the sheet does not know that mode."""
    mode = profile.power.mode if profile.power else None
    if not _on_the_sheet(board, profile) or (mode is not None and _live_mode(board, profile) is None):
        return None
    return board.in_mode(mode).peaks.get(kind)


def _on_the_sheet(board: Board, profile: DeviceProfile) -> bool:
    """Whether the worker computes on what the sheet's peaks are of: the GPU where the board has one."""
    return profile.compute is not None and (profile.compute.hardware == "cuda") == bool(board.gpu)


def _live_mode(board: Board, profile: DeviceProfile) -> str | None:
    """Returns the live power mode where the sheet has it."""
    mode = profile.power.mode if profile.power else None
    try:
        return board.mode(mode).name if mode else None
    except ConfigError:
        return None
