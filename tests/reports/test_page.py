from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest

from edgefed.devices.usage import Energy, HardwareUse
from edgefed.errors import ConfigError
from edgefed.reports.build import build_report
from edgefed.reports.page import render_page
from edgefed.reports.reference import BenchFile, BenchResult, read_references
from edgefed.reports.report import Report
from edgefed.reports.run_records import Delivery, RunRecords
from edgefed.reports.tables import render_csv, render_json
from tests.reports.made_runs import HOSTILE, make_run

VOID = {"meta", "br", "hr", "img", "link", "input"}
SECTIONS = {
    "fleet",
    "phases",
    "timeline",
    "loss",
    "mfu",
    "eta",
    "memory",
    "traffic",
    "rounds",
    "devices",
    "definitions",
}


class Page(HTMLParser):
    """What a page consists of; complains about what is not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.ids: list[str] = []
        self.texts: list[str] = []
        self.bars: dict[str, int] = {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        self.ids += [value for name, value in attrs if name == "id" and value]
        if tag == "rect" and self.ids:
            self.bars[self.ids[-1]] = self.bars.get(self.ids[-1], 0) + 1
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def check_self_contained(page: Page) -> None:
    assert not {"script", "link", "img", "iframe", "object", "embed", "base", "form", "a"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on") or name in ("src", "href", "action")]
    assert len(page.ids) == len(set(page.ids))
    style = page.texts[page.tags.index("style")] if "style" in page.tags else ""
    assert "url(" not in style
    assert "@import" not in style


@pytest.mark.parametrize(
    ("devices", "rounds", "known"), [(6, 5, True), (6, 5, False), (1, 1, True), (60, 3, True), (2, 40, False)]
)
def test_a_page_of_any_run(devices: int, rounds: int, known: bool) -> None:
    report = build_report(make_run(devices, rounds, known=known))
    page = Page(render_page(report))
    check_self_contained(page)
    assert set(page.ids) == SECTIONS
    assert page.tags.count("article") == devices
    for device in report.devices:
        assert page.text.count(device.device) >= 3
    assert page.tags.count("tr") == (1 + devices) + (1 + rounds + 1) + devices * (1 + rounds + 1)
    assert page.bars["phases"] == devices * 9 + 9  # each phase of each device, and the legend
    assert (page.bars.get("mfu", 0) > 2) == known


def test_a_device_that_measured_its_energy_shows_how_much_and_how() -> None:
    run = make_run(1, 1)
    (delivery,) = (one for one in run.deliveries if one.round == 1)
    assert delivery.record is not None
    energy = Energy(
        joules=618.0, mean_w=12.0, method="ina3221", scope="module", coverage="VDD_IN: the module, not its carrier",
        measured_share=1.0,
    )  # fmt: skip
    record = msgspec.structs.replace(
        delivery.record, data_s=0.0, forward_s=20.0, backward_s=25.0, optimizer_s=5.0, source_tokens=7350,
        target_tokens=2650, emulated=None, use=HardwareUse(window_s=51.5, samples=103, energy=energy),
    )  # fmt: skip
    report = build_report(msgspec.structs.replace(run, deliveries=[msgspec.structs.replace(delivery, record=record)]))
    (use,) = (device.use for device in report.devices)
    assert use.joules.value == report.totals.joules.value == 618.0
    assert use.tokens_per_s_per_w.value == pytest.approx(200 / 12)
    page = Page(render_page(report))
    for shown in ("618 J", "12.0 W", "16.7", "ina3221, scope: module, 100% of the time measured, VDD_IN: the module"):
        assert shown in page.text, shown
    assert page.bars["eta"] > 0


def test_widths_stay_on_the_paper(whole: Report) -> None:
    for name, value in Page(render_page(whole)).attributes:
        if name in ("x", "width", "x1", "x2", "cx") and value.endswith("%"):
            assert 0 <= float(value[:-1]) <= 100


def test_hostile_texts_stay_texts() -> None:
    report = build_report(make_run(hostile=True))
    text = render_page(report, before=report)
    page = Page(text)
    check_self_contained(page)
    assert "<script" not in text
    assert "<img" not in text
    assert HOSTILE in page.text, "shown as it is"
    assert "{{7*7}}" in page.text
    assert ">49<" not in text


@pytest.mark.parametrize("value", [1e308, 1e-300])
def test_absurd_numbers_of_a_device_break_no_page(value: float) -> None:
    def absurd(delivery: Delivery) -> Delivery:
        record = delivery.record
        if record is None:
            return delivery
        floats = {name: value for name in record.__struct_fields__ if isinstance(getattr(record, name), float)}
        use = msgspec.structs.replace(record.use, window_s=value, throttled_s=value) if record.use else None
        return msgspec.structs.replace(delivery, record=msgspec.structs.replace(record, **floats, use=use))

    run = make_run(2, 2)
    report = build_report(msgspec.structs.replace(run, deliveries=tuple(map(absurd, run.deliveries))))
    check_self_contained(Page(render_page(report, before=report)))
    assert len(render_csv(report).splitlines()) == 1 + len(report.device_rounds)
    assert msgspec.json.decode(render_json(report))["schema"] == "edgefed-report/1"


def test_what_is_missing_has_its_reason_beside_it() -> None:
    page = Page(render_page(build_report(make_run(known=False))))
    for reason in ("power was not sampled", "the device did not count model FLOPs", "no plan predicted it"):
        assert reason in page.text
    whole = Page(render_page(build_report(make_run())))
    assert "permission denied; run as root" in whole.text


def test_emulated_devices_are_marked(whole: Report) -> None:
    page = Page(render_page(whole))
    assert "2 of 6 devices emulate a board" in page.text
    assert page.text.count("emulates raspberry-pi-5-8gb") == 2
    real = Page(render_page(build_report(make_run(2))))
    assert "emulates" not in real.text


def test_a_run_before_its_first_round() -> None:
    page = Page(render_page(build_report(RunRecords(name="n", run="0", fleet="f", model="m", method="lora, delta"))))
    assert "no round was opened yet" in page.text
    assert "No record holds a loss." in page.text


def test_another_run_beside(whole: Report) -> None:
    before = build_report(make_run(3, seed=9, name="last week"))
    page = Page(render_page(whole, before=before))
    assert set(page.ids) == SECTIONS | {"comparison"}
    assert "Beside run last week" in page.text


def test_references_from_a_bench_and_from_a_report(tmp_path: Path, whole: Report) -> None:
    record = next(row.record for row in whole.device_rounds if row.record is not None and row.record.steps)
    bench = BenchFile(results=[BenchResult(name="H100 SXM, bf16", source="commit 1234567", record=record)])
    (tmp_path / "bench.json").write_bytes(msgspec.json.encode(bench))
    (tmp_path / "report.json").write_text(render_json(build_report(make_run(1, name="big"))))
    from_bench, from_report = (read_references(tmp_path / name) for name in ("bench.json", "report.json"))
    assert from_bench[0].use == next(row.use for row in whole.device_rounds if row.record is record)
    page = Page(render_page(whole, references=[*from_bench, *from_report]))
    assert page.text.count("H100 SXM, bf16") >= 3
    assert "(run big, google/flan-t5-base)" in page.text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{}", r"its schema is '', and a reference has 'edgefed-bench/1'"),
        ("no json", r"not a reference"),
        ('{"schema": "edgefed-bench/1", "results": []}', r"length >= 1"),
        ('{"schema": "edgefed-bench/1", "results": [{"name": "x", "record": {"device": 3}}]}', r"results\[0\]\.record"),
    ],
)
def test_a_file_that_is_no_reference(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(ConfigError, match=said):
        read_references(tmp_path / "r.json")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_references(tmp_path / "absent.json")
