"""Gates, evaluated rows, the metrics of these rows, and revisions in memory."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from stages.comparison.revisions import DVC_LOCK, TEST_FILE, Revision
from stages.core.params import Gate
from stages.core.paths import EVALUATIONS, RESULT
from stages.core.statistics import COLUMNS, measures_with_intervals
from stages.core.yaml_files import read_yaml
from tests.support.project import ROOT

LOSSES = np.random.default_rng(0).normal(2, 0.5, 100)


def gate_of(metric="evaluate.tuned.loss", better="lower", bound=None, against="main"):
    return Gate(metric=metric, better=better, bound=bound, against=None if bound is not None else against)


def rows_of(losses, prefix="x"):
    """The tuned model's rows with these losses. Each is its own cluster."""
    ones = dict.fromkeys(COLUMNS, 1) | {"tokens": 10}
    return [
        {"id": f"{prefix}{n}", "source": f"{n}.py:1", "cluster": n, **ones, "loss_sum": 10 * loss}
        for n, loss in enumerate(losses)
    ]


def metrics_of(rows):
    columns = {name: np.array([row[name] for row in rows], float) for name in COLUMNS}
    figures = measures_with_intervals(columns, np.arange(len(rows)))
    return {"evaluate": {"tuned": figures}, "clean": {"rows": {"kept": len(rows)}}}


class RevisionInMemory(Revision):
    """A revision with its files in memory. Neither Git nor DVC is asked.

    Args:
        name: its name, or None for the working tree.
        rows: {model: its rows}, or the tuned model's rows only, and then metrics.json has their figures.
        has_rows: whether DVC has the rows. Without them only metrics.json is there.
        metrics: more sections of metrics.json.
        validation: a number from which the hash of the validation split is made.
        test: the same for the test split.
        evaluation: the params of `evaluate`.
    """

    def __init__(
        self,
        name: str | None = None,
        rows: list[dict] | dict[str, list[dict]] | None = None,
        *,
        has_rows=True,
        metrics=None,
        validation=0,
        test=0,
        evaluation=None,
    ) -> None:
        figures = metrics_of(rows) if isinstance(rows, list) else {}
        by_model = {"tuned": rows} if isinstance(rows, list) else rows or {}
        lines = {f"{model} of {name}": "".join(json.dumps(row) + "\n" for row in by_model[model]) for model in by_model}
        super().__init__(name, SimpleNamespace(read=lambda md5: lines[md5].encode() if has_rows else None))
        outs = [{"path": str(EVALUATIONS / f"{model}.rows.jsonl"), "md5": f"{model} of {name}"} for model in by_model]
        evaluate = {"deps": [{"path": TEST_FILE, "md5": str(test)}], "outs": outs}
        evaluate["params"] = {"params.yaml": {"evaluate": evaluation or {}}}
        # Real deps, so that this test notices a renamed file.
        deps = read_yaml(ROOT / "dvc.yaml")["stages"]["merge"]["deps"]
        merge = {"deps": [{"path": dep, "md5": str(validation) if "validation" in dep else "0"} for dep in deps]}
        self.files = {
            str(RESULT): json.dumps(figures | (metrics or {})),
            str(DVC_LOCK): json.dumps({"stages": {"evaluate@tuned": evaluate, "merge": merge}}),
        }

    def text(self, path: Path | str) -> str:
        return self.files[str(path)]
