"""Short dialogues about everyday business, drawn from small grammars, with a summary and the facts it was made from.

Everything here was written for edgefed. Each topic is a function from a random generator to a `Draft`. A dialogue names
more than its summary needs: a day that does not suit, a price that was higher before, talk about the weather. So the
summary has to select, and its wording is the topic's own, so that a model that has seen only some topics does not know
how to sum up the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import Random

from tools.dialogue_bookings import appointment, table, travel
from tools.dialogue_grammar import Draft
from tools.dialogue_help import home_help, it_help, repair
from tools.dialogue_orders import delivery, order

__all__ = ["TOPICS"]

TOPICS: Mapping[str, Callable[[Random], Draft]] = {
    "appointment": appointment,
    "delivery": delivery,
    "home-help": home_help,
    "it-help": it_help,
    "order": order,
    "repair": repair,
    "table": table,
    "travel": travel,
}
