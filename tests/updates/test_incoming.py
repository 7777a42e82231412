"""The agent's directory, as root sees it."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from edgefed.errors import UpdateError
from edgefed.updates.archive import MAX_BUNDLE_BYTES
from edgefed.updates.incoming import opened


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    """A place of root's own."""
    (tmp_path / "ours").mkdir()
    return tmp_path / "ours" / "staged"


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """The agent's directory."""
    (tmp_path / "state" / "incoming").mkdir(parents=True)
    return tmp_path / "state" / "incoming"


def test_bundles_are_listed_copied_and_removed(theirs: Path, ours: Path) -> None:
    content = os.urandom(3 << 20)
    for name in ("b.bundle", "a.bundle", "c.part"):
        (theirs / name).write_bytes(content)
    ours.write_bytes(b"of an earlier one")
    with opened(theirs) as directory:
        assert directory is not None
        assert directory.names() == ["a.bundle", "b.bundle"]
        assert directory.copy("a.bundle", ours) == hashlib.sha256(content).hexdigest()
        assert ours.read_bytes() == content
        assert ours.stat().st_mode & 0o777 == 0o600
        directory.remove("a.bundle")
        directory.remove("a.bundle")
        assert directory.names() == ["b.bundle"]


def test_there_need_be_no_directory(tmp_path: Path) -> None:
    with opened(tmp_path / "none" / "incoming") as directory:
        assert directory is None


@pytest.mark.parametrize("level", ["state", "state/incoming"])
def test_no_link_on_the_way_is_followed(theirs: Path, tmp_path: Path, level: str) -> None:
    (tmp_path / level).rename(tmp_path / "elsewhere")
    (tmp_path / level).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UpdateError, match=r"is a link or no directory"), opened(theirs):
        pass


def test_what_is_no_bundle_by_its_size_is_not_copied(theirs: Path, ours: Path) -> None:
    with (theirs / "a.bundle").open("wb") as file:
        file.truncate(MAX_BUNDLE_BYTES + 1)
    with opened(theirs) as directory:
        assert directory is not None
        with pytest.raises(UpdateError, match=r"no bundle has more than"):
            directory.copy("a.bundle", ours)
    assert not ours.exists()


def test_a_disk_without_room_is_named_before_anything_is_copied(
    theirs: Path, ours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (theirs / "a.bundle").write_bytes(bytes(1000))
    with opened(theirs) as directory:
        assert directory is not None
        monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=4999, f_frsize=1))
        with pytest.raises(UpdateError, match=r"takes about 5 times that: there are 4999 bytes free"):
            directory.copy("a.bundle", ours)
        assert not ours.exists()
        monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=5000, f_frsize=1))
        directory.copy("a.bundle", ours)


def test_a_second_name_of_a_file_is_not_copied(theirs: Path, ours: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"of somebody else")
    (theirs / "a.bundle").hardlink_to(tmp_path / "secret")
    with opened(theirs) as directory:
        assert directory is not None
        with pytest.raises(UpdateError, match=r"has other names as well"):
            directory.copy("a.bundle", ours)
        directory.remove("a.bundle")
    assert not ours.exists()
    assert (tmp_path / "secret").exists()


@pytest.mark.parametrize("name", ["a.bundle", "n" * 248 + ".bundle"], ids=["", "longest"])
def test_directories_are_moved_out_of_the_way_however_often_they_come(theirs: Path, name: str) -> None:
    with opened(theirs) as directory:
        assert directory is not None
        for _ in range(2):
            (theirs / name).mkdir()
            (theirs / name / "inside").touch()
            directory.remove(name)
        assert directory.names() == []
