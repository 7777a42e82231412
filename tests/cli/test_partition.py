from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]

TOPICS = ["heart"] * 9 + ["bone"] * 6 + ["skin"] * 3 + ["ear"] * 2


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    path = tmp_path / "notes.jsonl"
    rows = [{"topic": topic, "dialogue": f"„Grüße“ {n}", "summary": f"s{n}"} for n, topic in enumerate(TOPICS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows_of(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize(
    "how", [["--by", "uniform"], ["--by", "key", "--key", "topic"], ["--by", "dirichlet", "--key", "topic"]]
)
def test_every_row_goes_to_exactly_one_device(edgefed: Run, notes: Path, tmp_path: Path, how: list[str]) -> None:
    done = edgefed("partition", notes, "--into", tmp_path / "out", "-n", 4, *how)
    assert (done.code, done.err) == (0, "")
    files = sorted((tmp_path / "out").iterdir())
    assert [file.name for file in files] == [f"device-{number:02}.jsonl" for number in range(4)]
    written = [row for file in files for row in rows_of(file)]
    assert sorted(written, key=lambda row: row["summary"]) == sorted(rows_of(notes), key=lambda row: row["summary"])


def test_by_key_keeps_groups_together(edgefed: Run, notes: Path, tmp_path: Path) -> None:
    edgefed("partition", notes, "--into", tmp_path / "out", "-n", 4, "--by", "key", "--key", "topic")
    topics = [{row["topic"] for row in rows_of(file)} for file in sorted((tmp_path / "out").iterdir())]
    assert topics == [{"heart"}, {"bone"}, {"skin"}, {"ear"}]


def test_counts_in_a_pipe(edgefed: Run, notes: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = edgefed("partition", notes, "--into", out, "-n", 2, "--by", "key", "--key", "topic")
    assert done.out.splitlines() == [
        "file\trows\ttopic",
        f"{out}/device-00.jsonl\t11\theart 9, ear 2",
        f"{out}/device-01.jsonl\t9\tbone 6, skin 3",
    ]
    done = edgefed("partition", notes, "--into", out, "-n", 2, "--force")
    assert done.out.splitlines()[:2] == ["file\trows", f"{out}/device-00.jsonl\t10"]


def test_json_counts_agree_with_the_files(edgefed: Run, notes: Path, tmp_path: Path) -> None:
    done = edgefed("partition", notes, "--into", tmp_path / "out", "-n", 3, "--key", "topic", "--json")
    for device in json.loads(done.out)["devices"]:
        rows = rows_of(Path(device["file"]))
        assert device["rows"] == len(rows) == sum(device["keys"].values())
        for topic, count in device["keys"].items():
            assert count == sum(row["topic"] == topic for row in rows)


def test_seed_and_alpha_matter_and_repeat(edgefed: Run, notes: Path, tmp_path: Path) -> None:
    def split(*options: object) -> str:
        how = ("--by", "dirichlet", "--key", "topic", "--force", *options)
        return str(edgefed("partition", notes, "--into", tmp_path / "out", "-n", 3, *how).out)

    assert split() == split("--seed", 0, "--alpha", 0.3)
    assert split() != split("--seed", 1)
    assert split() != split("--alpha", 1000)


def test_csv(edgefed: Run, tmp_path: Path) -> None:
    (tmp_path / "notes.csv").write_text('dialogue,summary\n"a, b",c\nd,e\n')
    assert edgefed("partition", tmp_path / "notes.csv", "--into", tmp_path / "out", "-n", 1).code == 0
    assert rows_of(tmp_path / "out/device-00.jsonl") == [
        {"dialogue": "a, b", "summary": "c"},
        {"dialogue": "d", "summary": "e"},
    ]


def test_earlier_files_are_replaced_only_when_told(edgefed: Run, notes: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    edgefed("partition", notes, "--into", out, "-n", 5)
    before = {path: path.read_text() for path in out.iterdir()}
    done = edgefed("partition", notes, "--into", out, "-n", 2)
    assert done.code == 3
    assert f"{out} holds 5 device files already (device-00.jsonl, …); --force replaces them" in done.err
    assert {path: path.read_text() for path in out.iterdir()} == before
    (out / "mine.txt").write_text("kept")
    assert edgefed("partition", notes, "--into", out, "-n", 2, "--force").code == 0
    assert sorted(path.name for path in out.iterdir()) == ["device-00.jsonl", "device-01.jsonl", "mine.txt"]


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--by", "key"], 2, "--by key needs --key"),
        (["--by", "dirichlet"], 2, "--by dirichlet needs --key"),
        (["--alpha", "1"], 2, "--by uniform has no use for it"),
        (["--by", "key", "--key", "topic", "--seed", "3"], 2, "--seed has no effect"),
        (["--by", "dirichlet", "--key", "topic", "--alpha", "0"], 3, "alpha 0.0 is not possible"),
        (["--key", "ward"], 4, "row 1 has no field 'ward'; its fields are 'topic', 'dialogue', 'summary'"),
        (["--by", "dice"], 2, "dice"),
    ],
)
def test_options_that_do_not_fit(
    edgefed: Run, notes: Path, tmp_path: Path, options: list[str], code: int, message: str
) -> None:
    done = edgefed("partition", notes, "--into", tmp_path / "out", "-n", 2, *options)
    assert done.code == code
    assert message in done.err
    assert not (tmp_path / "out").exists()


def test_more_devices_than_rows(edgefed: Run, notes: Path, tmp_path: Path) -> None:
    done = edgefed("partition", notes, "--into", tmp_path / "out", "-n", 21)
    assert (done.code, done.err) == (3, "edgefed: 20 rows cannot give 21 devices at least one each\n")


def test_data_that_is_not_there(edgefed: Run, tmp_path: Path) -> None:
    done = edgefed("partition", tmp_path / "none.csv", "--into", tmp_path / "out", "-n", 2)
    assert done.code == 4
    assert "none.csv does not exist" in done.err


def test_into_a_file(edgefed: Run, notes: Path, tmp_path: Path) -> None:
    assert edgefed("partition", notes, "--into", notes, "-n", 2).code == 2
