"""Which memory training may use: counted once, within the limit of a control group."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgefed.devices.gpu import GpuProfile
from edgefed.devices.memory import HostMemory, count_oom_kills, read_host_memory, training_memory

GIB = 1 << 30


def gpu(*, integrated: bool, total: int, free: int) -> GpuProfile:
    return GpuProfile(
        name="a GPU",
        compute_capability=8.7,
        integrated=integrated,
        memory_total_bytes=total,
        memory_free_bytes=free,
        sm_count=8,
    )


def group(root: Path, path: str, *, limit: str, used: int, cache: int = 0) -> None:
    directory = root / "sys/fs/cgroup" / path
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "memory.max").write_text(f"{limit}\n")
    (directory / "memory.current").write_text(f"{used}\n")
    (directory / "memory.stat").write_text(f"anon 5\ninactive_file {cache}\nslab_reclaimable 0\n")
    (root / "proc/self").mkdir(parents=True, exist_ok=True)


HOST = HostMemory(total_bytes=8 * GIB, available_bytes=6 * GIB)


def test_without_a_gpu_it_is_the_hosts() -> None:
    memory = training_memory(HOST, None)
    assert (memory.kind, memory.total_bytes, memory.available_bytes) == ("host", 8 * GIB, 6 * GIB)


def test_shared_memory_is_counted_once_and_what_the_host_could_reclaim_is_available() -> None:
    """The runtime says that 1.5 GiB are free, because it leaves out the file cache; 6 GiB are available."""
    memory = training_memory(HOST, gpu(integrated=True, total=8 * GIB, free=3 * GIB // 2))
    assert (memory.kind, memory.total_bytes, memory.available_bytes) == ("unified", 8 * GIB, 6 * GIB)


def test_a_runtime_that_can_address_less_than_the_host_has_sets_the_limit() -> None:
    memory = training_memory(HOST, gpu(integrated=True, total=4 * GIB, free=GIB))
    assert (memory.total_bytes, memory.available_bytes) == (4 * GIB, 4 * GIB)


def test_a_card_has_memory_of_its_own() -> None:
    memory = training_memory(HOST, gpu(integrated=False, total=24 * GIB, free=23 * GIB))
    assert (memory.kind, memory.total_bytes, memory.available_bytes) == ("discrete", 24 * GIB, 23 * GIB)
    assert memory.host == HOST


def test_this_machine_has_memory() -> None:
    host = read_host_memory()
    assert 0 < host.available_bytes <= host.total_bytes


@pytest.mark.parametrize("where", ["", "system.slice/edgefed-agent.service"])
def test_the_limit_of_a_control_group_counts(tmp_path: Path, where: str) -> None:
    """64 MiB are the limit, 40 are used, 10 of them are file cache that can go: 34 are left."""
    mebi = 1 << 20
    group(tmp_path, where, limit=str(64 * mebi), used=40 * mebi, cache=10 * mebi)
    (tmp_path / "proc/self/cgroup").write_text(f"0::/{where}\n")
    host = read_host_memory(tmp_path)
    assert (host.total_bytes, host.available_bytes, host.limited_by) == (64 * mebi, 34 * mebi, "cgroup")
    assert "within the control group" in training_memory(host, None).method


def test_the_limit_of_a_slice_around_the_service_counts_too(tmp_path: Path) -> None:
    mebi = 1 << 20
    group(tmp_path, "edge.slice", limit=str(32 * mebi), used=mebi)
    group(tmp_path, "edge.slice/agent.service", limit="max", used=mebi)
    (tmp_path / "proc/self/cgroup").write_text("0::/edge.slice/agent.service\n")
    assert read_host_memory(tmp_path).available_bytes == 31 * mebi


def test_the_older_control_groups_limit_too(tmp_path: Path) -> None:
    mebi = 1 << 20
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("9:name=systemd:/\n4:cpu,memory:/docker/1\n0::/\n")
    group = tmp_path / "sys/fs/cgroup/memory/docker/1"
    group.mkdir(parents=True)
    (group / "memory.limit_in_bytes").write_text(f"{64 * mebi}\n")
    (group / "memory.usage_in_bytes").write_text(f"{40 * mebi}\n")
    (group / "memory.stat").write_text(f"inactive_file 1\ntotal_inactive_file {8 * mebi}\n")
    host = read_host_memory(tmp_path)
    assert (host.total_bytes, host.available_bytes, host.limited_by) == (64 * mebi, 32 * mebi, "cgroup")
    (group / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert read_host_memory(tmp_path).limited_by == ""


@pytest.mark.parametrize("cgroup", ["", "0::/../outside\n", "4:memory:/docker/1\n", "0::/\n"])
def test_without_a_limit_it_is_the_whole_machine(tmp_path: Path, cgroup: str) -> None:
    group(tmp_path, "", limit="max", used=5)
    (tmp_path / "proc/self/cgroup").write_text(cgroup)
    host = read_host_memory(tmp_path)
    assert host.limited_by == ""
    assert host.total_bytes == read_host_memory(tmp_path / "nothing").total_bytes


def test_the_kernels_count_of_those_it_ended_for_memory(tmp_path: Path) -> None:
    assert count_oom_kills(tmp_path) is None
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/vmstat").write_text("nr_free_pages 5\noom_kill 12\nnuma_hit 3\n")
    assert count_oom_kills(tmp_path) == 12
    (tmp_path / "proc/vmstat").write_text("nr_free_pages 5\n")
    assert count_oom_kills(tmp_path) is None
    assert count_oom_kills() is not None
