"""The whole pipeline in a clone of the working tree, small enough for tests; conftest.py runs it once for all."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryFile

import psutil
from ruamel.yaml import YAML

from stages.core.yaml_files import read_yaml

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 800  # seconds for a command: a whole run on a busy machine

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


OFFLINE = ROOT / "tests/offline"


def committed(name: str) -> str:
    """A file's text in the last commit: another Python's `dvc repro` leaves its own in the working tree."""
    return subprocess.run(["git", "show", f"HEAD:{name}"], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def succeeds(*command: str) -> bool:
    try:
        return subprocess.run(command, capture_output=True, timeout=60, check=False).returncode == 0
    except OSError:
        return False


def without_network() -> list[str]:
    """The beginning of a command whose processes have no network, where this system allows that; else nothing."""
    ways = (["unshare", "--net"], ["unshare", "--map-root-user", "--net"])
    return next((way for way in ways if succeeds(*way, "true")), [])


def running(printed: str) -> list[str]:
    """The stages that DVC says it starts."""
    return re.findall(r"^Running stage '(.+)':$", printed, re.MULTILINE)


def queue_workers(folder: Path) -> list[psutil.Process]:
    """The workers of DVC's queue in a repository that have not ended."""
    found = []
    for file in (folder / ".dvc/tmp/exps/celery").glob("*.pid"):
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(int(file.read_text()))
            if "queue-worker" in process.cmdline():
                found.append(process)
    return found


class Repository:
    """A clone with DVC in it, whose caches are its own."""

    def __init__(self, folder: Path, cache: Path):
        self.folder = folder
        self.environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "DVC_SITE_CACHE_DIR": str(cache),
            "DVC_NO_ANALYTICS": "1",
            "OMP_NUM_THREADS": "1",  # see conftest.one_thread
            "GIT_CONFIG_GLOBAL": os.devnull,
            **{f"GIT_{who}_{what}": "test@test" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
        }

    def run(self, *command: str, code: int = 0) -> str:
        """Standard output and error of a command, whose exit code must be `code`.

        They go to a file: a pipe would end only with the last worker of DVC's queue that holds it.
        """
        with TemporaryFile("w+") as printed:
            done = subprocess.run(
                command,
                check=False,
                cwd=self.folder,
                env=self.environment,
                stdout=printed,
                stderr=subprocess.STDOUT,
                timeout=PATIENCE,
            )
            printed.seek(0)
            text = printed.read()
        assert done.returncode == code, f"{' '.join(command)} ended with {done.returncode}:\n{text}"
        return text

    def ran(self, *command: str) -> list[str]:
        """The stages that DVC says it ran."""
        return running(self.run("dvc", *command))

    def cut_off(self, log: Path, *command: str, code: int = 0) -> str:
        """As run(), without the network; each attempt to reach it is written to the file `log` and fails."""
        log.touch()
        open_to_all = self.environment
        self.environment = open_to_all | {"PYTHONPATH": str(OFFLINE), "NETWORK_LOG": str(log)}
        try:
            return self.run(*without_network(), *command, code=code)
        finally:
            self.environment = open_to_all

    def killed(self, stage: str, fault: str) -> str:
        """What `dvc repro` printed until SIGKILL ended its process group. fault: module:function:n, the n-th call."""
        done = subprocess.run(
            ["dvc", "repro", stage],
            check=False,
            cwd=self.folder,
            env=self.environment | {"FAULT": f"{fault}:SIGKILL", "PYTHONPATH": str(ROOT / "tests/faults")},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            timeout=PATIENCE,
        )
        assert done.returncode == -signal.SIGKILL, done.stdout
        return done.stdout

    def change(self, dotted: str, value: object) -> None:
        """Sets a key of params.yaml as a person would, its comments kept."""
        yaml, path = YAML(), self.folder / "params.yaml"
        values = yaml.load(path)
        *parents, last = dotted.split(".")
        section = values
        for name in parents:
            section = section[name]
        section[last] = value
        # As another file: an edit that keeps the length, within a second of a checkout, Git may overlook.
        edited = path.with_suffix(".new")
        yaml.dump(values, edited)
        edited.replace(path)

    def clone(self, folder: Path, *, with_data: bool = False) -> "Repository":
        """Another clone: of what is in Git alone, or a copy of everything, DVC's cache included."""
        if with_data:
            shutil.copytree(self.folder, folder, symlinks=True)
        else:
            self.run("git", "clone", "--quiet", str(self.folder), str(folder))
        return Repository(folder, folder.parent / f"{folder.name}-site-cache")

    def commit(self) -> None:
        self.run("git", "add", "--all")
        self.run("git", "commit", "--quiet", "--message", "state", "--allow-empty")

    def hashes(self) -> dict[str, str]:
        """{out: md5} of dvc.lock."""
        stages = read_yaml(self.folder / "dvc.lock")["stages"].values()
        return {out["path"]: out["md5"] for stage in stages for out in stage.get("outs", [])}


def make(folder: Path, base: Path) -> Repository:
    """A fresh clone with 200 rows in it and the model that lies beside `base`, in which nothing has run yet."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    files = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    for file in filter(None, files):
        if (ROOT / file).is_file() and file not in ("dvc.lock", "metrics.json"):
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / file, folder / file)
    shutil.rmtree(folder / "assets/tiny-mistral")
    shutil.copytree(base.parents[1] / "source", folder / "assets/tiny-mistral")
    rows = [{"prompt": f"Add {n} to a number.", "completion": f"def f(x):\n    return x + {n}"} for n in range(200)]
    (folder / "data/source/rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shutil.copy2(folder / "tests/params.yaml", folder / "params.yaml")
    repository = Repository(folder, folder.parent / "site-cache")
    for section, changes in SMALLER.items():
        for key, value in changes.items():
            repository.change(f"{section}.{key}", value)
    repository.run("git", "init", "--quiet", "--initial-branch=main")
    repository.commit()
    return repository


def blocks(page: str, language: str) -> list[str]:
    """The code blocks of a page in one language."""
    return re.findall(rf"(?m)^```{language}\n(.*?)^```", (ROOT / page).read_text(), re.DOTALL)
