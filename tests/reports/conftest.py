from __future__ import annotations

import pytest

from edgefed.reports.build import build_report
from edgefed.reports.report import Report
from tests.reports.made_runs import make_run


@pytest.fixture(scope="session")
def whole() -> Report:
    """A run in which nearly everything is known."""
    return build_report(make_run())
