"""MQTT topic filters."""

from __future__ import annotations

__all__ = ["topic_matches"]


def topic_matches(topic_filter: str, topic: str) -> bool:
    """Return whether a topic falls under an MQTT topic filter with ``+`` and ``#``."""
    wanted, levels = topic_filter.split("/"), topic.split("/")
    if levels[0].startswith("$") and wanted[0] in ("+", "#"):
        return False
    for position, level in enumerate(wanted):
        if level == "#":
            return True
        if position >= len(levels) or level not in ("+", levels[position]):
            return False
    return len(wanted) == len(levels)
