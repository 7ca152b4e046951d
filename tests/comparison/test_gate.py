"""Gates: bounds, and comparisons with another revision that allow for chance.

These run in a real repository, so they are slow. tests/comparison/test_gate_verdicts.py has revisions in memory.
"""

import json
import math
import shutil

import numpy as np
import pytest
from ruamel.yaml import YAML

from stages.comparison.gate import judge_gates, unpaired_interval
from stages.core.params import Gate
from stages.report import print_gates as run_gate
from stages.runtime.errors import UserError
from tests.support.gates import LOSSES, gate_of, metrics_of, rows_of
from tests.support.project import ROOT
from tests.support.repository import Repository

pytestmark = pytest.mark.slow

PIPELINE = """
stages:
  evaluate:
    foreach: {tuned: x}
    do:
      cmd: cp source.jsonl metrics/evaluate/${key}.rows.jsonl
      deps: [data/clean/test.parquet, source.jsonl]
      outs: [\"metrics/evaluate/${key}.rows.jsonl\"]
"""


class MeasuredRepository(Repository):
    """A repository with Git and DVC, whose one stage copies source.jsonl to where `evaluate` writes its rows."""

    def __init__(self, folder):
        super().__init__(folder)
        for path in ("metrics/evaluate", "data/clean"):
            (folder / path).mkdir(parents=True)
        (folder / "dvc.yaml").write_text(PIPELINE)
        (folder / "data/clean/test.parquet").write_text("the test split")
        self.init()
        self.measure(rows_of(LOSSES))

    def measure(self, rows, commit=True):
        (self.folder / "source.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (self.folder / "metrics.json").write_text(json.dumps(metrics_of(rows)))
        self.run("dvc", "repro", "--quiet")
        if commit:
            self.commit("measured")


@pytest.fixture(scope="module")
def measured_once(tmp_path_factory):
    folder = tmp_path_factory.mktemp("measured") / "repository"
    folder.mkdir()
    return MeasuredRepository(folder)


@pytest.fixture
def repository(measured_once, tmp_path, monkeypatch):
    """A copy, in which the tuned model of `main` has the losses LOSSES."""
    copied = measured_once.copied(tmp_path / "repository")
    monkeypatch.chdir(copied.folder)
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", copied.environment["DVC_SITE_CACHE_DIR"])
    return copied


@pytest.mark.parametrize(
    ("better", "bound", "failed"), [("lower", 2.5, False), ("lower", 1.5, True), ("higher", 1.5, False)]
)
def test_a_bound_is_a_bound(repository, better, bound, failed):
    (verdict,) = judge_gates([gate_of(better=better, bound=bound)])
    assert verdict.failed is failed
    assert "evaluate.tuned.loss is 2.0" in verdict.line


def test_a_small_change_for_the_worse_is_seen_in_pairs_and_not_without(repository):
    repository.measure(rows_of(LOSSES + 0.02), commit=False)
    (verdict,) = judge_gates([gate_of()])
    assert verdict.failed
    assert "(in pairs): +0.02 to +0.02" in verdict.line
    shutil.rmtree(repository.folder / ".dvc/cache")
    (verdict,) = judge_gates([gate_of()])
    assert not verdict.failed
    assert "(unpaired)" in verdict.line


@pytest.mark.parametrize(
    ("shift", "better", "failed"), [(1.0, "lower", True), (1.0, "higher", False), (-1.0, "lower", False)]
)
def test_a_large_change_fails_also_without_the_other_revisions_rows(repository, shift, better, failed):
    repository.measure(rows_of(LOSSES + shift, prefix="other"), commit=False)
    (verdict,) = judge_gates([gate_of(better=better)])
    assert (verdict.failed, "(unpaired)" in verdict.line) == (failed, True)


def test_noise_fails_no_gate(repository):
    noise = np.random.default_rng(1).normal(0, 0.5, 100)
    repository.measure(rows_of(LOSSES + noise - noise.mean() + 0.01), commit=False)
    (verdict,) = judge_gates([gate_of()])
    assert not verdict.failed


def test_a_figure_without_an_interval_is_compared_as_it_is(repository):
    repository.measure(rows_of(LOSSES[:99]), commit=False)
    (verdict,) = judge_gates([gate_of("clean.rows.kept", "higher")])
    assert verdict.failed
    assert "clean.rows.kept is 99, in main 100; 95 % interval of the difference (exact): -1 to -1" in verdict.line


def test_another_test_split_is_said_and_not_compared(repository):
    (repository.folder / "data/clean/test.parquet").write_text("another one")
    repository.measure(rows_of(LOSSES + 5), commit=False)
    (verdict,) = judge_gates([gate_of()])
    assert not verdict.failed
    assert "not compared, since the test split is another one" in verdict.line


def test_rows_that_lie_here_from_another_commit_are_not_taken_for_this_ones(repository):
    lying = (repository.folder / "metrics/evaluate/tuned.rows.jsonl").read_bytes()
    repository.measure(rows_of(LOSSES + 0.5))
    path = repository.folder / "metrics/evaluate/tuned.rows.jsonl"
    path.unlink()
    path.write_bytes(lying)
    (verdict,) = judge_gates([gate_of(against="HEAD~1")])
    assert verdict.failed
    assert "(in pairs): +0.5 to +0.5" in verdict.line  # from DVC's cache
    shutil.rmtree(repository.folder / ".dvc/cache")
    assert "(unpaired)" in judge_gates([gate_of(against="HEAD~1")])[0].line


def test_an_evaluation_with_other_params_is_said_and_not_compared(repository):
    yaml = YAML()
    lock = yaml.load(repository.folder / "dvc.lock")
    lock["stages"]["evaluate@tuned"]["params"] = {"params.yaml": {"evaluate": {"max_new_tokens": 64}}}
    yaml.dump(lock, repository.folder / "dvc.lock")
    (verdict,) = judge_gates([gate_of()])
    assert (verdict.failed, verdict.judged) == (False, False)
    assert verdict.line.endswith("not compared, since evaluate.max_new_tokens was None and is 64")


def with_figures(repository, **figures):
    path = repository.folder / "metrics.json"
    metrics = json.loads(path.read_text())
    metrics["evaluate"]["tuned"] |= figures
    path.write_text(json.dumps(metrics))


def test_an_evaluation_of_fewer_answers_is_said_and_not_compared(repository):
    with_figures(repository, rows=100, generated_rows=40)
    repository.run("git", "commit", "--all", "--quiet", "--message", "counted")
    with_figures(repository, generated_rows=20, chrf=80.0, chrf_lo=79.0, chrf_hi=81.0)
    (verdict,) = judge_gates([gate_of("evaluate.tuned.chrf", "higher")])
    assert verdict.line.endswith("not compared, since evaluate.tuned.generated_rows was 40 and is 20")
    assert not verdict.judged


def test_rows_that_were_answered_otherwise_are_no_pairs(repository):
    repository.measure([row | {"answers": int(n < 50)} for n, row in enumerate(rows_of(LOSSES + 0.02))], commit=False)
    assert "(unpaired)" in judge_gates([gate_of()])[0].line


def test_a_figure_that_the_other_revision_lacks_hinders_no_other_gate(repository):
    with_figures(repository, novelty=0.5)
    new, old = judge_gates([gate_of("evaluate.tuned.novelty"), gate_of()])
    assert "not compared, since main does not have it" in new.line
    assert (new.judged, old.judged) == (False, True)


def test_a_measure_of_too_few_rows_for_an_interval_is_not_compared(repository):
    path = repository.folder / "metrics.json"
    metrics = json.loads(path.read_text())
    del metrics["evaluate"]["tuned"]["loss_lo"], metrics["evaluate"]["tuned"]["loss_hi"]
    path.write_text(json.dumps(metrics))
    (verdict,) = judge_gates([gate_of()])
    assert not verdict.judged
    assert "fewer than 10 rows give no interval" in verdict.line


@pytest.mark.parametrize("value", [float("nan"), float("inf"), True, "1"])
def test_what_is_no_number_passes_no_gate(repository, value):
    with_figures(repository, loss=value)
    for gate in (gate_of(bound=9.0), gate_of()):
        with pytest.raises(UserError, match=r"has no figure evaluate\.tuned\.loss"):
            judge_gates([gate])


def test_files_that_are_not_as_the_pipeline_writes_them_are_an_error_without_a_traceback(repository):
    with_figures(repository, loss_hi=None)
    with pytest.raises(UserError, match=r"only a part of the interval of evaluate\.tuned\.loss"):
        judge_gates([gate_of()])
    repository.run("git", "checkout", "--", ".")
    (repository.folder / "dvc.lock").write_text("stages:\n<<<<<<< HEAD\n  train: 1\n=======\n")
    with pytest.raises(UserError, match=r"cannot be judged: dvc\.lock"):
        judge_gates([gate_of()])


def test_the_interval_of_a_difference_leans_as_those_of_its_sides_do():
    low, high = unpaired_interval(5.0, 7.0, {"lo": 4.0, "hi": 8.0}, {"lo": 3.0, "hi": 8.0})
    assert (low, high) == pytest.approx((2 - math.hypot(4, 3), 2 + math.hypot(1, 1)))
    assert unpaired_interval(5.0, 7.0, None, None) == (2.0, 2.0)


@pytest.mark.parametrize(
    ("gates", "words"),
    [
        ([], "report.gates is empty"),
        ([gate_of("evaluate.tuned.lost")], r"metrics\.json has no figure evaluate\.tuned\.lost"),
        ([gate_of("evaluate", bound=1.0)], "has no figure evaluate"),
        ([gate_of(against="gone")], r"metrics\.json of 'gone' cannot be read"),
    ],
)
def test_a_gate_that_checks_nothing_is_an_error(repository, gates, words):
    with pytest.raises(UserError, match=words):
        judge_gates(gates)


def test_the_command_says_what_failed_and_exits_with_1(repository, capsys):
    yaml = YAML()
    values = yaml.load(ROOT / "params.yaml")
    gates = [gate_of(bound=bound).model_dump() for bound in (3.0, 1.0)]
    values["report"]["gates"] = gates[:1]
    yaml.dump(values, repository.folder / "params.yaml")
    run_gate()
    values["report"]["gates"] = gates
    yaml.dump(values, repository.folder / "params.yaml")
    with pytest.raises(SystemExit) as caught:
        run_gate()
    assert caught.value.code == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["passed", "passed", "FAILED"]


@pytest.mark.parametrize("change", [{"bound": 1.0}, {"against": None}, {"against": "--output=x"}])
def test_a_gate_has_a_bound_or_a_revision(change):
    values = {"metric": "clean.rows.kept", "better": "higher", "bound": None, "against": "main"}
    with pytest.raises(ValueError, match="either bound|not the name of a revision"):
        Gate(**values | change)
