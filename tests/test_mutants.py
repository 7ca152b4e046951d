"""python -m tools.mutants: its areas name files and functions that exist. It is run by hand, and here only asked."""

import ast
import subprocess
import sys

import pytest

from stages.core.paths import read_json
from stages.runtime.errors import UserError
from tests.support.project import ROOT
from tools import mutants
from tools._mutants import explained
from tools._mutants.areas import AREAS
from tools._mutants.explained import EXPLAINED, why_left
from tools._mutants.results import KILLED, TIMEOUT, Mutant, function_of, functions, is_wording
from tools._mutants.sandbox import MARK, marked
from tools.mutants import RESULT, explain, summary, table, updated, with_sums


def run(*arguments):
    command = [sys.executable, "-m", "tools.mutants", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", AREAS)
def test_the_code_and_the_tests_of_an_area_exist(name):
    for file, wanted in AREAS[name].code.items():
        assert set(wanted) <= functions(ROOT / file).keys()
    assert all((ROOT / test).is_file() for test in AREAS[name].tests)


def test_every_reason_is_the_one_of_a_survivor_in_the_committed_result():
    result = read_json(RESULT)
    survivors = [survivor for name in AREAS for survivor in result[name]["survivors"]]
    used = {(survivor["file"], survivor["why"]) for survivor in survivors}
    assert {(file, reason) for file, reasons in EXPLAINED.items() for reason in reasons.values()} <= used
    for survivor in survivors:
        reason = why_left(survivor["file"], survivor["change"])
        assert (survivor["why"], survivor["equivalent"]) == reason


def test_survivors_are_explained_only_in_files_of_an_area():
    assert EXPLAINED.keys() <= {file for area in AREAS.values() for file in area.code}


def test_the_command_says_how_to_use_it_and_refuses_an_unknown_area():
    shown = run("--help")
    assert shown.returncode == 0 and "--area" in shown.stdout
    refused = run("--area", "masks", "nonsense")
    assert refused.returncode == 2 and "invalid choice: 'nonsense'" in refused.stderr


def test_statements_for_people_are_marked_and_the_code_stays_the_same():
    source = "def f(x):\n    if x > 1:\n        raise ValueError(\n            x\n        )\n    print(x)\n    return x"
    lines = marked(source).split("\n")
    assert [line.endswith(MARK) for line in lines] == [False, False, True, True, True, True, False]


@pytest.mark.parametrize(
    ("before", "after", "wording"),
    [
        ('f("a b")', 'f("A B")', True),
        ('f("ab")', 'f("AB")', False),
        ('f(" ")', 'f("XX XX")', False),
        ('f("a b")', "f(None)", False),
    ],
)
def test_only_a_changed_text_of_several_words_is_wording(before, after, wording):
    assert is_wording(ast.parse(before), ast.parse(after)) == wording


def test_mutmuts_names_of_functions_and_methods_are_understood():
    assert function_of("stages.core.prompts.xǁEncoderǁturns__mutmut_3") == "Encoder.turns"
    assert function_of("stages.core.records.x_split_of__mutmut_12") == "split_of"


def mutant(number, status, before="x"):
    return Mutant(f"f__mutmut_{number}", "f.py", "f", number, before, f"{before}{number}", status, is_wording=False)


def test_the_score_leaves_out_only_mutants_that_change_no_result(monkeypatch):
    reasons = {"x2": "the same", "x3": "another machine sees it"}
    monkeypatch.setitem(EXPLAINED, "f.py", reasons)
    monkeypatch.setattr(explained, "OTHERS", ("another machine sees it",))
    killed = [mutant(1, KILLED), mutant(5, TIMEOUT)]
    result = summary([*killed, *(mutant(number, "survived (0)") for number in (2, 3, 4))])
    explain(result)
    assert [survivor["why"] for survivor in result["survivors"]] == ["the same", "another machine sees it", ""]
    assert (result["survived"], result["equivalent"], result["unexplained"]) == (3, 1, 1)
    results = with_sums({"one": result, "other": summary([mutant(1, KILLED)]) | {"equivalent": 0, "unexplained": 0}})
    assert [(name, each["mutants"], each["score"]) for name, each in results.items()] == [
        ("all", 6, 0.6),
        ("one", 5, 0.5),
        ("other", 1, 1.0),
    ]
    assert [line.split() for line in table(results).splitlines()][:2] == [
        ["area", "mutants", "killed", "timeout", "survived", "equivalent", "unexplained", "score"],
        ["all", "6", "2", "1", "3", "1", "1", "60.0%"],
    ]


def test_survivors_that_are_tried_again_change_the_counts_and_the_list():
    first = summary([mutant(1, KILLED), mutant(2, "survived (0)"), mutant(3, "survived (0)")])
    untried = "survived (None)"
    second = updated(first, [mutant(1, untried), mutant(2, KILLED), mutant(3, "survived (0)")])
    assert {key: second[key] for key in ("mutants", "killed", "timeout", "survived")} == {
        "mutants": 3,
        "killed": 2,
        "timeout": 0,
        "survived": 1,
    }
    assert [survivor["mutant"] for survivor in second["survivors"]] == ["f__mutmut_3"]


@pytest.mark.parametrize("now", [[mutant(1, KILLED, "y")], [mutant(1, KILLED), mutant(2, KILLED)], []])
def test_survivors_of_other_code_cannot_be_tried_again(now):
    with pytest.raises(UserError, match="without --again"):
        updated(summary([mutant(1, "survived (0)")]), now)


def test_an_area_whose_code_has_changed_is_refused_before_its_tests_run(monkeypatch):
    monkeypatch.setattr(mutants, "made_mutants", lambda folder, area: [mutant(1, "survived (None)", "y")])
    monkeypatch.setattr(mutants, "run_mutmut", lambda *_: pytest.fail("the tests ran"))
    with pytest.raises(UserError, match="without --again"):
        mutants.area_result(AREAS["packing"], summary([mutant(1, "survived (0)")]))


def test_an_area_that_cannot_run_does_not_lose_the_results_of_the_others(monkeypatch, tmp_path):
    def area_result(area, before):
        if area is AREAS["packing"]:
            raise UserError("the code has changed")
        return summary([mutant(1, KILLED)])

    monkeypatch.setattr(mutants, "RESULT", tmp_path / "mutants.json")
    monkeypatch.setattr(mutants, "area_result", area_result)
    monkeypatch.setattr(mutants.importlib.util, "find_spec", lambda name: True)
    with pytest.raises(UserError, match="^packing: the code has changed$"):
        mutants.main(["masks", "packing", "gate"])
    assert read_json(tmp_path / "mutants.json").keys() == {"all", "masks", "gate"}
