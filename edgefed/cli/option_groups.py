"""Options that several commands share, said once: a dataclass whose fields are typer's options."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, get_type_hints

__all__ = ["with_option_groups"]


def with_option_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Returns the command as typer takes it: in place of a parameter that is a dataclass stand that class's fields.

    ::

        @dataclass(frozen=True, kw_only=True)
        class Place:
            fleet: Annotated[str, typer.Option("--fleet", "-f", help="Its name.")]
            host: Annotated[str, typer.Option(help="Where it is.")] = "localhost"

        @with_option_groups
        def show(place: Place, json: JsonOption = False) -> None: ...
    """
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if is_dataclass(hint)}
    parameters = list(_expanded(command, hints, groups))

    @functools.wraps(command)
    def expanded(**given: Any) -> None:
        for name, group in groups.items():
            given[name] = group(**{field.name: given.pop(field.name) for field in fields(group)})
        command(**given)

    expanded.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    expanded.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return expanded


def _expanded(
    command: Callable[..., None], hints: dict[str, Any], groups: dict[str, Any]
) -> Iterator[inspect.Parameter]:
    keyword, required = inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.empty
    for parameter in inspect.signature(command).parameters.values():
        if parameter.name not in groups:
            yield parameter.replace(kind=keyword, annotation=hints[parameter.name])
            continue
        group = groups[parameter.name]
        annotations = get_type_hints(group, include_extras=True)
        for field in fields(group):
            default = required if field.default is MISSING else field.default
            yield inspect.Parameter(field.name, keyword, default=default, annotation=annotations[field.name])
