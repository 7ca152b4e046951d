"""Intervals: how often they contain the truth, clusters of one document's rows, and the benefit of pairs."""

import math
import warnings

import numpy as np
import pytest

from stages.core.statistics import (
    CALLS,
    COLUMNS,
    DRAWS,
    MEASURES,
    MOST_SLICES,
    SLICE_LENGTHS,
    all_measures,
    changes_with_intervals,
    clusters_of,
    columns_of,
    draw_clusters,
    length_name,
    measures_with_intervals,
    of_calls,
    ratio_interval,
    renumbered_clusters,
    resampled_measures,
    rows_by_slice,
    slice_measures,
)


def rows_of(losses, tokens=10.0) -> dict[str, np.ndarray]:
    """Columns of rows whose tokens have these mean losses. All other columns are 1."""
    losses = np.asarray(losses, float)
    return {name: np.ones(len(losses)) for name in COLUMNS} | {
        "tokens": np.full(len(losses), tokens),
        "loss_sum": losses * tokens,
    }


def population(rng, documents=40, rows=8, shared=0.5, own=0.5):
    """(losses, clusters) of rows that resemble the other rows of their document."""
    clusters = np.repeat(np.arange(documents), rows)
    return 2 + rng.normal(0, shared, documents)[clusters] + rng.normal(0, own, documents * rows), clusters


def coverage(count, cluster_by_document):
    rng, held = np.random.default_rng(1), 0
    for _ in range(count):
        losses, clusters = population(rng)
        found = measures_with_intervals(rows_of(losses), clusters if cluster_by_document else np.arange(len(losses)))
        held += found["loss_lo"] <= 2 <= found["loss_hi"]
    return held / count


def test_the_interval_holds_the_truth_as_often_as_it_says():
    assert 0.89 <= coverage(150, cluster_by_document=True) <= 0.99


def test_rows_of_one_document_drawn_one_by_one_would_promise_too_much():
    assert coverage(60, cluster_by_document=False) < 0.8


def test_the_interval_of_independent_rows_is_the_textbooks():
    losses = np.random.default_rng(0).normal(2, 1, 400)
    found = measures_with_intervals(rows_of(losses), np.arange(400))
    error = 1.96 * losses.std() / math.sqrt(400)
    assert found["loss"] == pytest.approx(losses.mean())
    assert found["loss_hi"] - found["loss_lo"] == pytest.approx(2 * error, rel=0.08)


def test_the_interval_of_a_ratio_is_the_textbooks():
    totals = np.random.default_rng(3).normal(20, 5, 400)
    low, high = ratio_interval(totals, np.full(400, 10))
    spread = 1.96 * totals.std() / 400**0.5 / 10
    middle = totals.mean() / 10
    assert (middle - low, high - middle) == pytest.approx((spread, spread), rel=0.06)


def test_the_interval_of_a_ratio_weights_each_cluster_by_its_count():
    counts = np.array([1000, *[1] * 9])
    low, high = ratio_interval(np.array([0.0, *[1.0] * 9]), counts)
    assert low < 0.005
    assert high == 1  # a draw without the large cluster


def test_fewer_than_ten_clusters_give_a_ratio_no_interval():
    assert ratio_interval(np.ones(9), np.ones(9)) is None
    assert ratio_interval(np.ones(10), np.ones(10)) == (1, 1)


def test_a_difference_in_pairs_is_surer_than_of_two_unrelated_models():
    rng = np.random.default_rng(0)
    losses, clusters = population(rng)
    before, after = rows_of(losses), rows_of(losses - 0.05 + rng.normal(0, 0.05, len(losses)))
    found = changes_with_intervals(before, after, clusters)
    assert found["loss_lo"] < found["loss"] < found["loss_hi"] < 0
    one, other = measures_with_intervals(before, clusters), measures_with_intervals(after, clusters)
    assert other["loss_hi"] > one["loss_lo"], "apart from each other they say nothing"


def test_a_model_and_itself_differ_in_nothing():
    losses, clusters = population(np.random.default_rng(0))
    assert set(changes_with_intervals(rows_of(losses), rows_of(losses), clusters).values()) == {0.0}


def test_the_measures_are_ratios_of_sums():
    rows = {name: np.array([1.0, 3.0]) for name in COLUMNS} | {"tokens": np.array([4.0, 6.0])}
    rows |= {"loss_sum": np.array([10.0, 5.0]), "bytes": np.array([20.0, 10.0])}
    found = all_measures(rows)
    assert found["loss"] == 1.5
    assert found["perplexity"] == pytest.approx(math.exp(1.5))
    assert found["bits_per_byte"] == pytest.approx(15 / math.log(2) / 30)
    assert found["token_accuracy"] == 0.4
    assert set(found) == set(MEASURES)


def test_each_measure_divides_its_own_columns():
    """Each column has a sum of its own, so that another column would give another value."""
    totals = {name: float(number) for number, name in enumerate((*COLUMNS, *CALLS), 2)}
    found = all_measures({name: np.array([total - 1, 1.0]) for name, total in totals.items()})
    loss, later = totals["loss_sum"] / totals["tokens"], totals["later_loss_sum"] / totals["later_tokens"]
    expected = {
        "loss": loss,
        "perplexity": math.exp(loss),
        "loss_after_8": later,
        "perplexity_after_8": math.exp(later),
    }
    expected["bits_per_byte"] = totals["loss_sum"] / totals["bytes"] / math.log(2)
    expected["body_bits_per_byte"] = totals["body_loss_sum"] / totals["body_bytes"] / math.log(2)
    expected["token_accuracy"] = totals["correct_tokens"] / totals["tokens"]
    expected["pass_at_1"] = totals["passed"] / totals["tested"]
    expected["parses_share"] = totals["parses"] / totals["code"]
    for name in ("call_json", "call_name", "call_arguments"):
        expected[f"{name}_share"] = totals[name] / totals["calls"]
    of_answers = {"ended_share": "ended", "exact_share": "exact"}
    for name, column in (of_answers | {"chrf": "chrf", "rouge_l": "rouge_l"}).items():
        expected[name] = totals[column] / totals["answers"]
    assert found == pytest.approx(expected)


def test_the_columns_of_calls_exist_only_where_a_row_has_calls():
    """A row without them counts as none. Every row has the other columns."""
    plain = dict.fromkeys(COLUMNS, 2)
    assert columns_of([plain, plain]).keys() == {*COLUMNS}
    found = columns_of([plain, plain | dict(zip(CALLS, (4, 3, 2, 1), strict=True))])
    assert {name: values.tolist() for name, values in found.items()} == dict.fromkeys(COLUMNS, [2, 2]) | dict(
        zip(CALLS, ([0, 4], [0, 3], [0, 2], [0, 1]), strict=True)
    )
    assert {values.dtype for values in found.values()} == {np.dtype("float64")}
    with pytest.raises(KeyError, match="tokens"):
        columns_of([{name: 1 for name in COLUMNS if name != "tokens"}])


def test_the_share_of_right_calls_is_of_all_calls_and_no_number_without_any():
    sums = {name: np.array([2.0]) for name in CALLS} | {"calls": np.array([8.0])}
    assert of_calls(sums, "call_name").tolist() == [0.25]
    assert np.isnan(of_calls({}, "call_name"))


def test_a_measure_with_nothing_to_measure_is_left_out_and_those_after_it_stay():
    rows = rows_of([1.0] * 12) | dict.fromkeys(("body_bytes", "body_loss_sum"), np.zeros(12))
    found = measures_with_intervals(rows, np.arange(12))
    assert "body_bits_per_byte" not in found
    assert {"loss", "token_accuracy", "pass_at_1", "pass_at_1_lo"} <= found.keys()


def test_numpy_warns_of_nothing_where_there_is_nothing_to_measure():
    """No answer was generated, and none has a byte of text. So there is 0 / 0, a loss / 0, and inf − inf."""
    rows = rows_of([1.0] * 12) | dict.fromkeys(("answers", "ended", "bytes"), np.zeros(12))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert math.isnan(all_measures(rows)["ended_share"])
        assert resampled_measures(rows, np.arange(12))["loss"].shape == (DRAWS,)
        assert "ended_share" not in changes_with_intervals(rows, rows, np.arange(12))


def test_answers_that_were_not_generated_count_for_nothing():
    rows = rows_of([1.0, 2.0, 3.0]) | {"answers": np.array([1.0, 1.0, 0.0]), "ended": np.array([1.0, 0.0, 0.0])}
    assert all_measures(rows)["ended_share"] == 0.5


def test_as_many_clusters_are_drawn_as_there_are_and_the_same_ones_each_time():
    draws = draw_clusters(np.array([0, 1, 2, 2]))
    assert draws.shape == (DRAWS, 3)
    assert set(draws.sum(1)) == {3}
    assert (draws == draw_clusters(np.array([2, 1, 0]))).all()


def test_rows_of_a_document_are_one_cluster_unless_there_are_too_few_documents():
    sources = [f"a{n % 12}.py:{n}" for n in range(36)]
    found = clusters_of(sources, "source")
    assert len(set(found)) == 12
    assert all(one == other for one, other in zip(found, found[12:], strict=False))
    assert clusters_of(sources, "row") == list(range(36))
    assert clusters_of(["one.jsonl:1", "one.jsonl:2"], "source") == [0, 1]
    ten = [f"c:/a{n % 10}.py:{n}" for n in range(20)]  # a colon in the name, and just enough documents
    assert clusters_of(ten, "source") == [*range(10), *range(10)]


def dicts_of(losses, kinds_of_rows) -> list[dict]:
    """Rows as the stage writes them. Each is its own cluster."""
    ones = dict.fromkeys(COLUMNS, 1) | {"tokens": 10, "tested": 0, "passed": 0}
    return [
        {**ones, "loss_sum": 10 * loss, "cluster": number, "slices": {"kind": kind}}
        for number, (loss, kind) in enumerate(zip(losses, kinds_of_rows, strict=True))
    ]


def test_a_slice_is_measured_as_its_rows_alone_would_be():
    losses = np.random.default_rng(0).normal(2, 0.5, 40)
    found = slice_measures(dicts_of(losses, ["a"] * 25 + ["b"] * 15), "kind")
    alone = measures_with_intervals(rows_of(losses[:25]), np.arange(25))
    assert found["a"] == {"rows": 25, "tokens": 250} | {name: alone[name] for name in ("loss", "loss_lo", "loss_hi")}
    assert list(found) == ["a", "b"]  # the most tokens first


def test_few_rows_get_no_interval_and_few_documents_are_drawn_by_row():
    found = slice_measures(dicts_of([2.0] * 9, ["a"] * 9), "kind")
    assert found == {"a": {"rows": 9, "tokens": 90, "loss": 2.0}}
    assert renumbered_clusters(np.zeros(12, int)).tolist() == list(range(12))
    assert renumbered_clusters(np.arange(5, 25) * 2).tolist() == list(range(20))
    assert renumbered_clusters(np.repeat(np.arange(9), 2)).tolist() == list(range(18))
    assert renumbered_clusters(np.repeat(np.arange(10), 2) * 3).tolist() == [n // 2 for n in range(20)]


def test_what_few_clusters_say_gets_no_interval():
    losses = np.random.default_rng(0).normal(2, 0.5, 12)
    enough, few = rows_of(losses), rows_of(losses) | {"answers": np.array([1.0] * 9 + [0.0] * 3)}
    few |= dict.fromkeys(("ended", "chrf"), few["answers"])
    whole = measures_with_intervals(enough, np.arange(12))
    assert {"loss_lo", "loss_hi", "chrf_lo", "chrf_hi"} <= whole.keys()
    found = measures_with_intervals(few, np.arange(12))
    assert found["loss_lo"] == whole["loss_lo"]
    assert found["chrf"] == 1
    assert not {"chrf_lo", "chrf_hi", "ended_share_lo"} & found.keys()
    assert "chrf_lo" not in changes_with_intervals(enough, few, np.arange(12))
    of_one = measures_with_intervals(rows_of([2.0]), np.array([0]))
    assert (of_one["loss"], of_one["clusters"]) == (2, 1)
    assert not [name for name in of_one if name.endswith(("_lo", "_hi"))]
    of_nine_documents = changes_with_intervals(rows_of([2.0] * 18), rows_of([1.0] * 18), np.arange(18) // 2)
    assert of_nine_documents["loss"] == -1
    assert "loss_lo" not in of_nine_documents


def test_only_the_largest_slices_are_shown():
    rows = dicts_of([1.0] * 30, [f"{n % 12:02}" for n in range(30)])
    found = rows_by_slice(rows, "kind")
    assert len(found) == MOST_SLICES
    assert list(found)[:6] == [f"{n:02}" for n in range(6)]  # three rows each
    assert list(rows_by_slice(dicts_of([1.0] * 5, ["a", "b", "c", "b", "c"]), "kind")) == ["b", "c", "a"]


def test_the_names_of_lengths_sort_as_they_do():
    names = [length_name(tokens) for edge in SLICE_LENGTHS for tokens in (edge, edge + 1)]
    assert names == ["to_032", *(name for edge in SLICE_LENGTHS[1:] for name in [f"to_{edge:03}"] * 2), "longer"]
    assert sorted(set(names)) == ["longer", *dict.fromkeys(names[:-1])]


@pytest.mark.parametrize(("documents", "enough"), [(9, False), (10, True), (11, True)])
def test_ten_clusters_are_enough_and_nine_are_not_wherever_clusters_are_counted(documents, enough):
    """Each document has three rows. The ten is written out here, since the report and the gates name it to users."""
    clusters = np.arange(3 * documents) % documents
    expected = clusters.tolist() if enough else list(range(3 * documents))
    assert clusters_of([f"{number:02}.py:1" for number in clusters], "source") == expected
    assert renumbered_clusters(7 * clusters).tolist() == expected
    before, after = (rows_of(np.random.default_rng(seed).normal(2, 0.5, len(clusters))) for seed in (0, 1))
    assert ("loss_lo" in measures_with_intervals(before, clusters)) == enough
    assert ("loss_lo" in changes_with_intervals(before, after, clusters)) == enough


@pytest.mark.parametrize(("answers", "enough"), [(9, False), (10, True)])
def test_only_clusters_with_something_to_measure_are_counted(answers, enough):
    rows = rows_of(np.random.default_rng(0).normal(2, 0.5, 30))
    rows |= dict.fromkeys(("answers", "chrf"), (np.arange(30) < answers).astype(float))
    figures = measures_with_intervals(rows, np.arange(30))
    assert ("chrf_lo" in figures, "loss_lo" in figures) == (enough, True)
