"""The stage `clean`: whole, each rule by itself, and its search for near-duplicates beside two other libraries.

    python -m bench.clean [ROWS ...] [--datatrove PYTHON] [--text-dedup PYTHON]

ROWS is 10000 and 100000 unless given. The rows are put together from the standard library's functions, with duplicates
planted among them (bench/_clean/rows.py). The other libraries are no requirements of ours: each is looked for in the
interpreter that its option names, and left out without one. They get the same texts, cores, and number of bands and
hashes, so the same chance to see a pair of a given similarity; their similarity is that of runs of 5 words, as they
come, where ours, by which the table judges all of them, is of runs of 5 characters; and they compare no texts, only
hashes. The column `processors` has the seconds of all processes together: on a machine that others use too these say
more than those of the clock.
"""

from stages.runtime.command import command_parser
from stages.runtime.stage_options import positive

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

from ruamel.yaml import YAML

from bench._clean.judge import judge
from bench._clean.measure import Measured, measure
from bench._clean.ours import removed
from bench._clean.rows import LAYOUT, THRESHOLD, Rows, read_lines, read_planted, read_records, write_rows
from stages._clean.contamination import contamination, read_benchmarks
from stages._clean.formats import to_messages
from stages._clean.private_data import PERSONAL_KINDS, redact, secret_kinds
from stages._clean.rules import RULES
from stages._clean.signatures import banding
from stages._clean.text_repair import fixed_text
from stages._download_data.stdlib import stdlib_rows
from stages.core.params import Clean, Params
from stages.core.paths import DECONTAMINATE, METRICS, PARAMS, read_json
from tools._profile.profiles import profile_values

ROOT = Path(__file__).resolve().parents[1]
SEED, WORKERS, EXAMINED = 42, 2, 10_000  # EXAMINED: rows at most for what takes long
BENCHMARK = "held_out.jsonl"
PINNED = {"datatrove": "datatrove[processing]==0.10.1 orjson==3.13.0 spacy==3.8.18", "text-dedup": "text-dedup==0.4.0"}
SETTINGS = {
    **{"min_characters": 20, "max_characters": 20_000, "check_code": True, "fix_text": True, "reject_refusals": True},
    "repair_turns": "trim",
    **{"secrets": "redact", "personal_data": "redact", "decontaminate": [BENCHMARK]},
    **{"near_duplicate_threshold": THRESHOLD, "max_malformed_rows": 0, "keep_fields": []},
}


def params_values() -> dict:
    """params.yaml with every rule of `clean` turned on, and as many processes as the others get."""
    values = profile_values("tiny", ROOT)
    values["clean"] |= SETTINGS
    values["machine"] |= {"workers": WORKERS}
    return values


def prepare(rows: Rows, count: int, folder: Path) -> None:
    """A folder in which `python -m stages.clean` runs, with the benchmark's own files beside."""
    write_rows(rows, count, folder)
    YAML().dump(params_values(), folder / PARAMS)
    shutil.copy(ROOT / "dvc.yaml", folder)
    (folder / "stages").symlink_to(ROOT / "stages")
    (folder / DECONTAMINATE).mkdir()
    (folder / DECONTAMINATE / BENCHMARK).write_text("".join(json.dumps(text) + "\n" for text in rows.held_out))


def run(command: list[str], folder: Path) -> Measured:
    # text-dedup imports the hub's library, which must not look for anything.
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hub"), "TOKENIZERS_PARALLELISM": "false"}
    return measure(command, folder, {**os.environ, **offline, "PYTHONPATH": str(ROOT)})


def line(name: str, *cells: str) -> None:
    print(f"{name:<22}" + "".join(f"{cell:>14}" for cell in cells), flush=True)


FIGURES = ("seconds", "processors", "rows/s", "peak memory")


def figures(measured: Measured, count: int) -> tuple[str, ...]:
    rate = f"{count / measured.seconds:,.0f}"
    return f"{measured.seconds:.1f}", f"{measured.processors:.1f}", rate, f"{measured.peak / 2**20:,.0f} MiB"


def whole_stage(count: int, folder: Path) -> None:
    measured = run([sys.executable, "-m", "stages.clean"], folder)
    metrics = read_json(folder / METRICS / "clean.json")["rows"]
    print(f"\nThe whole stage, {count:,} rows, {WORKERS} workers")
    line("", *FIGURES, "kept")
    line("stages.clean", *figures(measured, count), f"{metrics['kept']:,}")
    print("rejected: " + ", ".join(f"{number:,} {reason}" for reason, number in sorted(metrics["rejected"].items())))


def seconds(work: Callable[[], object]) -> float:
    """Of the processor, which is about the same however many others use the machine."""
    started = time.process_time()
    work()
    return time.process_time() - started


def rule_times(lines: list[str], clean: Clean, folder: Path) -> dict[str, float]:
    """{rule: seconds of the processor for these lines of data/raw}. Every rule sees every row."""
    benchmarks = read_benchmarks(folder / DECONTAMINATE, clean.decontaminate)
    rows = [to_messages(json.loads(text)["row"], LAYOUT).messages for text in lines]
    texts = [message["content"] for messages in rows for message in messages]
    shard = folder / "examined.jsonl"
    shard.write_text("".join(lines), encoding="utf-8")
    secret_kinds(), fixed_text("é"), removed([shard], THRESHOLD, 1)  # what they import is not what a row costs
    works: dict[str, Callable[[], object]] = {
        "fix_text": lambda: [fixed_text(text) for text in texts],
        "secrets": lambda: [redact(text, secret_kinds()) for text in texts],
        "personal_data": lambda: [redact(text, PERSONAL_KINDS) for text in texts],
        **{rule.__name__: (lambda rule=rule: [rule(messages, clean) for messages in rows]) for rule in RULES},
        "contamination": lambda: [contamination(messages, benchmarks) for messages in rows],
        "read, ids, duplicates": lambda: removed([shard], None, 1),
    }
    times = {name: seconds(work) for name, work in works.items()}
    near = seconds(lambda: removed([shard], THRESHOLD, 1)) - times["read, ids, duplicates"]
    return times | {"near_duplicates": near}


def each_rule(folder: Path) -> None:
    lines = list(islice(read_lines(folder), EXAMINED))
    times = rule_times(lines, Params.model_validate(params_values()).clean, folder)
    print(f"\nEach rule by itself, {len(lines):,} rows, one process, seconds of the processor")
    line("", "rows/s", "ms/row", "share")
    for name, spent in times.items():
        share = spent / sum(times.values())
        line(name, f"{len(lines) / spent:,.0f}", f"{1000 * spent / len(lines):.3f}", f"{share:.1%}")


def commands(interpreters: dict[str, str | None], folder: Path) -> dict[str, list[str]]:
    """{library: what runs it} of those whose interpreter is given."""
    bands, hashes = banding(THRESHOLD)
    found = {"ours": [sys.executable, "-m", "bench._clean.ours", str(folder), str(WORKERS)]}
    if python := interpreters["datatrove"]:
        found["datatrove"] = [python, "-m", "bench._clean.datatrove", *map(str, (folder, bands, hashes, WORKERS))]
    if python := interpreters["text-dedup"]:
        read = ["--path", "json", "--data_files", str(folder / "texts" / "*.jsonl"), "--split", "train"]
        read += ["--column", "text", "--cache_dir", str(folder / "hub"), "--num_proc", str(WORKERS)]
        how = ["--num_perm", str(bands * hashes), "--b", str(bands), "--r", str(hashes), "--ngram", "5"]
        write = ["--output", str(folder / "text-dedup")]
        found["text-dedup"] = [python, "-m", "text_dedup.minhash", *read, *how, *write]
    return found


def went(name: str, python: str, folder: Path, count: int) -> set[int]:
    """The rows that a library took out."""
    if name == "ours":
        return set(json.loads((folder / "ours.json").read_text()))
    if name == "datatrove":
        files = (folder / "datatrove" / "removed").glob("*.jsonl")
        return {int(json.loads(text)["id"]) for file in files for text in file.read_text("utf-8").splitlines() if text}
    code = "import datasets, json, sys; print(json.dumps(datasets.load_from_disk(sys.argv[1])['id'][:]))"
    kept = subprocess.run([python, "-c", code, str(folder / name)], capture_output=True, check=True, text=True)  # noqa: S603, the interpreter given
    return set(range(count)) - set(map(int, json.loads(kept.stdout)))


def compare(interpreters: dict[str, str | None], count: int, folder: Path) -> None:
    planted, reference = read_planted(folder), None
    bands, hashes = banding(THRESHOLD)
    share = 1 - (1 - THRESHOLD**hashes) ** bands
    print(f"\nNear-duplicates, {count:,} rows, {WORKERS} cores, {bands} bands of {hashes} hashes: of pairs with a")
    print(
        f"similarity of {THRESHOLD} {share:.2%} are expected to be seen. Wrongly: of the rows removed, those that are"
    )
    print("so similar to no row")
    line("", *FIGURES, "ours/theirs", "exact found", "near found", "removed", "wrongly")
    for name, command in commands(interpreters, folder).items():
        measured = run(command, folder)
        found = went(name, command[0], folder, count)
        judged = judge(planted, found, read_records(folder) if count <= EXAMINED else None)
        reference = reference or measured.seconds
        wrongly = "not examined" if judged.wrongly is None else f"{judged.wrongly / max(1, judged.removed):.2%}"
        quality = (f"{judged.exact:.2%}", f"{judged.near:.2%}", f"{judged.removed:,}", wrongly)
        line(name, *figures(measured, count), f"{reference / measured.seconds:.2f}", *quality)
    for name, python in interpreters.items():
        if not python:
            print(f"{name} is left out: pip install {PINNED[name]} into an environment, then --{name} its python")


def main() -> None:
    parser = command_parser("bench.clean", __doc__)
    parser.add_argument(
        "rows", nargs="*", type=positive, default=[10_000, 100_000], metavar="ROWS", help="default: 10000 and 100000"
    )
    for name in PINNED:
        parser.add_argument(f"--{name}", metavar="PYTHON", help="an interpreter with this library")
    options = parser.parse_args()
    interpreters = {name: getattr(options, name.replace("-", "_")) for name in PINNED}
    rows = Rows(stdlib_rows(Path(sysconfig.get_path("stdlib"))), SEED)
    for place, count in enumerate(options.rows):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            spent = seconds(lambda count=count, folder=folder: prepare(rows, count, folder))
            print(f"\n{count:,} rows, {len(read_planted(folder)):,} of them planted duplicates, made in {spent:.0f} s")
            whole_stage(count, folder)
            if place == 0:
                each_rule(folder)
            compare(interpreters, count, folder)


if __name__ == "__main__":
    main()
