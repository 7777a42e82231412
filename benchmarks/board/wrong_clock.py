"""A board without a clock and without torch, in a fleet that signs: does it find its way in? See README.md."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from benchmarks.board.fleet import HostSide
from benchmarks.board.run import REPOSITORY, RESULTS, STEPS, flash, idle, switched_on, trimmed
from benchmarks.board.system import VirtualBoard
from benchmarks.provenance import provenance

WRONG = "2020-01-01T00:00:00"
PATIENCE_S = 1500.0
# What a time server does on a board that has a network: the clock is set some time after the agent has started.
_UNIT = "[Service]\nExecStart=/usr/local/bin/set-clock\n[Install]\nWantedBy=multi-user.target\n"
_SET_CLOCK = """\
#!/bin/sh
exec > /dev/console 2>&1
until [ "$(systemctl is-active edgefed-agent.service)" = active ]; do sleep 2; done
sleep 45
echo "clock: $(systemctl show -p StatusText -p NRestarts edgefed-agent.service | tr '\\n' ' ')"
date -s "@$(({epoch_s} + $(cut -d. -f1 /proc/uptime)))"
echo "clock: set"
"""
STARTS_IN_S = 30  # what lies at most between writing the script and the kernel's start; rather fast than slow


def main() -> int:
    """Flash, boot with the wrong clock, write what was seen."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scratch", type=Path, required=True, help="as of benchmarks.board.run, which fills it")
    options = parser.parse_args()
    board = VirtualBoard(options.scratch, REPOSITORY)
    board.make()
    host = HostSide(options.scratch / "host")
    root, _ = flash(board, host, board.base_wheels(), "--signed")
    script = root / "usr/local/bin/set-clock"
    script.write_text(_SET_CLOCK.format(epoch_s=int(time.time()) + STARTS_IN_S))
    script.chmod(0o755)
    (root / "etc/systemd/system/set-clock.service").write_text(_UNIT)
    wants = root / "etc/systemd/system/multi-user.target.wants/set-clock.service"
    wants.symlink_to("/etc/systemd/system/set-clock.service")
    command = board.boot_command(board.new_disk(root), 2048, 2, clock=WRONG)
    log = options.scratch / "console-wrong-clock.log"
    with host.broker(), switched_on(command, log) as console:
        at_s = {name: console.wait_for(STEPS[name], PATIENCE_S)[0] for name in ("environment_built", "asks")}
        at_s["told_why_not"], _ = console.wait_for(r"does not count yet at .* this machine's clock", PATIENCE_S)
        at_s["clock_set"], _ = console.wait_for(r"clock: set$", PATIENCE_S)
        at_s["enrolled"], _ = console.wait_for(STEPS["enrolled"], PATIENCE_S)
        at_s["token_removed"], _ = console.wait_for(STEPS["token_removed"], PATIENCE_S)
        host.wait_for_device(lambda device: device["state"]["status"] == "ready", PATIENCE_S)
        at_s["ready"] = console.now_s
        said = [found[0] for _, found in console.all(r"clock: StatusText.*")]
        memory = idle(console)
    result = {
        "provenance": provenance(),
        "clock": {"of_the_hardware": WRONG, "agent_before_it_was_set": said},
        "at_s": {name: round(seconds, 1) for name, seconds in at_s.items()},
        "idle_agent_that_signs": memory,
    }
    (RESULTS / "wrong_clock.json").write_text(json.dumps(result, indent=2) + "\n")
    (RESULTS / "console-wrong-clock.log").write_text(trimmed(log))
    return 0


if __name__ == "__main__":
    sys.exit(main())
