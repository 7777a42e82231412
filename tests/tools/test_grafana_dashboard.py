"""The dashboard shows what the exporter exports: every metric and label in it exists."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from edgefed.reports.exporter import collect
from tests.reports.made_snapshots import make_snapshot

BOARD: dict[str, Any] = json.loads(
    (Path(__file__).parents[2] / "tools" / "grafana-dashboard.json").read_text(encoding="utf-8")
)
PANELS = [panel for panel in BOARD["panels"] if panel["type"] != "row"]
EXPRESSIONS = [
    *(target["expr"] for panel in PANELS for target in panel["targets"]),
    *(one["query"] for one in BOARD["templating"]["list"] if one["type"] == "query"),
]
FROM_PROMETHEUS = {"instance", "job"}


def exported() -> dict[str, set[str]]:
    """Returns the labels of every sample name."""
    labels: dict[str, set[str]] = {}
    for family in collect(make_snapshot()):
        for sample in family.samples:
            labels.setdefault(sample.name, set()).update(sample.labels)
    return labels


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_every_metric_and_label_exists(expression: str) -> None:
    known = exported()
    names = set(re.findall(r"\bedgefed_\w+", expression))
    assert names
    assert names <= known.keys()
    used = set(re.findall(r"(\w+)\s*=~?\s*\"", expression))
    for group in re.findall(r"by \(([^)]*)\)", expression):
        used |= {label.strip() for label in group.split(",")}
    for name in names:
        assert used <= known[name] | FROM_PROMETHEUS


def test_counters_alone_are_rated() -> None:
    for expression in EXPRESSIONS:
        for name in re.findall(r"rate\((\w+)", expression):
            assert name.endswith("_total")


def test_the_legend_names_labels_that_are_there() -> None:
    known = exported()
    for panel in PANELS:
        for target in panel["targets"]:
            labels = set().union(*(known[name] for name in re.findall(r"\bedgefed_\w+", target["expr"])))
            assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= labels


def test_it_can_be_imported_as_it_is() -> None:
    assert BOARD["uid"] == "edgefed-federation"
    assert [one["type"] for one in BOARD["templating"]["list"] if one["name"] == "datasource"] == ["datasource"]
    assert len({panel["id"] for panel in BOARD["panels"]}) == len(BOARD["panels"])
    for panel in PANELS:
        sources = [panel["datasource"], *(target["datasource"] for target in panel["targets"])]
        assert {source["uid"] for source in sources} == {"${datasource}"}
    assert not re.search(r"https?://", json.dumps(BOARD))


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in BOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken
        taken |= cells
