"""The time to flash an image against the time to copy it; see README.md."""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.provenance import provenance
from tests.flashing.small_boards import MIB, make_image, make_rootfs, make_wheel

REPEATS = 5
IMAGE_BYTES = 2048 * MIB
FILES, FILE_BYTES = 300, 4 * MIB
WHEELS, WHEEL_BYTES = 10, 5 * MIB // 2
TARGET = 1.3
RESULT = Path(__file__).parent / "results" / "image.json"


def make(directory: Path) -> tuple[Path, Path]:
    """Returns an image and a wheelhouse, made in the directory."""
    root = make_rootfs(directory / "root")
    (root / "srv").mkdir()
    for number in range(FILES):
        (root / "srv" / str(number)).write_bytes(os.urandom(FILE_BYTES))
    wheels = directory / "wheels"
    names = [f"part{number}" for number in range(WHEELS)]
    make_wheel(wheels, "edgefed", requires=tuple(names))
    make_wheel(wheels, "pip")
    for name in names:
        make_wheel(wheels, name, payload_bytes=WHEEL_BYTES)
    return make_image(directory / "os.img", root, size_bytes=IMAGE_BYTES - 5 * MIB), wheels


def timed(commands: Sequence[Sequence[str | Path]]) -> dict[str, float]:
    """Returns the seconds that the commands took together, on the clock and of processors."""
    before, start_s = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    for command in commands:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    wall_s, after = time.perf_counter() - start_s, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall_s": round(wall_s, 3), "cpu_s": round(cpu_s, 3)}


def main() -> None:
    """Measure, write the result, print the ratio."""
    copies, flashes = [], []
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        image, wheels = make(directory)
        os.sync()
        copy, flashed = directory / "copy.img", directory / "flashed.img"
        flash = [sys.executable, "-m", "edgefed", "flash", "image", image, "--output", flashed, "--wheelhouse", wheels]
        flash += ["--device", "one", "--fleet", "bench", "--broker", "localhost"]
        subprocess.run(["cp", image, copy], check=True)  # the image is in the page cache from here on
        for _ in range(REPEATS):
            copy.unlink()
            os.sync()
            copies.append(timed([["cp", image, copy], ["sync", copy]]))
            os.sync()
            flashes.append(timed([flash]))
            flashed.unlink()
        image_bytes = {"apparent": image.stat().st_size, "on_disk": image.stat().st_blocks * 512}
    medians = [statistics.median(run["wall_s"] for run in runs) for runs in (copies, flashes)]
    ratio = medians[1] / medians[0]
    result = {
        "provenance": provenance(),
        "image_bytes": image_bytes,
        "copy": {"median_wall_s": medians[0], "runs": copies},
        "flash": {"median_wall_s": medians[1], "runs": flashes},
        "ratio": round(ratio, 3),
        "target_at_most": TARGET,
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(f"copy {medians[0]:.2f} s, flash {medians[1]:.2f} s: {ratio:.2f} times (target {TARGET})")


if __name__ == "__main__":
    main()
