"""`edgefed flash` as it is typed: what it writes, what it would write, and what it says against wrong input."""

from __future__ import annotations

import json
import os
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgefed.config import read_agent
from tests.flashing.small_boards import Rootfs, make_image, make_rootfs, make_wheel, needs_e2fsprogs
from tests.flashing.ssh_boards import make_running_root, needs_sshd
from tools.sshd import running_sshd

Run = Callable[..., Any]
WHO = ("--device", "board-07", "--fleet", "kitchen", "--broker", "broker.local")


@pytest.fixture
def rootfs(tmp_path: Path) -> Rootfs:
    return lambda name="rootfs", **options: make_rootfs(tmp_path / name, **options)


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    make_wheel(tmp_path / "wheels", "edgefed")
    make_wheel(tmp_path / "wheels", "pip")
    make_wheel(tmp_path / "wheels", "torch")
    return tmp_path / "wheels"


@pytest.fixture
def enrolled(edgefed: Run, tmp_path: Path) -> Callable[..., Path]:
    """Has a real fleet enroll a device: (device, fleet=) → the directory with its ca, certificate and key."""

    def enroll(device: str, fleet: str = "kitchen") -> Path:
        directory = tmp_path / "enrolled" / fleet
        if not directory.exists():
            assert edgefed("fleet", "init", directory, "--broker-host", "127.0.0.1").code == 0
        assert edgefed("fleet", "enroll", device, "--fleet", directory).code == 0
        return directory / "devices" / device

    return enroll


def papers(place: Path) -> list[str | Path]:
    """Returns the options that give a board what an enrolled device has."""
    return ["--ca", place / "ca.pem", "--certificate", place / "certificate.pem", "--key", place / "key.pem"]


def test_a_root_file_system_is_flashed(
    edgefed: Run, rootfs: Rootfs, wheels: Path, enrolled: Callable[..., Path]
) -> None:
    root = rootfs()
    (root.parent / "password").write_text("secret\n")
    place = enrolled("board-07")
    options = [*papers(place), "--signed", "--username", "me", "--password-file", root.parent / "password"]
    done = edgefed("flash", "rootfs", root, "--wheelhouse", wheels, *WHO, *options)
    assert (done.code, done.err) == (0, "")
    assert "files written" in done.out
    agent = read_agent(root / "etc/edgefed/agent.toml")
    assert (agent.device, agent.broker.port) == ("board-07", 8883)
    written = {
        name: (root / "etc/edgefed/tls" / name).read_bytes() for name in ("ca.pem", "certificate.pem", "key.pem")
    }
    assert written == {name: (place / name).read_bytes() for name in written}
    assert (root / "etc/edgefed/tls/key.pem").stat().st_mode & 0o777 == 0o600
    assert (root / "etc/edgefed/password").read_text() == "secret\n"

    done = edgefed("flash", "rootfs", root, "--wheelhouse", wheels, *WHO)
    assert done.code == 15
    assert "with --upgrade" in done.err
    (root / "etc/edgefed/agent.toml").write_text("mine")
    done = edgefed("flash", "rootfs", root, "--wheelhouse", wheels, "--upgrade", *WHO)
    assert done.code == 0, done.err
    assert "/etc/edgefed/agent.toml was changed on the board" in done.out


def test_a_board_that_will_not_train_is_told_of(edgefed: Run, rootfs: Rootfs, wheels: Path) -> None:
    root, torch = rootfs(), wheels / "torch-1.0-py3-none-any.whl"
    make_wheel(wheels, "torch_part")
    torch.rename(wheels.parent / torch.name)
    command = ("flash", "rootfs", root, "-w", wheels)
    planned = edgefed(*command, *WHO, "--dry-run", "--json")
    assert json.loads(planned.out)["has_torch"] is False
    done = edgefed(*command, *WHO)
    assert done.code == 0
    assert planned.err == done.err
    assert "will not be able to train: put torch's wheels there" in done.err
    (wheels.parent / torch.name).rename(torch)
    done = edgefed(*command, "--upgrade", "--json")
    assert (done.code, done.err, json.loads(done.out)["has_torch"]) == (0, "", True)


@pytest.fixture
def token(edgefed: Run, tmp_path: Path) -> Callable[..., Path]:
    """Has a real fleet make a token: (device, fleet=) → its file."""

    def make(device: str, fleet: str = "kitchen") -> Path:
        directory, file = tmp_path / "fleets" / fleet, tmp_path / f"{fleet}-{device}.token"
        if not directory.exists():
            assert edgefed("fleet", "init", directory, "--broker-host", "127.0.0.1").code == 0
        assert edgefed("fleet", "token", device, "--fleet", directory, "--output", file).code == 0
        return file

    return make


def test_a_claim_token_goes_where_the_agent_looks(
    edgefed: Run, rootfs: Rootfs, wheels: Path, token: Callable[..., Path], tmp_path: Path
) -> None:
    root, file = rootfs(), token("board-07")
    done = edgefed("flash", "rootfs", root, "--wheelhouse", wheels, *WHO, "--token", file)
    assert (done.code, done.err) == (0, "")
    written = root / "etc/edgefed/claim/token"
    assert (written.read_bytes(), written.stat().st_mode & 0o777) == (file.read_bytes(), 0o600)
    agent = read_agent(root / "etc/edgefed/agent.toml")
    assert (agent.broker.port, agent.broker.tls_key) == (8883, "/var/lib/edgefed/tls/key.pem")
    authority = root / "etc/edgefed/tls/ca.pem"
    assert authority.read_text() == json.loads(file.read_text())["ca"], "root's own, for releases of the agent"

    written.unlink()  # as the agent does
    done = edgefed("flash", "rootfs", root, "--wheelhouse", wheels, "--upgrade")
    assert (done.code, written.exists(), authority.exists()) == (0, False, True)

    config = tmp_path / "agent.toml"
    config.write_bytes((root / "etc/edgefed/agent.toml").read_bytes())
    other = rootfs("other")
    done = edgefed("flash", "rootfs", other, "--wheelhouse", wheels, "--config", config, "--token", token("board-*"))
    assert (done.code, done.err) == (0, "")
    config.write_text(config.read_text().replace("/var/lib/edgefed/tls", "/srv"))
    done = edgefed("flash", "rootfs", rootfs("third"), "-w", wheels, "--config", config, "--token", file)
    assert (done.code, "must be below /var/lib/edgefed" in done.err) == (3, True)


def test_a_token_that_this_board_could_not_use(
    edgefed: Run, rootfs: Rootfs, wheels: Path, token: Callable[..., Path], enrolled: Callable[..., Path]
) -> None:
    root = rootfs()
    file, place = token("board-07"), enrolled("board-07")
    ca = place / "ca.pem"
    expired = token("board-0?")
    document = json.loads(expired.read_text())
    expired.write_text(json.dumps({**document, "expires": "2020-01-01T00:00:00Z"}))
    readable = token("board-*")
    readable.chmod(0o644)
    for options, message in [
        ([*WHO, "--token", token("oven")], "is for oven, and the board will be board-07"),
        ([*WHO, "--token", token("board-07", "cellar")], "is of fleet cellar, and the board is for fleet kitchen"),
        ([*WHO, "--token", expired], "has expired on 2020-01-01 00:00 UTC"),
        ([*WHO, "--token", readable], "holds a secret, and its mode 0644"),
        ([*WHO, "--token", ca], "others than its owner"),
        ([*WHO, "--token", file, *papers(place)], "leave those options out"),
        ([*WHO, "--token", file, "--ca", ca], "leave those options out"),
        (["--token", file], "--device and --fleet and --broker must be given"),
    ]:
        done = edgefed("flash", "rootfs", root, "--wheelhouse", wheels, *options)
        assert (done.code, done.out) == (3, ""), done.err
        assert message in done.err
    assert not (root / "etc/edgefed").exists()


def test_a_dry_run_says_what_would_be_written_and_writes_nothing(edgefed: Run, rootfs: Rootfs, wheels: Path) -> None:
    root = rootfs()
    before = sorted(root.rglob("*"))
    table = edgefed("flash", "rootfs", root, "--wheelhouse", wheels, *WHO, "--dry-run")
    assert table.code == 0, table.err
    rows = [line.split("\t") for line in table.out.splitlines()]
    assert ["write", "/opt/edgefed/bin/first-boot", "0755"] in [row[:3] for row in rows]
    document = json.loads(edgefed("flash", "rootfs", root, "--wheelhouse", wheels, *WHO, "--dry-run", "--json").out)
    assert document["dry_run"] is True
    assert [file["path"] for file in document["write"]] == [row[1] for row in rows if row[0] == "write"]
    assert sorted(root.rglob("*")) == before

    written = json.loads(edgefed("flash", "rootfs", root, "--wheelhouse", wheels, *WHO, "--json").out)
    assert written == {**document, "dry_run": False}
    assert all((root / file["path"].lstrip("/")).stat().st_size == file["size_bytes"] for file in written["write"])


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--device", "a"], 3, "--fleet and --broker must be given"),
        (["--device", "A b", "--fleet", "f", "--broker", "h"], 15, "agent.toml would be refused"),
        ([*WHO[:4], "--broker", "h:port"], 3, "--broker h:port: is not HOST, HOST:PORT"),
        ([*WHO, "--key", "nowhere"], 3, "--certificate and --key belong together"),
        ([*WHO, "--ca", "nowhere"], 3, "nowhere: cannot be read"),
        ([*WHO, "--ca", "text"], 3, "text: is not a certificate in PEM format"),
        ([*WHO, "--certificate", "ca", "--key", "key"], 3, "--certificate needs --ca"),
        ([*WHO, "--signed"], 3, "--signed needs --ca, --certificate and --key"),
        ([*WHO, "--wifi-password-file", "text"], 3, "needs --wifi"),
        ([*WHO, "--wifi-country", "DE"], 3, "--wifi-country needs --wifi"),
        ([*WHO, "--wifi", "net", "--wifi-country", "Germany"], 15, "'Germany' is not two capital letters"),
        ([*WHO, "--wifi", "net", "--wifi-password-file", "empty"], 3, "empty: its first line is empty"),
        ([*WHO, "--wifi", "net", "--wifi-password-file", "short"], 15, "5 characters: 8 to 63"),
        ([*WHO, "--wifi", "net", "--wifi-password-file", "text"], 15, "no NetworkManager"),
        ([], 15, "name device, fleet and broker"),
    ],
)
def test_wrong_input_is_told(
    edgefed: Run,
    rootfs: Rootfs,
    wheels: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    code: int,
    message: str,
) -> None:
    root = rootfs()
    for name, text in (("text", "some words"), ("empty", "\n"), ("short", "short\n")):
        (root.parent / name).write_text(text)
    monkeypatch.chdir(root.parent)
    done = edgefed("flash", "rootfs", root, "--wheelhouse", wheels, *options)
    assert (done.code, done.out) == (code, "")
    assert message in done.err
    assert not (root / "etc/edgefed").exists()


@needs_e2fsprogs
@needs_sshd
def test_certificates_that_the_board_could_not_use_are_refused_however_it_is_flashed(
    edgefed: Run, rootfs: Rootfs, wheels: Path, enrolled: Callable[..., Path], tmp_path: Path
) -> None:
    other, cellar = enrolled("board-08"), enrolled("board-07", "cellar")
    own = tmp_path / "own.toml"
    tls = {name: f"/etc/edgefed/tls/{name}.pem" for name in ("ca", "certificate", "key")}
    broker = "\n".join(f'tls_{name} = "{place}"' for name, place in tls.items())
    own.write_text(OWN.format(state="/var/lib/edgefed/state", data="/srv/data", broker=broker))
    root, running = rootfs(), make_running_root(tmp_path / "running")
    image = make_image(tmp_path / "os.img", rootfs("content"))
    before = image.read_bytes()
    with running_sshd(tmp_path / "sshd", running) as board:
        for way in (
            ["rootfs", root],
            ["image", image],
            ["ssh", "board", "--ssh-config", board.config],
            ["seed", tmp_path / "seed", "-a", "aarch64", "--python", "3.12"],
        ):
            done = edgefed("flash", *way, "-w", wheels, *WHO, *papers(other))
            assert (done.code, done.out) == (3, "")
            assert "certificate.pem: is for board-08, and the board will be board-07" in done.err
            done = edgefed("flash", *way, "-w", wheels, "--config", own, *papers(other))
            assert (done.code, "is for board-08, and the board will be mine" in done.err) == (3, True)
            mixed = [*papers(cellar), "--ca", other / "ca.pem"]
            done = edgefed("flash", *way, "-w", wheels, *WHO, *mixed)
            assert (done.code, "was not signed by the authority in" in done.err) == (3, True)
    assert not (root / "etc/edgefed").exists()
    assert not (running / "etc/edgefed").exists()
    assert not (tmp_path / "seed").exists()
    assert image.read_bytes() == before


def test_what_is_no_board_is_told(edgefed: Run, rootfs: Rootfs, wheels: Path, tmp_path: Path) -> None:
    done = edgefed("flash", "rootfs", tmp_path / "nowhere", "-w", wheels, *WHO)
    assert (done.code, "is not a directory" in done.err) == (15, True)
    done = edgefed("flash", "rootfs", wheels, "-w", wheels, *WHO)
    assert (done.code, "is not a Linux root file system" in done.err) == (15, True)
    done = edgefed("flash", "rootfs", rootfs("old", python="3.8", l4t="35.4.1"), "-w", wheels, *WHO)
    assert (done.code, "JetPack 5" in done.err) == (15, True)
    done = edgefed("flash", "rootfs", rootfs(), "-w", tmp_path / "empty", *WHO)
    assert (done.code, "pip download" in done.err) == (15, True)


@needs_e2fsprogs
def test_an_image_is_flashed(edgefed: Run, rootfs: Rootfs, wheels: Path, tmp_path: Path) -> None:
    image = make_image(tmp_path / "os.img", rootfs())
    command = ("flash", "image", image, "--wheelhouse", wheels, *WHO)
    would = json.loads(edgefed(*command, "--dry-run", "--json").out)
    done = edgefed(*command, "--output", tmp_path / "new.img", "--json")
    assert (done.code, done.err) == (0, "")
    assert json.loads(done.out) == {**would, "target": str(tmp_path / "new.img"), "dry_run": False}
    assert edgefed(*command, "--output", tmp_path / "new.img").code == 15, "what is there is not overwritten"
    assert edgefed(*command).code == 0
    done = edgefed(*command)
    assert (done.code, "with --upgrade" in done.err) == (15, True)
    done = edgefed("flash", "image", wheels / "pip-1.0-py3-none-any.whl", "--wheelhouse", wheels, *WHO)
    assert (done.code, "is not a disk image" in done.err) == (15, True)
    done = edgefed("flash", "image", "/dev/null", "--wheelhouse", wheels, *WHO)
    assert (done.code, "/dev/null: is not a file" in done.err) == (15, True)


def test_a_seed_is_written(edgefed: Run, wheels: Path, tmp_path: Path) -> None:
    (tmp_path / "wifi").write_text("long enough\n")
    options = ("--architecture", "aarch64", "--python", "3.12", "--wheelhouse", wheels, *WHO)
    wifi = ("--wifi", "net", "--wifi-password-file", tmp_path / "wifi")
    would = json.loads(edgefed("flash", "seed", tmp_path / "seed", *options, *wifi, "--dry-run", "--json").out)
    assert not (tmp_path / "seed").exists()
    assert "/etc/edgefed/agent.toml" in [file["path"] for file in would["write"]]
    done = edgefed("flash", "seed", tmp_path / "seed", *options, *wifi)
    assert (done.code, done.err) == (0, "")
    said, _, rest = done.out.partition(" written, with ")
    assert set(said.split(": ")[-1].split(", ")) == {path.name for path in (tmp_path / "seed").iterdir()}
    assert rest.startswith(f"{len(would['write'])} files for the board (")
    assert "long enough" in (tmp_path / "seed/network-config").read_text()
    done = edgefed("flash", "seed", tmp_path / "seed", *options)
    assert (done.code, "already" in done.err) == (15, True)
    for wrong, code, message in (
        ("3.x", 3, "--python 3.x: is not a version"),
        ("3.9", 15, "--python 3.9: the board's Python is too old (a board with cloud-init, aarch64, Python 3.9)"),
    ):
        done = edgefed("flash", "seed", tmp_path / "new", "-a", "aarch64", "--python", wrong, "-w", wheels, *WHO)
        assert (done.code, message in done.err) == (code, True)


@pytest.mark.parametrize(
    ("name", "wheels_name"), [("arm64", "aarch64"), ("amd64", "x86_64"), ("aarch64", "aarch64"), ("riscv64", "riscv64")]
)
def test_a_seed_takes_debians_names_of_architectures(
    edgefed: Run, wheels: Path, tmp_path: Path, name: str, wheels_name: str
) -> None:
    make_wheel(wheels, "part", tags=f"py3-none-manylinux_2_17_{wheels_name}")
    done = edgefed("flash", "seed", tmp_path / "seed", "-a", name, "--python", "3.12", "-w", wheels, *WHO, "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["board"]["architecture"] == wheels_name


@needs_e2fsprogs
def test_a_token_goes_into_images_and_seeds_too(
    edgefed: Run, rootfs: Rootfs, wheels: Path, token: Callable[..., Path], tmp_path: Path
) -> None:
    image, file = make_image(tmp_path / "os.img", rootfs(), "bare"), token("board-07")
    done = edgefed("flash", "image", image, "-w", wheels, *WHO, "--token", file)
    assert (done.code, done.err) == (0, "")
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    told = subprocess.run(
        ["debugfs", "-R", "stat /etc/edgefed/claim/token", image], capture_output=True, text=True, env={"PATH": path}
    ).stdout
    assert "Mode:  0600" in told
    options = ("--architecture", "aarch64", "--python", "3.12", "-w", wheels, *WHO)
    done = edgefed("flash", "seed", tmp_path / "seed", *options, "--token", file)
    assert (done.code, done.err) == (0, "")
    with tarfile.open(tmp_path / "seed/edgefed.tar") as archive:
        member = archive.getmember("etc/edgefed/claim/token")
        content = archive.extractfile(member)
        assert content is not None
        assert (member.mode, content.read()) == (0o600, file.read_bytes())


OWN = """device = "mine"
fleet = "f"
state = "{state}"
[broker]
host = "h"
{broker}
[data]
path = "{data}"
[limits]
max_rank = 4
"""


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ({}, [], ""),
        ({"broker": 'tls_ca = "/etc/edgefed/tls/ca.pem"'}, ["--ca", "ca"], ""),
        ({"broker": 'tls_ca = "/etc/ssl/other.pem"'}, [], ""),
        ({"state": "state"}, [], "state must be an absolute path below /var/lib/edgefed"),
        ({"data": "/home/me/data"}, [], "hidden from the agent"),
        ({}, ["--ca", "ca"], '--ca and broker.tls_ca = "/etc/edgefed/tls/ca.pem" belong together'),
        ({"broker": 'tls_ca = "/etc/edgefed/tls/ca.pem"'}, [], "--ca and broker.tls_ca"),
        ({"broker": "port = 0"}, [], "own.toml: broker.port"),
        ({}, ["--device", "a"], "--config says who the board is"),
    ],
)
def test_an_agent_toml_of_ones_own(
    edgefed: Run,
    rootfs: Rootfs,
    wheels: Path,
    enrolled: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    values: dict[str, str],
    options: list[str],
    message: str,
) -> None:
    root = rootfs()
    monkeypatch.chdir(root.parent)
    Path("ca").write_bytes((enrolled("mine") / "ca.pem").read_bytes())
    usual = {"state": "/var/lib/edgefed/state", "data": "/srv/data", "broker": ""}
    text = OWN.format(**{**usual, **values})
    Path("own.toml").write_text(text)
    done = edgefed("flash", "rootfs", root, "-w", wheels, "--config", "own.toml", *options)
    if message:
        assert done.code != 0
        assert message in done.err
        return
    assert (done.code, done.err) == (0, "")
    assert (root / "etc/edgefed/agent.toml").read_text() == text
    board = ("--architecture", "aarch64", "--python", "3.12")
    done = edgefed("flash", "seed", "seed", *board, "-w", wheels, "--config", "own.toml", *options)
    assert (done.code, done.err) == (0, "")
    assert '"local-hostname": "mine"' in Path("seed/meta-data").read_text()


@needs_sshd
def test_a_board_that_runs_is_flashed_and_waited_for(
    edgefed: Run, wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgefed.flashing.ssh_start._POLL_S", 0.01)
    root = make_running_root(tmp_path / "board")
    with running_sshd(tmp_path / "sshd", root) as board:
        command = ("flash", "ssh", "board", "--ssh-config", board.config, "--wheelhouse", wheels, *WHO)
        before = sorted(root.rglob("*"))
        planned = json.loads(edgefed(*command, "--dry-run", "--json").out)
        assert sorted(root.rglob("*")) == before
        done = edgefed(*command)
        assert (done.code, done.err) == (0, "")
        assert done.out.endswith("board: the agent is up\n")
        assert all((root / file["path"].lstrip("/")).is_file() for file in planned["write"])
        assert read_agent(root / "etc/edgefed/agent.toml").device == "board-07"
        again = edgefed(*command)
        assert (again.code, again.out) == (15, "")
        assert "with --upgrade" in again.err

        (root / "answers/journalctl--q").write_text("edgefed first boot: failed: what went wrong stands above\n")
        done = edgefed(*command[:5], "--wheelhouse", wheels, "--upgrade")
        assert done.code == 15
        assert "everything is in its place, but the agent does not come up" in done.err
        assert edgefed(*command[:5], "--wheelhouse", wheels, "--upgrade", "--no-wait").code == 0


@needs_sshd
def test_what_a_running_board_cannot_take_is_told(edgefed: Run, tmp_path: Path) -> None:
    root = make_running_root(tmp_path / "board", python="3.8", l4t="35.4.1")
    with running_sshd(tmp_path / "sshd", root) as board:
        command = ("flash", "ssh", "board", "--ssh-config", board.config, "--wheelhouse", tmp_path / "wheels", *WHO)
        done = edgefed(*command)
        assert (done.code, done.out) == (15, "")
        assert "board is too old" in done.err
        assert "JetPack 5" in done.err
    root = make_running_root(tmp_path / "newer")
    make_wheel(tmp_path / "wheels", "edgefed", tags="cp312-cp312-manylinux_2_17_riscv64")
    make_wheel(tmp_path / "wheels", "pip")
    with running_sshd(tmp_path / "sshd-2", root) as board:
        done = edgefed("flash", "ssh", "board", "--ssh-config", board.config, "--wheelhouse", tmp_path / "wheels", *WHO)
        assert done.code == 15
        assert "does not fit" in done.err
        assert not (root / "opt/edgefed").exists()
