"""The rules of the gates, on figures that are made up here. test_gate_verdicts.py has noise and real differences."""

import math

import numpy as np
import pytest

from stages.comparison import gate as gates
from stages.comparison.gate import NoFigureError, Verdict, check_bound, compare_revisions, figure_at, judge_gates
from stages.comparison.revisions import Outputs
from stages.core.statistics import COLUMNS, paired_change
from stages.runtime.errors import UserError
from tests.support.gates import RevisionInMemory, gate_of


def rows(losses):
    ones = dict.fromkeys(COLUMNS, 1) | {"tokens": 10, "cluster": 0}
    return [ones | {"id": f"r{number}", "loss_sum": 10 * loss, "cluster": number} for number, loss in enumerate(losses)]


def revision(tuned=None, rows=None, validation=0, test=0, evaluation=None, **metrics):
    """A revision with these figures of the tuned model, and other sections of metrics.json."""
    figures = {"evaluate": {"tuned": tuned or {}}} | metrics
    return RevisionInMemory(None, rows, metrics=figures, validation=validation, test=test, evaluation=evaluation)


def loss_of(value, low=None, high=None, **more):
    return {"loss": value} | ({} if low is None else {"loss_lo": low, "loss_hi": high}) | more


def test_the_line_names_the_bound_and_on_which_side_of_it_the_figure_may_be():
    assert check_bound(gate_of("a.b", bound=2.0), {"a": {"b": 1}}).line == "a.b is 1, and may be at most 2"
    assert check_bound(gate_of("a.b", "higher", 2.0), {"a": {"b": 1}}).line == "a.b is 1, and may be at least 2"
    with pytest.raises(NoFigureError, match=r"metrics\.json has no figure a\.b"):
        check_bound(gate_of("a.b", bound=2.0), {})
    with pytest.raises(NoFigureError, match=r"metrics\.json has no figure a\.b"):
        compare_revisions(gate_of("a.b"), revision(a={"b": 1}), revision())
    with pytest.raises(UserError, match=r"main has only a part of the interval of a\.b"):
        compare_revisions(gate_of("a.b"), revision(a={"b": 1, "b_lo": 0}), revision(a={"b": 1}))


@pytest.mark.parametrize("value", [None, True, "1", math.nan, math.inf, {}, [1.0]])
def test_only_a_finite_number_is_a_figure(value):
    with pytest.raises(NoFigureError, match=r"here has no figure a\.b"):
        figure_at({"a": {"b": value}}, "a.b", "here")
    with pytest.raises(NoFigureError):
        figure_at({"a": value}, "a.b", "here")


def test_an_interval_has_both_ends_or_none():
    assert figure_at({"a": {"b": 1}}, "a.b", "here") == (1, None)
    assert figure_at({"a": {"b": 1, "b_lo": 0, "b_hi": 2}}, "a.b", "here") == (1, {"lo": 0, "hi": 2})
    for part in ({"b_lo": 0}, {"b_hi": 2}, {"b_lo": 0, "b_hi": math.nan}):
        with pytest.raises(UserError, match=r"here has only a part of the interval of a\.b"):
            figure_at({"a": {"b": 1} | part}, "a.b", "here")


@pytest.mark.parametrize(
    ("metric", "change", "reason"),
    [
        ("train.validation_loss", {"validation": 1}, "the validation split is another one"),
        ("train.validation_loss", {"merge": {"parity": {"tokens": 8}}}, None),
        ("merge.parity.kl", {"merge": {"parity": {"tokens": 8}}}, "merge.parity.tokens was 7 and is 8"),
        ("merge.naive.kl", {"validation": 1}, "the validation split is another one"),
        ("merge.parity.kl", {"test": 1}, None),
        ("evaluate.tuned.loss", {"test": 1}, "the test split is another one"),
        ("evaluate.tuned.loss", {"evaluation": {"max_rows": 4}}, "evaluate.max_rows was None and is 4"),
        ("evaluate.tuned.loss", {"tuned": {"rows": 4}}, "evaluate.tuned.rows was None and is 4"),
        ("evaluate.tuned.loss", {"validation": 1}, None),
        ("clean.rows.kept", {"validation": 1, "test": 1}, None),
    ],
)
def test_figures_of_other_rows_or_settings_are_not_comparable(metric, change, reason):
    before = {"merge": {"parity": {"tokens": 7}}}
    assert gates.why_incomparable(metric, revision(**before), revision(**before | change)) == reason


def test_a_figure_without_an_interval_is_exact_and_a_measure_without_one_is_not_compared():
    before, after = ({"clean": {"kept": kept}} for kept in (3, 4))
    verdict = compare_revisions(gate_of("clean.kept"), revision(**before), revision(**after))
    assert (verdict.failed, verdict.judged) == (True, True)
    assert verdict.line.endswith("(exact): +1 to +1")
    same = compare_revisions(gate_of("clean.kept"), revision(**before), revision(**before))
    assert (
        not same.failed
        and not compare_revisions(gate_of("clean.kept", "higher"), revision(**before), revision(**before)).failed
    )
    for then, now in [((), (1.9, 2.1)), ((1.9, 2.1), ()), ((), ())]:
        few = compare_revisions(gate_of(), revision(loss_of(2.0, *then)), revision(loss_of(3.0, *now)))
        assert (few.failed, few.judged) == (False, False)
        assert few.line.endswith("not compared, since fewer than 10 rows give no interval")


def test_without_pairs_the_interval_is_made_of_both_revisions_intervals():
    before, after = loss_of(2.0, 1.7, 2.1), loss_of(2.5, 2.1, 2.6)
    line = compare_revisions(gate_of(), revision(before), revision(after)).line
    low, high = 0.5 - math.hypot(0.4, 0.1), 0.5 + math.hypot(0.1, 0.3)
    assert line.endswith(f"(unpaired): {low:+.4g} to {high:+.4g}")
    one_side = compare_revisions(gate_of("a.b"), revision(a={"b": 1}), revision(a={"b": 2, "b_lo": 1, "b_hi": 4}))
    assert one_side.line.endswith("(unpaired): +0 to +3")


@pytest.mark.parametrize("metrics", [{}, {"merge": {}, "evaluate": {}}])
def test_sections_that_are_missing_on_both_sides_make_no_difference(metrics):
    both = [revision(), revision()]
    for each in both:
        each.metrics = metrics
    assert gates.why_incomparable("merge.parity.kl", *both) is None
    assert gates.why_incomparable("evaluate.tuned.loss", *both) is None
    with pytest.raises(NoFigureError):
        figure_at({"a": 1}, "a.b.c", "here")


def test_what_the_other_revision_lacks_or_measured_on_other_rows_is_not_judged():
    lacks = compare_revisions(gate_of(), revision({}), revision(loss_of(2.0)))
    assert lacks == Verdict(False, "evaluate.tuned.loss is 2: not compared, since main does not have it", judged=False)
    other = compare_revisions(gate_of(), revision(loss_of(2.0), test=1), revision(loss_of(2.0)))
    assert other == Verdict(
        False, "evaluate.tuned.loss is 2, in main 2: not compared, since the test split is another one", judged=False
    )


def test_rows_of_both_revisions_are_compared_in_pairs():
    losses = np.random.default_rng(0).normal(2, 0.5, 20)
    before, after = rows(losses), rows(losses + 0.02)
    earlier, later = (
        revision(loss_of(value, value - 1, value + 1), {"base": measured, "tuned": measured, "other": measured})
        for value, measured in ((2.0, before), (2.02, after))
    )
    change = paired_change(before, after)
    interval = (change["loss_lo"], change["loss_hi"])
    assert gates.paired_interval("evaluate.tuned.loss", earlier, later) == interval
    assert gates.paired_interval("evaluate.base.loss", earlier, later) == interval
    verdict = compare_revisions(gate_of(), earlier, later)
    assert verdict.failed and "(in pairs)" in verdict.line
    others = ("evaluate.other.loss", "evaluate.tuned.rows", "evaluate.tuned.kind.loss", "train.tuned.loss")
    for metric in others:
        assert gates.paired_interval(metric, earlier, later) is None


@pytest.mark.parametrize("name", ["id", "tokens", "answers", "tested"])
def test_rows_that_were_measured_on_something_else_are_no_pairs(name):
    before, after = rows([1.0] * 12), rows([2.0] * 12)
    after[3] |= {name: "another"}
    both = (revision(rows={"tuned": made}) for made in (before, after))
    assert gates.paired_interval("evaluate.tuned.loss", *both) is None


def test_rows_that_lack_a_column_or_are_too_few_give_no_pairs():
    whole, short = rows([1.0] * 12), [{k: v for k, v in row.items() if k != "bytes"} for row in rows([1.0] * 12)]
    for before, after in [(short, whole), (None, whole), (whole, None), (rows([1.0] * 9), rows([1.0] * 9))]:
        both = (revision(rows={"tuned": made} if made else None) for made in (before, after))
        assert gates.paired_interval("evaluate.tuned.loss", *both) is None


def test_each_gate_is_judged_by_its_own_bound_or_revision(monkeypatch):
    main = revision(loss_of(2.0, 1.9, 2.1))
    here = revision(loss_of(2.5, 2.4, 2.6))
    here.outputs = object()
    monkeypatch.setattr(gates, "Revision", lambda name, outputs: {("main", here.outputs): main}[name, outputs])
    verdicts = judge_gates([gate_of(bound=3.0), gate_of(), gate_of(better="higher")], here)
    assert [verdict.failed for verdict in verdicts] == [False, True, False]
    with pytest.raises(UserError, match=r"report\.gates is empty"):
        judge_gates([], here)
    main.metrics = {"evaluate": {"tuned": loss_of(2.0, 1.9, 2.1)}}
    here.stages["evaluate@tuned"]["params"] = {"params.yaml": {"evaluate": None}}
    with pytest.raises(UserError, match=r"judged: .* main are not as .* \('NoneType' object has no attribute 'get'\)"):
        judge_gates([gate_of()], here)


def test_a_gate_on_a_merge_that_was_not_compared_names_the_missing_figure():
    for metrics in ({}, {"merge": {}}):
        with pytest.raises(NoFigureError, match=r"metrics\.json has no figure merge\.parity\.kl"):
            judge_gates([gate_of("merge.parity.kl", bound=0.01)], revision(**metrics))


def test_an_error_without_a_text_is_named_by_its_kind(monkeypatch):
    def fail(*_):
        raise KeyError

    monkeypatch.setattr(gates, "check_bound", fail)
    with pytest.raises(UserError, match=r"as the pipeline writes them \(KeyError\(\)\)"):
        judge_gates([gate_of(bound=1.0)], revision())


def test_the_metrics_of_the_working_tree_must_be_readable(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"metrics\.json cannot be read .*`dvc repro report` makes it"):
        judge_gates([gate_of(bound=1.0)])
    (tmp_path / "metrics.json").write_text('{"evaluate": {"tuned": {"loss": 1.5}}}')
    assert [verdict.failed for verdict in judge_gates([gate_of(bound=1.0), gate_of(bound=2.0)])] == [True, False]


def test_without_a_revision_the_working_tree_is_judged_with_dvcs_outputs(monkeypatch):
    asked = []

    def tree(*arguments):
        asked.append(arguments)
        return revision(loss_of(1.5))

    monkeypatch.setattr(gates, "Revision", tree)
    assert [verdict.failed for verdict in judge_gates([gate_of(bound=1.0)])] == [True]
    ((name, outputs),) = asked
    assert name is None and isinstance(outputs, Outputs)


def test_an_unpaired_interval_combines_the_distances_to_the_ends():
    low, high = gates.unpaired_interval(5.0, 7.0, {"lo": 4.0, "hi": 8.0}, {"lo": 3.0, "hi": 8.0})
    assert (low, high) == pytest.approx((2 - math.hypot(4, 3), 2 + math.hypot(1, 1)))
    low, high = gates.unpaired_interval(5.0, 7.0, None, {"lo": 6.0, "hi": 9.0})
    assert (low, high) == (1.0, 4.0)


@pytest.mark.parametrize(("judged", "failed"), [(0, [True, False]), (1, [False, False])])
def test_a_merge_that_too_few_rows_judged_fails_every_gate_on_it(judged, failed):
    merge = {"parity": {"kl": 0.0003, "judged": judged, "tokens": 56, "rows": 1}}
    gates_of_both = [gate_of("merge.parity.kl", bound=0.01), gate_of("evaluate.tuned.loss", bound=2.0)]
    verdicts = judge_gates(gates_of_both, revision(tuned=loss_of(1.0), merge=merge))
    assert [verdict.failed for verdict in verdicts] == failed
    too_few = "measured on 56 tokens in 1 validation conversation, too few to judge the merge"
    assert (too_few in verdicts[0].line) == failed[0]
