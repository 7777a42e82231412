from __future__ import annotations

import pytest

from tools.fuzzing.engine import Target
from tools.fuzzing.targets import all_targets


@pytest.fixture(scope="session")
def targets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Target, ...]:
    return all_targets(tmp_path_factory.mktemp("fuzz"))
