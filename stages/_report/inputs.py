"""Reads what other stages measured. Stops with one sentence where the report would be wrong or half empty."""

import csv
import math
import re
from pathlib import Path

from stages._report.data_section import SOURCE_COUNTS
from stages.core.paths import read_json
from stages.core.records import SPLITS
from stages.core.statistics import ANSWER_MEASURES, MEASURES, OPTIONAL_MEASURES
from stages.runtime.errors import UserError

TOKEN_FIGURES = ("rows", "packed_rows", "tokens", "trained_tokens", "truncated", "dropped", "fill")
EVALUATION = (
    *("rows", "tokens", "generated_rows", "tested_rows", "clusters"),
    *(name for name in MEASURES if name not in OPTIONAL_MEASURES),  # without intervals, which few rows do not have
)
# The figures that the page shows, by the file that has them. A dot leads one level down.
REQUIRED = {
    "manifest": ("parameters", "bytes"),
    "clean": ("fixed", "rows.read", "rows.kept", "splits.train", "splits.validation", "splits.test"),
    "tokenize": tuple(f"{split}.{name}" for split in ("train", "validation") for name in TOKEN_FIGURES),
    "train": (
        *("loss_first", "loss_last", "validation_loss_start", "validation_loss", "steps", "tokens", "trained_tokens"),
        *("trainable_parameters", "parameters", "trainable_share"),
        *("base_bytes_16bit", "base_bytes_loaded", "adapter_bytes"),
    ),
    "merge": (
        *(
            f"parity.{name}"
            for name in ("loss_gap", "kl", "top1_agreement", "loss_trained", "loss_merged", "tokens", "rows")
        ),
        *(f"naive.{name}" for name in ("loss_gap", "kl", "top1_agreement", "loss_merged")),
        *(f"values.{name}" for name in ("compared", "different", "largest_difference")),
        *("bytes", "tensors", "merged_modules"),
    ),
    "base": EVALUATION,
    "tuned": EVALUATION,
    "result": tuple(f"evaluate.{model}.{name}" for model in ("base", "tuned") for name in EVALUATION),
    "timing": ("seconds", "peak_rss_bytes"),
}
# Other values that the page needs, with their types.
REQUIRED_OTHER = {
    "manifest": {"source": str},
    "clean": {"rows.rejected": dict, "characters": dict, "sources": dict, "sha256": dict},
    "train": {"versions": dict},
    "merge": {"base": str, "parity.judged": bool},
    "base": {"slices": dict, "plain": dict},
    "tuned": {"slices": dict},
}
REJECT = ("source", "detail", "text")


def value_at(values: object, dotted: str) -> object:
    """The value at a dotted name such as `a.b`, which may be null.

    Raises:
        KeyError: There is no such name.
    """
    for part in dotted.split("."):
        if not isinstance(values, dict):
            raise KeyError(dotted)
        values = values[part]
    return values


def is_number_or_null(value: object) -> bool:
    """Whether the value is a finite number, or null because there was nothing to measure."""
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value))


def required_figures(values: object, kind: str) -> list[str]:
    """REQUIRED of a kind, without the measures of answers where no answer was generated."""
    required = []
    for dotted in REQUIRED[kind]:
        evaluation, _, name = dotted.rpartition(".")
        try:
            generated = value_at(values, f"{evaluation}.generated_rows".lstrip("."))
        except KeyError:
            generated = None
        if name not in ANSWER_MEASURES or generated != 0:
            required.append(dotted)
    return required


def find_flaw(values: object, kind: str) -> str | None:
    """The reason why a file of this kind cannot be reported, or None."""
    expected = dict.fromkeys(required_figures(values, kind)) | REQUIRED_OTHER.get(kind, {})
    for dotted, wanted in expected.items():
        try:
            value = value_at(values, dotted)
        except KeyError:
            return f"lacks {dotted}"
        if not (is_number_or_null(value) if wanted is None else isinstance(value, wanted)):
            return f"has {dotted}: {value!r}, which is not a {'finite number' if wanted is None else wanted.__name__}"
    return find_data_flaw(values) if kind == "clean" else None


def find_data_flaw(clean: dict) -> str | None:
    """The first flaw in those counts of metrics/clean.json whose names come from the data, or None."""
    characters = clean["characters"]
    buckets = characters["train"] if isinstance(characters.get("train"), dict) else {}
    if set(characters) != set(SPLITS) or not {"longer"} < set(buckets):
        return f"has characters that are not buckets up to longer of {', '.join(SPLITS)}"
    if odd := next((name for name in buckets if not re.fullmatch(r"to_\d+|longer", name)), None):
        return f"has characters.train with the bucket {odd!r}"
    for part, names in (("characters", buckets), ("sources", SOURCE_COUNTS)):
        for group, counts in clean[part].items():
            if not isinstance(counts, dict) or set(counts) != set(names) or not all(map(is_count, counts.values())):
                return f"has {part} of {group!r} that are not whole numbers named {', '.join(names)}"
    odd = next((reason for reason, count in clean["rows"]["rejected"].items() if not is_count(count)), None)
    return odd and f"has no whole number of rows rejected as {odd!r}"


def is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def read_json_file(path: Path) -> object:
    try:
        return read_json(path)
    except FileNotFoundError:
        raise UserError(f"{path} is missing. `dvc repro report` makes what it needs") from None
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}. Delete it and run `dvc repro report`") from None


def read_values(path: Path, kind: str) -> dict:
    """The JSON file at `path`, checked against what REQUIRED asks of its kind.

    Raises:
        UserError: The file is missing, or lacks something.
    """
    values = read_json_file(path)
    if problem := find_flaw(values, kind):
        raise UserError(f"{path} {problem}. It is from another version or was edited: run the stage that writes it")
    return values


def read_rejected(path: Path, counts: dict[str, int]) -> dict[str, list[dict[str, str]]]:
    """{reason: samples of rows rejected for it}. counts: rows by reason, from metrics/clean.json.

    Raises:
        UserError: The file is missing, or does not fit the counts.
    """
    values = read_json_file(path)
    again = "Run `dvc repro --force clean`"
    if not isinstance(values, dict) or set(values) != set(counts):
        raise UserError(f"{path} does not have the reasons of {path.with_name('clean.json')}. {again}")
    for reason, samples in values.items():
        for number, sample in enumerate(samples if isinstance(samples, list) else [None], 1):
            if not isinstance(sample, dict) or any(not isinstance(sample.get(name), str) for name in REJECT):
                raise UserError(f"{path}: sample {number} of {reason!r} lacks one of {', '.join(REJECT)}. {again}")
    return values


def read_curve(path: Path, column: str) -> list[tuple[int, float]]:
    """(step, value) of each line with a finite value. A step without one leaves a gap in the curve.

    Raises:
        UserError: The file is missing or no curve.
    """
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
