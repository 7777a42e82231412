"""Options that commands share, by way of a real typer application."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from edgefed.cli.option_groups import with_option_groups


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where something is."""

    fleet: Annotated[str, typer.Option("--fleet", "-f", help="Its name.")]
    key: Annotated[Path | None, typer.Option("--key-file", help="What opens it.")] = None


@with_option_groups
def show(what: Annotated[str, typer.Argument()], place: Place, loud: bool = False) -> None:
    """Show one thing."""
    typer.echo(f"{what} {place} {loud}")


def _run(*arguments: str) -> tuple[int, str]:
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command()(show)
    result = CliRunner().invoke(app, arguments)
    return result.exit_code, result.output


def test_the_command_gets_the_group_as_one_value() -> None:
    assert _run("it", "-f", "kitchen", "--key-file", "key.pem", "--loud") == (
        0,
        f"it {Place(fleet='kitchen', key=Path('key.pem'))} True\n",
    )


def test_a_field_without_a_default_is_a_required_option() -> None:
    code, output = _run("it")
    assert (code, "--fleet" in output) == (2, True)


def test_fields_that_are_not_given_have_their_defaults() -> None:
    assert _run("it", "--fleet", "kitchen") == (0, f"it {Place(fleet='kitchen')} False\n")


@pytest.mark.parametrize("word", ["Show one thing.", "--fleet", "-f", "Its name.", "--key-file", "--loud"])
def test_help_shows_the_options_of_the_group_beside_its_own(word: str) -> None:
    assert word in _run("--help")[1]
