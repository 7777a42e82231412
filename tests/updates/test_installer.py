"""The installer on a small board: what it installs, what it refuses, and how it goes back."""

from __future__ import annotations

import base64
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography import x509

from edgefed.errors import EdgefedError, UpdateError
from edgefed.security import certificates
from edgefed.security.revocation_lists import make_revocation_list
from edgefed.updates.record import MAX_TRIES
from tests.updates.releases import AUTHORITY, FLEET, NOW, NOW_S, signer
from tests.updates.small_boards import SmallBoard, small_wheels, until, zipped


@pytest.fixture
def board(tmp_path: Path) -> Iterator[SmallBoard]:
    board = SmallBoard(tmp_path / "board")
    board.flash(small_wheels(tmp_path / "flashed", "1.0"))
    board.boot()
    until(lambda: board.agent_runs_in(board.in_use))
    yield board
    board.power_cut()


def test_a_good_release_is_installed_and_stays(board: SmallBoard, tmp_path: Path) -> None:
    before = board.in_use
    board.deliver("second", small_wheels(tmp_path / "second", "2.0"), number=20)
    done = board.update()
    assert done.returncode == 0, done.stderr
    assert (board.result.outcome, board.result.release, board.result.number) == ("installed", "second", 20)
    assert board.version() == "2.0"
    assert board.in_use != before
    assert board.agent_runs_in(board.in_use)
    assert [path.name for path in board.environments.iterdir()] == [board.in_use], "the old one is gone"
    assert not board.is_triggered
    after = board.snapshot()
    starts = board.systemd.starts
    board.boot()
    assert board.snapshot() == after, "what was flashed does not come back"
    assert board.systemd.starts == starts


def test_the_agents_user_reads_what_was_installed_by_whomever(board: SmallBoard, tmp_path: Path) -> None:
    before = os.umask(0o077)  # as that of an operator who starts the installer by hand
    try:
        board.deliver("second", small_wheels(tmp_path / "second", "2.0"))
        board.update()
    finally:
        os.umask(before)
    assert board.result.outcome == "installed"
    environment = board.environments / board.in_use
    for path in (board.home.updates, board.home.record, environment, environment / "pyvenv.cfg"):
        assert path.stat().st_mode & 0o044 == 0o044, path


def test_other_wheels_that_are_flashed_take_the_place_of_an_update(board: SmallBoard, tmp_path: Path) -> None:
    board.deliver("second", small_wheels(tmp_path / "second", "2.0"))
    board.update()
    assert board.version() == "2.0"
    board.flash(small_wheels(tmp_path / "third", "3.0"))
    board.boot()
    assert board.version() == "3.0"


@pytest.mark.parametrize("behaviour", ["crashes", "is never ready", "is not connected", "loses its connection"])
def test_a_release_that_does_not_come_up_is_taken_back(board: SmallBoard, tmp_path: Path, behaviour: str) -> None:
    before, wheels = board.snapshot(), small_wheels(tmp_path / "second", "2.0", behaviour)
    board.deliver("second", wheels)
    done = board.update(comes_s=60 if behaviour == "crashes" else 1)
    assert done.returncode == 0, done.stderr
    assert board.result.outcome == "rolled-back"
    assert board.result.reason
    assert not board.result.may_retry
    assert board.snapshot() == before
    until(lambda: board.agent_runs_in(board.in_use))

    starts, result = board.systemd.starts, board.result
    board.deliver("second", wheels)
    board.update()
    assert board.result == result, "what there is to say of it was said"
    board.deliver("again", wheels, name="second", at_unix_s=NOW_S + 1)
    board.update()
    assert board.result.outcome == "refused"
    assert "was tried before" in board.result.reason
    assert board.systemd.starts == starts, "it is not tried for ever"


@pytest.mark.parametrize("make", [Path.touch, Path.mkdir])
def test_a_name_that_is_no_text_is_refused_as_others_are(board: SmallBoard, make: Callable[[Path], None]) -> None:
    make(Path(os.fsdecode(os.fsencode(board.incoming) + b"/\xff\n.bundle")))
    done = board.update()
    assert done.returncode == 0, done.stderr
    assert (board.result.outcome, board.result.file) == ("refused", r"\udcff\n.bundle")
    assert not board.is_triggered


def test_what_others_have_signed_changes_nothing(board: SmallBoard, tmp_path: Path) -> None:
    before, starts = board.snapshot(), board.systemd.starts
    wheels = small_wheels(tmp_path / "second", "2.0")
    stranger = signer(authority=certificates.make_authority(FLEET, days=90, now=NOW))
    board.deliver("second", wheels, signer=stranger)
    done = board.update()
    assert done.returncode == 0, done.stderr
    assert (board.result.outcome, board.result.release) == ("refused", ""), "it is not believed even its name"
    assert "not of the fleet's authority" in board.result.reason
    assert (board.snapshot(), board.systemd.starts) == (before, starts)
    assert not board.is_triggered


def test_a_fleet_that_does_not_sign_takes_no_code_from_anybody(tmp_path: Path) -> None:
    board = SmallBoard(tmp_path / "board", signed=False)
    board.flash(small_wheels(tmp_path / "flashed", "1.0"))
    board.boot()
    before = board.snapshot()
    board.deliver("second", small_wheels(tmp_path / "second", "2.0"))
    assert board.update().returncode == 0
    assert board.result.outcome == "refused"
    assert "this fleet does not sign" in board.result.reason
    assert board.snapshot() == before
    board.power_cut()


def test_an_authority_that_the_agent_could_have_written_is_not_trusted(board: SmallBoard, tmp_path: Path) -> None:
    (board.config.parent / "ca.pem").chmod(0o666)
    board.deliver("second", small_wheels(tmp_path / "second", "2.0"))
    assert board.update().returncode == 0
    assert board.result.outcome == "refused"
    assert "could be changed by others than root" in board.result.reason
    (board.config.parent / "ca.pem").chmod(0o644)
    board.config.chmod(0o666)
    assert board.update().returncode == UpdateError.exit_code


def test_a_configuration_that_the_agent_could_have_put_there_is_not_read(board: SmallBoard, tmp_path: Path) -> None:
    """A file of root's will do for somebody who may write in its directory: any that names another authority."""
    board.deliver("second", small_wheels(tmp_path / "second", "2.0"))
    board.config.parent.chmod(0o777)
    done = board.update()
    assert done.returncode == UpdateError.exit_code
    assert f"{board.config.parent} could be changed by others than root" in done.stderr
    board.config.parent.chmod(0o755)
    board.update()
    assert board.result.outcome == "installed"


def test_the_authority_that_root_has_counts_before_the_one_that_the_agent_has(
    board: SmallBoard, tmp_path: Path
) -> None:
    """As on a board that was enrolled by a claim token: what the token was flashed with is root's."""
    theirs, ours = board.config.parent / "ca.pem", board.config.parent / "tls" / "ca.pem"
    ours.parent.mkdir()
    ours.write_bytes(theirs.read_bytes())
    foreign = certificates.make_authority(FLEET, days=90, now=NOW)
    theirs.write_bytes(certificates.certificate_pem(foreign.certificate))
    theirs.chmod(0o666)
    wheels = small_wheels(tmp_path / "second", "2.0")
    board.deliver("foreign", wheels, signer=signer(authority=foreign))
    board.update()
    assert board.result.outcome == "refused"
    board.deliver("second", wheels)
    board.update()
    assert board.result.outcome == "installed"


def test_an_aggregator_that_was_revoked_makes_no_releases(board: SmallBoard, tmp_path: Path) -> None:
    stolen, wheels = signer(), small_wheels(tmp_path / "second", "2.0")
    board.deliver("stolen", wheels, signer=stolen)
    sample = json.loads(stolen.sign("topic", b'{"a":1}', 1.5))["signature"]["certificate"]
    serial = x509.load_der_x509_certificate(base64.b64decode(sample)).serial_number
    listed = make_revocation_list(AUTHORITY, {serial: NOW}, number=1, now=NOW)
    crl = board.config.parent / "crl.pem"
    crl.write_bytes(listed)
    with board.config.open("a") as config:
        config.write(f'tls_crl = "{crl}"\n')
    board.update()
    assert (board.result.outcome, board.result.release) == ("refused", "")
    assert "revoked" in board.result.reason
    board.deliver("second", wheels)
    board.update()
    assert board.result.outcome == "installed"
    crl.unlink()
    board.deliver("third", small_wheels(tmp_path / "third", "3.0"), number=30)
    board.update()
    assert board.result.outcome == "refused", "without the list nobody can tell"


def test_numbers_only_grow_and_older_code_comes_back_only_as_a_new_release(board: SmallBoard, tmp_path: Path) -> None:
    old, new = small_wheels(tmp_path / "old", "0.9"), small_wheels(tmp_path / "new", "2.0")

    def deliver(file: str, wheels: Path, **changes: int) -> str:
        board.deliver(file, wheels, **changes)
        assert board.update().returncode == 0
        return board.result.outcome

    assert deliver("new", new, number=20) == "installed"
    assert deliver("old", old, number=9) == "refused"
    assert "this device has had 20 already" in board.result.reason
    starts = board.systemd.starts
    assert deliver("new", new, number=20) == "installed", "it is in use already"
    assert board.systemd.starts == starts
    assert deliver("down", old, number=21) == "installed"
    assert board.version() == "0.9"
    assert deliver("new", new, number=20) == "refused", "what was left does not come back by itself"


@pytest.mark.parametrize("change", [{"architecture": "z80"}, {"python": "3.1"}])
def test_a_release_for_another_machine_is_refused(board: SmallBoard, tmp_path: Path, change: dict[str, str]) -> None:
    board.deliver("second", small_wheels(tmp_path / "second", "2.0"), **change)
    board.update()
    assert board.result.outcome == "refused"
    assert f"is for {next(iter(change.values()))}" in board.result.reason or "Python 3.1," in board.result.reason


def test_a_release_that_cannot_be_built_or_imported_is_refused_and_given_up_in_the_end(
    board: SmallBoard, tmp_path: Path
) -> None:
    before = board.snapshot()
    wheels = small_wheels(tmp_path / "second", "2.0")
    broken = ("__init__", ""), ("cli/__init__", ""), ("cli/agent_process", "import nothing")
    shadow = {f"edgefed/{module}.py": text for module, text in broken}
    zipped(wheels / "edgefed-2.0-py3-none-any.whl", "edgefed", "2.0", shadow)
    for tries_left in (True, True, False):
        board.deliver("second", wheels)
        board.update()
        assert (board.result.outcome, board.result.may_retry) == ("refused", tries_left)
        assert "No module named 'nothing'" in board.result.reason
    board.deliver("second", wheels)
    board.update()
    assert "was tried before" in board.result.reason
    assert board.snapshot() == before


def test_a_release_is_not_given_up_for_want_of_room(board: SmallBoard, tmp_path: Path) -> None:
    wheels = small_wheels(tmp_path / "second", "2.0")
    full = 'echo "OSError: [Errno 28] No space left on device" >&2; exit 1'
    board.systemd.program("python3", f'[ "$*" != -VV ] || exec {sys.executable} -VV\n{full}')
    for _ in range(MAX_TRIES + 1):
        board.deliver("second", wheels)
        board.update()
        assert (board.result.outcome, board.result.may_retry) == ("refused", True)
        assert "No space left" in board.result.reason
    board.systemd.program("python3", f'exec {sys.executable} "$@"')
    board.deliver("second", wheels)
    board.update()
    assert board.result.outcome == "installed"


def test_nothing_in_the_agents_directory_is_followed(board: SmallBoard, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("root's")
    for trap, kind in (("link", "symlink"), ("pipe", "fifo"), ("directory", "directory")):
        place = board.incoming / f"{trap}.bundle"
        if kind == "symlink":
            place.symlink_to(secret)
        elif kind == "fifo":
            os.mkfifo(place)
        else:
            (place / "within").mkdir(parents=True)
        assert board.update().returncode == 0
        assert (board.result.outcome, board.result.file) == ("refused", place.name)
        assert not board.is_triggered
    assert secret.read_text() == "root's"
    elsewhere = tmp_path / "elsewhere"
    board.incoming.rename(elsewhere)
    board.incoming.symlink_to(elsewhere)
    board_result = board.result
    (elsewhere / "x.bundle").write_bytes(b"x")
    done = board.update()
    assert done.returncode == UpdateError.exit_code
    assert "is a link or no directory" in done.stderr
    assert (elsewhere / "x.bundle").exists()
    assert board.result == board_result


def test_a_full_disk_is_told_and_what_has_come_is_installed_once_there_is_room(
    board: SmallBoard, tmp_path: Path
) -> None:
    board.deliver("second", small_wheels(tmp_path / "second", "2.0"))
    before = board.snapshot()
    done = board.update(file_limit_bytes=0)
    assert done.returncode == EdgefedError.exit_code
    assert "cannot be written down, and is begun again later" in done.stderr
    assert "Traceback" not in done.stderr
    assert board.snapshot() == before
    board.update()
    assert board.result.outcome == "installed"


def test_while_a_trial_that_was_cut_short_cannot_be_closed_the_agent_works_on(
    board: SmallBoard, tmp_path: Path
) -> None:
    board.home.updates.mkdir()
    board.home.trial.write_bytes(b'{"file": "x.bundle", "began_unix_s": 1.0, "release": "x", "environment": "gone"}')
    starts = board.systemd.starts
    for _ in range(2):
        assert board.update(file_limit_bytes=0).returncode == EdgefedError.exit_code
        assert board.is_triggered
    assert board.systemd.starts == starts, "it is the agent of before that runs"
    board.update()
    assert board.result.outcome == "rolled-back"
    assert not board.is_triggered


def test_a_damaged_record_stops_updates_and_says_what_to_do(board: SmallBoard, tmp_path: Path) -> None:
    board.deliver("second", small_wheels(tmp_path / "second", "2.0"))
    board.home.updates.mkdir()
    board.home.record.write_text("{")
    done = board.update()
    assert done.returncode == UpdateError.exit_code
    assert "flash the board with new wheels" in done.stderr
    assert board.version() == "1.0"


def test_an_update_outlives_another_python_of_the_system(board: SmallBoard, tmp_path: Path) -> None:
    """The environment is built anew from the update's own wheels, which came along with it."""
    board.deliver("second", small_wheels(tmp_path / "second", "2.0"))
    board.update()
    before = board.in_use
    board.systemd.program("python3", f'[ "$*" = -VV ] && echo another Python || exec {sys.executable} "$@"')
    board.boot()
    assert board.in_use != before
    assert board.version() == "2.0"
    again = board.in_use
    board.boot()
    assert board.in_use == again
