from __future__ import annotations

import re

import pytest

from edgefed import errors
from edgefed.errors import EdgefedError

DRAWN = re.findall(r"(?m)^ {4}((?:[│├└─ ]{4})*)([A-Z]\w+) +(\d+)?", errors.__doc__ or "")


def tree(root: type[EdgefedError]) -> list[type[EdgefedError]]:
    return [root, *(inner for child in root.__subclasses__() for inner in tree(child))]


def test_every_error_is_drawn_once_and_exported() -> None:
    classes = sorted(error.__name__ for error in tree(EdgefedError) if error.__module__ == errors.__name__)
    assert sorted(name for _, name, _ in DRAWN) == classes == sorted(errors.__all__)


@pytest.mark.parametrize(("name", "number"), [(name, number) for _, name, number in DRAWN])
def test_exit_code_is_the_drawn_one_or_the_parents(name: str, number: str) -> None:
    error = getattr(errors, name)
    assert error.exit_code == (int(number) if number else error.__base__.exit_code)


def test_numbers_are_used_once_and_leave_room_for_the_shell() -> None:
    numbers = [int(number) for _, _, number in DRAWN if number]
    assert len(numbers) == len(set(numbers))
    assert not {0, 2, 130} & set(numbers)
    assert max(numbers) < 126


def test_branches_hang_where_they_are_drawn() -> None:
    path: list[type[EdgefedError]] = []
    for branch, name, _ in DRAWN:
        depth = len(branch) // 4
        error = getattr(errors, name)
        assert error.__base__ is (path[depth - 1] if depth else Exception), name
        path[depth:] = [error]
