"""Lines that warn before the training: what too few rows, documents or steps mean. They stop nothing."""

import math

from stages.core.params import Train
from stages.core.statistics import FEW_ROWS
from stages.runtime.counts import plural

ENOUGH_ROWS = 30  # what is advised: the number of rows that a fraction gives varies
LARGEST_FRACTION = 0.3  # of the rows, for a split; where that is not enough, only more rows help
WARMUPS = 3  # a training shorter than this many warm-ups is hardly at its learning rate
MEANING = {
    "validation": "so the validation loss and the check of the merge say little",
    "test": "so the report's figures say little",
}


def warn_of_small_splits(splits: dict[str, int], test_documents: list[str]) -> None:
    """Prints a line for each of the splits validation and test with few rows, and one if all test rows are of one
    document.

    Args:
        splits: {split: rows}.
        test_documents: those with rows in the test split.
    """
    for split, meaning in MEANING.items():
        if splits[split] < FEW_ROWS:
            advice = enough_rows(split, sum(splits.values()))
            print(f"clean: only {plural(splits[split], f'{split} row')}, {meaning}. {advice}", flush=True)
    if len(test_documents) == 1:
        print(
            f"clean: all test rows come from one document, {test_documents[0]}, so the report counts each row as "
            "independent. If rows resemble each other, its intervals are too narrow. Ten files or more avoid that",
            flush=True,
        )


def enough_rows(split: str, rows: int) -> str:
    """Says what gives a split ENOUGH_ROWS rows. rows: of all splits."""
    fraction = math.ceil(100 * ENOUGH_ROWS / rows) / 100
    larger = (
        f"Set clean.{split}_fraction to {fraction} for about {ENOUGH_ROWS} (it moves rows between splits), or add rows"
    )
    return larger if fraction <= LARGEST_FRACTION else "Add rows"


def warn_of_few_steps(steps: int, train: Train) -> None:
    """Prints a line if the training has fewer optimizer steps than three warm-ups.

    Args:
        steps: of the whole training.
        train: the section of params.yaml.
    """
    if steps >= WARMUPS * train.warmup_steps:
        return
    epochs = math.ceil(10 * train.epochs * WARMUPS * train.warmup_steps / steps) / 10
    print(
        f"train: only {plural(steps, 'optimizer step')}, of them {min(steps, train.warmup_steps)} to warm up, so the "
        f"learning rate is low for most of them. Lower train.warmup_steps from {train.warmup_steps} to "
        f"{steps // WARMUPS}, or raise train.epochs to {epochs:g}",
        flush=True,
    )
