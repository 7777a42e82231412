"""agent.toml, and the files and directories that it names."""

from __future__ import annotations

import stat
from pathlib import Path

from edgefed.agent.options import AgentOptions
from edgefed.data.examples import count_examples
from edgefed.doctor.findings import Board, Finding, Findings, note, ok, problem
from edgefed.errors import ConfigError, DataError
from edgefed.files import in_shell

__all__ = ["look_at_configuration"]


def look_at_configuration(board: Board) -> Findings:
    """Yields whether the agent would start with this configuration."""
    options = board.options
    if options is None:
        yield problem(
            board.why_no_options,
            "correct the file, or name the right one; `edgefed init` writes an example, and where the file may not be "
            "read, run the doctor as the agent's user or as root",
        )
        return
    broker = options.broker
    yield ok(f"{board.config}: device {options.device} of fleet {options.fleet}, broker {broker.host}:{broker.port}")
    if not any((board.root / name).is_dir() for name in ("proc", "sys")):
        yield problem(f"root: there is neither proc nor sys in {board.root}", "name the directory they are mounted in")
    yield from _about_examples(options)
    for model, directory in options.models.items():
        if not Path(directory).is_dir():
            yield note(f"models: {model} should be in {directory}, which is no directory", "put it there")
    yield from _about_password(options)


def _about_examples(options: AgentOptions) -> Findings:
    for key, path in (("data.path", options.data.path), ("data.validation", options.data.validation)):
        if path:
            yield _examples_in(key, Path(path))


def _examples_in(key: str, path: Path) -> Finding:
    if not path.exists():
        return problem(f"{key}: there is no {path}", "put the device's examples there (JSON lines or CSV)")
    try:
        return ok(f"{key}: {count_examples(path)} examples in {path}")
    except DataError as error:
        empty = path.is_dir() and not any(path.iterdir())
        remedy = "put the device's examples there" if empty else "correct it: the device declines rounds until then"
        # The agent itself starts, and says so to every round that it is offered.
        return note(f"{key}: {error}", remedy)


def _about_password(options: AgentOptions) -> Findings:
    if not options.broker.password_file:
        return
    try:
        options.broker.mqtt("doctor", session_expiry_s=0)
    except ConfigError as error:
        yield problem(str(error), "write the password into the first line of that file, readable by the agent's user")
        return
    file = Path(options.broker.password_file)
    mode = stat.S_IMODE(file.stat().st_mode)
    if mode & 0o077:
        yield note(
            f"the password file {file} has mode {mode:04o}, so others can read it", f"chmod 600 {in_shell(file)}"
        )
