from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable

import msgspec
import pytest

from edgefed.errors import ConfigError
from edgefed.protocol.records import RoundRecord
from edgefed.reports.build import build_report
from edgefed.reports.comparison import compare
from edgefed.reports.report import Report
from edgefed.reports.run_records import RunRecords
from edgefed.reports.tables import CSV_COLUMNS, render_csv, render_json
from tests.reports.made_runs import HOSTILE, make_run


def read_csv(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_totals_are_the_sums_of_their_parts(whole: Report) -> None:
    totals = whole.totals
    assert (totals.devices, totals.emulated, len(whole.device_rounds)) == (6, 2, 36)
    assert totals.counted == 29
    assert totals.refused == 1
    assert totals.tokens == 30 * (7350 + 2633)
    assert totals.upload_bytes == sum(one.upload_bytes for one in whole.rounds)
    assert totals.download_bytes == sum(one.download_bytes for one in whole.rounds)
    assert [one.kind for one in whole.rounds] == ["train"] * 5 + ["evaluate"]


def test_energy_of_emulated_devices_is_not_added_up(whole: Report) -> None:
    own = [device.use.joules.value for device in whole.devices if device.emulated is None]
    assert whole.totals.joules.value == pytest.approx(sum(value for value in own if value is not None))
    emulated = [device.device for device in whole.devices if device.emulated]
    only = build_report(make_run(), device=emulated[0])
    assert only.totals.joules.value is None
    assert "share one machine" in only.totals.joules.reason


def test_energy_of_agents_that_share_a_machine_is_not_added_up() -> None:
    run = make_run()

    def shared(record: RoundRecord, agents: int) -> RoundRecord:
        if record.use is None:
            return record
        energy = msgspec.structs.replace(record.use.energy, agents=agents)
        return msgspec.structs.replace(record, use=msgspec.structs.replace(record.use, energy=energy))

    def with_agents(agents: Callable[[str], int]) -> Report:
        deliveries = [
            msgspec.structs.replace(one, record=one.record and shared(one.record, agents(one.device)))
            for one in run.deliveries
        ]
        return build_report(msgspec.structs.replace(run, deliveries=deliveries))

    nobody = with_agents(lambda _: 2).totals.joules
    assert nobody.value is None
    assert nobody.reason == "several agents share one machine, whose energy cannot be told apart by device"
    one = with_agents(lambda device: 1 if device == "agx-01" else 5)
    (agx,) = (device for device in one.devices if device.device == "agx-01")
    assert one.totals.joules.value == pytest.approx(agx.use.joules.value)


def test_the_loss_is_the_round_machines(whole: Report) -> None:
    rows = [row for row in whole.device_rounds if row.round == 2 and row.outcome == "counted"]
    found = [row.record.evaluation for row in rows if row.record is not None and row.record.evaluation is not None]
    tokens = sum(one.target_tokens for one in found)
    assert whole.rounds[1].loss.value == pytest.approx(sum(one.loss * one.target_tokens for one in found) / tokens)


def test_one_device() -> None:
    report = build_report(make_run(), device="agx-01")
    assert [device.device for device in report.devices] == ["agx-01"]
    assert {row.device for row in report.device_rounds} == {"agx-01"}
    with pytest.raises(ConfigError, match=r"no device 'agx' .* those that did: 4060-03, agx-01"):
        build_report(make_run(), device="agx")


def test_a_run_in_which_nothing_happened_yet() -> None:
    empty = RunRecords(name="new", run="0", fleet="f", model="m", method="lora, delta")
    report = build_report(empty)
    assert (report.devices, report.rounds, report.totals.wall_s) == ((), (), None)
    assert read_csv(render_csv(report)) == []


def test_csv_has_a_line_per_device_and_round_and_no_zero_for_the_unknown(whole: Report) -> None:
    lines = read_csv(render_csv(whole))
    assert len(lines) == len(whole.device_rounds)
    assert tuple(lines[0]) == CSV_COLUMNS
    row = next(line for line in lines if line["device"] == "pi-02" and line["round"] == "1")
    assert row["joules"] == row["mfu_sheet"] == ""
    assert "permission denied" in row["unknown"]
    assert float(row["compute_s"]) == pytest.approx(
        sum(float(row[name]) for name in ("data_s", "forward_s", "backward_s", "optimizer_s"))
    )
    poor = read_csv(render_csv(build_report(make_run(known=False))))[0]
    assert {name for name in ("mfu_live", "tokens_per_s_per_w", "upload_s") if poor[name]} == {"upload_s"}


def test_csv_disarms_formulas() -> None:
    run = make_run(1, 1)
    formula = msgspec.structs.replace(run.deliveries[0], outcome="rejected", reason='=HYPERLINK("x")')
    text = render_csv(build_report(msgspec.structs.replace(run, deliveries=(formula,))))
    assert read_csv(text)[0]["outcome_reason"] == '\'=HYPERLINK("x")'


def test_json_is_the_report_and_reads_back(whole: Report) -> None:
    text = render_json(whole)
    assert msgspec.json.decode(text, type=Report) == whole
    document = json.loads(text)
    assert document["schema"] == "edgefed-report/1"
    assert sorted(document) == [
        "device_rounds", "devices", "fleet", "method", "model", "name", "rounds", "run", "schema", "totals",
    ]  # fmt: skip
    assert document["devices"][-1]["use"]["mfu_sheet"] == {
        "value": None,
        "reason": "no data sheet is known for this machine and precision",
    }


def test_two_runs_side_by_side(whole: Report) -> None:
    before = build_report(make_run(7, seed=2, name="before"))
    comparison = compare(before, whole)
    assert comparison.only_before == ("jetson-06",) or comparison.only_before[0].endswith("06")
    assert comparison.only_after == ()
    for change in comparison.changes:
        if change.change.value is not None:
            assert change.before.value is not None
            assert change.after.value == pytest.approx(change.before.value * (1 + change.change.value))
        else:
            assert change.change.reason
    document = json.loads(render_json(whole, before))
    assert (document["schema"], document["after"]["name"]) == ("edgefed-comparison/1", "run")
    lines = read_csv(render_csv(whole, before))
    assert len(lines) == len(whole.device_rounds) + len(before.device_rounds)


def test_a_run_beside_itself_has_not_changed(whole: Report) -> None:
    assert {one.change.value for one in compare(whole, whole).changes} <= {0.0, None}


def test_hostile_texts_stay_texts_in_csv() -> None:
    lines = read_csv(render_csv(build_report(make_run(hostile=True))))
    assert lines[0]["plan_reason"] == HOSTILE
