"""Starting what was flashed onto a board that runs, and waiting until its agent is up, or says why it is not."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

from edgefed.errors import FlashError
from edgefed.flashing.changes import Changes
from edgefed.flashing.manifest import WHEELHOUSE
from edgefed.flashing.remote import Shell
from edgefed.logs import printable

__all__ = ["AGENT", "FIRST_BOOT", "State", "judge", "start", "wait"]

AGENT, FIRST_BOOT = "edgefed-agent.service", "edgefed-firstboot.service"
_POLL_S = 2.0
_PATIENCE_S = 1800.0  # a small board unpacks torch for many minutes
_RESTARTS = 3
_LAST_LINES = 12
_FAILED_BUILD = "edgefed first boot: failed"
_STARTING = "edgefed first boot: starting the agent"
_RESTARTED = f"{AGENT}: Scheduled restart job"  # systemd's words

# Failing to start is told by the units' own states, with the journal. The first boot comes first: it gives new files of
# the configuration their owner.
_START = f"""
date +%s
systemctl daemon-reload || exit 1
udevadm control --reload 2> /dev/null || true
systemctl "$1" {FIRST_BOOT} 2> /dev/null || true
[ "$2" = no ] || systemctl try-restart {AGENT} 2> /dev/null || true
shift 2
[ $# -eq 0 ] || systemctl start "$@" || exit 1
"""
_LOOK = f"""
systemctl show -p Id -p ActiveState -p Result {FIRST_BOOT} {AGENT} || exit 1
printf '\\036'
journalctl -q --no-pager -o cat --since "@$1" -u {FIRST_BOOT} -u {AGENT}
"""


@dataclass(frozen=True, slots=True)
class State:
    """What systemd says of a unit.

    Attributes:
        active: its ActiveState.
        result: of its last run.
    """

    active: str
    result: str


def start(shell: Shell, changes: Changes) -> int:
    """Has systemd read the units, and starts what builds the environment, which starts the agent.

    Args:
        shell: on the board.
        changes: that were made; where they leave the environment as it is, an agent that runs is started anew here.

    Returns:
        When that was, in seconds of the board's clock.

    Raises:
        FlashError: systemd refuses, or the connection is cut.
    """
    written = [file.path for file in changes.write]
    # A first boot that keeps failing waits longer and longer: with new files it need not.
    first_boot = "restart" if written else "start"
    agent = "yes" if written and not any(WHEELHOUSE in path for path in written) else "no"
    enabled = {PurePosixPath(link.path).name for link in changes.links} - {AGENT, FIRST_BOOT}
    return int(_run(shell, _START, first_boot, agent, *sorted(enabled)).split()[0])


def wait(shell: Shell, since_s: int, tell: Callable[[str], None] = lambda _: None) -> None:
    """Waits until the agent is up.

    Args:
        shell: on the board.
        since_s: when it was started, by the board's clock.
        tell: called with every line of the units' journal.

    Raises:
        FlashError: building the environment failed, or the agent does not come up; the message has the journal's end.
    """
    told = fine = 0
    give_up_s = time.monotonic() + _PATIENCE_S
    while True:
        said, _, journal = _run(shell, _LOOK, str(since_s)).decode(errors="replace").partition("\x1e")
        # Anybody on the board may have written that, and a terminal obeys what it is told.
        states, lines = _states(said), [printable(line) for line in journal.splitlines()]
        for line in lines[told:]:
            tell(line)
        told = len(lines)
        verdict = judge(states, lines)
        # Twice in a row: an agent that ends right after its start, or is about to be restarted, looks up for a moment.
        fine = fine + 1 if verdict == "up" else 0
        if fine == 2:
            return
        if verdict == "failed" or time.monotonic() > give_up_s:
            raise FlashError(_failure(shell.host, states, lines, failed=verdict == "failed"))
        time.sleep(_POLL_S)


def _run(shell: Shell, script: str, *arguments: str) -> bytes:
    try:
        return shell.run(script, *arguments)
    except FlashError as error:
        raise FlashError(f"{error}: everything is in its place, but whether the agent comes up is not known") from error


def judge(states: Mapping[str, State], journal: Sequence[str]) -> Literal["up", "waiting", "failed"]:
    """Returns how the start is going, from the units' states and what they have said since."""
    building, agent = states.get(FIRST_BOOT), states.get(AGENT)
    if building is None or agent is None:
        return "waiting"
    if building.result != "success" or any(line.startswith(_FAILED_BUILD) for line in journal):
        return "failed"
    if building.active != "inactive":
        return "waiting"  # and until then, an agent that runs, or does not, is the one from before
    if agent.active == "active":
        return "up"
    return "failed" if agent.active == "failed" or _restarts(journal) >= _RESTARTS else "waiting"


def _restarts(journal: Sequence[str]) -> int:
    """Returns how often systemd started the agent again since the first boot did; its own counter may be older."""
    count = 0
    for line in journal:
        count = 0 if line.startswith(_STARTING) else count + (_RESTARTED in line)
    return count


def _states(said: str) -> dict[str, State]:
    """Returns what `systemctl show` said, by unit."""
    blocks = (
        dict(line.split("=", 1) for line in block.splitlines() if "=" in line) for block in said.strip().split("\n\n")
    )
    return {of["Id"]: State(of.get("ActiveState", ""), of.get("Result", "")) for of in blocks if "Id" in of}


def _failure(host: str, states: Mapping[str, State], journal: Sequence[str], *, failed: bool) -> str:
    what = "does not come up" if failed else f"has not come up in {_PATIENCE_S / 60:.0f} minutes"
    how = ", ".join(f"{unit} is {state.active} ({state.result})" for unit, state in sorted(states.items()))
    end = "\n".join(f"  {line}" for line in journal[-_LAST_LINES:]) or "  (nothing)"
    return f"{host}: everything is in its place, but the agent {what}: {how}. Its journal ends with:\n{end}"
