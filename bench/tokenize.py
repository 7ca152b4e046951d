"""Encoding conversations: ours beside the raw `tokenizers` library on the same strings and cores, in one run.

    python -m bench.tokenize [ROWS]

The rows are the standard library's functions, repeated up to ROWS (default 100,000). The raw library only encodes the
strings; ours also assembles conversations, labels and masks from them. Needs models/base (`dvc repro download_model`).
"""

import sys
import sysconfig
import time
from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path

from tokenizers import Tokenizer

from stages._download_data.stdlib import stdlib_rows
from stages.shared.params import load_params
from stages.shared.paths import BASE
from stages.shared.prompts import Encoder

BATCH = 1000


def seconds(work: Callable[[list], object], rows: list) -> float:
    started = time.perf_counter()
    for start in range(0, len(rows), BATCH):
        work(rows[start : start + BATCH])
    return time.perf_counter() - started


def main(count: int) -> None:
    functions = [each["row"] for each in stdlib_rows(Path(sysconfig.get_path("stdlib")))]
    rows = [
        [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]
        for row in islice(cycle(functions), count)
    ]
    encoder = Encoder(load_params().prompt)
    raw = Tokenizer.from_file(str(BASE / "tokenizer.json"))
    raw.encode_special_tokens = True

    def encode_raw(batch: list) -> list:
        texts = [message["content"] for messages in batch for message in messages]
        return [each.ids for each in raw.encode_batch(texts, add_special_tokens=False)]

    # Each twice, by turns, and the better one counts: on a shared machine the first is often the slower.
    times = {"tokenizers": [], "ours": []}
    for _ in range(2):
        times["tokenizers"].append(seconds(encode_raw, rows))
        times["ours"].append(seconds(encoder.conversations, rows))
    print(f"{'':12}{'rows/s':>10}{'ratio':>8}")
    reference = min(times["tokenizers"])
    for name, found in times.items():
        print(f"{name:12}{count / min(found):>10.0f}{reference / min(found):>8.2f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)
