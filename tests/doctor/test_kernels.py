"""Libraries that compute, that crash, that hang, that lie, and that are not there."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import psutil
import pytest

from edgefed.agent.options import Worker
from edgefed.devices.flashed import FLASH_RECORD
from edgefed.devices.gpu import nvidia_driver_is_there
from edgefed.doctor.examination import Examined
from edgefed.doctor.findings import Board
from edgefed.doctor.kernels import try_kernels

MakeBoard = Callable[..., Board]
Look = Callable[[Board, str], Examined]


@pytest.fixture
def put(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Puts a package that does something of its own in front of the real one."""

    def put(name: str, code: str) -> None:
        place = tmp_path / "before"
        (place / name).mkdir(parents=True)
        (place / name / "__init__.py").write_text(code)
        monkeypatch.syspath_prepend(str(place))
        monkeypatch.setenv("PYTHONPATH", ":".join([str(place), *filter(None, sys.path[1:])]))

    return put


def is_alive(process_id: int) -> bool:
    try:
        return psutil.Process(process_id).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.torch
def test_torch_computes(board: MakeBoard, look: Look) -> None:
    examined = look(board(), "torch")
    assert examined.status == "ok", examined
    said = [finding.seen for finding in examined.findings]
    assert said[0].startswith("torch 2")
    assert "ran: fp32 matrix product and its backward on cpu" in said


@pytest.mark.torch
def test_bitsandbytes_computes(board: MakeBoard, look: Look) -> None:
    examined = look(board(), "bitsandbytes")
    assert examined.status == "ok", examined
    said = " ".join(finding.seen for finding in examined.findings)
    assert "ran: nf4" in said
    assert "ran: int8" in said


@pytest.mark.torch
@pytest.mark.skipif(nvidia_driver_is_there(), reason="there may be a GPU")
def test_a_gpu_that_the_owner_wants_and_that_is_not_there(board: MakeBoard, look: Look) -> None:
    met = board()
    assert met.options is not None
    wanted = msgspec.structs.replace(met.options, worker=Worker(device="cuda"))
    examined = look(dataclasses.replace(met, options=wanted), "torch")
    assert examined.status == "problem"
    assert "find a GPU: there is no NVIDIA driver on this machine" in [finding.seen for finding in examined.findings]


def test_onnxruntime_computes_where_it_is_installed(board: MakeBoard, look: Look) -> None:
    pytest.importorskip("onnxruntime", reason="nothing in edgefed needs it")
    examined = look(board(), "onnxruntime")
    assert examined.status == "ok", examined
    assert "ran: matrix product by CPUExecutionProvider" in [finding.seen for finding in examined.findings]


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import os; os.abort()", "ended by SIGABRT"),
        ("import os; os.kill(os.getpid(), 4)", "another processor"),
        ("import os; os.kill(os.getpid(), 9)", "want of memory"),
        (
            "import sys; sys.stderr.write('the driver is too old\\n'); sys.exit(3)",
            "code 3 (it wrote: the driver is too",
        ),
        ("raise ImportError('libcudart.so.12: cannot open shared object file')", "libcudart.so.12"),
        ("raise RuntimeError('no driver')", "no driver"),
        ("import nowhere", "No module named 'nowhere'"),
    ],
)
def test_a_torch_that_does_not_come_up(
    board: MakeBoard, look: Look, put: Callable[[str, str], None], code: str, said: str
) -> None:
    put("torch", code)
    examined = look(board(), "torch")
    assert examined.status == "problem"
    assert [finding.seen.startswith("import torch: ") for finding in examined.findings] == [True]
    assert said in examined.findings[0].seen


def test_a_torch_that_hangs_takes_what_it_started_with_it(
    board: MakeBoard, look: Look, put: Callable[[str, str], None], tmp_path: Path
) -> None:
    started = tmp_path / "started"
    put(
        "torch",
        "import pathlib, subprocess, time\n"
        "child = subprocess.Popen(['sleep', '600'])\n"
        f"pathlib.Path({str(started)!r}).write_text(str(child.pid))\n"
        "time.sleep(600)\n",
    )
    examined = look(dataclasses.replace(board(), kernel_patience_s=8), "torch")
    assert examined.findings[0].seen == "import torch: no end after 8 s"
    for _ in range(3000):  # it was killed, and may take its time to die
        if not is_alive(int(started.read_text())):
            return
        time.sleep(0.02)
    pytest.fail("what torch had started goes on without it")


def test_a_library_that_fails_in_its_first_kernel_only(
    board: MakeBoard, look: Look, put: Callable[[str, str], None]
) -> None:
    put(
        "torch",
        "__version__ = '2.99'\n"
        "float32 = bfloat16 = 0\n"
        "def ones(*sizes, **how): raise RuntimeError('named symbol not found\\nin a kernel')\n",
    )
    found = look(board(), "torch").findings
    assert [finding.status for finding in found] == ["ok", "problem", "problem"]
    assert found[0].seen == "torch 2.99"
    assert found[1].seen == "fp32 matrix product and its backward on cpu: named symbol not found"


@pytest.mark.parametrize(("wanted", "status"), [("auto", "note"), ("bf16", "note"), ("nf4", "problem")])
def test_bitsandbytes_stops_only_who_wants_it(
    board: MakeBoard, look: Look, put: Callable[[str, str], None], wanted: str, status: str
) -> None:
    put("bitsandbytes", "raise RuntimeError('no kernels')")
    examined = look(board(f'limits.quantization = "{wanted}"'), "bitsandbytes")
    assert examined.status == status
    assert "import bitsandbytes: no kernels" in examined.findings[0].seen


@pytest.mark.parametrize(("library", "status"), [("torch", "note"), ("bitsandbytes", "note"), ("onnxruntime", "ok")])
def test_what_is_not_installed(
    board: MakeBoard, look: Look, put: Callable[[str, str], None], library: str, status: str
) -> None:
    put(library, f"raise ModuleNotFoundError('No module named {library}', name='{library}')")  # as Python says it
    (found,) = look(board(), library).findings
    assert found.status == status
    assert found.seen.startswith(f"{library} is not installed")


@pytest.mark.parametrize("library", ["torch", "bitsandbytes"])
def test_what_is_missing_comes_the_way_that_the_environment_came(
    board: MakeBoard, look: Look, put: Callable[[str, str], None], library: str
) -> None:
    put(library, f"raise ModuleNotFoundError('No module named {library}', name='{library}')")
    met = board()
    assert look(met, library).findings[0].remedy == "pip install 'edgefed[train]'"
    record = met.root / FLASH_RECORD.lstrip("/")
    record.parent.mkdir(parents=True)
    record.write_text("{}")
    remedy = look(met, library).findings[0].remedy
    assert remedy.startswith(f"put the wheels of {library} into the wheelhouse")
    assert "--upgrade" in remedy


def test_lines_that_a_library_prints_itself_are_left_aside() -> None:
    program = "print('loading'); print('[1]'); print('{\"ran\": \"x\"}'); print('{\"end\": true}')"
    tried = try_kernels("torch", "cpu", patience_s=60, command=(sys.executable, "-c", program))
    assert tried.ran == ["x"]
    assert not tried.failed
