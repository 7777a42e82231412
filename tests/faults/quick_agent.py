"""A real agent whose worker trains without torch: `python -m tests.faults.quick_agent CONFIG [MISCHIEF ROUND]`.

The mischief, one of those of `quick_worker`, is done once, in that round. With `stay`, which is none, it does not leave
when the federation is over.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from edgefed.agent.session import run_agent
from edgefed.agent.worker_process import WorkerProcess
from edgefed.config import read_agent
from edgefed.stopping import run_stoppable


def main(arguments: list[str]) -> None:
    logging.basicConfig(
        level=logging.DEBUG, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    options = read_agent(Path(arguments[0]))
    done = Path(options.state).with_suffix(".mischief")
    command = [sys.executable, "-m", "tests.faults.quick_worker", str(done), *arguments[1:]]
    worker = WorkerProcess(silence_s=options.worker.silence_s, command=command)
    if "hungry" in arguments:  # it dies as if the kernel had done it, which the kernel's own count would deny
        worker = WorkerProcess(silence_s=options.worker.silence_s, command=command, oom_kills=lambda: None)
    run_stoppable(run_agent(options, once="stay" not in arguments, worker=worker))


if __name__ == "__main__":
    main(sys.argv[1:])
