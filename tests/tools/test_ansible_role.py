"""The Ansible role, played over a real sshd: what it writes, that it writes it once, and that it tells no secrets."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from edgefed.config import read_agent
from edgefed.security.fleet_directory import FleetDirectory, Lifetimes
from edgefed.security.identities import Identity
from tests.flashing.small_boards import make_wheel
from tests.flashing.ssh_boards import make_running_root, needs_sshd, told
from tools.sshd import RunningSshd, running_sshd

pytest.importorskip("ansible")
pytestmark = needs_sshd
ANSIBLE = Path(__file__).parents[2] / "tools/ansible"
SECRET = "what-nobody-else-shall-read"
PATIENCE_S = 120

Play = Callable[..., Any]


@pytest.fixture
def board(tmp_path: Path) -> Iterator[RunningSshd]:
    root = make_running_root(tmp_path / "board")
    (root / "sudo").write_text(
        '#!/bin/sh\nwhile :; do case $1 in -u) shift 2;; -*) shift;; *) exec "$@";; esac; done\n'
    )
    (root / "sudo").chmod(0o755)
    with running_sshd(tmp_path / "sshd", root) as running:
        yield running


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    with tempfile.TemporaryDirectory(prefix="ansible-") as short:  # a socket's name may not be long
        yield {
            **{name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")},
            "ANSIBLE_HOME": str(tmp_path / "ansible"),
            "ANSIBLE_LOCALHOST_WARNING": "false",
            "ANSIBLE_NOCOLOR": "true",
            "ANSIBLE_PIPELINING": "true",
            "ANSIBLE_ROLES_PATH": str(ANSIBLE / "roles"),
            "ANSIBLE_SSH_ARGS": "-o ControlMaster=auto -o ControlPersist=10",
            "ANSIBLE_SSH_CONTROL_PATH_DIR": short,
            "ANSIBLE_STDOUT_CALLBACK": "ansible.builtin.default",
            "PYTHONWARNINGS": "ignore",
        }


@pytest.fixture
def play(board: RunningSshd, environment: dict[str, str], tmp_path: Path) -> Play:
    """Plays the role with some variables against the board, and returns what came of it."""
    make_wheel(tmp_path / "wheels", "edgefed")
    make_wheel(tmp_path / "wheels", "pip")
    (tmp_path / "inventory.ini").write_text(
        f'board ansible_ssh_common_args="-F {board.config}" ansible_become_exe=/sudo\n'
    )
    (tmp_path / "play.yml").write_text(
        "- hosts: all\n  gather_facts: false\n  become: true\n  roles: [edgefed_agent]\n"
        "  tasks:\n    - ansible.builtin.debug: {var: edgefed_files}\n"
    )

    def run(*options: str, **variables: object) -> subprocess.CompletedProcess[str]:
        given = {"edgefed_wheelhouse": str(tmp_path / "wheels"), "edgefed_start": False, **variables}
        command = ["-i", str(tmp_path / "inventory.ini"), str(tmp_path / "play.yml"), "-e", json.dumps(given), *options]
        return ansible(environment, *command)

    return run


def ansible(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).parent / "ansible-playbook"
    return subprocess.run(
        [program, *arguments], env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )


def changed(done: subprocess.CompletedProcess[str]) -> int:
    assert done.returncode == 0, done.stdout + done.stderr
    recap = done.stdout.rsplit("changed=", 1)[1]
    return int(recap.split()[0])


def test_the_role_writes_once_what_is_wanted_and_tells_no_secrets(
    play: Play, board: RunningSshd, tmp_path: Path
) -> None:
    now = datetime.now(timezone.utc)
    fleet = FleetDirectory.create(tmp_path / "fleet", "kitchen", hosts=["broker.local"], lifetimes=Lifetimes(), now=now)
    place = fleet.enroll(Identity("device", "board"), days=30, now=now)
    secret_line = (place / "key.pem").read_text().splitlines()[1]
    (tmp_path / "password").write_text(f"{SECRET}\n")
    who = {
        "edgefed_fleet": "kitchen",
        "edgefed_broker": "broker.local",
        "edgefed_username": "me",
        "edgefed_password_file": str(tmp_path / "password"),
        "edgefed_ca": str(place / "ca.pem"),
        "edgefed_certificate": str(place / "certificate.pem"),
        "edgefed_key": str(place / "key.pem"),
    }
    before = sorted(board.root.rglob("*"))
    looked = play("--check", "--diff", **who)
    assert changed(looked) == 1
    assert "write /opt/edgefed/bin/first-boot (0755, " in looked.stdout
    assert sorted(board.root.rglob("*")) == before

    done = play("-vvvv", **who)
    assert changed(done) == 1
    assert SECRET not in done.stdout + done.stderr
    assert secret_line not in done.stdout + done.stderr
    assert (board.root / "etc/edgefed/password").read_text() == f"{SECRET}\n"
    assert read_agent(board.root / "etc/edgefed/agent.toml").device == "board"
    assert (board.root / "etc/edgefed/tls/key.pem").stat().st_mode & 0o777 == 0o600
    assert told(board.root) == [], "edgefed_start was off"

    assert changed(play(**who)) == 0
    (board.root / "etc/edgefed/agent.toml").write_text("mine")
    make_wheel(tmp_path / "wheels", "one_more")
    done = play(edgefed_fleet="pantry", edgefed_broker="broker.local")
    assert changed(done) == 1
    assert '"builds_environment": true' in done.stdout
    assert (board.root / "opt/edgefed/wheelhouse/one_more-1.0-py3-none-any.whl").is_file()
    assert (board.root / "etc/edgefed/agent.toml").read_text() == "mine", "kept, as flashing does"


LOADED = "LoadState=loaded\nActiveState=active\nSubState=running\n"
needs_systemd = pytest.mark.skipif(
    not all(Path(f"/usr/{name}").exists() for name in ("bin/python3", "bin/systemctl", "lib/systemd/systemd")),
    reason="the board is made of this machine's /usr, which has no systemd or no python3",
)


def has_programs_of_this_machine(board: RunningSshd) -> None:
    """Has logins see this machine's /usr, read-only: Ansible's modules need a Python."""
    root = board.root
    own = {"bin/systemctl": root / "usr/bin/systemctl"}
    for name in ("sysusers.d", "tmpfiles.d"):
        own[f"lib/{name}"] = root / "usr/lib" / name
        own[f"lib/{name}"].mkdir()
    shutil.move(root / "usr", root / "usr.own")
    (root / "usr").mkdir()
    (root / "root").mkdir()
    if not (root / "lib64").is_dir():
        (root / "lib64").symlink_to("usr/lib64")
    mounts = [f"mount --rbind /usr {root}/usr", f"mount -o remount,bind,ro {root}/usr"]
    mounts += [f"mount --bind {root}/usr.own/{name} {root}/usr/{name}" for name in own]
    board.land_in(setup=" && ".join(mounts))


@needs_systemd
def test_the_handlers_start_what_has_changed(play: Play, board: RunningSshd, tmp_path: Path) -> None:
    has_programs_of_this_machine(board)
    (board.root / "answers/systemctl-show").write_text(LOADED)
    who = {"edgefed_fleet": "kitchen", "edgefed_broker": "broker.local", "edgefed_start": True}

    def started(**variables: object) -> list[str]:
        (board.root / "told").unlink(missing_ok=True)
        done = play(**who, **variables)
        assert done.returncode == 0, done.stdout + done.stderr
        return [line for line in told(board.root) if line.split()[1] in ("daemon-reload", "restart", "start")]

    first_boot = ["systemctl daemon-reload", "systemctl restart edgefed-firstboot.service"]
    assert started() == first_boot, "that restarts the agent, when it has built"
    assert started() == []
    assert started(edgefed_data="/srv/examples") == [*first_boot, "systemctl restart edgefed-agent.service"]


def test_what_is_wrong_is_told(play: Play, board: RunningSshd, tmp_path: Path) -> None:
    done = play()
    assert done.returncode != 0
    assert "name device, fleet and broker" in done.stdout
    done = play(edgefed_fleet="kitchen", edgefed_broker="b", edgefed_key=str(tmp_path / "nowhere"))
    assert done.returncode != 0
    assert "nowhere" in done.stdout + done.stderr
    assert not (board.root / "etc/edgefed").exists()


def test_the_example_is_a_playbook(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "inventory.ini").write_text("[boards]\nboard-07\n")
    done = ansible(environment, "-i", str(tmp_path / "inventory.ini"), "--syntax-check", str(ANSIBLE / "example.yml"))
    assert done.returncode == 0, done.stdout + done.stderr
