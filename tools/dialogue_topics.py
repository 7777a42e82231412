"""Short dialogues about everyday business, drawn from small grammars, with a summary and the facts it was made from.

Everything here was written for edgefed. Each topic is a function from a random generator to a `Draft`. A dialogue names
more than its summary needs: a day that does not suit, a price that was higher before, talk about the weather. So the
summary has to select, and its wording is the topic's own, so that a model that has seen only some topics does not know
how to sum up the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import Random

from tools.dialogue_grammar import (
    DAYS,
    LAST,
    STREETS,
    Draft,
    agree_on_day,
    cast,
    full_name,
    small_talk,
    some_time,
    two_days,
)

__all__ = ["TOPICS"]


def home_help(rng: Random) -> Draft:
    """A helper tells the office about a visit."""
    client = f"{rng.choice(('Mrs.', 'Mr.'))} {rng.choice(LAST)}"
    chores = (
        "cooked lunch", "changed the bed", "washed the dishes", "watered the plants", "went shopping",
        "cleaned the bath", "read the post", "took out the bins", "did the laundry", "sorted the pills",
    )  # fmt: skip
    one, two = rng.sample(chores, 2)
    state = rng.choice(
        ("a sore knee", "a bad cough", "no appetite", "slept badly", "a swollen foot", "lost the keys", "")
    )
    wrong, day = two_days(rng)
    time = some_time(rng)
    turns = [
        (
            "A",
            rng.choice(
                (
                    f"How was it at {client} today?",
                    f"You were with {client}, right?",
                    f"Tell me about {client}, please.",
                )
            ),
        ),
        (
            "B",
            rng.choice((f"Good. I {one} and {two}.", f"I {one}, and then I {two}.", f"All done: I {one} and {two}.")),
        ),
        *small_talk(rng),
        ("A", rng.choice(("Anything we should know?", "Did you notice something?", "Is all well there?"))),
    ]
    if not state:
        turns.append(("B", rng.choice(("No, all is well.", "Nothing, a cheerful day.", "All as it should be."))))
        ending = "all is well"
    elif state in ("slept badly", "lost the keys"):
        turns.append(("B", rng.choice((f"The client {state}.", f"I was told the client {state}."))))
        ending = f"note: {state}"
    else:
        turns.append(("B", rng.choice((f"There is {state}.", f"Yes, {state} since yesterday.", f"I saw {state}."))))
        ending = f"note: {state}"
    turns += agree_on_day(rng, wrong, day, time)
    facts = {"client": client, "first chore": one, "second chore": two, "day": day, "time": time} | (
        {"note": state} if state else {}
    )
    summary = f"Visit to {client}: helper {one} and {two}; {ending}. Next visit {day} {time}."
    return Draft(cast(turns, "Office", "Helper"), summary, facts)


def repair(rng: Random) -> Draft:
    """A customer reports something broken, and accepts the price or does not."""
    name = full_name(rng)
    thing = rng.choice(
        ("washing machine", "dishwasher", "heater", "fridge", "oven", "boiler", "dryer", "doorbell", "blind", "lift")
    )
    fault = rng.choice(
        (
            "leaks",
            "stays cold",
            "makes a noise",
            "does not start",
            "smells burnt",
            "is stuck",
            "stops at once",
            "trips the fuse",
        )
    )
    price, before = rng.sample(range(40, 300, 5), 2)
    wrong, day = two_days(rng)
    time = some_time(rng)
    turns = [
        ("A", rng.choice(("Repair service, hello.", "Hello, how can we help?", "Service desk, good morning."))),
        (
            "B",
            rng.choice(
                (
                    f"This is {name}. My {thing} {fault}.",
                    f"{name} here. The {thing} {fault} since last night.",
                    f"Hi, I am {name}, and my {thing} {fault}.",
                )
            ),
        ),
        *small_talk(rng),
        (
            "A",
            rng.choice(
                (
                    f"Last year that was {before} euros. Now it is {price} euros.",
                    f"It costs {price} euros, not {before} as on the old list.",
                )
            ),
        ),
    ]
    facts = {"customer": name, "thing": thing, "fault": fault, "price": f"{price} euros"}
    if rng.random() < 0.3:
        turns.append(
            (
                "B",
                rng.choice(
                    (
                        "That is too much. I do not want it.",
                        "No, then I would rather buy a new one.",
                        "Too expensive, forget it.",
                    )
                ),
            )
        )
        return Draft(
            cast(turns, "Service", "Customer"),
            f"{name} refuses the repair of the {thing}, which {fault}, for {price} euros.",
            facts,
        )
    turns.append(("B", rng.choice(("All right, please come.", "Fine, do it.", "Agreed."))))
    turns += agree_on_day(rng, wrong, day, time)
    summary = f"Technician comes to {name} on {day} at {time}: the {thing} {fault}. Price {price} euros."
    return Draft(cast(turns, "Service", "Customer"), summary, facts | {"day": day, "time": time})


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


def it_help(rng: Random) -> Draft:
    """Somebody's computer does not do what it should; solved, or passed on."""
    name = full_name(rng)
    thing = rng.choice(
        ("printer", "laptop", "mail program", "screen", "calendar", "phone", "headset", "scanner", "browser", "camera")
    )
    trouble = rng.choice(
        (
            "freezes",
            "shows an error",
            "is very slow",
            "stays black",
            "lost its settings",
            "does not connect",
            "asks for a password",
        )
    )
    tried, cure = rng.sample(
        (
            "restarting",
            "an update",
            "a new cable",
            "a new password",
            "clearing the cache",
            "another port",
            "reinstalling",
        ),
        2,
    )
    team = rng.choice(("network", "hardware", "security", "software", "purchase"))
    room = str(rng.randint(101, 499))
    turns = [
        ("A", rng.choice(("IT desk, what can I do?", "Help desk, hello.", "Hi, IT here."))),
        (
            "B",
            rng.choice(
                (
                    f"{name} from room {room}. My {thing} {trouble}.",
                    f"It is {name}, room {room}: the {thing} {trouble}.",
                )
            ),
        ),
        ("A", rng.choice((f"Did you try {tried}?", f"Has {tried} helped?"))),
        ("B", rng.choice(("Yes, no change.", "That did nothing.", "Tried it, the same."))),
        *small_talk(rng),
    ]
    facts = {"user": name, "room": room, "thing": thing, "trouble": trouble, "tried": tried}
    if rng.random() < 0.5:
        turns += [
            ("A", rng.choice((f"Then let us try {cure}.", f"What about {cure}?"))),
            ("B", rng.choice(("That is it, it works!", "Oh, now it works.", "Great, solved."))),
        ]
        return Draft(
            cast(turns, "Desk", "User"),
            f"Solved: {thing} of {name}, room {room}, {trouble}. {cure[0].upper() + cure[1:]} helped, {tried} did not.",
            facts | {"cure": cure},
        )
    turns += [
        ("A", rng.choice((f"Then the {team} team has to look.", f"I pass it on to the {team} team."))),
        ("B", rng.choice(("All right, I wait.", "Thanks, tell them to hurry."))),
    ]
    what = f"{thing} of {name}, room {room}, {trouble}"
    summary = f"Open: {what}. {tried[0].upper() + tried[1:]} did not help; sent to the {team} team."
    return Draft(cast(turns, "Desk", "User"), summary, facts | {"team": team})


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
