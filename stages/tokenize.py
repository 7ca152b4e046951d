"""Tokenize: data/clean, models/base's tokenizer, params `prompt`, `tokenize` → data/tokenized, metrics/tokenize.json.

data/tokenized/{train,validation}.arrow have columns input_ids, labels (-100 on all but the assistant's turns and their
end-of-sequence token) and seq_lengths (the lengths of the conversations packed into the row, in TRL's name for it).
Run it with `dvc repro tokenize`; always as a module, since a plain script would shadow Python's own `tokenize`.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

from stages.shared.errors import UserError
from stages.shared.params import Params, Tokenize
from stages.shared.paths import BASE, CLEAN, METRICS, TOKENIZED, read_json, whole_directory, write_json
from stages.shared.prompts import IGNORED, Encoded, Encoder, check_base
from stages.shared.records import Record, read_records
from stages.shared.stage import Outcome, run_stage


@dataclass(frozen=True)
class Row:
    """What one forward pass sees as one row: one conversation, or several packed ones."""

    input_ids: list[int]
    labels: list[int]
    seq_lengths: list[int]


def tokenize(records: list[Record], encoder: Encoder, params: Tokenize) -> tuple[list[Row], dict[str, float]]:
    """The rows to train on, in the records' order unless packed, and their counts."""
    kept: list[Encoded] = []
    counts = {"truncated": 0, "dropped": 0}
    for record in records:
        encoded = encoder.conversation(record.messages)
        if len(encoded.input_ids) > params.max_length:
            counts["truncated"] += 1
            encoded = Encoded(encoded.input_ids[: params.max_length], encoded.labels[: params.max_length])
        # The first position predicts nothing, so a label there would not be trained either.
        if all(label == IGNORED for label in encoded.labels[1:]):
            counts["dropped"] += 1
            continue
        kept.append(encoded)
    groups = (
        pack([len(row.input_ids) for row in kept], params.max_length)
        if params.packing
        else [[i] for i in range(len(kept))]
    )
    rows = [join([kept[index] for index in group]) for group in groups]
    tokens = sum(len(row.input_ids) for row in rows)
    trained = sum(label != IGNORED for row in rows for label in row.labels)
    counts |= {"rows": len(kept), "packed_rows": len(rows), "tokens": tokens, "trained_tokens": trained}
    return rows, counts | {"fill": round(tokens / (len(rows) * params.max_length), 4) if rows else 0.0}


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


def main(params: Params) -> Outcome:
    encoder = Encoder(params.prompt)
    check_base(encoder, BASE)
    context = read_json(BASE / "config.json")["max_position_embeddings"]
    if params.tokenize.max_length > context:
        raise UserError(
            f"tokenize.max_length is {params.tokenize.max_length}, but the base model reads {context} tokens"
        )
    metrics = {}
    with whole_directory(TOKENIZED) as folder:
        for split in ("train", "validation"):
            rows, metrics[split] = tokenize(read_records(CLEAN / f"{split}.parquet"), encoder, params.tokenize)
            if not rows:
                raise UserError(f"no row of the {split} split has an answer within tokenize.max_length")
            write_rows(folder / f"{split}.arrow", rows)
    write_json(METRICS / "tokenize.json", metrics)
    train = metrics["train"]
    return Outcome(
        f"{train['rows']} conversations in {train['packed_rows']} rows, {train['tokens']} tokens, "
        f"{train['trained_tokens']} of them trained, {train['truncated']} truncated, {train['dropped']} dropped"
    )


if __name__ == "__main__":
    run_stage("tokenize", main)
