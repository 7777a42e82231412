"""A real agent that believes it runs on a board: `python -m tests.federation.updating_agent CONFIG HOME`."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from edgefed.agent.session import run_agent
from edgefed.agent.worker_process import WorkerProcess
from edgefed.config import read_agent
from edgefed.stopping import run_stoppable
from edgefed.updates.places import Home


def main(config: str, home: str) -> None:
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    options = read_agent(Path(config))
    command = [sys.executable, "-m", "tests.faults.quick_worker", f"{options.state}.mischief"]
    worker = WorkerProcess(silence_s=options.worker.silence_s, command=command)
    run_stoppable(run_agent(options, worker=worker, home=Home(Path(home))))


if __name__ == "__main__":
    main(*sys.argv[1:])
