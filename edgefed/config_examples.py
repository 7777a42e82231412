"""Example files, written from the structs that define the options: every key, its documentation, range and default."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from edgefed.config_tables import OptionField, describe, option_fields, toml_value, variants

__all__ = ["render"]

_WIDTH = 110
_UNITS = {"_bits_per_s": "bits per second", "_s": "seconds", "_bytes": "bytes", "_tokens": "tokens"}


def render(options: type, *, title: str, samples: Mapping[str, Any]) -> str:
    """Returns a commented TOML file that reads back to the defaults of `options`.

    Args:
        options: the struct of the whole file.
        title: its first line.
        samples: values by dotted key for what has no default: written where the key is required, and as a comment
            where it may be left out.
    """
    heading = "Every key is here, with its default unless it is marked as required."
    lines = [f"# {title}", f"# {heading} Relative paths start from this file's directory.", ""]
    return "\n".join([*lines, *_table(options, "", samples)]) + "\n"


def _table(options: type, path: str, samples: Mapping[str, Any]) -> Iterator[str]:
    """Yields the lines of one table: its values first, because TOML ends a table where the next one begins."""
    documented = _documented(options)
    fields = option_fields(options)
    for field in fields:
        if not _opens_table(field):
            key = f"{path}{field.key}"
            yield from _comment(f"{documented[field.key]} ({_allowed(field)})".lstrip())
            yield _assignment(field, samples.get(key))
    for field in fields:
        if _opens_table(field):
            key = f"{path}{field.key}"
            yield ""
            yield from _comment(documented[field.key])
            yield f"[{key}]"
            yield from _inside(field, key, samples)


def _inside(field: OptionField, key: str, samples: Mapping[str, Any]) -> Iterator[str]:
    structs = variants(field.kind)
    if not structs:
        yield from (f"# {toml_value(name)} = {toml_value(value)}" for name, value in samples[key].items())
        return
    options = next(iter(structs.values())) if field.required else type(field.default)
    tag = next(tag for tag, struct in structs.items() if struct is options)
    if tag is not None:
        yield from _comment(f"(one of {', '.join(toml_value(name) for name in structs)})")
        yield f"{options.__struct_config__.tag_field} = {toml_value(tag)}"  # type: ignore[attr-defined]
    yield from _table(options, f"{key}.", samples)


def _assignment(field: OptionField, sample: object) -> str:
    if field.required:
        return f"{field.key} = {toml_value(sample)}"
    if field.default is None:
        assert sample is not None, f"{field.key} has no default: it needs a sample"
        return f"# {field.key} = {toml_value(sample)}"
    return f"{field.key} = {toml_value(field.default)}"


def _allowed(field: OptionField) -> str:
    notes = [describe(field.kind)]
    notes += [f"in {unit}" for suffix, unit in _UNITS.items() if field.key.endswith(suffix)][:1]
    if field.required:
        notes.append("required")
    elif field.default is None:
        notes.append("may be left out")
    return "; ".join(notes)


def _opens_table(field: OptionField) -> bool:
    return bool(variants(field.kind)) or isinstance(field.default, dict)


def _documented(options: type) -> dict[str, str]:
    """Returns the text of each entry under `Attributes:`; where names share an entry, the first has it."""
    section = (inspect.getdoc(options) or "").partition("Attributes:\n")[2].split("\n\n")[0]
    texts = dict.fromkeys((field.key for field in option_fields(options)), "")
    for entry in re.split(r"\n(?=    \w)", section):
        names, _, text = entry.partition(":")
        name = names.split(",")[0].strip()
        if name in texts:
            texts[name] = " ".join(text.split()).removesuffix(".")
    return texts


def _comment(text: str) -> list[str]:
    return [f"# {line}" for line in textwrap.wrap(text, _WIDTH - 2, break_long_words=False, break_on_hyphens=False)]
