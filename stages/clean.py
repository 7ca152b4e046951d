"""Clean: data/raw, data/decontaminate, params `clean` → data/clean/{train,validation,test,rejected}.parquet,
metrics/clean.json, and some rows that each rule rejected in metrics/clean.rejected.json.

Every row that is read is kept in one split, or is in rejected.parquet with its reason and source. Among duplicates,
the row with the lowest id is kept, and `detail` of the others names it.
`machine.workers` processes judge the shards of data/raw; their number changes no byte. Only a few hashes of each row
stay in memory.
test.parquet also has the columns of clean.keep_fields, and `tests` if any row has tests.

    dvc repro clean
"""

from stages.runtime.stage_options import stage_options

import shutil
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pyarrow

from stages._clean.contamination import read_benchmarks
from stages._clean.duplicates import DuplicateKeys, StoredTexts, count_absorbed, find_duplicates
from stages._clean.empty_splits import check_splits
from stages._clean.shards import JudgedShard, ShardJob, judge_shard, read_judged
from stages._clean.tally import Tally
from stages.core.params import Clean, Params
from stages.core.paths import CLEAN, DECONTAMINATE, METRICS, RAW, read_json, sha256, whole_directory, write_json
from stages.core.records import SPLITS, record_file
from stages.core.workers import count_workers, ordered_map
from stages.runtime.counts import listed_counts, plural
from stages.runtime.errors import UserError
from stages.runtime.progress import progress
from stages.runtime.runner import Outcome, run_stage
from stages.runtime.shown import without_private_data
from stages.runtime.small_data import warn_of_small_splits

REJECTED_SAMPLES = METRICS / "clean.rejected.json"


def clean(shards: list[Path], params: Clean, layout: dict, folder: Path, workers: int) -> Tally:
    """Judges the rows in `shards` and writes {train,validation,test,rejected}.parquet to `folder`.

    With clean.check_code: auto all answers must be Python only where `layout` says that they are.

    Args:
        layout: the content of data/raw/format.json.

    Raises:
        UserError: more than params.max_malformed_rows rows do not fit the format.
    """
    if params.check_code == "auto" and layout["python"]:
        params = params.model_copy(update={"check_code": True})
    work = folder / "work"
    work.mkdir()
    jobs = [ShardJob(path, work / f"{number:05}", params, layout) for number, path in enumerate(shards)]
    with progress("clean: rules", len(jobs), " shards") as bar:
        judged = []
        for shard in ordered_map(judge_shard, jobs, workers):
            judged.append(shard)
            bar.advance()
    check_malformed([line for shard in judged for line in shard.malformed], params.max_malformed_rows)
    keys = keys_of(judged)
    duplicates = find_duplicates(keys, params.near_duplicate_threshold, workers)
    tally = write_splits(judged, duplicates, folder)
    tally.absorbed = count_absorbed(keys, duplicates)
    shutil.rmtree(work)
    return tally


def check_malformed(lines: list[str], most: int) -> None:
    """Raises UserError if there are more than `most` malformed rows."""
    if len(lines) > most:
        raise UserError(
            f"malformed rows: {len(lines)}, more than clean.max_malformed_rows ({most}). The "
            f"first: {without_private_data(lines[0])}. Correct them, or raise the limit to have them rejected and "
            "counted"
        )


def keys_of(judged: list[JudgedShard]) -> DuplicateKeys:
    """Joins what the shards hold for the search for duplicates."""
    texts = StoredTexts(
        [shard.job.work.with_suffix(".text") for shard in judged],
        np.repeat(np.arange(len(judged)), [len(shard.ends) for shard in judged]),
        np.concatenate([np.concatenate([[0], shard.ends])[:-1] for shard in judged]),
        np.concatenate([shard.ends for shard in judged]),
    )
    ids, fingerprints = (np.concatenate([getattr(shard, name) for shard in judged]) for name in ("ids", "fingerprints"))
    return DuplicateKeys(ids, [source for shard in judged for source in shard.sources], fingerprints, texts)


def extra_columns(split: str, judged: list[JudgedShard]) -> list[str]:
    """Returns the columns that only the test split has, so that a change of them leaves the other files unchanged."""
    if split != "test":
        return []
    return [*judged[0].job.params.keep_fields, *(["tests"] if any(shard.tested for shard in judged) else [])]


def write_splits(judged: list[JudgedShard], duplicates: dict[int, tuple[str, str]], folder: Path) -> Tally:
    """Writes the four files, with the rows in the order in which they were read.

    Args:
        duplicates: {number of a row: (reason, detail)}. It counts the rows of all shards that passed the rules.
    """
    tally, before = Tally(), 0
    turns = set().union(*(shard.turns for shard in judged))
    with ExitStack() as stack:
        files = {
            split: stack.enter_context(
                record_file(folder / f"{split}.parquet", *extra_columns(split, judged), turns=turns)
            )
            for split in SPLITS
        }
        rejected = stack.enter_context(record_file(folder / "rejected.parquet", "reason", "detail", turns=turns))
        for shard in judged:
            table = read_judged(shard)
            outcomes = np.full(shard.rows, len(SPLITS))
            outcomes[shard.passed] = shard.splits
            reasons, details = table["reason"].to_pylist(), table["detail"].to_pylist()
            for number, place in enumerate(shard.passed.tolist(), before):
                if number in duplicates:
                    outcomes[place] = len(SPLITS)
                    reasons[place], details[place] = duplicates[number]
            before += len(shard.passed)
            for index, (split, file) in enumerate(files.items()):
                kept = outcomes == index
                tally.keep(split, shard.characters[kept[shard.passed]])
                file.write_table(table.select(file.schema.names).filter(pyarrow.array(kept)).cast(file.schema))
            for name, values in (("reason", reasons), ("detail", details)):
                place = table.schema.get_field_index(name)
                table = table.set_column(place, table.schema.field(place), pyarrow.array(values, pyarrow.string()))
            removed = table.select(rejected.schema.names).filter(pyarrow.array(outcomes == len(SPLITS)))
            removed = removed.cast(rejected.schema)
            tally.reject(removed)
            rejected.write_table(removed)
            tally.count(shard, outcomes, table["source"].to_pylist())
    return tally


def main(params: Params) -> Outcome:
    read_benchmarks(DECONTAMINATE, params.clean.decontaminate)  # an error in them must stop the stage first
    shards, workers = sorted(RAW.glob("rows-*.jsonl")), count_workers(params.machine)
    with whole_directory(CLEAN) as folder:
        tally = clean(shards, params.clean, read_json(RAW / "format.json"), folder, workers)
        metrics = tally.metrics()
        check_splits(metrics["splits"], metrics["rows"]["rejected"], folder, params.clean)
        metrics["sha256"] = {split: sha256(folder / f"{split}.parquet") for split in SPLITS}
    write_json(METRICS / "clean.json", metrics)
    write_json(REJECTED_SAMPLES, tally.rejected_samples())
    if line := tally.absorbed_line():
        print(line, flush=True)
    warn_of_small_splits(metrics["splits"], tally.documents("test"))
    counts = ", ".join(f"{count} {split}" for split, count in metrics["splits"].items())
    said = f"{metrics['rows']['kept']} of {plural(metrics['rows']['read'], 'row')} kept: {counts}"
    said += listed_counts("redacted", metrics["redacted"])
    said += listed_counts("turns repaired", metrics["turn_order"]["repaired"])
    return Outcome(said + listed_counts("not read", metrics["unread"]), {"workers": workers})


if __name__ == "__main__":
    stage_options("clean", __doc__)
    run_stage("clean", main)
