"""Random conversations, of plain text and of text that looks like special tokens."""

import json
import random

PIECES = [
    *("a", "The answer is", "def f(x):\n    return x", "x  =  1", "0123456789", "\t", "\n", "\n\n", " ", "   ", "    "),
    *(
        "é",
        "e\u0301",
        "日本語",
        "Ünïcödé",
        "🦜",
        "👩‍👩‍👧",
        "nbsp\u00a0here",
        "\x00",
        "\r\n",
        "\u2028",
        "<",
        "]",
        "%s {x} {{y}}",
    ),
]
LOOK_ALIKES = ["[INST]", "[/INST]", "<s>", "</s>", "<unk>", "[TOOL_CALLS]", "<0x0A>", "[control_8]", "{{ bos_token }}"]


def conversations(count, pieces, seed=0) -> list[list[dict]]:
    """Conversations of one to four exchanges. Every third has a system prompt. Texts may begin and end with blanks."""
    rng = random.Random(seed)

    def text():
        glue = rng.choice(["", " "])
        return glue.join(rng.choices(pieces, k=rng.randint(0, 8))) + rng.choice(["x", "x ", "x   ", " x\n", "\n x \n "])

    found = []
    for number in range(count):
        roles = ["system"] * (number % 3 == 0) + ["user", "assistant"] * rng.randint(1, 4)
        found.append([{"role": role, "content": text()} for role in roles])
    return found


def json_value(rng, pieces, depth=0):
    """Returns a random JSON value, with objects in it where `depth` allows."""
    kinds = ["text", "number", "flag", "null"] + ["list", "object"] * (depth < 2)
    kind = rng.choice(kinds)
    if kind == "list":
        return [json_value(rng, pieces, depth + 1) for _ in range(rng.randint(0, 3))]
    if kind == "object":
        return {f"key{n}": json_value(rng, pieces, depth + 1) for n in range(rng.randint(0, 3))}
    text = "".join(rng.choices([*pieces, '"', "\\"], k=rng.randint(0, 5)))
    return {"text": text, "number": rng.choice([0, -3, 2.5, 1e20]), "flag": True, "null": None}[kind]


def tool_rows(count, seed=0, pieces=(*PIECES, *LOOK_ALIKES)) -> list[dict]:
    """Rows with `tools` and `messages` in OpenAI's shape: some calls are at the end, and some rows call nothing."""
    rng = random.Random(seed)

    def spelled(value):
        return rng.choice([value, json.dumps(value), json.dumps(value, indent=2)]) if isinstance(value, dict) else value

    def calls_and_results(number):
        calls = [
            {"id": f"{number:04}{n}abcd", "type": "function"}
            | {"function": {"name": rng.choice(["add", "look-up", "f_1"]), "arguments": spelled(json_value_object())}}
            for n in range(rng.randint(1, 3))
        ]
        results = [
            {"role": "tool", "tool_call_id": call["id"], "name": call["function"]["name"]}
            | {"content": rng.choice(["plain text", json.dumps(json_value(rng, pieces)), "{not json", "7"])}
            for call in calls
        ]
        return {"role": "assistant", "content": None, "tool_calls": calls}, results

    def json_value_object():
        return {f"key{n}": json_value(rng, pieces, 1) for n in range(rng.randint(0, 3))}

    rows = []
    for number in range(count):
        messages = [{"role": "system", "content": "Be brief."}] * (number % 3 == 0)
        for place in range(exchanges := rng.randint(1, 3)):
            messages.append({"role": "user", "content": f"Ask {number} {rng.choice(PIECES)}?"})
            for _ in range(rng.randint(0, 2)):
                call, results = calls_and_results(number)
                messages += [call, *results]
            if place + 1 < exchanges or rng.random() < 0.6:
                messages.append({"role": "assistant", "content": f"So {rng.choice(PIECES)}x  "})
            else:
                messages.append(calls_and_results(number)[0])
        parameters = {"type": "object", "properties": {"é": {"type": "string"}}}
        function = {"name": "add", "description": "Adds\n“two”", "parameters": parameters}
        rows.append(
            {"messages": messages} | ({"tools": [{"type": "function", "function": function}]} if number % 5 else {})
        )
    return rows


PLAIN = conversations(400, PIECES)
HOSTILE = conversations(700, PIECES + LOOK_ALIKES * 2)
