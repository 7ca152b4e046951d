"""`train` beside TRL's SFTTrainer, in one table.

    python -m bench.train [--config tiny|7b] [--steps N] [--turns N] [--only NAME...] [--unsloth PYTHON]
    python -m bench.train --config 7b --profile NAME
    python -m bench.train --curve SEEDS --steps 200 --only NAME...

tiny: models/base and data/tokenized as they are (`dvc repro tokenize`), on whatever device there is. 7b: a base of
Mistral-7B's shape with random weights, on a GPU. Its rows are those of data/clean at the length of the profile
mistral-7b. Base and rows are made here. Each contender runs in a process of its own, by turns, and the faster of them
counts. All get the same conversations, base, adapter and optimizer. The loss is that of held-out rows after all
conversations were trained once, with the same number of trained tokens. On a GPU, MFU is the rate of useful operations
beside that of a product of 8192 by 8192 matrices in bf16, which is measured first.

--curve shows how the training's loss falls, by fifths of the run: its mean over SEEDS seeds and their range. The seed
shapes the adapter's start, the order and dropout. On a GPU the seeds run at the same time.
"""

from stages.runtime.command import QUIET, command_parser
from stages.runtime.stage_options import positive

import argparse
import dataclasses
import json
import os
import random
import statistics
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from stages.core.params import Params, check_params, load_params
from stages.core.paths import BASE, CLEAN, TOKENIZED
from tools._profile.profiles import profile_values

if TYPE_CHECKING:
    from bench._train.measure import Result

os.environ |= QUIET | {"HF_HUB_OFFLINE": "1"}
warnings.simplefilter("ignore")
UNSLOTH = "Unsloth"
TIMED_OUT = 3600
HELD = 64
PARTS = 5  # of a curve


def settings(config: str, seed: int | None = None) -> Params:
    """params.yaml, with the same short warm-up for all; for 7b one batch of the profile mistral-7b a step."""
    params = check_params(profile_values("mistral-7b")) if config == "7b" else load_params()
    train = {"lr_scheduler": "constant", "warmup_steps": 0, "epochs": 1.0, "weight_decay": 0.0, "deterministic": False}
    if config == "7b":
        train |= {"batch_size": 4, "gradient_accumulation_steps": 1}
    seed = params.seed if seed is None else seed
    return params.model_copy(update={"train": params.train.model_copy(update=train), "seed": seed})


def contender_name(text: str) -> str:
    """The name of a contender, as a type of argparse. Only this needs the libraries, which load for seconds."""
    from bench._train.contenders import CONTENDERS, ON_A_GPU

    names = [*CONTENDERS, *ON_A_GPU]
    if text not in names:
        raise argparse.ArgumentTypeError(f"there is no {text!r}. There are: {'; '.join(names)}")
    return text


def chosen(params: Params, steps: int, rows_folder: Path) -> list[dict]:
    """Conversations that fill `steps` optimizer steps of packed rows, as good as full."""
    from bench._train.base import conversations, packed_rows

    train = params.train
    wanted = steps * train.batch_size * train.gradient_accumulation_steps
    some = conversations("train", params.tokenize.max_length, rows_folder)
    rows = packed_rows(some, params.tokenize.max_length)
    random.Random(0).shuffle(rows)  # noqa: S311 the packing begins with the longest conversations
    rows = rows[:wanted]
    found = []
    for row in rows:
        start = 0
        for length in row["seq_lengths"]:
            found.append({name: row[name][start : start + length] for name in ("input_ids", "labels")})
            start += length
    return found


def one(name: str, config: str, steps: int, seed: int | None = None, profiled: bool = False) -> "Result | None":
    if name.startswith(UNSLOTH):
        import unsloth  # noqa: F401 first: it patches the libraries that follow
    from bench._train.base import RANDOM, RANDOM_ROWS, conversations
    from bench._train.contenders import CONTENDERS, ON_A_GPU, Ours
    from bench._train.measure import run
    from bench._train.profiled import OneStep, breakdown

    params = settings(config, seed)
    folder, rows_folder = (RANDOM, RANDOM_ROWS) if config == "7b" else (BASE, TOKENIZED)
    contender = (CONTENDERS | ON_A_GPU)[name]
    if isinstance(contender, Ours):
        params = contender.params(params)
    trainer = contender.trainer(folder, chosen(params, steps, rows_folder), params)
    if profiled:
        step = OneStep()
        trainer.add_callback(step)
        trainer.train()
        print(breakdown(step))
        return None
    length = params.tokenize.max_length
    return run(trainer, conversations("validation", length, rows_folder)[:HELD], length)


def table(results: "dict[str, Result]", product: float | None) -> str:
    """product: FLOP/s of a matrix product on this GPU."""
    columns = ["trained tokens/s", "all tokens/s", "MFU", "ours to it", "s a step", "peak GiB", "estimated"]
    columns += ["trained tokens", "loss after"]
    lines = [f"| | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    ours = results.get("ours")
    for name, r in results.items():
        ratio = f"{ours.trained_per_second / r.trained_per_second:.2f}" if ours else ""
        mfu = f"{r.tokens_per_second * r.flop / product:.3f}" if product else ""
        estimated = f"{r.estimated / 2**30:.2f}" if product and r.estimated else ""
        lines.append(
            f"| {name} | {r.trained_per_second:.0f} | {r.tokens_per_second:.0f} | {mfu} | {ratio} | "
            f"{r.step_seconds:.3f} | {r.peak / 2**30:.2f} | {estimated} | {r.all_trained} | {r.loss:.4f} |"
        )
    return "\n".join(lines)


def fifths(result: "Result") -> list[float]:
    """The mean loss of each fifth of the run."""
    size = len(result.losses) / PARTS
    return [statistics.fmean(result.losses[round(i * size) : round((i + 1) * size)]) for i in range(PARTS)]


def curves(results: "dict[str, list[Result]]") -> str:
    """results: by name, one for each seed."""
    parts = [f"{100 * part // PARTS}–{100 * (part + 1) // PARTS} %" for part in range(PARTS)]
    lines = [f"| loss | {' | '.join(parts)} | held out | trained tokens |", f"|---|{'---|' * (PARTS + 2)}"]
    for name, some in results.items():
        columns = [*zip(*map(fifths, some), strict=True), [each.loss for each in some]]
        cells = [f"{statistics.fmean(each):.4f} ({min(each):.4f}–{max(each):.4f})" for each in columns]
        lines.append(f"| {name} | {' | '.join(cells)} | {some[0].all_trained} |")
    return "\n".join(lines)


def started(name: str, options: argparse.Namespace, seed: int | None = None) -> "Result | None":
    """In a process of its own; None where it failed, which it says."""
    from bench._train.measure import Result

    interpreter = options.unsloth if name.startswith(UNSLOTH) else sys.executable
    command = [interpreter, "-m", "bench.train", "--one", name]
    command += ["--config", options.config, "--steps", str(options.steps)]
    command += [] if seed is None else ["--seed", str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMED_OUT, check=False)  # noqa: S603
    if done.returncode:
        print(f"{name}: {(done.stderr.strip().splitlines() or ['ended by a signal'])[-1]}", flush=True)
        return None
    found = Result(**json.loads(done.stdout.strip().splitlines()[-1]))
    print(
        f"{name}: {found.trained_per_second:.0f} trained tokens/s, {found.tokens_per_second:.0f} in all, "
        f"{found.peak / 2**30:.2f} GiB, loss {found.loss:.4f}",
        flush=True,
    )
    return found


def by_turns(names: list[str], options: argparse.Namespace) -> "dict[str, Result]":
    """The faster of each one's runs."""
    best: dict[str, Result] = {}
    for _ in range(options.turns):
        for name in names:
            found = started(name, options)
            if found and (name not in best or found.trained_per_second > best[name].trained_per_second):
                best[name] = found
    return best


def by_seeds(names: list[str], options: argparse.Namespace) -> "dict[str, list[Result]]":
    import torch

    first = settings(options.config).seed
    seeds = range(first, first + options.curve)
    found = {}
    with ThreadPoolExecutor(options.curve if torch.cuda.is_available() else 1) as pool:
        for name in names:
            results = list(pool.map(lambda seed, name=name: started(name, options, seed), seeds))
            if all(results):
                found[name] = results
    return found


def read_options(arguments: list[str]) -> argparse.Namespace:
    parser = command_parser("bench.train", __doc__)
    parser.add_argument("--config", choices=("tiny", "7b"), default="tiny", help="default: %(default)s")
    parser.add_argument(
        "--steps", type=positive, default=10, metavar="N", help="optimizer steps of each (default: %(default)s)"
    )
    parser.add_argument("--one", help=argparse.SUPPRESS)  # the contender of a process that started() starts
    parser.add_argument(
        "--profile", type=contender_name, metavar="NAME", help="where the time of one of its steps goes"
    )
    parser.add_argument(
        "--turns", type=positive, default=2, metavar="N", help="runs of each; the fastest counts (default: %(default)s)"
    )
    parser.add_argument("--curve", type=positive, metavar="SEEDS", help="how the loss falls, with so many seeds")
    parser.add_argument("--seed", type=int, help=argparse.SUPPRESS)
    parser.add_argument(
        "--unsloth", metavar="PYTHON", help="an interpreter with Unsloth, which pins libraries of its own"
    )
    parser.add_argument(
        "--only", nargs="*", type=contender_name, metavar="NAME", help="of the contenders only these (default: all)"
    )
    return parser.parse_args(arguments)


def check_inputs(config: str) -> None:
    """Ends the process with what to do where something is missing."""
    import torch

    if config == "7b" and not torch.cuda.is_available():
        sys.exit("bench.train: --config 7b needs a CUDA GPU, and PyTorch sees none. Leave it out to rehearse")
    folder, kind = (CLEAN, "parquet") if config == "7b" else (TOKENIZED, "arrow")
    needed = [BASE / "manifest.json", *(folder / f"{split}.{kind}" for split in ("train", "validation"))]
    if missing := [str(path) for path in needed if not path.exists()]:
        sys.exit(f"bench.train: {', '.join(missing)} missing. Run `dvc repro tokenize` first")


def make_seven() -> None:
    """The base with random weights where it is not there yet, and rows of its length."""
    from bench._train.base import RANDOM, RANDOM_ROWS, random_7b, tokenize_rows
    from bench._train.measure import clear

    tokenize_rows(settings("7b"), RANDOM_ROWS)
    if not (RANDOM / "manifest.json").exists():
        random_7b(RANDOM)
        clear()


def main(options: argparse.Namespace) -> None:
    if options.one:
        print(json.dumps(dataclasses.asdict(one(options.one, options.config, options.steps, options.seed))))
        return
    check_inputs(options.config)
    if options.config == "7b":
        make_seven()
    if options.profile:
        one(options.profile, options.config, options.steps, profiled=True)
        return
    import torch

    from bench._train.contenders import CONTENDERS, ON_A_GPU
    from bench._train.measure import clear, product_rate

    on_gpu = torch.cuda.is_available()
    product = product_rate() if on_gpu else None
    device = torch.cuda.get_device_name() if on_gpu else f"CPU, {torch.get_num_threads()} threads"
    rate = f", {product / 1e12:.0f} TFLOP/s in a bf16 product" if product else ""
    print(f"{device}, torch {torch.__version__}{rate}", flush=True)
    clear()
    names = options.only or list(CONTENDERS | ON_A_GPU if options.config == "7b" else CONTENDERS)
    if options.unsloth is None:
        names = [name for name in names if not name.startswith(UNSLOTH)]
    print(curves(by_seeds(names, options)) if options.curve else table(by_turns(names, options), product))


if __name__ == "__main__":
    main(read_options(sys.argv[1:]))
