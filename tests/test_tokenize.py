"""Token rows: what is truncated, dropped and packed, that no conversation trains another, and the files themselves."""

import dataclasses
import json
import random
import shutil
from pathlib import Path

import pytest

from stages import tokenize as stage
from stages.download_model import convert_tokenizer
from stages.shared.errors import UserError
from stages.shared.params import Prompt, Tokenize
from stages.shared.paths import BASE, CLEAN, METRICS, TOKENIZED, read_json
from stages.shared.prompts import IGNORED, Encoded, Encoder
from stages.shared.records import Record, write_records
from stages.tokenize import main, pack, tokenize, write_rows

CAPACITY = 512


def record(number, words=3) -> Record:
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
    """An encoder whose conversation ids are spelled in the record: "..ab" is two prompt tokens and two of an answer."""

    def conversation(self, messages) -> Encoded:
        text = messages[0]["content"]
        ids = [ord(letter) for letter in text]
        return Encoded(ids, [IGNORED if letter == "." else token for letter, token in zip(text, ids, strict=True)])


def lettered(*texts) -> list[Record]:
    return [Record(text, [{"role": "user", "content": text}], "x:1") for text in texts]


def tokenized(*texts, max_length=8, packing=False):
    return tokenize(lettered(*texts), Lettered(), Tokenize(max_length=max_length, packing=packing))


def spelled(row) -> str:
    return "".join(map(chr, row.input_ids))


def trained(row) -> str:
    return "".join("." if label == IGNORED else chr(label) for label in row.labels)


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


def test_packing_the_same_lengths_gives_the_same_rows():
    lengths = lognormal(2000)
    assert pack(lengths, CAPACITY) == pack(list(lengths), CAPACITY)


@pytest.mark.parametrize(
    ("lengths", "groups"),
    [
        ([5, 5, 5], [[0, 1], [2]]),  # equal lengths in their order
        ([3, 7, 6, 4], [[1, 0], [2, 3]]),
        ([8, 7, 2], [[0, 2], [1]]),  # the row with the least room that suffices, not the first
        ([7, 8, 2], [[1, 2], [0]]),
        ([7, 6, 3], [[0, 2], [1]]),
    ],
)
def test_a_conversation_goes_where_the_least_room_is_left(lengths, groups):
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


def test_unpacked_each_conversation_is_a_row_in_the_order_of_the_records():
    texts = ["..ab", ".....abc", ".a", "..abcd"]
    rows, counts = tokenized(*texts)
    assert [spelled(row) for row in rows] == texts
    assert [trained(row) for row in rows] == texts
    assert [row.seq_lengths for row in rows] == [[4], [8], [2], [6]]
    assert counts == {
        **{"truncated": 0, "dropped": 0, "rows": 4, "packed_rows": 4},
        **{"tokens": 20, "trained_tokens": 10, "fill": 0.625},
    }


def test_what_is_too_long_is_truncated_and_counted():
    rows, counts = tokenized("..abcdef", "..abcdefg", "..abcdefghij")
    assert [spelled(row) for row in rows] == ["..abcdef"] * 3
    assert [trained(row) for row in rows] == ["..abcdef"] * 3
    assert counts["truncated"] == 2
    assert counts["dropped"] == 0


@pytest.mark.parametrize(
    ("text", "truncated"),
    [
        (".", 0),
        ("......", 0),
        ("........ab", 1),  # the answer begins behind max_length
        ("a.", 0),  # the first token is predicted from nothing, so it is no target
    ],
)
def test_what_has_nothing_to_train_is_dropped_and_counted(text, truncated):
    rows, counts = tokenized("..ab", text, "..cd")
    assert [spelled(row) for row in rows] == ["..ab", "..cd"]
    assert (counts["dropped"], counts["truncated"], counts["rows"]) == (1, truncated, 2)
    assert counts["tokens"] == 8


def test_one_answer_token_within_max_length_is_enough():
    rows, counts = tokenized(".......abc")
    assert [trained(row) for row in rows] == [".......a"]
    assert (counts["truncated"], counts["dropped"]) == (1, 0)


def test_the_first_token_of_a_packed_conversation_is_not_predicted_from_the_one_before():
    rows, counts = tokenized("abcd", "efg", packing=True)
    assert [spelled(row) for row in rows] == ["abcdefg"]
    assert [trained(row) for row in rows] == [".bcd.fg"]
    assert rows[0].seq_lengths == [4, 3]
    assert counts["trained_tokens"] == 5


@pytest.mark.parametrize("packing", [True, False])
def test_no_rows_are_no_error(packing):
    rows, counts = tokenized("....", packing=packing)
    assert rows == []
    assert (counts["rows"], counts["packed_rows"], counts["fill"], counts["dropped"]) == (0, 0, 0.0, 1)


@pytest.mark.parametrize("packing", [True, False])
def test_real_conversations_come_out_whole(encoder, packing):
    rng = random.Random(0)
    records = [record(number, rng.randint(1, 60)) for number in range(200)]
    rows, counts = tokenize(records, encoder, Tokenize(max_length=CAPACITY, packing=packing))
    parts = []
    for row in rows:
        assert len(row.input_ids) == len(row.labels) == sum(row.seq_lengths) <= CAPACITY
        assert len(row.seq_lengths) == 1 or packing
        start = 0
        for length in row.seq_lengths:
            parts.append((row.input_ids[start : start + length], row.labels[start : start + length]))
            start += length
    expected = [encoder.conversation(each.messages) for each in records]
    assert sorted(parts) == sorted((each.input_ids, each.labels) for each in expected)
    assert counts["rows"] == len(records)
    assert counts["packed_rows"] == len(rows)
    assert counts["tokens"] == sum(len(each.input_ids) for each in expected)
    assert counts["trained_tokens"] == sum(label != IGNORED for each in expected for label in each.labels)
    assert counts["fill"] == pytest.approx(counts["tokens"] / (len(rows) * CAPACITY), abs=1e-4)


def test_the_files_are_what_datasets_reads(tmp_path):
    from datasets import Dataset

    rows, _ = tokenized(*("." + "ab" * (number % 4 + 1) for number in range(2500)), max_length=20, packing=True)
    write_rows(tmp_path / "train.arrow", rows)
    dataset = Dataset.from_file(str(tmp_path / "train.arrow"))
    assert dataset.column_names == ["input_ids", "labels", "seq_lengths"]
    assert dataset.to_list() == [dataclasses.asdict(row) for row in rows]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    convert_tokenizer(folder)
    return folder


@pytest.fixture
def params(params_of):
    """params(**changes to the section `tokenize`)."""
    section = {"max_length": CAPACITY, "packing": True}
    return lambda **changes: params_of(prompt={"system": None}, tokenize={**section, **changes})


@pytest.fixture
def inputs(tmp_path, monkeypatch, tokenizer):
    """A working directory with 300 records in two splits, and a base model of 1024 positions without weights."""
    monkeypatch.chdir(tmp_path)
    CLEAN.mkdir(parents=True)
    rng = random.Random(0)
    records = [record(number, rng.randint(1, 100)) for number in range(300)]
    write_records(CLEAN / "train.parquet", records[:280])
    write_records(CLEAN / "validation.parquet", records[280:])
    shutil.copytree(tokenizer, BASE)
    (BASE / "config.json").write_text(json.dumps({"max_position_embeddings": 1024}))
    return tmp_path


def test_the_stage_writes_both_splits_and_their_counts(inputs, params):
    from datasets import Dataset

    message = main(params()).message
    assert {path.name for path in TOKENIZED.iterdir()} == {"train.arrow", "validation.arrow"}
    metrics = read_json(METRICS / "tokenize.json")
    assert message.startswith(f"280 conversations in {metrics['train']['packed_rows']} rows, ")
    for split, count in (("train", 280), ("validation", 20)):
        rows = Dataset.from_file(str(TOKENIZED / f"{split}.arrow")).to_list()
        assert sum(len(row["seq_lengths"]) for row in rows) == metrics[split]["rows"] == count
        assert len(rows) == metrics[split]["packed_rows"]
        assert sum(len(row["input_ids"]) for row in rows) == metrics[split]["tokens"]
        assert sum(label != IGNORED for row in rows for label in row["labels"]) == metrics[split]["trained_tokens"]


RUN = """
import json, os, sys
from stages import tokenize
from stages.shared.params import Params
os.chdir(sys.argv[1])
tokenize.main(Params.model_validate(json.loads(sys.argv[2])))
print("heavy:", sorted({"torch", "datasets", "trl"} & sys.modules.keys()))
"""


def test_two_runs_write_the_same_bytes_without_importing_torch(inputs, python_at, params):
    written = []
    for seed in ("1", "2"):
        done = python_at("", RUN, str(inputs), params().model_dump_json(), PYTHONHASHSEED=seed)
        assert done.returncode == 0, done.stderr
        assert "heavy: []" in done.stdout
        files = [*TOKENIZED.iterdir(), METRICS / "tokenize.json"]
        written.append({path.name: path.read_bytes() for path in files})
    assert len(written[0]) == 3
    assert written[0] == written[1]
    assert not [name for name, content in written[0].items() if str(inputs).encode() in content]


def nothing_written() -> bool:
    return not METRICS.exists() and not [*Path("data").glob("*tokenized*"), *Path("data").glob(".*")]


def test_rows_longer_than_the_model_reads_are_refused_before_anything_is_written(inputs, params, monkeypatch):
    main(params(max_length=1024))
    shutil.rmtree(TOKENIZED)
    shutil.rmtree(METRICS)
    monkeypatch.setattr(stage, "tokenize", lambda *arguments: pytest.fail("tokenized"))
    with pytest.raises(UserError, match="tokenize.max_length is 1025, but the base model reads 1024 tokens"):
        main(params(max_length=1025))
    assert nothing_written()


def test_another_tokenizer_is_refused_before_anything_is_written(inputs, params):
    (BASE / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"tokenizer\.json is missing"):
        main(params())
    assert nothing_written()


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_split_with_nothing_to_train_is_refused_and_leaves_nothing(inputs, params, split):
    long_prompt = [{"role": "user", "content": "why " * 1000}, {"role": "assistant", "content": "So."}]
    write_records(CLEAN / f"{split}.parquet", [Record("0" * 32, long_prompt, "x:1")])
    with pytest.raises(UserError, match=f"no row of the {split} split has an answer within tokenize.max_length"):
        main(params())
    assert nothing_written()
