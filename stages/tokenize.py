"""Tokenize: data/clean, models/base's tokenizer, params `prompt`, `tokenize` → data/tokenized, metrics/tokenize.json.

data/tokenized/{train,validation}.arrow have three columns. input_ids has the tokens. labels has the same ids for the
assistant's turns and their end-of-sequence token, and -100 elsewhere. It has -100 for an answer too that the data or
`tokenize.train_turns` say is not trained. Of a text it has all ids but the first. seq_lengths (TRL's name) has the
lengths of the conversations that are packed into the row.
data/tokenized/rejected.parquet has the conversations of which nothing that is trained is left, with the reason.
`machine.workers` processes tokenize a split in shards of at most SHARD_CONVERSATIONS, and a row holds conversations of
one shard. So memory does not grow with the data, and the number of workers changes no byte.
As a plain script it would shadow Python's own `tokenize`, so start it as a module.

    dvc repro tokenize
    python -m stages.tokenize --show 3    # prints rows and highlights the tokens that are trained
"""

from stages.runtime.command import explained
from stages.runtime.stage_options import stage_options

import hashlib
from collections import Counter
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy

from stages._tokenize.packing import join_conversations, pack, row_schema, text_windows
from stages._tokenize.show import show_rows
from stages.core.params import Params, Prompt, Tokenize
from stages.core.paths import BASE, CLEAN, METRICS, TOKENIZED, read_json, whole_directory, write_json
from stages.core.prompts import CHAT_TEMPLATES, IGNORED, Encoder, TokenArrays, check_tokenizer_of_base
from stages.core.records import (
    Message,
    is_raw_text,
    is_trained,
    messages_of_column,
    opening,
    read_batches,
    record_file,
    turn_keys_of_file,
    with_trained_turns,
)
from stages.core.workers import count_workers, ordered_map
from stages.runtime.counts import plural
from stages.runtime.errors import UserError
from stages.runtime.progress import progress
from stages.runtime.runner import Outcome, run_stage

if TYPE_CHECKING:
    import pyarrow

SHARD_CONVERSATIONS = 10_000  # packed together: enough for full rows, few enough for memory
SHARD_TOKENS = 1 << 25  # at most in a shard, so that long conversations make smaller shards
BATCH_ROWS = 1000  # in the Arrow file
Conversation = list[Message]
TOO_LONG, NOT_TRAINED = "longer_than_max_length", "no_trained_turn"  # why nothing is kept of a conversation


def fitting_parts(messages: Conversation, encoder: Encoder, params: Tokenize) -> list[TokenArrays]:
    """Returns what `tokenize.too_long` keeps of a conversation: parts of whole turns, so that each ends in </s>.

    A part in which nothing is trained is left out. Of a text it keeps windows: `truncate` the first, `split` all.
    """
    if params.too_long == "drop":
        return []
    if is_raw_text(messages):
        ids = encoder.arrays([messages], threads=1)[0][0]
        windows = text_windows(ids, params.max_length, encoder.starts_word)
        kept = windows[: 1 if params.too_long == "truncate" else None]
        return [(window, window) for window in kept]  # join_conversations() leaves <s> untrained
    head, parts = opening(messages), []
    exchanges: list[Conversation] = []  # a user's turn, and all turns up to the next
    for message in messages[len(head) :]:
        exchanges += [[]] if message["role"] == "user" else []
        exchanges[-1].append(message)
    while exchanges:
        for count in range(len(exchanges), 0, -1):
            part = encoder.arrays([head + [turn for some in exchanges[:count] for turn in some]], threads=1)[0]
            if len(part[0]) <= params.max_length:
                parts.append(part)
                break
        if params.too_long == "truncate":
            break
        exchanges = exchanges[count:]  # an exchange that does not fit even as a part of its own is left out
    return [part for part in parts if (part[1] != IGNORED).any()]


def tokenize(
    conversations: list[Conversation], encoder: Encoder, params: Tokenize, threads: int = 1
) -> tuple["pyarrow.RecordBatch", Counter[str], dict[int, str]]:
    """Tokenizes and packs the conversations of a shard.

    Args:
        threads: of SentencePiece.

    Returns:
        The rows to train on, their counts, and {index of a conversation of which nothing is kept: the reason}.
    """
    conversations = [with_trained_turns(messages, params.train_turns) for messages in conversations]
    trained = [sum(map(is_trained, messages)) for messages in conversations]
    kept: list[TokenArrays] = []
    dropped, truncated = {}, 0
    for index, whole in enumerate(encoder.arrays(conversations, threads)):
        if not trained[index]:
            dropped[index] = NOT_TRAINED
            continue
        if len(whole[0]) <= params.max_length:
            kept.append(whole)
            continue
        parts = fitting_parts(conversations[index], encoder, params)
        kept += parts
        answers = sum(numpy.count_nonzero(labels == encoder.eos) for _, labels in parts)  # a text has one end too
        if not parts:
            dropped[index] = TOO_LONG
        elif answers < trained[index]:
            truncated += 1
    lengths = [len(ids) for ids, _ in kept]
    groups = pack(lengths, params.max_length) if params.packing else [[index] for index in range(len(kept))]
    rows = join_conversations(kept, groups)
    labels = rows["labels"].values.to_numpy()
    counts = {
        "rows": len(kept),
        "answers": int(numpy.count_nonzero(labels == encoder.eos)),
        "truncated": truncated,
        "dropped": len(dropped),
        "packed_rows": rows.num_rows,
        "tokens": len(labels),
        "trained_tokens": int(numpy.count_nonzero(labels != IGNORED)),
    }
    return rows, Counter(counts), dropped


encoder_of = cache(Encoder)  # a worker makes it once for all its shards


def tokenize_shard(
    records: "pyarrow.RecordBatch", prompt: Prompt, params: Tokenize, threads: int
) -> tuple["pyarrow.RecordBatch", Counter[str], "pyarrow.Table"]:
    """Tokenizes a shard in a worker. Only Arrow tables go to it and come back, because copying their buffers is cheap.

    Returns:
        The rows, their counts, and the records that were left out, with the reason.
    """
    import pyarrow

    rows, counts, dropped = tokenize(messages_of_column(records["messages"]), encoder_of(prompt), params, threads)
    left_out = pyarrow.Table.from_batches([records.take(pyarrow.array(list(dropped), pyarrow.int64()))])
    reasons = pyarrow.array(list(dropped.values()), pyarrow.string())
    return rows, counts, left_out.append_column("reason", reasons)


def tokenize_split(
    split: str, path: Path, rejected: "pyarrow.parquet.ParquetWriter", params: Params, size: int
) -> dict[str, float]:
    """Writes the rows of a split as an Arrow IPC stream, which `datasets` maps into memory.

    Args:
        size: the most conversations in a shard.

    Returns:
        The counts, and `fill`: the share of the rows' max_length tokens that is used.

    Raises:
        UserError: no conversation of the split fits, or nothing is trained in those that fit.
    """
    import pyarrow.parquet

    source = CLEAN / f"{split}.parquet"
    total = pyarrow.parquet.read_metadata(source).num_rows
    workers = count_workers(params.machine)
    # The cores are for the workers. With a single shard there is only one worker, so SentencePiece gets them.
    work = partial(
        tokenize_shard, prompt=params.prompt, params=params.tokenize, threads=workers if total <= size else 1
    )
    counts: Counter[str] = Counter()
    with (
        pyarrow.OSFile(str(path), "wb") as file,
        pyarrow.ipc.new_stream(file, row_schema()) as writer,
        progress(f"tokenize {split}", total, " rows") as bar,
    ):
        for rows, shard_counts, left_out in ordered_map(work, read_batches(source, size), workers):
            for start in range(0, rows.num_rows, BATCH_ROWS):
                writer.write(rows.slice(start, BATCH_ROWS))
            if left_out.num_rows:
                rejected.write_table(left_out)
            counts.update(shard_counts)
            bar.advance(min(size, total - bar.done))
    if not counts["rows"]:
        raise UserError(
            f"no row of the {split} split has a trained answer within tokenize.max_length. Raise it"
            + (", or set tokenize.train_turns: all" if params.tokenize.train_turns == "last" else "")
        )
    return {**counts, "fill": round(counts["tokens"] / (counts["packed_rows"] * params.tokenize.max_length), 4)}


def main(params: Params, size: int = SHARD_CONVERSATIONS) -> Outcome:
    encoder = Encoder(params.prompt)
    check_tokenizer_of_base(encoder, BASE)
    context = read_json(BASE / "config.json")["max_position_embeddings"]
    if params.tokenize.max_length > context:
        raise UserError(
            f"tokenize.max_length is {params.tokenize.max_length}; the base model reads {context} tokens. Lower it"
        )
    template = hashlib.sha256(CHAT_TEMPLATES[params.prompt.template].encode()).hexdigest()
    size = min(size, max(1, SHARD_TOKENS // params.tokenize.max_length))
    metrics = {"chat_template_sha256": template}
    splits = ("train", "validation")
    turns = turn_keys_of_file(CLEAN / "train.parquet")  # the same in all files of data/clean
    with (
        whole_directory(TOKENIZED) as folder,
        record_file(folder / "rejected.parquet", "reason", turns=turns) as rejected,
    ):
        for split in splits:
            metrics[split] = tokenize_split(split, folder / f"{split}.arrow", rejected, params, size)
    write_json(METRICS / "tokenize.json", metrics)
    train = metrics["train"]
    return Outcome(
        f"{plural(train['rows'], 'conversation')} in {plural(train['packed_rows'], 'row')}, "
        f"{plural(train['tokens'], 'token')}, "
        f"{train['trained_tokens']} of them trained, {train['truncated']} truncated, {train['dropped']} dropped"
    )


if __name__ == "__main__":
    options = stage_options("tokenize", __doc__)
    if options.show:
        with explained("tokenize"):
            show_rows(options.show)
    else:
        run_stage("tokenize", main)
