"""Encoding gives the same ids as mistral-common, as SentencePiece used by hand, and as transformers."""

import copy
import json
import shutil
from types import SimpleNamespace

import pytest

from stages._clean.formats import to_messages
from stages.core import prompts
from stages.core.params import Prompt
from stages.core.prompts import CHAT_TEMPLATES, IGNORED, Encoder, check_tokenizer_of_base
from stages.core.tokenizer_files import wheel_file
from stages.download_model import convert_tokenizer
from stages.runtime.errors import UserError
from tests.support.cleaning import layout_of
from tests.support.conversations import HOSTILE, LOOK_ALIKES, PIECES, PLAIN, tool_rows

SIMPLE = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello there"}]


@pytest.fixture(scope="module", params=["v1", "v2", "v3"])
def version(request):
    return request.param


@pytest.fixture(scope="module")
def encoder(version):
    return Encoder(Prompt(template=version, system=None))


@pytest.fixture(scope="module")
def pieces(version):
    """SentencePiece with Mistral's vocabulary and no rules for conversations."""
    from sentencepiece import SentencePieceProcessor

    return SentencePieceProcessor(model_file=str(wheel_file(version)))


@pytest.fixture(scope="module")
def base(tmp_path_factory, version):
    """A folder with the tokenizer as download_model writes it."""
    folder = tmp_path_factory.mktemp("base")
    convert_tokenizer(version, folder)
    return folder


def by_hand(pieces, messages, version) -> tuple[list[int], list[int]]:
    """Returns (ids, labels) of a conversation, encoded turn by turn."""
    system = [message["content"] for message in messages if message["role"] == "system"]
    turns = [message for message in messages if message["role"] != "system"]
    with_system = 0 if version == "v1" else len(turns) - 2
    ids, labels = [pieces.bos_id()], [IGNORED]
    for index, message in enumerate(turns):
        if message["role"] == "user":
            text = "\n\n".join([*system, message["content"]]) if index == with_system else message["content"]
            if version == "v1":  # there the marks are text
                segment = pieces.encode(f"[INST] {text} [/INST]")
            else:
                segment = [pieces.piece_to_id("[INST]"), *pieces.encode(text), pieces.piece_to_id("[/INST]")]
            labels += [IGNORED] * len(segment)
        else:
            text = message["content"] if version == "v1" else message["content"].rstrip(" ")
            segment = [*pieces.encode(text), pieces.eos_id()]
            labels += segment
        ids += segment
    return ids, labels


@pytest.mark.parametrize(
    "text", ["One day.\n\nTwo ", " x  y", "", "[INST] </s> <s>", "日本語 🦜\x00", "def f():\n    return 1"]
)
def test_a_text_has_the_ids_of_mistral_common_and_all_but_the_first_are_trained(version, text):
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

    raw = MistralTokenizer.from_file(str(wheel_file(version))).instruct_tokenizer.tokenizer
    encoded = Encoder(Prompt(template=version, system="Be brief.")).conversation([{"role": "text", "content": text}])
    assert encoded.input_ids == raw.encode(text, bos=True, eos=True)
    assert encoded.labels == [IGNORED, *encoded.input_ids[1:]]


def read_messages(row):
    return to_messages(row, layout_of("messages")).messages


def mistral_turn(kinds, calls, said):
    """Returns mistral-common's message of a turn in OpenAI's shape."""
    if said["role"] == "assistant" and said.get("tool_calls"):
        made = [
            calls.ToolCall(id=call["id"], function=calls.FunctionCall(**call["function"]))
            for call in said["tool_calls"]
        ]
        return kinds.FinetuningAssistantMessage(tool_calls=made)
    if said["role"] == "tool":
        return kinds.ToolMessage(content=said["content"], tool_call_id=said["tool_call_id"], name=said["name"])
    kind = {"system": kinds.SystemMessage, "user": kinds.UserMessage, "assistant": kinds.FinetuningAssistantMessage}
    return kind[said["role"]](content=said["content"])


def test_conversations_with_tools_have_the_ids_of_mistral_commons_finetuning_mode():
    from mistral_common.protocol.instruct import messages as kinds
    from mistral_common.protocol.instruct import tool_calls as calls
    from mistral_common.protocol.instruct.request import ChatCompletionRequest
    from mistral_common.protocol.instruct.validator import ValidationMode
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

    mistral = MistralTokenizer.from_file(str(wheel_file("v3")), mode=ValidationMode.finetuning)
    encoder, read = Encoder(Prompt(template="v3", system=None)), read_messages
    rows = tool_rows(1000)
    assert sum("tool_calls" in row["messages"][-1] for row in rows) > 100
    for row in rows:
        typed = [mistral_turn(kinds, calls, said) for said in row["messages"]]
        tools = [calls.Tool.model_validate(tool) for tool in row.get("tools", [])]
        expected = mistral.encode_chat_completion(ChatCompletionRequest(messages=typed, tools=tools or None)).tokens
        assert encoder.conversation(read(row)).input_ids == expected, row


def test_calls_are_trained_with_their_mark_and_results_are_not():
    encoder, read = Encoder(Prompt(template="v3", system=None)), read_messages
    for row in tool_rows(100, seed=1):
        messages = read(row)
        labels = encoder.conversation(messages).labels
        trained = "".join(
            {"assistant": message["content"].rstrip(" "), "tool_calls": f"[TOOL_CALLS]{message['content']}"}[
                message["role"]
            ]
            + "</s>"
            for message in messages
            if message["role"] in ("assistant", "tool_calls")
        )
        assert encoder.spell([label for label in labels if label != IGNORED]) == trained


def test_a_generated_answer_calls_tools_only_if_it_begins_with_the_token_for_that():
    encoder = Encoder(Prompt(template="v3", system=None))
    call = encoder.pieces.piece_to_id("[TOOL_CALLS]")
    assert encoder.begins_with([call, 781], "[TOOL_CALLS]")
    assert encoder.begins_with([call], "[TOOL_CALLS]")
    for ids in ([], [781, call], [encoder.eos], encoder.pieces.encode("[TOOL_CALLS]")):
        assert not encoder.begins_with(ids, "[TOOL_CALLS]")
    # v1 does not have the token. Its id is then the one of an unknown piece, which is text.
    old = Encoder(Prompt(template="v1", system=None))
    assert not old.begins_with([old.pieces.unk_id()], "[TOOL_CALLS]")


def test_of_tools_a_conversation_with_a_system_prompt_has_both_in_their_places():
    """The tools come before the last user's turn, and the system prompt is in it."""
    encoder = Encoder(Prompt(template="v3", system="of params"))
    talk = [*SIMPLE, {"role": "user", "content": "Sure?"}, {"role": "assistant", "content": "Yes "}]
    tools, system = {"role": "tools", "content": "[{}]"}, {"role": "system", "content": "Be kind"}
    for messages, prompt in (([tools, *talk], "of params"), ([tools, system, *talk], "Be kind")):
        assert encoder.turns(messages) == [
            ("Hi", "user", False),
            ("Hello there", "assistant", True),
            ("[{}]", "tools", False),
            (f"{prompt}\n\nSure?", "user", False),
            ("Yes", "assistant", True),
        ]
    called = [tools, talk[0], {"role": "tool_calls", "content": "[] "}, {"role": "tool", "content": "{}"}, talk[1]]
    called[2]["train"] = False
    assert encoder.turns(called) == [
        ("[{}]", "tools", False),
        ("of params\n\nHi", "user", False),
        ("[] ", "tool_calls", False),
        ("{}", "tool", False),
        ("Hello there", "assistant", True),
    ]
    del called[2]["train"]
    assert encoder.turns(called)[2] == ("[] ", "tool_calls", True)


@pytest.mark.parametrize("trained", [True, False])
def test_a_text_has_no_system_prompt_and_may_be_untrained(trained):
    encoder = Encoder(Prompt(template="v3", system="of params"))
    message = {"role": "text", "content": "Once "} | ({} if trained else {"train": False})
    assert encoder.turns([message]) == [("Once ", "text", trained)]


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_tools_are_refused_with_a_template_that_has_no_form_for_them(version):
    encoder, read = (
        Encoder(Prompt(template=version, system=None)),
        read_messages,
    )
    only_tools = {**tool_rows(2)[1], "messages": SIMPLE}
    with_calls = {"messages": next(row["messages"] for row in tool_rows(20) if len(row["messages"]) > 4)}
    for row in (only_tools, with_calls):
        with pytest.raises(
            UserError, match=rf"prompt.template {version} has no form for them here. Set prompt.template: v3"
        ):
            encoder.conversation(read(row))


def test_conversations_of_a_batch_are_encoded_as_each_by_itself(encoder):
    longer = [*SIMPLE, {"role": "user", "content": "Sure?"}, {"role": "assistant", "content": "No"}]
    batch = [SIMPLE, longer, SIMPLE[:1], longer]
    assert encoder.conversations(batch) == [encoder.conversation(messages) for messages in batch]


def test_a_turn_that_is_not_trained_has_the_same_ids_and_no_labels(encoder):
    messages = [*SIMPLE, {"role": "user", "content": "Sure?"}, {"role": "assistant", "content": "No"}]
    whole, first = encoder.conversation(messages), encoder.conversation(SIMPLE)
    marked = encoder.conversation([messages[0], messages[1] | {"train": False}, *messages[2:]])
    assert marked.input_ids == whole.input_ids
    assert marked.labels == [IGNORED] * len(first.labels) + whole.labels[len(first.labels) :]


@pytest.mark.parametrize("answer", ["an X", "an X  ", "XX XX", " \n "])
def test_of_an_answers_end_nothing_but_blanks_is_dropped(encoder, pieces, version, answer):
    messages = [SIMPLE[0], {"role": "assistant", "content": answer}]
    found = encoder.conversation(messages)
    assert (found.input_ids, found.labels) == by_hand(pieces, messages, version)


@pytest.mark.parametrize(("cores", "threads"), [(3, 3), (None, 1)])  # Python does not know the cores of every machine
def test_conversations_are_encoded_by_one_thread_a_core(encoder, pieces, monkeypatch, cores, threads):
    asked = []

    def encode(texts, **options):
        asked.append(options.get("num_threads"))
        return pieces.encode(texts, **options)

    monkeypatch.setattr(encoder, "pieces", SimpleNamespace(encode=encode))
    monkeypatch.setattr(prompts.os, "cpu_count", lambda: cores)
    encoder.conversation(SIMPLE)
    assert asked == [threads]


def test_the_ids_are_those_of_mistral_commons_finetuning_mode(encoder, version):
    from mistral_common.protocol.instruct import messages as kinds
    from mistral_common.protocol.instruct.request import ChatCompletionRequest
    from mistral_common.protocol.instruct.validator import ValidationMode
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

    mistral = MistralTokenizer.from_file(str(wheel_file(version)), mode=ValidationMode.finetuning)
    assert mistral.instruct_tokenizer.tokenizer.version == version
    kind = {
        "system": kinds.SystemMessage,
        "user": kinds.UserMessage,
        "assistant": kinds.FinetuningAssistantMessage,
    }
    for messages in PLAIN + HOSTILE:
        typed = [kind[message["role"]](content=message["content"]) for message in messages]
        expected = mistral.encode_chat_completion(ChatCompletionRequest(messages=typed)).tokens
        assert encoder.conversation(messages).input_ids == expected, messages


def test_the_answers_and_their_ends_are_trained_and_nothing_else(encoder, pieces, version):
    for messages in PLAIN + HOSTILE:
        encoded = encoder.conversation(messages)
        assert (encoded.input_ids, encoded.labels) == by_hand(pieces, messages, version), messages


def test_the_labels_decode_to_the_answers(encoder, version):
    for messages in PLAIN + HOSTILE:
        answers, current = [], []
        for label in encoder.conversation(messages).labels:
            if label != IGNORED:
                current.append(label)
            if label == encoder.eos:
                answers.append(encoder.decode(current))
                current = []
        assert not current
        # From v2 on mistral-common drops the blanks, not the new lines, at the end of an answer.
        expected = [message["content"] for message in messages if message["role"] == "assistant"]
        assert answers == (expected if version == "v1" else [text.rstrip(" ") for text in expected])


def test_look_alikes_of_control_tokens_stay_text(encoder, pieces, version):
    for messages in HOSTILE:
        ids = encoder.conversation(messages).input_ids
        users = sum(message["role"] == "user" for message in messages)
        control = [token for token in ids if pieces.is_control(token) or pieces.is_unknown(token)]
        marks = [] if version == "v1" else [pieces.piece_to_id("[INST]"), pieces.piece_to_id("[/INST]")]
        assert control == [encoder.bos, *[*marks, encoder.eos] * users], messages


@pytest.mark.parametrize("text", LOOK_ALIKES)
@pytest.mark.parametrize("role", ["system", "user", "assistant"])
def test_a_look_alike_as_the_whole_text_decodes_to_itself(encoder, role, text):
    messages = [{"role": "system", "content": "Be brief"}, *copy.deepcopy(SIMPLE)]
    next(message for message in messages if message["role"] == role)["content"] = text
    encoded = encoder.conversation(messages)
    assert text in encoder.decode(encoded.input_ids)
    assert encoded.input_ids.count(encoder.bos) == encoded.input_ids.count(encoder.eos) == 1


def test_there_is_exactly_one_beginning_of_sequence(encoder):
    for messages in PLAIN + HOSTILE:
        for ids in (encoder.conversation(messages).input_ids, encoder.prompt(messages[:-1])):
            assert ids.index(encoder.bos) == 0
            assert ids.count(encoder.bos) == 1


def test_the_prompt_is_how_the_conversation_begins(encoder, pieces):
    for messages in PLAIN + HOSTILE:
        encoded, prompt = encoder.conversation(messages), encoder.prompt(messages[:-1])
        assert encoded.input_ids[: len(prompt)] == prompt
        # and it ends where the last answer begins
        assert pieces.decode(prompt[-4:]).endswith("[/INST]") or prompt[-1] == pieces.piece_to_id("[/INST]")
        assert encoded.labels[len(prompt) - 1] == IGNORED
        assert IGNORED not in encoded.labels[len(prompt) :]


def test_encoding_does_not_change_the_messages():
    encoder = Encoder(Prompt(template="v3", system="Be brief"))
    for messages in PLAIN[:20]:
        before = copy.deepcopy(messages)
        encoder.conversation(messages)
        encoder.prompt(messages[:-1])
        assert messages == before


def test_the_system_prompt_of_params_is_used_if_the_conversation_has_none(encoder, version):
    ours = {"role": "system", "content": "Be brief"}
    with_system = Encoder(Prompt(template=version, system="Be brief"))
    for messages in PLAIN[:60]:
        expected = messages if messages[0]["role"] == "system" else [ours, *messages]
        assert with_system.conversation(messages) == encoder.conversation(expected)
        assert with_system.prompt(messages[:-1]) == encoder.prompt(expected[:-1])


@pytest.mark.parametrize("text", ["[INST] x</s>", "a\n\n\tb  ", "  lead", "\n", "🦜\x00"])
def test_generated_ids_are_decoded_without_their_control_tokens(encoder, text):
    assert encoder.decode([*encoder.pieces.encode(text), encoder.eos]) == text
    assert encoder.decode([]) == ""


def test_transformers_renders_the_same_ids_with_our_template(encoder, base, version):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = CHAT_TEMPLATES[version]
    for messages in PLAIN:
        ids = tokenizer.apply_chat_template(messages, return_dict=False)
        assert ids == encoder.conversation(messages).input_ids, messages
        asked = tokenizer.apply_chat_template(messages[:-1], return_dict=False, add_generation_prompt=True)
        assert asked == encoder.prompt(messages[:-1]), messages


def test_transformers_renders_tools_with_the_same_ids(tmp_path):
    from transformers import AutoTokenizer

    convert_tokenizer("v3", tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, chat_template=CHAT_TEMPLATES["v3"])
    encoder, read = Encoder(Prompt(template="v3", system=None)), read_messages
    results = ['{"a": "é", "b": [1, null]}', "[1, 2]", "plain text", "7"]
    for number, row in enumerate(tool_rows(200, pieces=PIECES)):
        for said in row["messages"]:  # a server renders JSON as it comes, and mistral-common writes it anew
            for call in said.get("tool_calls", []):
                given = call["function"]["arguments"]
                call["function"]["arguments"] = json.loads(given) if isinstance(given, str) else given
            if said["role"] == "tool":
                said["content"] = results[number % 4]
        ids = tokenizer.apply_chat_template(row["messages"], tools=row.get("tools"), return_dict=False)
        assert ids == encoder.conversation(read(row)).input_ids, row


def test_the_template_refuses_a_text_and_calls_in_one_turn(tmp_path):
    import jinja2
    from transformers import AutoTokenizer

    convert_tokenizer("v3", tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, chat_template=CHAT_TEMPLATES["v3"])
    row = next(row for row in tool_rows(9) if "tool_calls" in row["messages"][-1])
    row["messages"][-1]["content"] = "Calling"
    with pytest.raises(jinja2.TemplateError, match="a text and tool calls"):
        tokenizer.apply_chat_template(row["messages"], return_dict=False)


@pytest.fixture(scope="module")
def served(base, version):
    """served(messages) → the ids that a server makes: it renders the chat template, then tokenizes."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base, chat_template=CHAT_TEMPLATES[version])
    return lambda messages: tokenizer.apply_chat_template(messages, return_dict=False)


def test_a_growing_conversation_keeps_its_beginning_except_with_a_system_prompt_in_v2_and_v3(served, version):
    longer = [messages for messages in PLAIN if len(messages) > 4]
    assert {messages[0]["role"] for messages in longer} == {"system", "user"}
    for messages in longer:
        earlier, later = served(messages[:-3]), served(messages[:-1])
        moved = messages[0]["role"] == "system" and version != "v1"
        assert (later[: len(earlier)] == earlier) is not moved, messages
        before = messages[1:-4] if moved else messages[:-4]
        if before[1:]:  # what comes before the turn with the system prompt does not change
            shared = served(before)
            assert earlier[: len(shared)] == later[: len(shared)] == shared


def test_a_server_takes_look_alikes_for_control_tokens(encoder, served, pieces, version):
    for text in ("</s>", "<s>") if version == "v1" else ("[INST]", "[/INST]", "</s>", "<s>"):
        messages = [{"role": "user", "content": f"What is {text} for?"}]
        at_server, trained = served(messages), encoder.prompt(messages)
        token = pieces.piece_to_id(text)
        assert at_server.count(token) == trained.count(token) + 1
        assert text in encoder.decode(trained)
    if version == "v1":
        marks = [{"role": "user", "content": "What are [INST] and [/INST] for?"}]
        assert served(marks) == encoder.prompt(marks)


def test_blanks_after_an_earlier_answer_are_dropped_only_in_v2_and_v3(served, version):
    def conversation(ending):
        return [*SIMPLE[:1], {"role": "assistant", "content": f"Hello there{ending}"}, {"role": "user", "content": "?"}]

    assert (served(conversation("  ")) == served(conversation(""))) is (version != "v1")
    assert served(conversation("\n")) != served(conversation(""))


def test_a_server_does_not_know_the_system_prompt_of_params(served, version):
    encoder = Encoder(Prompt(template=version, system="Be brief"))
    assert served(SIMPLE[:1]) != encoder.prompt(SIMPLE[:1])
    assert served([{"role": "system", "content": "Be brief"}, *SIMPLE[:1]]) == encoder.prompt(SIMPLE[:1])


def test_a_rendered_prompt_that_is_tokenized_as_plain_text_has_two_beginnings(encoder, base, version):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base, chat_template=CHAT_TEMPLATES[version])
    text = tokenizer.apply_chat_template(SIMPLE[:1], tokenize=False)
    assert tokenizer(text).input_ids == [encoder.bos, *encoder.prompt(SIMPLE[:1])]
    assert tokenizer(text, add_special_tokens=False).input_ids == encoder.prompt(SIMPLE[:1])


def test_the_template_refuses_a_role_that_it_would_drop(base, version):
    from jinja2 import TemplateError
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    with pytest.raises(TemplateError, match="unknown role function"):
        tokenizer.apply_chat_template(
            [*SIMPLE, {"role": "function", "content": "1"}], chat_template=CHAT_TEMPLATES[version]
        )


def test_the_tokenizer_that_the_template_encodes_with_is_accepted(encoder, base):
    check_tokenizer_of_base(encoder, base)


def swapped(content):
    vocabulary = content["model"]["vocab"]
    vocabulary["▁the"], vocabulary["▁of"] = vocabulary["▁of"], vocabulary["▁the"]


def extended(content):
    token = {"id": len(content["model"]["vocab"]), "content": "[PAD]", "special": True}
    flags = dict.fromkeys(["single_word", "lstrip", "rstrip", "normalized"], False)
    content["added_tokens"].append(token | flags)


def shortened(content):
    del content["model"]["vocab"]["梦"]
    content["model"]["merges"] = [pair for pair in content["model"]["merges"] if "梦" not in "".join(pair)]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (swapped, "They differ in 2 tokens; the first is "),
        (extended, "They differ in 0 tokens; the first is 32{}, 'more tokens' there and 'none' here"),
        (shortened, "They differ in 1 token; the first is "),
    ],
)
def test_another_vocabulary_is_refused(encoder, base, tmp_path, change, words):
    content = json.loads((base / "tokenizer.json").read_text(encoding="utf-8"))
    change(content)
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(UserError) as caught:
        check_tokenizer_of_base(encoder, tmp_path)
    text = str(caught.value)
    assert f"prompt.template encodes with another vocabulary than {tmp_path / 'tokenizer.json'}" in text
    assert words.format("000" if encoder.vocabulary[3:4] != ["[INST]"] else "768") in text


def test_a_base_without_a_tokenizer_is_refused(encoder, base, tmp_path):
    shutil.copy(base / "tokenizer_config.json", tmp_path)
    with pytest.raises(UserError, match=r"tokenizer\.json is missing: .* \(see model\.tokenizer\)"):
        check_tokenizer_of_base(encoder, tmp_path)
