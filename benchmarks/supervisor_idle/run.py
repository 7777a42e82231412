"""Resident memory of an idle, connected agent, and the import time of its supervisor; see README.md."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from benchmarks.provenance import provenance
from tools.mosquitto import running_mosquitto

REPEATS = 5
RESULT = Path(__file__).parent / "results" / "idle.json"
IMPORT = "import time; s = time.perf_counter(); import edgefed.agent.supervisor; print(time.perf_counter() - s)"


def idle_mib(directory: Path, port: int) -> float:
    """Return the resident set, in MiB, of an agent that has been ready for two seconds."""
    (directory / "data.jsonl").write_text('{"dialogue": "a", "summary": "b"}\n')
    config = directory / "agent.toml"
    config.write_text(
        f'device = "idle"\nfleet = "bench"\nstate = "{directory}/state"\n[broker]\nport = {port}\n'
        f'[data]\npath = "{directory}/data.jsonl"\n'
    )
    agent = subprocess.Popen([sys.executable, "-m", "edgefed", "agent", "--config", str(config)])
    try:
        time.sleep(6)  # two seconds of claiming the id, and time to settle
        return psutil.Process(agent.pid).memory_info().rss / 2**20
    finally:
        agent.terminate()
        agent.wait()


def import_s() -> float:
    """Return the seconds that importing the supervisor takes in a fresh process."""
    return float(subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True).stdout)


def main() -> None:
    """Measure, write the result, print the medians."""
    with running_mosquitto() as broker:
        resident = []
        for _ in range(REPEATS):
            with tempfile.TemporaryDirectory() as directory:
                resident.append(idle_mib(Path(directory), broker.port))
    imports = [import_s() for _ in range(REPEATS)]
    result = {
        "provenance": provenance(),
        "resident_mib": {"median": statistics.median(resident), "all": resident, "target_at_most": 40},
        "import_s": {"median": statistics.median(imports), "all": imports, "target_at_most": 0.4},
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(f"idle agent: {statistics.median(resident):.1f} MiB; import: {statistics.median(imports):.2f} s")


if __name__ == "__main__":
    main()
