"""What to tell the user when a split has no row: which rules took the rows, or which fractions would do."""

from bisect import bisect_left
from pathlib import Path

from stages.core.params import Clean
from stages.core.records import SPLITS, split_position
from stages.runtime.counts import plural
from stages.runtime.errors import UserError

STEP = 100  # fractions are proposed in hundredths
SHOWN_REASONS = 4
MORE_ROWS = "Raise data.limit, or bring more data"
# {reason in rejected.parquet: (what is the matter with the row, what to do)}
EXPLAINED = {
    "malformed": ("it does not fit the data's format", "Correct data.format or data.columns"),
    "tool_call": ("template v3 has no form for its tools", "The detail in rejected.parquet says why"),
    "turn_order": ("its turns are not in order", "To have more of them repaired, set clean.repair_turns: merge"),
    "no_answer": ("it has no answer to learn from", "Add the answers in the data"),
    "secret": ("it holds a key or token", "To keep such rows, set clean.secrets: redact"),
    "personal_data": ("it holds personal data", "To keep such rows, set clean.personal_data: redact"),
    "empty_turn": ("a turn is empty", "Fill it in the data; bring texts without a question in a column `text`"),
    "no_trained_turn": ("none of its answers is trained", "Mark one with weight: 1 or train: true"),
    "too_short": ("an answer is shorter than clean.min_characters", "To keep such rows, lower that"),
    "too_long": ("it is longer than clean.max_characters", "To keep such rows, raise that"),
    "refusal": ("an answer refuses", "To keep such rows, set clean.reject_refusals: false"),
    "code_does_not_parse": ("an answer is no Python", "If none should be, set clean.check_code: false"),
    "tests_do_not_parse": ("its tests are no Python", "Correct them in the data"),
    "contaminated": ("it shares text with a benchmark", "To keep such rows, shorten clean.decontaminate"),
    "duplicate": ("it repeats another row", "Bring more different rows"),
    "near_duplicate": ("it nearly repeats another row", "To keep such rows, set clean.near_duplicate_threshold: null"),
}


def check_splits(counts: dict[str, int], rejected: dict[str, int], folder: Path, clean: Clean) -> None:
    """Checks that each split has a row.

    Args:
        counts: rows by split.
        rejected: rows by reason.
        folder: where the splits' files are.

    Raises:
        UserError: one has none. The message says why, and which values would give each split rows.
    """
    empty = [split for split in SPLITS if not counts[split]]
    if not empty:
        return
    kept = sum(counts.values())
    if kept < len(SPLITS):
        read = plural(kept + sum(rejected.values()), "row")
        said = (
            f"only {kept} of {read} can be kept, and three splits need more" if kept else f"none of {read} can be kept"
        )
        raise UserError(f"{said}.\n{describe_rejected(rejected)}" if rejected else f"{said}. {MORE_ROWS}")
    raise UserError(
        f"no row is left for the {' and the '.join(empty)} split: {plural(kept, 'row')} were kept, and by its content "
        f"none of them belongs there. {advise_fractions(folder, clean)}"
    )


def describe_rejected(rejected: dict[str, int]) -> str:
    """A line for each of the most frequent reasons, in words, with what to do about it."""
    order = sorted(rejected, key=lambda reason: (-rejected[reason], reason))
    lines = []
    for reason in order[:SHOWN_REASONS]:
        matter, advice = EXPLAINED[reason]
        lines.append(f"  {plural(rejected[reason], 'row')}: {matter} ({reason}). {advice}")
    others = sum(rejected[reason] for reason in order[SHOWN_REASONS:])
    return "\n".join(lines + ([f"  {plural(others, 'row')} for other reasons"] if others else []))


def advise_fractions(folder: Path, clean: Clean) -> str:
    """Names fractions with which each split has a row."""
    import pyarrow.parquet

    ids = [
        record_id
        for split in SPLITS
        for record_id in pyarrow.parquet.read_table(folder / f"{split}.parquet", columns=["id"])["id"].to_pylist()
    ]
    positions = sorted(map(split_position, ids))
    found = nearest_fractions(positions, clean.validation_fraction, clean.test_fraction)
    if found is None:
        return MORE_ROWS
    validation, test = found
    changes = [
        f"clean.{name}: {value}"
        for name, value, now in (
            ("test_fraction", test, clean.test_fraction),
            ("validation_fraction", validation, clean.validation_fraction),
        )
        if value != now
    ]
    in_test, in_both = bisect_left(positions, test), bisect_left(positions, test + validation)
    return (
        f"Set {' and '.join(changes)}, which gives {len(positions) - in_both} train, {in_both - in_test} validation "
        f"and {in_test} test. Or bring more rows"
    )


def nearest_fractions(positions: list[float], validation: float, test: float) -> tuple[float, float] | None:
    """The fractions (validation, test) next to those given with which each split has a row, or None.

    Args:
        positions: split_position() of each row, sorted.
    """
    tests = {step / STEP for step in range(1, STEP)} | {test}
    validations = {step / STEP for step in range(1, STEP)} | {validation}
    fitting = [
        (abs(new_test - test) + abs(new_validation - validation), new_test, new_validation)
        for new_test in tests
        for new_validation in validations
        if 0 < bisect_left(positions, new_test) < bisect_left(positions, new_test + new_validation) < len(positions)
    ]
    if not fitting:
        return None
    _, new_test, new_validation = min(fitting)
    return new_validation, new_test
