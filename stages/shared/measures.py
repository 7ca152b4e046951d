"""What a model's answers are worth: sums over test rows, the measures made of them, and how sure these are."""

import math
from collections.abc import Callable

import numpy as np

Sums = dict[str, np.ndarray]

# Of each row: about the tokens of its answers in the data, and (from `answers` on, 0 where none was generated) about
# the answer that the model wrote.
COUNTS = ("tokens", "loss_sum", "later_tokens", "later_loss_sum", "correct_tokens", "bytes")
GENERATED = ("answers", "ended", "parses", "exact", "chrf", "rouge_l")
COLUMNS = (*COUNTS, *GENERATED)
MEASURES: dict[str, Callable[[Sums], np.ndarray]] = {
    "loss": lambda sums: sums["loss_sum"] / sums["tokens"],
    "perplexity": lambda sums: np.exp(sums["loss_sum"] / sums["tokens"]),
    "loss_after_8": lambda sums: sums["later_loss_sum"] / sums["later_tokens"],
    "perplexity_after_8": lambda sums: np.exp(sums["later_loss_sum"] / sums["later_tokens"]),
    "bits_per_byte": lambda sums: sums["loss_sum"] / math.log(2) / sums["bytes"],
    "token_accuracy": lambda sums: sums["correct_tokens"] / sums["tokens"],
    "ended_share": lambda sums: sums["ended"] / sums["answers"],
    "parses_share": lambda sums: sums["parses"] / sums["answers"],
    "exact_share": lambda sums: sums["exact"] / sums["answers"],
    "chrf": lambda sums: sums["chrf"] / sums["answers"],
    "rouge_l": lambda sums: sums["rouge_l"] / sums["answers"],
}
DRAWS = 2000
LEVEL = 0.95
SEED = 0  # of the draws
FEWEST = 10  # clusters: the spread of fewer says little, and that of one is nothing at all


def clusters_of(sources: list[str], cluster: str) -> list[int]:
    """The number of each row's cluster. `source`: rows of one document, such as a module, are one draw, since
    they resemble each other; where there are fewer than FEWEST documents each row is one by itself."""
    documents = [source.rpartition(":")[0] for source in sources]
    if cluster == "row" or len(set(documents)) < FEWEST:
        return list(range(len(sources)))
    return np.unique(documents, return_inverse=True)[1].tolist()


def drawn(clusters: np.ndarray) -> np.ndarray:
    """(DRAWS, clusters): how often each cluster is drawn when as many as there are are drawn with replacement.

    The cluster bootstrap (Field and Welsh 2007). Two models get the same draws, so that what they share cancels out.
    """
    count = int(clusters.max()) + 1
    draws = np.random.default_rng(SEED).multinomial(count, np.full(count, 1 / count), size=DRAWS)
    return draws.astype(np.float64)  # of whole numbers, but numpy multiplies matrices of these many times as fast


def measured(rows: Sums) -> dict[str, float]:
    """Every measure over all rows; nan where there was nothing to measure."""
    totals = {name: values.sum() for name, values in rows.items()}
    with np.errstate(invalid="ignore", divide="ignore"):
        return {name: float(measure(totals)) for name, measure in MEASURES.items()}


def resampled(rows: Sums, clusters: np.ndarray) -> dict[str, np.ndarray]:
    """{measure: (DRAWS,)}; a draw in which there was nothing to measure is nan."""
    of_clusters = np.stack([np.bincount(clusters, weights=values) for values in rows.values()], axis=1)
    totals = dict(zip(rows, (drawn(clusters) @ of_clusters).T, strict=True))
    with np.errstate(invalid="ignore", divide="ignore"):
        return {name: measure(totals) for name, measure in MEASURES.items()}


def with_intervals(values: dict[str, float], draws: dict[str, np.ndarray]) -> dict[str, float]:
    """Each value with the middle LEVEL of its draws beside it, as siblings in a metrics file."""
    edge, found = (1 - LEVEL) / 2, {}
    for name, value in values.items():
        low, high = np.nanquantile(draws[name], [edge, 1 - edge])
        found |= {name: value, f"{name}_lo": float(low), f"{name}_hi": float(high)}
    return found


def evaluated(rows: Sums, clusters: np.ndarray) -> dict[str, float]:
    """Every measure of one model with its interval. rows: {column: (rows,)}, clusters: (rows,), numbered from 0."""
    return with_intervals(measured(rows), resampled(rows, clusters)) | {"clusters": int(clusters.max()) + 1}


def changed(before: Sums, after: Sums, clusters: np.ndarray) -> dict[str, float]:
    """Every measure's difference, after − before, of two models on the same rows, with its interval."""
    one, other = resampled(before, clusters), resampled(after, clusters)
    start, end = measured(before), measured(after)
    differences = {name: end[name] - start[name] for name in MEASURES}
    return with_intervals(differences, {name: other[name] - one[name] for name in MEASURES})
