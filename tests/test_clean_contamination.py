"""Decontamination: what counts as shared, how it is reported, and that an edited benchmark runs `clean` again."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages._clean.contamination import TEMPLATES, Benchmarks, contamination, read_benchmarks, run_texts, tokens_of
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
    assert list(run_texts(tokens_of(text))) == [" ".join(words[start : start + 13]) for start in range(len(words) - 12)]


@pytest.fixture
def benchmarks(tmp_path, monkeypatch):
    """benchmarks(name=text) → what read_benchmarks() returns for these files in data/decontaminate, in this order."""
    monkeypatch.chdir(tmp_path)
    DECONTAMINATE.mkdir(parents=True)

    def read(**files: str) -> Benchmarks:
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
    assert benchmarks(c_jsonl=halves) == ([], {})


def test_every_string_of_a_jsonl_file_counts(benchmarks):
    rows = [{"task": 1}, {"tests": [{"deep": " ".join(WORDS)}]}, None]
    known = benchmarks(b_jsonl="\n".join(map(json.dumps, rows)) + "\n")
    assert known.texts == [("b.jsonl:2", 40 * len(WORDS))]
    assert len(known.places) == len(WORDS) - 12


def test_a_contaminated_row_is_rejected_with_the_first_file_its_line_and_what_it_shares(benchmarks, params_of):
    named = {"decontaminate": [f"{name}.txt" for name in ("one", "two")]}
    benchmarks(one_txt=" ".join(WORDS), two_txt=" ".join(WORDS))
    rows = [{"source": f"x:{n}", "row": {"messages": row(text)}} for n, text in enumerate(["Fine.", " ".join(WORDS)])]
    cleaned = clean_rows(rows, params_of(clean={"check_code": False} | named).clean, "messages")
    (rejected,) = cleaned.rejected
    assert (rejected.record.source, rejected.reason) == ("x:1", "contaminated")
    assert rejected.detail == "one.txt:1, 100%: " + " ".join(WORDS)


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
    assert list(run_texts(tokens_of(spelled))) == expected
    for benchmark, prompt in ((PLAIN, spelled), (spelled, PLAIN)):
        assert contamination(row(prompt), benchmarks(b_txt=benchmark)) == f"b.txt:1, 100%: {' '.join(words)}"


QUESTIONS = {
    "English": "A ferry crosses the lake nine times a day and carries forty people each time, how many is that a week?",
    "German": "Wie viele Fährgäste fährt die Fähre über den See, wenn sie neunmal täglich je vierzig Leute mitnimmt?",
    "Russian": "Сколько человек в неделю перевозит паром, который девять раз в день берёт на борт по сорок человек?",
    "Hindi": "एक नाव दिन में नौ बार झील को पार करती है और हर बार चालीस लोगों को ले जाती है, तो सप्ताह में कितने?",
    "Arabic": "كم راكبا تنقل العبارة في الأسبوع إذا كانت تعبر البحيرة تسع مرات في اليوم وتحمل أربعين راكبا؟",
    "Korean": "나룻배가 하루에 아홉 번 호수를 건너고 한 번에 마흔 명을 태운다면 일주일에 모두 몇 명을 태우는가",
    "Chinese": "渡船每天横渡湖泊九次,每次可以搭载四十名乘客,那么它在一个星期之内总共能够运送多少名乘客?",
    "Japanese": "渡し船は一日に九回湖を渡り、毎回四十人の客を乗せます。一週間で全部で何人の客を運ぶことになりますか。",
    "Thai": "เรือข้ามฟากแล่นข้ามทะเลสาบวันละเก้าเที่ยวและบรรทุกผู้โดยสารเที่ยวละสี่สิบคนในหนึ่งสัปดาห์จะมีผู้โดยสารทั้งหมดกี่คน",
    "Khmer": "សាឡាងឆ្លងកាត់បឹងប្រាំបួនដងក្នុងមួយថ្ងៃហើយដឹកមនុស្សសែសិបនាក់ក្នុងមួយដងតើមួយសប្តាហ៍ដឹកបានប៉ុន្មាននាក់",
}
# Each says less than 13 words of the question in its language.
SHORTER = {
    "Hindi": "एक नाव दिन में नौ बार झील को पार करती है और बस",
    "Chinese": "渡船每天横渡湖泊九次,每次可以搭载乘客",
    "Japanese": "渡し船は一日に九回湖を渡り、毎回客を",
    "Thai": "เรือข้ามฟากแล่นข้ามทะเลสาบวันละเก้าเที่ยว",
}


@pytest.mark.parametrize("language", QUESTIONS)
def test_a_question_is_found_in_every_script_and_other_text_is_not(benchmarks, language):
    known = benchmarks(b_jsonl="\n".join(json.dumps({"question": text}) for text in QUESTIONS.values()))
    place = [*QUESTIONS].index(language) + 1
    found = contamination(row("1) " + QUESTIONS[language].replace(" ", "  ") + " !"), known)
    assert found.startswith(f"b.jsonl:{place}, 100%: {QUESTIONS[language].split(' ')[0].lower()[:9]}")
    others = [text for name, text in QUESTIONS.items() if name != language]
    assert contamination(row(QUESTIONS[language]), benchmarks(b_txt="\n\n".join(others))) is None
    assert contamination(row(SHORTER.get(language, "...")), known) is None


def test_a_word_keeps_its_marks_and_has_no_joiners():
    assert tokens_of("सही है?") == ["सही", "है"]
    assert tokens_of("می\u200cخواهم") == ["میخواهم"]
    assert tokens_of("ที่ 日本 kg") == ["ที่", "日", "本", "kg"]


IDIOMS = [
    "for i in range(len(a)):\n    for j in range(i + 1, len(a)):\n        if a[i] == a[j]:\n            return True",
    "if __name__ == '__main__':\n    import sys\n    for i in range(10):\n        print(i, str(i), len(str(i)))",
    "public static void main(String[] args) { for (int i = 0; i < args.length; i++) System.out.println(args[i]); }",
    "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20",
]


@pytest.mark.parametrize("idiom", IDIOMS)
def test_an_idiom_of_code_is_no_contamination(benchmarks, idiom):
    assert contamination(row(f"Here it is: {idiom}"), benchmarks(b_jsonl=json.dumps({"solution": idiom}))) is None


def test_a_small_part_of_a_long_text_is_no_contamination_and_forty_words_of_it_are(benchmarks):
    words = [f"word{chr(97 + n // 26)}{chr(97 + n % 26)}" for n in range(400)]
    known = benchmarks(b_jsonl=json.dumps(" ".join(words)))
    assert contamination(row(" ".join(words[50:89])), known) is None
    assert contamination(row(" ".join(words[50:90])), known).startswith("b.jsonl:1, 10%: wordby wordbz")
    short = benchmarks(b_jsonl=json.dumps(" ".join(words[:60])))
    assert contamination(row(" ".join(words[10:29])), short) is None
    assert contamination(row(" ".join(words[10:30])), short).startswith("b.jsonl:1, 33%: ")
    parts = [{"role": "user", "content": " ".join(words[n : n + 13])} for n in (5, 25)]
    assert contamination(parts, short).startswith("b.jsonl:1, 43%: ")
    assert contamination([parts[0], parts[0]], short) is None  # the same part twice is no larger part


TASK = "You will see a short text about the sea. Say in one sentence what it is about, and name its author."


@pytest.mark.parametrize("template", [TASK, *TEMPLATES])
def test_the_template_of_a_benchmark_is_no_contamination_but_its_questions_are(benchmarks, template):
    """The template of a well-known data set is one also in a benchmark that has it once."""
    texts = ["Whales sleep.", QUESTIONS["English"], *([] if template in TEMPLATES else ["Tides.", "Salt.", "Storm."])]
    known = benchmarks(b_jsonl="\n".join(json.dumps(f"{template}\n{text}") for text in texts))
    assert contamination(row(f"{template}\nA poem about boats."), known) is None
    assert contamination(row(f"{template}\n{QUESTIONS['English']}"), known).startswith("b.jsonl:2, 100%: a ferry")
    assert contamination(row(QUESTIONS["English"]), known).startswith("b.jsonl:2, 100%: a ferry")


def test_a_question_that_many_rows_repeat_is_contamination_in_each(benchmarks, params_of):
    benchmarks(b_jsonl=json.dumps({"question": QUESTIONS["English"]}))
    texts = [QUESTIONS["English"] + f" Answer {n}." for n in range(30)] + [f"What is {n}?" for n in range(10)]
    rows = [{"source": f"x:{n}", "row": {"messages": row(text)}} for n, text in enumerate(texts)]
    section = params_of(
        clean={"check_code": False, "decontaminate": ["b.jsonl"], "near_duplicate_threshold": None}
    ).clean
    assert [rejected.reason for rejected in clean_rows(rows, section, "messages").rejected] == ["contaminated"] * 30


def test_in_a_text_file_each_paragraph_and_each_line_is_a_text(benchmarks):
    known = benchmarks(
        b_txt=f"{QUESTIONS['English']}\n{QUESTIONS['German']}\n\n{' '.join(WORDS[:7])}\n{' '.join(WORDS[7:])}"
    )
    assert contamination(row(QUESTIONS["German"]), known).startswith("b.txt:2, 100%: wie viele")
    assert contamination(row(" ".join(WORDS)), known).startswith("b.txt:4, 100%: return the")


def test_what_is_shown_of_a_long_text_is_cut(benchmarks):
    words = [f"word{chr(97 + n // 26)}{chr(97 + n % 26)}" for n in range(400)]
    found = contamination(row(" ".join(words)), benchmarks(b_jsonl=json.dumps(" ".join(words))))
    assert len(found) == len("b.jsonl:1, 100%: ") + 300
    assert found.endswith("…")
