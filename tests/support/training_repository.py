"""A repository of Git and DVC with the stage `train`, which really trains, and the hashes of its code."""

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from ruamel.yaml import YAML

from stages.core.yaml_files import read_yaml
from tests.support.data_files import write_rows
from tests.support.project import ROOT
from tests.support.repository import Repository
from tests.support.training import rows

SMALLER = {
    **{"model": {"path": "models/base"}, "data": {"path": "data/tokenized"}},  # each stage checks that they are there
    "lora": {"r": 4, "alpha": 8, "dropout": 0.1},
    "train": {"epochs": 2, "batch_size": 2, "gradient_accumulation_steps": 2, "warmup_steps": 2, "eval_steps": 3},
    "machine": {"device": "cpu", "save_steps": 4},
}
STEPS = 20
OUTS = ("models/adapter", "metrics/train.json", "metrics/train_curve.csv", "metrics/validation_curve.csv")


def tokenized(count: int, seed: int) -> Iterator[dict]:
    """Rows in which each conversation ends with the end-of-sequence token."""
    for row in rows(count, seed):
        ends = [sum(row["seq_lengths"][: index + 1]) - 1 for index in range(len(row["seq_lengths"]))]
        for name in ("input_ids", "labels"):
            row[name] = [2 if index in ends else value for index, value in enumerate(row[name])]
        yield row


class TrainingRepository(Repository):
    """The stage's code, data and base, committed. Nothing has run yet."""

    def __init__(self, folder: Path, small_base: Path):
        super().__init__(folder)
        shutil.copytree(ROOT / "stages", folder / "stages", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(small_base, folder / "models/base")
        shutil.copytree(ROOT / "data/adapters", folder / "data/adapters")
        (folder / "data/tokenized").mkdir()
        for split, count, seed in (("train", 40, 0), ("validation", 3, 1)):
            write_rows(folder / f"data/tokenized/{split}.arrow", list(tokenized(count, seed)))
        shutil.copy(ROOT / "tests/params.yaml", folder / "params.yaml")
        self.change_sections(SMALLER)
        stages = read_yaml(ROOT / "dvc.yaml")["stages"]
        YAML().dump({"stages": {name: stages[name] for name in ("hash_code", "train")}}, folder / "dvc.yaml")
        (folder / ".gitignore").write_text("__pycache__/\n")
        self.init()
        shutil.copy(ROOT / ".dvcignore", folder)
        self.commit()

    def checkpoints(self) -> list[str]:
        return sorted(path.name for path in self.folder.glob(".dvc/tmp/checkpoints/*/step-*"))

    def hashes(self, experiment: str | None = None) -> dict[str, str]:
        hashes = super().hashes(experiment)
        return {path: hashes[path] for path in OUTS}

    def results(self) -> dict[str, str]:
        """{file: sha256} of all that the stage writes, except for times."""
        files = [path for out in OUTS for path in [self.folder / out, *(self.folder / out).glob("*")] if path.is_file()]
        return {str(path.relative_to(self.folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
