"""What the topics of the synthetic dialogues share: names, days, times, small talk, agreeing on a day."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

__all__ = [
    "DAYS",
    "FIRST",
    "LAST",
    "STREETS",
    "Draft",
    "agree_on_day",
    "cast",
    "full_name",
    "small_talk",
    "some_time",
    "two_days",
]

FIRST = tuple(
    """
    Ada Amir Anna Aria Ben Bruno Carla Cem Chloe Dana David Dilan Elena Emil Erik Esra Fabio Fatma Felix Finn Greta
    Hana Hugo Ida Ines Ivan Jana Jonas Julia Karim Kira Lars Laura Leo Lina Luca Lucy Mara Marco Maya Mila Milan
    Nadia Nina Noah Nora Olga Omar Oscar Paula Pia Rafael Rita Rosa Samir Sara Selma Simon Sofia Tara Theo Tim Vera
    Viktor Yara Yusuf Zoe
    """.split()
)
LAST = tuple(
    """
    Abel Adler Arslan Bauer Becker Bell Berg Blum Brandt Brown Castro Cohen Costa Cruz Demir Diaz Dubois Evans
    Fischer Ford Fox Garcia Gomez Haas Hahn Hansen Hill Horn Ito Jansen Kaya Keller Klein Koch Kurz Lang Lopez Marin
    Mason Meyer Moreau Moser Novak Olsen Ortiz Patel Petrov Reed Rossi Roth Sato Silva Simon Stone Toth Vidal Vogel
    Wagner Walsh Weber West Wolf Wong Young Zeller
    """.split()
)
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday")
STREETS = (
    "Mill Lane",
    "Oak Street",
    "Station Road",
    "Park Avenue",
    "Church Hill",
    "River Walk",
    "Garden Row",
    "Lake Drive",
)


@dataclass(frozen=True, slots=True)
class Draft:
    """One dialogue.

    Attributes:
        turns: (speaker, text), in order.
        summary: one or two sentences.
        facts: what a reader could be asked, by name, such as {"day": "Friday"}; every value occurs in the dialogue.
    """

    turns: Sequence[tuple[str, str]]
    summary: str
    facts: Mapping[str, str]

    @property
    def dialogue(self) -> str:
        """The turns as text, one per line."""
        return "\n".join(f"{speaker}: {text}" for speaker, text in self.turns)


def full_name(rng: Random) -> str:
    """A first and a last name."""
    return f"{rng.choice(FIRST)} {rng.choice(LAST)}"


def some_time(rng: Random) -> str:
    """A time in working hours, such as 9:45."""
    return f"{rng.randint(8, 18)}:{rng.choice(('00', '15', '30', '45'))}"


def two_days(rng: Random) -> tuple[str, str]:
    """Two different days of the week."""
    first, second = rng.sample(DAYS, 2)
    return first, second


def small_talk(rng: Random) -> list[tuple[str, str]]:
    """Nothing, or a remark that no summary needs."""
    remarks = (
        ("What weather today.", "Yes, it will not stop raining."),
        ("You sound a bit far away.", "Sorry, I am on the bus. Is it better now?"),
        ("One moment, please, I open the calendar.", "Of course, take your time."),
        ("I tried to call before.", "Sorry, the lines were busy this morning."),
        ("Is it loud in the background?", "That is only my neighbour with his drill."),
    )
    if rng.random() < 0.55:
        return []
    first, second = rng.choice(remarks)
    return [("A", first), ("B", second)]


def cast(turns: Sequence[tuple[str, str]], a: str, b: str) -> list[tuple[str, str]]:
    """Give the speakers A and B their names."""
    return [(a if speaker == "A" else b, text) for speaker, text in turns]


def agree_on_day(rng: Random, wrong: str, day: str, time: str) -> list[tuple[str, str]]:
    """A proposes `wrong`; they agree on `day` at `time`."""
    return [
        ("A", rng.choice((f"Would {wrong} suit you?", f"I could offer {wrong}.", f"How about {wrong}?"))),
        (
            "B",
            rng.choice(
                (
                    f"Not {wrong}, sadly. {day} would be good.",
                    f"I am away then. Is {day} free?",
                    f"Only {day} works for me.",
                )
            ),
        ),
        (
            "A",
            rng.choice(
                (f"{day} at {time} then.", f"Fine, I put you down for {day}, {time}.", f"On {day} I have {time}.")
            ),
        ),
        ("B", rng.choice(("Perfect.", "That is fine.", "Good, thank you."))),
    ]
