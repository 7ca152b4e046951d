"""The benchmark of `clean`: that what it plants is what it says, and that it runs, on a few hundred rows. And of the
benchmark that kills one round, and what it does about what kills leave."""

import json
import os
import random
import re
import shutil
import subprocess
import sys
import sysconfig
from collections import Counter
from pathlib import Path

import pytest

from bench import clean as bench
from bench import faults
from bench._clean.judge import judge
from bench._clean.ours import removed
from bench._clean.rows import THRESHOLD, Rows, read_planted, read_records, shingled
from bench._faults import pipeline
from bench._faults.table import how_held, print_held, read_faults
from stages._clean.signatures import similarities
from stages._download_data.stdlib import documented_functions
from stages.core.paths import RAW
from stages.core.python_syntax import parse

ROOT = Path(__file__).resolve().parents[1]
RELIABILITY = ROOT / "docs/reliability.md"
MODULES = ("argparse", "calendar", "difflib", "inspect", "mailbox", "tarfile", "zipfile")
COUNT = 400


@pytest.fixture(scope="module")
def rows() -> Rows:
    files = [Path(sysconfig.get_path("stdlib"), f"{module}.py") for module in MODULES]
    found = [{"row": row} for file in files for _, row in documented_functions(file.read_text("utf-8"), file.stem)]
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
    lines = first_words(capsys.readouterr().out)
    counted = dict(zip(lines["stage"], map(int, lines["download_data"]), strict=True))
    # On a busy machine DVC has begun after a tenth of the time, and the kill leaves its lock or Git's.
    found = {name for name, count in counted.items() if count} - {"rwlock", "index.lock"}
    assert found == {"rounds", "kills", "same"}
    assert max(counted.values()) == 1


@pytest.fixture
def two_stages(tmp_path, monkeypatch):
    """A Pipeline of two stages that take no time, and both have run."""

    def copy(folder):
        subprocess.run("git init --quiet && dvc init --quiet", shell=True, cwd=folder, check=True)
        (folder / ".dvc/config").write_text("[core]\n    autostage = true\n")
        (folder / "a").write_text("a")
        stages = "".join(f"  {name}: {{cmd: cp a {name}, deps: [a], outs: [{name}]}}\n" for name in ("one", "two"))
        (folder / "dvc.yaml").write_text(f"stages:\n{stages}")

    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(pipeline, "copy_tree", copy)
    made = pipeline.Pipeline(tmp_path)
    for stage in ("one", "two"):
        made.repro(stage, Counter())
    return made


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("dvc.lock", ""),
        ("dvc.lock", "schema: '2.0'\nstages:\n  one:\n    cm"),
        (".git/index.lock", ""),
        (".dvc/tmp/rwlock", '{"read": {'),
    ],
)
def test_what_a_kill_leaves_is_mended_and_counted_and_the_result_is_the_same(two_stages, file, text):
    before, row = two_stages.results("one"), Counter()
    two_stages.forget("one")
    (two_stages.folder / file).write_text(text)
    two_stages.repro("one", row)
    assert {name: count for name, count in row.items() if count} == {Path(file).name: 1}
    assert two_stages.results("one") == before == {"one": before["one"], "./one": before["./one"]}
    assert two_stages.locked() == {"one", "two"}


@pytest.mark.slow
def test_a_kill_that_left_a_dvc_lock_of_fewer_stages_is_counted(two_stages, monkeypatch):
    def start(stage, patience):
        two_stages.lock.write_text(two_stages.lock.read_text().partition("  two:")[0])
        return "", -9

    monkeypatch.setattr(two_stages, "start", start)
    row = Counter()
    two_stages.repro("one", row, patience=1)
    assert {name: count for name, count in row.items() if count} == {"kills": 1, "short": 1}


@pytest.mark.slow
def test_a_round_that_fails_otherwise_is_counted_and_said_and_the_table_comes(two_stages, monkeypatch, capsys):
    monkeypatch.setattr(faults, "Pipeline", lambda folder: two_stages)
    forget = two_stages.forget

    def broken(stage):
        forget(stage)
        if measured:
            shutil.rmtree(two_stages.folder / ".dvc/cache", ignore_errors=True)
            (two_stages.folder / "a").unlink(missing_ok=True)
        measured.append(stage)

    measured = []
    monkeypatch.setattr(two_stages, "forget", broken)
    faults.main(2, ["one"])
    said = capsys.readouterr()
    lines = first_words(said.out)
    assert dict(zip(lines["stage"], map(int, lines["one"]), strict=True)).items() >= {"rounds": 2, "failed": 2}.items()
    assert "FailedError: one ended with 255" in said.err
    assert "round 2 of 2" in said.err


def test_the_table_of_faults_has_every_row_of_the_page_with_tests_that_exist():
    rows = read_faults()
    assert len(rows) == len(re.findall(r"(?m)^\| (?!fault|-).*::", RELIABILITY.read_text()))
    assert all(named and all(Path(test.partition("::")[0]).is_file() for test in named) for named in rows.values())
    assert list(read_faults("a power cut")) == ["a power cut"]


@pytest.mark.parametrize(
    ("seen", "said"),
    [
        ([{"passed"}, {"passed", "skipped"}], "held"),
        ([{"passed"}, {"skipped"}], "in part: 1 of 2 tests skipped"),
        ([{"skipped"}, {"skipped"}], "NOT held: skipped"),
        ([{"passed"}, {"not run"}], "NOT held: not run, passed"),
        ([{"passed"}, {"passed", "failed"}], "NOT held: failed, passed"),
    ],
)
def test_a_row_is_held_if_each_of_its_tests_was_possible_here_and_passed(seen, said):
    assert how_held(seen) == said


@pytest.mark.slow
def test_the_table_runs_the_tests_of_a_row_and_says_that_the_fault_is_held():
    command = [sys.executable, "-m", "bench.faults", "--table", "a power cut"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=True)
    assert re.fullmatch(r"a power cut +held", done.stdout.splitlines()[-1])


def test_a_fault_that_the_page_does_not_have_runs_nothing(capsys):
    assert print_held("no such fault") == 1
    assert capsys.readouterr().out == "no fault of reliability.md has 'no such fault' in it\n"
