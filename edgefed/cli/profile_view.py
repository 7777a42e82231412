"""A device's profile as people read it: one line per figure, with how it was measured or why it is missing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from edgefed.cli.output import write_table
from edgefed.devices.board_files import find_board
from edgefed.devices.compute import DataType
from edgefed.devices.measurement import Measurement
from edgefed.devices.profile import DeviceProfile
from edgefed.errors import ConfigError

__all__ = ["Line", "describe_board", "human", "print_profile", "profile_lines"]

_PREFIXES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""), (1e-3, "m"), (1e-6, "µ"))


class Line(NamedTuple):
    """One figure: its name, its value or "—", and the method or the reason."""

    name: str
    value: str
    note: str


def human(value: float, unit: str) -> str:
    """Returns three significant digits and a decimal prefix: 1.28 TFLOP/s."""
    for scale, prefix in _PREFIXES:
        if abs(value) >= scale or scale == _PREFIXES[-1][0]:
            return f"{value / scale:.3g} {prefix}{unit}"
    raise AssertionError("the last prefix takes everything")


def describe_board(profile: DeviceProfile) -> str:
    """Returns the board or model in a few words; an emulated one is marked."""
    if profile.emulated is not None:
        return f"{profile.emulated} (emulated)"
    name = profile.board or profile.model or profile.cpu_model or profile.architecture
    return f"{name}, {profile.gpu.name}" if profile.gpu is not None and profile.board is None else name


def profile_lines(profile: DeviceProfile) -> list[Line]:
    """Returns every figure of a profile, those that are missing too."""
    return [
        *_machine(profile),
        *_memory(profile),
        *_compute(profile),
        *_storage(profile),
        *_sensors(profile),
        *_network(profile),
    ]


def print_profile(profile: DeviceProfile) -> None:
    """Writes a profile to stdout, and what looks wrong after it."""
    write_table(("what", "value", "how, or why not"), profile_lines(profile))
    for warning in profile.warnings:
        write_table(("warning",), [(warning,)])


def _machine(profile: DeviceProfile) -> Iterator[Line]:
    if profile.emulated is not None:
        yield Line("emulated board", profile.emulated, "memory, GPU, rates and network are the board's unless they say")
    nameless = "" if profile.model else "neither device tree nor firmware names it; "
    yield Line("machine", profile.model or "—", f"{nameless}{profile.system}, edgefed {profile.edgefed_version}")
    yield from _flashed(profile)
    if profile.emulated is None:
        yield Line("board", profile.board or "—", "" if profile.board else profile.why_null.get("board", ""))
    cpu = profile.cpu
    if cpu is not None:
        cores = f"{cpu.usable} of {cpu.logical} processors may be used"
        yield Line("processor", cpu.model or cpu.architecture, ", ".join((cores, *cpu.instructions)))
        yield _line("processor clock", cpu.clock_max_hz, "Hz")
    gpu = profile.gpu
    if gpu is None:
        yield Line("GPU", "—", profile.why_null.get("gpu", ""))
        return
    kind = "shares the host's memory" if gpu.integrated else "with memory of its own"
    yield Line("GPU", gpu.name, f"compute capability {gpu.compute_capability}, {gpu.sm_count} SMs, {kind}")
    yield _line("GPU clock", gpu.clock_hz, "Hz")


def _flashed(profile: DeviceProfile) -> Iterator[Line]:
    flashed = profile.flashed
    if flashed is not None:
        interrupted = "" if flashed.complete else "; the flashing was interrupted"
        note = f"for {flashed.board}; manifest {flashed.manifest_sha256[:16]}{interrupted}"
        yield Line("flashed by", f"edgefed {flashed.edgefed_version}", note)
    elif unknown := profile.why_null.get("flashed"):
        yield Line("flashed by", "—", unknown)


def _memory(profile: DeviceProfile) -> Iterator[Line]:
    memory = profile.memory
    if memory is None:
        yield Line("memory", "—", profile.why_null.get("memory", ""))
        return
    yield Line("memory", human(memory.total_bytes, "B"), f"{memory.kind}, of which training may use what is available")
    yield Line("memory available", human(memory.available_bytes, "B"), memory.method)


def _compute(profile: DeviceProfile) -> Iterator[Line]:
    compute = profile.compute
    if compute is None:
        yield Line("rates", "—", profile.why_null.get("compute", ""))
        return
    peaks = {} if profile.emulated else _sheet_peaks(profile)
    for name, rate in compute.flops_per_s.items():
        yield _beside_the_sheet(_line(f"{name} rate", rate, "FLOP/s"), rate, peaks.get(name))
    yield _line("memory bandwidth", compute.memory_bandwidth_bytes_per_s, "B/s")
    if profile.emulated and profile.real is not None and profile.real.compute is not None:
        for name, rate in profile.real.compute.flops_per_s.items():
            yield _line(f"{name} rate of this machine", rate, "FLOP/s")


def _sheet_peaks(profile: DeviceProfile) -> Mapping[DataType, float]:
    """Returns the peaks of the board in the live power mode; {} where its sheet does not know it.

    That of int8 is left out: what is measured there is a layer that multiplies in another type.
    """
    if profile.board is None or profile.compute is None:
        return {}
    mode = profile.power.mode if profile.power else None
    try:
        board = find_board(profile.board)
        peaks = board.in_mode(mode).peaks
    except ConfigError:
        return {}
    if (profile.compute.hardware == "cuda") != bool(board.gpu):
        return {}
    return {kind: peak for kind, peak in peaks.items() if kind != "int8"}


def _beside_the_sheet(line: Line, rate: Measurement, peak: float | None) -> Line:
    if peak is None or rate.value is None:
        return line
    return line._replace(note=f"{line.note}; {rate.value / peak:.0%} of the sheet's {human(peak, 'FLOP/s')}")


def _storage(profile: DeviceProfile) -> Iterator[Line]:
    storage = profile.storage
    if storage is None:
        yield Line("storage", "—", profile.why_null.get("storage", ""))
        return
    yield Line("storage free", human(storage.free_bytes, "B"), f"of {human(storage.total_bytes, 'B')}")
    yield _line("storage read", storage.read_bytes_per_s, "B/s")
    yield _line("storage write", storage.write_bytes_per_s, "B/s")
    yield _line("storage sync", storage.sync_s, "s")


def _sensors(profile: DeviceProfile) -> Iterator[Line]:
    power, thermal = profile.power, profile.thermal
    if power is None:
        yield Line("power", "—", profile.why_null.get("power", ""))
    else:
        yield Line("power mode", power.mode or "—", power.mode_reason)
        for sensor in power.sensors:
            used = "energy is told by it; " if sensor.used else ""
            yield Line(f"power sensor {sensor.name}", sensor.scope, f"{used}{sensor.method}: {sensor.coverage}")
        for missing in power.absent:
            name = missing.name if missing.name.endswith("power sensor") else f"power sensor {missing.name}"
            yield Line(name, "—", "; ".join(filter(None, (missing.reason, missing.remedy))))
    if thermal is not None:
        hottest = max(thermal.temperature_c.items(), key=lambda zone: zone[1], default=None)
        value = "—" if hottest is None else f"{hottest[1]:.1f} °C"
        yield Line("temperature", value, thermal.reason if hottest is None else f"{hottest[0]}, the hottest zone")
        if thermal.throttled is not None:
            yield Line("throttled", "yes" if thermal.throttled else "no", "cooling devices of the kernel")


def _network(profile: DeviceProfile) -> Iterator[Line]:
    network = profile.network
    if network is None:
        yield Line("network", "—", profile.why_null.get("network", ""))
        return
    yield _line("network latency", network.latency_s, "s")
    yield _line("network up", network.uplink_bytes_per_s, "B/s")
    yield _line("network down", network.downlink_bytes_per_s, "B/s")


def _line(name: str, figure: Measurement, unit: str) -> Line:
    if figure.value is None:
        return Line(name, "—", figure.reason)
    return Line(name, human(figure.value, unit), figure.method)
