"""What a base install lacks: which packages come with which of the project's extras, and how to say that they do."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence

from edgefed.errors import EdgefedError

__all__ = ["EXTRAS", "missing_message", "require"]

EXTRAS: Mapping[str, tuple[str, ...]] = {
    "amqtt": ("broker",),
    "numpy": ("aggregator", "train"),
    "safetensors": ("aggregator", "train"),
    "sqlalchemy": ("aggregator",),
    "huggingface_hub": ("aggregator", "train"),
    "jinja2": ("aggregator",),
    "markupsafe": ("aggregator",),
    "prometheus_client": ("aggregator",),
    "torch": ("train",),
    "transformers": ("train",),
    "peft": ("train",),
    "bitsandbytes": ("train",),
    "rouge_score": ("train",),
}
"""By the name that is imported, the extras that bring it."""


def require(*packages: str) -> None:
    """Refuses to begin what could not be ended.

    Raises:
        EdgefedError: a package is not installed.
    """
    if missing := [package for package in packages if importlib.util.find_spec(package) is None]:
        raise EdgefedError(missing_message(missing))


def missing_message(packages: Sequence[str]) -> str:
    """Returns which packages are missing and what brings them all."""
    wanted: list[str] = []
    for package in sorted(packages, key=lambda package: len(EXTRAS[package])):  # those that leave no choice first
        if not any(extra in wanted for extra in EXTRAS[package]):
            wanted.append(EXTRAS[package][0])
    *others, last = packages
    names = f"{', '.join(others)} and {last}, which are" if others else f"{last}, which is"
    return f"this needs {names} not installed: pip install 'edgefed[{','.join(wanted)}]'"
