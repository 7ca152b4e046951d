"""The benchmark of `clean`: that what it plants is what it says, and that it runs, on a few hundred rows. And one round
of the benchmark that kills."""

import json
import os
import random
import sys
import sysconfig
from pathlib import Path

import pytest

from bench import clean as bench
from bench import faults
from bench._clean.judge import judge
from bench._clean.ours import removed
from bench._clean.rows import THRESHOLD, Rows, read_planted, read_records, shingled
from stages._clean.duplicates import similarities
from stages._download_data.stdlib import functions
from stages.shared.code import parse
from stages.shared.paths import RAW

MODULES = ("argparse", "calendar", "difflib", "inspect", "mailbox", "tarfile", "zipfile")
COUNT = 400


@pytest.fixture(scope="module")
def rows() -> Rows:
    files = [Path(sysconfig.get_path("stdlib"), f"{module}.py") for module in MODULES]
    found = [{"row": row} for file in files for _, row in functions(file.read_text("utf-8"), file.stem)]
    return Rows(found, seed=1)


@pytest.fixture(scope="module")
def folder(rows, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bench") / "rows"
    folder.mkdir()
    bench.prepare(rows, COUNT, folder)
    return folder


def test_planted_pairs_are_as_similar_as_they_are_said_to_be(folder):
    records, planted = list(read_records(folder)), read_planted(folder)
    assert len(records) == COUNT
    assert {each.kind for each in planted} == {"exact", "near"}
    for each in planted:
        copy, original = records[each.row], records[each.original]
        assert each.similarity == similarities(shingled(copy), [shingled(original)])[0] >= THRESHOLD
        assert each.original < each.row
        assert (each.kind == "near") == (copy.messages != original.messages)
    assert min(each.similarity for each in planted) < 0.9
    assert all(parse(record.messages[1]["content"]) for record in records)


def test_a_row_is_a_function_of_the_seed_and_its_number(rows, folder):
    texts = [json.loads(line) for name in ("0", "1") for line in (folder / "texts" / f"{name}.jsonl").open()]
    assert [int(each["id"]) for each in texts] == list(range(COUNT))
    for number in (399, 300, 0):
        row, _ = rows.row(number)
        assert texts[number]["text"] == f"{row['prompt']}\n{row['completion']}"


def test_what_is_not_planted_is_no_near_duplicate(folder):
    records, planted = list(read_records(folder)), read_planted(folder)
    copies = {each.row for each in planted}
    left = [shingled(record) for number, record in enumerate(records) if number not in copies][:150]
    pairs = [similarities(one, [other])[0] for place, one in enumerate(left) for other in left[:place]]
    assert 0.4 < max(pairs) < THRESHOLD  # some are related


def taken_out(folder: Path, threshold: float | None) -> set[int]:
    return removed(sorted((folder / RAW).glob("rows-*.jsonl")), threshold, workers=1)


def test_our_search_finds_all_that_is_planted_and_the_judge_sees_what_it_does_not_find(folder):
    records, planted = list(read_records(folder)), read_planted(folder)
    found = taken_out(folder, THRESHOLD)
    assert judge(planted, found, records)[:2] == (1.0, 1.0)
    assert judge(planted, found, records).wrongly == 0
    assert judge(planted, taken_out(folder, None), records)[0] == 1.0
    assert judge(planted, taken_out(folder, None), None).wrongly is None
    near = [each for each in planted if each.kind == "near"]
    assert judge(planted, {each.row for each in planted} - {near[0].row, near[0].original}, None).near < 1
    pairs = {number for each in planted for number in (each.row, each.original)}
    alone = next(number for number in range(COUNT) if number not in pairs)
    assert judge(planted, found | {alone}, records).wrongly == 1


def first_words(printed: str) -> dict[str, list[str]]:
    return {line.split()[0]: line.split()[1:] for line in printed.splitlines() if line.strip()}


def test_the_time_of_every_rule_is_taken(folder, capsys):
    bench.each_rule(folder)
    lines = first_words(capsys.readouterr().out)
    rules = {"fix_text", "secrets", "personal_data", "refusal", "code_does_not_parse", "contamination"}
    assert rules | {"read,", "near_duplicates"} <= lines.keys()
    assert sum(float(words[-1].rstrip("%")) for words in lines.values() if words[-1].endswith("%")) == pytest.approx(
        100, abs=1
    )


@pytest.mark.slow
def test_the_stage_and_our_search_run_as_processes_and_it_says_what_it_left_out(folder, capsys):
    bench.whole_stage(COUNT, folder)
    bench.compare({"datatrove": None, "text-dedup": None}, COUNT, folder)
    printed = capsys.readouterr().out
    lines = first_words(printed)
    assert "stages.clean" in lines
    assert lines["ours"][5:8] == ["1.00", "100.00%", "100.00%"]
    assert "pip install text-dedup==" in printed


class EarlyKills(random.Random):
    """Kills once, after a tenth of the time, in which nothing ends."""

    def randint(self, low, high):
        return low

    def uniform(self, low, high):
        return low + (high - low) / 10


@pytest.mark.slow
def test_a_round_of_kills_is_counted_and_ends_with_the_same_bytes(monkeypatch, capsys):
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(random, "Random", EarlyKills)
    faults.main(1, ["download_data"])
    assert first_words(capsys.readouterr().out)["download_data"] == ["1", "1", "0", "1", "of", "1"]
