"""Reads the generated answers of both evaluations, and checks that they can be shown in pairs."""

import json
from collections.abc import Iterable
from pathlib import Path

from stages.runtime.errors import UserError

PREDICTION = dict.fromkeys(("id", "source", "prompt", "reference", "output"), str) | {
    "ended": bool,
    "parses": bool | None,  # null where the reference is no Python
}


def parse_prediction(line: str, where: str) -> dict:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise UserError(f"{where} is not valid JSON: {error}") from None
    for name, wanted in PREDICTION.items():
        if not isinstance(row, dict) or name not in row or not isinstance(row[name], wanted):
            raise UserError(f"{where} lacks {name}, or it is of another type. Run `dvc repro evaluate` again")
    return row


def read_predictions(path: Path) -> list[dict]:
    # splitlines() would also break a line at U+2028, which JSON allows inside a string.
    try:
        with open(path, encoding="utf-8", newline="\n") as file:
            return [parse_prediction(line, f"{path}:{number}") for number, line in enumerate(file, 1) if line.strip()]
    except FileNotFoundError:
        raise UserError(f"{path} is missing. `dvc repro evaluate` makes it") from None


CALL_VERDICTS = {
    **{None: "", "text": ", no call", "not_json": ", no valid call", "wrong_name": ", another tool"},
    **{"wrong_arguments": ", other arguments", "right": ", the right call"},
}


def verdict(answer: dict) -> str:
    """How an answer ended; where it should be Python, whether it parses; where it should call tools, what is right."""
    parses = {True: ", parses", False: ", does not parse", None: ""}[answer["parses"]]
    return (
        ("ended by itself" if answer["ended"] else "cut off at the limit") + parses + CALL_VERDICTS[answer.get("call")]
    )


def answer_pairs(base: Iterable[dict], tuned: Iterable[dict]) -> list[tuple[dict, dict]]:
    """Both answers to each prompt.

    Raises:
        UserError: The two evaluations did not answer the same prompts in the same order.
    """
    base, tuned = list(base), list(tuned)
    again = "Base and tuned were not evaluated on the same rows: run `dvc repro --force evaluate`"
    if len(base) != len(tuned):
        raise UserError(f"the predictions of base are {len(base)}, those of tuned {len(tuned)}. {again}")
    for number, (before, after) in enumerate(zip(base, tuned, strict=True), 1):
        if before["id"] != after["id"]:
            raise UserError(
                f"prediction {number} has the id {before['id']!r} in base, {after['id']!r} in tuned. {again}"
            )
    return list(zip(base, tuned, strict=True))
