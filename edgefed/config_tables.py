"""From a TOML table to the struct that a package defined for it, or to an error that names file and key.

The structs are the only description of what a file may say. Whatever this module tells a user about a key (its name,
its type, its range) is read from them, so that neither can drift from the other.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date, time
from typing import Any, TypeVar, get_type_hints

import msgspec
from msgspec import NODEFAULT
from msgspec.inspect import (
    BoolType,
    DataclassType,
    DictType,
    FloatType,
    IntType,
    ListType,
    LiteralType,
    Metadata,
    NoneType,
    StrType,
    StructType,
    Type,
    UnionType,
    type_info,
)

from edgefed.errors import ConfigError

__all__ = ["OptionField", "build", "describe", "option_fields", "toml_value", "variants"]

_Options = TypeVar("_Options")
_SHOWN_CHARACTERS = 60
_INTEGER_BITS = 64  # that TOML promises


@dataclass(frozen=True, slots=True)
class OptionField:
    """One key of a table.

    Attributes:
        key: its name in the file and in the struct.
        hint: its annotation, with constraints.
        kind: the same, as `msgspec.inspect` sees it.
        required: whether it must be given.
        default: what it is otherwise; None where it is required.
    """

    key: str
    hint: Any
    kind: Type
    required: bool
    default: Any


def option_fields(options: type) -> tuple[OptionField, ...]:
    """Returns the keys of the table that a msgspec struct or a dataclass describes, in order."""
    info = type_info(options)
    if not isinstance(info, StructType | DataclassType):
        raise TypeError(f"{options!r} describes no table")
    hints = get_type_hints(options, include_extras=True)
    return tuple(
        OptionField(
            key=field.name,
            hint=hints[field.name],
            kind=field.type,
            required=field.required,
            default=None if field.required else _default(field.default, field.default_factory),
        )
        for field in info.fields
    )


def variants(kind: Type) -> dict[str | None, type]:
    """Returns the structs that a table of this kind may hold, by tag (None where it has none); empty for a value."""
    members = kind.types if isinstance(kind, UnionType) else (kind,)
    tables = [member for member in members if isinstance(member, StructType | DataclassType)]
    return {str(table.tag) if isinstance(table, StructType) and table.tag else None: table.cls for table in tables}


def build(options: type[_Options], table: Mapping[str, Any], file: str) -> _Options:
    """Returns the struct that a parsed TOML document describes.

    Args:
        options: the struct of the whole file.
        table: the document.
        file: its name, for messages.

    Raises:
        ConfigError: an unknown or missing key, a wrong type, a value out of range, or values that do not fit together.
    """
    try:
        built: _Options = _Reader(file, options).struct(options, table, "")
    except RecursionError:
        raise ConfigError(f"{file}: a value is nested too deeply") from None
    return built


def describe(kind: Type) -> str:
    """Returns in words what a value of this kind may be, such as `a whole number from 1 to 65535`."""
    match kind:
        case BoolType():
            return "true or false"
        case IntType():
            return "a whole number" + _range(kind)
        case FloatType():
            return "a number" + _range(kind)
        case StrType() | Metadata():
            return _text(kind)
        case LiteralType():
            return "one of " + ", ".join(toml_value(value) for value in kind.values)
        case ListType():
            return f"a list of {'at least one' if kind.min_length else 'any number'}, each {describe(kind.item_type)}"
        case DictType():
            return f"a table whose values are {describe(kind.value_type)}"
        case UnionType():
            return " or ".join(describe(member) for member in kind.types if not isinstance(member, NoneType))
        case StructType() | DataclassType():
            return "a table"
    raise TypeError(f"no words for {kind!r}")


def toml_value(value: object) -> str:
    """Returns a value as TOML writes it; a table only as `a table`."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, list):
        return "[" + ", ".join(toml_value(item) for item in value) + "]"
    if isinstance(value, int) and value.bit_length() > _INTEGER_BITS:
        return hex(value)  # Python does not write out thousands of digits
    return "a table" if isinstance(value, dict) else str(value)


class _Reader:
    """Walks one document; knows the whole of it, to say where a misplaced key belongs."""

    def __init__(self, file: str, root: type) -> None:
        self._file = file
        self._root = root

    def struct(self, options: type, table: Mapping[str, Any], path: str, tag_field: str = "") -> Any:
        """Returns the struct of one table; `path` is its dotted name, empty for the document."""
        fields = {field.key: field for field in option_fields(options)}
        for key in table:
            if key not in fields and key != tag_field:
                raise self._unknown(key, path, [tag_field, *fields] if tag_field else list(fields))
        for field in fields.values():
            if field.required and field.key not in table:
                raise self._error(_join(path, field.key), f"is missing; it must be given: {_needs(field)}")
        given = {key: self._value(fields[key], table[key], path) for key in table if key != tag_field}
        try:
            return options(**given)
        except (ValueError, ConfigError) as error:
            where = f"[{path}]: " if path else ""
            raise ConfigError(f"{self._file}: {where}{error}") from None

    def _value(self, field: OptionField, found: Any, path: str) -> Any:
        where = _join(path, field.key)
        structs = variants(field.kind)
        if structs:
            if not isinstance(found, dict):
                raise self._not_allowed(where, found, f"a table, written [{where}]")
            options, tag_field = self._variant(structs, field, found, where)
            return self.struct(options, found, where, tag_field)
        try:
            value = msgspec.convert(found, field.hint)
        except (msgspec.ValidationError, OverflowError):  # the latter of a whole number that no float holds
            raise self._not_allowed(where, found, describe(field.kind)) from None
        # TOML knows inf and nan; no option means anything by them, and nan passes every range check.
        if isinstance(value, float) and not math.isfinite(value):
            raise self._not_allowed(where, found, describe(field.kind))
        return value

    def _variant(
        self, structs: Mapping[str | None, type], field: OptionField, found: Mapping[str, Any], where: str
    ) -> tuple[type, str]:
        """Returns which struct a table is, and the name of the key that says so, empty where nothing does."""
        if None in structs:
            return structs[None], ""
        tag_field = str(next(iter(structs.values())).__struct_config__.tag_field)  # type: ignore[attr-defined]
        tag = found.get(tag_field, None if field.required else type(field.default).__struct_config__.tag)
        if not isinstance(tag, str) or tag not in structs:
            allowed = "one of " + ", ".join(toml_value(name) for name in structs)
            raise self._not_allowed(_join(where, tag_field), tag, allowed)
        return structs[tag], tag_field

    def _unknown(self, key: str, path: str, allowed: list[str]) -> ConfigError:
        elsewhere = [f"[{other}]" for other, keys in _tables(self._root) if other and other != path and key in keys]
        close = difflib.get_close_matches(key, allowed, n=1)
        hint = (
            f"did you mean {close[0]}? " if close else f"it belongs in {' or '.join(elsewhere)}. " if elsewhere else ""
        )
        place = f"in [{path}]" if path else "at the top of the file"
        return self._error(_join(path, key), f"is not a known key; {hint}allowed {place}: {', '.join(allowed)}")

    def _not_allowed(self, where: str, found: object, allowed: str) -> ConfigError:
        return self._error(where, f"is {_found(found)}; allowed is {allowed}")

    def _error(self, where: str, what: str) -> ConfigError:
        return ConfigError(f"{self._file}: {where} {what}")


def _tables(options: type, path: str = "") -> Iterator[tuple[str, frozenset[str]]]:
    """Yields every table below a struct as (dotted name, its keys)."""
    fields = option_fields(options)
    yield path, frozenset(field.key for field in fields)
    for field in fields:
        for inner in variants(field.kind).values():
            yield from _tables(inner, _join(path, field.key))


def _needs(field: OptionField) -> str:
    inner = variants(field.kind).values()
    keys = [inner_field.key for options in inner for inner_field in option_fields(options) if inner_field.required]
    return f"a table with {', '.join(keys)}" if keys else describe(field.kind)


def _found(value: object) -> str:
    if value is None:
        return "not given"
    shown = toml_value(value)
    if len(shown) > _SHOWN_CHARACTERS:
        shown = shown[: _SHOWN_CHARACTERS - 1] + "…"
    kinds = {
        str: " (text)",
        bool: " (true or false)",
        float: " (a decimal number)",
        date: " (a date)",
        time: " (a time)",
    }
    return shown + next((name for kind, name in kinds.items() if isinstance(value, kind)), "")


def _range(kind: IntType | FloatType) -> str:
    if kind.ge is not None and kind.le is not None:
        return f" from {kind.ge} to {kind.le}"
    low = f"{kind.ge} or more" if kind.ge is not None else f"above {kind.gt}" if kind.gt is not None else ""
    high = f"{kind.le} or less" if kind.le is not None else f"below {kind.lt}" if kind.lt is not None else ""
    joined = " and ".join(part for part in (low, high) if part)
    return f", {joined}" if joined else ""


def _text(kind: StrType | Metadata) -> str:
    """Returns what a text may be: what its annotation says of it, where that has words of its own."""
    if isinstance(kind, Metadata):
        return str((kind.extra_json_schema or {})["description"])
    return "text" + (", not empty" if kind.min_length else "")


def _default(value: Any, factory: Any) -> Any:
    return value if factory is NODEFAULT else factory()


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
