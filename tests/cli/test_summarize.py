from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.torch
Run = Callable[..., Any]
ONE = "Host: A table on Friday?\nGuest: Yes, for two."


def test_standard_input_is_one_text_and_gives_one_line(edgefed: Run, run_directory: Path) -> None:
    done = edgefed("summarize", "--adapter", run_directory, "--threads", 1, text=ONE)
    assert (done.code, done.err) == (0, "")
    assert done.out.count("\n") == 1
    assert edgefed("summarize", "-a", run_directory, "--threads", 1, "-", text=ONE).out == done.out


def test_files_lines_and_json_lines_say_the_same(edgefed: Run, run_directory: Path, tmp_path: Path) -> None:
    texts = ["a first, longer text about a table", "second text", "third"]
    for number, text in enumerate(texts):
        (tmp_path / f"{number}.txt").write_text(text + "\n")
    common = ("summarize", "-a", run_directory, "--threads", 1)
    files = edgefed(*common, *sorted(tmp_path.glob("*.txt"))).out
    lines = edgefed(*common, "--lines", text="\n\n".join(texts) + "\n").out
    jsonl = "".join(json.dumps({"note": text}) + "\n" for text in texts)
    assert files.count("\n") == 3
    assert lines == files, "blank lines are no texts"
    (tmp_path / "notes.jsonl").write_text(jsonl)
    rows = edgefed(*common, "--jsonl", "--source-field", "note", "--json", tmp_path / "notes.jsonl").out.splitlines()
    assert [json.loads(row)["summary"] for row in rows] == files.splitlines()
    assert [json.loads(row)["source"] for row in rows] == [f"{tmp_path}/notes.jsonl:{n}" for n in (1, 2, 3)]


def test_adapter_and_prompt_matter(edgefed: Run, run_directory: Path) -> None:
    plain = edgefed("summarize", "--model", "edgefed/tiny-t5", "--threads", 1, text=ONE).out
    assert edgefed("summarize", "-a", run_directory, "--threads", 1, text=ONE).out != plain
    prompt = ("--prompt", "Name the guest and the table of this: {source}")
    assert edgefed("summarize", "--model", "edgefed/tiny-t5", "--threads", 1, *prompt, text=ONE).out != plain


@pytest.mark.parametrize(
    ("options", "text", "code", "said"),
    [
        (["--model", "edgefed/tiny-t5"], "", 4, "nothing to summarize: standard input is empty"),
        (["--model", "edgefed/tiny-t5", "--lines"], "\n \n", 4, "nothing to summarize"),
        (["--model", "edgefed/tiny-t5"], b"caf\xe9", 4, "not UTF-8 text: byte 3 is 0xe9"),
        (["--model", "edgefed/tiny-t5", "none.txt"], "", 4, "none.txt cannot be read: No such file"),
        (["--model", "edgefed/tiny-t5", "--jsonl"], "{}", 4, "standard input, line 1: there is no field 'dialogue'"),
        (["--model", "edgefed/tiny-t5", "--jsonl"], '{"dialogue": "a"}\nb', 4, "standard input, line 2: not JSON"),
        (["--model", "edgefed/tiny-t5", "--source-field", "a"], "a", 2, "it needs --jsonl"),
        (["--model", "edgefed/tiny-t5", "--lines", "--jsonl"], "a", 2, "--lines and --jsonl"),
        (["--adapter", "."], "a", 8, "holds no PEFT adapter"),
        ([], "a", 3, "which base model?"),
    ],
)
def test_what_is_wrong_is_said(
    edgefed: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    text: str | bytes,
    code: int,
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    done = edgefed("summarize", *options, text=text)
    assert done.code == code
    assert said in done.err
    assert done.out == ""
