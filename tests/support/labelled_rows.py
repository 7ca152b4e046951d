"""Rows of the kinds that share much text and are no duplicates, and copies of them that are.

Each set is a list of (prompt, answer, system) with the copies that somebody planted, as (row, its copy).
"""

import random
from typing import NamedTuple


class LabelledSet(NamedTuple):
    rows: list[tuple[str, str, str | None]]  # none is a duplicate of another
    copies: list[tuple[int, tuple[str, str, str | None]]]  # (index of the row, its near-duplicate)


ROUTING = (
    "You will read a message that a tenant wrote to the office of a housing company. Say which desk has to deal with "
    "it. The desks are: repairs, for everything in a flat or a stairwell that is broken, leaks or makes noise; money, "
    "for rent, deposits, bills and reminders; contracts, for moving in, moving out, subletting and pets; keys, for "
    "lost, broken and additional keys. If two desks would fit, take the one that has to act first. Answer with the "
    "name of the desk only.\n\nMessage: "
)
MESSAGES = {
    "repairs": (
        "The lift has stood still since Monday and nobody came.",
        "Water drips from the kitchen ceiling into the soup.",
        "Our radiator knocks all night, we cannot sleep.",
        "Is anybody going to mend the light in the cellar?",
        "The balcony door no longer shuts, it is cold.",
        "There is mould behind the wardrobe again.",
        "The bell rings by itself at four in the morning.",
        "A tile fell from the roof and broke my window.",
    ),
    "money": (
        "You took the rent twice in March.",
        "Why did I get a reminder, I paid on the second.",
        "When do I get the deposit of my old flat back?",
        "The heating bill seems far too high to me.",
        "Can I pay in three parts until summer?",
        "I found a fee on the bill that nobody explained.",
        "My bank changed, where do I send the new number?",
        "Please tell me what the parking space costs a month.",
    ),
    "contracts": (
        "I want to move out at the end of May.",
        "May my sister live with me for a year?",
        "We got married, can my wife sign as well?",
        "Are two cats allowed in the house?",
        "I would like to rent the flat next to mine too.",
        "How long is the notice if I have a new job elsewhere?",
        "My flat mate left, the papers still have his name.",
        "Could I let the guest room to a student?",
    ),
    "keys": (
        "I lost everything that opens the front door on the bus.",
        "Please make one more key for my mother.",
        "The one for the letter box broke off.",
        "The chip no longer lets me into the garage.",
        "My son locked himself out, who has a spare?",
        "How do I get into the bicycle shed?",
        "The new lock came with one key, we are four.",
        "I found a bunch of keys in the yard.",
    ),
}
PLACES = [
    "Arlen",
    "Brome",
    "Corvey",
    "Duns",
    "Elmet",
    "Farrow",
    "Gorse",
    "Holm",
    "Ister",
    "Jarrow",
    "Kelm",
    "Lorne",
    "Merrow",
    "Nairn",
    "Oss",
    "Perrin",
]
TRADES = [
    "salt",
    "wool",
    "timber",
    "herring",
    "copper",
    "linen",
    "slate",
    "honey",
    "glass",
    "barley",
    "tin",
    "amber",
    "leather",
    "hops",
    "marble",
    "wax",
]
FACTS = (
    ("In {year} the council of {place} had a {thing} built of {trade} money, which cost {count} marks.", "built"),
    ("The market for {trade} was held every {count} days and ended with the flood of {year}.", "market"),
    ("A fire took {count} houses of {place} in {year}, among them the school and the {thing}.", "fire"),
    ("From {year} a coach went to {place} with {count} seats, later a railway for {trade}.", "coach"),
    ("The {thing} was sold in {year} to {count} families of {place}, who dealt in {trade}.", "sale"),
)
CIVIC = [
    "bridge",
    "granary",
    "town hall",
    "lighthouse",
    "mill",
    "bath house",
    "hospital",
    "observatory",
    "tannery",
    "theatre",
]
OPEN_QUESTIONS = (
    ("In which year did the council have it built?", "built", "year"),
    ("How many days lay between two markets?", "market", "count"),
    ("How many houses burned down?", "fire", "count"),
    ("When did the first coach arrive?", "coach", "year"),
    ("To how many families was it sold?", "sale", "count"),
)
CLOSED_QUESTIONS = (
    "Was it the council that paid for the building?",
    "Did the market outlive the flood by some years?",
    "Is a school named among what the fire destroyed?",
    "Could more than forty people sit in the coach?",
    "Were the buyers strangers to the town?",
    "Does the text say who put out the fire?",
)
SUMS = (
    (
        "A shop has {a} boxes with {b} pens each and sells {c} pens on the first day. How many pens are left in the "
        "shop when it closes? Explain your steps, and write the result in the last sentence.",
        "There are {a} times {b} pens, that is {ab}. The shop sells {c} of them, so that {ab} minus {c} pens are "
        "left. The result is {r}.",
    ),
    (
        "A tank holds {a} buckets of {b} litres. A pump takes {c} litres out of the full tank. How many litres are in "
        "the tank after that? Explain your steps, and write the result in the last sentence.",
        "The full tank holds {a} times {b} litres, that is {ab}. After the pump took {c} litres out there are {ab} "
        "minus {c} litres in it. The result is {r}.",
    ),
)
GRAMMAR = (
    "Decide about the English word below. Say noun if it is mostly used as the name of a thing, a person or a place, "
    "and verb if it is mostly used for what somebody does. Think of how a newspaper would use it today, not of what a "
    "dictionary allows. Answer with one word, in lower case, without a full stop.\nWord: "
)
NOUNS = [
    "table",
    "river",
    "candle",
    "engine",
    "garden",
    "bottle",
    "winter",
    "doctor",
    "castle",
    "button",
    "pillow",
    "hammer",
    "ladder",
    "island",
    "forest",
]
VERBS = [
    "carry",
    "listen",
    "borrow",
    "forget",
    "arrive",
    "explain",
    "improve",
    "decide",
    "follow",
    "gather",
    "choose",
    "destroy",
    "prefer",
    "suffer",
]
LETTER = "Answer about this letter.\n\nReader: "


def with_typo(text: str, rng: random.Random) -> str:
    """Swaps two letters of a word."""
    places = [n for n in range(1, len(text) - 2) if text[n : n + 2].isalpha() and text[n] != text[n + 1]]
    place = rng.choice(places)
    return text[:place] + text[place + 1] + text[place] + text[place + 2 :]


def passages(count: int, rng: random.Random) -> list[tuple[str, dict[str, dict]]]:
    """Returns (text, {fact: its values}) for each passage."""
    made = []
    for _ in range(count):
        facts, lines = {}, []
        for text, name in FACTS:
            values = {"year": rng.randint(1200, 1900), "count": rng.randint(12, 99), "place": rng.choice(PLACES)}
            values |= {"thing": rng.choice(CIVIC), "trade": rng.choice(TRADES)}
            facts[name] = values
            lines.append(text.format(**values))
        rng.shuffle(lines)
        made.append((" ".join(lines), facts))
    return made


def tickets(rng: random.Random) -> LabelledSet:
    """A long instruction, a short message and one of four answers. The copies end with another mark."""
    rows = [(ROUTING + text, desk, None) for desk, texts in MESSAGES.items() for text in texts]
    longer = [place for place, (prompt, *_) in enumerate(rows) if len(prompt) >= len(ROUTING) + 45]
    copies = [(place, (rows[place][0].rstrip(".?") + "!", rows[place][1], None)) for place in rng.sample(longer, 12)]
    return LabelledSet(rows, copies)


def reading(rng: random.Random) -> LabelledSet:
    """Passages with five questions each and different answers. The copies have a typo in the passage."""
    rows, copies = [], []
    for text, facts in passages(30, rng):
        for question, fact, value in OPEN_QUESTIONS:
            rows.append((f"{text}\n\nQuestion: {question}", str(facts[fact][value]), None))
        prompt, answer, _ = rows[-1]
        copies.append((len(rows) - 1, (with_typo(text, rng) + prompt.removeprefix(text), answer, None)))
    return LabelledSet(rows, copies)


def yes_or_no(rng: random.Random) -> LabelledSet:
    """Passages with six questions each that are answered yes or no. The copies have a typo in the passage."""
    rows, copies = [], []
    for text, _ in passages(30, rng):
        for question in CLOSED_QUESTIONS:
            rows.append((f"{text}\n\n{question} Answer yes or no.", rng.choice(["yes", "no"]), None))
        place = len(rows) - 1 - rng.randrange(3)
        prompt, answer, _ = rows[place]
        copies.append((place, (with_typo(text, rng) + prompt.removeprefix(text), answer, None)))
    rows += [
        (f"Is {n} an even number? Think of its last digit.", "No" if n % 2 else "Yes", None) for n in range(40, 100)
    ]
    return LabelledSet(rows, copies)


def letters(rng: random.Random) -> LabelledSet:
    """The text is in the system turn, and all rows ask the same. The copies have a typo in the text."""
    rows = [
        ("Is the reader angry? Answer yes or no.", rng.choice(["yes", "no"]), LETTER + text)
        for text, _ in passages(40, rng)
    ]
    copies = [
        (place, (rows[place][0], rows[place][1], with_typo(rows[place][2], rng)))
        for place in rng.sample(range(len(rows)), 12)
    ]
    return LabelledSet(rows, copies)


def sums(rng: random.Random) -> LabelledSet:
    """Two texts with different numbers, each with its solution. The copies say one word in another way."""
    rows = []
    for prompt, answer in SUMS:
        for number in range(40):
            a, b, c = 3 + number, rng.randint(11, 60), rng.randint(2, 30)
            values = {"a": a, "b": b, "c": c, "ab": a * b, "r": a * b - c}
            rows.append((prompt.format(**values), answer.format(**values), None))
    copies = [
        (place, (rows[place][0].replace("How many", "how many"), rows[place][1], None))
        for place in rng.sample(range(len(rows)), 8)
    ]
    return LabelledSet(rows, copies)


def words(rng: random.Random) -> LabelledSet:
    """A long instruction, one word that differs, and one of two answers."""
    return LabelledSet([(GRAMMAR + word, "noun" if word in NOUNS else "verb", None) for word in (*NOUNS, *VERBS)], [])


SETS = {make.__name__: make for make in (tickets, reading, yes_or_no, letters, sums, words)}


def labelled_set(name: str) -> LabelledSet:
    return SETS[name](random.Random(name))
