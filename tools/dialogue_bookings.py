"""Dialogues about a time and a place to be reserved: an appointment, a table, a journey."""

from __future__ import annotations

from random import Random

from tools.dialogue_grammar import DAYS, LAST, Draft, agree_on_day, cast, full_name, small_talk, some_time, two_days

__all__ = ["appointment", "table", "travel"]


def appointment(rng: Random) -> Draft:
    """A patient moves or cancels an appointment."""
    name, doctor = full_name(rng), f"Dr. {rng.choice(LAST)}"
    why = rng.choice(
        (
            "back pain",
            "a check-up",
            "a rash",
            "a vaccination",
            "headaches",
            "a blood test",
            "an ear infection",
            "stomach pain",
            "new glasses",
        )
    )
    old, new = two_days(rng)
    wrong = rng.choice([d for d in DAYS if d not in (old, new)])
    time, old_time = some_time(rng), some_time(rng)
    turns = [
        ("A", rng.choice((f"Practice of {doctor}, good morning.", f"{doctor}, reception, hello."))),
        (
            "B",
            rng.choice(
                (
                    f"Hello, {name} here. I am booked for {old} at {old_time}.",
                    f"My name is {name}. I should come on {old}, {old_time}.",
                )
            ),
        ),
        *small_talk(rng),
        ("A", rng.choice(("What was it about?", "And the reason for your visit?"))),
        ("B", rng.choice((f"About {why}.", f"It is for {why}.", f"Because of {why}."))),
    ]
    facts = {"patient": name, "doctor": doctor, "reason": why, "old day": old}
    if rng.random() < 0.3:
        turns += [
            ("B", rng.choice(("I have to cancel it.", "I do not need it any more."))),
            ("A", rng.choice(("Noted, and get well.", "I take it out, thank you for calling."))),
        ]
        return Draft(cast(turns, "Reception", "Patient"), f"{name} cancels {old} with {doctor} ({why}).", facts)
    turns.append(("B", rng.choice(("Could I come on another day?", "I need a new date."))))
    turns += agree_on_day(rng, wrong, new, time)
    summary = f"{name} moves from {old} to {new} at {time} with {doctor} ({why})."
    return Draft(cast(turns, "Reception", "Patient"), summary, facts | {"day": new, "time": time})


def table(rng: Random) -> Draft:
    """A guest books a table."""
    name = rng.choice(LAST)
    people, fewer = rng.sample(range(2, 13), 2)
    wish = rng.choice(
        ("by the window", "outside", "in a quiet corner", "near the door", "with a high chair", "away from the kitchen")
    )
    event = rng.choice(("a birthday", "a wedding day", "a farewell", "an exam", "a business lunch", ""))
    wrong, day = two_days(rng)
    time = some_time(rng)
    turns = [
        ("A", rng.choice(("Restaurant Linden, hello.", "Good evening, Restaurant Linden."))),
        (
            "B",
            rng.choice(
                (
                    f"A table for {people} please, {wish}.",
                    f"We are {people} people and would like to sit {wish}.",
                    f"For {fewer}, no, for {people}, {wish}, please.",
                )
            ),
        ),
        *small_talk(rng),
        *agree_on_day(rng, wrong, day, time),
        ("A", rng.choice(("And your name?", "Which name, please?"))),
        ("B", rng.choice((f"{name}.", f"The name is {name}.", f"On {name}, please."))),
    ]
    facts = {"guest": name, "people": str(people), "wish": wish, "day": day, "time": time}
    if event:
        turns.append(("B", rng.choice((f"By the way, it is for {event}.", f"We celebrate {event}."))))
        return Draft(
            cast(turns, "Host", "Guest"),
            f"Table {wish} for {people} booked by {name} for {day}, {time}, to celebrate {event}.",
            facts | {"event": event},
        )
    return Draft(
        cast(turns, "Host", "Guest"),
        f"Table {wish} for {people} booked by {name} for {day}, {time}, without occasion.",
        facts,
    )


def travel(rng: Random) -> Draft:
    """A traveller buys a ticket, first the wrong class or train, then the right one."""
    start, goal, via = rng.sample(
        (
            "Aldern",
            "Bremfeld",
            "Corvale",
            "Dunmore",
            "Elstow",
            "Farnach",
            "Gravik",
            "Holmen",
            "Istria",
            "Jarva",
            "Kelso",
            "Lorient",
        ),
        3,
    )
    day = rng.choice(DAYS)
    early, late = some_time(rng), some_time(rng)
    cheap, dear = sorted(rng.sample(range(15, 160), 2))
    flexible = rng.random() < 0.5
    price = dear if flexible else cheap
    seat = f"{rng.randint(1, 24)}{rng.choice('ABCDEF')}"
    turns = [
        ("A", rng.choice(("Where do you want to go?", "Tickets, hello. Where to?"))),
        (
            "B",
            rng.choice(
                (
                    f"From {start} to {goal} on {day}.",
                    f"To {goal} on {day}, leaving from {start}.",
                    f"On {day}, {start} to {goal}, please.",
                )
            ),
        ),
        (
            "A",
            rng.choice((f"There is a train at {early} and one at {late}.", f"You can leave at {early}, or at {late}.")),
        ),
        ("B", rng.choice((f"I take the one at {late}.", f"{late} is better."))),
        *small_talk(rng),
        (
            "A",
            rng.choice(
                (
                    f"Saver for {cheap} euros or flexible for {dear} euros?",
                    f"It is {cheap} euros as saver, {dear} euros flexible, both via {via}.",
                )
            ),
        ),
        ("B", "Flexible, please." if flexible else "The saver will do."),
        ("A", rng.choice((f"Done, seat {seat}.", f"Your seat is {seat}. Good journey."))),
    ]
    facts = {"start": start, "goal": goal, "day": day, "time": late, "price": f"{price} euros", "seat": seat}
    kind = "Flexible" if flexible else "Saver"
    summary = f"{kind} ticket sold, {start} to {goal}, {day} {late}, seat {seat}, paid {price} euros."
    return Draft(cast(turns, "Clerk", "Traveller"), summary, facts)
