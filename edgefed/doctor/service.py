"""The agent as a service of systemd, and the first boot that has to build its environment before."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from edgefed.doctor.access import READ, WRITE, find_user
from edgefed.doctor.findings import Board, Findings, note, ok, problem

__all__ = ["look_at_service"]

_AGENT, _FIRST_BOOT = "edgefed-agent.service", "edgefed-firstboot.service"
_PROPERTIES = (
    "LoadState", "UnitFileState", "ActiveState", "SubState", "Result", "ExecMainStatus", "ExecMainCode", "NRestarts",
    "ConditionResult", "User", "ExecStart",
)  # fmt: skip
_MANY_RESTARTS = 3
_LINES = 20


def look_at_service(board: Board) -> Findings:
    """Yields whether systemd runs the agent, and with what it ended where it does not."""
    if not (board.root / "run/systemd/system").is_dir():
        yield ok("this machine is not run by systemd: whoever starts the agent has to start it again")
        return
    agent = _show(board, _AGENT)
    if agent.get("LoadState") != "loaded":
        yield note(
            f"there is no {_AGENT} here: nobody starts the agent with the board",
            "`edgefed flash` writes one; whoever starts the agent by hand needs none",
        )
        return
    yield from _about_first_boot(board, agent)
    yield from _about_agent(board, agent)
    if agent.get("UnitFileState") not in ("enabled", "enabled-runtime", "static", "linked"):
        yield note(
            f"{_AGENT} is {agent.get('UnitFileState') or 'not enabled'}: it does not start with the board",
            f"systemctl enable {_AGENT}",
        )
    yield from _about_user(board, agent.get("User", ""))
    yield from _about_interpreter(agent)


def _about_agent(board: Board, agent: Mapping[str, str]) -> Findings:
    state, restarts = agent.get("ActiveState", ""), int(agent.get("NRestarts") or 0)
    ended = f"it ended with {agent.get('Result')}, status {agent.get('ExecMainStatus')}"
    if state == "active":
        yield ok(f"{_AGENT} is active ({agent.get('SubState')})")
        if restarts > _MANY_RESTARTS:
            yield note(f"systemd has had to start the agent {restarts} times again", f"journalctl -u {_AGENT}")
    elif state == "inactive" and agent.get("ConditionResult") == "no":
        yield problem(
            f"{_AGENT} was not started: its environment is not built yet", f"journalctl -u {_FIRST_BOOT}: see there"
        )
    elif state in ("activating", "failed") and agent.get("Result") not in (None, "", "success"):
        said = _last_line(board, _AGENT)
        yield problem(f"{_AGENT} is {state}: {ended}{said}", f"journalctl -u {_AGENT} -n 50")
    elif state in ("activating", "reloading"):
        yield note(f"{_AGENT} is {state}", "look again in a minute")
    else:
        yield problem(f"{_AGENT} is {state or 'not known to systemd'}; {ended}", f"systemctl start {_AGENT}")


def _about_first_boot(board: Board, agent: Mapping[str, str]) -> Findings:
    unit = _show(board, _FIRST_BOOT)
    if unit.get("LoadState") != "loaded":
        return
    failures = [line for line in _journal(board, _FIRST_BOOT) if line]
    if agent.get("ConditionResult") == "no" or unit.get("ActiveState") in ("active", "activating", "failed"):
        # It ends when it has done its work; while it runs, it builds, or waits to try again.
        last = next((line for line in reversed(failures) if "trying again" not in line), "")
        told = f"; the journal's last word: {last}" if last else ""
        failing = any("failed:" in line for line in failures) or unit.get("ActiveState") == "failed"
        if failing:
            yield problem(
                f"the first boot does not come to its end{told}",
                f"journalctl -u {_FIRST_BOOT}; it tries again by itself once the reason is gone",
            )
        else:
            yield note(f"the first boot is building the agent's environment{told}", "look again in some minutes")
    else:
        yield ok("the first boot has built the agent's environment")


def _about_user(board: Board, name: str) -> Findings:
    """Yields which files the service's user cannot use: whoever copies them onto a board is often root."""
    user = find_user(name) if name else None
    if name and user is None:
        yield problem(f"{_AGENT} runs as {name}, and there is no such user", "systemd-sysusers edgefed.conf")
    if user is None:
        return
    for path, bits in _files_of(board):
        if path.exists() and not user.may(bits, path):
            what = "read" if bits == READ else "write"
            yield problem(
                f"{name}, as whom the service runs the agent, may not {what} {path}",
                f"chown {name} {path}, and let {name} into the directories above it",
            )


def _files_of(board: Board) -> list[tuple[Path, int]]:
    """Returns what the agent uses, and the permissions that it needs."""
    if board.options is None:
        return [(board.config, READ)]
    broker, data = board.options.broker, board.options.data
    names = (broker.tls_ca, broker.tls_certificate, broker.tls_key, broker.password_file, data.path, data.validation)
    read = [(Path(name), READ) for name in names if name]
    return [(board.config, READ), *read, (Path(board.options.state), READ | WRITE)]


def _about_interpreter(agent: Mapping[str, str]) -> Findings:
    program = agent.get("ExecStart", "").partition("path=")[2].partition(" ;")[0].strip()
    # venv/bin/python is a link into the system; it is the environment that counts.
    if program and Path(program).parent.resolve() != Path(sys.executable).parent.resolve():
        yield note(
            f"the service's agent runs on {program}, and this doctor on {sys.executable}: what was found about Python "
            "and its packages is of the latter",
            f"{program} -m edgefed doctor",
        )


def _show(board: Board, unit: str) -> dict[str, str]:
    said = board.run(("systemctl", "show", unit, f"--property={','.join(_PROPERTIES)}"))
    return dict(line.split("=", 1) for line in (said or "").splitlines() if "=" in line)


def _journal(board: Board, unit: str) -> list[str]:
    said = board.run(("journalctl", "--unit", unit, "--boot", "--lines", str(_LINES), "--output=cat", "--no-pager"))
    return [] if said is None else [line.strip() for line in said.splitlines()]


def _last_line(board: Board, unit: str) -> str:
    """Returns the last thing that the program itself said, for a sentence to end with."""
    lines = [line for line in _journal(board, unit) if line.startswith("edgefed:")]
    return f"; {lines[-1]}" if lines else ""
