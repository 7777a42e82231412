"""Dialogues about goods: ordering them, and having them delivered."""

from __future__ import annotations

from random import Random

from tools.dialogue_grammar import STREETS, Draft, cast, full_name, small_talk, two_days

__all__ = ["delivery", "order"]


def order(rng: Random) -> Draft:
    """A buyer is unhappy with an order and gets the money or another one."""
    name = full_name(rng)
    number = str(rng.randint(1000, 9999))
    item = rng.choice(
        (
            "jacket",
            "lamp",
            "kettle",
            "backpack",
            "chair",
            "carpet",
            "mirror",
            "pair of boots",
            "tent",
            "clock",
            "sweater",
            "desk",
        )
    )
    colour, other = rng.sample(("red", "blue", "green", "black", "white", "grey", "yellow", "brown"), 2)
    reason = rng.choice(("too small", "too large", "scratched", "broken", "torn", "the wrong model", "not as shown"))
    turns = [
        (
            "A",
            rng.choice(
                (
                    "Hello, what is your order number?",
                    "Order desk. Which order is it about?",
                    "Good day. The number of your order, please?",
                )
            ),
        ),
        (
            "B",
            rng.choice(
                (f"It is {number}, in the name of {name}.", f"{number}. My name is {name}.", f"{name}, order {number}.")
            ),
        ),
        *small_talk(rng),
        ("A", rng.choice(("And what is the matter?", "What is wrong with it?", "How can I help?"))),
        (
            "B",
            rng.choice(
                (
                    f"The {colour} {item} is {reason}.",
                    f"I got the {colour} {item}, but it is {reason}.",
                    f"Well, the {colour} {item} that came is {reason}.",
                )
            ),
        ),
        ("A", rng.choice(("Do you want another one or your money back?", "We can replace it or refund you."))),
    ]
    facts = {"buyer": name, "number": number, "item": item, "colour": colour, "reason": reason}
    if rng.random() < 0.5:
        turns.append(
            ("B", rng.choice(("My money back, please.", "A refund, please.", "I would rather have the money.")))
        )
        summary = f"Order {number} of {name}: {colour} {item} goes back, {reason}; refund promised."
        return Draft(cast(turns, "Shop", "Buyer"), summary, facts)
    turns.append(
        (
            "B",
            rng.choice(
                (f"Another one, but in {other}.", f"Please send a {other} one.", f"I take a {other} one instead.")
            ),
        )
    )
    summary = f"Order {number} of {name}: {colour} {item} goes back, {reason}; a {other} one is sent instead."
    return Draft(cast(turns, "Shop", "Buyer"), summary, facts | {"new colour": other})


def delivery(rng: Random) -> Draft:
    """A parcel did not arrive; where and when it goes now."""
    number = f"{rng.choice('ABCDEFGHKLMNPRSTVWXZ')}{rng.randint(100, 999)}"
    name = full_name(rng)
    cause = rng.choice(
        (
            "nobody opened",
            "the street was closed",
            "the address was wrong",
            "the van broke down",
            "the label was wet",
            "the gate was locked",
        )
    )
    place = rng.choice(("the neighbour", "the kiosk", "the post office", "the garage", "the back door", "the locker"))
    street, house = rng.choice(STREETS), rng.randint(1, 99)
    wrong, day = two_days(rng)
    turns = [
        ("A", rng.choice(("Parcel service, which number?", "Hello, your parcel number, please."))),
        ("B", rng.choice((f"{number}, for {name}.", f"It is {number}. I am {name}, {street} {house}."))),
        (
            "A",
            rng.choice((f"I see that {cause}.", f"The driver wrote that {cause}.", f"It came back because {cause}.")),
        ),
        *small_talk(rng),
        ("B", rng.choice((f"Please leave it at {place}.", f"Can it go to {place}?", f"Then bring it to {place}."))),
        ("A", rng.choice((f"Yes, but not before {wrong}.", f"The van is full on {wrong}."))),
        ("B", rng.choice((f"Then on {day}, please.", f"{day} is fine.", f"Let us say {day}."))),
    ]
    facts = {"number": number, "receiver": name, "cause": cause, "place": place, "day": day}
    summary = f"Parcel {number} for {name} failed as {cause}. New try: {day}, at {place}."
    return Draft(cast(turns, "Service", "Receiver"), summary, facts)
