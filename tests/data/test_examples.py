from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefed.data.examples import Example, read_examples, read_rows
from edgefed.errors import DataError

ROWS = [
    {"dialogue": "A: hi\nB: hello", "summary": "They greet.", "topic": "x"},
    {"dialogue": "c", "summary": "d", "topic": "y"},
]


def read(path: Path) -> list[Example]:
    return read_examples(path, source_field="dialogue", target_field="summary")


def write_jsonl(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_jsonl_and_csv_mean_the_same(tmp_path: Path) -> None:
    jsonl = write_jsonl(tmp_path / "a.jsonl", ROWS)
    with (tmp_path / "a.csv").open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, ["dialogue", "summary", "topic"])
        writer.writeheader()
        writer.writerows(ROWS)
    assert read(jsonl) == read(tmp_path / "a.csv") == [Example(r["dialogue"], r["summary"]) for r in ROWS]
    assert read_rows(jsonl) == read_rows(tmp_path / "a.csv") == ROWS


def test_a_directory_is_its_data_files_sorted(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "b.jsonl", ROWS[1:])
    write_jsonl(tmp_path / "a.jsonl", ROWS[:1])
    (tmp_path / "README.md").write_text("not data", encoding="utf-8")
    assert read_rows(tmp_path) == ROWS


def test_fields_that_nobody_asked_for_may_hold_anything(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"dialogue": "a", "summary": "b", "ids": [1, 2]}])
    assert read(path) == [Example("a", "b")]
    with pytest.raises(DataError, match=r"a\.jsonl, line 1: field 'ids' is a list"):
        read_rows(path)


@given(st.lists(st.tuples(st.text(), st.text(min_size=1)), min_size=1, max_size=5))
def test_any_text_survives_jsonl(tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[str, str]]) -> None:
    path = tmp_path_factory.mktemp("jsonl") / "a.jsonl"
    path.write_text("\n".join(json.dumps({"dialogue": a, "summary": b}) for a, b in pairs), encoding="utf-8")
    assert read(path) == [Example(a, b) for a, b in pairs]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", "is empty"),
        ("a.jsonl", b"\n  \n", "is empty"),
        ("a.csv", b"dialogue,summary\n", "no rows"),
        (
            "a.jsonl",
            b'{"dialogue": "a", "summary": "b"}\n{oops}\n',
            r"a\.jsonl, line 2: not JSON \(Expecting .* at character 2\)$",
        ),
        ("a.jsonl", b'["a"]', "line 1: a list where an object"),
        ("a.jsonl", b"[" * 100_000, "line 1: (JSON nested too deeply|not JSON)"),
        (
            "a.jsonl",
            b'{"dialogue": "a", "sumary": "b"}',
            r"line 1: there is no field 'summary'; .* 'dialogue', 'sumary'",
        ),
        ("a.jsonl", b'{"dialogue": "a", "summary": 3}', "line 1: field 'summary' is a number"),
        ("a.jsonl", b'{"dialogue": null, "summary": "b"}', "line 1: field 'dialogue' is null"),
        ("a.jsonl", b'{"dialogue": "a", "summary": "b"}\n{"dialogue": "\xe9"}', r"line 2: byte 0xe9 is not UTF-8"),
        ("a.csv", b"dialogue,summary\na,b\nc\n", "line 3: 1 values for 2 columns"),
        ("a.csv", b"dialogue,dialogue\na,b\n", "column name occurs twice"),
        ("a.csv", b'dialogue,summary\n"a"b,c\n', "line 2: not CSV"),
        ("a.txt", b"a", r"data files end in \.csv, \.jsonl, \.ndjson"),
    ],
)
def test_bad_files_are_named_with_the_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read(tmp_path / name)


def test_missing_and_empty_places(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        read(tmp_path / "nowhere.jsonl")
    with pytest.raises(DataError, match=r"has no \.csv, \.jsonl, \.ndjson file"):
        read(tmp_path)
