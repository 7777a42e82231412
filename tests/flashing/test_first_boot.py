"""The first-boot script for real: a Python environment from wheels, without a network, by the pip among them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edgefed.flashing import manifest
from edgefed.flashing.wheelhouse import lock, read_wheelhouse
from tests.flashing.small_boards import HERE, make_wheel, pip_wheel

SCRIPT = Path(manifest.__file__).parent / "files/opt/edgefed/bin/first-boot"
PATIENCE_S = 40


class Home:
    """A directory as /opt/edgefed of a board; `systemctl` there writes down what it is told."""

    def __init__(self, path: Path, wheels: Path) -> None:
        self.path = path
        self.wheels = wheels
        programs = path.parent / "programs"
        programs.mkdir()
        self.told = path.parent / "told"
        # The first time, it does not get through to systemd.
        script = f'[ -e {self.told} ]; result=$?; echo "$@" >> {self.told}; exit $result'
        (programs / "systemctl").write_text(f"#!/bin/sh\n{script}\n")
        (programs / "systemctl").chmod(0o755)
        (programs / "python3").symlink_to(sys.executable)
        self.environment = {**os.environ, "PATH": f"{programs}:/usr/bin:/bin"}

    def flash(self) -> None:
        shutil.rmtree(self.path / "wheelhouse", ignore_errors=True)
        shutil.copytree(self.wheels, self.path / "wheelhouse")
        (self.path / "wheelhouse/requirements.lock").write_text(lock(read_wheelhouse(self.wheels, HERE)))

    def boot(self) -> str:
        command = ["sh", str(SCRIPT), str(self.path), "1"]
        said = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        done = subprocess.run(command, **said, text=True, env=self.environment, timeout=PATIENCE_S, check=False)
        assert done.returncode == 0, done.stdout
        return str(done.stdout)

    def interrupted_build(self) -> None:
        """Leaves what a power cut in the middle of a build leaves: an environment without its mark."""
        name = "sha256sum | cut -c 1-16"
        command = f'{{ python3 -VV && cat "{self.path}/wheelhouse/requirements.lock"; }} | {name}'
        done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, env=self.environment, check=True)
        broken = self.path / "environments" / done.stdout.strip()
        (broken / "bin").mkdir(parents=True)
        (broken / "bin/python").write_text("cut off")

    def python(self, code: str) -> str:
        command = [self.path / "venv/bin/python", "-I", "-c", code]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def home(tmp_path: Path) -> Home:
    wheel = pip_wheel()
    if wheel is None:
        pytest.skip("no wheel of pip is here")
    wheels = tmp_path / "wheels"
    make_wheel(wheels, "edgefed", requires=("needed_part",))
    make_wheel(wheels, "needed_part", "1.2")
    shutil.copy(wheel, wheels)
    home = Home(tmp_path / "edgefed", wheels)
    home.flash()
    return home


def test_the_environment_is_built_once_and_beside_it_one_of_other_wheels(home: Home) -> None:
    said = home.boot()
    assert "from 3 wheels" in said
    assert "starting the agent" in said
    version = "from importlib.metadata import version; print(version('needed_part'))"
    assert home.python(version) == "1.2"
    assert home.told.read_text() == "restart --no-block edgefed-agent.service\n" * 2, "until it got through"
    first = (home.path / "venv").readlink()
    assert home.python("import needed_part; print(needed_part.__cached__)").startswith(str(home.path.resolve()))
    compiled = {path.parent.parent.name for path in home.path.rglob("*.pyc")}
    assert compiled >= {"needed_part", "agent_process", "pip"}, "the agent may not write there"

    assert home.boot() == "", "nothing to do at the second boot"
    (home.wheels / "needed_part-1.2-py3-none-any.whl").unlink()
    make_wheel(home.wheels, "needed_part", "1.3")
    home.flash()
    home.interrupted_build()
    assert "building" in home.boot()
    assert home.python(version) == "1.3"
    assert (home.path / "venv").readlink() != first
    assert len(list((home.path / "environments").iterdir())) == 1, "the old one is gone"
    assert len(home.told.read_text().splitlines()) == 3


def test_what_the_machine_says_to_pip_does_not_count(home: Home, tmp_path: Path) -> None:
    settings = tmp_path / "xdg/pip/pip.conf"  # read as /etc/pip.conf is
    settings.parent.mkdir(parents=True)
    settings.write_text(f"[install]\ntarget = {tmp_path}/elsewhere\n")
    home.environment["XDG_CONFIG_DIRS"] = str(tmp_path / "xdg")
    home.boot()
    assert home.python("import needed_part; print('here')") == "here"


def test_an_installer_tries_once_and_starts_the_agent_itself(home: Home) -> None:
    home.boot()
    first = (home.path / "venv").readlink()
    make_wheel(home.wheels, "another_part")
    home.flash()
    wheel = home.path / "wheelhouse/another_part-1.0-py3-none-any.whl"
    whole = wheel.read_bytes()
    wheel.write_bytes(whole + b" ")
    command = ["sh", "-c", f"umask 077; exec sh {SCRIPT} {home.path} once"]

    def install() -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, capture_output=True, text=True, env=home.environment, timeout=PATIENCE_S)

    assert install().returncode != 0
    assert (home.path / "venv").readlink() == first
    wheel.write_bytes(whole)
    assert install().returncode == 0
    assert (home.path / "venv").readlink() != first
    environments = home.path / "environments"
    assert len(list(environments.iterdir())) == 2, "the agent still runs from the old one"
    assert all(path.stat().st_mode & 0o044 for path in environments.rglob("*")), "the agent's user reads it"
    assert len(home.told.read_text().splitlines()) == 2, "only at the first boot"

    home.boot()
    assert len(list(environments.iterdir())) == 1


def test_a_damaged_wheel_is_told_tried_again_and_leaves_the_old_environment(home: Home) -> None:
    home.boot()
    environment = (home.path / "venv").readlink()
    make_wheel(home.wheels, "another_part")
    home.flash()
    wheel = home.path / "wheelhouse/another_part-1.0-py3-none-any.whl"
    whole = wheel.read_bytes()
    wheel.write_bytes(whole + b" ")
    command = ["sh", str(SCRIPT), str(home.path), "1"]
    process = subprocess.Popen(
        command, env=home.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        assert process.stdout is not None
        said = []
        while "trying again" not in (line := process.stdout.readline()):
            assert line, said
            said.append(line)
        assert "DO NOT MATCH THE HASHES" in "".join(said)
        assert line == "edgefed first boot: failed: what went wrong stands above; trying again in 1 s\n"
        assert (home.path / "venv").readlink() == environment
        assert home.python("import edgefed; print('there')") == "there"
        wheel.write_bytes(whole)
        rest, _ = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0, rest
        assert home.python("import another_part; print('there')") == "there"
    finally:
        process.kill()
        process.communicate()
