"""Dialogues about help that was given or is needed: a visit at home, a repair, a computer that does not do."""

from __future__ import annotations

from random import Random

from tools.dialogue_grammar import LAST, Draft, agree_on_day, cast, full_name, small_talk, some_time, two_days

__all__ = ["home_help", "it_help", "repair"]


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
