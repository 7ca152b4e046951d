"""Kills `dvc repro` at random moments and compares what comes out in the end with a run that was never killed.

    python -m bench.faults [RUNS] [STAGE...]

In a temporary copy of the working tree, on 60 rows. Each of RUNS (default 10) rounds forgets the results of one stage
(default train; the rounds take turns where several are named), starts `dvc repro` in a process group of its own, kills
that with SIGKILL, once to three times, after a random part of what the stage took, and lets the last start end.
Prints kills, starts that said which step they went on from, and rounds that ended with the same bytes.
"""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ruamel.yaml import YAML

from stages.shared.params import read_yaml

SMALLER = {
    "data.limit": 60,
    "tokenize.max_length": 128,
    "lora.dropout": 0.1,
    "train.epochs": 2.0,
    "train.eval_steps": 7,
    "merge.parity_rows": 4,
    "merge.max_loss_gap": 0.1,  # the profile's bounds are for as many rows as it has
    "merge.max_kl": 0.1,
    "evaluate.max_rows": 8,
    "evaluate.generate_rows": 4,
    "evaluate.max_new_tokens": 16,
    "machine.device": "cpu",
    "machine.save_steps": 5,
}
ROOT = Path(__file__).resolve().parents[1]


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
        copy_tree(folder)
        values = read_yaml(ROOT / "profiles/tiny.yaml")
        for key, value in SMALLER.items():
            section, name = key.split(".")
            values[section][name] = value
        YAML().dump(values, folder / "params.yaml")
        subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)  # noqa: S607
        self.environment = {
            "DVC_NO_ANALYTICS": "1",
            "DVC_SITE_CACHE_DIR": str(folder / "site-cache"),
            "OMP_NUM_THREADS": "1",  # a model this small has several threads wait for each other
        }

    def repro(self, stage: str, patience: float | None = None) -> tuple[str, bool]:
        """What `dvc repro` printed, and whether it was killed, `patience` seconds after its start."""
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
            return process.communicate()[0], True
        if process.returncode:
            sys.exit(printed)
        return printed, False

    def hashes(self, stage: str) -> dict[str, str]:
        outs = read_yaml(self.folder / "dvc.lock")["stages"][stage]["outs"]
        return {out["path"]: out["md5"] for out in outs if not out["path"].endswith(".timing.json")}

    def forget(self, stage: str) -> None:
        """Takes the stage's results out of the workspace and out of dvc.lock, as if it had never run."""
        for out in self.hashes(stage):
            path = self.folder / out
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        lock = read_yaml(self.folder / "dvc.lock")
        del lock["stages"][stage]
        YAML().dump(lock, self.folder / "dvc.lock")


def main(rounds: int, stages: list[str]) -> None:
    chance = random.Random()  # noqa: S311
    table = {stage: {"rounds": 0, "kills": 0, "resumed": 0, "same": 0} for stage in stages}
    with tempfile.TemporaryDirectory() as temporary:
        pipeline = Pipeline(Path(temporary))
        seconds = {}
        for stage in stages:
            pipeline.repro(stage)
            pipeline.forget(stage)
            started = time.monotonic()
            pipeline.repro(stage)
            seconds[stage] = time.monotonic() - started
        for number in range(rounds):
            stage = stages[number % len(stages)]
            row = table[stage]
            # Nothing to do, but for report: it shows how long the stages took that ran since.
            pipeline.repro(stage)
            expected = pipeline.hashes(stage)
            pipeline.forget(stage)
            for _ in range(chance.randint(1, 3)):
                printed, killed = pipeline.repro(stage, chance.uniform(0, seconds[stage]))
                row["kills"] += killed
                row["resumed"] += len(re.findall("goes on from step", printed))
            row["resumed"] += len(re.findall("goes on from step", pipeline.repro(stage)[0]))
            row["rounds"] += 1
            row["same"] += pipeline.hashes(stage) == expected
            print(f"round {number + 1} of {rounds}: {stage}, {row}", file=sys.stderr, flush=True)
    print(f"{'stage':16}{'rounds':>8}{'kills':>8}{'resumed':>9}{'same bytes':>12}")
    for stage, row in table.items():
        print(f"{stage:16}{row['rounds']:>8}{row['kills']:>8}{row['resumed']:>9}{row['same']:>9} of {row['rounds']}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 10, sys.argv[2:] or ["train"])
