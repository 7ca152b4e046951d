"""Each known format becomes messages, whatever other columns there are; a row that does not fit is explained."""

import json

import pytest

from stages._clean.formats import FORMATS, ToolCallError, message_reader
from stages._download_data.formats import NEEDED

LONE = json.loads(r'"\ud800"')  # half of a surrogate pair, which JSON can write and UTF-8 cannot
SYSTEM, USER, ASSISTANT = ({"role": role, "content": role} for role in ("system", "user", "assistant"))
HUMAN, GPT = {"from": "human", "value": "h"}, {"from": "gpt", "value": "g"}
CODE_ROW = {"instruction": "i", "input": "j", "output": "o", "prompt": "### Instruction:\ni\n### Output:\no"}
PAIRS, COLUMNS = "prompt-completion", {"user": "question", "assistant": "answer", "system": "rules"}


def read(name, row):
    return message_reader({"format": name, "columns": COLUMNS if name == "columns" else None})(row)


def test_every_recognised_format_can_be_read():
    assert FORMATS.keys() == NEEDED.keys()


@pytest.mark.parametrize(
    ("name", "row", "texts"),
    [
        ("messages", {"messages": [USER, ASSISTANT]}, ["user", "assistant"]),
        (
            "messages",
            {"messages": [SYSTEM, USER, ASSISTANT, USER, ASSISTANT], "extra": 1},
            ["system", "user", "assistant", "user", "assistant"],
        ),
        ("messages", {"messages": [{**USER, "name": "x", "tool_calls": None}, ASSISTANT]}, ["user", "assistant"]),
        ("messages", {"messages": [HUMAN, GPT]}, ["h", "g"]),
        ("messages", {"messages": [USER, ASSISTANT], "system": "s"}, ["s", "user", "assistant"]),
        ("sharegpt", {"conversations": [HUMAN, GPT, HUMAN, GPT], "id": 7}, ["h", "g", "h", "g"]),
        (
            "sharegpt",
            {"conversations": [{"from": "user", "value": "u"}, {"from": "assistant", "value": "a"}]},
            ["u", "a"],
        ),
        ("sharegpt", {"conversations": [{"from": "system", "value": "s"}, HUMAN, GPT]}, ["s", "h", "g"]),
        ("sharegpt", {"conversations": [USER, ASSISTANT]}, ["user", "assistant"]),
        ("sharegpt", {"conversations": [{**HUMAN, "role": None, "content": None}, GPT], "system": ""}, ["h", "g"]),
        (PAIRS, {"prompt": "p", "completion": "c", "extra": None}, ["p", "c"]),
        (PAIRS, {"prompt": [SYSTEM, USER], "completion": [ASSISTANT]}, ["system", "user", "assistant"]),
        (PAIRS, {"prompt": [USER, ASSISTANT, USER], "completion": "c"}, ["user", "assistant", "user", "c"]),
        (PAIRS, {"prompt": f"a{LONE}b", "completion": "c"}, ["a?b", "c"]),
        (PAIRS, {"prompt": "a\x00b", "completion": "c"}, ["a\x00b", "c"]),
        ("alpaca", CODE_ROW, ["i\n\nj", "o"]),
        ("alpaca", {"instruction": "i", "input": "", "output": "o"}, ["i", "o"]),
        ("alpaca", {"instruction": "i", "input": None, "output": "o"}, ["i", "o"]),
        ("alpaca", {"instruction": "i", "output": "o", "system": "s"}, ["s", "i", "o"]),
        (
            "alpaca",
            {"instruction": "i", "output": "o", "history": [["a", "b"], ["c", "d"]]},
            ["a", "b", "c", "d", "i", "o"],
        ),
        ("columns", {"question": "q", "answer": "a", "rules": "r", "messages": "m"}, ["r", "q", "a"]),
        ("columns", {"question": "q", "answer": "a", "rules": None, "system": "unread"}, ["q", "a"]),
    ],
)
def test_each_known_format_becomes_messages(name, row, texts):
    messages = read(name, row)
    assert [message["content"] for message in messages] == texts
    spoken = ["user", "assistant"] * (len(texts) // 2)
    assert [message["role"] for message in messages] == (["system"] if len(texts) % 2 else []) + spoken
    assert all(message.keys() - {"train"} == {"role", "content"} for message in messages)


@pytest.mark.parametrize(
    ("marks", "trained"),
    [
        *(({"weight": value}, True) for value in (1, 1.0, None)),
        *(({"weight": value}, False) for value in (0, 0.0)),
        ({"train": True}, True),
        ({"train": None, "train_detail": []}, True),
        ({"train": False}, False),
        ({"weight": 1, "train": False}, False),
    ],
)
def test_an_answer_may_say_that_it_is_not_trained(marks, trained):
    for name, row in (
        ("messages", {"messages": [USER, ASSISTANT | marks, USER | marks, ASSISTANT]}),
        ("sharegpt", {"conversations": [HUMAN, GPT | marks, HUMAN | marks, GPT]}),
    ):
        assert ["train" in message for message in read(name, row)] == [False, not trained, False, False]
        assert read(name, row)[1].get("train", True) is trained


def test_a_text_is_one_turn_whatever_other_columns_there_are():
    assert read("text", {"text": " One. [INST] two\n", "system": "s", "url": "u"}) == [
        {"role": "text", "content": " One. [INST] two\n"}
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("<s>[INST] a [/INST] b", "the text has the mark <s>[INST] of a rendered conversation"),
        ("\n[INST] a [/INST] b </s>", "the text has the mark [INST] of a"),
        ("<|im_start|>user\na<|im_end|>", "the text has the mark <|im_start|> of a"),
        ("<|begin_of_text|><|start_header_id|>user", "the text has the mark <|begin_of_text|><|start_header_id|> of"),
        ("One.</s>\n", "the text ends with the mark </s>, which"),
        ("One.<|endoftext|>", "the text ends with the mark <|endoftext|>, which"),
        (None, "the text text is NoneType"),
        (7, "the text text is int"),
    ],
)
def test_a_text_with_marks_that_only_tokens_may_be_is_refused(text, words):
    with pytest.raises((TypeError, ValueError)) as caught:
        read("text", {"text": text})
    assert str(caught.value).startswith(words)


def test_answers_in_a_prompt_are_context_as_in_trl():
    row = {"prompt": [USER, ASSISTANT, USER], "completion": [ASSISTANT]}
    assert [message.get("train") for message in read(PAIRS, row)] == [None, False, None, None]


def test_a_system_column_that_is_null_in_the_mapping_is_not_read():
    columns = {"user": "q", "assistant": "a", "system": None}
    row = {"q": "x", "a": "y", "system": "unread"}
    assert [m["content"] for m in message_reader({"format": "columns", "columns": columns})(row)] == ["x", "y"]


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("messages", {"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}]}),
        ("messages", {"messages": [USER, {"role": "assistant", "content": "x", "function_call": {"name": "f"}}]}),
        ("messages", {"messages": [USER, {"role": "tool", "content": "x"}, ASSISTANT]}),
        ("sharegpt", {"conversations": [HUMAN, {"from": "function_call", "value": "{}"}, GPT]}),
        ("sharegpt", {"conversations": [HUMAN, {"from": "observation", "value": "{}"}, GPT]}),
        (PAIRS, {"prompt": "p", "completion": [{"role": "assistant", "content": "", "tool_calls": [{}]}]}),
    ],
)
def test_a_conversation_with_tools_raises_its_own_error(name, row):
    with pytest.raises(ToolCallError):
        read(name, row)


@pytest.mark.parametrize(
    ("name", "row", "words"),
    [
        *((name, None, "the row is NoneType") for name in ("messages", "columns")),
        ("alpaca", 3.5, "the row is float"),
        (PAIRS, ["prompt", "completion"], "the row is list"),
        (PAIRS, {}, "the columns are none; prompt is missing"),
        (PAIRS, {"prompt": "x", "label": 1}, "the columns are label, prompt; completion is missing"),
        (PAIRS, {"prompt": "x", "completion": None}, "the assistant text is NoneType, not a string"),
        (PAIRS, {"prompt": 7, "completion": "x"}, "the user text is int"),
        (PAIRS, {"prompt": [], "completion": "x"}, "prompt is not a list of turns"),
        ("alpaca", {"instruction": "x", "input": {"deep": [[]]}, "output": "y"}, "the user text is dict"),
        ("alpaca", {"instruction": "x", "input": "y"}, "the columns are input, instruction; output is missing"),
        ("alpaca", {"instruction": "x", "output": "y", "history": ["a"]}, "history is not a list of pairs"),
        ("alpaca", {"instruction": "x", "output": "y", "system": ["a"]}, "the system text is list"),
        ("columns", {"question": "x"}, "the columns are question; answer is missing"),
        ("messages", {"messages": None}, "messages is not a list"),
        ("messages", {"messages": "user: hello"}, "messages is not a list"),
        ("messages", {"messages": []}, "messages is not a list"),
        ("messages", {"messages": ["hello"]}, "a turn needs a role (system, user, human, assistant, gpt) and content"),
        ("messages", {"messages": [{"role": "user"}, ASSISTANT]}, "the user text is NoneType"),
        ("messages", {"messages": [{"role": ["user"], "content": "x"}]}, "a turn needs a role"),
        ("messages", {"messages": [{"role": f"user{LONE}", "content": "x"}]}, "a turn needs a role"),
        (
            "messages",
            {"messages": [USER, {"role": "assistant", "content": [{"text": "x"}]}]},
            "the assistant text is list",
        ),
        ("sharegpt", {"conversation": [HUMAN, GPT]}, "conversations is not a list"),
        *(
            ("messages", {"messages": [USER, ASSISTANT | {"weight": weight}]}, f"a turn has the weight {weight!r}. Set")
            for weight in (0.5, 2, -1, "0", True, [0])
        ),
        *(
            ("messages", {"messages": [USER, ASSISTANT | {"train": value}]}, f"a turn has train: {value!r}. Set")
            for value in ("false", 0, 1)
        ),
        ("messages", {"messages": [USER, ASSISTANT | {"train_detail": [{}]}]}, "a turn has train_detail"),
        *(
            ("messages", {"messages": turns}, "turns must go user, assistant")
            for turns in (
                [USER],
                [SYSTEM],
                [ASSISTANT, USER],
                [USER, USER, ASSISTANT],
                [USER, SYSTEM, ASSISTANT],
                [SYSTEM, SYSTEM, USER, ASSISTANT],
            )
        ),
        ("messages", {"messages": [SYSTEM, USER, ASSISTANT], "system": "s"}, "turns must go user, assistant"),
    ],
)
def test_a_row_that_does_not_fit_its_format_is_explained(name, row, words):
    with pytest.raises((TypeError, ValueError)) as caught:
        read(name, row)
    assert str(caught.value).startswith(words)
    assert not isinstance(caught.value, ToolCallError)
