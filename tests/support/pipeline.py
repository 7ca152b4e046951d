"""The whole pipeline in a clone of the working tree, small enough for tests. It runs once for all that only read it."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from tests.support.project import copy_project
from tests.support.repository import Repository, running

ALL = [
    *("hash_code", "download_model", "download_data", "clean", "tokenize", "train", "merge"),
    *("evaluate@base", "evaluate@tuned", "report"),
]
SMALLER = {
    "data": {"source": "file", "path": "data/source/rows.jsonl", "limit": 200},
    "clean": {
        **{"min_characters": 1, "near_duplicate_threshold": None},  # its rows differ in little
        **{"validation_fraction": 0.1, "test_fraction": 0.1},
    },
    "tokenize": {"max_length": 64},
    "lora": {"r": 4, "alpha": 8},
    "train": {"batch_size": 4, "warmup_steps": 1, "eval_steps": 5},
    "merge": {"parity_rows": 2, "max_loss_gap": 0.2, "max_kl": 0.2},
    "evaluate": {"max_rows": 12, "generate_rows": 4, "max_new_tokens": 8, "batch_size": 4},
    "report": {"samples": 2},
    "machine": {"device": "cpu"},
}


def make(folder: Path, base: Path) -> Repository:
    """A fresh clone in which nothing has run yet.

    Args:
        base: models/base of a small model, whose files as downloaded are in ../../source.
    """
    copy_project(folder, without=("dvc.lock", "metrics.json"))
    shutil.rmtree(folder / "assets/tiny-mistral")
    shutil.copytree(base.parents[1] / "source", folder / "assets/tiny-mistral")
    rows = [{"prompt": f"Add {n} to a number.", "completion": f"def f(x):\n    return x + {n}"} for n in range(200)]
    (folder / "data/source/rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    repository = Repository(folder)
    repository.change_sections(SMALLER)
    repository.run("git", "init", "--quiet", "--initial-branch=main")
    repository.commit()
    return repository


@pytest.fixture(scope="session")
def made(tmp_path_factory, small_base) -> Callable[[str], Repository]:
    """made(name) is a fresh clone of the working tree with a small model and 200 rows."""
    return lambda name: make(tmp_path_factory.mktemp(name) / "clone", small_base)


@pytest.fixture(scope="session")
def first_run(tmp_path_factory, small_base) -> Repository:
    """A clone in which everything has run once, committed. Several files read it: change a clone of it.

    The first worker of pytest-xdist that needs it makes it. The others wait for it, then use the same folder.
    Model and data come from files, so it ran without the network. test_reliability.py checks what tried to reach it.
    """
    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "first"
    with FileLock(f"{folder}.lock"):
        if (folder / "done").exists():
            return Repository(folder / "clone")
        shutil.rmtree(folder, ignore_errors=True)  # another worker's attempt that failed
        folder.mkdir()
        repository = make(folder / "clone", small_base)
        printed = repository.cut_off(folder / "attempts", "dvc", "repro")
        assert sorted(running(printed)) == sorted(ALL)
        repository.commit()
        (folder / "done").touch()
        return repository
