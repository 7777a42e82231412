"""Quantities as people write them on a command line: 10min, 256kbit/s."""

from __future__ import annotations

import re

from edgefed.errors import ConfigError

__all__ = ["bits_per_second", "seconds"]

_SECONDS = {"": 1.0, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86_400.0}
_BITS = {"bit/s": 1.0, "kbit/s": 1e3, "Mbit/s": 1e6, "Gbit/s": 1e9}


def seconds(text: str, name: str) -> float:
    """Returns a duration such as `300s`, `10min` or `90`.

    Raises:
        ConfigError: it is none, or not positive; `name` says which option it was.
    """
    return _quantity(text, name, _SECONDS, "a duration such as 300s, 10min or 1.5h")


def bits_per_second(text: str, name: str) -> float:
    """Returns a rate such as `256kbit/s`.

    Raises:
        ConfigError: it is none, or not positive; `name` says which option it was.
    """
    return _quantity(text, name, _BITS, "a rate such as 256kbit/s or 10Mbit/s")


def _quantity(text: str, name: str, units: dict[str, float], wanted: str) -> float:
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z/]*)\s*", text)
    if found is None or found[2] not in units or float(found[1]) <= 0:
        raise ConfigError(f"{name} is {text!r}; it must be {wanted}")
    return float(found[1]) * units[found[2]]
