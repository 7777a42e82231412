"""The agent as a service of systemd, and the first boot that has to build its environment before."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from edgefed.doctor.access import READ, WRITE, find_user
from edgefed.doctor.findings import Board, Findings, note, ok, problem
from edgefed.files import in_shell

__all__ = ["look_at_service"]

_AGENT, _FIRST_BOOT = "edgefed-agent.service", "edgefed-firstboot.service"
_PROPERTIES = "LoadState,UnitFileState,ActiveState,SubState,Result,ExecMainStatus,NRestarts,User,ExecStart"
_LINES = "20"
_ENVIRONMENT = "opt/edgefed/venv/bin/python"
_CONDITIONS = (_ENVIRONMENT, "etc/edgefed/agent.toml")  # of the agent's unit
_STARTS_BY_ITSELF = ("enabled", "enabled-runtime", "static", "linked")
_MANY_RESTARTS = 3
_LOG = f"journalctl -u {_AGENT}"
_LAST_WORD = re.compile(r'^edgefed: (.+)$|\berror="((?:[^"\\]|\\.)*)"')
"""What the agent says when it ends, as plain text and as one of the keys of a line of its log."""


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
    yield from _about_first_boot(board)
    yield from _about_agent(board, agent)
    if agent.get("UnitFileState") not in _STARTS_BY_ITSELF:
        yield note(
            f"{_AGENT} is {agent.get('UnitFileState') or 'not enabled'}: it does not start with the board",
            f"systemctl enable {_AGENT}",
        )
    yield from _about_user(board, agent.get("User", ""))
    yield from _about_interpreter(agent)


def _about_agent(board: Board, agent: Mapping[str, str]) -> Findings:
    state, restarts = agent.get("ActiveState", ""), int(agent.get("NRestarts") or 0)
    missing = [f"/{place}" for place in _CONDITIONS if not (board.root / place).exists()]
    if state == "active":
        yield ok(f"{_AGENT} is active ({agent.get('SubState')})")
        if restarts > _MANY_RESTARTS:
            yield note(f"systemd has had to start the agent again {restarts} times{_said_at_the_end(board)}", _LOG)
    elif missing:
        yield problem(
            f"{_AGENT} cannot be started: {' and '.join(missing)} is not there",
            "the first boot builds the environment, and flashing or the package's owner writes agent.toml",
        )
    elif restarts or agent.get("Result") != "success":
        ended = f"with {agent.get('Result')}, status {agent.get('ExecMainStatus')}"
        # While it is started once more, systemd has forgotten with what it ended.
        last = "" if agent.get("Result") == "success" else f", the last time {ended}"
        yield problem(f"{_AGENT} does not stay up: started again {restarts} times{last}{_said_at_the_end(board)}", _LOG)
    elif state == "activating":
        yield note(f"{_AGENT} is being started", "look again in a minute")
    else:
        yield problem(f"{_AGENT} does not run: it is {state}", f"systemctl start {_AGENT}")


def _about_first_boot(board: Board) -> Findings:
    unit = _show(board, _FIRST_BOOT)
    if unit.get("LoadState") != "loaded":
        return
    built = (board.root / _ENVIRONMENT).exists()
    if unit.get("ActiveState") in ("active", "activating"):  # it ends when it has done its work
        reason = _reason_of_failure(_journal(board, _FIRST_BOOT))
        if reason is None:
            yield note("the first boot is building the agent's environment", "look again in some minutes")
            return
        tell = note if built else problem  # an older environment goes on
        yield tell(
            f"the first boot fails, and tries again and again: {reason}",
            f"journalctl -u {_FIRST_BOOT}; it goes on by itself once the reason is gone",
        )
    elif built:
        yield ok("the first boot has built the agent's environment")
    else:
        yield problem(
            f"the first boot is {unit.get('ActiveState')}, and has not built the agent's environment",
            f"systemctl restart {_FIRST_BOOT}",
        )


def _reason_of_failure(lines: Sequence[str]) -> str | None:
    """Returns the last word before the first boot gave up for the time being; None where it has not."""
    starts = [number for number, line in enumerate(lines) if line.startswith("Started ")]
    lines = lines[starts[-1] :] if starts else lines  # what an earlier one said counts no more
    ends = [number for number, line in enumerate(lines) if "first boot: failed" in line]
    if not ends:
        return None
    return lines[ends[-1] - 1] if ends[-1] else "its reason is no longer in the journal's last lines"


def _said_at_the_end(board: Board) -> str:
    """Returns the agent's own last word, for a sentence to end with."""
    found = [match for line in _journal(board, _AGENT) if (match := _LAST_WORD.search(line))]
    return f"; it said: {found[-1][1] or found[-1][2]}" if found else ""


def _about_user(board: Board, name: str) -> Findings:
    """Yields which files the service's user cannot use: whoever copies them onto a board is often root."""
    user = find_user(name) if name else None
    if name and user is None:
        yield problem(f"{_AGENT} runs as {name}, and there is no such user", "systemd-sysusers edgefed.conf")
    if user is None or os.geteuid() not in (0, user.uid):  # others may not even look
        return
    for path, bits in _files_of(board):
        if path.exists() and not user.may(bits, path):
            what = "read" if bits == READ else "write"
            yield problem(
                f"{name}, as whom the service runs the agent, may not {what} {path}",
                f"chown {name} {in_shell(path)}, and let {name} into the directories above it",
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
    said = board.run(("systemctl", "show", unit, f"--property={_PROPERTIES}"))
    return dict(line.split("=", 1) for line in (said or "").splitlines() if "=" in line)


def _journal(board: Board, unit: str) -> list[str]:
    """Returns the last lines that have something in them; [] where this user may not read them."""
    said = board.run(("journalctl", "--unit", unit, "--boot", "--lines", _LINES, "--output=cat", "--no-pager"))
    return [line.strip() for line in (said or "").splitlines() if line.strip()]
