"""What must stay light when it is imported, seen from a process that imports nothing else."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import edgefed

PACKAGE = Path(edgefed.__file__).parent
HEAVY = {
    "torch", "transformers", "peft", "numpy", "safetensors", "sqlalchemy", "rich", "typer", "amqtt",
    "bitsandbytes", "huggingface_hub", "pydantic", "click", "pynvml",
}  # fmt: skip


def loaded_by(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


@pytest.mark.parametrize("module", ["edgefed.agent.supervisor", "edgefed.config", "edgefed.protocol.messages.retained"])
def test_loads_nothing_heavy(module: str) -> None:
    assert loaded_by(f"import {module}") & HEAVY == set()


def test_supervisor_loads_nothing_of_the_other_side() -> None:
    code = "import sys, edgefed.agent.supervisor; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    other_side = ("edgefed.coordinator", "edgefed.aggregation", "edgefed.cli", "edgefed.training.loop")
    assert [name for name in done.stdout.split() if name.startswith(other_side)] == []


def test_an_agent_without_signatures_carries_no_cryptography() -> None:
    assert "cryptography" not in loaded_by("import edgefed.agent.session, edgefed.transport.mqtt")


def test_federation_options_need_no_numpy() -> None:
    assert "numpy" not in loaded_by("from edgefed.config import example_federation; example_federation()")


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("__init__.py")), ids=lambda path: str(path.parent.name))
def test_packages_export_nothing(path: Path) -> None:
    module = ast.parse(path.read_text())
    for node in ast.walk(module):
        assert not isinstance(node, ast.Import | ast.ImportFrom), f"{path} imports something"
