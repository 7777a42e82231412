from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgefed.doctor.access import READ, WRITE, User, find_user

OWN, OTHERS = os.geteuid(), 4_000_000


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that everybody may enter; pytest's own are not."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def user(uid: int, *groups: int) -> User:
    return User("somebody", uid, frozenset(groups))


def test_each_of_the_three_kinds_of_permission_bits(place: Path) -> None:
    file = place / "file"
    file.touch()
    gid = file.stat().st_gid
    for mode, member, stranger in ((0o640, True, False), (0o604, False, True), (0o600, False, False)):
        file.chmod(mode)
        assert user(OTHERS, gid).may(READ, file) is member
        assert user(OTHERS).may(READ, file) is stranger
        assert not user(OTHERS, gid).may(WRITE, file)
        assert user(0).may(READ | WRITE, file)


def test_a_directory_on_the_way_that_lets_nobody_in(place: Path) -> None:
    file = place / "closed" / "file"
    file.parent.mkdir(mode=0o700)
    file.touch(mode=0o644)
    assert not user(OTHERS).may(READ, file)
    file.parent.chmod(0o711)
    assert user(OTHERS).may(READ, file)
    assert not user(OTHERS).may(READ, file.parent), "it can be entered, and not be listed"


def test_a_link_is_followed(place: Path) -> None:
    (place / "closed").mkdir(mode=0o700)
    (place / "closed" / "file").touch(mode=0o644)
    (place / "link").symlink_to("closed/file")
    assert not user(OTHERS).may(READ, place / "link")


@pytest.mark.parametrize("mode", [0o000, 0o004, 0o006, 0o040, 0o060, 0o200, 0o400, 0o604, 0o640, 0o666])
@pytest.mark.parametrize("owned", ["by them", "by their group", "by neither"])
def test_the_kernel_says_the_same(place: Path, mode: int, owned: str) -> None:
    if OWN != 0:
        pytest.skip("only root can give files away, and be somebody else")
    nobody = find_user("nobody")
    assert nobody is not None
    file = place / "file"
    file.touch()
    os.chown(file, nobody.uid if owned == "by them" else 0, min(nobody.groups) if owned == "by their group" else 0)
    file.chmod(mode)
    for bits, flag in ((READ, "-r"), (WRITE, "-w")):
        asked = subprocess.run(["test", flag, file], user=nobody.uid, group=min(nobody.groups), extra_groups=[])
        assert nobody.may(bits, file) == (asked.returncode == 0)


def test_users_of_this_machine() -> None:
    root = find_user("root")
    assert root is not None
    assert root.uid == 0
    assert find_user("no-such-user") is None
