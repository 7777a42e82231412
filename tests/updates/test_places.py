"""Where things are, and what is read there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from edgefed.errors import UpdateError
from edgefed.flashing import agent_toml, manifest
from edgefed.updates.places import SUFFIX, Home, incoming, own_home
from edgefed.updates.record import Record, Trial, read_record, read_trial, release_in_use, write_record, write_trial

UNITS = Path(manifest.__file__).parent / "files/etc/systemd/system"


@pytest.fixture
def home(tmp_path: Path) -> Home:
    (tmp_path / "updates").mkdir()
    return Home(tmp_path)


def test_an_agent_knows_its_home_by_the_environment_it_runs_in(home: Home) -> None:
    (home.path / "environments/0123").mkdir(parents=True)
    home.link.symlink_to("environments/0123")
    assert own_home(str(home.link)) == home
    assert own_home(str(home.path)) is None
    assert own_home() is None, "a checkout is nothing to update"


def test_the_units_watch_where_the_agent_puts_releases() -> None:
    """On a board as it is flashed."""
    unit = (UNITS / "edgefed-update.path").read_text()
    watched = dict(re.findall(r"(?m)^(PathExists\w*)=(.*)$", unit))
    assert watched["PathExistsGlob"] == f"{incoming(Path(agent_toml.STATE) / 'state')}/*{SUFFIX}"
    assert watched["PathExists"] == str(Home(Path("/opt/edgefed")).trial)


def test_records_are_read_as_they_were_written(home: Home) -> None:
    assert read_record(home) == Record()
    assert read_trial(home) is None
    record = Record(highest_number=7, latest="0" * 64, tries={"1" * 64: 2})
    trial = Trial(file="a.bundle", began_unix_s=1.5, environment="0123")
    write_record(home, record)
    write_trial(home, trial)
    assert (read_record(home), read_trial(home)) == (record, trial)
    assert home.record.stat().st_mode & 0o044 == 0o044, "the agent reads it"
    for path in (home.record, home.trial):
        path.write_bytes(b'{"tries": [')
    with pytest.raises(UpdateError, match="older releases could be played again"):
        read_record(home)
    with pytest.raises(UpdateError, match="remove it"):
        read_trial(home)


def test_what_was_flashed_is_no_release(home: Home) -> None:
    assert release_in_use(home) == b""
