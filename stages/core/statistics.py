"""What a model's answers are worth: sums over test rows, measures made of them, and the measures' intervals."""

import math
from collections.abc import Callable

import numpy as np

Sums = dict[str, np.ndarray]

# The columns of a row. COUNTS are about its answers in the data. Those with body_ are about the part of an answer that
# its completion prompt does not contain. GENERATED is about the answer that the model wrote; 0 where there is none.
BODY = ("body_bytes", "body_loss_sum")
COUNTS = ("tokens", "loss_sum", "later_tokens", "later_loss_sum", "correct_tokens", "bytes", *BODY)
GENERATED = ("answers", "ended", "code", "parses", "exact", "chrf", "rouge_l", "tested", "passed")
COLUMNS = (*COUNTS, *GENERATED)
CALLS = ("calls", "call_json", "call_name", "call_arguments")  # only in rows whose last answer calls tools


def of_calls(sums: Sums, name: str) -> np.ndarray:
    return sums[name] / sums["calls"] if name in sums else np.float64(np.nan)


MEASURES: dict[str, Callable[[Sums], np.ndarray]] = {
    "loss": lambda sums: sums["loss_sum"] / sums["tokens"],
    "perplexity": lambda sums: np.exp(sums["loss_sum"] / sums["tokens"]),
    "loss_after_8": lambda sums: sums["later_loss_sum"] / sums["later_tokens"],
    "perplexity_after_8": lambda sums: np.exp(sums["later_loss_sum"] / sums["later_tokens"]),
    "bits_per_byte": lambda sums: sums["loss_sum"] / math.log(2) / sums["bytes"],
    "body_bits_per_byte": lambda sums: sums["body_loss_sum"] / math.log(2) / sums["body_bytes"],
    "token_accuracy": lambda sums: sums["correct_tokens"] / sums["tokens"],
    "ended_share": lambda sums: sums["ended"] / sums["answers"],
    "parses_share": lambda sums: sums["parses"] / sums["code"],
    "exact_share": lambda sums: sums["exact"] / sums["answers"],
    "chrf": lambda sums: sums["chrf"] / sums["answers"],
    "rouge_l": lambda sums: sums["rouge_l"] / sums["answers"],
    "pass_at_1": lambda sums: sums["passed"] / sums["tested"],
    "call_json_share": lambda sums: of_calls(sums, "call_json"),
    "call_name_share": lambda sums: of_calls(sums, "call_name"),
    "call_arguments_share": lambda sums: of_calls(sums, "call_arguments"),
}
# Measures that some test splits do not have.
ANSWER_MEASURES = ("ended_share", "exact_share", "chrf", "rouge_l")  # only where an answer is generated
OPTIONAL_MEASURES = ("body_bits_per_byte", "parses_share", "pass_at_1", *(f"{name}_share" for name in CALLS[1:]))
SLICED = ("loss", "pass_at_1")  # the measures that are taken for each slice
MOST_SLICES = 10  # values of one slice
SLICE_LENGTHS = (32, 64, 128, 256, 512)  # tokens of a row's answers; the upper ends of the length slices
DRAWS = 2000
LEVEL = 0.95
BOOTSTRAP_SEED = 0  # seed of the draws
FEW_ROWS = 20  # in a split: the figures of fewer rows say little
FEWEST_CLUSTERS = 10  # the spread of fewer clusters says little; one has no spread


def document_of(source: str) -> str:
    return source.rpartition(":")[0]


def clusters_of(sources: list[str], cluster: str) -> list[int]:
    """The number of each row's cluster.

    With `source` all rows of one document, such as a module, are one cluster, since they resemble each other. With
    fewer than FEWEST_CLUSTERS documents each row is its own cluster.

    Args:
        sources: Each row's source, `document:line`.
        cluster: `source` or `row`.
    """
    documents = [document_of(source) for source in sources]
    if cluster == "row" or len(set(documents)) < FEWEST_CLUSTERS:
        return list(range(len(sources)))
    return np.unique(documents, return_inverse=True)[1].tolist()


def draw_clusters(clusters: np.ndarray) -> np.ndarray:
    """How often each cluster is drawn, with as many draws as clusters and with replacement. Shape (DRAWS, clusters).

    This is the cluster bootstrap (Field and Welsh 2007). Two models get the same draws, so that what they share cancels
    out.
    """
    count = int(clusters.max()) + 1
    draws = np.random.default_rng(BOOTSTRAP_SEED).multinomial(count, np.full(count, 1 / count), size=DRAWS)
    return draws.astype(np.float64)  # numpy multiplies matrices of floats many times as fast


def ratio_interval(totals: np.ndarray, counts: np.ndarray) -> tuple[float, float] | None:
    """The interval of sum(totals) / sum(counts) over clusters, by the cluster bootstrap.

    Args:
        totals, counts: Of each cluster. Shape (clusters,).

    Returns:
        (lower end, upper end), or None with fewer than FEWEST_CLUSTERS clusters.
    """
    if len(totals) < FEWEST_CLUSTERS:
        return None
    drawn = draw_clusters(np.arange(len(totals))) @ np.stack([totals, counts], axis=1)
    low, high = np.quantile(drawn[:, 0] / drawn[:, 1], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def all_measures(rows: Sums) -> dict[str, float]:
    """Every measure over all rows. A measure is nan where there was nothing to measure."""
    totals = {name: values.sum() for name, values in rows.items()}
    with np.errstate(invalid="ignore", divide="ignore"):
        return {name: float(measure(totals)) for name, measure in MEASURES.items()}


def resampled_measures(rows: Sums, clusters: np.ndarray) -> dict[str, np.ndarray]:
    """{measure: its values in the draws, of shape (DRAWS,)}. A draw with nothing to measure is nan.

    Only measures that at least FEWEST_CLUSTERS clusters can measure are included.
    """
    of_clusters = np.stack([np.bincount(clusters, weights=values) for values in rows.values()], axis=1)
    clustered = dict(zip(rows, of_clusters.T, strict=True))
    totals = dict(zip(rows, (draw_clusters(clusters) @ of_clusters).T, strict=True))
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            name: measure(totals)
            for name, measure in MEASURES.items()
            if (~np.isnan(measure(clustered))).sum() >= FEWEST_CLUSTERS
        }


def with_intervals(values: dict[str, float], draws: dict[str, np.ndarray]) -> dict[str, float]:
    """The values that are not nan.

    Each with draws also gets `<name>_lo` and `<name>_hi`, the ends of the middle LEVEL of them.
    """
    edge, figures = (1 - LEVEL) / 2, {}
    for name, value in values.items():
        if math.isnan(value):
            continue
        figures[name] = value
        if name in draws:
            low, high = np.nanquantile(draws[name], [edge, 1 - edge])
            figures |= {f"{name}_lo": float(low), f"{name}_hi": float(high)}
    return figures


def measures_with_intervals(rows: Sums, clusters: np.ndarray) -> dict[str, float]:
    """Every measure of one model with its interval.

    Args:
        rows: {column: values of shape (rows,)}
        clusters: Each row's cluster, numbered from 0.
    """
    return with_intervals(all_measures(rows), resampled_measures(rows, clusters)) | {
        "clusters": int(clusters.max()) + 1
    }


def changes_with_intervals(before: Sums, after: Sums, clusters: np.ndarray) -> dict[str, float]:
    """The difference after − before of every measure, with its interval. Both models must have the same rows."""
    draws_before, draws_after = resampled_measures(before, clusters), resampled_measures(after, clusters)
    start, end = all_measures(before), all_measures(after)
    differences = {name: end[name] - start[name] for name in MEASURES}
    with np.errstate(invalid="ignore"):
        draws = {name: draws_after[name] - draws_before[name] for name in draws_before.keys() & draws_after.keys()}
    return with_intervals(differences, draws)


def length_name(tokens: int) -> str:
    """The length slice of an answer with so many tokens. The names sort by length."""
    edge = next((edge for edge in SLICE_LENGTHS if tokens <= edge), None)
    return f"to_{edge:03}" if edge else "longer"


def rows_by_slice(rows: list[dict], name: str) -> dict[str, list[int]]:
    """{value of the slice `name`: positions of its rows}.

    At most MOST_SLICES values, those with the most tokens first.
    """
    places: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        places.setdefault(row["slices"][name], []).append(place)
    tokens = {value: sum(rows[place]["tokens"] for place in members) for value, members in places.items()}
    return {value: places[value] for value in sorted(places, key=lambda value: (-tokens[value], value))[:MOST_SLICES]}


def renumbered_clusters(clusters: np.ndarray) -> np.ndarray:
    """The clusters of some of the rows, numbered from 0. With few clusters each row is its own."""
    numbered = np.unique(clusters, return_inverse=True)[1]
    return numbered if numbered.max() + 1 >= FEWEST_CLUSTERS else np.arange(len(clusters))


def columns_of(rows: list[dict]) -> Sums:
    """The rows as {column: values of shape (rows,)}, for all of COLUMNS; and of CALLS where any row has them."""
    names = (*COLUMNS, *(CALLS if any("calls" in row for row in rows) else ()))
    return {
        name: np.array([row.get(name, 0) if name in CALLS else row[name] for row in rows], np.float64) for name in names
    }


def paired_change(before: list[dict], after: list[dict]) -> dict[str, float]:
    """The difference after − before of every measure, with its interval. The rows are those of rows.jsonl."""
    return changes_with_intervals(columns_of(before), columns_of(after), np.array([row["cluster"] for row in before]))


def slice_measures(rows: list[dict], name: str) -> dict[str, dict[str, float]]:
    """{value of the slice `name`: its figures}.

    These are rows, tokens and the measures in SLICED, with intervals where there are enough rows.
    """
    slices = {}
    for value, places in rows_by_slice(rows, name).items():
        columns = columns_of([rows[place] for place in places])
        draws = renumbered_clusters(np.array([rows[place]["cluster"] for place in places]))
        measured = all_measures(columns)
        values = {key: measured[key] for key in measured if key in SLICED and not math.isnan(measured[key])}
        values = with_intervals(values, resampled_measures(columns, draws))
        slices[value] = {"rows": len(places), "tokens": int(columns["tokens"].sum())} | values
    return slices
