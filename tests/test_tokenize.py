"""Token rows: what is truncated, dropped and packed, that conversations stay apart in a row, and the files."""

import json
import random
import re
import shutil
from pathlib import Path

import numpy
import pytest

from stages import clean, download_data
from stages import tokenize as stage
from stages._tokenize.packing import text_windows
from stages.core.params import Prompt, Tokenize
from stages.core.paths import BASE, CLEAN, METRICS, TOKENIZED, read_json
from stages.core.prompts import IGNORED, Encoder
from stages.core.records import Record, is_trained, read_records
from stages.download_model import convert_tokenizer
from stages.runtime.errors import UserError
from stages.tokenize import main, pack, tokenize
from tests.support.data_files import write_records

CAPACITY = 512


def make_record(number, words=3) -> Record:
    messages = [
        {"role": "user", "content": f"Count to {number}"},
        {"role": "assistant", "content": " ".join(map(str, range(words)))},
    ]
    return Record(f"{number:032x}", messages, f"rows.jsonl:{number}")


def lognormal(count, seed=0) -> list[int]:
    rng = random.Random(seed)
    return [min(CAPACITY, max(2, round(rng.lognormvariate(4.6, 0.8)))) for _ in range(count)]


@pytest.fixture(scope="module")
def encoder():
    return Encoder(Prompt(template="v3", system=None))


class Lettered:
    """An encoder with one letter a token: prompts are dots, answers are letters, and $ ends an answer."""

    eos = ord("$")

    def arrays(self, batch, threads):
        return [self.conversation(messages) for messages in batch]

    def conversation(self, messages):
        ids, labels = [], []
        for message in messages:
            text = message["content"] + "$" * (message["role"] == "assistant")
            ids += map(ord, text)
            labels += [ord(letter) if is_trained(message) else IGNORED for letter in text]
        return numpy.array(ids, dtype=numpy.int32), numpy.array(labels, dtype=numpy.int32)


def lettered(*texts) -> list[list[dict]]:
    """Makes conversations of spellings: "..ab$.c$" has two exchanges, a leading s is a system prompt of one token.

    An answer in capitals is not trained.
    """
    conversations = []
    for text in texts:
        messages = [{"role": "system", "content": "s"}] if text.startswith("s") else []
        for prompt, answer in re.findall(r"(\.+)(\w*)\$", text):
            flag = {"train": False} if answer.isupper() else {}
            messages += [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer} | flag]
        conversations.append(messages)
    return conversations


def tokenized(*texts, max_length=8, packing=False, too_long="drop", train_turns="all"):
    params = Tokenize(max_length=max_length, packing=packing, too_long=too_long, train_turns=train_turns)
    rows, counts, dropped = tokenize(lettered(*texts), Lettered(), params)
    return rows.to_pylist(), counts, dropped


def spelled(row) -> str:
    return "".join(map(chr, row["input_ids"]))


def trained(row) -> str:
    return "".join("." if label == IGNORED else chr(label) for label in row["labels"])


@pytest.mark.parametrize(
    "lengths", [[], [CAPACITY], [1] * 2000, [CAPACITY] * 5, [300] * 9, lognormal(2000), lognormal(7)]
)
def test_every_conversation_is_packed_once_and_no_row_overflows(lengths):
    groups = pack(lengths, CAPACITY)
    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
    assert all(0 < sum(lengths[index] for index in group) <= CAPACITY for group in groups)


@pytest.mark.parametrize("seed", range(3))
def test_packed_rows_are_nearly_full(seed):
    lengths = lognormal(2000, seed)
    assert sum(lengths) / (len(pack(lengths, CAPACITY)) * CAPACITY) >= 0.98


@pytest.mark.slow
def test_the_conversations_of_the_tiny_profile_fill_their_rows(tmp_path, monkeypatch, params_of):
    monkeypatch.chdir(tmp_path)
    params = params_of()
    download_data.main(params)
    clean.main(params)
    conversations = [record.messages for part in read_records(CLEAN / "train.parquet") for record in part]
    rows, counts, _ = tokenize(conversations, Encoder(params.prompt), params.tokenize)
    assert counts["rows"] > 1000
    assert counts["tokens"] / (rows.num_rows * params.tokenize.max_length) >= 0.98


def test_packing_the_same_lengths_gives_the_same_rows():
    lengths = lognormal(2000)
    assert pack(lengths, CAPACITY) == pack(list(lengths), CAPACITY)


@pytest.mark.parametrize(
    ("lengths", "groups"),
    [
        ([5, 5, 5], [[0, 1], [2]]),  # equal lengths in their order
        ([3, 7, 6, 4], [[1, 0], [2, 3]]),
        ([8, 7, 2], [[0, 2], [1]]),  # the row with the least room that is enough, not the first
        ([7, 8, 2], [[1, 2], [0]]),
        ([7, 6, 3], [[0, 2], [1]]),
    ],
)
def test_a_conversation_joins_the_row_with_the_least_room_that_is_enough(lengths, groups):
    assert pack(lengths, 10) == groups


@pytest.mark.parametrize("seed", range(3))
def test_packing_needs_no_more_rows_than_trl(seed):
    from datasets import Dataset
    from trl import pack_dataset

    lengths = lognormal(2000, seed)
    rows = Dataset.from_dict({"input_ids": [[0] * length for length in lengths]})
    theirs = pack_dataset(rows, CAPACITY, strategy="bfd", map_kwargs={"batch_size": len(lengths)})
    assert theirs.num_rows < len(lengths)
    assert len(pack(lengths, CAPACITY)) <= theirs.num_rows


def test_without_packing_each_conversation_is_a_row_in_the_order_of_the_records():
    texts = ["..ab$", "....abc$", ".a$", "..a$..b$"]
    rows, counts, dropped = tokenized(*texts)
    assert [spelled(row) for row in rows] == texts
    assert [trained(row) for row in rows] == texts
    assert [row["seq_lengths"] for row in rows] == [[5], [8], [3], [8]]
    assert dropped == {}
    assert counts == {
        **{"truncated": 0, "dropped": 0, "rows": 4, "answers": 5, "packed_rows": 4},
        **{"tokens": 24, "trained_tokens": 13},
    }


@pytest.mark.parametrize(
    ("too_long", "text", "kept"),
    [
        ("drop", "..ab$", ["..ab$"]),
        ("drop", "..abcdef$", []),
        ("drop", "..ab$..cd$", []),
        ("truncate", "..ab$..cd$", ["..ab$"]),
        ("truncate", ".a$.b$.c$", [".a$.b$"]),
        ("truncate", "..abcdef$.a$", []),
        ("truncate", "s..ab$..cd$", ["s..ab$"]),
        ("split", "..ab$..cd$", ["..ab$", "..cd$"]),
        ("split", ".a$.b$.c$", [".a$.b$", ".c$"]),
        ("split", "s.a$.b$.c$", ["s.a$.b$", "s.c$"]),
        ("split", "..ab$..abcdef$.c$", ["..ab$", ".c$"]),
        ("split", "..abcdef$", []),
    ],
)
def test_a_conversation_that_is_too_long_keeps_whole_turns_as_params_asks(too_long, text, kept):
    rows, counts, dropped = tokenized(text, too_long=too_long)
    assert [spelled(row) for row in rows] == kept
    assert dropped == ({} if kept else {0: "longer_than_max_length"})
    assert counts["dropped"] == len(dropped)
    assert counts["answers"] == sum(part.count("$") for part in kept)
    assert counts["truncated"] == (bool(kept) and counts["answers"] < text.count("$"))


@pytest.mark.parametrize(
    ("text", "train_turns", "labels"),
    [
        (".AB$.c$", "all", ".....c$"),
        (".a$.B$.c$", "all", ".a$....c$"),
        ("s.a$.b$", "last", ".....b$"),
        (".a$.b$", "last", "....b$"),
        (".A$.b$", "last", "....b$"),
    ],
)
def test_an_answer_that_is_not_trained_is_context_with_its_end(text, train_turns, labels):
    rows, counts, dropped = tokenized(text, max_length=20, train_turns=train_turns)
    assert [spelled(row) for row in rows] == [text]
    assert [trained(row) for row in rows] == [labels]
    assert (counts["answers"], counts["trained_tokens"]) == (labels.count("$"), len(labels.replace(".", "")))
    assert (counts["truncated"], dropped) == (0, {})


@pytest.mark.parametrize(
    ("too_long", "train_turns", "text", "kept"),
    [
        ("truncate", "all", "..AB$..cd$", []),  # what fits has nothing to train
        ("truncate", "all", ".A$.b$.c$", [".A$.b$"]),
        ("truncate", "last", ".a$.b$.c$", []),
        ("split", "all", "..AB$..cd$", ["..cd$"]),
        ("split", "last", ".a$.b$.c$", [".c$"]),  # the last of the conversation, not of each part
        ("split", "last", "..a$.b$..abcdef$", []),
    ],
)
def test_what_fits_of_a_long_conversation_is_dropped_where_nothing_in_it_is_trained(too_long, train_turns, text, kept):
    rows, counts, dropped = tokenized(text, too_long=too_long, train_turns=train_turns)
    assert [spelled(row) for row in rows] == kept
    assert dropped == ({} if kept else {0: "longer_than_max_length"})
    assert counts["dropped"] == len(dropped)
    assert counts["truncated"] == (text == ".A$.b$.c$")


def test_a_conversation_without_a_trained_answer_is_dropped_with_its_own_reason():
    rows, counts, dropped = tokenized(".a$", ".a$.B$", ".A$", train_turns="last")
    assert [spelled(row) for row in rows] == [".a$"]
    assert dropped == {1: "no_trained_turn", 2: "no_trained_turn"}
    assert counts["dropped"] == 2


@pytest.mark.parametrize("too_long", ["drop", "truncate", "split"])
def test_every_row_that_is_kept_teaches_the_end_of_each_of_its_answers(too_long):
    rng = random.Random(0)
    exchanges = ["." * rng.randint(1, 5) + "a" * rng.randint(1, 5) + "$" for _ in range(300)]
    texts = ["".join(exchanges[start : start + rng.randint(1, 4)]) for start in range(0, 300, 3)]
    rows, counts, _ = tokenized(*texts, too_long=too_long)
    assert all(trained(row).endswith("$") and len(row["input_ids"]) <= 8 for row in rows)
    assert sum(trained(row).count("$") for row in rows) == counts["answers"] > 10


def test_the_first_token_of_a_conversation_is_not_trained_after_the_one_before():
    class Bare(Lettered):
        def conversation(self, messages):
            ids, _ = super().conversation(messages)
            return ids, ids

    params = Tokenize(max_length=8, packing=True, too_long="drop", train_turns="all")
    rows, counts, _ = tokenize(lettered(".ab$", ".c$"), Bare(), params)
    assert rows.to_pylist() == [
        {
            "input_ids": [*map(ord, ".ab$.c$")],
            "labels": [IGNORED, *map(ord, "ab$"), IGNORED, *map(ord, "c$")],
            "seq_lengths": [4, 3],
        }
    ]
    assert counts["trained_tokens"] == 5


@pytest.mark.parametrize("packing", [True, False])
def test_conversations_of_which_nothing_fits_give_no_rows(packing):
    rows, counts, dropped = tokenized("..abcdefgh$", packing=packing)
    assert rows == []
    assert dropped == {0: "longer_than_max_length"}
    assert (counts["rows"], counts["packed_rows"], counts["tokens"]) == (0, 0, 0)


@pytest.mark.parametrize("packing", [True, False])
def test_real_conversations_are_complete_in_their_rows(encoder, packing):
    rng = random.Random(0)
    records = [make_record(number, rng.randint(1, 60)) for number in range(200)]
    params = Tokenize(max_length=CAPACITY, packing=packing, too_long="drop", train_turns="all")
    rows, counts, _ = tokenize([record.messages for record in records], encoder, params)
    parts = []
    for row in rows.to_pylist():
        assert len(row["input_ids"]) == len(row["labels"]) == sum(row["seq_lengths"]) <= CAPACITY
        assert len(row["seq_lengths"]) == 1 or packing
        start = 0
        for length in row["seq_lengths"]:
            parts.append((row["input_ids"][start : start + length], row["labels"][start : start + length]))
            start += length
    expected = [encoder.conversation(record.messages) for record in records]
    assert sorted(parts) == sorted((encoded.input_ids, encoded.labels) for encoded in expected)
    assert counts["rows"] == len(records)
    assert counts["packed_rows"] == rows.num_rows
    assert counts["tokens"] == sum(len(encoded.input_ids) for encoded in expected)
    assert counts["trained_tokens"] == sum(label != IGNORED for encoded in expected for label in encoded.labels)


def test_no_conversations_give_no_rows(encoder):
    rows, counts, dropped = tokenize(
        [], encoder, Tokenize(max_length=8, packing=True, too_long="drop", train_turns="all")
    )
    assert (rows.num_rows, counts.total(), dropped) == (0, 0, {})


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    convert_tokenizer("v3", folder)
    return folder


@pytest.fixture
def params(params_of):
    """params(**changes to the section `tokenize`), with one worker unless `workers` says more."""

    def build(workers=1, **changes):
        section = {"max_length": CAPACITY, "packing": True, **changes}
        return params_of(prompt={"system": None}, tokenize=section, machine={"workers": workers})

    return build


@pytest.fixture
def inputs(tmp_path, monkeypatch, tokenizer):
    """A working directory with 300 records in two splits, and a base model of 1024 positions without weights."""
    monkeypatch.chdir(tmp_path)
    CLEAN.mkdir(parents=True)
    rng = random.Random(0)
    records = [make_record(number, rng.randint(1, 100)) for number in range(300)]
    write_records(CLEAN / "train.parquet", records[:280])
    write_records(CLEAN / "validation.parquet", records[280:])
    shutil.copytree(tokenizer, BASE)
    (BASE / "config.json").write_text(json.dumps({"max_position_embeddings": 1024}))
    return tmp_path


def test_the_stage_writes_both_splits_and_their_counts(inputs, params):
    from datasets import Dataset

    message = main(params()).message
    assert {path.name for path in TOKENIZED.iterdir()} == {"train.arrow", "validation.arrow", "rejected.parquet"}
    metrics = read_json(METRICS / "tokenize.json")
    assert message.startswith(f"280 conversations in {metrics['train']['packed_rows']} rows, ")
    for split, count in (("train", 280), ("validation", 20)):
        rows = Dataset.from_file(str(TOKENIZED / f"{split}.arrow")).to_list()
        assert sum(len(row["seq_lengths"]) for row in rows) == metrics[split]["rows"] == count
        assert len(rows) == metrics[split]["packed_rows"]
        assert sum(len(row["input_ids"]) for row in rows) == metrics[split]["tokens"]
        assert sum(label != IGNORED for row in rows for label in row["labels"]) == metrics[split]["trained_tokens"]
        fill = metrics[split]["tokens"] / (len(rows) * CAPACITY)
        assert metrics[split]["fill"] == pytest.approx(fill, abs=1e-4)


def test_the_file_has_the_rows_of_each_shard_as_datasets_reads_them(inputs, params, encoder):
    from datasets import Dataset

    records = [make_record(number, number % 4 + 1) for number in range(2600)]
    write_records(CLEAN / "train.parquet", records)
    main(params(packing=False), 1300)
    dataset = Dataset.from_file(str(TOKENIZED / "train.arrow"))
    assert dataset.column_names == ["input_ids", "labels", "seq_lengths"]
    shards = [[record.messages for record in records[start : start + 1300]] for start in (0, 1300)]
    expected = [tokenize(shard, encoder, params(packing=False).tokenize)[0].to_pylist() for shard in shards]
    assert dataset.to_list() == [row for shard in expected for row in shard]


def written() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in [*TOKENIZED.iterdir(), METRICS / "tokenize.json"]}


def test_any_number_of_workers_writes_the_same_bytes(inputs, params):
    import pyarrow.parquet

    long = [make_record(1000 + number, words=2000) for number in range(5)]
    records = [make_record(number, number % 50) for number in range(280)]
    write_records(CLEAN / "train.parquet", [*records[:140], *long, *records[140:]])
    runs = []
    for workers in (1, 2, 3):
        main(params(workers=workers), 70)
        runs.append(written())
    assert runs[0] == runs[1] == runs[2]
    assert read_json(METRICS / "tokenize.json")["train"]["rows"] == 280
    left_out = pyarrow.parquet.read_table(TOKENIZED / "rejected.parquet")
    assert left_out["id"].to_pylist() == [record.id for record in long]


def test_a_log_shows_the_progress(inputs, params, capsys, monkeypatch):
    monkeypatch.setattr("stages.runtime.progress.LINE_SECONDS", 0.0)
    main(params(), 100)
    lines = [line.split(",")[0] for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        *(f"tokenize train: {done} of 280 rows" for done in (100, 200, 280)),
        "tokenize validation: 20 of 20 rows",
    ]


RUN = """
import json, os, sys
from stages import tokenize
from stages.core.params import Params
os.chdir(sys.argv[1])
tokenize.main(Params.model_validate(json.loads(sys.argv[2])))
print("heavy:", sorted({"torch", "datasets", "trl"} & sys.modules.keys()))
"""


def test_two_runs_write_the_same_bytes_without_importing_torch(inputs, python_at, params):
    runs = []
    for seed in ("1", "2"):
        done = python_at("", RUN, str(inputs), params().model_dump_json(), PYTHONHASHSEED=seed)
        assert done.returncode == 0, done.stderr
        assert "heavy: []" in done.stdout
        runs.append(written())
    assert len(runs[0]) == 4
    assert runs[0] == runs[1]
    assert not [name for name, content in runs[0].items() if str(inputs).encode() in content]


def nothing_written() -> bool:
    return not METRICS.exists() and not [*Path("data").glob("*tokenized*"), *Path("data").glob(".*")]


def test_rows_longer_than_the_model_reads_are_refused_before_anything_is_written(inputs, params, monkeypatch):
    main(params(max_length=1024))
    shutil.rmtree(TOKENIZED)
    shutil.rmtree(METRICS)
    monkeypatch.setattr(stage, "tokenize", lambda *arguments: pytest.fail("tokenized"))
    with pytest.raises(UserError, match="tokenize.max_length is 1025; the base model reads 1024 tokens"):
        main(params(max_length=1025))
    assert nothing_written()


def test_another_tokenizer_is_refused_before_anything_is_written(inputs, params):
    (BASE / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"tokenizer\.json is missing"):
        main(params())
    assert nothing_written()


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_split_with_nothing_to_train_is_refused_and_nothing_is_written(inputs, params, split):
    long_prompt = [{"role": "user", "content": "why " * 1000}, {"role": "assistant", "content": "So."}]
    write_records(CLEAN / f"{split}.parquet", [Record("0" * 32, long_prompt, "x:1")])
    with pytest.raises(UserError, match=f"no row of the {split} split has a trained answer within tokenize.max_length"):
        main(params())
    assert nothing_written()


def test_conversations_that_are_left_out_are_in_a_file_with_reason_and_source(inputs, params):
    import pyarrow.parquet

    rows = [make_record(1), make_record(2, words=2000)]
    write_records(CLEAN / "train.parquet", rows)
    main(params())
    left_out = pyarrow.parquet.read_table(TOKENIZED / "rejected.parquet").to_pylist()
    assert [(row["id"], row["source"], row["reason"]) for row in left_out] == [
        (rows[1].id, rows[1].source, "longer_than_max_length")
    ]
    assert read_json(METRICS / "tokenize.json")["train"]["dropped"] == 1


def test_show_prints_rows_with_the_trained_tokens_marked(inputs, params, capsys, tiny):
    hostile = [{"role": "user", "content": "a \x1b[31m[INST] b"}, {"role": "assistant", "content": "Done.\nYes"}]
    write_records(CLEAN / "train.parquet", [Record("0" * 32, hostile, "x:1")])
    main(params(packing=False))
    shutil.copy(tiny, "params.yaml")
    stage.show_rows(3)
    lines = capsys.readouterr().out
    assert "<s>[INST]" in lines
    assert "[/INST]«Done.\nYes</s>»" in lines
    assert "\\x1b[31m" in lines
    assert "\x1b" not in lines


def untrained(*texts) -> list[dict]:
    """Makes a conversation in which only the last answer is trained."""
    roles = ["user", "assistant"] * (len(texts) // 2)
    messages = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]
    return [message | ({"train": False} if message["role"] == "assistant" else {}) for message in messages[:-1]] + [
        messages[-1]
    ]


def test_show_marks_no_answer_that_is_not_trained(inputs, params, capsys, tiny):
    messages = untrained("The capital?", "Sydney.", "Sure?", "No, Canberra.")
    write_records(CLEAN / "train.parquet", [Record("0" * 32, messages, "x:1")])
    main(params(packing=False))
    shutil.copy(tiny, "params.yaml")
    stage.show_rows(1)
    assert "Sydney.</s>[INST]Sure?[/INST]«No, Canberra.</s>»" in capsys.readouterr().out


def test_the_rejected_rows_of_a_split_say_which_turns_were_not_trained(inputs, params):
    import pyarrow.parquet

    messages = untrained("a", "b", "c", "d " * 2000)
    write_records(CLEAN / "train.parquet", [Record("0" * 32, messages, "x:1"), make_record(1)])
    main(params(too_long="drop"))
    row = pyarrow.parquet.read_table(TOKENIZED / "rejected.parquet").to_pylist()[0]
    assert row["reason"] == "longer_than_max_length"
    assert [message["train"] for message in row["messages"]] == [None, False, None, None]


def test_show_before_a_run_says_what_to_do(tmp_path, monkeypatch, tiny):
    monkeypatch.chdir(tmp_path)
    shutil.copy(tiny, tmp_path / "params.yaml")
    with pytest.raises(UserError, match=r"train\.arrow is missing\. `dvc repro tokenize` makes it"):
        stage.show_rows(1)


STORY = "".join(f"Line {number} of the story.\n" for number in range(40))


def texts_of(params, encoder, *texts):
    rows, counts, dropped = tokenize([[{"role": "text", "content": text}] for text in texts], encoder, params)
    return rows.to_pylist(), counts, dropped


@pytest.mark.parametrize("length", [8, 9, 40, 100, 250])
def test_a_long_text_is_split_into_windows_that_miss_and_repeat_nothing(encoder, length):
    params = Tokenize(max_length=length, packing=False, too_long="split", train_turns="last")
    whole = encoder.conversation([{"role": "text", "content": STORY}]).input_ids
    rows, counts, dropped = texts_of(params, encoder, STORY)
    windows = [row["input_ids"] for row in rows]
    assert [encoder.bos, *(token for window in windows for token in window[1:])] == whole
    assert all(window[0] == encoder.bos and 2 < len(window) <= length for window in windows)
    assert [row["labels"] for row in rows] == [[IGNORED, *window[1:]] for window in windows]
    assert all(encoder.vocabulary[window[1]].startswith("\u2581") for window in windows)
    assert min(map(len, windows)) >= length // 2 - 1
    assert [encoder.eos in window for window in windows] == [False] * (len(windows) - 1) + [True]
    assert (counts["answers"], counts["truncated"], dropped) == (1, 0, {})


def test_the_windows_of_a_text_are_equal_where_a_word_begins_at_every_token():
    windows = text_windows(numpy.arange(21), 8, numpy.ones(21, bool))
    assert [window.tolist() for window in windows] == [[0, *range(1, 8)], [0, *range(8, 15)], [0, *range(15, 21)]]


def test_a_long_text_without_blanks_is_cut_all_the_same(encoder):
    params = Tokenize(max_length=16, packing=False, too_long="split", train_turns="all")
    rows, _, _ = texts_of(params, encoder, "日本" * 100)
    assert max(len(row["input_ids"]) for row in rows) == 16
    assert encoder.decode([token for row in rows for token in row["input_ids"]]) == "日本" * 100


def test_of_a_long_text_truncate_keeps_the_first_window_and_drop_nothing(encoder):
    limits = {"max_length": 50, "packing": False, "train_turns": "all"}
    rows, counts, dropped = texts_of(Tokenize(too_long="truncate", **limits), encoder, STORY)
    assert STORY.startswith(encoder.decode(rows[0]["input_ids"]))
    assert (len(rows), counts["truncated"], dropped) == (1, 1, {})
    assert encoder.eos not in rows[0]["input_ids"]
    assert texts_of(Tokenize(too_long="drop", **limits), encoder, STORY, "short")[2] == {0: "longer_than_max_length"}


def test_texts_are_packed_and_do_not_train_each_others_first_token(encoder):
    params = Tokenize(max_length=64, packing=True, too_long="drop", train_turns="all")
    rows, _, _ = texts_of(params, encoder, "One day.", "Two days.")
    assert len(rows) == 1
    starts = [0, rows[0]["seq_lengths"][0]]
    assert [place for place, label in enumerate(rows[0]["labels"]) if label == IGNORED] == starts
    assert [rows[0]["input_ids"][start] for start in starts] == [encoder.bos] * 2


def test_a_long_conversation_with_tools_is_split_between_exchanges_and_keeps_its_tools(encoder):
    call, result = '[{"name": "f", "arguments": {}, "id": "abcde1234"}]', '{"content": 1, "call_id": "abcde1234"}'
    exchange = [("user", "Find it"), ("tool_calls", call), ("tool", result), ("assistant", "1")]
    turns = [("tools", "[]"), ("system", "Be brief"), *exchange, *exchange]
    messages = [{"role": role, "content": text} for role, text in turns]
    whole = len(encoder.conversation(messages).input_ids)
    params = Tokenize(max_length=whole - 1, packing=False, too_long="split", train_turns="all")
    rows, counts, _ = tokenize([messages], encoder, params)
    half = encoder.conversation(messages[:6])
    assert [row["input_ids"] for row in rows.to_pylist()] == [half.input_ids] * 2
    assert (counts["answers"], counts["truncated"]) == (4, 0)
    rows, counts, _ = tokenize([messages], encoder, params.model_copy(update={"train_turns": "last"}))
    assert (rows.num_rows, counts["answers"]) == (1, 1)
