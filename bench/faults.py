"""Kills `dvc repro` at random moments and compares what comes out in the end with a run that was never killed.

    python -m bench.faults [ROUNDS] [STAGE...]
    python -m bench.faults --table [WORD]    runs the tests of docs/reliability.md's rows: which faults are held here

In a temporary copy of the working tree, on 60 rows. Each of ROUNDS (default 10) rounds forgets the results of one stage
(default train; the rounds take turns where several are named), starts `dvc repro` in a process group of its own, kills
that with SIGKILL, once to three times, after a random part of what the stage took, and lets the last start end.

Prints, for each stage: kills; starts that said which step they went on from; starts that DVC refused as a kill had left
a torn dvc.lock, a .git/index.lock or a torn rwlock, which are then mended as docs/reliability.md says; kills that left
a dvc.lock that can be read and lacks stages; rounds that failed otherwise; and rounds that ended with the same bytes.
"""

from stages.runtime.command import command_parser
from stages.runtime.stage_options import positive

import argparse
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

from bench._faults.pipeline import Pipeline
from bench._faults.table import print_held

COLUMNS = ("rounds", "kills", "resumed", "dvc.lock", "index.lock", "rwlock", "short", "failed", "same")


def measured(pipeline: Pipeline, stages: list[str]) -> tuple[dict[str, float], dict[str, dict[str, str]]]:
    """What each stage takes, and its results, nobody killing it."""
    seconds, results = {}, {}
    for stage in stages:
        pipeline.repro(stage, Counter())
        results[stage] = pipeline.results(stage)
        pipeline.forget(stage)
        started = time.monotonic()
        pipeline.repro(stage, Counter())
        seconds[stage] = time.monotonic() - started
        print(f"{stage} takes {seconds[stage]:.0f} s", file=sys.stderr, flush=True)
    return seconds, results


def play(pipeline: Pipeline, stage: str, seconds: float, chance: random.Random, row: Counter) -> dict[str, str]:
    """A round of kills, and what the stage made in the end."""
    pipeline.forget(stage)
    for _ in range(chance.randint(1, 3)):
        pipeline.repro(stage, row, chance.uniform(0, seconds))
    pipeline.repro(stage, row)
    return pipeline.results(stage)


def print_table(table: dict[str, Counter]) -> None:
    table |= {"all": sum(table.values(), Counter())}
    print(f"{'stage':16}" + "".join(f"{name:>11}" for name in COLUMNS))
    for stage, row in table.items():
        print(f"{stage:16}" + "".join(f"{row[name]:>11}" for name in COLUMNS), flush=True)


def main(rounds: int, stages: list[str]) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # the table is said then, too
    chance = random.Random()  # noqa: S311
    table = {stage: Counter() for stage in stages}
    with tempfile.TemporaryDirectory() as temporary:
        pipeline = Pipeline(Path(temporary))
        seconds, expected = measured(pipeline, stages)
        try:
            for number in range(rounds):
                stage = stages[number % len(stages)]
                row = table[stage]
                row["rounds"] += 1
                try:
                    pipeline.repro(stage, row)  # nothing to do, unless the last round failed
                    if stage == "report":  # it shows how long the stages took that ran since
                        expected[stage] = pipeline.results(stage)
                    row["same"] += play(pipeline, stage, seconds[stage], chance, row) == expected[stage]
                except Exception:  # a round that fails is one of the counts
                    row["failed"] += 1
                    traceback.print_exc()
                print(f"round {number + 1} of {rounds}: {stage}, {dict(row)}", file=sys.stderr, flush=True)
        finally:  # however it ends, what was counted is said
            print_table(table)


def read_options() -> argparse.Namespace:
    parser = command_parser("bench.faults", __doc__)
    parser.add_argument(
        "rounds", nargs="?", type=positive, default=10, metavar="ROUNDS", help="how often (default: %(default)s)"
    )
    parser.add_argument("stages", nargs="*", metavar="STAGE", help="what is killed (default: train)")
    parser.add_argument(
        "--table",
        nargs="?",
        const="",
        metavar="WORD",
        help="run the tests of docs/reliability.md's rows instead; with WORD those of the faults with this word",
    )
    return parser.parse_args()


if __name__ == "__main__":
    options = read_options()
    if options.table is not None:
        sys.exit(print_held(options.table))
    main(options.rounds, options.stages or ["train"])
