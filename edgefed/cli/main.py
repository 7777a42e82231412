"""The `edgefed` command: finds the module of a subcommand, and turns errors into messages and exit codes.

To add a command, write `edgefed/cli/<name>.py` with a function that takes typer's annotations, and name it in
`COMMANDS`, or in `SUBCOMMANDS` where its name is the second word of another's. Its docstring is its help; what stands
under `Examples:` is shown as written. Keep the module's own imports light (`--help` loads every one of them) and import
what does the work inside the function.
"""

from __future__ import annotations

import importlib
import inspect
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from edgefed import __version__
from edgefed.errors import EdgefedError
from edgefed.extras import EXTRAS, missing_message
from edgefed.logs import start_logging, tell_failure
from edgefed.stopping import Stopped

__all__ = ["COMMANDS", "main"]

COMMANDS: Mapping[str, str] = {
    "demo": "edgefed.cli.demo:demo",
    "init": "edgefed.cli.init:init",
    "partition": "edgefed.cli.partition:partition",
    "broker": "edgefed.cli.broker:broker",
    "aggregator": "edgefed.cli.aggregator:aggregator",
    "agent": "edgefed.cli.agent:agent",
    "doctor": "edgefed.cli.doctor:doctor",
    "profile": "edgefed.cli.profile:profile",
    "boards": "edgefed.cli.boards:boards",
    "plan": "edgefed.cli.plan:plan",
    "status": "edgefed.cli.status:status",
    "fleet": "edgefed.cli.fleet:fleet",
    "flash": "edgefed.cli.flash:flash",
    "evaluate": "edgefed.cli.evaluate:evaluate",
    "summarize": "edgefed.cli.summarize:summarize",
    "report": "edgefed.cli.report:report",
    "export": "edgefed.cli.export:export",
    "store": "edgefed.cli.store:store",
    "train": "edgefed.cli.train:train",
    "bench": "edgefed.cli.bench:bench",
}
"""Every subcommand, in the order of `--help`, and where it is: module:function."""

SUBCOMMANDS: Mapping[str, Mapping[str, str]] = {
    "fleet": {
        "init": "edgefed.cli.fleet_members:init",
        "enroll": "edgefed.cli.fleet_members:enroll",
        "rotate": "edgefed.cli.fleet_members:rotate",
        "revoke": "edgefed.cli.fleet_members:revoke",
        "list": "edgefed.cli.fleet_list:list_fleet",
        "show": "edgefed.cli.fleet_list:show",
        "label": "edgefed.cli.fleet_roster:label",
        "pause": "edgefed.cli.fleet_roster:pause",
        "resume": "edgefed.cli.fleet_roster:resume",
        "drain": "edgefed.cli.fleet_roster:drain",
        "remove": "edgefed.cli.fleet_roster:remove",
        "update": "edgefed.cli.fleet_update:update",
        "token": "edgefed.cli.fleet_claims:token",
        "tokens": "edgefed.cli.fleet_tokens:list_tokens",
        "withdraw": "edgefed.cli.fleet_tokens:withdraw",
        "admit": "edgefed.cli.fleet_claims:admit",
        "broker-config": "edgefed.cli.fleet_broker:broker_config",
    },
    "store": {
        "check": "edgefed.cli.store:check",
        "recover": "edgefed.cli.store:recover",
    },
    "flash": {
        "rootfs": "edgefed.cli.flash_rootfs:rootfs",
        "image": "edgefed.cli.flash_image:image",
        "seed": "edgefed.cli.flash_seed:seed",
        "ssh": "edgefed.cli.flash_ssh:ssh",
    },
}
"""The second words of commands that have one: their modules, as in `COMMANDS`."""

_INTERRUPTED = 130


def main() -> None:
    """Runs the command line and ends the process with its exit code; this is the console script."""
    try:
        code = _run()
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read the output has gone (`edgefed … | head`): not worth a message. Python flushes once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = EdgefedError.exit_code
    except OSError as error:
        if error.filename is not None:
            raise
        sys.stderr.write(f"edgefed: the output cannot be written: {error.strerror}\n")
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = EdgefedError.exit_code
    sys.exit(code)


def _run() -> int:
    try:
        typer.main.get_command(_app())(prog_name="edgefed")
    except SystemExit as done:
        return done.code if isinstance(done.code, int) else 0
    except KeyboardInterrupt:
        return _INTERRUPTED
    except Stopped as stopped:
        return stopped.exit_code
    except EdgefedError as error:
        return _fail(str(error), error.exit_code)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise
        return _fail(missing_message([package]), EdgefedError.exit_code)
    return 0


def _fail(message: str, code: int) -> int:
    tell_failure(message, code)
    return code


class _LazyCommands(Mapping[str, Any]):
    """Commands by name, each built from its module when it is looked up."""

    def __init__(self, table: Mapping[str, str]) -> None:
        self._table = table

    def __getitem__(self, name: str) -> Any:
        module, _, function = self._table[name].partition(":")
        callback = getattr(importlib.import_module(module), function)
        text, _, examples = (inspect.getdoc(callback) or "").partition("\nExamples:\n")
        # \b keeps the lines of a paragraph as they are.
        epilog = f"\b\nExamples:\n{examples}" if examples else None
        app = typer.Typer(add_completion=False, rich_markup_mode=None)
        if self._table is COMMANDS and name in SUBCOMMANDS:
            group = _group(SUBCOMMANDS[name])
            app.callback(cls=group, help=text, epilog=epilog, no_args_is_help=True)(callback)
        else:
            app.command(help=text, epilog=epilog)(callback)
        command = typer.main.get_command(app)
        command.name = name
        return command

    def __iter__(self) -> Iterator[str]:
        return iter(self._table)

    def __len__(self) -> int:
        return len(self._table)


def _group(table: Mapping[str, str]) -> type[TyperGroup]:
    class Group(TyperGroup):
        def __init__(self, **settings: Any) -> None:
            super().__init__(**settings)
            self.commands = _LazyCommands(table)  # type: ignore[assignment]  # nobody adds to it

        def invoke(self, ctx: Any) -> Any:
            try:
                return super().invoke(ctx)
            except KeyboardInterrupt:
                # Versions of typer differ in what they make of it.
                raise typer.Exit(_INTERRUPTED) from None

    return Group


def _app() -> typer.Typer:
    app = typer.Typer(
        cls=_group(COMMANDS),
        add_completion=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(no_args_is_help=True, epilog="`edgefed COMMAND --help` explains a command, with examples.")(_common)
    return app


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"edgefed {__version__}")
        raise typer.Exit


def _common(
    _version: Annotated[
        bool, typer.Option("--version", help="Print the version and stop.", is_eager=True, callback=_print_version)
    ] = False,
    verbose: Annotated[
        int, typer.Option("--verbose", "-v", count=True, show_default=False, help="Log to stderr; -vv logs details.")
    ] = 0,
) -> None:
    """Federated fine-tuning of small language models on the devices that hold the data, over MQTT."""
    level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)]
    start_logging(level)
