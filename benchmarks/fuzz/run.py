"""Do damaged and hostile bytes get more out of a reader than a refusal? See README.md."""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.provenance import provenance
from tools.fuzzing.engine import BYTES_PER_INPUT_BYTE, PATIENCE_S, Tally, Target, fuzz
from tools.fuzzing.targets import SLOW, all_targets


def main() -> None:
    """Feed every reader, and write what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=10_000, help="per reader; slow ones get a quarter")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", action="append", help="name of a reader; may be repeated")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "cpu.json")
    options = parser.parse_args()
    logging.getLogger("edgefed").addHandler(logging.NullHandler())  # readers warn of what they leave aside
    readers: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for target in all_targets(Path(scratch)):
            if options.only and target.name not in options.only:
                continue
            count = options.inputs // 4 if target.name in SLOW else options.inputs
            readers[target.name] = _told(target, fuzz(target, count, options.seed))
            print(f"{target.name}: {json.dumps(readers[target.name])}", flush=True)
    defects = sum(len(reader["defects"]) for reader in readers.values())
    result = {
        "provenance": provenance(),
        "seed": options.seed,
        "bounds": {"bytes_per_input_byte": BYTES_PER_INPUT_BYTE, "processor_s_per_input": PATIENCE_S},
        "inputs": sum(reader["inputs"] for reader in readers.values()),
        "seconds": sum(reader["seconds"] for reader in readers.values()),
        "defects": defects,
        "readers": readers,
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=2) + "\n")
    print(f"{result['inputs']} inputs, {defects} defects")
    sys.exit(1 if defects else 0)


def _told(target: Target, tally: Tally) -> dict[str, Any]:
    return {
        "inputs": tally.inputs,
        "read": tally.read,
        "errors": dict(tally.errors),
        "seconds": round(tally.seconds, 2),
        "slowest_s": round(tally.slowest_s, 3),
        "peak_bytes": tally.peak_bytes,
        "constant_bytes": target.constant_bytes,
        "defects": [{"what": one.what, "input_hex": one.input[:4096].hex()} for one in tally.defects],
    }


if __name__ == "__main__":
    main()
