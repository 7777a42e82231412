"""How well hardware was used, from the record of a round; or from several, each sum over what is known in all of it.

The measures are those of arXiv 2310.03150 (Federated Fine-Tuning of LLMs on the Very Edge), spelt out:

- **compute seconds** T_comp = data + forward + backward + optimizer: whole steps, so that waiting for data lowers a
  utilization, and loading, evaluating and transferring do not.
- **MFU** (model FLOPs utilization, arXiv 2204.02311) = model FLOPs / (T_comp × peak FLOP/s). Model FLOPs are analytic
  and of real tokens: padding and recomputation are no useful work. *Live*: against the matrix-product rate that was
  measured on the device; *sheet*: against what the board's data sheet says for its power mode.
- **tokens/s** (TPS) = (source + target tokens) / T_comp.
- **η_e** = TPS / mean watts, in tokens per second per watt, which is tokens per joule.
- **granularity** G = T_comp / T_comm with T_comm = download + upload seconds: below 1 the network is the bottleneck.

A figure that cannot be had is null and says why; it is never 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from edgefed.devices.usage import HardwareUse
from edgefed.protocol.records import RoundRecord

__all__ = ["Figure", "Utilization", "measure", "summarize"]


class Figure(msgspec.Struct, frozen=True):
    """A number, or null and the reason why there is none.

    Attributes:
        value: null where it is not known.
        reason: why not; or, with a value, what it leaves out; "" when nothing is.
    """

    value: float | None
    reason: str = ""

    @classmethod
    def unknown(cls, reason: str) -> Figure:
        """Returns a figure without a value."""
        return cls(None, reason)


class Utilization(msgspec.Struct, frozen=True, kw_only=True):
    """The measures of one device over one round or several.

    Attributes:
        compute_s: seconds of whole steps (T_comp).
        communication_s: seconds of download and upload (T_comm).
        flops_per_s: model FLOPs per compute second.
        mfu_live: share of the measured peak, 0.25 being a quarter.
        mfu_sheet: share of the data sheet's peak.
        tokens_per_s: source and target tokens per compute second.
        mean_w: mean power over the measured window.
        joules: energy of the measured window.
        tokens_per_s_per_w: η_e.
        granularity: T_comp / T_comm.
        peak_memory_bytes: the most that training used.
        predicted_peak_bytes: what the plan expected.
        memory_error: predicted / measured − 1: negative where the plan expected too little.
        step_s: mean seconds of a step.
        predicted_step_s: what the plan expected.
        step_error: predicted / measured − 1.
        cpu_percent: mean load of all cores.
        gpu_percent: mean load of the GPU.
        temperature_max_c: of the hottest sensor.
        throttled_s: seconds below the clock for heat or power.
        download_bytes_per_s, upload_bytes_per_s: while transferring.
    """

    compute_s: Figure
    communication_s: Figure
    flops_per_s: Figure
    mfu_live: Figure
    mfu_sheet: Figure
    tokens_per_s: Figure
    mean_w: Figure
    joules: Figure
    tokens_per_s_per_w: Figure
    granularity: Figure
    peak_memory_bytes: Figure
    predicted_peak_bytes: Figure
    memory_error: Figure
    step_s: Figure
    predicted_step_s: Figure
    step_error: Figure
    cpu_percent: Figure
    gpu_percent: Figure
    temperature_max_c: Figure
    throttled_s: Figure
    download_bytes_per_s: Figure
    upload_bytes_per_s: Figure


def measure(record: RoundRecord) -> Utilization:
    """Returns the measures of one round."""
    return summarize([record])


def summarize(records: Sequence[RoundRecord]) -> Utilization:
    """Returns the measures of a device over its rounds.

    Rates and shares are ratios of sums, so that long rounds count for more; a round that lacks one of the two numbers
    is left out of both sums, and the reason says so. Peaks and temperatures are maxima. Power, energy and load are
    those of all rounds, also of ones that only evaluate; η_e is that of training.
    """
    trained = [record for record in records if record.steps and _compute_s(record) > 0]
    compute = _sum(trained, _compute_s, "nothing was trained")
    peak_memory = _largest(trained, lambda r: r.peak_memory_bytes or r.peak_resident_bytes, "memory was not measured")
    predicted_peak = _largest(trained, lambda r: r.predicted_peak_bytes, "no plan predicted it")
    used = [record for record in records if record.use is not None]
    used_in_training = [record for record in trained if record.use is not None]
    energy_reason = _energy_reason(records)
    step = _ratio(trained, _compute_s, lambda r: r.steps, "nothing was trained")
    predicted_step = _ratio(trained, _predicted_compute_s, lambda r: r.steps, "no plan predicted it")
    return Utilization(
        compute_s=compute,
        communication_s=_sum(records, _communication_s, "the time of the upload is not known"),
        flops_per_s=_ratio(trained, lambda r: r.model_flops, _compute_s, _WHY_NO_FLOPS),
        mfu_live=_ratio(trained, lambda r: r.model_flops, _peak_work(lambda r: r.live_peak_flops_per_s), _why_no_mfu(
            trained, lambda r: r.live_peak_flops_per_s, "no peak rate was measured on the device")),
        mfu_sheet=_ratio(trained, lambda r: r.model_flops, _peak_work(lambda r: r.sheet_peak_flops_per_s), _why_no_mfu(
            trained, lambda r: r.sheet_peak_flops_per_s, "no data sheet is known for this machine and precision")),
        tokens_per_s=_ratio(trained, _tokens, _compute_s, _why_no_tokens(trained)),
        mean_w=_ratio(used, _watt_seconds, _measured_s, energy_reason),
        joules=_sum(used, _joules, energy_reason),
        tokens_per_s_per_w=_divide(
            _ratio(used_in_training, _tokens, _compute_s, _why_no_tokens(used_in_training, energy_reason)),
            _ratio(used_in_training, _watt_seconds, _measured_s, energy_reason),
        ),
        granularity=_ratio(trained, _compute_s, _communication_s, "the time of the transfers is not known"),
        peak_memory_bytes=peak_memory,
        predicted_peak_bytes=predicted_peak,
        memory_error=_error(predicted_peak, peak_memory),
        step_s=step,
        predicted_step_s=predicted_step,
        step_error=_error(predicted_step, step),
        cpu_percent=_windowed_mean(used, _in_use(lambda use: use.cpu_percent), "the load was not sampled"),
        gpu_percent=_windowed_mean(used, _in_use(lambda use: use.gpu_percent), "there is no GPU, or it tells no load"),
        temperature_max_c=_largest(used, _in_use(lambda use: use.temperature_max_c), "no temperature sensor was read"),
        throttled_s=_sum(used, _in_use(lambda use: use.throttled_s), "the hardware does not tell"),
        download_bytes_per_s=_ratio(
            [r for r in records if r.download_bytes], lambda r: r.download_bytes, lambda r: r.download_s,
            "nothing was downloaded"),
        upload_bytes_per_s=_ratio(
            [r for r in records if r.upload_bytes], lambda r: r.upload_bytes, lambda r: r.upload_s,
            "the time of the upload is not known"),
    )  # fmt: skip


Read = Callable[[RoundRecord], "float | None"]

_WHY_NO_FLOPS = "the device did not count model FLOPs"


def _in_use(read: Callable[[HardwareUse], float | None]) -> Read:
    return lambda record: None if record.use is None else read(record.use)


def _compute_s(record: RoundRecord) -> float:
    return record.data_s + record.forward_s + record.backward_s + record.optimizer_s


def _communication_s(record: RoundRecord) -> float | None:
    if record.upload_s is None:
        return None if record.upload_bytes else record.download_s
    return record.download_s + record.upload_s


def _tokens(record: RoundRecord) -> float | None:
    return None if record.epsilon is not None else record.source_tokens + record.target_tokens


def _why_no_tokens(trained: Sequence[RoundRecord], otherwise: str = "nothing was trained") -> str:
    private = any(record.epsilon is not None for record in trained)
    return "private training does not tell how many tokens it read" if private else otherwise


def _joules(record: RoundRecord) -> float | None:
    return record.use.energy.joules if record.use else None


def _watt_seconds(record: RoundRecord) -> float | None:
    measured_s = _measured_s(record)
    watts = record.use.energy.mean_w if record.use else None
    return None if watts is None or measured_s is None else watts * measured_s


def _measured_s(record: RoundRecord) -> float | None:
    return record.use.window_s * record.use.energy.measured_share if record.use else None


def _predicted_compute_s(record: RoundRecord) -> float | None:
    return None if record.predicted_step_s is None else record.predicted_step_s * record.steps


def _peak_work(peak: Read) -> Read:
    def work(record: RoundRecord) -> float | None:
        flops_per_s = peak(record)
        return None if flops_per_s is None else flops_per_s * _compute_s(record)

    return work


def _why_no_mfu(records: Sequence[RoundRecord], peak: Read, without_peak: str) -> str:
    if not records:
        return "nothing was trained"
    no_flops = any(record.model_flops is None for record in records)
    no_peak = any(peak(record) is None for record in records)
    return "; ".join(why for why, holds in ((_WHY_NO_FLOPS, no_flops), (without_peak, no_peak)) if holds)


def _energy_reason(records: Sequence[RoundRecord]) -> str:
    """Returns why there are no joules, in the devices' own words where they gave any."""
    said = dict.fromkeys(r.use.energy.reason for r in records if r.use and r.use.energy.reason)
    return "; ".join(said) or "power was not sampled"


def _sum(records: Sequence[RoundRecord], read: Read, why: str) -> Figure:
    known = [value for record in records if (value := read(record)) is not None]
    return Figure(sum(known), _left_out(len(known), len(records), why)) if known else Figure.unknown(why)


def _largest(records: Sequence[RoundRecord], read: Read, why: str) -> Figure:
    known = [value for record in records if (value := read(record)) is not None]
    return Figure(max(known)) if known else Figure.unknown(why)


def _ratio(records: Sequence[RoundRecord], above: Read, below: Read, why: str) -> Figure:
    pairs = [(above(record), below(record)) for record in records]
    known = [(a, b) for a, b in pairs if a is not None and b is not None]
    total = sum(b for _, b in known)
    if total <= 0:
        return Figure.unknown("it took no measurable time" if known else why)
    return Figure(sum(a for a, _ in known) / total, _left_out(len(known), len(records), why))


def _windowed_mean(records: Sequence[RoundRecord], read: Read, why: str) -> Figure:
    def weighted(record: RoundRecord) -> float | None:
        value = read(record)
        return None if value is None or record.use is None else value * record.use.window_s

    return _ratio(records, weighted, _in_use(lambda use: use.window_s), why)


def _divide(above: Figure, below: Figure) -> Figure:
    if above.value is None or below.value is None:
        return Figure.unknown(above.reason if above.value is None else below.reason)
    if below.value <= 0:
        return Figure.unknown("the sensor shows no power")
    return Figure(above.value / below.value, above.reason or below.reason)


def _error(predicted: Figure, measured: Figure) -> Figure:
    """Returns predicted / measured − 1."""
    ratio = _divide(predicted, measured)
    return ratio if ratio.value is None else Figure(ratio.value - 1.0, ratio.reason)


def _left_out(known: int, all_: int, why: str) -> str:
    return "" if known == all_ else f"from {known} of {all_} rounds: {why or 'not known in the others'}"
