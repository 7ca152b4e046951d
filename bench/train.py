"""`train` beside TRL's SFTTrainer, in one table.

    python -m bench.train [--config tiny|7b] [--steps N] [--turns N] [--only NAME...] [--unsloth PYTHON]
    python -m bench.train --config 7b --profile NAME

tiny: models/base and data/tokenized as they are (`dvc repro tokenize`), on whatever device there is. 7b: a base of
Mistral-7B's shape with random weights, on a GPU; the rows are those of data/tokenized too, so make them of 2,048 tokens
(tokenize.max_length). Each contender runs in a process of its own, by turns, and the faster of them counts. All
get the same conversations, base, adapter and optimizer. The loss is that of held-out rows after all conversations were
trained once, with the same number of trained tokens.
"""

import argparse
import dataclasses
import json
import os
import random
import subprocess
import sys
import warnings
from pathlib import Path

from stages.shared.stage import QUIET

os.environ |= QUIET | {"HF_HUB_OFFLINE": "1"}
warnings.simplefilter("ignore")
UNSLOTH = "Unsloth"
if "--one" in sys.argv and any(argument.startswith(UNSLOTH) for argument in sys.argv):
    import unsloth  # noqa: F401 it patches the libraries that follow

import torch  # noqa: E402

from bench._train.base import conversations, packed_rows, random_7b  # noqa: E402
from bench._train.contenders import CONTENDERS, ON_A_GPU, Ours  # noqa: E402
from bench._train.measure import Result, clear, run  # noqa: E402
from bench._train.profiled import OneStep, breakdown  # noqa: E402
from stages.shared.params import Params, load_params  # noqa: E402
from stages.shared.paths import BASE  # noqa: E402

ALL = CONTENDERS | ON_A_GPU
RANDOM = Path(".dvc/tmp/bench-7b")
TIMED_OUT = 3600
HELD = 64


def settings(config: str) -> Params:
    """params.yaml, with the same short warm-up for all; for 7b one batch of profiles/mistral-7b.yaml a step."""
    params = load_params(Path("profiles/mistral-7b.yaml")) if config == "7b" else load_params()
    train = {"lr_scheduler": "constant", "warmup_steps": 0, "epochs": 1.0, "weight_decay": 0.0}
    if config == "7b":
        train |= {"batch_size": 4, "gradient_accumulation_steps": 1}
    return params.model_copy(update={"train": params.train.model_copy(update=train)})


def chosen(params: Params, steps: int) -> list[dict]:
    """Conversations that fill `steps` optimizer steps of packed rows, as good as full."""
    train = params.train
    wanted = steps * train.batch_size * train.gradient_accumulation_steps
    some = conversations("train", params.tokenize.max_length)
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


def one(name: str, config: str, steps: int, profiled: bool = False) -> Result | None:
    params = settings(config)
    folder = RANDOM if config == "7b" else BASE
    contender = ALL[name]
    if isinstance(contender, Ours):
        params = contender.params(params)
    trainer = contender.trainer(folder, chosen(params, steps), params)
    if profiled:
        step = OneStep()
        trainer.add_callback(step)
        trainer.train()
        print(breakdown(step))
        return None
    return run(trainer, conversations("validation", params.tokenize.max_length)[:HELD])


def table(results: dict[str, Result]) -> str:
    lines = [
        "| | trained tokens/s | all tokens/s | ours to it | s a step | peak GiB | trained tokens | loss after |",
        "|---|---|---|---|---|---|---|---|",
    ]
    ours = results.get("ours")
    for name, r in results.items():
        ratio = f"{ours.trained_per_second / r.trained_per_second:.2f}" if ours else ""
        lines.append(
            f"| {name} | {r.trained_per_second:.0f} | {r.tokens_per_second:.0f} | {ratio} | {r.step_seconds:.3f} | "
            f"{r.peak / 2**30:.2f} | {r.all_trained} | {r.loss:.4f} |"
        )
    return "\n".join(lines)


def by_turns(names: list[str], config: str, steps: int, turns: int, python: str | None) -> dict[str, Result]:
    best: dict[str, Result] = {}
    for _ in range(turns):
        for name in names:
            if name.startswith(UNSLOTH) and python is None:
                continue
            interpreter = python if name.startswith(UNSLOTH) else sys.executable
            command = [interpreter, "-m", "bench.train", "--one", name, "--config", config, "--steps", str(steps)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=TIMED_OUT, check=False)  # noqa: S603
            if done.returncode:
                print(f"{name}: {(done.stderr.strip().splitlines() or ['ended by a signal'])[-1]}", flush=True)
                continue
            found = Result(**json.loads(done.stdout.strip().splitlines()[-1]))
            print(f"{name}: {found.trained_per_second:.0f} trained tokens/s, loss {found.loss:.4f}", flush=True)
            if name not in best or found.trained_per_second > best[name].trained_per_second:
                best[name] = found
    return best


def read_options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.train")
    parser.add_argument("--config", choices=("tiny", "7b"), default="tiny")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--one", choices=ALL)
    parser.add_argument("--profile", choices=ALL, help="where the time of one of its steps goes")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument(
        "--unsloth", metavar="PYTHON", help="an interpreter with Unsloth, which pins libraries of its own"
    )
    parser.add_argument("--only", nargs="*", choices=ALL)
    return parser.parse_args(arguments)


def main(options: argparse.Namespace) -> None:
    if options.profile:
        one(options.profile, options.config, options.steps, profiled=True)
        return
    if options.one:
        print(json.dumps(dataclasses.asdict(one(options.one, options.config, options.steps))))
        return
    if options.config == "7b" and not RANDOM.exists():
        random_7b(RANDOM)
        clear()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    print(f"{device}, torch {torch.__version__}", flush=True)
    names = options.only or list(ALL if options.config == "7b" else CONTENDERS)
    print(table(by_turns(names, options.config, options.steps, options.turns, options.unsloth)))


if __name__ == "__main__":
    main(read_options(sys.argv[1:]))
