"""Each known format becomes messages, whatever other columns there are; a row that does not fit is explained."""

import json
import re

import pytest

from stages._clean.formats import ROLES, to_messages
from stages._clean.tools import ToolCallError
from stages._download_data.columns import FORMATS
from tests.support.cleaning import COLUMNS, layout_of

LONE = json.loads(r'"\ud800"')  # half of a surrogate pair, which JSON can write and UTF-8 cannot
SYSTEM, USER, ASSISTANT = ({"role": role, "content": role} for role in ("system", "user", "assistant"))
HUMAN, GPT = {"from": "human", "value": "h"}, {"from": "gpt", "value": "g"}
CODE_ROW = {"instruction": "i", "input": "j", "output": "o", "prompt": "### Instruction:\ni\n### Output:\no"}
PAIRS, NAMED = "prompt-completion", {"user": ["q"], "assistant": ["a"], "system": ["rules"]}


def calling(**changes):
    """A turn that calls a tool, with changes to the call."""
    call = {"id": changes.pop("id", "abcde1234"), "type": "function"}
    return {"role": "assistant", "tool_calls": [call | {"function": {"name": "look-up", "arguments": {}} | changes}]}


NAMELESS, NO_CALL = "a tool has the name None", "a tool's result belongs to no call"
CALL, RESULT = calling(), {"role": "tool", "tool_call_id": "abcde1234", "content": "42 words"}


def read(name, row):
    return to_messages(row, layout_of(name, NAMED if name == "columns" else None))


def part(text):
    return {"type": "text", "text": text}


def test_every_recognised_format_can_be_read():
    assert FORMATS.keys() == COLUMNS.keys()
    assert all(FORMATS[name].keys() <= parts.keys() for name, parts in COLUMNS.items())


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
        ("messages", [USER, ASSISTANT], ["user", "assistant"]),
        ("messages", {"messages": json.dumps([USER, ASSISTANT])}, ["user", "assistant"]),
        ("messages", {"messages": str([USER, {**ASSISTANT, "name": None}])}, ["user", "assistant"]),
        ("messages", {"messages": [{"user": "u", "assistant": "a"}, ["v", "b"]]}, ["u", "a", "v", "b"]),
        ("messages", {"messages": [{"role": "prompter", "text": "u"}, {"role": "assistant", "text": 2}]}, ["u", "2"]),
        (
            "messages",
            {"messages": [{"role": "user", "content": [part("a"), part(""), part("b")]}, ASSISTANT]},
            ["a\n\nb", "assistant"],
        ),
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
        (PAIRS, {"prompt": [part("p")], "completion": [part("c")]}, ["p", "c"]),
        (PAIRS, {"prompt": json.dumps([USER]), "completion": "c"}, [json.dumps([USER]), "c"]),
        (PAIRS, {"prompt": f"a{LONE}b", "completion": "c"}, ["a?b", "c"]),
        (PAIRS, {"prompt": "a\x00b", "completion": "c"}, ["a\x00b", "c"]),
        (PAIRS, {"prompt": 7, "completion": True}, ["7", "true"]),
        (PAIRS, {"prompt": "p", "completion": 0}, ["p", "0"]),
        (PAIRS, {"prompt": "p", "completion": 0.5}, ["p", "0.5"]),
        ("alpaca", CODE_ROW, ["i\n\nj", "o"]),
        ("alpaca", {"instruction": "i", "input": "", "output": "o"}, ["i", "o"]),
        ("alpaca", {"instruction": "i", "input": None, "output": "o"}, ["i", "o"]),
        ("alpaca", {"instruction": "", "input": "j", "output": "o"}, ["j", "o"]),
        ("alpaca", {"instruction": "i", "input": 4, "output": "o"}, ["i\n\n4", "o"]),
        ("alpaca", {"instruction": "i", "output": "o", "system": "s"}, ["s", "i", "o"]),
        *(
            ("alpaca", {"instruction": "i", "output": "o", "history": history}, ["a", "b", "i", "o"])
            for history in (
                [["a", "b"]],
                [{"user": "a", "assistant": "b"}],
                [{"human": "a", "gpt": "b"}],
                [{"instruction": "a", "output": "b"}],
                [{"prompt": "a", "response": "b"}],
                [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
                '[["a", "b"]]',
                "[('a', 'b')]",
            )
        ),
        *(
            ("alpaca", {"instruction": "i", "output": "o", "history": history}, ["i", "o"])
            for history in (None, "", "[]", [])
        ),
        ("question-answer", {"question": "q", "context": "c", "answer": 4}, ["q\n\nc", "4"]),
        ("input-output", {"input": "q", "output": "a"}, ["q", "a"]),
        ("inst", {"text": "<s>[INST] q [/INST] a </s>"}, ["q", "a"]),
        ("inst", {"text": "[INST] q[/INST]  a</s>"}, ["q", " a"]),
        ("inst", {"text": "<s>[INST] q\n[/INST] a\nb</s>[INST] r [/INST] c"}, ["q\n", "a\nb", "r", "c"]),
        ("inst", {"text": "<s> [INST] q [/INST] a [INST] r [/INST] c </s>\n"}, ["q", "a", "r", "c"]),
        ("inst", {"text": "<s>[INST] <<SYS>>\ns\n<</SYS>>\n\nq [/INST] a </s><s>[INST] r [/INST] c </s>"}, [*"sqarc"]),
        ("columns", {"q": "q", "a": "a", "rules": "r", "messages": "m"}, ["r", "q", "a"]),
        ("columns", {"q": "q", "a": "a", "rules": None, "system": "unread"}, ["q", "a"]),
    ],
)
def test_each_known_format_becomes_messages(name, row, texts):
    messages = read(name, row).messages
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
        assert ["train" in message for message in read(name, row).messages] == [False, not trained, False, False]
        assert read(name, row).messages[1].get("train", True) is trained


def test_an_exchange_may_say_that_its_answer_is_not_trained():
    exchanges = [{"user": "a", "assistant": "b", "weight": 0}, {"user": "c", "assistant": "d", "weight": 1}]
    read_row = read("sharegpt", {"conversations": exchanges})
    assert [said.get("train", True) for said in read_row.messages] == [True, False, True, True]
    assert not read_row.unread


def test_a_prompt_and_an_answer_may_both_be_json_texts_of_turns():
    """CSV files have texts only. If only one of the two is such a text, it may be meant as it is."""
    asked, answered = [USER, ASSISTANT, USER], [ASSISTANT]
    given = read(PAIRS, {"prompt": asked, "completion": answered}).messages
    for write in (json.dumps, str):
        assert read(PAIRS, {"prompt": write(asked), "completion": write(answered)}).messages == given
    for text in (json.dumps(asked), '[{"role": "robot", "content": "x"}]', '[{"a": 1}]', "[{'role'"):
        messages = read(PAIRS, {"prompt": json.dumps(asked), "completion": text}).messages
        assert [said["content"] for said in messages] == [json.dumps(asked), text]


def test_a_tools_result_in_parts_is_their_text():
    result = RESULT | {"content": [part("31"), part("degrees")]}
    messages = read("messages", {"messages": [USER, CALL, result, ASSISTANT]}).messages
    assert json.loads(messages[2]["content"])["content"] == "31\n\ndegrees"


@pytest.mark.parametrize("content", ["", None, []])
def test_an_empty_result_is_an_empty_object_as_in_mistral_common(content):
    messages = read("messages", {"messages": [USER, CALL, RESULT | {"content": content}, ASSISTANT]}).messages
    assert json.loads(messages[2]["content"])["content"] == {}


def test_a_text_is_one_turn_whatever_other_columns_there_are():
    assert read("text", {"text": " One. [INST] two\n", "system": "s", "url": "u"}).messages == [
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
    ],
)
def test_a_text_with_marks_that_only_tokens_may_be_is_refused(text, words):
    with pytest.raises((TypeError, ValueError)) as caught:
        read("text", {"text": text})
    assert str(caught.value).startswith(words)


def test_answers_in_a_prompt_are_context_as_in_trl():
    row = {"prompt": [USER, ASSISTANT, USER], "completion": [ASSISTANT]}
    assert [message.get("train") for message in read(PAIRS, row).messages] == [None, False, None, None]


@pytest.mark.parametrize(
    ("given", "role"),
    [
        *((name, "assistant") for name in ("Assistant", "gpt", "ChatGPT", "bot", "MODEL", "ai", " assistant ")),
        *((name, "user") for name in ("Human", "USER", "prompter")),
        *((name, "system") for name in ("System", "developer")),
    ],
)
def test_a_role_may_have_another_name_and_any_case(given, role):
    assert read("messages", {"messages": [{"role": given, "content": "x"}]}).messages == [
        {"role": role, "content": "x"}
    ]
    assert set(ROLES.values()) == {"system", "user", "assistant"}


def test_columns_and_keys_of_turns_that_are_not_read_are_counted():
    turns = [{**USER, "name": "x", "id": None}, {**ASSISTANT, "name": "y", "score": 0}]
    row = {"messages": turns, "system": "", "category": "qa", "note": "", "tests": "assert x", "seen": f"{LONE}"}
    assert read("messages", row).unread == {"messages[].name": 2, "messages[].score": 1, "category": 1, "seen": 1}
    untested = layout_of("messages", tests=False, ignored=["category"])
    assert to_messages(row, untested).unread.keys() == {"messages[].name", "messages[].score", "tests", "seen"}
    assert read("messages", {"messages": [USER], f"a{LONE}": 1}).unread == {"a?": 1}


@pytest.mark.parametrize(
    ("name", "row", "words"),
    [
        (
            "messages",
            {"messages": [USER, {"role": "assistant", "tool_calls": [{"id": "1"}]}]},
            NAMELESS,
        ),
        ("messages", {"messages": [USER, {"role": "assistant", "tool_calls": 7}]}, "tool_calls is not a list"),
        ("messages", {"messages": [USER, {**CALL, "content": "x"}, RESULT, ASSISTANT]}, "a turn has a text and calls"),
        (
            "messages",
            {"messages": [USER, {**CALL, "function_call": {"name": "f", "arguments": "{}"}}, RESULT, ASSISTANT]},
            "a turn has tool_calls and function_call",
        ),
        ("messages", {"messages": [USER, RESULT, ASSISTANT]}, NO_CALL),
        ("messages", {"messages": [USER, CALL, RESULT, RESULT, ASSISTANT]}, NO_CALL),
        (
            "messages",
            {"messages": [USER, CALL, {**RESULT, "tool_call_id": "other"}]},
            NO_CALL,
        ),
        ("messages", {"messages": [USER, CALL, ASSISTANT]}, "a call has no result"),
        ("messages", {"messages": [USER, CALL, CALL]}, "turns with tools must go user, calls"),
        ("messages", {"messages": [USER, CALL, RESULT]}, "turns with tools must go user, calls"),
        ("messages", {"messages": [USER, CALL, RESULT, USER, ASSISTANT]}, "turns with tools must go user, calls"),
        ("messages", {"messages": [USER, calling(arguments="{not json")]}, "arguments of look-up is not JSON"),
        ("messages", {"messages": [USER, calling(arguments="[1]")]}, "the arguments of look-up are no JSON object"),
        *(
            (
                "messages",
                {"messages": [USER, calling(arguments=None, **{key: {"word": "x"}})]},
                f"look-up has {key} where",
            )
            for key in ("parameters", "args", "input")
        ),
        *(
            ("messages", {"messages": [USER, ASSISTANT], "tools": [{"name": "f", key: {"a": 1}}]}, f"f has {key} where")
            for key in ("input_schema", "inputSchema", "arguments", "args")
        ),
        ("messages", {"messages": [USER, calling(name="look up")]}, "a tool has the name 'look up'"),
        ("messages", {"messages": [USER, ASSISTANT], "tools": "[nothing"}, "tools is not JSON"),
        ("messages", {"messages": [USER, ASSISTANT], "tools": {"a": 1}}, "tools is not a list"),
        ("messages", {"messages": [USER, ASSISTANT], "tools": [{"type": "function"}]}, NAMELESS),
        (
            "messages",
            {"messages": [USER, ASSISTANT], "tools": [{"name": "f", "parameters": [1]}]},
            "the parameters",
        ),
        (
            "sharegpt",
            {"conversations": [HUMAN, {"from": "function_call", "value": "{}"}, GPT]},
            NAMELESS,
        ),
        (
            "sharegpt",
            {"conversations": [HUMAN, {"from": "function_call", "value": "x"}, GPT]},
            "the text of a",
        ),
    ],
)
def test_tools_that_have_no_form_in_v3_raise_an_error_of_their_own(name, row, words):
    with pytest.raises(ToolCallError) as caught:
        read(name, row)
    assert str(caught.value).startswith(words)


def spoken(messages) -> list[tuple]:
    """Returns (role, content) of each turn, with the content as a value where it is JSON."""
    parsed = {"tools", "tool_calls", "tool"}
    return [
        (said["role"], json.loads(said["content"]) if said["role"] in parsed else said["content"])
        for said in messages.messages
    ]


TOOL = {"name": "look-up", "description": "", "parameters": {}}
CALLED = {"name": "look-up", "arguments": {"word": "é"}, "id": "abcde1234"}


@pytest.mark.parametrize("arguments", [{"word": "é"}, '{"word": "é"}', '{\n "word": "\\u00e9"}'])
@pytest.mark.parametrize("content", [None, ""])
def test_calls_and_results_in_openais_shape_are_read(arguments, content):
    call = {**calling(arguments=arguments), "content": content}
    row = {"messages": [SYSTEM, USER, call, RESULT, ASSISTANT], "tools": [{"type": "function", "function": TOOL}]}
    assert spoken(read("messages", row)) == [
        ("tools", [{"type": "function", "function": TOOL}]),
        *(("system", "system"), ("user", "user"), ("tool_calls", [CALLED])),
        *(("tool", {"content": "42 words", "call_id": "abcde1234"}), ("assistant", "assistant")),
    ]
    assert "é" in read("messages", row).messages[3]["content"]


def test_older_shapes_of_calls_are_read():
    older = {"role": "assistant", "content": None, "function_call": {"name": "look-up", "arguments": "{}"}}
    result = {"role": "function", "name": "look-up", "content": '{"found": 1}'}
    openai = spoken(read("messages", {"messages": [USER, older, result, ASSISTANT], "tools": json.dumps([TOOL])}))
    call = {"from": "function_call", "value": '{"name": "look-up", "arguments": {}}'}
    row = {"conversations": [HUMAN, call, {"from": "observation", "value": '{"found": 1}'}, GPT], "tools": "[]"}
    sharegpt = spoken(read("sharegpt", row))
    assert openai[0] == ("tools", [{"type": "function", "function": TOOL}])
    assert openai[2:4] == sharegpt[1:3]
    assert sharegpt[1][1][0]["arguments"] == {}
    assert sharegpt[2][1] == {"content": {"found": 1}, "call_id": sharegpt[1][1][0]["id"]}


def test_ids_of_calls_become_nine_letters_and_digits_and_results_follow_them():
    first, second = calling(id="call_Xq2-long"), calling(id=None)
    calls = {"role": "assistant", "tool_calls": [*first["tool_calls"], *second["tool_calls"]]}
    nameless, named = {**RESULT, "tool_call_id": None}, {**RESULT, "tool_call_id": "call_Xq2-long"}
    for results in ([named, nameless], [nameless, nameless]):
        made = spoken(read("messages", {"messages": [USER, calls, *results, ASSISTANT]}))
        ids = [call["id"] for call in made[1][1]]
        assert all(re.fullmatch("[a-zA-Z0-9]{9}", each) for each in ids)
        assert len(set(ids)) == 2
        assert [content["call_id"] for _, content in made[2:4]] == ids


def test_calls_without_ids_get_different_ones():
    calls = {"role": "assistant", "tool_calls": calling(id=None)["tool_calls"] * 2}
    row = {"messages": [USER, calls, *[{**RESULT, "tool_call_id": None}] * 2, USER | {"role": "assistant"}]}
    made = spoken(read("messages", row))
    ids = [call["id"] for call in made[1][1]]
    assert len(set(ids)) == 2
    assert [content["call_id"] for _, content in made[2:4]] == ids


def test_a_row_without_tools_has_no_turn_for_them():
    for empty in (None, [], "[]", "", "hammer, nail", ["hammer"]):  # a column of that name may hold anything
        row = {"messages": [USER, ASSISTANT], "tools": empty}
        assert spoken(read("messages", row)) == [("user", "user"), ("assistant", "assistant")]


def test_a_call_may_say_that_it_is_not_trained():
    call = {**CALL, "weight": 0}
    read_turns = read("messages", {"messages": [USER, call, RESULT, ASSISTANT]}).messages
    assert [said.get("train") for said in read_turns] == [None, False, None, None]


IMAGE = {"type": "image_url", "image_url": {"url": "x.png"}}


@pytest.mark.parametrize(
    ("name", "row", "words"),
    [
        *((name, None, "the row is NoneType") for name in ("messages", "columns")),
        ("alpaca", 3.5, "the row is float"),
        (PAIRS, ["prompt", "completion"], "the row is list"),
        (PAIRS, {}, "the columns are none; prompt is missing"),
        (PAIRS, {"prompt": "x", "label": 1}, "the columns are label, prompt; completion is missing"),
        (PAIRS, {"prompt": "x", "completion": None}, "the assistant text is NoneType, not a text or a number"),
        (PAIRS, {"prompt": "x", "completion": {"a": 1}}, "the assistant text is dict"),
        (PAIRS, {"prompt": "x", "completion": float("nan")}, "Out of range float values"),
        (PAIRS, {"prompt": ["x"], "completion": "x"}, "prompt has str where a turn is expected"),
        ("alpaca", {"instruction": "x", "input": {"deep": [[]]}, "output": "y"}, "input is dict"),
        ("alpaca", {"instruction": "x", "input": "y"}, "the columns are input, instruction; output is missing"),
        ("alpaca", {"instruction": "x", "output": "y", "history": ["a"]}, "history has str where a turn is expected"),
        ("alpaca", {"instruction": "x", "output": "y", "history": "first I said"}, "history is a text that holds no"),
        ("alpaca", {"instruction": "x", "output": "y", "system": ["a"]}, "the system text has a part that is str"),
        ("columns", {"q": "x"}, "the columns are q; a is missing"),
        ("messages", {"messages": None}, "messages is NoneType, not a list of turns"),
        ("messages", {"messages": "user: hello"}, "messages is a text that holds no list of turns in JSON"),
        ("messages", {"messages": '{"role": "user"}'}, "messages is dict, not a list of turns"),
        ("sharegpt", {"conversations": [["user", "x"], ["assistant", "y"]]}, "conversations has pairs of a role and a"),
        (
            "alpaca",
            {"instruction": "x", "output": "y", "history": [["Human", "a"]]},
            "history has pairs of a role and a",
        ),
        (PAIRS, {"prompt": [], "completion": "x"}, "prompt is an empty list of turns"),
        ("messages", {"messages": ["hello"]}, "messages has str where a turn is expected: role (system"),
        ("messages", {"messages": [{"role": "user"}, ASSISTANT]}, "the user text is NoneType"),
        ("messages", {"messages": [{"role": ["user"], "content": "x"}]}, "a turn of messages needs role (system, user"),
        ("messages", {"messages": [{"role": f"user{LONE}", "content": "x"}]}, "a turn of messages needs role"),
        ("messages", {"messages": [{"role": "user", "content": [{"text": "x"}]}]}, "the user text has a part that is"),
        (
            "messages",
            {"messages": [{"role": "user", "content": [part("x"), IMAGE]}]},
            "the user text has a part that is image_url. Only text can be read",
        ),
        ("messages", {"messages": [{**USER, "images": ["x.png"]}]}, "a turn has images. Only text can be read"),
        ("sharegpt", {"conversation": [HUMAN, GPT]}, "conversations is NoneType"),
        *(
            ("inst", {"text": text}, "text does not read [INST] … [/INST] … </s> from its beginning to its end")
            for text in ("q a", "x [INST] q [/INST] a", "[INST] q [/INST] a </s> b", "[INST] q [/INST] a [/INST]")
        ),
        *(
            ("messages", {"messages": [USER, ASSISTANT | {"weight": weight}]}, f"a turn has the weight {weight!r}. Set")
            for weight in (0.5, 2, -1, "0", True, [0])
        ),
        *(
            ("messages", {"messages": [USER, ASSISTANT | {"train": value}]}, f"a turn has train: {value!r}. Set")
            for value in ("false", 0, 1)
        ),
        ("messages", {"messages": [USER, ASSISTANT | {"train_detail": [{}]}]}, "a turn has train_detail"),
        ("inst", {"text": None}, "text is NoneType"),
    ],
)
def test_a_row_that_does_not_fit_its_format_is_explained(name, row, words):
    with pytest.raises((TypeError, ValueError)) as caught:
        read(name, row)
    assert str(caught.value).startswith(words)
    assert not isinstance(caught.value, ToolCallError)
