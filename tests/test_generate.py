"""Compares tools.generate with direct calls of transformers and PEFT, on a real Mistral of two layers."""

import contextlib
import fcntl
import io
import json
import shutil
import signal
import subprocess
import sys
import time
import unicodedata
from functools import cache

import peft
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from stages.core.decoding import Decoding
from stages.core.params import Prompt, load_params
from stages.core.paths import ADAPTER, BASE, MERGED, PARAMS
from stages.core.prompts import CHAT_TEMPLATES, Encoder
from stages.core.quantization import double_quantize, quantized_modules
from stages.runtime.errors import UserError
from tests.support.merging import make_adapter, merged_folder
from tests.support.project import ROOT
from tools._generate import terminal
from tools._generate.speakers import load_speaker, prompts_for
from tools._generate.terminal import Stream, escaped
from tools.generate import main, read_options

COUNT = 12  # new tokens
ASKED = "Add 3 to a number."
NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}


@pytest.fixture(scope="module")
def made(small_base, params_of, tmp_path_factory):
    """A folder with params.yaml and the three models."""
    folder = tmp_path_factory.mktemp("made")
    params = params_of(lora={"r": 4, "alpha": 8}, machine={"device": "cpu"})
    text = (ROOT / "tests/params.yaml").read_text()
    (folder / PARAMS).write_text(text.replace("device: auto", "device: cpu").replace("tokens: 192", f"tokens: {COUNT}"))
    with contextlib.chdir(folder):
        (folder / "models").mkdir()
        shutil.copytree(small_base, BASE)
        make_adapter(BASE, params, ADAPTER, std=0.2)
        merged_folder(params, MERGED)
    return folder


@pytest.fixture(autouse=True)
def place(made, monkeypatch):
    monkeypatch.chdir(made)
    return made


@pytest.fixture(scope="module")
def encoder():
    return Encoder(Prompt(template="v3", system=None))


@cache
def params_here():
    return load_params()


def run(*options):
    params = params_here()
    main(read_options(params, list(options)), params)


def printed(capsys, *options) -> str:
    run(*options)
    return capsys.readouterr().out


def reference(name):
    """The model as its makers load it.

    Only double quantization is ours, since bitsandbytes' differs between devices.
    """
    bf16 = {"dtype": torch.bfloat16}
    if name not in ("adapter", "base in 4 bits"):
        return AutoModelForCausalLM.from_pretrained(name, **bf16)
    config = BitsAndBytesConfig(**NF4, bnb_4bit_compute_dtype=torch.bfloat16)
    base = AutoModelForCausalLM.from_pretrained(BASE, **bf16, quantization_config=config)
    for _, module in quantized_modules(base):  # as in load_model(), or it rounds differently
        double_quantize(module)
        module.support_avx512bf16_for_cpu = False
    return base if name == "base in 4 bits" else peft.PeftModel.from_pretrained(base, ADAPTER)


def answered(model, messages, **options) -> str:
    """The answer by transformers only, from its tokenizer and the chat template to the text."""
    tokenizer = AutoTokenizer.from_pretrained(BASE, chat_template=CHAT_TEMPLATES["v3"])
    inputs = tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=True)
    options = {"do_sample": False} | options
    found = model.generate(**inputs, max_new_tokens=COUNT, pad_token_id=0, **options)
    return tokenizer.decode(found[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def asked(text):
    return [{"role": "user", "content": text}]


@pytest.fixture(scope="module")
def expected(made):
    """{name: the answer to ASKED}."""
    with contextlib.chdir(made):
        folders = {"base": BASE, "tuned": MERGED, "adapter": "adapter", "base in 4 bits": "base in 4 bits"}
        found = {name: answered(reference(folder), asked(ASKED)) for name, folder in folders.items()}
    assert len(set(found.values())) == 4
    return found


@pytest.mark.parametrize("name", ["base", "tuned", "adapter"])
def test_the_answer_is_that_of_transformers(capsys, expected, name):
    assert printed(capsys, ASKED, "--model", name) == escaped(expected[name]) + "\n"


def test_a_path_names_a_model_or_an_adapter(capsys, expected):
    assert printed(capsys, ASKED, "-m", str(MERGED.resolve())) == escaped(expected["tuned"]) + "\n"
    assert printed(capsys, ASKED, "-m", str(ADAPTER.resolve())) == escaped(expected["adapter"]) + "\n"


def test_base_and_tuned_stand_under_their_names(capsys, expected):
    found = printed(capsys, ASKED, "--compare")
    assert found == f"── base\n{escaped(expected['base'])}\n── tuned\n{escaped(expected['tuned'])}\n"


def test_an_adapter_is_compared_with_its_base_in_one_model(capsys, expected):
    found = printed(capsys, ASKED, "--compare", "--model", "adapter")
    first, second = (escaped(expected[name]) for name in ("base in 4 bits", "adapter"))
    assert found == f"── base in 4 bits\n{first}\n── adapter\n{second}\n"


def test_a_prompt_from_stdin_and_a_system_prompt(capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO(ASKED))
    messages = [{"role": "system", "content": "Be brief"}, *asked(ASKED)]
    assert printed(capsys, "-", "--system", "Be brief") == escaped(answered(reference(MERGED), messages)) + "\n"


def test_the_chat_remembers_and_forgets(capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("One\\\nline\n\nTwo\n/reset\nTwo\n"))
    found = printed(capsys)
    model = reference(MERGED)
    first = answered(model, asked("One\nline"))
    talk = [*asked("One\nline"), {"role": "assistant", "content": first}, *asked("Two")]
    answers = [first, answered(model, talk), answered(model, asked("Two"))]
    assert len(set(answers)) == 3
    assert found == "".join(escaped(answer) + "\n" for answer in answers)


@pytest.mark.parametrize("end", ["exit", "quit", "/exit", " /quit ", None])
def test_a_chat_ends_with_a_word_or_with_the_input(capsys, monkeypatch, end):
    """Without a line more the input has ended, as after Ctrl-D."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("" if end is None else f"{end}\nOne\n"))
    assert printed(capsys) == ""


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        ("", ""),
        (" \t", ""),
        ("/help", f"{terminal.HELP}\n"),
        ("/hlep", f"there is no command /hlep\n{terminal.HELP}\n"),
    ],
)
def test_an_empty_line_and_a_command_are_not_sent_to_the_model(capsys, monkeypatch, typed, shown):
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{typed}\n"))
    monkeypatch.setattr(terminal, "stream_answer", lambda *_, **__: pytest.fail("it was sent"))
    assert printed(capsys) == shown


def test_a_line_that_only_begins_like_a_command_is_sent(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("/etc/passwd is what?\nexit the loop\n"))
    sent = []

    def take(speaker, messages, seed, headed):
        sent.append(messages[-1]["content"])
        return ""

    monkeypatch.setattr(terminal, "stream_answer", take)
    run()
    assert sent == ["/etc/passwd is what?", "exit the loop"]


def test_an_empty_standard_input_is_no_prompt(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n"))
    assert refused("-") == "the prompt on standard input is empty. Write something there"


def test_a_chat_with_two_models_gives_each_its_own_memory(capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("One\nTwo\n"))
    found = printed(capsys, "--compare")
    parts = []
    for name, model in (("base", reference(BASE)), ("tuned", reference(MERGED))):
        first = answered(model, asked("One"))
        talk = [*asked("One"), {"role": "assistant", "content": first}, *asked("Two")]
        parts.append([f"── {name}\n{escaped(text)}\n" for text in (first, answered(model, talk))])
    assert found == "".join(parts[speaker][turn] for turn in (0, 1) for speaker in (0, 1))


def test_a_chat_outlives_a_turn_that_is_too_long_and_an_answer_that_is_stopped(capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("x " * 600 + "\nOne\nTwo\n"))
    put, calls = Stream.put, []

    def stopping(stream, ids):
        put(stream, ids)
        calls.append(stream.text)
        if len(calls) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(terminal.Stream, "put", stopping)
    run()
    out, err = capsys.readouterr()
    assert "tokens, and with --max-new-tokens 12 that is more than the model's context of 512" in err
    assert "or start again with /reset" in err
    assert "(stopped)" in err
    talk = [*asked("One"), {"role": "assistant", "content": calls[3]}, *asked("Two")]
    assert calls[3]
    assert out.endswith(escaped(answered(reference(MERGED), talk)) + "\n")


def test_draws_follow_the_seed_and_the_temperature(capsys):
    drawn = ("--temperature", "2", "--seed")
    one, again, other = (printed(capsys, ASKED, *drawn, seed) for seed in ("1", "1", "2"))
    assert one == again != other
    torch.manual_seed(1)
    assert one == escaped(answered(reference(MERGED), asked(ASKED), do_sample=True, temperature=2.0, top_k=0)) + "\n"


def test_a_high_temperature_draws_from_the_whole_vocabulary(made):
    """transformers' own default draws from the 50 most likely tokens."""
    params = params_here()
    encoder = Encoder(params.prompt)
    options = read_options(params, ["--temperature", "1000", "--max-new-tokens", "200"])
    decoding = Decoding(options.max_new_tokens, options.temperature)
    speaker = load_speaker("base", params, prompts_for("base", encoder, decoding))
    (ids,) = speaker.answer([encoder.prompt(asked(ASKED))], seed=0)
    assert len(set(ids)) > 190


@given(ids=st.lists(st.one_of(st.integers(0, 32767), st.integers(771, 1026)), max_size=30))
@settings(max_examples=50, deadline=None)
def test_what_is_streamed_adds_up_to_the_answer_in_whole_characters(encoder, ids):
    given_out = []
    stream = Stream(encoder, given_out.append)
    stream.put(torch.tensor([[1, 2, 3]]))
    for token in ids:
        stream.put(torch.tensor([token]))
        assert not "".join(given_out).endswith("\ufffd")
    stream.end()
    assert "".join(given_out) == stream.text == encoder.decode(ids)


def test_a_character_of_several_tokens_is_given_out_once_it_is_whole(encoder):
    given_out = []
    stream = Stream(encoder, given_out.append)
    ids = encoder.pieces.encode("x🧿y")
    stream.put(torch.tensor([[1]]))
    for token in ids:
        stream.put(torch.tensor([token]))
    assert len(ids) > len(given_out)
    assert "🧿" in given_out


@given(st.text())
@settings(max_examples=50, deadline=None)
def test_no_control_character_reaches_the_terminal(text):
    shown = escaped(text)
    assert not [char for char in shown if unicodedata.category(char) == "Cc" and char not in "\n\t"]
    assert not [char for char in shown if unicodedata.bidirectional(char) in ("RLO", "LRO", "RLE", "LRE", "RLI", "LRI")]


def test_a_streamed_answer_colours_and_renames_no_terminal(encoder, capsys):
    stream = Stream(encoder, terminal.print_escaped)
    stream.put(torch.tensor([[1]]))
    for token in [encoder.pieces.piece_to_id("<0x1B>"), *encoder.pieces.encode("[31mred"), encoder.eos]:
        stream.put(torch.tensor([token]))
    stream.end()
    assert stream.text == "\x1b [31mred"
    assert capsys.readouterr().out == "\\x1b [31mred"


def test_what_colours_or_renames_a_terminal_is_spelled_out():
    assert escaped("\x1b[31mred\x1b]0;title\x07\r\x9b2J\u202e 日本語👩‍👧\n\tx") == (
        "\\x1b[31mred\\x1b]0;title\\x07\\r\\x9b2J\\u202e 日本語👩‍👧\n\tx"
    )


def write(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return str(path)


ROWS = [
    {"id": 1, "prompt": ASKED},
    {"prompt": "Zähle bis drei 🧿", "deep": {"a": [1, None]}},
    {"messages": [{"role": "system", "content": "Be brief"}, {"role": "user", "content": "Hi", "name": "x"}]},
    {"messages": [*asked("Hi"), {"role": "assistant", "content": "Hello"}, *asked("And now?")], "source": "y:3"},
    {"prompt": "Write [INST] and </s>."},
]


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_rows_come_back_in_their_order_with_their_fields_and_the_answer(tmp_path, capsys):
    source, output = write(tmp_path / "rows.jsonl", ROWS), tmp_path / "new" / "answers.jsonl"
    assert "5 rows in" in printed(capsys, "--input", source, "--output", str(output), "--batch-size", "1")
    found = read(output)
    model = reference(MERGED)
    for row, asked_for in zip(found, ROWS, strict=True):
        assert {name: row[name] for name in asked_for} == asked_for
        assert row.keys() - asked_for.keys() == {"answer", "answer_ended"}
        assert row["answer_ended"] is False
    for index in range(4):  # in the last one transformers reads the look-alikes as control tokens
        messages = ROWS[index].get("messages") or asked(ROWS[index]["prompt"])
        assert found[index]["answer"] == answered(model, messages)


@pytest.mark.parametrize("options", [(), ("--temperature", "2")])
def test_a_file_that_was_cut_off_anywhere_ends_with_the_same_bytes(tmp_path, capsys, options):
    source, output = write(tmp_path / "rows.jsonl", ROWS), tmp_path / "answers.jsonl"
    command = ("--input", source, "--output", str(output), "--batch-size", "2", *options)
    run(*command)
    whole = output.read_bytes()
    lines = whole.splitlines(keepends=True)
    for kept, there in ((len(lines[0]) - 1, 0), (len(lines[0]), 1), (len(whole) - 20, 4)):
        output.write_bytes(whole[:kept])
        capsys.readouterr()
        run(*command)
        assert output.read_bytes() == whole
        assert f"5 rows in {output}, of which {there} were there already" in capsys.readouterr().out


def test_rows_added_to_the_input_are_answered_and_nothing_else(tmp_path, capsys):
    source, output = write(tmp_path / "rows.jsonl", ROWS[:3]), tmp_path / "answers.jsonl"
    command = ("--input", source, "--output", str(output))
    run(*command)
    before = output.read_bytes()
    write(tmp_path / "rows.jsonl", ROWS)
    run(*command)
    assert output.read_bytes().startswith(before)
    assert len(read(output)) == 5
    assert "5 rows in" in capsys.readouterr().out


def refused(*options) -> str:
    with pytest.raises(UserError) as caught:
        run(*options)
    return str(caught.value)


def test_answers_made_otherwise_or_to_other_rows_are_not_mixed(tmp_path):
    source, output = write(tmp_path / "rows.jsonl", ROWS[:2]), tmp_path / "answers.jsonl"
    command = ("--input", source, "--output", str(output))
    run(*command)
    assert "holds answers made with temperature 0.0, not 0.5. Delete" in refused(*command, "--temperature", "0.5")
    assert 'holds answers made with model "models/merged", not "models/base"' in refused(*command, "--model", "base")
    write(tmp_path / "rows.jsonl", ROWS[1:3])
    assert f"{output}:1 does not answer {source}:1" in refused(*command)
    write(tmp_path / "rows.jsonl", ROWS[:1])
    assert f"{output}:2 does not answer any row of {source}" in refused(*command)
    with open(output, "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert "another process writes" in refused(*command)
    (tmp_path / "answers.jsonl.settings.json").unlink()
    assert "which says how they were made, is missing" in refused(*command)


def test_an_adapters_answers_belong_to_the_bits_of_its_base(tmp_path):
    source, output = write(tmp_path / "rows.jsonl", ROWS[:1]), tmp_path / "answers.jsonl"
    options = ["--input", source, "--output", str(output), "--model", "adapter"]
    run(*options)
    params = params_here()
    single = params.model_copy(update={"quantization": params.quantization.model_copy(update={"double_quant": False})})
    with pytest.raises(UserError, match='holds answers made with quantization .*"double_quant": true.* not '):
        main(read_options(single, options), single)


def test_an_output_that_cannot_be_one_is_refused(tmp_path):
    source = write(tmp_path / "rows.jsonl", ROWS[:1])
    for output, words in ((tmp_path, "is a folder"), (tmp_path / "rows.jsonl/x", "lies below a file")):
        assert f"--output {output} {words}" in refused("--input", source, "--output", str(output))
    assert "lies below a file" in refused("--input", source, "--output", str(tmp_path / "rows.jsonl/x/y"))


@pytest.mark.parametrize("text", ["", "[1]", "{"])
def test_settings_that_are_damaged_are_named(tmp_path, text):
    source, output = write(tmp_path / "rows.jsonl", ROWS[:1]), tmp_path / "answers.jsonl"
    write(output, [ROWS[0] | {"answer": "x", "answer_ended": True}])
    (tmp_path / "answers.jsonl.settings.json").write_text(text)
    assert f"{output}.settings.json, which says how" in refused("--input", source, "--output", str(output))


def test_other_weights_in_the_same_place_are_noticed(tmp_path):
    copy = shutil.copytree(MERGED, tmp_path / "model")
    command = ("--input", write(tmp_path / "r.jsonl", ROWS[:1]), "--output", str(tmp_path / "a.jsonl"), "-m", str(copy))
    run(*command)
    for path in BASE.glob("*.safetensors"):
        shutil.copy(path, copy)
    assert "holds answers made with other weights" in refused(*command)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{broken", "not a line of JSON in UTF-8"),
        (b"\xff", "not a line of JSON in UTF-8"),
        ('{"prompt": NaN}', "NaN is no JSON"),
        ('{"prompt": "x", "n": 1e400}', "not a line of JSON in UTF-8"),
        ('["x"]', "not an object"),
        ('{"text": "x"}', "one of `prompt` and `messages`"),
        ('{"prompt": "x", "messages": []}', "one of `prompt` and `messages`"),
        ('{"prompt": 3}', "`prompt` is not a text"),
        ('{"prompt": "\\ud800"}', "half of a surrogate pair"),
        ('{"messages": [{"role": "user"}]}', "not a list of objects"),
        ('{"messages": []}', "they are none"),
        ('{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}', "user, assistant"),
        ('{"messages": [{"role": "tool", "content": "x"}]}', "they are 'tool'"),
        ('{"prompt": "x", "answer": "y"}', "has a field answer already. Choose another with --field"),
        (json.dumps({"prompt": "x " * 600}), "more than the model's context of 512"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line_before_any_answer(tmp_path, line, words):
    source, output = tmp_path / "rows.jsonl", tmp_path / "answers.jsonl"
    source.write_bytes(b'{"prompt": "fine"}\n\n' + (line if isinstance(line, bytes) else line.encode()) + b"\n")
    message = refused("--input", str(source), "--output", str(output))
    assert message.startswith(f"{source}:3: ")
    assert words in message
    assert not output.exists()


@pytest.mark.parametrize(
    ("name", "stage"), [("base", "download_model"), ("tuned", "merge"), ("adapter", "train"), ("models/x", None)]
)
def test_a_missing_model_is_named_with_what_makes_it(tmp_path, monkeypatch, made, name, stage):
    shutil.copy(made / PARAMS, tmp_path)
    monkeypatch.chdir(tmp_path)
    message = refused("Hi", "--model", name)
    assert (f"`dvc repro {stage}` makes it" if stage else "models/x holds no model") in message


def test_a_model_without_weights_or_context_is_refused_before_anything_is_loaded(tmp_path):
    copy = shutil.copytree(MERGED, tmp_path / "model")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "max_position_embeddings"}))
    assert "max_position_embeddings is None, not a whole number" in refused("Hi", "-m", str(copy))
    (copy / "config.json").write_text("[]")
    assert f"{copy}/config.json holds a JSON list" in refused("Hi", "-m", str(copy))
    for path in copy.glob("*.safetensors*"):
        path.unlink()
    assert f"{copy} holds no safetensors weights" in refused("Hi", "-m", str(copy))
    adapter = shutil.copytree(ADAPTER, tmp_path / "adapter")
    (adapter / "adapter_model.safetensors").unlink()
    assert f"{adapter} lacks adapter_model.safetensors. Correct --model" in refused("Hi", "-m", str(adapter))


def test_a_prompt_that_is_too_long_says_by_how_much(encoder):
    long = "x " * 500
    count = len(encoder.prompt(asked(long)))
    assert f"the prompt has {count} tokens, and with --max-new-tokens 12" in refused(long)


@pytest.mark.parametrize(
    "options",
    [
        ("--input", "x"),
        ("Hi", "--input", "x", "--output", "y"),
        ("--input", "x", "--output", "x"),
        ("--compare", "--input", "x", "--output", "y"),
        ("--compare", "--model", "base"),
        ("--temperature", "-1"),
        ("--max-new-tokens", "0"),
    ],
)
def test_options_that_contradict_each_other_are_refused(capsys, options):
    with pytest.raises(SystemExit) as ended:
        read_options(params_here(), list(options))
    assert ended.value.code == 2
    assert "error: " in capsys.readouterr().err


def started(*options, **more):
    return subprocess.Popen(
        [sys.executable, "-m", "tools.generate", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **more,
    )


@pytest.fixture
def ours(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on_and_ends_as_if_it_never_was(tmp_path, ours):
    rows = [{"prompt": f"{ASKED} {number}"} for number in range(60)]
    source = write(tmp_path / "rows.jsonl", rows)
    files = [tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"]
    commands = [("--input", source, "--output", str(file), "--batch-size", "2") for file in files]
    run(*commands[0])
    process = started(*commands[1])
    until = time.monotonic() + 300
    while not (files[1].exists() and files[1].stat().st_size > 1000) and process.poll() is None:
        assert time.monotonic() < until
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    before = files[1].read_bytes()
    assert 0 < before.count(b"\n") < 60
    files[1].write_bytes(before + b'{"prompt": "torn')
    printed = started(*commands[1]).communicate(timeout=300)[0]
    assert f"of which {before.count(bytes([10]))} were there already" in printed
    assert files[1].read_bytes() == files[0].read_bytes()


@pytest.mark.slow
def test_a_byte_that_is_no_utf8_is_a_question_mark(capsys, ours, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "utf-8:strict")
    command = [sys.executable, "-m", "tools.generate", "-"]
    done = subprocess.run(command, input=b"caf\xe9", capture_output=True, check=False, timeout=300)
    assert done.stdout.decode() == printed(capsys, "caf?"), done.stderr.decode()


@pytest.mark.slow
def test_a_mistake_ends_with_one_line_and_a_closed_pipe_with_none(tmp_path, ours):
    done = started("Hi", "--model", "models/x")
    printed = done.communicate(timeout=300)[0]
    assert printed.startswith("generate: models/x holds no model")
    assert printed.count("\n") == done.returncode == 1
    process = started("Hi")
    process.stdout.close()
    assert process.wait(timeout=300) == 1
