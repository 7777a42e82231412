from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import edgefed
from edgefed.errors import ConfigError
from edgefed.files import check_private, in_shell, remove_leftovers, replace_file, settled_name, temporary_beside

WRITER = """
import sys
from pathlib import Path
from edgefed.files import replace_file

def parts():
    yield b"half of it, "
    print("half", flush=True)
    sys.stdin.read()

replace_file(Path(sys.argv[1]), parts())
"""


def test_a_kill_leaves_the_old_content_and_a_leftover_that_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "letter.json"
    replace_file(path, [b"old ", b"content"])
    environment = {**os.environ, "PYTHONPATH": str(Path(edgefed.__file__).parents[1])}
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"half\n"
        writer.send_signal(signal.SIGKILL)
    assert path.read_bytes() == b"old content"
    assert len(list(tmp_path.iterdir())) == 2
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == [path]


def test_whole_directories_are_removed_and_what_has_another_name_stays(tmp_path: Path) -> None:
    half_written = temporary_beside(tmp_path / "adapter")
    (half_written / "below").mkdir(parents=True)
    (half_written / "below" / "file").write_text("half")
    kept = [".profile", ".cache.0123", "letter.0123456789abcdef", ".letter.0123456789abcdeg"]
    for name in kept:
        (tmp_path / name).write_text("mine")
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)


def test_a_link_is_removed_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter").write_text("dear")
    temporary_beside(tmp_path / "adapter").symlink_to(tmp_path / "mine")
    remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    assert (tmp_path / "mine" / "letter").read_text() == "dear"


def test_a_directory_that_is_not_there_has_no_leftovers(tmp_path: Path) -> None:
    remove_leftovers(tmp_path / "missing")
    assert not (tmp_path / "missing").exists()


def test_a_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def parts() -> object:
        yield b"half"
        raise OSError("no more")

    with pytest.raises(OSError, match="no more"):
        replace_file(tmp_path / "letter", parts())  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_a_secret_is_written_for_its_owner_alone_and_refused_where_others_can_read_it(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    path.write_text("old, and open to all")
    path.chmod(0o644)
    replace_file(path, [b"secret"], mode=0o600)
    assert path.stat().st_mode & 0o777 == 0o600
    check_private(path)
    for mode in (0o640, 0o604, 0o660, 0o601):
        path.chmod(mode)
        with pytest.raises(ConfigError, match=rf"key\.pem holds a secret, and its mode {mode:04o} lets others"):
            check_private(path)


def test_the_command_that_is_recommended_for_a_secret_can_be_copied(tmp_path: Path) -> None:
    path = tmp_path / "it's the $HOME key.pem"
    path.touch(mode=0o644)
    path.chmod(0o644)
    with pytest.raises(ConfigError) as told:
        check_private(path)
    command = str(told.value).partition(" lets others than its owner at it: ")[2].partition(", and if")[0]
    subprocess.run(command, shell=True, check=True)
    check_private(path)
    assert in_shell(tmp_path / "key.pem") == str(tmp_path / "key.pem"), "plain names stay as they are"


def test_a_temporary_name_is_told_as_what_it_stands_for(tmp_path: Path) -> None:
    path = tmp_path / "fleet.d" / "ca"
    assert settled_name(temporary_beside(path)) == path
    assert settled_name(temporary_beside(path) / "ca.key") == path / "ca.key"
    for kept in (Path("/home/.config/x"), Path(".a.0123"), Path("relative/ca")):
        assert settled_name(kept) == kept
