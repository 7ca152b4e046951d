"""Compares scores with a loop over single rows, and generation with single prompts, on a real Mistral of two layers."""

import dataclasses
import json
import math
import os
import random
import shutil
import subprocess
import sys

import pytest
from sacrebleu.metrics import CHRF

from stages import evaluate as stage
from stages._evaluate import generation, sandbox, scoring
from stages._evaluate import generation_cache as kept
from stages._evaluate.calls import call_outcome
from stages._evaluate.completion_prompts import complete_answer, completion_prompt
from stages._evaluate.generation import batches, generate
from stages._evaluate.model_run import ModelRun
from stages._evaluate.predictions import (
    check_tests_fail_without_answer,
    count_answers,
    fitting_prompts,
    is_code,
    make_prediction,
    question_text,
    read_answers,
    with_test_outcomes,
)
from stages._evaluate.scoring import FORMAT_TOKENS, answer_body, score, score_completions, token_losses
from stages.core import code_hash
from stages.core.code_hash import module_hash
from stages.core.machine import resolve_machine
from stages.core.models import load_model
from stages.core.params import Prompt
from stages.core.paths import CLEAN, EVALUATIONS, read_json, sha256, write_json
from stages.core.prompts import IGNORED, Encoder
from stages.core.records import Record, read_records, record_file, record_table
from stages.core.statistics import COUNTS, GENERATED
from stages.evaluate import completion_prompts, main
from stages.runtime.errors import UserError
from tests.support.data_files import write_records
from tests.support.project import ROOT

CONTEXT = 256
CPU = {"device": "cpu"}


def save_model(folder, seed):
    import torch
    from transformers import MistralConfig, MistralForCausalLM

    sizes = {"vocab_size": 32768, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": False}
    # Large weights, so that one token is clearly the most likely at each place.
    config = MistralConfig(**sizes, **heads, max_position_embeddings=CONTEXT, initializer_range=0.3)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        MistralForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    write_json(folder / "manifest.json", {"files": {path.name: sha256(path) for path in folder.iterdir()}})
    return folder


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A Mistral of two layers with random weights that reads 256 tokens."""
    return save_model(tmp_path_factory.mktemp("tiny-model"), seed=0)


@pytest.fixture(scope="session")
def model(folder):
    """The Mistral of `folder` in 32 bits, where no two tokens are equally likely."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture
def load(params_of):
    """load(folder) → the model as the stage loads it, on the CPU."""
    return lambda folder: load_model(folder, resolve_machine(params_of(machine=CPU).machine))


@pytest.fixture(scope="module")
def encoder():
    return Encoder(Prompt(template="v3", system=None))


@pytest.fixture
def section(params_of):
    """section(**changes) → the params `evaluate`."""
    small = {"max_rows": 100, "generate_rows": 100, "max_new_tokens": 8, "batch_size": 4}
    return lambda **changes: params_of(evaluate={**small, **changes}).evaluate


def record(*texts) -> Record:
    roles = ["user", "assistant"] * (len(texts) // 2)
    messages = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]
    return Record(f"{random.Random(repr(texts)).getrandbits(128):032x}", messages, f"rows.jsonl:{len(texts[0])}")


def records_of(count) -> list[Record]:
    """Conversations of one exchange, with very different lengths."""
    rng = random.Random(0)
    answers = [" ".join(f"x{n} = {n}" for n in range(rng.randint(3, 12))) for _ in range(count)]
    return [record("Set " + "x " * rng.randint(1, 40) + str(n), answer) for n, answer in enumerate(answers)]


def row_of(encoded) -> dict:
    ids = encoded.input_ids
    return {"input_ids": ids, "labels": encoded.labels, "seq_lengths": [len(ids)]}


def plain_losses(model, ids, labels) -> list[float]:
    """The loss of each label, from one row without padding."""
    import torch

    with torch.no_grad():
        chances = model(input_ids=torch.tensor([ids])).logits[0].float().log_softmax(-1)
    return [-chances[at - 1, labels[at]].item() for at in range(1, len(ids)) if labels[at] != IGNORED]


def plain_hits(model, ids, labels) -> list[float]:
    """Whether each label was the most likely token."""
    import torch

    with torch.no_grad():
        likeliest = model(input_ids=torch.tensor([ids])).logits[0].argmax(-1).tolist()
    return [float(likeliest[at - 1] == labels[at]) for at in range(1, len(ids)) if labels[at] != IGNORED]


def scored(model, records, encoder, params) -> dict:
    """The measures of score(), as the stage makes them."""
    counts = score(model, records, encoder, params, [None] * len(records))
    return stage.metrics_of([each | dict.fromkeys(GENERATED, 1) for each in counts], list(range(len(records))))


def answers_of(model, records, encoder, params) -> list:
    """The predictions of the records with a prompt, as the stage makes them, without its files."""
    prompts = fitting_prompts(records, encoder, params, CONTEXT)
    outputs = generate(model, list(prompts.values()), encoder.eos, params)
    return read_answers([records[place] for place in prompts], outputs, encoder)


def one_by_one(model, prompt, eos, count) -> list[int]:
    """Greedy decoding by forward passes over the whole text."""
    import torch

    ids = list(prompt)
    with torch.no_grad():
        while len(ids) < len(prompt) + count and ids[len(prompt) :][-1:] != [eos]:
            ids.append(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax().item())
    return ids[len(prompt) :]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("def f():\n    return 1", True),
        ("x = 1", True),
        ("import os", True),
        ("raise NotImplementedError", True),
        ("# only a comment\npass", True),
        ('"""A docstring."""\nx = 1', True),
        ("", False),
        ("# only a comment", False),
        ("word", False),
        ("'a string'", False),
        ("first\nsecond", False),
        ("two words", False),
        ("def f(:\n    return 1", False),
        ("    x = 1", False),
        ("x = 1\x00", False),
        ("-" * 5000 + "1", False),
        ("x = '\ufffd🦜'", True),
    ],
)
def test_code_is_what_parses_and_does_something(text, expected):
    assert is_code(text) is expected


@pytest.mark.parametrize("size", [1, 3, 4, 7, 100])
def test_batches_hold_each_row_once_longest_first(size):
    lengths = [random.Random(0).randint(1, 9) for _ in range(10)] + [5, 30, 1, 5]
    groups = batches(lengths, size)
    order = [index for group in groups for index in group]
    assert sorted(order) == list(range(len(lengths)))
    assert [lengths[index] for index in order] == sorted(lengths, reverse=True)
    assert [len(group) for group in groups[:-1]] == [size] * (len(groups) - 1)
    assert 1 <= len(groups[-1]) <= size
    assert batches([], size) == []


@pytest.mark.parametrize("size", [1, 3, 20])
def test_the_losses_are_those_of_each_row_alone(model, encoder, monkeypatch, size):
    monkeypatch.setattr(scoring, "SCORED_AT_ONCE", 50)
    encoded = [encoder.conversation(each.messages) for each in records_of(10)]
    assert len({len(each.input_ids) for each in encoded}) > 5
    found = []
    for start in range(0, len(encoded), size):
        found += token_losses(model, [row_of(each) for each in encoded[start : start + size]])
    assert len(found) == len(encoded)
    for losses, each in zip(found, encoded, strict=True):
        assert losses[0].tolist() == pytest.approx(plain_losses(model, each.input_ids, each.labels), abs=1e-4)
        assert losses.shape == (2, sum(label != IGNORED for label in each.labels))
        assert losses[1].tolist() == plain_hits(model, each.input_ids, each.labels)


def test_packed_conversations_do_not_see_each_other(model, encoder):
    encoded = [encoder.conversation(each.messages) for each in records_of(3)]
    packed = {
        "input_ids": [token for each in encoded for token in each.input_ids],
        "labels": [label for each in encoded for label in each.labels],
        "seq_lengths": [len(each.input_ids) for each in encoded],
    }
    expected = [loss for each in encoded for loss in plain_losses(model, each.input_ids, each.labels)]
    padded = row_of(encoder.conversation(record("x " * 200, "x = 1").messages))
    found = token_losses(model, [packed, padded])[0]
    assert found[0].tolist() == pytest.approx(expected, abs=1e-4)


def test_a_row_without_an_answer_has_no_losses(model, encoder):
    encoded = encoder.conversation(record("Hi", "x = 1").messages)
    silent = {**row_of(encoded), "labels": [IGNORED] * len(encoded.input_ids)}
    assert [losses.shape[1] for losses in token_losses(model, [silent, row_of(encoded)])] == [
        0,
        sum(label != IGNORED for label in encoded.labels),
    ]


@pytest.mark.parametrize("size", [1, 4, 50])
def test_the_score_is_the_mean_over_all_answer_tokens(model, encoder, section, size):
    records = records_of(12)
    found = scored(model, records, encoder, section(batch_size=size))
    encoded = [encoder.conversation(each.messages) for each in records]
    losses = [plain_losses(model, each.input_ids, each.labels) for each in encoded]
    every = [loss for row in losses for loss in row]
    later = [loss for row in losses for loss in row[8:]]
    assert len(later) == len(every) - 8 * len(records)
    assert (found["rows"], found["tokens"]) == (12, len(every))
    assert found["loss"] == pytest.approx(sum(every) / len(every), abs=1e-5)
    assert found["loss_after_8"] == pytest.approx(sum(later) / len(later), abs=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(found["loss"]))
    assert found["perplexity_after_8"] == pytest.approx(math.exp(found["loss_after_8"]))
    hits = [hit for each in encoded for hit in plain_hits(model, each.input_ids, each.labels)]
    assert found["token_accuracy"] == sum(hits) / len(hits)
    answers = "".join(each.messages[1]["content"] for each in records)
    assert found["bits_per_byte"] == pytest.approx(sum(every) / math.log(2) / len(answers.encode()), abs=1e-5)
    assert found["loss_lo"] < found["loss"] < found["loss_hi"]


def test_the_first_tokens_of_every_answer_are_left_out(model, encoder, section):
    talk = record("One", "x = 1; y = 2; z = 3", "Two", "a = 4; b = 5; c = 6; d = 7")
    encoded = encoder.conversation(talk.messages)
    losses = plain_losses(model, encoded.input_ids, encoded.labels)
    first = [label for label in encoded.labels if label != IGNORED].index(encoder.eos) + 1
    later = losses[FORMAT_TOKENS:first] + losses[first + FORMAT_TOKENS :]
    assert len(later) == len(losses) - 2 * FORMAT_TOKENS
    found = scored(model, [talk], encoder, section())
    assert found["loss_after_8"] == pytest.approx(sum(later) / len(later), abs=1e-5)


def test_a_conversation_longer_than_the_context_is_scored_up_to_it(model, encoder, section):
    long = record("Count", " ".join(map(str, range(300))))
    encoded = encoder.conversation(long.messages)
    assert len(encoded.input_ids) > 2 * CONTEXT
    losses = plain_losses(model, encoded.input_ids[:CONTEXT], encoded.labels[:CONTEXT])
    found = scored(model, [long], encoder, section())
    assert found["tokens"] == len(losses)
    assert found["loss"] == pytest.approx(sum(losses) / len(losses), abs=1e-5)


@pytest.fixture(scope="module")
def prompts(encoder):
    return [encoder.prompt(each.messages[:-1]) for each in records_of(10)]


@pytest.mark.parametrize("size", [1, 3, 10])
def test_prompts_in_a_batch_get_the_answers_they_get_alone(model, encoder, prompts, section, size):
    expected = [one_by_one(model, prompt, encoder.eos, 8) for prompt in prompts]
    assert len({tuple(answer) for answer in expected}) > 5
    assert generate(model, prompts, encoder.eos, section(batch_size=size)) == expected


def test_an_answer_is_cut_behind_its_end(model, encoder, prompts, section):
    answers = generate(model, prompts, encoder.eos, section())
    stop = answers[0][3]  # a token in place of </s>
    expected = [one_by_one(model, prompt, stop, 8) for prompt in prompts]
    assert expected[0] == answers[0][: answers[0].index(stop) + 1]
    assert {len(answer) for answer in expected} > {8}
    assert generate(model, prompts, stop, section()) == expected


def test_the_models_own_habits_of_generation_do_not_shape_the_answers(load, tmp_path, encoder, prompts, section):
    save_model(tmp_path, seed=0)
    expected = generate(load(tmp_path), prompts, encoder.eos, section(max_new_tokens=32))
    habits = {"do_sample": True, "temperature": 5.0, "repetition_penalty": 3.0, "no_repeat_ngram_size": 1}
    (tmp_path / "generation_config.json").write_text(json.dumps(habits))
    assert generate(load(tmp_path), prompts, encoder.eos, section(max_new_tokens=32)) == expected


def test_predictions_follow_the_records(model, encoder, section):
    records = records_of(9)
    found = answers_of(model, records, encoder, section(batch_size=2))
    assert [each.id for each in found] == [each.id for each in records]
    for prediction, each in zip(found, records, strict=True):
        prompt = encoder.prompt(each.messages[:-1])
        assert prediction.output == encoder.decode(one_by_one(model, prompt, encoder.eos, 8))
        assert (prediction.source, prediction.prompt) == (each.source, each.messages[0]["content"])
        assert prediction.reference == each.messages[1]["content"]


def test_what_was_asked_is_shown_with_the_system_prompt_and_the_last_turns_before_it():
    talk = record("One", "1", "Two", "2", "Three", "3", "Four", "4")
    assert question_text(talk.messages[:1]) == "One"
    system = {"role": "system", "content": "Be brief."}
    assert question_text([system, *talk.messages[:1]]) == "System: Be brief.\n\nUser: One"
    assert question_text([system, *talk.messages[:-1]]).split("\n\n") == [
        "System: Be brief.",
        "(earlier turns that are not shown: 2)",
        *("User: Two", "Assistant: 2", "User: Three", "Assistant: 3", "User: Four"),
    ]


def test_of_a_long_talk_the_last_answer_is_predicted(model, encoder, section):
    talk = record("One", "x = 1", "Two", "y = 2")
    (prediction,) = answers_of(model, [talk], encoder, section())
    assert (prediction.prompt, prediction.reference) == ("User: One\n\nAssistant: x = 1\n\nUser: Two", "y = 2")
    answer = one_by_one(model, encoder.prompt(talk.messages[:-1]), encoder.eos, 8)
    assert prediction.output == encoder.decode(answer)


def test_only_the_first_rows_are_generated(model, encoder, section):
    records = records_of(6)
    found = answers_of(model, records, encoder, section(generate_rows=4))
    assert [each.id for each in found] == [each.id for each in records[:4]]


def test_a_prompt_that_leaves_no_room_is_skipped(model, encoder, section):
    long, *others = record("x " * 100, "x = 1"), record("Short", "x = 1"), record("Brief", "y = 2")
    room = CONTEXT - len(encoder.prompt(long.messages[:-1]))
    fits = answers_of(model, [long, *others], encoder, section(max_new_tokens=room, generate_rows=2))
    assert [each.id for each in fits] == [long.id, others[0].id]
    skipped = answers_of(model, [long, *others], encoder, section(max_new_tokens=room + 1, generate_rows=2))
    assert [each.id for each in skipped] == [each.id for each in others]


PROSE_AND_CODE = "Try this:\n\n```python\nx = 1\n```\n\nIt sets x."


@pytest.mark.parametrize(
    ("reference", "output", "parses"),
    [
        ("x = 1", "y = 2", True),
        ("x = 1", "def f(", False),
        ("x = 1", "word", False),
        ("x = 1", PROSE_AND_CODE, True),
        (PROSE_AND_CODE, "x = 1", True),
        (PROSE_AND_CODE, PROSE_AND_CODE.replace("x = 1", "x ="), False),
        ("Reset your password first.", "x = 1", None),
        ("Yes", "No", None),
        ("```bash\nls | sort\n```", "```python\nx = 1\n```", None),
    ],
)
def test_only_an_answer_that_should_be_python_is_judged_as_python(encoder, reference, output, parses):
    """The reference decides: whether an answer to a support ticket parses tells nothing."""
    prediction = make_prediction(record("Help me", reference), output, True)
    assert prediction.parses is parses
    counts = count_answers([prediction])[prediction.id]
    assert (counts["code"], counts["parses"]) == (int(parses is not None), int(parses is True))


def test_what_the_answers_are_worth(encoder):
    pieces = encoder.pieces
    answers = {"x = 1": True, "def f(": True, "y = 2": False, "word": True}
    ids = [pieces.encode(text, add_eos=ended) for text, ended in answers.items()]
    records = [record(f"Write {text}", text) for text in answers]
    found = read_answers(records, ids, encoder)
    assert [each.output for each in found] == list(answers)
    assert [each.ended for each in found] == list(answers.values())
    values = list(count_answers(found).values())
    assert [(each["ended"], each["exact"]) for each in values] == [(1, 1), (1, 1), (0, 1), (1, 1)]
    assert [each["chrf"] for each in values] == pytest.approx([100] * 4)
    assert [each["rouge_l"] for each in values] == pytest.approx([1] * 4)
    ids[0] = pieces.encode("x = 1 + y")
    other = read_answers(records, ids, encoder)
    assert count_answers(other)[other[0].id] == {
        **{"answers": 1, "ended": 0, "code": 1, "parses": 1, "exact": 0},
        "chrf": pytest.approx(CHRF().sentence_score("x = 1 + y", ["x = 1"]).score),
        "rouge_l": pytest.approx(2 * (2 / 3) * 1 / (2 / 3 + 1)),  # two words in order, of three and of two
        **{"tested": 0, "passed": 0},
    }


@pytest.fixture
def evaluated(tmp_path, monkeypatch, params_of):
    """evaluated(name, folder, …) → the bytes that the stage writes about the model in `folder`."""
    monkeypatch.chdir(tmp_path)
    CLEAN.mkdir(parents=True)
    write_records(CLEAN / "test.parquet", [*records_of(10), record("🦜 line\u2028separator", "s = '🦜'\n" * 4)][::-1])

    def run(name, folder, **changes):
        values = {"max_rows": 8, "generate_rows": 5, "max_new_tokens": 8, "batch_size": 4}
        main(params_of(prompt={"system": None}, evaluate={**values, **changes}, machine=CPU), name, folder).finish()
        return {
            suffix: (EVALUATIONS / f"{name}.{suffix}").read_bytes()
            for suffix in ("json", "predictions.jsonl", "rows.jsonl")
        }

    return run


def test_intervals_are_there_where_the_rows_suffice(evaluated, folder):
    few = json.loads(evaluated("tuned", folder)["json"])
    assert few["rows"] == 8
    assert not [name for name in few if name.endswith("_lo")]
    more = json.loads(evaluated("tuned", folder, max_rows=11, generate_rows=9)["json"])
    assert more["loss_lo"] < more["loss"] < more["loss_hi"]
    assert "chrf_lo" not in more


def test_any_folder_is_measured_in_the_same_way(evaluated, folder, tmp_path):
    base, again = evaluated("base", folder), evaluated("tuned", folder)
    rows = [[json.loads(line) for line in each["rows.jsonl"].splitlines()] for each in (base, again)]
    assert [{name: row[name] for name in row if name != "plain"} for row in rows[0]] == rows[1]
    assert evaluated("tuned", folder) == again
    other = evaluated("tuned", save_model(tmp_path / "other", seed=1))
    assert other["json"] != base["json"]
    assert json.loads(other["json"]).keys() == json.loads(base["json"]).keys() - {"plain"}


def test_a_base_that_is_not_what_its_manifest_says_is_not_evaluated(evaluated, folder, tmp_path):
    damaged = shutil.copytree(folder, tmp_path / "damaged")
    path = damaged / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    with pytest.raises(UserError, match=r"model\.safetensors has other bytes than its manifest says"):
        evaluated("base", damaged)


def test_the_stage_writes_its_metrics_and_one_line_for_each_answer(evaluated, folder, load, encoder, params_of):
    lines = evaluated("base", folder)["predictions.jsonl"].decode().split("\n")
    assert lines.pop() == ""
    predictions = [json.loads(line) for line in lines]
    assert len(predictions) == 5
    names = {"id", "source", "prompt", "reference", "output", "ended", "parses", "tests", "plain"}
    assert all(prediction.keys() == names for prediction in predictions)
    assert predictions[0]["prompt"] == "🦜 line\u2028separator"
    metrics = read_json(EVALUATIONS / "base.json")
    assert (metrics["rows"], metrics["generated_rows"]) == (8, 5)
    assert metrics["ended_share"] == sum(each["ended"] for each in predictions) / 5
    assert "generated_tokens_per_second" not in metrics
    scored = next(read_records(CLEAN / "test.parquet", 8))
    rows = [json.loads(line) for line in evaluated("base", folder)["rows.jsonl"].decode().split("\n")[:-1]]
    assert [row["id"] for row in rows] == [each.id for each in scored]
    assert [row["answers"] for row in rows] == [1] * 5 + [0] * 3
    params = params_of(prompt={"system": None})
    bodies = completion_prompts(ModelRun(load(folder), folder, scored, encoder, params))[1]
    expected = score(load(folder), scored, encoder, params.evaluate, bodies)
    assert [{name: row[name] for name in expected[0]} for row in rows] == expected
    assert metrics["loss"] == pytest.approx(sum(r["loss_sum"] for r in expected) / sum(r["tokens"] for r in expected))


def test_only_the_prompts_that_are_asked_are_encoded_and_only_once(evaluated, folder, monkeypatch):
    real, calls = Encoder.prompt, []
    monkeypatch.setattr(Encoder, "prompt", lambda *given: calls.append(1) or real(*given))
    evaluated("base", folder)
    assert len(calls) == 5


def saved(folder) -> list:
    """The batches that a stopped generation left behind."""
    return sorted((folder / ".dvc" / "tmp" / "generated").glob("*/*.json"))


def test_a_generation_that_is_killed_goes_on_behind_the_batches_it_made(evaluated, folder, tmp_path, monkeypatch):
    options = {"generate_rows": 8, "batch_size": 2}
    expected = evaluated("base", folder, **options)
    assert not saved(tmp_path)
    real, calls = generation.continuations, []

    def dies(*arguments):
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(1)
        return real(*arguments)

    monkeypatch.setattr(generation, "continuations", dies)
    with pytest.raises(KeyboardInterrupt):
        evaluated("base", folder, **options)
    assert len(saved(tmp_path)) == 3
    saved(tmp_path)[0].write_text("[[1, 2")  # torn, so it is generated again
    monkeypatch.setattr(generation, "continuations", lambda *arguments: calls.append(1) or real(*arguments))
    assert evaluated("base", folder, **options) == expected
    assert len(calls) == 4 + 4 + 1  # chat prompts, completion prompts, and the torn batch
    assert not saved(tmp_path)


def test_what_is_kept_of_another_model_or_other_params_is_not_taken(evaluated, folder, tmp_path, monkeypatch):
    real = generation.continuations
    monkeypatch.setattr(kept.GenerationCache, "remove", lambda self: None)
    evaluated("tuned", folder)
    assert len(saved(tmp_path)) == 2
    calls = []
    monkeypatch.setattr(generation, "continuations", lambda *arguments: calls.append(1) or real(*arguments))
    evaluated("tuned", folder)
    assert len(calls) == 0
    evaluated("tuned", folder, max_new_tokens=9)
    assert len(calls) == 2
    evaluated("tuned", save_model(tmp_path / "other", seed=1))
    assert len(calls) == 4


def test_what_is_kept_of_other_code_is_not_taken(folder, model, section, tmp_path, monkeypatch):
    found = {kept.generation_fingerprint(folder, model, [[1, 2]], section()) for _ in range(2)}
    assert len(found) == 1
    shutil.copytree(ROOT / "stages", tmp_path / "stages")
    monkeypatch.setattr(code_hash, "ROOT", tmp_path)
    for name in ("_evaluate/generation", "core/decoding", "core/models", "_evaluate/model_run"):
        with open(tmp_path / f"stages/{name}.py", "a") as file:
            file.write("\nANOTHER = 1\n")
        module_hash.cache_clear()
        found.add(kept.generation_fingerprint(folder, model, [[1, 2]], section()))
    module_hash.cache_clear()
    assert len(found) == 5


KEEPS = """
from stages._evaluate.generation_cache import GenerationCache
for _ in range(100):
    one = GenerationCache("same")
    for number in range(5):
        one[number] = [[1] * 100]
        assert one[number] in ([[1] * 100], None)
    one.remove()
"""


def test_two_processes_may_keep_and_forget_the_same_answers(tmp_path):
    environment = os.environ | {"DVC_ROOT": str(tmp_path), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", KEEPS]
    processes = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate(timeout=600)[1] for process in processes] == ["", ""]
    assert not list((tmp_path / ".dvc" / "tmp" / "generated").glob("*/*.json"))


def test_answers_to_records_with_tests_are_run(encoder, section):
    answers = [
        "def f():\n    return 1",
        "Here it is:\n```python\ndef f():\n    return 1\n```",
        "def f():\n    return 2",
    ]
    records = [dataclasses.replace(record(f"Write {n}", "x = 1"), tests="assert f() == 1") for n in range(3)]
    records.append(record("Write 3", "x = 1"))
    ids = [encoder.pieces.encode(text) for text in (*answers, answers[0])]
    found = with_test_outcomes(read_answers(records, ids, encoder), records, section(), workers=2)
    assert [each.tests for each in found] == ["passed", "passed", "failed", None]
    values = list(count_answers(found).values())
    assert [(each["tested"], each["passed"]) for each in values] == [(1, 1), (1, 1), (1, 0), (0, 0)]


@pytest.fixture
def evaluated_with_tests(tmp_path, monkeypatch, params_of):
    """evaluated_with_tests(name, folder, …) → metrics, rows and predictions of records that bring tests and a field."""
    monkeypatch.chdir(tmp_path)
    CLEAN.mkdir(parents=True)
    fields = [{"level": "hard" if n % 3 else "easy"} for n in range(12)]

    def run(name, folder, right="assert x == 1", **changes):
        tests = [right if n % 2 else "raise ValueError" for n in range(12)]
        with record_file(CLEAN / "test.parquet", "level", "tests") as file:
            file.write_table(record_table(records_of(12), level=[each["level"] for each in fields], tests=tests))
        values = {
            "max_rows": 12,
            "generate_rows": 12,
            "max_new_tokens": 1,
            "batch_size": 12,
            "slices": ["level", "source"],
        }
        sections = {"clean": {"keep_fields": ["level"]}, "evaluate": {**values, **changes}, "machine": CPU}
        main(params_of(**sections), name, folder).finish()
        files = [(EVALUATIONS / f"{name}.{kind}.jsonl").read_text() for kind in ("rows", "predictions")]
        return read_json(EVALUATIONS / f"{name}.json"), *(
            [json.loads(line) for line in each.splitlines()] for each in files
        )

    return run


def test_pass_at_1_and_slices_stand_in_the_metrics(evaluated_with_tests, folder, monkeypatch):
    # A model with random weights passes no test.
    monkeypatch.setattr(Encoder, "decode", lambda self, ids: "x = 1")
    metrics, rows, predictions = evaluated_with_tests("tuned", folder)
    assert [each["tests"] for each in predictions] == ["failed", "passed"] * 6
    assert (metrics["tested_rows"], metrics["pass_at_1"]) == (12, 0.5)
    assert 0 <= metrics["pass_at_1_lo"] < 0.5 < metrics["pass_at_1_hi"] <= 1
    level = metrics["slices"]["level"]
    assert {value: each["rows"] for value, each in level.items()} == {"hard": 8, "easy": 4}
    hard = [row for row in rows if row["slices"]["level"] == "hard"]
    assert level["hard"]["loss"] == pytest.approx(
        sum(row["loss_sum"] for row in hard) / sum(row["tokens"] for row in hard)
    )
    assert level["easy"]["pass_at_1"] == 0.5
    assert "loss_lo" not in level["easy"]  # too few rows for an interval
    assert metrics["slices"]["source"]["rows.jsonl"]["loss_lo"] < metrics["loss"]


UNITTEST = """
import unittest
class Test(unittest.TestCase):
    def test(self):
        self.assertEqual(add(1, 2), 3)
if __name__ == "__main__":
    unittest.main()
"""


@pytest.mark.parametrize(
    "tests",
    [
        "def check(candidate):\n    assert candidate(1, 2) == 3",
        "def test_add():\n    assert add(1, 2) == 3",
        UNITTEST,
        "# assert add(1, 2) == 3",
    ],
)
def test_tests_that_test_nothing_are_refused(tests, section):
    idle = dataclasses.replace(record("Add", "x = 1"), tests=tests)
    good = dataclasses.replace(record("Sum", "x = 1"), tests=f"{tests}\nassert add(1, 2) == 3")
    check_tests_fail_without_answer([good, record("None", "x = 1")], section(), workers=2)
    where = rf"the tests of 1 of 2 test rows, the first from {idle.source} \(id {idle.id}\)"
    with pytest.raises(UserError, match=where + r".*call it at their end, as in check\(add\)"):
        check_tests_fail_without_answer([good, idle], section(), workers=2)


def test_they_are_refused_before_anything_is_generated(evaluated_with_tests, folder, monkeypatch):
    monkeypatch.setattr(generation, "continuations", None)
    with pytest.raises(UserError, match="they test nothing"):
        evaluated_with_tests("tuned", folder, right="def check(candidate):\n    assert candidate(1) == 2")
    assert not EVALUATIONS.exists()


def test_tests_run_only_where_that_is_asked_for(evaluated_with_tests, folder, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    sandbox.bwrap_command.cache_clear()
    metrics, _, predictions = evaluated_with_tests("tuned", folder, run_tests=False)
    assert metrics["tested_rows"] == 0
    assert "pass_at_1" not in metrics
    assert {each["tests"] for each in predictions} == {None}
    with pytest.raises(UserError, match="bubblewrap, which is not installed"):
        evaluated_with_tests("tuned", folder)


def test_records_without_tests_need_no_sandbox(evaluated, folder, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    sandbox.bwrap_command.cache_clear()
    assert b'"tested_rows": 0' in evaluated("tuned", folder)["json"]


REQUEST = "Write `f` of the module `m`.\n\ndef f(x: int, y=1) -> int:\n\nAdd them.\n\n    >>> f(1)\n    2"
ANSWER = "@cache\ndef f(x: int,\n      y=1) -> int:\n    # both\n    return x + y\n"


def test_a_function_is_asked_for_in_plain_text_by_its_signature_and_docstring():
    form = completion_prompt(REQUEST, ANSWER)
    document = 'def f(x: int, y=1) -> int:\n    """Add them.\n\n        >>> f(1)\n        2\n    """\n'
    assert (form.prompt, form.head) == (document, "def f(x: int, y=1) -> int:\n")
    assert form.given + form.rest == ANSWER
    assert form.rest == "    # both\n    return x + y\n"
    names = {}
    exec(form.prompt + form.rest, names)  # noqa: S102
    assert names["f"](1) == 2
    assert names["f"].__doc__.startswith("Add them.")


def test_a_request_that_is_code_already_is_its_own_plain_form():
    request = 'Complete it:\n\n```python\nimport math\n\ndef f(x):\n    """Twice x."""\n```'
    answer = 'import math\n\ndef f(x):\n    """Twice x."""\n    return 2 * x\n'
    form = completion_prompt(request, answer)
    assert form.prompt == 'import math\n\ndef f(x):\n    """Twice x."""\n'
    assert (form.given, form.rest) == (form.prompt, "    return 2 * x\n")
    assert complete_answer(form, "    return 2 * x\n\n\nprint(f(1))\n") == (answer.rstrip(), True)


@pytest.mark.parametrize("end", ["\r", "\r\n", "\n"])
def test_lines_end_as_python_sees_it(end):
    answer = end.join(["def f():", '    """a', " b", '    """', "    return 1", ""])
    form = completion_prompt("def f():\n\nGive one", answer)
    assert (form.given + form.rest, form.rest) == (answer, f"    return 1{end}")
    assert complete_answer(form, f"    return 1{end}{end}print(1)") == (f"{form.head}    return 1", True)


@pytest.mark.parametrize(
    ("request_text", "answer", "prompt"),
    [
        ("Write a loop", "for x in y:\n    pass", '"""Write a loop\n"""\n\n'),
        ("Say why", "Since it is so.", "Say why\n\n"),
        ("def f(x):\n\nAdd", "def g(x):\n    return 1", '"""def f(x):\n\nAdd\n"""\n\n'),
        ("def f(x):\n\nAdd", "def f(x): return 1", '"""def f(x):\n\nAdd\n"""\n\n'),
        ("def f(x):", "def f(x):\n    return 1", '"""def f(x):\n"""\n\n'),
        ('def f(x):\n\n"""Add"""', "def f(x):\n    return 1", "def f(x):\n    \"\"\"'''Add'''\n    \"\"\"\n"),
    ],
)
def test_what_else_is_asked_in_plain_text(request_text, answer, prompt):
    form = completion_prompt(request_text, answer)
    assert form.prompt == prompt
    assert form.given + form.rest == answer


@pytest.mark.parametrize(
    ("text", "expected", "ended"),
    [
        ("    return 1\n\ndef g():\n    pass", "    return 1", True),
        ("    if x:\n\n        return 1\n    return 2", "    if x:\n\n        return 1\n    return 2", False),
        ("\treturn 1\n# next\n", "\treturn 1", True),
        ("", "", False),
    ],
)
def test_a_function_ends_with_the_first_line_that_is_not_indented(text, expected, ended):
    form = completion_prompt(REQUEST, ANSWER)
    assert complete_answer(form, text) == ((form.head + expected).rstrip() if expected else form.head, ended)


def test_both_ways_of_asking_are_scored_on_the_same_bytes(model, encoder, section):
    talk = record(REQUEST, ANSWER)
    form = completion_prompt(REQUEST, ANSWER)
    found = answer_body(talk, form, encoder, CONTEXT)
    whole = encoder.conversation(talk.messages)
    (chat,) = score(model, [talk], encoder, section(), [found])
    losses = plain_losses(model, whole.input_ids, whole.labels)
    count = len(encoder.pieces.encode(ANSWER)) - len(encoder.pieces.encode(form.given))
    assert chat["body_loss_sum"] == pytest.approx(sum(losses[-1 - count : -1]), abs=1e-3)
    (plainly,) = score_completions(model, [found], section())
    ids = [encoder.bos, *encoder.pieces.encode(form.prompt + form.rest)]
    start = 1 + len(encoder.pieces.encode(form.prompt))
    expected = plain_losses(model, ids, [IGNORED] * start + ids[start:])
    assert plainly["body_loss_sum"] == pytest.approx(sum(expected), abs=1e-3)
    assert chat["body_bytes"] == plainly["body_bytes"] == len(form.rest.encode())
    assert encoder.decode(ids[start:]).strip() == form.rest.strip()


def test_a_body_that_the_context_does_not_hold_is_counted_nowhere(model, encoder, section):
    long = record("Count", " ".join(map(str, range(300))))
    found = answer_body(long, completion_prompt("Count", long.messages[1]["content"]), encoder, CONTEXT)
    assert found is None
    assert score_completions(model, [found], section()) == [{"body_bytes": 0, "body_loss_sum": 0.0}]
    assert score(model, [long], encoder, section(), [found])[0]["body_bytes"] == 0


def test_the_base_is_asked_in_the_plain_way_too(evaluated, folder, encoder, model):
    found = evaluated("base", folder)
    metrics = json.loads(found["json"])
    assert metrics["plain"]["generated_rows"] == metrics["generated_rows"]
    assert {"chrf", "parses_share", "body_bits_per_byte"} <= metrics["plain"].keys()
    assert not {"loss", "perplexity", "bits_per_byte"} & metrics["plain"].keys()
    assert "plain" not in json.loads(evaluated("tuned", folder)["json"])


@pytest.fixture
def twelve_documents(tmp_path, monkeypatch, params_of):
    """twelve_documents(folder, cluster) → the base's metrics and rows. Each document has the same row twice."""
    monkeypatch.chdir(tmp_path)
    CLEAN.mkdir(parents=True)
    single = [record(f"Add {n}", f"total = {n * n} + {7 * n} + {10**n}") for n in range(12)]
    records = [
        dataclasses.replace(talk, id=f"{copy}{talk.id[1:]}", source=f"{number:02}.py:{copy}")
        for copy in range(2)
        for number, talk in enumerate(single)
    ]
    write_records(CLEAN / "test.parquet", records)
    values = {"max_rows": 99, "generate_rows": 1, "max_new_tokens": 1, "batch_size": 24, "slices": ["length"]}

    def run(folder, cluster):
        main(params_of(evaluate=values | {"cluster": cluster}, machine=CPU), "base", folder).finish()
        rows = (EVALUATIONS / "base.rows.jsonl").read_text().splitlines()
        return read_json(EVALUATIONS / "base.json"), [json.loads(row) for row in rows]

    return run


def test_every_interval_of_the_stage_draws_whole_documents(twelve_documents, folder):
    """Copies drawn one by one look like twice as much evidence. They make an interval narrower by √2."""

    def widths(metrics):
        (slice_figures,) = metrics["slices"]["length"].values()
        figures = {
            "all rows": (metrics, "loss"),
            "a slice": (slice_figures, "loss"),
            "completion prompts": (metrics["plain"], "body_bits_per_byte"),
        }
        return {name: values[f"{key}_hi"] - values[f"{key}_lo"] for name, (values, key) in figures.items()}

    (by_document, rows), (by_row, single_rows) = (twelve_documents(folder, cluster) for cluster in ("source", "row"))
    assert [(metrics["rows"], metrics["clusters"]) for metrics in (by_document, by_row)] == [(24, 12), (24, 24)]
    assert [row["cluster"] for row in rows] == [*range(12)] * 2
    assert [row["cluster"] for row in single_rows] == [*range(24)]
    expected = {name: width * 2**0.5 for name, width in widths(by_row).items()}
    assert widths(by_document) == pytest.approx(expected, rel=0.15)


def marked(found: Record, *places) -> Record:
    """The record with the turns at `places` not trained."""
    messages = [turn | ({"train": False} if place in places else {}) for place, turn in enumerate(found.messages)]
    return dataclasses.replace(found, messages=messages)


def test_only_answers_that_are_trained_are_scored(model, encoder, section):
    whole = record("Set a", "a = 1", "And b?", "b = 2 and c = 3 and d = 4")
    ids, labels = (getattr(encoder.conversation(whole.messages), name) for name in ("input_ids", "labels"))
    second = len(ids) - len(encoder.pieces.encode("b = 2 and c = 3 and d = 4")) - 1
    expected = plain_losses(model, ids, [IGNORED] * second + labels[second:])
    counts = score(model, [marked(whole, 1)], encoder, section(), [None])[0]
    assert counts["tokens"] == len(expected) == len(ids) - second
    assert counts["loss_sum"] == pytest.approx(sum(expected), rel=1e-4)


def test_an_answer_that_is_not_trained_is_not_generated(encoder, section):
    talk = record("Set a", "a = 1", "And b?", "b = 2")
    prompts = fitting_prompts([marked(talk, 3), talk, marked(talk, 1)], encoder, section(), CONTEXT)
    assert list(prompts) == [1, 2]
    assert fitting_prompts([marked(talk, 3)], encoder, section(), CONTEXT) == {}


def test_the_stage_scores_what_tokenize_train_turns_trains(tmp_path, monkeypatch, params_of, folder, encoder):
    monkeypatch.chdir(tmp_path)
    CLEAN.mkdir(parents=True)
    talk = record("Set a", "a = 1 and more than eight tokens of it", "And b?", "b = 2 and more than eight tokens of it")
    talks = [talk, marked(talk, 1), marked(talk, 3)]
    write_records(
        CLEAN / "test.parquet", [dataclasses.replace(each, id=f"{number:032x}") for number, each in enumerate(talks)]
    )
    values = {"max_rows": 9, "generate_rows": 9, "max_new_tokens": 8, "batch_size": 4}
    found = {}
    for turns in ("all", "last"):
        sections = {"prompt": {"system": None}, "evaluate": values, "machine": CPU, "tokenize": {"train_turns": turns}}
        main(params_of(**sections), "base", folder).finish()
        metrics = read_json(EVALUATIONS / "base.json")
        found[turns] = [metrics["rows"], metrics["generated_rows"], metrics["tokens"]]
    both = sum(label != IGNORED for label in encoder.conversation(talk.messages).labels)
    assert found == {"all": [3, 2, 2 * both], "last": [2, 2, both]}


def test_a_test_split_in_which_nothing_is_trained_is_refused(tmp_path, monkeypatch, params_of, folder):
    monkeypatch.chdir(tmp_path)
    CLEAN.mkdir(parents=True)
    write_records(CLEAN / "test.parquet", [marked(record("Set a", "a = 1", "And b?", "b = 2"), 3)])
    with pytest.raises(UserError, match="no answer of the 1 test rows is trained. Set tokenize.train_turns: all"):
        main(params_of(tokenize={"train_turns": "last"}, machine=CPU), "base", folder)


def text_record(number) -> Record:
    text = f"Chapter {number}. " + "It was a quiet evening at the harbour. " * (number % 4 + 1)
    return Record(f"{number:032x}", [{"role": "text", "content": text}], f"book.txt:{number}")


def test_texts_are_evaluated_by_loss_alone(evaluated, folder, model, encoder):
    texts = [text_record(number) for number in range(12)]
    write_records(CLEAN / "test.parquet", texts)
    for name in ("base", "tuned"):
        evaluated(name, folder, max_rows=99, generate_rows=99)
    base, tuned = (read_json(EVALUATIONS / f"{name}.json") for name in ("base", "tuned"))
    assert (tuned["rows"], tuned["generated_rows"], base["plain"]["generated_rows"]) == (12, 0, 0)
    assert not {"chrf", "rouge_l", "ended_share", "exact_share", "parses_share"} & tuned.keys()
    encoded = [encoder.conversation(each.messages) for each in texts]
    assert tuned["tokens"] == sum(len(each.input_ids) - 1 for each in encoded)
    losses = [loss for each in encoded for loss in plain_losses(model, each.input_ids, each.labels)]
    assert tuned["loss"] == pytest.approx(sum(losses) / len(losses), rel=0.02)
    assert {"perplexity", "perplexity_lo", "loss_after_8", "bits_per_byte"} <= tuned.keys()
    assert (EVALUATIONS / "tuned.predictions.jsonl").read_text() == ""


def test_of_texts_among_conversations_only_the_conversations_are_answered(encoder, section):
    prompts = fitting_prompts([text_record(1), *records_of(2)], encoder, section(), CONTEXT)
    assert list(prompts) == [1, 2]


def test_the_closing_line_says_that_there_is_no_answer_to_generate():
    metrics = {"rows": 12, "generated_rows": 0, "tested_rows": 0, "perplexity": 4.5, "perplexity_after_8": 4.25}
    assert stage.summary(metrics) == "12 rows, perplexity 4.50; no row has an answer to generate"


CALLS = '[{"name": "add", "arguments": {"a": 1, "b": [2]}, "id": "abcde1234"}, {"name": "f", "arguments": {}}]'


@pytest.mark.parametrize(
    ("output", "outcome"),
    [
        (CALLS, "right"),
        ('[{"arguments":{}, "name":"f"}, {"name": "add", "arguments": {"b": [2], "a": 1}, "id": "other"}]', "right"),
        (CALLS.replace("[2]", "[3]"), "wrong_arguments"),
        (CALLS.replace('"a": 1, ', ""), "wrong_arguments"),
        (CALLS.replace('"f"', '"add"'), "wrong_name"),
        ('[{"name": "add", "arguments": {"a": 1, "b": [2]}}]', "wrong_name"),
        (CALLS[:-1], "not_json"),
        ("[]", "not_json"),
        ('{"name": "add", "arguments": {}}', "not_json"),
        ('[{"name": "add"}]', "not_json"),
        ('[{"name": "add", "arguments": "{}"}]', "not_json"),
        ("[" * 100_000, "not_json"),
        ("Let me see.", "not_json"),
    ],
)
def test_a_call_is_judged_by_its_json_its_name_and_its_arguments(output, outcome):
    assert call_outcome(output, CALLS, marked=True) == outcome
    assert call_outcome(output, CALLS, marked=False) == "text"


def call_record(number) -> Record:
    call = json.dumps([{"name": "add", "arguments": {"a": number}, "id": "abcde1234"}])
    turns = [("tools", "[]"), ("user", f"Add {number}"), ("tool_calls", call)]
    return Record(f"{number:032x}", [{"role": role, "content": text} for role, text in turns], f"calls.jsonl:{number}")


def test_what_calls_are_worth(encoder):
    records = [call_record(number) for number in range(5)]
    mark, right = encoder.pieces.piece_to_id("[TOOL_CALLS]"), records[0].messages[-1]["content"]
    texts = [right, right, right.replace("add", "f"), "no"]
    outputs = [[mark, *encoder.pieces.encode(text), encoder.eos] for text in texts]
    predictions = read_answers(records, [*outputs, encoder.pieces.encode(right)], encoder)
    assert [each.call for each in predictions] == ["right", "wrong_arguments", "wrong_name", "not_json", "text"]
    assert predictions[0].output == predictions[0].reference == '[{"name": "add", "arguments": {"a": 0}}]'
    values = count_answers(predictions)
    rows = [dict.fromkeys(COUNTS, 1) | values[each.id] for each in predictions]
    found = stage.metrics_of([*rows, dict.fromkeys(COUNTS, 1) | dict.fromkeys(GENERATED, 1)], list(range(6)))
    assert (found["call_json_share"], found["call_name_share"], found["call_arguments_share"]) == (0.6, 0.4, 0.2)
    assert values[records[0].id]["exact"] == 1


def test_rows_that_end_with_a_call_are_scored_and_answered_and_not_asked_for_plainly(evaluated, folder):
    records = [call_record(number) for number in range(12)]
    write_records(CLEAN / "test.parquet", [*records, *records_of(3)])
    written = evaluated("base", folder, max_rows=99, generate_rows=99)
    metrics = json.loads(written["json"])
    assert (metrics["rows"], metrics["generated_rows"], metrics["plain"]["generated_rows"]) == (15, 15, 3)
    assert {"call_json_share", "call_name_share", "call_arguments_share", "call_arguments_share_lo"} <= metrics.keys()
    lines = [json.loads(line) for line in written["predictions.jsonl"].splitlines()]
    assert ["call" in line for line in lines] == ["plain" not in line for line in lines]
    assert sum("call" in line for line in lines) == 12
