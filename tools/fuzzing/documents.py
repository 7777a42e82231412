"""JSON as a tree that holds what no honest writer writes: a key twice, a number of 5,000 digits, half a character."""

from __future__ import annotations

import json
from random import Random
from typing import Any, TypeAlias

__all__ = ["Node", "Raw", "mutated_tree", "odd_value", "parse", "write"]

_DEEP = (40, 500, 5_000, 200_000)


class Raw(str):
    """Text that goes into the document as it is."""

    __slots__ = ()


class Members(list[tuple[str, Any]]):
    """An object, as its members in order."""

    __slots__ = ()


Node: TypeAlias = "Members | list[Any] | str | int | float | bool | None"

_NUMBERS = (
    "0", "-1", "1", "-0.0", "1e-320", "255", "256", "65536", "2147483648", "4294967296", "9007199254740991",
    "9007199254740992", "9223372036854775807", "9223372036854775808", "18446744073709551615", "18446744073709551616",
    "281474976710655", "281474976710656", "1e308", "1e309", "-1e400", "1.7976931348623157e308", "NaN", "Infinity",
    "-Infinity", "1" + "0" * 400, "9" * 4_301, "-" + "9" * 5_000, "1e99999999999", "0.1e-99999999", "01", "+1", "1.",
)  # fmt: skip
_TEXTS = (
    '""', '"\\ud800"', '"\\udfff\\ud800"', '"\\u0000"', '"' + "a" * 70_000 + '"', '"../../etc/passwd"', '"/dev/zero"',
    '"\u202e\u0301\U0001f9ea"', '"\\ud83e\\uddea"', '"NaN"', '"1e309"', '"true"', '"((a+)+)+$"', '"a{99999999999}"',
    '"~\\u0000"', '"F32"', '"F64"', '"int8"', '"\\\\"', '"\xe9"', '"' + "0" * 64 + '"', '"' + "9" * 5_000 + '"',
)  # fmt: skip
_OTHERS = ("null", "true", "false", "[]", "{}", "[[]]", '{"":{}}', '{"type":null}', "[0,0]", "[-1,1]", "[1,0]", "")


def parse(text: bytes) -> Node:
    """Returns the tree of a valid document."""
    tree: Node = json.loads(text, object_pairs_hook=Members)
    return tree


def write(node: Node) -> str:
    """Returns a tree as text; valid JSON where nothing odd was put into it."""
    if isinstance(node, Raw):
        return str(node)
    if isinstance(node, Members):
        return "{" + ",".join(f"{write(key)}:{write(value)}" for key, value in node) + "}"
    if isinstance(node, list):
        return "[" + ",".join(map(write, node)) + "]"
    return json.dumps(node)


def odd_value(random: Random) -> Raw:
    """Returns a value that a careless reader stumbles over."""
    kind = random.randrange(12)
    if kind < 5:
        return Raw(random.choice(_NUMBERS))
    if kind < 8:
        return Raw(random.choice(_TEXTS))
    if kind < 10:
        return Raw(random.choice(_OTHERS))
    if kind == 10:
        return Raw(
            json.dumps(
                "".join(chr(random.choice((random.randrange(128), random.randrange(0x110000)))) for _ in range(9))
            )
        )
    if random.random() < 0.9:
        return Raw(f"[{','.join(str(random.randrange(300)) for _ in range(random.choice((1, 9, 300))))}]")
    opening, closing = random.choice((("[", "]"), ('{"a":', "}")))
    depth = random.choice(_DEEP)
    return Raw(opening * depth + "1" + closing * random.choice((depth, 0)))


def mutated_tree(node: Node, random: Random) -> Node:
    """Returns a tree with one to three things wrong with it; the one that was given stays as it is."""
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        node = _changed(node, random)
    return node


def _changed(node: Node, random: Random) -> Node:
    """Walks down to a random place and changes it."""
    if not isinstance(node, list) or not node or random.random() < 0.08:
        return odd_value(random)
    copy: Any = type(node)(node)
    at = random.randrange(len(copy))
    what = random.random()
    if what < 0.1:
        del copy[at]
    elif what < 0.18:  # the same key or element twice
        copy.insert(random.randrange(len(copy) + 1), copy[at])
    elif isinstance(node, Members):
        key, value = copy[at]
        copy[at] = (odd_value(random) if what < 0.22 else key, value if what < 0.22 else _changed(value, random))
    elif what < 0.22:
        copy.extend(copy[at : at + 1] * random.choice((1, 100, 5_000)))
    else:
        copy[at] = _changed(copy[at], random)
    changed: Node = copy
    return changed
