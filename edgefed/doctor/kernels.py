"""Whether torch, bitsandbytes and onnxruntime compute here: tried in a process that may crash or hang."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import IO

from edgefed.devices.flashed import read_flashed
from edgefed.doctor.findings import Board, Findings, note, ok, problem

__all__ = ["Tried", "look_at_bitsandbytes", "look_at_onnxruntime", "look_at_torch", "try_kernels"]

_COMMAND = (sys.executable, "-m", "edgefed.training.kernels")
_CRASHES = {
    signal.SIGILL: "it is built for another processor than this one",
    signal.SIGKILL: "the kernel ended it, most likely for want of memory",
    signal.SIGSEGV: "it is built for other libraries or another driver than this system's",
    signal.SIGABRT: "it gave up",
    signal.SIGBUS: "its file is cut off, or memory ran out",
}
_FIRST_TO_END = 900  # of oom_score_adj: should memory run out, this process goes and no other
_INSTALL = "pip install 'edgefed[train]'"
_FLASH = "put the wheels of {} into the wheelhouse that the board was flashed with, and flash it again with --upgrade"
_JETSON = "on Jetson boards take NVIDIA's build of it (Jetson AI Lab's index), or build it there"


@dataclass(slots=True)
class Tried:
    """What became of a library's kernels.

    Attributes:
        about: what it says of itself.
        ran: kernels whose result was right.
        failed: the others, and why.
        missing: why it is not installed; "" where it is.
    """

    about: list[str] = field(default_factory=list)
    ran: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    missing: str = ""


def look_at_torch(board: Board) -> Findings:
    """Yields whether the device can train at all."""
    tried = _try(board, "torch")
    if tried.missing:
        yield note(
            "torch is not installed: the agent comes up and waits, and cannot train", _how_to_install("torch", board)
        )
    yield from _what_ran(tried)
    for kernel, why in tried.failed.items():
        yield problem(f"{kernel}: {why}", f"install a torch that fits this machine; {_JETSON}")


def look_at_bitsandbytes(board: Board) -> Findings:
    """Yields whether the base model may be held in 8 or 4 bits."""
    tried = _try(board, "bitsandbytes")
    if tried.missing:
        yield note("bitsandbytes is not installed: no int8 and no nf4", _how_to_install("bitsandbytes", board))
    yield from _what_ran(tried)
    wanted = board.options.limits.quantization if board.options is not None else "auto"
    for kernel, why in tried.failed.items():
        needed = wanted in ("int8", "nf4") and kernel.startswith((wanted, "import"))
        tell = problem if needed else note
        yield tell(
            f"{kernel}: {why}",
            f"plan without it (limits.quantization = 'fp32' or 'bf16'); {_JETSON} (-DCOMPUTE_CAPABILITY=87 on Orin, "
            "make -j4: more at a time is too much for 8 GB)",
        )


def look_at_onnxruntime(board: Board) -> Findings:
    """Yields whether exported models run here."""
    tried = _try(board, "onnxruntime")
    if tried.missing:
        yield ok("onnxruntime is not installed; only exported models need it")
    yield from _what_ran(tried)
    for kernel, why in tried.failed.items():
        yield note(f"{kernel}: {why}", f"training does not need it; {_JETSON}")


def _how_to_install(library: str, board: Board) -> str:
    """Returns what gets a library onto this board: where its environment was flashed, pip would change it in vain."""
    was_flashed = read_flashed(board.root) != (None, "")  # whether its record can be read or not
    return _FLASH.format(library) if was_flashed else _INSTALL


def _what_ran(tried: Tried) -> Findings:
    if tried.about:
        yield ok("; ".join(tried.about))
    for kernel in tried.ran:
        if not kernel.startswith("import"):  # which proves nothing
            yield ok(f"ran: {kernel}")


def _try(board: Board, library: str) -> Tried:
    hardware = board.options.worker.device if board.options is not None else "auto"
    return try_kernels(library, hardware, patience_s=board.kernel_patience_s)


def try_kernels(library: str, hardware: str, *, patience_s: float, command: Sequence[str] = _COMMAND) -> Tried:
    """Returns what became of a library's kernels; a process that crashes or hangs is told as a kernel that failed.

    Args:
        library: one of `edgefed.training.kernels.LIBRARIES`.
        hardware: `auto`, `cpu` or `cuda`.
        patience_s: how long all of it may take.
        command: that runs them.
    """
    with tempfile.TemporaryFile() as complaints:
        process = subprocess.Popen(
            [*command, library, hardware],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=complaints,
            start_new_session=True,  # what it starts ends with it
        )
        _offer_to_the_kernel(process.pid)
        hung = False
        try:
            out, _ = process.communicate(timeout=patience_s)
        except subprocess.TimeoutExpired:
            hung = True
            out = b""
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        if hung:
            out, _ = process.communicate()
        return _judged(out, process.returncode, _tail(complaints), patience_s if hung else None)


def _judged(out: bytes, code: int, complaint: str, hung_s: float | None) -> Tried:
    tried, begun, ended = Tried(), "start", False
    for line in out.decode(errors="replace").splitlines():
        try:
            said = json.loads(line)
        except ValueError:  # something that the library itself printed
            continue
        if not isinstance(said, dict):
            continue
        begun = str(said.get("begin", begun))
        ended = ended or "end" in said
        if "about" in said:
            tried.about.append(str(said["about"]))
        elif "ran" in said:
            tried.ran.append(str(said["ran"]))
        elif "failed" in said:
            tried.failed[str(said["failed"])] = str(said["why"])
        elif "missing" in said:
            tried.missing = str(said["missing"])
    if not ended:
        tried.failed[begun] = f"no end after {hung_s:g} s" if hung_s is not None else _how_it_ended(code, complaint)
    return tried


def _how_it_ended(code: int, complaint: str) -> str:
    said = f" (it wrote: {complaint})" if complaint else ""
    if code >= 0:
        return f"the process ended with code {code}{said}"
    number = signal.Signals(-code)
    return f"the process was ended by {number.name}: {_CRASHES.get(number, 'a crash')}{said}"


def _tail(complaints: IO[bytes]) -> str:
    """Returns the last line that has something in it."""
    complaints.seek(max(0, complaints.seek(0, os.SEEK_END) - 4096))
    lines = [line.strip() for line in complaints.read().decode(errors="replace").splitlines()]
    return next((line for line in reversed(lines) if line), "")


def _offer_to_the_kernel(process_id: int) -> None:
    with contextlib.suppress(OSError), open(f"/proc/{process_id}/oom_score_adj", "w") as file:  # noqa: PTH123
        file.write(str(_FIRST_TO_END))
