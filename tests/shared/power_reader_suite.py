"""What `edgefed.devices.power.base` promises, asked of every reader on a tree of files that it may break."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import get_args

import msgspec
import pytest

from edgefed.devices.power.base import Found, PowerReader
from edgefed.devices.programs import Run
from edgefed.devices.sensors import PowerSensor
from edgefed.devices.sysfs import read_text
from edgefed.devices.usage import Energy, EnergyMethod, EnergyScope

FIXTURES = Path(__file__).parent.parent / "fixtures" / "sysfs"
NOBODY = 65534


def copy_of(board: str, to: Path) -> Path:
    """Returns a recorded tree's copy, which a test may change."""
    shutil.copytree(FIXTURES / board, to, dirs_exist_ok=True)
    return to


def recorded(root: Path) -> Run:
    """Returns what answers for vcgencmd with what it once said, from a recorded tree."""
    return lambda command: read_text(root / "vcgencmd" / f"{command[1]}.txt")


@contextmanager
def without_privileges() -> Iterator[None]:
    """Root may read everything, so a test of permissions stops being root for a while."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


class PowerReaderSuite:
    """Subclass it, say on which recorded trees and how the reader is found, and pytest asks the rest.

    Attributes:
        boards: names of recorded trees, each with one sensor that `find` finds.
        find: returns what is found under a root.
    """

    boards: tuple[str, ...]
    find: Callable[[Path], Found]

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "board" in metafunc.fixturenames:
            metafunc.parametrize("board", self.boards)

    @pytest.fixture
    def root(self, board: str, tmp_path: Path) -> Path:
        return copy_of(board, tmp_path)

    @pytest.fixture
    def reader(self, root: Path) -> PowerReader:
        found = type(self).find(root)
        assert found.absent == ()
        (reader,) = found.readers
        return reader

    def test_it_says_what_it_is(self, reader: PowerReader) -> None:
        assert reader.name
        assert reader.coverage
        assert reader.scope in get_args(EnergyScope)
        methods = {reader.method_integrated, reader.method_counted} - {None}
        assert methods
        assert methods <= set(get_args(EnergyMethod)) - {"none"}

    def test_it_has_what_its_methods_say(self, reader: PowerReader) -> None:
        assert (reader.watts() is None) == (reader.method_integrated is None)
        assert (reader.joules() is None) == (reader.method_counted is None)

    def test_figures_are_finite_and_of_a_size_that_a_machine_has(self, reader: PowerReader) -> None:
        watts, joules = reader.watts(), reader.joules()
        assert watts is None or 0.1 < watts < 1000
        assert joules is None or (math.isfinite(joules) and joules > 0)
        assert all(0 <= part < 1000 for part in reader.rails_w().values())

    def test_figures_fit_the_records(self, reader: PowerReader) -> None:
        method = reader.method_counted or reader.method_integrated
        energy = {"joules": reader.joules(), "mean_w": reader.watts(), "method": method, "scope": reader.scope}
        assert msgspec.convert(energy, Energy, strict=True)
        sensor = PowerSensor(name=reader.name, method=str(method), scope=reader.scope, coverage=reader.coverage)
        assert msgspec.json.decode(msgspec.json.encode(sensor), type=PowerSensor) == sensor

    def test_a_counter_never_falls(self, reader: PowerReader) -> None:
        counted = [joules for _ in range(5) if (joules := reader.joules()) is not None]
        assert counted == sorted(counted)

    @pytest.mark.parametrize("text", ["", "\n", "not a number\n", "\0\xff", "12 34\n", "0x1g\n"])
    def test_files_that_hold_no_number_are_no_answer(self, root: Path, reader: PowerReader, text: str) -> None:
        for path in files(root):
            path.write_text(text)
        assert (reader.watts(), reader.joules(), reader.rails_w()) == (None, None, {})

    def test_files_that_vanish_are_no_answer(self, root: Path, reader: PowerReader) -> None:
        for path in files(root):
            path.unlink()
        assert (reader.watts(), reader.joules(), reader.rails_w()) == (None, None, {})

    def test_files_that_may_not_be_read_are_no_answer(self, root: Path, reader: PowerReader) -> None:
        for path in files(root):
            path.chmod(0)
        with without_privileges():
            assert (reader.watts(), reader.joules(), reader.rails_w()) == (None, None, {})

    def test_it_answers_again_when_the_files_are_back(self, root: Path, reader: PowerReader, board: str) -> None:
        before = (reader.watts(), reader.joules(), reader.rails_w())
        for path in files(root):
            path.unlink()
        assert (reader.watts(), reader.joules()) == (None, None)
        copy_of(board, root)
        assert (reader.watts(), reader.joules(), reader.rails_w()) == before

    def test_looking_for_it_among_broken_files_finds_no_reader(self, root: Path) -> None:
        for path in files(root):
            if path.name.endswith(("_input", "_average", "_uj", "_now", ".txt")):
                path.write_text("broken\n")
        assert type(self).find(root).readers == ()

    def test_looking_for_it_on_a_machine_without_it_finds_nothing(self, tmp_path: Path) -> None:
        assert type(self).find(tmp_path) == Found()


def files(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file()]
