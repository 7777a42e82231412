from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations

from edgefed.devices.power.base import Found, choose_reader
from edgefed.devices.sensors import AbsentSensor
from edgefed.devices.usage import EnergyMethod, EnergyScope


@dataclass(frozen=True)
class Reader:
    scope: EnergyScope
    method_counted: EnergyMethod | None = None
    method_integrated: EnergyMethod | None = "hwmon-integrated"
    name: str = "a reader"
    coverage: str = "nothing"
    now_w: float | None = 1.0

    def watts(self) -> float | None:
        return self.now_w

    def joules(self) -> float | None:
        return None

    def rails_w(self) -> dict[str, float]:
        return {}


def test_the_widest_scope_is_believed_whatever_the_order() -> None:
    scopes: tuple[EnergyScope, ...] = ("board", "module", "gpu", "package", "unknown")
    for left, scope in enumerate(scopes):
        readers = [Reader(other) for other in scopes[left:]]
        for order in permutations(readers):
            chosen = choose_reader(order)
            assert chosen is not None
            assert chosen.scope == scope


def test_a_counter_is_believed_over_watts_of_the_same_scope_but_not_of_a_wider_one() -> None:
    watts, counter = Reader("gpu"), Reader("gpu", method_counted="nvml-counter")
    package = Reader("package", method_counted="rapl")
    assert choose_reader([watts, counter]) is counter
    assert choose_reader([package, watts]) is watts


def test_of_equals_the_first_is_believed() -> None:
    first, second = Reader("gpu", name="first"), Reader("gpu", name="second")
    assert choose_reader([first, second]) is first


def test_one_that_does_not_answer_now_comes_after_all_that_do_but_before_none() -> None:
    battery, package = Reader("board", now_w=None), Reader("package")
    assert choose_reader([battery, package]) is package
    assert choose_reader([battery]) is battery


def test_without_readers_there_is_nothing_to_believe() -> None:
    assert choose_reader([]) is None


def test_what_several_found_is_added_in_order() -> None:
    gpu, package = Reader("gpu"), Reader("package")
    absent = AbsentSensor(name="RAPL", reason="not readable")
    assert Found((gpu,)) + Found((package,), (absent,)) == Found((gpu, package), (absent,))
