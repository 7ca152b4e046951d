"""A repository of Git and DVC with the pipeline's outputs but none of its work, for tools that look at runs."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from stages.core.statistics import COLUMNS, changes_with_intervals, measures_with_intervals
from tests.support.project import ROOT
from tests.support.repository import Repository

# Each stage copies files from inputs/: a change there is a change of its results.
PIPELINE = """
stages:
  download_model:
    cmd: mkdir -p models && cp inputs/base models/base
    deps: [inputs/base]
    outs: [models/base: {push: false}]
  clean:
    cmd: mkdir -p data && cp -r inputs/clean data/clean
    deps: [inputs/clean]
    params: [clean]
    outs: [data/clean]
  train:
    cmd: mkdir -p metrics && cp inputs/train_curve.csv inputs/validation_curve.csv metrics
    deps: [models/base, data/clean/train.parquet, inputs/train_curve.csv, inputs/validation_curve.csv]
    params: [seed, train]
    outs: [metrics/train_curve.csv, metrics/validation_curve.csv]
  evaluate:
    foreach: {tuned: x}
    do:
      cmd: mkdir -p metrics/evaluate && cp inputs/tuned.* metrics/evaluate
      deps: [data/clean/test.parquet, metrics/train_curve.csv, inputs/tuned.rows.jsonl, inputs/tuned.predictions.jsonl]
      params: [evaluate]
      outs: [metrics/evaluate/tuned.rows.jsonl, metrics/evaluate/tuned.predictions.jsonl]
  report:
    cmd: cp inputs/metrics.json metrics.json
    deps: [metrics/evaluate/tuned.rows.jsonl, inputs/metrics.json]
    metrics: [{metrics.json: {cache: false}}]
"""
ROWS = 40
LOSSES = np.random.default_rng(0).normal(2, 0.5, ROWS)


def rows_of(losses, chrf, prefix="test"):
    ones = dict.fromkeys(COLUMNS, 1) | {"tokens": 10, "later_tokens": 2, "bytes": 30}
    return [
        {"id": f"{prefix}{n}", "source": f"module{n}.py:1", "cluster": n, **ones}
        | {"loss_sum": 10 * loss, "later_loss_sum": 2 * loss, "chrf": score}
        for n, (loss, score) in enumerate(zip(losses, chrf, strict=True))
    ]


def predictions_of(rows, text="answer"):
    fields = {"ended": True, "parses": True, "reference": "the reference"}
    return [
        {"id": row["id"], "source": row["source"], "prompt": f"Write {row['id']}", "output": f"{text} to {row['id']}"}
        | fields
        for row in rows
    ]


class SmallRun(Repository):
    """Its params are those of the profile tiny. Change an attribute; measure() then runs the stages and commits."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.kept, self.rejected = list(range(30)), {"too_long": [30, 31], "duplicate": [32]}
        self.test = [f"test{n}" for n in range(ROWS)]
        self.rows = rows_of(LOSSES, np.full(ROWS, 40.0))
        self.text = "answer"
        self.curve = [3.0, 2.5, 2.2, 2.0]

    def create(self):
        self.folder.mkdir()
        (self.folder / "dvc.yaml").write_text(PIPELINE)
        shutil.copy(ROOT / "tests/params.yaml", self.folder / "params.yaml")
        self.gates([{"metric": "evaluate.tuned.loss", "better": "lower", "bound": None, "against": "main"}])
        self.init()
        self.run("dvc", "config", "core.autostage", "true")
        (self.folder / ".gitignore").write_text("/data\n/metrics\n/models\n")
        self.measure("measured")
        return self

    def measure(self, message):
        self.write()
        self.run("dvc", "repro", "--quiet")
        self.commit(message)

    def gates(self, gates):
        self.change("report.gates", gates)

    def put(self, path, text):
        (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / path).write_text(text, encoding="utf-8")

    def write(self):
        table = {
            "train": [{"id": f"row{n}", "source": f"a.jsonl:{n}"} for n in self.kept],
            "validation": [{"id": "row900", "source": "a.jsonl:900"}],
            "test": [{"id": name, "source": "t.jsonl:1"} for name in self.test],
            "rejected": [
                {"id": f"row{n}", "source": f"a.jsonl:{n}", "reason": reason}
                for reason, rows in self.rejected.items()
                for n in rows
            ],
        }
        for name, rows in table.items():
            path = self.folder / f"inputs/clean/{name}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        lines = "".join(f"{step},{loss}\n" for step, loss in enumerate(self.curve, 1))
        for name in ("train", "validation"):
            self.put(f"inputs/{name}_curve.csv", f"step,loss\n{lines}")
        for kind, rows in (("rows", self.rows), ("predictions", predictions_of(self.rows, self.text))):
            self.put(f"inputs/tuned.{kind}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        self.put("inputs/base", "the base")
        self.put("inputs/metrics.json", json.dumps(self.metrics(), indent=2))

    def metrics(self):
        columns = {name: np.array([row[name] for row in self.rows], float) for name in COLUMNS}
        clusters = np.arange(len(self.rows))
        rejected = {reason: len(rows) for reason, rows in self.rejected.items()}
        counts = {"read": 100, "kept": len(self.kept), "rejected": rejected}
        return {
            "clean": {"rows": counts, "splits": {"train": len(self.kept), "test": len(self.test)}},
            "evaluate": {
                "tuned": measures_with_intervals(columns, clusters),
                "change": changes_with_intervals(columns, columns, clusters),
            },
        }


@pytest.fixture(scope="session")
def small_run(tmp_path_factory) -> SmallRun:
    """A small run, measured once. Several files read it: change a copy of it."""
    return SmallRun(tmp_path_factory.mktemp("small") / "repository").create()
