from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from edgefed.cli.output import check_output, told_where, write_json, write_output, write_table
from edgefed.errors import ConfigError
from edgefed.files import replace_file


def test_table_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    write_table(("name", "n"), [("a b", 1), ("c", 20)])
    assert capsys.readouterr().out == "name\tn\na b\t1\nc\t20\n"


def drawn(header: tuple[str, ...], rows: list[tuple[object, ...]], width: int) -> list[str]:
    """What write_table writes on a terminal of that width, without blank lines."""
    code = f"from edgefed.cli.output import write_table; write_table({header!r}, {rows!r})"
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "dumb", "COLUMNS": str(width)}
    subprocess.run([sys.executable, "-c", code], stdout=theirs, check=True, env=environment)
    os.close(theirs)
    with os.fdopen(ours, "rb", buffering=0) as terminal:
        written = terminal.read(4096).decode()
    return [line.rstrip() for line in written.splitlines() if line.strip()]


def test_table_on_a_terminal() -> None:
    lines = drawn(("name", "n"), [("[a] b", 1), ("c", 20)], width=40)
    assert lines[0].split() == ["name", "n"]
    assert lines[2].split() == ["[a]", "b", "1"]
    assert lines[2].index("1") == lines[3].index("0"), "numbers are aligned on the right"


DEVICE = ("board-07", "certificate in force", "waits for its turn", "")
HEADER = ("device", "certificate", "note", "labels")


def test_a_table_breaks_no_word_where_there_is_room_for_it() -> None:
    needed = len("board-07") + len("certificate") + len("waits") + len("labels") + 4 * 3 + 1
    for width in (needed, needed + 1, needed + 7, needed + 30):
        lines = drawn(HEADER, [DEVICE], width)
        assert lines[0].split() == list(HEADER)
        assert all(len(line) <= width for line in lines)
        assert sorted(" ".join(lines[2:]).split()) == sorted(" ".join(DEVICE).split())


def test_on_a_narrow_terminal_a_row_is_a_paragraph() -> None:
    lines = drawn(HEADER, [DEVICE, ("board-08", "", "", "room=lab")], width=40)
    assert lines == [
        "board-07",
        "  certificate certificate in force ·",
        "  note waits for its turn",
        "board-08",
        "  labels room=lab",
    ]


def test_json_keeps_letters(capsys: pytest.CaptureFixture[str]) -> None:
    write_json({"name": "Grüße"})
    assert capsys.readouterr().out == '{\n  "name": "Grüße"\n}\n'


def test_nothing_that_a_terminal_obeys_gets_out(capsys: pytest.CaptureFixture[str]) -> None:
    write_table(("name",), [("\x1b[2J\tb\n",)])
    assert capsys.readouterr().out == "name\n\\u001b[2J\\tb\\n\n"
    write_json({"name": "\x9b\x7f\x1b\n"})
    out = capsys.readouterr().out
    assert json.loads(out) == {"name": "\x9b\x7f\x1b\n"}
    assert out.replace("\n", "").isprintable()


def test_what_the_system_says_is_told_with_the_path(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone: cannot be used: No such file or directory"), told_where(tmp_path):
        (tmp_path / "gone").read_bytes()


def test_a_temporary_file_is_told_by_the_name_that_it_was_to_have(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(ConfigError) as told, told_where(tmp_path):
        replace_file(tmp_path / "out", [b"text"])
    assert str(told.value) == f"{tmp_path / 'out'}: cannot be used: Is a directory"


def test_a_pipe_or_a_device_is_written_to_and_stays(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with os.fdopen(os.open(pipe, os.O_RDONLY | os.O_NONBLOCK), "rb") as reader:
        check_output(pipe)
        write_output(pipe, b"text")
        assert reader.read() == b"text"
    assert pipe.is_fifo()


def test_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    link = tmp_path / "link"
    link.symlink_to("kept/result")
    for content in (b"first", b"second"):
        check_output(link)
        write_output(link, content)
        assert (tmp_path / "kept" / "result").read_bytes() == content
    assert link.is_symlink()
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["result"]


def test_a_place_that_takes_no_file_is_found_out_beforehand(tmp_path: Path) -> None:
    for path, wrong in ((tmp_path, "is a directory"), (tmp_path / "a/b", "is no directory"), ("/proc/x", "cannot be")):
        with pytest.raises(ConfigError, match=wrong):
            check_output(Path(path))
