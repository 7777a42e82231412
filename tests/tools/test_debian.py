"""The Debian package: what is in it, that it can be built again, and its life on a root file system under real dpkg."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edgefed.errors import ConfigError, FlashError
from edgefed.flashing.board import Board
from edgefed.flashing.manifest import Installation, manifest
from edgefed.flashing.wheelhouse import read_wheelhouse
from tests.flashing.small_boards import make_wheel, pip_wheel
from tools.debian import package
from tools.debian.build import build
from tools.debian.target import SUITES, find_target
from tools.debian.wheels import download, needed_on

PROJECT = Path(__file__).resolve().parents[2]
TARGET = find_target("amd64", "3.11")
SETTINGS = {"maintainer": "Test <test@example.org>", "epoch_s": 1_700_000_000}
needs_dpkg = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb is not here: no Debian")


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    """Wheels of which an environment can be built."""
    directory = tmp_path / "wheels"
    make_wheel(directory, "edgefed", requires=("needed_part",))
    make_wheel(directory, "needed_part", "1.2")
    if (wheel := pip_wheel()) is None:
        pytest.skip("no wheel of pip is here")
    shutil.copy(wheel, directory)
    return directory


def output(*command: str | Path) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@needs_dpkg
def test_it_has_the_files_of_flashing_in_the_places_of_packages(wheels: Path, tmp_path: Path) -> None:
    deb = build(TARGET, wheels, tmp_path / "dist", **SETTINGS)
    assert deb.name == f"edgefed-agent_{package.__version__}+py3.11_amd64.deb"
    listed = {line.split()[5][1:]: line.split()[:2] for line in output("dpkg-deb", "-c", deb).splitlines()}
    planned = manifest(Installation(wheels=read_wheelhouse(wheels, TARGET.board)), TARGET.board).files
    output("dpkg-deb", "-x", deb, tmp_path / "x")
    for file in planned:
        path = file.path.replace("/etc/systemd", "/usr/lib/systemd").replace("/etc/udev", "/usr/lib/udev")
        content = file.source if isinstance(file.source, bytes) else file.source.read_bytes()
        assert (tmp_path / "x" / path[1:]).read_bytes() == content, path
        assert listed[path] == ["-rwxr-xr-x" if file.mode == 0o755 else "-rw-r--r--", "root/root"]
    others = set(listed) - {file.path.replace("/etc/", "/usr/lib/") for file in planned}
    assert {path for path in others if not path.endswith("/")} == {
        "/etc/edgefed/agent.toml.example",
        "/usr/share/doc/edgefed-agent/changelog.gz",
        "/usr/share/doc/edgefed-agent/copyright",
        "/usr/share/lintian/overrides/edgefed-agent",
    }
    fields = output("dpkg-deb", "-f", deb, "Depends", "Architecture", "Maintainer")
    assert "python3 (>= 3.11~), python3 (<< 3.12~), python3-venv" in fields
    assert "Architecture: amd64\n" in fields
    output("dpkg-deb", "-e", deb, tmp_path / "control")
    assert (tmp_path / "control/conffiles").read_text() == "/etc/edgefed/agent.toml.example\n"
    subprocess.run(["md5sum", "--check", "--quiet", tmp_path / "control/md5sums"], cwd=tmp_path / "x", check=True)


@needs_dpkg
def test_the_same_wheels_give_the_same_package_whenever_and_wherever_it_is_built(wheels: Path, tmp_path: Path) -> None:
    first = build(TARGET, wheels, tmp_path / "first", **SETTINGS)
    for wheel in wheels.iterdir():
        os.utime(wheel, (0, 0))
    before = os.umask(0o077)
    try:
        second = build(TARGET, wheels, tmp_path / "second", **SETTINGS)
    finally:
        os.umask(before)
    assert first.read_bytes() == second.read_bytes()
    third = build(TARGET, wheels, tmp_path / "third", **{**SETTINGS, "epoch_s": 1_700_000_001})
    assert third.read_bytes() != first.read_bytes()
    assert [path.name for path in (tmp_path / "first").iterdir()] == [first.name], "nothing else is left there"


@needs_dpkg
@pytest.mark.skipif(shutil.which("lintian") is None, reason="lintian is not here")
def test_lintian_finds_nothing_that_is_not_answered(wheels: Path, tmp_path: Path) -> None:
    deb = build(TARGET, wheels, tmp_path / "dist", **SETTINGS)
    done = subprocess.run(["lintian", "--allow-root", deb], capture_output=True, text=True, check=False)
    assert done.stdout == ""


class Root:
    """A root file system with a package database, and the machine's own programs for the maintainer scripts."""

    def __init__(self, path: Path) -> None:
        self.path = path
        for directory in ("etc", "usr/lib", "var/lib/dpkg/info", "var/lib/dpkg/updates", "bin"):
            (path / directory).mkdir(parents=True)
        (path / "lib").symlink_to("usr/lib")
        (path / "var/lib/dpkg/status").touch()
        programs = path.parent / "programs"
        programs.mkdir()
        (programs / "python3").symlink_to(sys.executable)
        self.environment = {**os.environ, "PATH": f"{programs}:/usr/sbin:/usr/bin:/sbin:/bin"}
        self.log = ""

    def dpkg(self, *arguments: str | Path) -> int:
        forced = ("--force-script-chrootless", "--force-depends", "--force-not-root")
        command = ["dpkg", f"--root={self.path}", "--log=/dev/null", *forced, *arguments]
        done = subprocess.run(
            ["fakeroot", *command] if os.getuid() else command,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        self.log = done.stdout
        return done.returncode

    def has(self, path: str) -> bool:
        return (self.path / path).exists()

    def starts_at_boot(self) -> set[str]:
        wants = self.path / "etc/systemd/system/multi-user.target.wants"
        return {path.name for path in wants.iterdir()} if wants.is_dir() else set()

    def imports(self, module: str) -> bool:
        python = self.path / "opt/edgefed/venv/bin/python"
        return subprocess.run([python, "-I", "-c", f"import {module}"], stderr=subprocess.DEVNULL).returncode == 0


@pytest.fixture
def root(tmp_path: Path) -> Root:
    needed = (
        "dpkg",
        "deb-systemd-helper",
        "systemd-sysusers",
        "systemd-tmpfiles",
        *(["fakeroot"] if os.getuid() else []),
    )
    if missing := [program for program in needed if shutil.which(program, path=f"{os.environ['PATH']}:/sbin") is None]:
        pytest.skip(f"not here: {', '.join(missing)}")
    return Root(tmp_path / "root")


Builder = Callable[[str], Path]
"""Builds the package of a version of the project."""


@pytest.fixture
def build_version(wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Builder:
    def build_version(version: str) -> Path:
        monkeypatch.setattr(package, "__version__", version)
        return build(TARGET, wheels, tmp_path / "dist", **SETTINGS)

    return build_version


def test_it_is_installed_upgraded_removed_and_purged(root: Root, build_version: Builder, wheels: Path) -> None:
    assert root.dpkg("--install", build_version("1.0")) == 0, root.log
    assert "write /etc/edgefed/agent.toml" in root.log
    assert root.imports("edgefed.cli.agent_process")
    assert "edgefed:" in (root.path / "etc/passwd").read_text()
    assert root.has("var/lib/edgefed/data")
    assert root.starts_at_boot() == {"edgefed-agent.service", "edgefed-firstboot.service", "edgefed-update.path"}

    example = root.path / "etc/edgefed/agent.toml.example"
    (root.path / "etc/edgefed/agent.toml").write_text(f"{example.read_text()}# mine\n")
    example.write_text("# changed\n")
    (root.path / "var/lib/edgefed/data/mine.jsonl").write_text("{}\n")
    (root.path / "etc/systemd/system/multi-user.target.wants/edgefed-agent.service").unlink()
    make_wheel(wheels, "another_part")
    assert not root.imports("another_part")
    assert root.dpkg("--install", build_version("1.1")) == 0, root.log
    assert "write /etc/edgefed/agent.toml" not in root.log
    assert root.imports("another_part")
    assert example.read_text() == "# changed\n"
    assert (root.path / "etc/edgefed/agent.toml").read_text().endswith("# mine\n")
    assert root.starts_at_boot() == {"edgefed-firstboot.service", "edgefed-update.path"}, (
        "what the administrator disabled stays so"
    )

    assert root.dpkg("--remove", "edgefed-agent") == 0, root.log
    assert not root.has("opt/edgefed")
    assert not root.has("usr/lib/systemd/system/edgefed-agent.service")
    assert root.has("var/lib/edgefed/data/mine.jsonl")
    assert root.dpkg("--purge", "edgefed-agent") == 0, root.log
    assert not root.has("var/lib/edgefed")
    assert not example.exists()
    assert root.has("etc/edgefed/agent.toml"), "the package never wrote it"
    assert root.starts_at_boot() == set()


def test_an_environment_that_cannot_be_built_fails_the_installation_until_it_can(
    root: Root, build_version: Builder
) -> None:
    deb = build_version("1.0")
    assert root.dpkg("--unpack", deb) == 0, root.log
    wheel = root.path / "opt/edgefed/wheelhouse/needed_part-1.2-py3-none-any.whl"
    whole = wheel.read_bytes()
    wheel.write_bytes(whole[:-1])
    assert root.dpkg("--configure", "edgefed-agent") != 0
    assert "DO NOT MATCH THE HASHES" in root.log
    wheel.write_bytes(whole)
    assert root.dpkg("--configure", "edgefed-agent") == 0, root.log
    assert root.imports("needed_part")


def test_a_board_that_was_flashed_is_left_as_it_is(root: Root, build_version: Builder) -> None:
    record = root.path / "etc/edgefed/flash-manifest.json"
    record.parent.mkdir()
    record.write_text("{}")
    assert root.dpkg("--install", build_version("1.0")) != 0
    assert "this board was flashed by edgefed flash" in root.log
    assert not root.has("opt/edgefed")


def test_what_it_is_made_for_is_a_release_that_is_known() -> None:
    assert find_target("arm64", "3.12").board.architecture == "aarch64"
    assert {find_target("amd64", f"{major}.{minor}").board.python for major, minor in SUITES} == set(SUITES)
    with pytest.raises(ConfigError, match="architecture armhf: a package is made for one of amd64, arm64"):
        find_target("armhf", "3.11")
    with pytest.raises(ConfigError, match=r"Python 3\.9: .* 3\.11 \(Debian 12"):
        find_target("amd64", "3.9")


@needs_dpkg
def test_the_program_says_where_the_package_is_or_why_there_is_none(wheels: Path, tmp_path: Path) -> None:
    make_wheel(wheels, "compiled", tags="cp311-cp311-manylinux_2_17_aarch64")
    command = [sys.executable, "-m", "tools.debian.build", "--wheelhouse", wheels, tmp_path / "dist"]
    done = subprocess.run(
        [*command, "--architecture", "arm64"], cwd=PROJECT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert Path(done.stdout.strip()).is_file()
    done = subprocess.run(
        [*command, "--architecture", "amd64"], cwd=PROJECT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "make deb: " in done.stderr
    assert "is for manylinux_2_17_aarch64" in done.stderr
    environment = {**os.environ, "SOURCE_DATE_EPOCH": "yesterday"}
    done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False)
    assert "SOURCE_DATE_EPOCH=yesterday: is not a number" in done.stderr


BOARD = Board(architecture="aarch64", python=(3, 10), glibc=(2, 35))


def test_conditions_hold_on_the_board_and_not_here() -> None:
    given = ("always>=1", "old; python_version < '3.11'", "new; python_version >= '3.11'", "x; extra == 'all'")
    given = (*given, "arm; platform_machine == 'aarch64'", "win; sys_platform == 'win32'")
    assert [requirement.name for requirement in needed_on(given, BOARD)] == ["always", "old", "arm"]


def test_what_only_the_board_needs_is_fetched_too(tmp_path: Path) -> None:
    """Here a Python that needs nothing of it runs pip."""
    index, wheels = tmp_path / "index", tmp_path / "wheels"
    condition = "implementation_name == 'cpython' and platform_machine == 'aarch64' and python_version < '3.11'"
    make_wheel(wheels, "edgefed", requires=(f"first_part>=1; {condition}", "never; python_version >= '3.11'"))
    make_wheel(index, "first_part", "1.0", requires=(f"second_part; {condition}",))
    make_wheel(index, "first_part", "2.0", requires=(f"second_part; {condition}",))
    make_wheel(index, "second_part", tags="cp310-cp310-manylinux_2_28_aarch64")
    make_wheel(index, "pip", "99")
    make_wheel(index, "never")
    constraints = tmp_path / "constraints.txt"
    constraints.write_text(
        "# pins\nfirst_part==2.0; python_version >= '3.11'\nfirst_part==1.0; python_version < '3.11'\n"
    )
    options = ("--no-index", "--find-links", str(index))
    download(wheels, BOARD, constraints, options=options)
    names = {wheel.name.partition("-py3")[0].partition("-cp310")[0] for wheel in wheels.iterdir()}
    assert names - {"never-1.0"} == {"edgefed-1.0", "first_part-1.0", "pip-99", "second_part-1.0"}
    (index / "second_part-1.0-cp310-cp310-manylinux_2_28_aarch64.whl").unlink()
    (wheels / "second_part-1.0-cp310-cp310-manylinux_2_28_aarch64.whl").unlink()
    with pytest.raises(FlashError, match="pip download failed"):
        download(wheels, BOARD, constraints, options=options)
