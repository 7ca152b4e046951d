"""Reads what the other stages left and refuses it, in one sentence, where the report would be wrong or half empty."""

import csv
import json
import math
from collections.abc import Iterable
from pathlib import Path

from stages.shared.errors import UserError
from stages.shared.paths import read_json

SPLIT = ("rows", "packed_rows", "tokens", "trained_tokens", "truncated", "dropped", "fill")
EVALUATION = (
    *("rows", "tokens", "loss", "perplexity", "loss_after_8", "perplexity_after_8"),
    *("generated_rows", "ended_share", "parses_share", "chrf"),
)
# The figures that the page shows, by the file that brings them; a dot goes one level down.
REQUIRED = {
    "manifest": ("parameters", "bytes"),
    "clean": ("rows.read", "rows.kept", "splits.train", "splits.validation", "splits.test"),
    "tokenize": tuple(f"{split}.{name}" for split in ("train", "validation") for name in SPLIT),
    "train": (
        *("loss_first", "loss_last", "validation_loss_start", "validation_loss", "steps", "tokens", "trained_tokens"),
        *("trainable_parameters", "parameters", "trainable_share"),
        *("base_bytes_16bit", "base_bytes_4bit", "adapter_bytes"),
    ),
    "merge": (
        *(f"parity.{name}" for name in ("loss_gap", "kl", "top1_agreement", "loss_trained", "loss_merged", "tokens")),
        *("bytes", "tensors", "merged_modules"),
    ),
    "base": EVALUATION,
    "tuned": EVALUATION,
    "result": tuple(f"evaluate.{model}.{name}" for model in ("base", "tuned") for name in EVALUATION),
    "timing": ("seconds", "peak_rss_bytes"),
}
# The same for what is not a figure: the type says what it must be.
REQUIRED_OTHER = {
    "manifest": {"source": str},
    "clean": {"rows.rejected": dict},
    "train": {"versions": dict},
    "merge": {"base": str},
}
PREDICTION = {"id": str, "source": str, "prompt": str, "reference": str, "output": str, "ended": bool, "parses": bool}


def lookup(values: object, dotted: str) -> object:
    """The value at `a.b`. Raises KeyError where there is none; a null is a value."""
    for part in dotted.split("."):
        if not isinstance(values, dict):
            raise KeyError(dotted)
        values = values[part]
    return values


def is_figure(value: object) -> bool:
    """A finite number, or null where there was nothing to measure."""
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value))


def flaw(values: object, kind: str) -> str | None:
    """What keeps a file of this kind from being reported, or None."""
    expected = dict.fromkeys(REQUIRED[kind]) | REQUIRED_OTHER.get(kind, {})
    for dotted, wanted in expected.items():
        try:
            value = lookup(values, dotted)
        except KeyError:
            return f"lacks {dotted}"
        if not (is_figure(value) if wanted is None else isinstance(value, wanted)):
            return f"has {dotted}: {value!r}, which is not a {'finite number' if wanted is None else wanted.__name__}"
    return None


def read_values(path: Path, kind: str) -> dict:
    """The JSON file at `path`, with all that REQUIRED asks of its kind."""
    try:
        values = read_json(path)
    except FileNotFoundError:
        raise UserError(f"{path} is missing. `dvc repro report` makes what it needs") from None
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}. Delete it and run `dvc repro report`") from None
    if problem := flaw(values, kind):
        raise UserError(f"{path} {problem}. It is from another version or was edited: run the stage that writes it")
    return values


def read_curve(path: Path, column: str) -> list[tuple[int, float]]:
    """(step, value) of each line that has a finite value: a step without one leaves a gap, not an end."""
    points = []
    try:
        with open(path, encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                value = float(row[column] or "nan")
                if math.isfinite(value):
                    points.append((int(row["step"]), value))
    except FileNotFoundError:
        raise UserError(f"{path} is missing. `dvc repro report` makes what it needs") from None
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is not a curve with the columns step and {column}: {error!r}") from None
    return points


def prediction(line: str, where: str) -> dict:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise UserError(f"{where} is not valid JSON: {error}") from None
    for name, wanted in PREDICTION.items():
        if not isinstance(row, dict) or not isinstance(row.get(name), wanted):
            raise UserError(f"{where} lacks {name}, or it is not a {wanted.__name__}. Run `dvc repro evaluate` again")
    return row


def read_predictions(path: Path) -> list[dict]:
    # Not splitlines(): it would also break a line at U+2028, which JSON allows inside a string.
    try:
        with open(path, encoding="utf-8", newline="\n") as file:
            return [prediction(line, f"{path}:{number}") for number, line in enumerate(file, 1) if line.strip()]
    except FileNotFoundError:
        raise UserError(f"{path} is missing. `dvc repro evaluate` makes it") from None


def pairs(base: Iterable[dict], tuned: Iterable[dict]) -> list[tuple[dict, dict]]:
    """Both answers to each prompt.

    Raises:
        UserError: the two evaluations did not answer the same prompts in the same order.
    """
    base, tuned = list(base), list(tuned)
    again = "Base and tuned were not evaluated on the same rows: run `dvc repro --force evaluate`"
    if len(base) != len(tuned):
        raise UserError(f"the predictions of base are {len(base)}, those of tuned {len(tuned)}. {again}")
    for number, (one, other) in enumerate(zip(base, tuned, strict=True), 1):
        if one["id"] != other["id"]:
            raise UserError(f"prediction {number} has the id {one['id']!r} in base, {other['id']!r} in tuned. {again}")
    return list(zip(base, tuned, strict=True))
