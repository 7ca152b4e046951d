"""A copy of the working tree in which `dvc repro` is killed, and what a person does about what a kill may leave."""

import os
import re
import shutil
import signal
import subprocess
from collections import Counter
from pathlib import Path

from ruamel.yaml import YAML

from stages.core.paths import sha256
from stages.core.yaml_files import read_yaml
from stages.runtime.errors import UserError
from tools._profile.profiles import profile_values

ROOT = Path(__file__).resolve().parents[2]
SMALLER = {
    "data.limit": 60,
    "tokenize.max_length": 128,
    "lora.dropout": 0.1,
    "train.epochs": 2.0,
    "train.eval_steps": 7,
    "merge.parity_rows": 4,
    "evaluate.max_rows": 8,
    "evaluate.generate_rows": 4,
    "evaluate.max_new_tokens": 8,
    "machine.device": "cpu",
    "machine.save_steps": 5,
}
PATIENCE = 1800  # seconds for what nobody kills
LEFT = {  # what a kill may leave: how DVC says so when it will not go on
    "dvc.lock": r"dvc\.lock' (validation failed|is invalid)|dvc\.lock.*structure is corrupted",
    "index.lock": r"File exists: .*index\.lock|index\.lock.*File exists",
    "rwlock": r"RWLock-file .*(corrupted|format error)",
}


class FailedError(Exception):
    """A start that ended with an error no kill is known to leave, or did not end."""


def copy_tree(folder: Path) -> None:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],  # noqa: S607
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file() and name not in ("dvc.lock", "metrics.json"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)


class Pipeline:
    def __init__(self, folder: Path):
        self.folder = folder
        self.lock = folder / "dvc.lock"
        copy_tree(folder)
        values = profile_values("tiny", ROOT)
        for key, value in SMALLER.items():
            section, name = key.split(".")
            values[section][name] = value
        YAML().dump(values, folder / "params.yaml")
        self.git("init", "--quiet")
        self.git("add", "--all")
        self.environment = {
            "DVC_NO_ANALYTICS": "1",
            "DVC_SITE_CACHE_DIR": str(folder / "site-cache"),
            "OMP_NUM_THREADS": "1",  # a model this small has several threads wait for each other
        }

    def git(self, *command: str) -> None:
        subprocess.run(["git", *command], cwd=self.folder, check=True)  # noqa: S603, S607

    def start(self, stage: str, patience: float) -> tuple[str, int]:
        """What `dvc repro` printed and its exit code; SIGKILL's where it had not ended after `patience` seconds."""
        process = subprocess.Popen(  # noqa: S603
            # The run cache knows the result of the uninterrupted run, and would bring it back.
            ["dvc", "repro", "--no-run-cache", stage],  # noqa: S607
            cwd=self.folder,
            env=os.environ | self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            printed = process.communicate(timeout=patience)[0]
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            printed = process.communicate()[0]
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        return printed, process.returncode

    def repro(self, stage: str, row: Counter, patience: float = PATIENCE) -> None:
        """One start that ends by itself or is killed; what an earlier kill left in its way is mended and counted."""
        stages = self.locked()
        for _ in range(len(LEFT) + 1):
            printed, code = self.start(stage, patience)
            row["resumed"] += len(re.findall("continues from step", printed))
            if code == -signal.SIGKILL and patience < PATIENCE:
                row["kills"] += 1
                row["short"] += stages > self.locked() > set()
                return
            if code == 0:
                return
            if not self.mended(printed, row):
                break
        raise FailedError(f"{stage} ended with {code}:\n{printed}")

    def mended(self, printed: str, row: Counter) -> bool:
        """Whether DVC said that something a kill had left is in its way. Does what docs/reliability.md says then."""
        left = next((name for name, said in LEFT.items() if re.search(said, printed)), None)
        if left == "rwlock":
            (self.folder / ".dvc/tmp/rwlock").unlink()
        elif left == "index.lock":
            (self.folder / ".git/index.lock").unlink()
        elif left == "dvc.lock":
            (self.folder / ".git/index.lock").unlink(missing_ok=True)  # of a kill before that one
            self.git("checkout", "--quiet", "dvc.lock")
        row[left or "unknown"] += 1
        return left is not None

    def locked(self) -> set[str]:
        """The stages in dvc.lock; none in one that cannot be read, or is not there."""
        try:
            return set(read_yaml(self.lock)["stages"])
        except (UserError, KeyError, TypeError):
            return set()

    def results(self, stage: str) -> dict[str, str]:
        """The hashes that dvc.lock has of a stage's outputs, and the hashes of the files that are there."""
        found = {}
        for out in read_yaml(self.lock)["stages"][stage]["outs"]:
            path = self.folder / out["path"]
            found[out["path"]] = out["md5"]
            files = path.rglob("*") if path.is_dir() else [path]
            found |= {f"./{file.relative_to(self.folder)}": sha256(file) for file in files if file.is_file()}
        return found

    def forget(self, stage: str) -> None:
        """Takes the stage's results out of the workspace and out of dvc.lock, as if it had never run."""
        lock = read_yaml(self.lock)
        for out in lock["stages"].pop(stage)["outs"]:
            path = self.folder / out["path"]
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        YAML().dump(lock, self.lock)
        self.git("add", "dvc.lock")
