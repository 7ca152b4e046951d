"""download_data finds the columns of a conversation by their names, and stops where another one changes the meaning."""

import pytest

from stages import download_data
from stages._download_data.columns import ANSWERS, FORMATS
from stages.core.paths import RAW, read_json, write_json
from stages.runtime.errors import UserError

TALK = [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]
MESSAGES, PAIR, ALPACA = {"messages": TALK}, {"prompt": "p", "completion": "c"}, {"instruction": "i", "output": "o"}
KEY = "AKIA" + "IOSFODNN7" + "EXAMPLF"


@pytest.fixture
def layout_of_rows(tmp_path, monkeypatch, params_of):
    """layout_of_rows(rows, **changes to the section `data`) → (data/raw/format.json, the stage's closing line)."""
    monkeypatch.chdir(tmp_path)

    def build(*rows, **changes):
        write_json(tmp_path / "rows.json", rows)
        section = {"source": "file", "path": "rows.json", "limit": None, **changes}
        said = download_data.main(params_of(data=section)).message
        return read_json(RAW / "format.json"), said

    return build


@pytest.fixture
def refusal(layout_of_rows):
    def build(*rows, **changes) -> str:
        with pytest.raises(UserError) as caught:
            layout_of_rows(*rows, **changes)
        assert not RAW.exists()
        return str(caught.value)

    return build


def pair(user: list[str], assistant: str, **others: str) -> dict[str, list[str]]:
    return {"user": user, "assistant": [assistant], **{part: [column] for part, column in others.items()}}


LISTED = {"conversation": ["messages"]}


@pytest.mark.parametrize(
    ("row", "name", "columns"),
    [
        (MESSAGES, "messages", LISTED),
        (TALK, "messages", LISTED),
        (MESSAGES | {"prompt": "u"}, "messages", LISTED),
        ({"conversation": TALK}, "sharegpt", {"conversation": ["conversation"]}),
        ({"instruction": "i", "context": "", "response": "r"}, "alpaca", pair(["instruction", "context"], "response")),
        ({"INSTRUCTION": "i", "RESPONSE": "r", "category": 1}, "alpaca", pair(["INSTRUCTION"], "RESPONSE")),
        (ALPACA | {"prompt": "p", "text": "t"}, "alpaca", pair(["instruction"], "output")),
        (
            ALPACA | {"history": [], "input": "", "system": "s"},
            "alpaca",
            pair(["instruction", "input"], "output", history="history", system="system"),
        ),
        ({"prompt": "p", "response": 1}, "prompt-completion", pair(["prompt"], "response")),
        ({"prompt": "p", "generation": "g"}, "prompt-completion", pair(["prompt"], "generation")),
        (
            {"system_prompt": "s", "question": "q", "response": "r"},
            "question-answer",
            pair(["question"], "response", system="system_prompt"),
        ),
        ({"question": "q", "answer": 7}, "question-answer", pair(["question"], "answer")),
        ({"query": "q", "response": "a"}, "question-answer", pair(["query"], "response")),
        ({"context": 1, "question": "q", "answer": "a"}, "question-answer", pair(["question", "context"], "answer")),
        ({"input": "i", "output": "o"}, "input-output", pair(["input"], "output")),
        ({"input": "i", "target": "t", "kind": "x"}, "input-output", pair(["input"], "target")),
        ({"text": "<s>[INST] q [/INST] a </s>"}, "inst", {"inst": ["text"]}),
    ],
)
def test_columns_are_found_under_their_usual_names(layout_of_rows, row, name, columns):
    layout, said = layout_of_rows(row)
    assert (layout["format"], layout["columns"]) == (name, columns)
    assert f"of the format {name} ({next(iter(columns))}: {', '.join(next(iter(columns.values())))}" in said


def test_every_name_of_an_answer_is_found_next_to_every_name_of_a_question(layout_of_rows):
    for name, parts in FORMATS.items():
        for question in parts.get("user", ()):
            for answer in parts["assistant"]:
                layout, _ = layout_of_rows({question: "q", answer: "a"})
                assert (layout["format"], layout["columns"]) == (name, {"user": [question], "assistant": [answer]})
    assert set(ANSWERS) < {*FORMATS["input-output"]["assistant"]}


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (
            PAIR | {"response": "r"},
            "prompt-completion with prompt and completion (1 row), prompt-completion with prompt and response (1 row)",
        ),
        (
            {"question": "q", "query": "r", "answer": "a"},
            "question-answer with question and answer (1 row), question-answer with query and answer (1 row)",
        ),
        ({"instruction": "i", "question": "q", "answer": "a"}, "alpaca (1 row), question-answer (1 row)"),
        (MESSAGES | PAIR, "messages (1 row), prompt-completion (1 row)"),
        ({"messages": TALK, "conversations": TALK}, "messages (1 row), sharegpt (1 row)"),
    ],
)
def test_a_row_that_can_be_read_in_two_ways_needs_a_choice(refusal, layout_of_rows, row, words):
    assert f"can be read as {words}. Set data.format to the one that you mean, or name the columns" in refusal(row)
    ignored = list(row)[1:2]
    layout, _ = layout_of_rows(row, ignore_columns=ignored)
    assert layout["ignored"] == ignored
    assert ignored not in layout["columns"].values()


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "p", "chosen": "c", "rejected": "r"}, "chosen (1 row), rejected (1 row) would not be read. Pref"),
        ({"chosen": TALK, "rejected": TALK}, "chosen (1 row), rejected (1 row) would not be read. Preference"),
        (MESSAGES | {"Chosen": TALK}, "Chosen (1 row) would not be read. Preference"),
        (PAIR | {"label": False}, "label (1 row) would not be read. It says whether an answer is good (KTO)"),
        (PAIR | {"label": "True"}, "label (1 row) would not be read. It says"),
        (PAIR | {"label": 1}, "label (1 row) would not be read. It says"),
        (ALPACA | {"kto_tag": True}, "kto_tag (1 row) would not be read. It says"),
        (MESSAGES | {"images": ["a.jpg"]}, "images (1 row) would not be read. Only text is read"),
        (MESSAGES | {"image": "a.jpg"}, "image (1 row) would not be read. Only text"),
        (MESSAGES | {"functions": [{"name": "f"}]}, "functions (1 row) would not be read. Bring the definitions"),
    ],
)
def test_a_column_that_changes_the_meaning_of_a_row_stops_the_stage(refusal, row, words):
    text = refusal(row)
    assert f"data: {words}" in text
    assert "To leave it unread instead, name it in data.ignore_columns" in text


@pytest.mark.parametrize(
    ("row", "changes"),
    [
        (PAIR | {"label": "sports"}, {}),
        (PAIR | {"label": None, "images": [], "functions": "[]"}, {}),
        (PAIR | {"label": True}, {"ignore_columns": ["label"]}),
        (
            {"prompt": "p", "chosen": "c", "rejected": "r"},
            {
                "format": "columns",
                "columns": {"user": "prompt", "assistant": "chosen", "system": None},
                "ignore_columns": ["rejected"],
            },
        ),
    ],
)
def test_a_column_without_such_a_meaning_or_named_by_the_user_stops_nothing(layout_of_rows, row, changes):
    layout, _ = layout_of_rows(row, **changes)
    assert layout["format"] in ("prompt-completion", "columns")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\na<|im_end|>", "ChatML"),
        ("<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nq<|eot_id|>", "Llama"),
        ("<bos><start_of_turn>user\nq<end_of_turn>", "Gemma"),
        ("<|user|>\nq</s>\n<|assistant|>\na</s>", "Zephyr"),
        ("### Instruction:\nq\n\n### Response:\na", "Alpaca"),
        ("Below is an instruction that describes a task. Write", "Alpaca"),
        ("### Human: q### Assistant: a", "Alpaca"),
        ("USER: q\n\n\nASSISTANT: a <|endoftext|>", "Vicuna"),
        ("\n\nHuman: q\n\nAssistant: a", "Vicuna"),
    ],
)
def test_text_in_another_prompt_format_is_refused_by_name(refusal, text, name):
    for row in ({"text": text}, {"chat": text, "system": "s"}, {"prompt": text, "completion": "a"}):
        column = next(iter(row))
        said = f"data.format: {column} holds text that is already in a prompt format: {name} (1 row). It would"
        assert said in refusal(row)


def test_text_of_which_only_some_is_in_a_prompt_format_is_refused_unless_the_format_is_set(refusal, layout_of_rows):
    rows = [{"text": "[INST] q [/INST] a"}, {"text": "An essay on [INST] and [/INST]."}]
    assert "text holds text that is already in a prompt format: Mistral (1 row)" in refusal(*rows)
    assert layout_of_rows(*rows, format="inst")[0]["columns"] == {"inst": ["text"]}
    layout, _ = layout_of_rows({"prompt": "[INST] q [/INST]", "completion": "c"}, PAIR)
    assert layout["format"] == "prompt-completion", "only some rows have it, so it may be meant"


def test_an_object_with_the_rows_columns_and_a_name_with_a_blank_are_pointed_out(refusal):
    assert "  messages: 2 rows of it in the object data. Move it up" in refusal(*[{"id": 1, "data": MESSAGES}] * 2)
    assert "  ' completion' has a blank at an end. Take the blanks out" in refusal({"prompt": "p", " completion": "c"})


PYTHON = ["assert f(1) == 2", ["x = f(1)", "assert x"], "check(f)", "raise ValueError"]
PROSE = ["CBC, chest X-ray", "ECG", "CBC, ECG", "7", 7, True, {"a": "assert x"}, [{"input": "1"}], "assert f( =="]


@pytest.mark.parametrize(
    ("values", "read"),
    [
        *(([value], True) for value in PYTHON),
        *(([value], False) for value in PROSE),
        ([*PYTHON[:2], *PROSE[:1], None, "", []], True),
        ([*PYTHON[:1], *PROSE[:1]], False),
        ([*PYTHON[:1], *PROSE[:2]], False),
    ],
)
def test_a_column_tests_is_tests_where_most_of_its_values_are_python_that_can_fail(layout_of_rows, values, read):
    layout, said = layout_of_rows(*({**PAIR, "tests": value} for value in values))
    count, python = sum(value not in (None, "", []) for value in values), sum(value in PYTHON for value in values)
    assert layout["tests"] == read
    assert f"; {python} of {count} value{'s' * (count > 1)} of tests are tests in Python, so the column is " in said
    assert said.endswith("the column is read" if read else "the column is not read")


def test_a_row_is_shown_without_its_secrets(refusal):
    text = refusal({"key": f"{KEY} of a@b.de", KEY: 1})
    assert '{"<SECRET>": 1, "key": "<SECRET> of <EMAIL>"}' in text
    assert KEY not in text
    assert KEY[:-4] not in refusal({"note": "x" * 170 + f" {KEY}"}), "a key that is cut is none any more"


def test_if_no_row_can_be_read_the_message_says_why(tmp_path, refusal):
    (tmp_path / "rows.jsonl").write_text("{'prompt': 'a', 'completion': 'b'}\n" * 2)
    text = refusal(path="rows.jsonl")
    assert "2 rows cannot be read. The first: rows.jsonl:1: column 2: Expecting property name enclosed in" in text
