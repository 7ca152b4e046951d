"""The pipeline itself on a base of Mistral-7B's shape with random weights: is all of it there, what does it take?

    python -m bench.pipeline [--config 7b|tiny] [--steps N] [--parts PART...] [--folder FOLDER]

In a copy of the working tree, with DVC where it is installed and else stage by stage. Prints what the stages noted of
themselves. Parts, in the order given:
    plan      prints how much memory the training will take on GPUs of several sizes
    train
    kill      trains once more, is killed with SIGKILL behind a checkpoint, goes on, and compares the adapters' bytes
    devices   trains with one process and with two, replicated and sharded, the rows of an optimizer step being the
              same; without dropout, which no two processes draw alike
    merge     and writes the merged weights once more on this device and on the CPU, to say how many modules have other
              4-bit values there than in training; then bench.merge, with PEFT beside it, on this base and adapter
    evaluate  and bench.evaluate, with plain generation beside it, on the merged model
7b needs a GPU, about 120 GB of disk in FOLDER (default: a temporary one), half an hour, and models/base for its
tokenizer; tiny is the rehearsal.
"""

from stages.runtime.command import command_parser
from stages.runtime.stage_options import positive

import argparse
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ruamel.yaml import YAML

from bench._faults.pipeline import ROOT, copy_tree
from stages.core.paths import sha256
from tools._profile.profiles import profile_values

BASE_FOLDER = "random-7b"
DATA = ("hash_code", "download_model", "download_data", "clean", "tokenize")
PLANNED = ("16", "24", "48", "80")  # GiB of GPUs
ADAPTER = "models/adapter/adapter_model.safetensors"
EVALUATED = {"base": "models/base", "tuned": "models/merged"}
CHANGES = {  # of the profile mistral-7b: a local base, local data, few rows
    "model": {"source": "path", "path": BASE_FOLDER, "id": None, "revision": None},
    "data": {"source": "stdlib", "id": None, "revision": None, "limit": 1500},
    "train": {"gradient_accumulation_steps": 2, "eval_steps": 1000, "warmup_steps": 2},
    "merge": {"parity_rows": 16},
    "evaluate": {"max_rows": 64, "generate_rows": 64, "max_new_tokens": 128, "batch_size": 64},
    "machine": {"save_steps": 2},
}
SMALLER = {  # of the rehearsal
    "model": {"path": "assets/tiny-mistral"},
    "data": {"limit": 200},
    "tokenize": {"max_length": 512},
    "train": {"batch_size": 2},
    "evaluate": {"max_rows": 12, "generate_rows": 4, "max_new_tokens": 8, "batch_size": 4},
}


class Copy:
    def __init__(self, folder: Path, config: str, steps: int):
        self.folder, self.steps = folder, steps
        copy_tree(folder)
        self.values = profile_values("mistral-7b", ROOT)
        for changes in (CHANGES, SMALLER if config == "tiny" else {}):
            for section, values in changes.items():
                self.values[section].update(values)
        self.write()
        subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)  # noqa: S607
        self.dvc = shutil.which("dvc") is not None
        self.environment = os.environ | {"DVC_NO_ANALYTICS": "1", "DVC_SITE_CACHE_DIR": str(folder / "site-cache")}

    def take_base(self) -> None:
        """That of bench.train, made where it is not there yet."""
        from bench._train.base import RANDOM

        if not (ROOT / RANDOM / "manifest.json").exists():
            # In a process of its own, which gives the GPU's memory back.
            subprocess.run([sys.executable, "-m", "bench._train.base", str(RANDOM)], cwd=ROOT, check=True)  # noqa: S603
        shutil.copytree(ROOT / RANDOM, self.folder / BASE_FOLDER)

    def write(self) -> None:
        YAML().dump(self.values, self.folder / "params.yaml")

    def start(self, stage: str, *options: str) -> subprocess.Popen:
        name, _, item = stage.partition("@")
        command = ["dvc", "repro", "--single-item", *options, stage]
        if not self.dvc:
            command = [sys.executable, "-m", f"stages.{name}", *([item, EVALUATED[item]] if item else [])]
        return subprocess.Popen(command, cwd=self.folder, env=self.environment, start_new_session=True)  # noqa: S603

    def run(self, stage: str, *options: str) -> float:
        started = time.monotonic()
        if self.start(stage, *options).wait():
            sys.exit(f"{stage} failed")
        return time.monotonic() - started

    def bench(self, module: str, *options: str) -> None:
        command = [sys.executable, "-m", module, *options]
        subprocess.run(command, cwd=self.folder, env=self.environment, check=True)  # noqa: S603

    def notes(self, path: str) -> dict:
        return json.loads((self.folder / "metrics" / path).read_text())

    def limit_steps(self) -> None:
        """train.epochs for so many optimizer steps of the rows that tokenize has made."""
        rows, train = self.notes("tokenize.json")["train"]["packed_rows"], self.values["train"]
        an_epoch = math.ceil(rows / train["batch_size"] / train["gradient_accumulation_steps"])
        train["epochs"] = (self.steps - 0.5) / an_epoch  # the Trainer rounds up
        self.write()

    def adapter(self) -> str:
        return sha256(self.folder / ADAPTER)


def show(title: str, seconds: float, *notes: dict) -> None:
    together = {name: value for note in notes for name, value in note.items()}
    print(f"{title}: {seconds:.1f} s {json.dumps(together)}", flush=True)


def stage(copy: Copy, name: str) -> None:
    seconds = copy.run(name)
    found = copy.notes(f"{name}.json") if name in ("train", "merge") else {}
    show(name, seconds, copy.notes(f"timing/{name}.json"), found)


def plan(copy: Copy) -> None:
    for gibibytes in PLANNED:
        copy.bench("stages.train", "--plan", gibibytes)


def train(copy: Copy) -> None:
    stage(copy, "train")


def kill(copy: Copy) -> None:
    """Behind the first checkpoint, so that the second start has one to go on from."""
    expected = copy.adapter()
    (copy.folder / ADAPTER).unlink()
    process = copy.start("train", "--force", "--no-run-cache")
    checkpoints = copy.folder / ".dvc/tmp/checkpoints"
    while not list(checkpoints.glob("*/step-*/manifest.json")):
        if process.poll() is not None:
            sys.exit("train ended before a checkpoint was there")
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    kept = sorted(path.parent.name for path in checkpoints.glob("*/step-*/manifest.json"))
    seconds = copy.run("train", "--force", "--no-run-cache")
    same = "the same bytes" if copy.adapter() == expected else "OTHER BYTES"
    show(f"killed with {', '.join(kept)} written, went on, {same}", seconds, copy.notes("timing/train.json"))


def merge(copy: Copy) -> None:
    stage(copy, "merge")
    for device in ("cuda", "cpu"):
        command = [sys.executable, "-m", "bench.pipeline", "--write-merged", device, str(copy.folder)]
        subprocess.run(command, cwd=ROOT, check=True)  # noqa: S603
    copy.bench("bench.merge", "--base", "models/base", "--adapter", "models/adapter", "--folder", ".")


def write_merged_on(device: str, folder: Path) -> None:
    """In a process of its own, for its peak of memory."""
    os.chdir(folder)
    import torch

    from stages._merge.adapter import Adapter
    from stages._merge.stream import MergePlan, write_merged
    from stages.core.params import load_params
    from stages.core.paths import ADAPTER, BASE
    from stages.merge import describe_differences, trained_values
    from stages.runtime.runner import peak_memory

    if device == "cuda" and not torch.cuda.is_available():
        print("merge on cuda: there is no CUDA device")
        return
    trained = trained_values(needed=True)
    with tempfile.TemporaryDirectory(dir=folder) as target:
        started = time.monotonic()
        plan = MergePlan(BASE, Adapter(ADAPTER), load_params().quantization, trained, torch.device(device))
        different = write_merged(plan, Path(target))
        notes = {"modules": len(trained.hashes), "other values": len(different), "peak_rss_bytes": peak_memory()}
        if different:
            print(describe_differences(different, len(trained.hashes)), flush=True)
        show(f"merged weights written on {device}", time.monotonic() - started, notes)


def devices(copy: Copy) -> None:
    """Scaling by the median step, since the first ones compile."""
    copy.values["machine"]["save_steps"] = 1000
    copy.values["lora"]["dropout"] = 0.0
    alone = None
    for count, sharding in ((1, "none"), (2, "none"), (2, "fsdp")):
        copy.values["machine"].update(devices=count, sharding=sharding)
        copy.write()
        seconds = copy.run("train", "--force", "--no-run-cache")
        found, timing = copy.notes("train.json"), copy.notes("timing/train.json")
        step = timing["median_step_seconds"]
        alone = alone or step
        more = {name: found[name] for name in ("loss_first", "loss_last", "validation_loss")}
        more |= {"times_one": round(alone / step, 3), "efficiency": round(alone / step / count, 3)}
        show(f"{count} processes, sharding {sharding}", seconds, timing, more)


def evaluate(copy: Copy) -> None:
    for name in ("evaluate@base", "evaluate@tuned"):
        stage(copy, name)
    copy.bench("bench.evaluate", "16", "--turns", "1")


PARTS = {part.__name__: part for part in (plan, train, kill, devices, merge, evaluate)}


def read_options(arguments: list[str]) -> argparse.Namespace:
    parser = command_parser("bench.pipeline", __doc__)
    parser.add_argument("--config", choices=("7b", "tiny"), default="7b", help="default: %(default)s")
    parser.add_argument("--steps", type=positive, default=8, metavar="N", help="optimizer steps (default: %(default)s)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="default: all")
    parser.add_argument("--folder", type=Path, help="where the copy is made (default: a temporary folder)")
    parser.add_argument("--write-merged", nargs=2, metavar=("DEVICE", "FOLDER"), help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(options: argparse.Namespace) -> None:
    if options.write_merged:
        write_merged_on(options.write_merged[0], Path(options.write_merged[1]))
        return
    if options.folder:
        options.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        copy = Copy(Path(temporary), options.config, options.steps)
        if options.config == "7b":
            copy.take_base()
        for name in DATA:
            copy.run(name)
        copy.limit_steps()
        for part in options.parts:
            PARTS[part](copy)


if __name__ == "__main__":
    main(read_options(sys.argv[1:]))
