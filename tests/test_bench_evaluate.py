"""The benchmark of `evaluate`: that all generate the same, and that its table says what was measured."""

import shutil

import pytest

from bench import evaluate as bench
from bench.evaluate import Measured, plain_loop, table
from stages._evaluate.generation import generate
from stages.core.machine import resolve_machine
from stages.core.models import load_model
from stages.core.paths import CLEAN
from stages.core.prompts import Encoder
from stages.core.records import Record
from tests.support.data_files import write_records


def records(count):
    texts = [(f"Count {'up ' * n}to {n}", " ".join(map(str, range(n + 9)))) for n in range(count)]
    return [
        Record(
            f"{n:032x}",
            [{"role": "user", "content": question}, {"role": "assistant", "content": answer}],
            f"rows.jsonl:{n}",
        )
        for n, (question, answer) in enumerate(texts)
    ]


def test_the_loop_that_it_compares_with_generates_the_same_number_of_tokens(small_base, params_of):
    params = params_of(evaluate={"max_new_tokens": 6, "batch_size": 3}, machine={"device": "cpu"})
    encoder = Encoder(params.prompt)
    model = load_model(small_base, resolve_machine(params.machine))
    prompts = [encoder.prompt(record.messages[:-1]) for record in records(4)]
    expected = sum(map(len, generate(model, prompts, encoder.eos, params.evaluate)))
    assert plain_loop(model, prompts, encoder.eos, params.evaluate, 1) == expected
    assert plain_loop(model, prompts, encoder.eos, params.evaluate, 2) == expected


def test_the_ratios_are_those_of_tokens_a_second():
    found = {"slow": Measured(100, 10.0, 5.0), "fast": Measured(90, 3.0, 1.5)}
    lines = [line.split() for line in table("generation", found, "slow").splitlines()]
    assert lines[1:] == [
        ["slow", "100", "10", "1.00", "5.00", "1.00"],
        ["fast", "90", "30", "3.00", "1.50", "3.00"],
    ]


@pytest.mark.slow
def test_it_runs_on_a_few_rows(small_base, tmp_path, monkeypatch, capsys, tiny):
    monkeypatch.chdir(tmp_path)
    text = tiny.read_text().replace("max_new_tokens: 192", "max_new_tokens: 4").replace("device: auto", "device: cpu")
    (tmp_path / "params.yaml").write_text(text)
    CLEAN.mkdir(parents=True)
    write_records(CLEAN / "test.parquet", records(4))
    shutil.copytree(small_base, tmp_path / "model")
    bench.main(4, tmp_path / "model")
    printed = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in printed[1:]] == [
        *("generation", "plain loop, one at a time", "plain loop, batches", "ours"),
        *("scoring", "bare forward pass", "ours"),
    ]
