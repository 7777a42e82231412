"""Memory and swap, with the traps of boards whose CPU and GPU share one memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil

from edgefed.devices.memory import count_oom_kills, read_host_memory
from edgefed.devices.sysfs import board_model, read_text
from edgefed.doctor.findings import Board, Findings, note, ok, problem

__all__ = ["look_at_memory"]

_MIB = 1 << 20
_AGENT_BYTES = 64 * _MIB  # an idle agent has 43 MiB
_TRAINING_BYTES = 1024 * _MIB  # torch, a small model and the reserve that a plan keeps
_DESKTOPS = {"Xorg", "Xwayland", "gnome-shell", "plasmashell", "lxpanel", "labwc", "wayfire"}
_DESKTOP_MATTERS_BYTES = 16 << 30


def look_at_memory(board: Board) -> Findings:
    """Yields what memory there is, and what takes or slows it."""
    memory = read_host_memory(board.root)
    limit = ", the limit of this control group" if memory.limited_by else ""
    said = f"{memory.available_bytes // _MIB} MiB available of {memory.total_bytes // _MIB}{limit}"
    shared = _is_jetson(board.root)
    if memory.available_bytes < _AGENT_BYTES:
        yield problem(f"{said}: too little even for the idle agent", "end other programs, or raise the limit")
    elif memory.available_bytes < _TRAINING_BYTES:
        yield note(f"{said}: too little to train", _remedy_for_little(shared=shared))
    else:
        yield ok(said)
    yield from _about_swap(board.root, shared=shared)
    kills = count_oom_kills(board.root)
    if kills:
        yield note(
            f"since it started, the kernel has ended {kills} processes for want of memory",
            "`journalctl -k --grep oom` says which; where it was the agent's worker, the agent plans smaller by itself",
        )
    desktop = _desktop(board.root)
    if desktop and memory.total_bytes < _DESKTOP_MATTERS_BYTES:
        yield note(
            f"a desktop is running ({desktop}), which takes up to 800 MB",
            "systemctl set-default multi-user.target, and restart the board",
        )


def _about_swap(root: Path, *, shared: bool) -> Findings:
    places = list(_swaps(root))
    if not places:
        yield ok("no swap")
        return
    yield ok(f"swap: {', '.join(f'{name} ({size_bytes // _MIB} MiB)' for name, size_bytes in places)}")
    if shared and any("zram" in name for name, _ in places):
        yield note(
            "swap is in zram: on a board whose GPU shares the memory, it takes from it what the GPU cannot swap out",
            "systemctl disable nvzramconfig, restart the board, and make a swap file on NVMe",
        )
    if any(_is_on_card(root, name) for name, _ in places):
        yield note("swap is on an SD card, which is slow and wears it out", "put it on NVMe or USB storage")


def _swaps(root: Path) -> Iterator[tuple[str, int]]:
    for line in (read_text(root / "proc/swaps") or "").splitlines()[1:]:
        name, _kind, size_kib, *_ = line.split()
        yield name, int(size_kib) * 1024


def _is_on_card(root: Path, swap: str) -> bool:
    """Whether a swap partition, or the file system of a swap file, is on an SD card (eMMC has boot partitions)."""
    device = swap
    if not swap.startswith("/dev/"):
        mounts = {mount.mountpoint: mount.device for mount in psutil.disk_partitions(all=True)}
        places = (str(place) for place in Path(swap).parents)
        device = next((mounts[place] for place in places if place in mounts), "")
    name = device.removeprefix("/dev/").partition("p")[0]
    return name.startswith("mmcblk") and not (root / f"sys/class/block/{name}boot0").exists()


def _is_jetson(root: Path) -> bool:
    model = board_model(root)
    return "Jetson" in model or (root / "etc/nv_tegra_release").exists()


def _desktop(root: Path) -> str:
    names = {read_text(path) or "" for path in (root / "proc").glob("[0-9]*/comm")}
    return ", ".join(sorted(names & _DESKTOPS))


def _remedy_for_little(*, shared: bool) -> str:
    if shared:
        return (
            "end other programs; before JetPack 7.2 the driver may also keep pages of a CUDA process that has ended: "
            "sync; sysctl vm.drop_caches=3"
        )
    return "end other programs, or take a board with more"
