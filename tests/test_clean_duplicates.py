"""Duplicates: perturbed real functions are found, what is removed is similar, and more rows only remove records."""

import ast
import hashlib
import math
import random
import re
import sysconfig
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import pytest

from stages._clean import duplicates, signatures
from stages._clean.common_text import (
    LARGEST_COMMON,
    SLOTS,
    WINDOW,
    CommonText,
    common_rows,
    count_slots,
    distinct_shingles,
    read_common,
)
from stages._clean.duplicates import DuplicateKeys, StoredTexts
from stages._clean.signatures import (
    ANSWER,
    MISSED,
    MOST_HASHES,
    PROMPT,
    band_hashes,
    banding,
    compared_text,
    conversation_fingerprint,
    plain_text,
    similarities,
    turns_of,
)
from stages._clean.similar import ComparedRow, Relation, relation
from stages._download_data.stdlib import documented_functions, stdlib_rows
from stages.core.params import load_params
from stages.core.records import SPLITS, Record, content_id, split_of
from tests.support.cleaning import clean_rows
from tests.support.labelled_rows import SETS, LabelledSet, labelled_set

MODULES = (
    "argparse",
    "ast",
    "calendar",
    "configparser",
    "difflib",
    "inspect",
    "mailbox",
    "tarfile",
    "turtle",
    "zipfile",
)


def make_record(prompt: str, completion: str, system: str | None = None) -> Record:
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
    messages = ([{"role": "system", "content": system}] if system else []) + messages
    return Record(content_id(messages), messages, "x:1")


def shingles(record: Record) -> np.ndarray:
    return np.unique(signatures.shingles(plain_text(compared_text(turns_of(record)))))


def similarity(left: np.ndarray, right: np.ndarray) -> float:
    return similarities(left, [right])[0]


def find_duplicates(records: list[Record], threshold: float | None) -> dict[int, tuple[str, str]]:
    """Calls the stage's find_duplicates() for records in memory and writes their texts to two files."""
    turns = [turns_of(record) for record in records]
    texts = [compared_text(pairs).encode() for pairs in turns]
    half = len(records) // 2
    with TemporaryDirectory() as folder:
        files = [Path(folder, "a"), Path(folder, "b")]
        starts = []
        for file, part in zip(files, (texts[:half], texts[half:]), strict=True):
            file.write_bytes(b"".join(part))
            starts += [sum(map(len, part[:place])) for place in range(len(part))]
        ends = [start + len(text) for start, text in zip(starts, texts, strict=True)]
        file_of = [int(place >= half) for place in range(len(records))]
        keys = DuplicateKeys(
            np.array([record.id for record in records], "S32"),
            [record.source for record in records],
            np.array([conversation_fingerprint(pairs) for pairs in turns], "S32"),
            StoredTexts(files, *map(np.array, (file_of, starts, ends))),
        )
        return duplicates.find_duplicates(keys, threshold, workers=1)


@pytest.fixture(scope="module")
def originals() -> list[dict]:
    """A few hundred functions of Python's own library."""
    files = [Path(sysconfig.get_path("stdlib"), f"{module}.py") for module in MODULES]
    return [row for file in files for _, row in documented_functions(file.read_text("utf-8"), file.stem)]


@pytest.fixture(scope="module")
def threshold(tiny) -> float:
    return load_params(tiny).clean.near_duplicate_threshold


def renamed(code: str, rng: random.Random) -> str:
    nodes = list(ast.walk(ast.parse(code)))
    names = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    names |= {n.arg for n in nodes if isinstance(n, ast.arg)} - {"self", "cls"}
    return re.sub(rf"\b{rng.choice(sorted(names))}\b", "renamed", code) if names else code


def commented(code: str, rng: random.Random) -> str:
    lines = code.split("\n")
    lines.insert(rng.randrange(1, len(lines) + 1), "    # a remark nobody needs")
    return "\n".join(lines)


def reordered(code: str, rng: random.Random) -> str:
    lines = code.split("\n")
    here = rng.randrange(len(lines) - 1)
    return "\n".join([*lines[:here], lines[here + 1], lines[here], *lines[here + 2 :]])


def respaced(code: str, rng: random.Random) -> str:
    return code.replace("    ", "\t").replace("\n", "\n\n") + "\n"


PERTURBATIONS = (renamed, commented, reordered, respaced)


def perturbed(rows: list[dict]) -> list[tuple[Record, Record]]:
    """Returns (original, copy) for each row. The rows take turns in how they are perturbed."""
    rng = random.Random(0)
    pairs = []
    for number, row in enumerate(rows):
        if "\n" in row["completion"]:
            change = PERTURBATIONS[number % len(PERTURBATIONS)]
            copy = make_record(row["prompt"], change(row["completion"], rng))
            pairs.append((make_record(**row), copy))
    return [(original, copy) for original, copy in pairs if original.id != copy.id]


def kept_of(records: list[Record], threshold: float | None) -> list[Record]:
    removed = find_duplicates(records, threshold)
    return [record for place, record in enumerate(records) if place not in removed]


def common_text_of(records: list[Record], folder: Path) -> np.ndarray:
    counts = CommonText(len(records))
    counts.add(*count_slots([compared_text(turns_of(record)) for record in records]))
    counts.write(folder / "common")
    return read_common(folder / "common")


def near_pairs(records: list[Record], threshold: float) -> list[tuple[Record, Record]]:
    """Finds every pair of near-duplicates by brute force. It leaves out no pair, as hashes in bands could."""
    with TemporaryDirectory() as folder:
        common = common_text_of(records, Path(folder))
    rows = [(ComparedRow(compared_text(turns_of(record)), common), record) for record in records]
    rows.sort(key=lambda pair: len(pair[0].shingles))
    pairs = []
    for place, (smaller, first) in enumerate(rows):
        for larger, second in rows[place + 1 :]:
            if len(smaller.shingles) < threshold * len(larger.shingles):
                break  # the similarity is at most the ratio of the sizes
            similar = similarity(smaller.shingles, larger.shingles) >= threshold
            if similar and relation(smaller, larger, threshold)[0] == Relation.NEAR:
                pairs.append((first, second))
    return pairs


class Judged(NamedTuple):
    """What the search did with rows among which copies were planted."""

    found: int  # copies of which one row went
    wrong: list[Record]  # rows that went although no copy of them was planted


def judge(labelled: LabelledSet, threshold: float, others: list[Record] = ()) -> Judged:
    rows = [make_record(*row) for row in labelled.rows]
    pairs = [(rows[place], make_record(*copy)) for place, copy in labelled.copies]
    everything = [*rows, *(copy for _, copy in pairs), *others]
    assert len({record.id for record in everything}) == len(everything)
    gone = {everything[place].id for place in find_duplicates(everything, threshold)}
    planted = {record.id for pair in pairs for record in pair} | {record.id for record in others}
    wrong = [record for record in rows if record.id in gone - planted]
    wrong += [copy for row, copy in pairs if {row.id, copy.id} <= gone]  # somebody else took the second one
    return Judged(sum(not gone.isdisjoint((row.id, copy.id)) for row, copy in pairs), wrong)


@pytest.mark.parametrize("name", SETS)
def test_rows_that_share_a_template_or_a_passage_stay_and_their_copies_are_found(threshold, name):
    labelled = labelled_set(name)
    judged = judge(labelled, threshold)
    assert judged.wrong == []
    assert judged.found >= 0.9 * len(labelled.copies)


def test_the_labelled_rows_of_all_kinds_together_are_judged_right(originals, threshold, capsys):
    """One data set of everything: templates of 3 to 40 % of the rows, and functions with their perturbed copies."""
    parts = [labelled_set(name) for name in SETS]
    rows = [row for part in parts for row in part.rows]
    before = np.cumsum([0, *(len(part.rows) for part in parts)])
    copies = [(place + start, copy) for part, start in zip(parts, before, strict=False) for place, copy in part.copies]
    functions = [record for pair in perturbed(originals[:150]) for record in pair]
    judged = judge(LabelledSet(rows, copies), threshold, functions)
    recall, precision = judged.found / len(copies), judged.found / (judged.found + len(judged.wrong))
    with capsys.disabled():
        print(f"\n{len(rows)} templated rows, {len(copies)} copies: {recall=:.4f}, {precision=:.4f}")
    assert recall >= 0.98
    assert precision >= 0.99


def test_perturbed_copies_are_found_and_unrelated_functions_are_not(originals, threshold, capsys):
    pairs = perturbed(originals)
    unrelated = list(zip(pairs[: len(pairs) // 2], pairs[len(pairs) // 2 :], strict=False))
    labelled = [(*pair, True) for pair in pairs] + [(left, right, False) for (left, _), (_, right) in unrelated]
    predicted = [len(kept_of([left, right], threshold)) == 1 for left, right, _ in labelled]
    labels = [label for _, _, label in labelled]
    hits = sum(answer and label for answer, label in zip(predicted, labels, strict=True))
    recall, precision = hits / sum(labels), hits / sum(predicted)
    with capsys.disabled():
        print(f"\n{sum(labels)} perturbed and {len(unrelated)} unrelated pairs: {recall=:.4f}, {precision=:.4f}")
    assert len(pairs) > 200
    assert recall >= 0.98
    assert precision >= 0.99


@pytest.mark.parametrize("change", PERTURBATIONS)
def test_each_kind_of_perturbed_copy_is_found(originals, threshold, change):
    rng = random.Random(1)
    rows = [row for row in originals if "\n" in row["completion"]][:100]
    pairs = [(make_record(**row), make_record(row["prompt"], change(row["completion"], rng))) for row in rows]
    assert sum(len(kept_of([*pair], threshold)) == 1 for pair in pairs) >= 0.95 * len(pairs)


def misses(records: list[Record], threshold: float, capsys) -> None:
    """Compares with brute force which pairs were never looked at, prints their number and checks its limit."""
    removed = find_duplicates(records, threshold)
    distinct = [record for place, record in enumerate(records) if removed.get(place, ("",))[0] != "duplicate"]
    near = near_pairs(distinct, threshold)
    kept = {record.id for place, record in enumerate(records) if place not in removed}
    missed = [pair for pair in near if all(record.id in kept for record in pair)]
    astride = [pair for pair in missed if len({split_of(record.id, 0.1, 0.2) for record in pair}) == 2]
    with capsys.disabled():
        print(
            f"\n{len(records)} rows, {len(near)} pairs at {threshold} or above: "
            f"{len(missed)} kept whole, {len(astride)} of them in two splits"
        )
    assert len(near) >= len(records) / 10
    # MISSED is the expected share of pairs exactly at the threshold; more similar pairs are missed less often.
    assert len(missed) <= math.ceil(10 * MISSED * len(near))
    assert len(astride) <= len(missed)


def test_no_near_duplicates_are_in_two_splits(originals, threshold, capsys):
    pairs = perturbed(originals[:300])
    misses([record for pair in pairs for record in pair], threshold, capsys)


@pytest.mark.slow
def test_no_near_duplicates_are_in_two_splits_of_5000_rows(threshold, capsys):
    rows = [record["row"] for record in stdlib_rows(Path(sysconfig.get_path("stdlib")))]
    records = [make_record(**row) for row in rows[:4000]] + [copy for _, copy in perturbed(rows[:1100])][:1000]
    assert len(records) == 5000
    misses(records, threshold, capsys)


def test_a_removed_record_is_similar_to_one_with_a_lower_id(originals, threshold):
    records = [record for pair in perturbed(originals[:200]) for record in pair]
    removed = find_duplicates(records, threshold)
    ids = {record.id for record in records}
    assert len(removed) >= 100
    kept = {record.id for place, record in enumerate(records) if place not in removed}
    for place, (_, survivor) in removed.items():
        assert survivor in kept & ids
        assert survivor <= records[place].id
    higher = {max(record.id for record in pair) for pair in near_pairs(records, threshold)}
    assert {records[place].id for place in removed} <= higher


def test_the_order_of_the_rows_changes_nothing(originals, threshold):
    records = [record for pair in perturbed(originals[:150]) for record in pair]
    records += records[:20]
    expected = {records[place].id: reason for place, reason in find_duplicates(records, threshold).items()}
    for seed in range(3):
        random.Random(seed).shuffle(records)
        assert {records[place].id: why for place, why in find_duplicates(records, threshold).items()} == expected


def test_more_rows_move_no_record_to_another_split(originals, params_of):
    params = params_of(clean={"max_characters": 100_000, "check_code": False}).clean
    records = [record for pair in perturbed(originals[:200]) for record in pair]
    random.Random(0).shuffle(records)
    rows = [{"source": f"x:{n}", "row": {"messages": record.messages}} for n, record in enumerate(records)]
    small, grown = (clean_rows(rows[:size], params, "messages", shard_rows=100) for size in (len(rows) // 2, len(rows)))
    before, after = (
        {record.id: split for split in SPLITS for record in result.splits[split]} for result in (small, grown)
    )
    old = {record.id for record in records[: len(rows) // 2]}
    assert {key: split for key, split in after.items() if key in before}.items() < before.items()
    assert all(split_of(key, params.validation_fraction, params.test_fraction) == after[key] for key in old & {*after})
    assert {reason for _, reason, _ in grown.rejected} == {"near_duplicate", "duplicate"}


TEXT = "def mean(values):  # à la carté\n    total = sum(values)\n    return total / len(values)"


@pytest.mark.parametrize(
    "copy",
    [TEXT, TEXT.replace("    ", "\t"), TEXT + "\n\n", TEXT.replace("é", "e\u0301"), TEXT.replace(" ", "\u00a0")],
)
def test_texts_that_differ_in_whitespace_or_in_the_spelling_of_a_character_are_duplicates(copy):
    records = [make_record("The mean", TEXT), make_record("The  mean ", copy)]
    ((place, decision),) = find_duplicates(records, None).items()
    assert decision == ("duplicate", min(record.id for record in records))
    assert records[place].id == max(record.id for record in records)


@pytest.mark.parametrize(
    ("text", "other"),
    [("What is 2³?", "What is 23?"), ("Is １２ even?", "Is 12 even?"), ("H₂O", "H2O"), ("ﬁt", "fit"), ("Ⅳ", "IV")],
)
def test_texts_with_compatible_characters_are_no_duplicates(text, other):
    assert not find_duplicates([make_record(text, "8"), make_record(other, "8")], None)


def test_the_same_text_in_another_role_or_turn_is_not_a_duplicate():
    assert not find_duplicates([make_record("a", "b"), make_record("b", "a"), make_record("a b", "")], None)


def test_null_turns_the_search_for_near_duplicates_off(originals, threshold):
    records = [record for pair in perturbed(originals[:40:4]) for record in pair]
    assert find_duplicates(records, threshold)
    assert {reason for reason, _ in find_duplicates(records, None).values()} <= {"duplicate"}


def test_every_record_of_a_chain_names_the_one_that_is_kept():
    """Each record is similar to the next, not to the last. All but the lowest are removed and name the lowest."""
    words = [hashlib.sha256(str(n).encode()).hexdigest()[:8] for n in range(60)]
    chain = [
        Record(f"{n:032}", make_record("?", " ".join(words[4 * n : 4 * n + 40])).messages, f"x:{n}") for n in range(4)
    ]
    assert similarity(shingles(chain[0]), shingles(chain[3])) < 0.6
    assert find_duplicates(chain, 0.75) == dict.fromkeys((1, 2, 3), ("near_duplicate", chain[0].id))


def test_a_shared_system_prompt_makes_no_near_duplicates(threshold):
    """Also if there are too few rows to say that it is common."""
    system = " ".join(map(str, range(1000)))
    few = [make_record("Add two numbers", "return a + b", system), make_record("Open a file", "open(name)", system)]
    assert not find_duplicates(few, threshold)


def test_similarity_is_the_share_of_common_shingles():
    assert similarity(np.array([1, 2, 3]), np.array([2, 3, 4])) == 0.5
    assert len(shingles(make_record("ab", "cdef"))) == 3
    assert len(shingles(make_record("", ""))) == 1


def test_hashes_of_runs_of_characters_have_the_similarity_of_the_runs(originals):
    """Python's sets of strings are the reference. Some texts have characters of more than one byte."""

    def runs(record: Record) -> set[str]:
        text = plain_text(compared_text(turns_of(record)))
        return {text[start : start + 5] for start in range(max(1, len(text) - 4))}

    records = [record for pair in perturbed(originals[:60]) for record in pair]
    records += [make_record("Größe 🦜🦜🦜 " * n, "日本語のテキスト" * n) for n in (1, 2, 3)]
    for left, right in zip(records, records[1:], strict=False):
        expected = len(runs(left) & runs(right)) / len(runs(left) | runs(right))
        assert similarity(shingles(left), shingles(right)) == expected
    sets = [shingles(record) for record in records]
    together = similarities(sets[0], sets)
    assert together.tolist() == [similarity(sets[0], shingle_set) for shingle_set in sets]
    assert together[0] == 1


@pytest.mark.parametrize("first_round", [1, 2, 1000])
def test_every_pair_of_a_large_bucket_is_compared(originals, threshold, monkeypatch, first_round):
    """A hundred copies of one text and ten similar texts are compared a few pairs at a time."""
    monkeypatch.setattr(duplicates, "PAIRS_PER_BATCH", 7)
    text = next(row["completion"] for row in originals if len(row["completion"]) > 1500)
    copies = [make_record("?", text.replace("self", f"self{n}", 1)) for n in range(100)]
    similar = [make_record("!", f"{' '.join(map(str, range(n, 300 + n)))}") for n in range(10)]
    expected = find_duplicates(copies + similar, threshold)
    monkeypatch.setattr(duplicates, "FIRST_ROUND", first_round)
    assert {place for place, _ in find_duplicates(copies + similar, threshold).items()} == set(expected)
    assert len(expected) >= 99


def in_one_bucket(texts: list[str], folder: Path) -> dict[int, int]:
    """near_duplicates() at 0.6 of texts whose bands are all the same, so that each could be similar to each."""
    texts = [f"{ANSWER}{text}" for text in texts]
    (folder / "texts").write_text("".join(texts), "utf-8")
    np.zeros(SLOTS // 8, np.uint8).tofile(folder / "common")
    ends = np.cumsum([len(text.encode()) for text in texts])
    stored = StoredTexts([folder / "texts"], np.zeros(len(texts), int), np.array([0, *ends[:-1]]), ends)
    return duplicates.near_duplicates(np.zeros((len(texts), 2), np.uint32), stored, folder / "common", 0.6, 1)


@pytest.mark.parametrize("first_round", [1, 4, 8])
def test_the_similar_record_is_found_after_many_others_in_a_bucket(tmp_path, monkeypatch, first_round):
    monkeypatch.setattr(duplicates, "FIRST_ROUND", first_round)
    monkeypatch.setattr(duplicates, "PAIRS_PER_BATCH", 7)
    others = ["".join(map(chr, range(start, start + 50))) for start in range(0x4E00, 0x4E00 + 60 * 50, 50)]
    assert in_one_bucket([*others, others[40] + "!"], tmp_path) == {60: 40}


def test_of_two_similar_records_the_lower_one_is_named_also_if_it_is_the_first_of_all(tmp_path, monkeypatch):
    """The other one would be compared in a later round."""
    monkeypatch.setattr(duplicates, "FIRST_ROUND", 1)
    first, second, between = ("".join(map(chr, range(0x4E00 + n, 0x4E00 + n + 100))) for n in (0, 30, 15))
    assert in_one_bucket([first, second, between], tmp_path) == {2: 0}


def test_each_round_takes_eight_times_as_many_of_a_bucket_as_the_one_before(tmp_path, monkeypatch):
    """Few rounds for large buckets, and few pairs for records whose similar one comes early."""
    rounds, next_pairs = [], duplicates.Buckets.next_pairs
    monkeypatch.setattr(
        duplicates.Buckets, "next_pairs", lambda self, most: rounds.append(most) or next_pairs(self, most)
    )
    texts = ["".join(map(chr, range(start, start + 9))) for start in range(0x4E00, 0x4E00 + 80 * 9, 9)]
    assert in_one_bucket(texts, tmp_path) == {}
    assert rounds == [8, 64, 512]


def test_a_batch_has_about_as_many_pairs_as_a_worker_takes_and_all_pairs_of_a_record(monkeypatch):
    monkeypatch.setattr(duplicates, "PAIRS_PER_BATCH", 10)
    pairs = np.array([(higher, lower) for higher in range(1, 12) for lower in range(min(higher, 4))])
    texts = StoredTexts([], *np.tile(np.arange(12), (3, 1)))  # a text's place says which it is
    batches = [
        [(int(b.texts.file[high]), int(b.texts.file[low])) for high, low in zip(b.higher, b.lower, strict=True)]
        for b in duplicates.pair_batches(pairs, texts, 0.8, Path("common"))
    ]
    assert [pair for batch in batches for pair in batch] == list(map(tuple, pairs.tolist()))
    assert all(10 - 4 < len(batch) < 10 + 4 for batch in batches)
    records = [{higher for higher, _ in batch} for batch in batches]
    assert all(one.isdisjoint(other) for one, other in zip(records, records[1:], strict=False))


@pytest.mark.parametrize("threshold", [0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.999])
def test_the_bands_miss_at_most_the_promised_share_of_pairs_at_the_threshold(threshold):
    bands, hashes = banding(threshold)
    assert bands * hashes <= MOST_HASHES
    assert (1 - threshold**hashes) ** bands <= MISSED


def test_the_band_hashes_are_the_same_on_every_machine():
    """A change here changes which pairs are compared. After an update of rensa, measure the misses again."""
    runs = [signatures.shingles(text) for text in ("alpha beta γάμμα", "x")]
    assert band_hashes(np.concatenate(runs), np.cumsum([*map(len, runs)]), 0.5)[:, :3].tolist() == [
        [4201147563, 501766285, 1631204589],
        [3382266620, 2389458105, 1806372258],
    ]


@pytest.mark.parametrize(
    ("in_common", "total", "threshold"),
    [(1, 2, 0.5), (3, 5, 0.6), (7, 10, 0.7), (3, 4, 0.75), (4, 5, 0.8), (9, 10, 0.9), (19, 20, 0.95)],
)
def test_a_pair_exactly_at_the_threshold_is_near_and_a_pair_just_below_it_is_not(in_common, total, threshold):
    """No character comes twice in these texts, so each further character is one more run of five."""
    answer = "".join(map(chr, range(0x4E00, 0x4E00 + total + 2)))  # it follows a question mark and a space
    pair = [make_record("?", answer), make_record("?", answer[: in_common + 2])]
    assert [len(shingles(record)) for record in pair] == [total, in_common]
    (reason,) = find_duplicates(pair, threshold).values()
    assert reason == ("near_duplicate", min(record.id for record in pair))
    assert find_duplicates(pair, threshold + 0.01) == {}


NAMES = [hashlib.sha256(str(n).encode()).hexdigest()[:8] for n in range(400)]
LONG = f"The harbour was dug after a storm, and the council paid for it. {' '.join(NAMES[:50])}. "
# So many that a text in three rows is not common.
OTHERS = [make_record(f"Who is {name}?", f"The mayor of {name[::-1]}.") for name in NAMES[100:180]]


def pair_is_near(one: tuple, other: tuple, *others: tuple) -> bool:
    """Whether one of two rows goes. `others` are rows of the same data set that all stay."""
    records = [make_record(*row) for row in (one, other, *others)] + OTHERS
    removed = find_duplicates(records, 0.8)
    assert not {*removed} - {0, 1}
    return bool(removed)


@pytest.mark.parametrize(
    ("prompts", "answers", "near"),
    [
        ((LONG, LONG), ("In 1412.", "The council paid."), True),  # the same prompt, answered twice
        ((LONG + "When?", LONG + "Who paid?"), ("In 1412.", "The council paid."), False),
        ((LONG + "When?", LONG + "When ?"), ("In 1412.", "In 1412."), True),
        ((LONG + "When?", LONG + "When ?"), ("In 1412.", "It was dug in 1412, after a storm"), False),
        ((LONG + "Was it the council that paid?", LONG + "Did the storm do no harm?"), ("yes", "yes"), False),
        ((LONG + "Was it the council?", "X" + LONG + "Did the storm do no harm to it?"), ("yes", "yes"), False),
        ((LONG + "Tell it.", LONG + "Please write that down again in your words."), (LONG[:200], LONG[:200]), True),
        ((LONG + "Tell it.", LONG + "Tell that."), (LONG[:200] + "It cost 12.", LONG[:200] + "It cost 19."), False),
        ((LONG + "Tell it.", LONG + "Tell that."), (LONG[:200] + "It cost 12.", LONG[:200] + "It cost 12."), True),
    ],
)
def test_rows_with_other_prompts_must_answer_the_same(prompts, answers, near):
    assert pair_is_near(*zip(prompts, answers, strict=True)) == near


def test_a_conversation_that_goes_on_is_a_near_duplicate_of_its_beginning():
    """Else one could be in the test split, and the other in the training split."""
    first = [{"role": "user", "content": LONG}, {"role": "assistant", "content": "In 1412."}]
    more = [*first, {"role": "user", "content": "And who paid?"}, {"role": "assistant", "content": "The council."}]
    records = [Record(content_id(messages), messages, "x:1") for messages in (first, more)]
    assert len(find_duplicates(records, 0.8)) == 1


def test_an_edit_that_changes_the_answer_elsewhere_makes_no_near_duplicate():
    """The first two rows differ in a word. Only the third tells whether that is a slot or a correction."""
    task = LONG + "The word is "
    assert pair_is_near((task + "table", "noun"), (task + "chair", "noun"))
    assert not pair_is_near((task + "table", "noun"), (task + "chair", "noun"), (task + "write", "verb"))
    assert pair_is_near((task + "table", "noun"), (task + "table!", "noun"), (task + "write", "verb"))


@pytest.mark.parametrize(("rows", "common"), [(1, 3), (60, 3), (100, 5), (2000, 100), (10_000, 500), (10**7, 500)])
def test_text_is_common_from_a_share_of_the_rows_on(rows, common):
    assert common_rows(rows) == common <= LARGEST_COMMON


def test_a_prompt_that_many_rows_have_does_not_count_and_a_long_answer_that_many_have_does(originals, threshold):
    """Else copies of one text, each edited in another place, would count as a template."""
    task = "Write the function that the sentence describes, with a type for each argument, and no comment. " * 5
    words = NAMES[:40]
    varied = [make_record(task, f"def f_{word}(): return {word!r}") for word in words]
    assert not find_duplicates(varied, threshold)
    answer = next(row["completion"] for row in originals if len(row["completion"]) > 1500)
    copies = [make_record(f"Write {word}", answer.replace("self", word, 1)) for word in words]
    assert len(find_duplicates(copies, threshold)) == 39


def test_common_text_leaves_out_just_the_runs_inside_it():
    """A run of 5 characters that reaches out of the common text still counts."""
    task = "0123456789abcdefghijklmnopqrstuvwxyz" * 2
    texts = [f"{PROMPT}{task}{chr(0x4E00 + n) * 6}{ANSWER}yes" for n in range(3)]
    with TemporaryDirectory() as folder:
        counts = CommonText(3)
        counts.add(*count_slots(texts))
        counts.write(Path(folder, "common"))
        runs, ends = distinct_shingles(texts, read_common(Path(folder, "common")))
    assert len(ends) == 3
    everything, left = signatures.shingles(plain_text(texts[0])).tolist(), runs[: ends[0]].tolist()
    assert left[-10:] == everything[-10:]
    assert {*everything[len(task) - 4 :]} <= {*left}
    assert len(left) <= len(everything) - len(task) + WINDOW  # half of the runs are counted: edges stay


def test_without_common_text_all_runs_of_all_texts_are_taken(originals):
    texts = [compared_text(turns_of(make_record(**row))) for row in originals[:50]] + [f"{ANSWER}x", f"{ANSWER}abcde"]
    runs, ends = distinct_shingles(texts, np.zeros(SLOTS // 8, np.uint8))
    assert np.array_equal(runs[: ends[-3]], np.concatenate([signatures.shingles(plain_text(t)) for t in texts[:-2]]))
    assert np.diff(ends)[-2:].tolist() == [1, 1]


def test_every_turn_counts_and_so_does_what_it_calls():
    call = {"role": "assistant", "content": "", "tool_calls": [{"name": "add", "arguments": {"a": 1}}], "train": False}
    other = call | {"tool_calls": [{"name": "add", "arguments": {"a": 2}}]}
    user = {"role": "user", "content": "Add"}
    turns = [turns_of(Record("", [user, said], "x:1")) for said in (call, other, call | {"train": True})]
    assert len({conversation_fingerprint(each) for each in turns}) == 2
    assert compared_text(turns[0]).startswith(f"{PROMPT}Add{ANSWER}")
    assert "arguments" in compared_text(turns[0])
