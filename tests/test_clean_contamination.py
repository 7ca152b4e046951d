"""Decontamination: what counts as shared, how it is reported, and that an edited benchmark runs `clean` again."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages._clean.contamination import contamination, read_benchmarks, word_runs
from stages.core.params import load_params
from stages.core.paths import DECONTAMINATE
from stages.runtime.errors import UserError
from tests.support.cleaning import clean_rows
from tests.support.project import ROOT
from tests.support.repository import Repository

WORDS = [
    "return",
    "the",
    "largest",
    "of",
    "the",
    "numbers",
    "in",
    "a",
    "list",
    "that",
    "may",
    "be",
    "empty",
    "or",
    "not",
]


def row(prompt: str) -> list[dict]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": "def largest(numbers): ..."}]


@given(st.text(alphabet="aBcß é_1.,\n-", max_size=120))
def test_the_runs_are_all_13_consecutive_words(text):
    words = re.findall(r"\w+", text.casefold())
    assert list(word_runs(text)) == [" ".join(words[start : start + 13]) for start in range(len(words) - 12)]


@pytest.fixture
def benchmarks(tmp_path, monkeypatch):
    """benchmarks(name=text) → what read_benchmarks() returns for these files in data/decontaminate, in this order."""
    monkeypatch.chdir(tmp_path)
    DECONTAMINATE.mkdir(parents=True)

    def read(**files: str) -> dict[str, str]:
        names = {name.replace("_", "."): text for name, text in files.items()}
        for name, text in names.items():
            (DECONTAMINATE / name).write_text(text, "utf-8")
        return read_benchmarks(DECONTAMINATE, list(names))

    return read


@pytest.mark.parametrize(
    ("prompt", "shared"),
    [
        (" ".join(WORDS[:13]), True),
        (" ".join(WORDS[:12]), False),
        ("Please " + "\n# ".join(WORDS[1:14]).upper() + "!", True),
        (" ".join([*WORDS[:7], "unsorted", *WORDS[7:13]]), False),
        ("Write a function.", False),
    ],
)
def test_thirteen_consecutive_words_match_across_case_and_punctuation(benchmarks, prompt, shared):
    words = contamination(row(prompt), benchmarks(b_txt=" ".join(WORDS)))
    assert (words is not None) == shared


def test_a_run_of_words_does_not_cross_turns_or_texts(benchmarks):
    known = benchmarks(b_txt=" ".join(WORDS[:13]))
    turns = [{"role": "user", "content": " ".join(WORDS[:6])}, {"role": "assistant", "content": " ".join(WORDS[6:13])}]
    assert contamination(turns, known) is None
    halves = json.dumps({"prompt": " ".join(WORDS[:6]), "answer": " ".join(WORDS[6:13])})
    assert benchmarks(c_jsonl=halves) == {}


def test_every_string_of_a_jsonl_file_counts(benchmarks):
    rows = [{"task": 1}, {"tests": [{"deep": " ".join(WORDS)}]}, None]
    known = benchmarks(b_jsonl="\n".join(map(json.dumps, rows)) + "\n")
    assert len(known) == len(WORDS) - 12


def test_a_contaminated_row_is_rejected_with_the_first_file_and_the_shared_words(benchmarks, params_of):
    named = {"decontaminate": [f"{name}.txt" for name in ("one", "two")]}
    benchmarks(one_txt=" ".join(WORDS), two_txt=" ".join(WORDS))
    rows = [{"source": f"x:{n}", "row": {"messages": row(text)}} for n, text in enumerate(["Fine.", " ".join(WORDS)])]
    cleaned = clean_rows(rows, params_of(clean={"check_code": False} | named).clean, "messages")
    (rejected,) = cleaned.rejected
    assert (rejected.record.source, rejected.reason) == ("x:1", "contaminated")
    assert rejected.detail == "one.txt: " + " ".join(WORDS[:13])


def test_a_contaminated_row_does_not_remove_its_near_duplicate(benchmarks, params_of):
    """It makes no difference which of the two has the lower id."""
    benchmarks(one_txt=" ".join(WORDS))
    for extra in ("a", "b", "c", "d"):
        long = " ".join(WORDS[:12]) + " xs. " + "It is called in many places, with any number of them. " * 2 + extra
        texts = [long, long.replace("xs", WORDS[12])]
        rows = [{"source": f"x:{n}", "row": {"messages": row(text)}} for n, text in enumerate(texts)]
        without, with_benchmark = (
            params_of(clean={"check_code": False, "decontaminate": names}).clean for names in ([], ["one.txt"])
        )
        assert [rejection.reason for rejection in clean_rows(rows, without, "messages").rejected] == ["near_duplicate"]
        assert [
            (rejection.record.source, rejection.reason)
            for rejection in clean_rows(rows, with_benchmark, "messages").rejected
        ] == [("x:1", "contaminated")]


def test_a_missing_or_broken_file_is_the_users_mistake(benchmarks, tmp_path):
    with pytest.raises(UserError, match=r"clean.decontaminate: there is no file .*gone\.txt"):
        read_benchmarks(tmp_path, ["gone.txt"])
    with pytest.raises(UserError, match=r"b\.jsonl:2 is not valid JSON"):
        benchmarks(b_jsonl='{"a": "b"}\n{broken\n')
    (tmp_path / "latin.txt").write_bytes(b"\xff\xfe\xe9")
    with pytest.raises(UserError, match=r"latin\.txt is not UTF-8"):
        read_benchmarks(tmp_path, ["latin.txt"])


@pytest.mark.parametrize("name", ["../secret.txt", "/etc/hosts.txt", "a/b.jsonl", "x.csv", ".txt", "..txt"])
def test_only_a_file_in_the_folder_can_be_named(tmp_path, tiny, name):
    path = Path(tmp_path / "params.yaml")
    path.write_text(tiny.read_text().replace("decontaminate: []", f"decontaminate: ['{name}']"))
    with pytest.raises(UserError, match=r"clean\.decontaminate"):
        load_params(path)


def test_an_edited_benchmark_runs_clean_again(tmp_path):
    """DVC itself runs the stage with the deps that dvc.yaml declares, and a command that only writes a word."""
    from ruamel.yaml import YAML

    yaml = YAML()
    stage = yaml.load(ROOT / "dvc.yaml")["stages"]["clean"]
    deps = [dep for dep in stage["deps"] if dep.startswith("data/decontaminate")]
    repository = Repository(tmp_path, tmp_path / "site-cache")
    repository.init()
    yaml.dump({"stages": {"clean": {"cmd": "echo made > out", "deps": deps, "outs": ["out"]}}}, tmp_path / "dvc.yaml")
    (tmp_path / "data/decontaminate").mkdir(parents=True)
    benchmark = tmp_path / "data/decontaminate/b.txt"
    benchmark.write_text("one")
    assert repository.ran("repro") == ["clean"]
    assert repository.ran("repro") == []
    benchmark.write_text("two")
    assert repository.ran("repro") == ["clean"]


def test_the_folder_is_in_git_so_that_it_exists_in_every_clone():
    assert (ROOT / "data/decontaminate/README.md").is_file()


PLAIN = "The office file of Åsa costs 10 km and 2 tsp of café au lait straße"
SPELLINGS = {
    "full width": "Ｔｈｅ　ｏｆｆｉｃｅ ｆｉｌｅ ｏｆ Åsa costs １０ ｋｍ and ２ tsp of café au lait straße",
    "ligatures and units": "The oﬃce ﬁle of Åsa costs ⑩ ㎞ and ² tsp of café au lait straße",
    "letters and marks apart": "The office file of A\u030asa costs 10 km and 2 tsp of cafe\u0301 au lait straße",
    "the sign of the angstrom": "The office file of \u212bsa costs 10 km and 2 tsp of café au lait straße",
    "capitals": "THE OFFICE FILE OF ÅSA COSTS 10 KM AND 2 TSP OF CAFÉ AU LAIT STRASSE",
    "mathematical letters": "𝐓𝐡𝐞 𝑜𝑓𝑓𝑖𝑐𝑒 𝖋𝖎𝖑𝖊 of Åsa costs 𝟏𝟎 km and 𝟚 tsp of café au lait straße",
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_run_of_words_is_found_in_every_spelling_of_its_characters(benchmarks, spelling):
    """PLAIN has 15 words, so three runs. Either the benchmark or the row has the other spelling."""
    spelled, words = SPELLINGS[spelling], [*PLAIN.lower().split()[:-1], "strasse"]
    expected = [" ".join(words[start : start + 13]) for start in range(len(words) - 12)]
    assert list(word_runs(spelled)) == expected
    for benchmark, prompt in ((PLAIN, spelled), (spelled, PLAIN)):
        assert contamination(row(prompt), benchmarks(b_txt=benchmark)) == f"b.txt: {expected[0]}"
