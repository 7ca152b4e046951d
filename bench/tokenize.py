"""The stage `tokenize` beside the raw `tokenizers` library on the same strings and cores, in one run.

    python -m bench.tokenize [ROWS]

The rows are the standard library's functions, repeated up to ROWS (default 100,000) with a number added, so that no
cache helps. The raw library only encodes the strings. Ours is all that the stage does with a split: it starts its
workers, reads data/clean, encodes, packs, and writes the rows. Needs models/base (`dvc repro download_model`).
"""

from stages.runtime.command import command_parser
from stages.runtime.stage_options import positive

import os
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from pathlib import Path

import psutil
from tokenizers import Tokenizer

from stages._download_data.stdlib import stdlib_rows
from stages.core.params import load_params
from stages.core.paths import BASE, CLEAN
from stages.core.records import Record, record_file, record_table
from stages.core.workers import count_workers
from stages.tokenize import SHARD_CONVERSATIONS, tokenize_split

TURNS = 2  # each is measured so often, by turns, and the better one counts: a shared machine has slow moments


def conversations(functions: list[dict], count: int, size: int) -> Iterator[list[list[dict[str, str]]]]:
    """`count` of them in lists of `size`."""
    each = (
        [
            {"role": "user", "content": f"{row['prompt']} ({number})"},
            {"role": "assistant", "content": f"{row['completion']}  # {number}"},
        ]
        for number, row in enumerate(islice(cycle(functions), count))
    )
    return iter(lambda: list(islice(each, size)), [])


def measured(work: Callable[[], object]) -> tuple[float, int]:
    """Seconds, and at its peak the resident memory of this process and its children, in bytes."""
    done, peak = threading.Event(), [0]

    def watch() -> None:
        while not done.wait(0.1):
            found = 0
            for process in (psutil.Process(), *psutil.Process().children()):
                try:
                    found += process.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
            peak[0] = max(peak[0], found)

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    work()
    seconds = time.perf_counter() - started
    done.set()
    watcher.join()
    return seconds, peak[0]


def main(count: int) -> None:
    functions = [each["row"] for each in stdlib_rows(Path(sysconfig.get_path("stdlib")))]
    params = load_params()
    workers = count_workers(params.machine)
    os.environ["RAYON_NUM_THREADS"] = str(workers)
    raw = Tokenizer.from_file(str(BASE / "tokenizer.json"))
    raw.encode_special_tokens = True

    def encode_raw() -> None:
        for batch in conversations(functions, count, 1000):
            texts = [message["content"] for messages in batch for message in messages]
            for each in raw.encode_batch(texts, add_special_tokens=False):
                each.ids  # noqa: B018 the list is made when it is asked for

    def ours() -> None:
        with record_file(Path("rejected.parquet"), "reason") as rejected:
            tokenize_split("train", Path("train.arrow"), rejected, params, SHARD_CONVERSATIONS)

    times: dict[str, list[float]] = {"tokenizers": [], "ours": []}
    peaks = dict.fromkeys(times, 0)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        CLEAN.mkdir(parents=True)
        with record_file(CLEAN / "train.parquet") as file:
            for batch in conversations(functions, count, SHARD_CONVERSATIONS):
                file.write_table(record_table(Record("0" * 32, messages, "stdlib:1") for messages in batch))
        for _ in range(TURNS):
            for name, work in (("tokenizers", encode_raw), ("ours", ours)):
                seconds, peak = measured(work)
                times[name].append(seconds)
                peaks[name] = max(peaks[name], peak)
        os.chdir("/")
    print(f"{count} rows, {workers} cores\n{'':12}{'rows/s':>10}{'ratio':>8}{'peak GB':>10}")
    reference = min(times["tokenizers"])
    for name, found in times.items():
        ratio = reference / min(found)
        print(f"{name:12}{count / min(found):>10.0f}{ratio:>8.2f}{peaks[name] / 1e9:>10.2f}")


if __name__ == "__main__":
    parser = command_parser("bench.tokenize", __doc__)
    parser.add_argument("rows", nargs="?", type=positive, default=100_000, metavar="ROWS", help="default: %(default)s")
    main(parser.parse_args().rows)
