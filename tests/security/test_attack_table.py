"""The table of attacks names every test that is one."""

from __future__ import annotations

import ast
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

attacks = pytest.importorskip("benchmarks.faults.attacks", reason="source packages come without the benchmarks")

ROOT = Path(__file__).parents[2]
FILES = attacks.FILES
NAMED = [name for names in attacks.ATTACKS.values() for name in names]


def functions_of(file: str) -> set[str]:
    nodes = ast.parse((ROOT / file).read_text()).body
    functions = (node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    return {node.name for node in functions if node.name.startswith("test_")}


def test_every_attack_is_there_once_and_is_a_test() -> None:
    assert len(set(NAMED)) == len(NAMED)
    assert set(NAMED) <= set().union(*map(functions_of, FILES))
    assert functions_of(FILES[0]) | functions_of(FILES[1]) <= set(NAMED)


def test_what_fails_is_let_in_and_what_is_skipped_is_not_counted() -> None:
    name = NAMED[0]
    report = ElementTree.fromstring(
        f'<testsuites><testsuite><testcase name="{name}[a]"/><testcase name="{name}[b]"><failure/></testcase>'
        f'<testcase name="{name}[c]"><error/></testcase><testcase name="{name}[d]"><skipped/></testcase>'
        '<testcase name="test_something_else"><failure/></testcase></testsuite></testsuites>'
    )
    rows = attacks.count(report)
    assert (rows[0].run, rows[0].let_in) == (3, 2)
    assert sum(row.run for row in rows[1:]) == 0
