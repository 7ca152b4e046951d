"""Few rows, few documents and few steps are named before the training, each in one line, and stop nothing."""

import re

import pytest

from stages.runtime.small_data import warn_of_few_steps, warn_of_small_splits

MANY = ["a.jsonl", "b.jsonl"]


def said(capsys, splits=None, documents=MANY):
    warn_of_small_splits({"train": 900, "validation": 40, "test": 60} | (splits or {}), documents)
    return capsys.readouterr().out.splitlines()


def test_enough_rows_of_several_documents_are_passed_over_in_silence(capsys):
    assert said(capsys) == []


@pytest.mark.parametrize(("rows", "warned"), [(1, True), (19, True), (20, False)])
@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_split_of_fewer_than_20_rows_has_a_line(capsys, split, rows, warned):
    lines = said(capsys, {split: rows})
    assert len(lines) == warned
    assert all(line.startswith(f"clean: only {rows} {split} row") for line in lines)


def test_each_small_split_has_its_own_line(capsys):
    assert [line.split()[3] for line in said(capsys, {"validation": 3, "test": 4})] == ["validation", "test"]


def test_the_line_names_a_fraction_that_is_enough_for_20_rows(capsys):
    (line,) = said(capsys, {"train": 345, "validation": 13, "test": 42})
    assert line.endswith(
        "Set clean.validation_fraction to 0.08 for about 30 (it moves rows between splits), or add rows"
    )


def test_where_no_reasonable_fraction_gives_20_rows_only_more_rows_help(capsys):
    (line,) = said(capsys, {"train": 30, "validation": 3, "test": 27})
    assert "fraction" not in line and line.endswith("Add rows")


def test_a_test_split_of_one_document_has_a_line_that_names_it(capsys):
    (line,) = said(capsys, documents=["faq.csv"])
    assert line.startswith("clean: all test rows come from one document, faq.csv, ")


@pytest.mark.parametrize(("steps", "warmup", "warned"), [(29, 10, True), (30, 10, False), (1, 0, False), (2, 1, True)])
def test_fewer_steps_than_three_warm_ups_have_a_line(params_of, capsys, steps, warmup, warned):
    warn_of_few_steps(steps, params_of(train={"warmup_steps": warmup}).train)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == warned
    assert all(line.startswith(f"train: only {steps} optimizer steps, of them {warmup} to warm up") for line in lines)


def test_a_warm_up_longer_than_the_training_counts_only_its_steps(params_of, capsys):
    warn_of_few_steps(3, params_of(train={"warmup_steps": 10, "epochs": 1.0}).train)
    assert "only 3 optimizer steps, of them 3 to warm up" in capsys.readouterr().out


@pytest.mark.parametrize(("steps", "warmup", "epochs"), [(18, 10, 1.0), (3, 10, 1.0), (40, 20, 2.0), (1, 7, 0.5)])
def test_either_advice_ends_the_warning(params_of, capsys, steps, warmup, epochs):
    warn_of_few_steps(steps, params_of(train={"warmup_steps": warmup, "epochs": epochs}).train)
    found = re.search(
        rf"Lower train\.warmup_steps from {warmup} to (\d+), or raise train\.epochs to ([\d.]+)$",
        capsys.readouterr().out,
    )
    lower, higher = int(found[1]), float(found[2])
    warn_of_few_steps(steps, params_of(train={"warmup_steps": lower, "epochs": epochs}).train)
    warn_of_few_steps(int(steps * higher / epochs), params_of(train={"warmup_steps": warmup, "epochs": higher}).train)
    assert capsys.readouterr().out == ""
