"""What a gate says of two revisions in memory. tests/comparison/test_gate.py has gates in a real repository."""

import numpy as np
import pytest

from stages.comparison.gate import check_bound, compare_revisions
from tests.support.gates import LOSSES, RevisionInMemory, gate_of, metrics_of, rows_of


def test_a_figure_at_its_bound_passes_and_one_beyond_it_fails_in_both_directions():
    metrics = metrics_of(rows_of(LOSSES))
    metrics["evaluate"]["tuned"]["loss"] = 2.0
    for better, bounds in {"lower": (2.001, 2.0, 1.999), "higher": (1.999, 2.0, 2.001)}.items():
        verdicts = [check_bound(gate_of(better=better, bound=bound), metrics) for bound in bounds]
        assert [verdict.failed for verdict in verdicts] == [False, False, True], better


@pytest.mark.parametrize(("has_rows", "how"), [(True, "(in pairs)"), (False, "(unpaired)")])
@pytest.mark.parametrize(
    ("shift", "better", "failed"),
    [
        (0.03, "lower", False),
        (-0.03, "lower", False),
        (0.03, "higher", False),
        (-0.03, "higher", False),
        (0.5, "lower", True),
        (-0.5, "lower", False),
        (0.5, "higher", False),
        (-0.5, "higher", True),
    ],
)
def test_noise_fails_no_gate_and_what_is_surely_worse_does(shift, better, failed, has_rows, how):
    """The standard error of the difference is 0.05 in pairs, and 0.09 unpaired."""
    noise = np.random.default_rng(1).normal(0, 0.5, 100)
    earlier = RevisionInMemory("main", rows_of(LOSSES), has_rows=has_rows)
    later = RevisionInMemory(None, rows_of(LOSSES + noise - noise.mean() + shift), has_rows=has_rows)
    verdict = compare_revisions(gate_of(better=better), earlier, later)
    assert (verdict.failed, verdict.judged, how in verdict.line) == (failed, True, True)


@pytest.mark.parametrize("better", ["lower", "higher"])
@pytest.mark.parametrize("metric", ["evaluate.tuned.loss", "clean.rows.kept"])
def test_an_equal_figure_fails_no_gate(metric, better):
    earlier, later = (RevisionInMemory(name, rows_of(LOSSES)) for name in ("main", None))
    verdict = compare_revisions(gate_of(metric, better), earlier, later)
    assert (verdict.failed, verdict.judged) == (False, True)


OF_VALIDATION = ["train.validation_loss", "merge.parity.kl", "merge.naive.kl"]
OF_OTHER_ROWS = ["train.loss_last", "merge.bytes", "evaluate.tuned.loss"]


def validated(name, split, tokens=100):
    """A revision with the figures of these gates, measured on the validation split with this number."""
    metrics = {"train": {"validation_loss": 2.0, "loss_last": 2.0}}
    metrics["merge"] = {"parity": {"kl": 0.1, "tokens": tokens}, "naive": {"kl": 0.1}, "bytes": 5}
    return RevisionInMemory(name, rows_of(LOSSES), metrics=metrics, validation=split)


def test_figures_of_the_validation_split_are_only_compared_on_the_same_split():
    gates = [gate_of(metric) for metric in (*OF_VALIDATION, *OF_OTHER_ROWS)]
    earlier = validated("main", split=1)
    same, changed = ([compare_revisions(gate, earlier, validated(None, split)) for gate in gates] for split in (1, 2))
    assert [verdict.judged for verdict in same] == [True] * 6
    assert [verdict.judged for verdict in changed] == [False] * 3 + [True] * 3
    assert not any(verdict.failed for verdict in changed)
    reason = "not compared, since the validation split is another one"
    assert [verdict.line.endswith(reason) for verdict in changed] == [True] * 3 + [False] * 3


def test_parity_is_only_compared_over_the_same_number_of_tokens():
    earlier, later = validated("main", 1), validated(None, 1, tokens=50)
    verdicts = [compare_revisions(gate_of(metric), earlier, later) for metric in OF_VALIDATION]
    assert [verdict.judged for verdict in verdicts] == [True, False, False]
    assert verdicts[1].line.endswith("not compared, since merge.parity.tokens was 100 and is 50")
