"""Tokenize: data/clean, models/base's tokenizer, params `prompt`, `tokenize` → data/tokenized, metrics/tokenize.json.

data/tokenized/{train,validation}.arrow have columns input_ids, labels (-100 on all but the assistant's turns and their
end-of-sequence token) and seq_lengths (the lengths of the conversations packed into the row, in TRL's name for it).
data/tokenized/rejected.parquet has the conversations of which nothing fits into `tokenize.max_length`.
Run it with `dvc repro tokenize`; always as a module, since a plain script would shadow Python's own `tokenize`.
`python -m stages.tokenize --show 3` prints rows with the trained tokens highlighted.
"""

import hashlib
import sys
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path

from stages.shared.errors import UserError
from stages.shared.params import Params, Tokenize, load_params
from stages.shared.paths import BASE, CLEAN, METRICS, TOKENIZED, read_json, whole_directory, write_json
from stages.shared.prompts import CHAT_TEMPLATES, IGNORED, Encoded, Encoder, check_base
from stages.shared.records import Record, read_records, record_file, record_table
from stages.shared.stage import Outcome, run_stage


@dataclass(frozen=True)
class Row:
    """What one forward pass sees as one row: one conversation, or several packed ones."""

    input_ids: list[int]
    labels: list[int]
    seq_lengths: list[int]


def fitting(whole: Encoded, messages: list[dict[str, str]], encoder: Encoder, params: Tokenize) -> list[Encoded]:
    """The conversation, or what `tokenize.too_long` leaves of it: whole turns only, so that each part ends in </s>."""
    if len(whole.input_ids) <= params.max_length:
        return [whole]
    if params.too_long == "drop":
        return []
    system = messages[:1] if messages[0]["role"] == "system" else []
    turns, parts = messages[len(system) :], []
    while turns:
        for count in range(len(turns), 0, -2):
            part = encoder.conversation(system + turns[:count])
            if len(part.input_ids) <= params.max_length:
                parts.append(part)
                break
        if params.too_long == "truncate":
            break
        turns = turns[count:]  # where not even one exchange fits, it alone is left out
    return parts


def tokenize(
    records: list[Record], encoder: Encoder, params: Tokenize
) -> tuple[list[Row], dict[str, float], list[Record]]:
    """The rows to train on, their counts, and the records of which nothing fits."""
    kept: list[Encoded] = []
    dropped, truncated, answers = [], 0, 0
    encoded = encoder.conversations([record.messages for record in records])
    for record, whole in zip(records, encoded, strict=True):
        parts = fitting(whole, record.messages, encoder, params)
        found = sum(part.labels.count(encoder.eos) for part in parts)
        expected = sum(message["role"] == "assistant" for message in record.messages)
        kept += parts
        answers += found
        if not parts:
            dropped.append(record)
        elif found < expected:
            truncated += 1
    lengths = [len(row.input_ids) for row in kept]
    groups = pack(lengths, params.max_length) if params.packing else [[index] for index in range(len(kept))]
    rows = [join([kept[index] for index in group]) for group in groups]
    tokens = sum(lengths)
    counts = {
        "rows": len(kept),
        "answers": answers,
        "truncated": truncated,
        "dropped": len(dropped),
        "packed_rows": len(rows),
        "tokens": tokens,
        "trained_tokens": sum(label != IGNORED for row in rows for label in row.labels),
        "fill": round(tokens / (len(rows) * params.max_length), 4) if rows else 0.0,
    }
    return rows, counts, dropped


def pack(lengths: list[int], capacity: int) -> list[list[int]]:
    """Indices grouped so that no group's lengths exceed `capacity`: best fit, longest first.

    Best-fit decreasing packing of training sequences: Ding et al. 2024, "Fewer Truncations Improve Language Modeling".
    """
    by_room: dict[int, list[int]] = {}  # room left → groups with it; there are only `capacity` different rooms
    groups: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        room = next((room for room in range(lengths[index], capacity + 1) if by_room.get(room)), None)
        if room is None:
            groups.append([])
            group, room = len(groups) - 1, capacity
        else:
            group = by_room[room].pop()
        groups[group].append(index)
        by_room.setdefault(room - lengths[index], []).append(group)
    return groups


def join(conversations: list[Encoded]) -> Row:
    return Row(
        [token for each in conversations for token in each.input_ids],
        # Without this the last token of one conversation would be trained to predict the first of the next.
        [label for each in conversations for label in (IGNORED, *each.labels[1:])],
        [len(each.input_ids) for each in conversations],
    )


def write_rows(path: Path, rows: list[Row]) -> None:
    """An Arrow IPC stream, which `datasets` maps into memory as it is."""
    import pyarrow

    tokens = pyarrow.list_(pyarrow.int32())
    schema = pyarrow.schema([("input_ids", tokens), ("labels", tokens), ("seq_lengths", tokens)])
    with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_stream(file, schema) as writer:
        for start in range(0, len(rows), 1000):
            writer.write(pyarrow.RecordBatch.from_pylist([asdict(row) for row in rows[start : start + 1000]], schema))


def readable(text: str) -> str:
    """Text of unknown origin for a terminal: control characters, newlines apart, are spelled out."""
    return "".join(char if char.isprintable() or char == "\n" else repr(char)[1:-1] for char in text)


def highlight(row: Row, encoder: Encoder, colour: bool) -> str:
    """The row's text, the trained tokens in green on a terminal, between « and » elsewhere."""
    before, after = ("\x1b[32m", "\x1b[0m") if colour else ("«", "»")
    # A label that `join` took away is only that of a conversation's first token, <s>, which is never trained.
    runs = groupby(zip(row.input_ids, row.labels, strict=True), key=lambda pair: pair[1] != IGNORED)
    texts = [(trained, readable(encoder.spell([token for token, _ in run]))) for trained, run in runs]
    return "".join(f"{before}{text}{after}" if trained else text for trained, text in texts)


def show(count: int) -> None:
    """Prints the first rows of data/tokenized/train.arrow, so that people look at their masks."""
    import pyarrow

    params, path = load_params(), TOKENIZED / "train.arrow"
    if not path.is_file():
        raise UserError(f"{path} is missing. `dvc repro tokenize` makes it")
    encoder = Encoder(params.prompt)
    rows = pyarrow.ipc.open_stream(path).read_all().slice(0, count).to_pylist()
    for number, row in enumerate(rows, 1):
        print(f"row {number}: {len(row['input_ids'])} tokens, conversations of {row['seq_lengths']}")
        print(highlight(Row(**row), encoder, sys.stdout.isatty()))


def main(params: Params) -> Outcome:
    encoder = Encoder(params.prompt)
    check_base(encoder, BASE)
    context = read_json(BASE / "config.json")["max_position_embeddings"]
    if params.tokenize.max_length > context:
        raise UserError(f"tokenize.max_length is {params.tokenize.max_length}; the base model reads {context} tokens")
    template = hashlib.sha256(CHAT_TEMPLATES[params.prompt.template].encode()).hexdigest()
    metrics, dropped = {"chat_template_sha256": template}, []
    with whole_directory(TOKENIZED) as folder:
        for split in ("train", "validation"):
            records = [record for part in read_records(CLEAN / f"{split}.parquet") for record in part]
            rows, metrics[split], left_out = tokenize(records, encoder, params.tokenize)
            if not rows:
                raise UserError(f"no row of the {split} split has an answer within tokenize.max_length")
            write_rows(folder / f"{split}.arrow", rows)
            dropped += left_out
        with record_file(folder / "rejected.parquet", "reason") as file:
            file.write_table(record_table(dropped, reason=["longer_than_max_length"] * len(dropped)))
    write_json(METRICS / "tokenize.json", metrics)
    train = metrics["train"]
    return Outcome(
        f"{train['rows']} conversations in {train['packed_rows']} rows, {train['tokens']} tokens, "
        f"{train['trained_tokens']} of them trained, {train['truncated']} truncated, {train['dropped']} dropped"
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--show"] and sys.argv[2:3] and sys.argv[2].isdigit():
        try:
            show(int(sys.argv[2]))
        except UserError as error:
            sys.exit(f"tokenize: {error}")
    else:
        run_stage("tokenize", main)
