"""Bytes of the wheels that a base install pulls, by board; see README.md."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from packaging.utils import parse_wheel_filename

from benchmarks.provenance import provenance
from tools.debian.target import SUITES, find_target
from tools.debian.wheels import build_project, download

PROJECT = Path(__file__).resolve().parents[2]
RESULT = Path(__file__).parent / "results" / "install_size.json"
TARGET_BYTES = 25_000_000
_BUILT_UNIX_S = 1_580_601_600  # so that the project's wheel has the same size whenever it is built


def pulled(scratch: Path, architecture: str, python: str) -> dict[str, Any]:
    """Return the wheels that an installation on a board pulls, and their bytes."""
    target = find_target(architecture, python)
    wheels = scratch / f"{architecture}-{python}"
    own = build_project(PROJECT, wheels, epoch_s=_BUILT_UNIX_S)
    no_pins = scratch / "constraints.txt"
    no_pins.touch()
    download(wheels, target.board, no_pins)
    sizes = {path.name: path.stat().st_size for path in sorted(wheels.iterdir()) if not path.name.startswith("pip-")}
    own_bytes = sizes.pop(own.name)
    return {
        "system": target.board.system,
        "wheels_bytes": sizes,
        "pulled_bytes": sum(sizes.values()),
        "edgefed_bytes": own_bytes,
    }


def installed(scratch: Path) -> dict[str, Any]:
    """Install the project into a fresh environment here; return what is in it then, and what that took."""
    environment = scratch / "environment"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    python = str(environment / "bin/python")
    pip = [python, "-m", "pip", "--disable-pip-version-check"]
    before = sum(file.stat().st_size for file in environment.rglob("*") if file.is_file())
    began_s = time.perf_counter()
    subprocess.run([*pip, "install", "--quiet", "--no-cache-dir", str(PROJECT)], check=True)
    took_s = time.perf_counter() - began_s
    after = sum(file.stat().st_size for file in environment.rglob("*") if file.is_file())
    listed = subprocess.run([*pip, "list", "--format=json"], capture_output=True, text=True, check=True).stdout
    said = subprocess.run([python, "-m", "edgefed", "--version"], capture_output=True, text=True, check=True).stdout
    distributions = {one["name"].lower().replace("_", "-"): one["version"] for one in json.loads(listed)}
    return {
        "distributions": {
            name: version for name, version in distributions.items() if name not in ("pip", "setuptools", "edgefed")
        },
        "on_disk_bytes": after - before,
        "install_s": round(took_s, 1),
        "says": said.strip(),
    }


def main() -> None:
    """Measure, check, write the result, print the sums."""
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        boards = {
            f"{machine} {major}.{minor}": pulled(scratch, architecture, f"{major}.{minor}")
            for architecture, machine in (("amd64", "x86_64"), ("arm64", "aarch64"))
            for major, minor in SUITES
        }
        here = installed(scratch)
    ours = boards[f"x86_64 {sys.version_info.major}.{sys.version_info.minor}"]["wheels_bytes"]
    asked = {str(name): str(version) for name, version, *_ in map(parse_wheel_filename, ours)}
    if asked != here["distributions"]:
        sys.exit(f"pip install brought {here['distributions']}, and pip download {asked}")
    largest = max(board["pulled_bytes"] for board in boards.values())
    result = {
        "provenance": provenance(),
        "target_at_most_bytes": TARGET_BYTES,
        "largest_pulled_bytes": largest,
        "boards": boards,
        "installed_here": here,
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    for name, board in boards.items():
        print(f"{name}: {board['pulled_bytes'] / 1e6:.2f} MB, and edgefed {board['edgefed_bytes'] / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
