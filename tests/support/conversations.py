"""Random conversations, of plain text and of text that looks like special tokens."""

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


PLAIN = conversations(400, PIECES)
HOSTILE = conversations(700, PIECES + LOOK_ALIKES * 2)
