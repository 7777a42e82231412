"""What is written: complete, with the right modes, and in terms that systemd accepts."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from edgefed.errors import FlashError
from edgefed.flashing import agent_toml
from edgefed.flashing.manifest import File, Installation, manifest, read_record
from edgefed.flashing.wheelhouse import read_wheelhouse
from edgefed.flashing.wifi import Wifi
from tests.flashing.small_boards import HERE

FILES = Path(agent_toml.__file__).parent / "files"
SYSTEM = FILES / "etc/systemd/system"
AGENT, FIRST_BOOT, UPDATE = (SYSTEM / f"edgefed-{name}.service" for name in ("agent", "firstboot", "update"))
WATCH = SYSTEM / "edgefed-update.path"
needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not here")


def test_everything_is_written_with_its_mode(wheelhouse: Path) -> None:
    installation = Installation(
        wheels=read_wheelhouse(wheelhouse, HERE),
        agent_toml=b"a",
        password=b"p",
        ca=b"c",
        certificate=b"d",
        key=b"k",
        wifi=Wifi("net", "long enough"),
    )
    planned = manifest(installation, HERE)
    assert {file.path: f"{file.mode:o}" for file in planned.files} == {
        "/etc/NetworkManager/system-connections/edgefed-wifi.nmconnection": "600",
        "/etc/edgefed/agent.toml": "640",
        "/etc/edgefed/password": "600",
        "/etc/edgefed/tls/ca.pem": "644",
        "/etc/edgefed/tls/certificate.pem": "644",
        "/etc/edgefed/tls/key.pem": "600",
        "/etc/systemd/system.conf.d/50-edgefed-watchdog.conf": "644",
        "/etc/systemd/system/edgefed-agent.service": "644",
        "/etc/systemd/system/edgefed-firstboot.service": "644",
        "/etc/systemd/system/edgefed-update.path": "644",
        "/etc/systemd/system/edgefed-update.service": "644",
        "/etc/udev/rules.d/70-edgefed-power.rules": "644",
        "/opt/edgefed/bin/environment": "755",
        "/opt/edgefed/bin/first-boot": "755",
        "/opt/edgefed/bin/update": "755",
        "/opt/edgefed/wheelhouse/edgefed-1.0-py3-none-any.whl": "644",
        "/opt/edgefed/wheelhouse/needed_part-1.2-py3-none-any.whl": "644",
        "/opt/edgefed/wheelhouse/pip-24.0-py3-none-any.whl": "644",
        "/opt/edgefed/wheelhouse/requirements.lock": "644",
        "/usr/lib/sysusers.d/edgefed.conf": "644",
        "/usr/lib/tmpfiles.d/edgefed.conf": "644",
    }
    record = planned.record()
    wheel = wheelhouse / "pip-24.0-py3-none-any.whl"
    assert (
        record.files[f"/opt/edgefed/wheelhouse/{wheel.name}"].sha256 == hashlib.sha256(wheel.read_bytes()).hexdigest()
    )
    assert record.files["/etc/edgefed/tls/key.pem"].mode == "0600"
    assert set(record.files) == {file.path for file in planned.files}
    assert set(record.links) == {
        f"/etc/systemd/system/multi-user.target.wants/edgefed-{unit}"
        for unit in ("agent.service", "firstboot.service", "update.path")
    }


def test_what_is_not_given_is_not_written(wheelhouse: Path) -> None:
    paths = {file.path for file in manifest(Installation(wheels=read_wheelhouse(wheelhouse, HERE)), HERE).files}
    assert {path for path in paths if path.startswith("/etc/edgefed")} == set()
    assert "/etc/systemd/system/edgefed-agent.service" in paths


def test_a_file_knows_its_size_and_hash(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"content")
    from_path, from_bytes = File("/a", tmp_path / "source"), File("/a", b"content")
    assert from_path.size_bytes == from_bytes.size_bytes == 7
    assert from_path.sha256 == from_bytes.sha256 == hashlib.sha256(b"content").hexdigest()


def test_a_damaged_record_is_told() -> None:
    with pytest.raises(FlashError, match=r"board: /etc/edgefed/flash-manifest\.json is damaged"):
        read_record(b'{"edgefed": "0.1', "board")


@needs_systemd
def test_systemd_finds_nothing_wrong_with_the_units(tmp_path: Path) -> None:
    shutil.copytree(FILES, tmp_path, dirs_exist_ok=True)
    for program in (
        "opt/edgefed/venv/bin/python",
        *(f"usr/bin/{name}" for name in ("systemd-sysusers", "udevadm", "flock")),
    ):
        (tmp_path / program).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy("/bin/true", tmp_path / program)
    shutil.copy("/bin/true", tmp_path / "usr/bin/systemd-tmpfiles")
    units = tmp_path / "usr/lib/systemd/system"
    units.mkdir(parents=True)
    for target in ("basic", "multi-user", "network-online", "sysinit", "time-sync", "shutdown", "paths"):
        (units / f"{target}.target").write_text("[Unit]\nDefaultDependencies=no\n")
    (tmp_path / "usr/lib/systemd/system/-.slice").touch()
    command = ["systemd-analyze", "verify", f"--root={tmp_path}", "--man=no"]
    checked = [f"/etc/systemd/system/{unit.name}" for unit in (AGENT, FIRST_BOOT, UPDATE, WATCH)]
    done = subprocess.run([*command, *checked], capture_output=True, text=True, check=False)
    ours = [line for line in done.stderr.splitlines() if "edgefed" in line]
    assert (done.returncode, ours) == (0, [])
    agent = tmp_path / "etc/systemd/system" / AGENT.name
    agent.write_text(agent.read_text().replace("Type=notify", "Type=notified"))
    done = subprocess.run([*command, *checked], capture_output=True, text=True, check=False)
    assert "Failed to parse service type" in done.stderr, "verify looks at this very file"


@needs_systemd
@pytest.mark.parametrize("unit", [AGENT, FIRST_BOOT, UPDATE])
def test_the_units_are_not_exposed(unit: Path) -> None:
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", "--threshold=40", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-300:]


def test_nothing_hides_the_gpu_from_the_agent() -> None:
    keys = dict(re.findall(r"(?m)^(\w+)=(.*)$", AGENT.read_text()))
    hiding = {"PrivateDevices", "DeviceAllow", "DevicePolicy", "ProtectClock", "MemoryDenyWriteExecute"}
    assert hiding.isdisjoint(keys)
    assert keys["OOMPolicy"] == "continue", "the death of a worker is not the agent's"


def test_the_places_in_the_files_are_those_of_the_code() -> None:
    lines = (FILES / "usr/lib/tmpfiles.d/edgefed.conf").read_text().splitlines()
    places = {line.split()[1] for line in lines if not line.startswith("#")}
    own = {agent_toml.STATE, agent_toml.DATA, agent_toml.CONFIG, agent_toml.PASSWORD, agent_toml.KEY}
    assert places == {*own, "/opt/edgefed/lock"}
    assert " /opt/edgefed/lock " in FIRST_BOOT.read_text()
    assert f" {agent_toml.CONFIG} " in AGENT.read_text()


@needs_systemd
def test_systemd_makes_the_user_and_the_directories_of_these_files(tmp_path: Path) -> None:
    if shutil.which("systemd-sysusers") is None or shutil.which("systemd-tmpfiles") is None:
        pytest.skip("systemd-sysusers or systemd-tmpfiles is not here")
    for name in ("sysusers.d", "tmpfiles.d"):
        shutil.copytree(FILES / "usr/lib" / name, tmp_path / "usr/lib" / name)
    (tmp_path / "etc/edgefed/tls").mkdir(parents=True)
    key = tmp_path / "etc/edgefed/tls/key.pem"
    key.write_bytes(b"k")
    key.chmod(0o600)
    done = subprocess.run(
        ["systemd-sysusers", f"--root={tmp_path}", "edgefed.conf"], capture_output=True, text=True, check=False
    )
    if "Permission denied" in done.stderr or "not permitted" in done.stderr:
        pytest.skip("making a user takes root")
    assert done.returncode == 0, done.stderr
    (user,) = [
        line.split(":") for line in (tmp_path / "etc/passwd").read_text().splitlines() if line.startswith("edgefed:")
    ]
    groups = {line.split(":")[0]: line.split(":")[3] for line in (tmp_path / "etc/group").read_text().splitlines()}
    assert groups["video"] == groups["render"] == "edgefed"
    assert user[5] == "/var/lib/edgefed"
    done = subprocess.run(
        ["systemd-tmpfiles", "--create", f"--root={tmp_path}", "edgefed.conf"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "var/lib/edgefed/data").stat().st_uid == int(user[2])
    assert (key.stat().st_uid, key.stat().st_mode & 0o777) == (int(user[2]), 0o400)
