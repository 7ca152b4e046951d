"""Prints tokenized rows with the trained tokens highlighted."""

import sys
from itertools import groupby, islice

from stages.core.params import load_params
from stages.core.paths import TOKENIZED
from stages.core.prompts import IGNORED, Encoder
from stages.runtime.errors import UserError, readable


def highlight(ids: list[int], labels: list[int], encoder: Encoder, colour: bool) -> str:
    """Returns the row's text with the trained tokens in green if `colour` is true, and between « and » if not."""
    before, after = ("\x1b[32m", "\x1b[0m") if colour else ("«", "»")
    # join_conversations() masks the label of each first token, but that is <s>, which is never trained.
    runs = groupby(zip(ids, labels, strict=True), key=lambda pair: pair[1] != IGNORED)
    texts = [(trained, readable(encoder.spell([token for token, _ in run]))) for trained, run in runs]
    return "".join(f"{before}{text}{after}" if trained else text for trained, text in texts)


def show_rows(count: int) -> None:
    """Prints the first `count` rows of data/tokenized/train.arrow, so that people can check what is trained."""
    import pyarrow

    params, path = load_params(), TOKENIZED / "train.arrow"
    if not path.is_file():
        raise UserError(f"{path} is missing. `dvc repro tokenize` makes it")
    encoder = Encoder(params.prompt)
    with pyarrow.OSFile(str(path)) as file:
        rows = [*islice((row for batch in pyarrow.ipc.open_stream(file) for row in batch.to_pylist()), count)]
    for number, row in enumerate(rows, 1):
        print(f"row {number}: {len(row['input_ids'])} tokens, conversations of {row['seq_lengths']}")
        print(highlight(row["input_ids"], row["labels"], encoder, sys.stdout.isatty()))
