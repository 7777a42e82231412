"""Storage measured with a real file on a real file system."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgefed.devices import storage
from edgefed.devices.storage import measure_storage


def test_a_directory_is_measured_and_left_as_it_was(tmp_path: Path) -> None:
    measured = measure_storage(tmp_path, size_bytes=8 << 20, budget_s=1.0)
    for figure in (measured.read_bytes_per_s, measured.write_bytes_per_s):
        assert figure.value is not None
        assert "MiB in order" in figure.method
    assert measured.sync_s.value is not None
    assert 0 < measured.free_bytes <= measured.total_bytes
    assert measured.file_system
    assert list(tmp_path.iterdir()) == []


def test_memory_that_looks_like_a_disk_is_told_as_such() -> None:
    place = Path("/dev/shm")
    if not os.access(place, os.W_OK):
        pytest.skip("there is no writable tmpfs at /dev/shm")
    measured = measure_storage(place, size_bytes=4 << 20, budget_s=1.0)
    assert measured.file_system == "tmpfs"
    assert "memory, not a device" in measured.write_bytes_per_s.method


def test_a_slow_device_gets_no_more_than_its_time(tmp_path: Path) -> None:
    measured = measure_storage(tmp_path, size_bytes=1 << 40, budget_s=0.05)
    assert measured.write_bytes_per_s.value is not None
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_a_null_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"total": 1 << 30, "free": 1 << 20})
    monkeypatch.setattr(storage.psutil, "disk_usage", lambda _: usage)
    measured = measure_storage(tmp_path)
    assert measured.write_bytes_per_s.value is None
    assert "only 1048576 bytes are free" in measured.write_bytes_per_s.reason


def test_a_limit_that_strikes_while_writing_is_a_null_with_the_reason(tmp_path: Path) -> None:
    """In a process of its own, whose files may not grow beyond 1 MiB: what a full disk or a quota looks like."""
    import subprocess
    import sys

    code = (
        "import resource, signal, sys; from pathlib import Path\n"
        "from edgefed.devices.storage import measure_storage\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\n"
        "print(measure_storage(Path(sys.argv[1]), size_bytes=8 << 20).write_bytes_per_s.reason)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True, cwd=Path.cwd()
    )
    assert "a test file could not be written: File too large" in done.stdout
    assert list(tmp_path.iterdir()) == []
