from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from edgefed.doctor import clock
from edgefed.doctor.examination import Examined
from edgefed.doctor.findings import Board
from edgefed.security import certificates
from edgefed.security.certificates import make_authority

MakeBoard = Callable[..., Board]
Look = Callable[[Board, str], Examined]
DAY_S = 86400
LONG_AGO = datetime(1970, 1, 2, tzinfo=timezone.utc)


@pytest.fixture
def _kept_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether anything keeps this machine's clock right is not what counts."""
    monkeypatch.setattr(clock, "_kernel_clock_state", lambda: 0)


@pytest.mark.usefixtures("_kept_right")
def test_a_clock_that_nothing_speaks_against(board: MakeBoard, look: Look) -> None:
    assert look(board(), "clock").status == "ok"


@pytest.mark.usefixtures("_kept_right")
def test_a_board_that_woke_up_long_ago(board: MakeBoard, look: Look) -> None:
    examined = look(board(now=lambda: LONG_AGO), "clock")
    assert examined.status == "note", "without TLS the agent works"
    assert "1970-01-02" in examined.findings[0].seen
    assert "edgefed was installed" in examined.findings[0].seen


@pytest.mark.usefixtures("_kept_right")
@pytest.mark.parametrize(
    "trace",
    ["root/var/lib/systemd/timesync/clock", "root/etc/edgefed/flash-manifest.json", "state/latest-announcement"],
)
def test_what_has_happened_must_lie_behind(board: MakeBoard, look: Look, tmp_path: Path, trace: str) -> None:
    met = board()
    file = tmp_path / trace
    file.parent.mkdir(parents=True)
    file.touch()
    assert look(met, "clock").status == "ok"
    tomorrow_s = time.time() + DAY_S
    os.utime(file, (tomorrow_s, tomorrow_s))
    (found, _) = look(met, "clock").findings
    assert found.status == "note"
    assert "must be later" in found.seen


@pytest.mark.usefixtures("_kept_right")
def test_with_certificates_a_clock_in_the_past_stops_the_agent(board: MakeBoard, look: Look, tmp_path: Path) -> None:
    tomorrow = datetime.now(timezone.utc) + timedelta(days=1)
    authority = make_authority("test", days=10, now=tomorrow)
    (tmp_path / "ca.pem").write_bytes(certificates.certificate_pem(authority.certificate))
    examined = look(board('broker.tls_ca = "ca.pem"\nbroker.port = 1'), "clock")
    assert examined.status == "problem"
    assert "the authority's certificate begins" in examined.findings[0].seen


def test_the_kernel_says_whether_the_clock_is_kept_right(board: MakeBoard, look: Look) -> None:
    found = look(board(), "clock").findings[-1]
    assert found.seen.startswith("the kernel says that")


@pytest.mark.parametrize(
    ("said", "told"), [("yes\n", "is kept right"), ("no\n", "nothing keeps"), (None, "nothing tells")]
)
def test_where_the_kernel_may_not_be_asked_systemd_is(
    board: MakeBoard, look: Look, monkeypatch: pytest.MonkeyPatch, said: str | None, told: str
) -> None:
    monkeypatch.setattr(clock, "_kernel_clock_state", lambda: None)
    found = look(board(run=lambda _command: said), "clock").findings[-1]
    assert told in found.seen
