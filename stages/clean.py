"""Clean: data/raw, data/decontaminate, params `clean` → data/clean/{train,validation,test,rejected}.parquet,
metrics/clean.json and metrics/clean.rejected.json, some rows that each rule rejected.

Every row read is either kept in one split or stands in rejected.parquet with its reason and where it came from; of
rows that say the same, the one with the lowest id is kept, and `detail` names it. The shards of data/raw are judged by
`machine.workers` processes, and only a few hashes of each row stay in memory; how many there are changes no byte.
test.parquet also has the columns of clean.keep_fields and, where some row of the data brings tests, `tests`.
Run it with `dvc repro clean`.
"""

import shutil
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pyarrow

from stages._clean.contamination import read_benchmarks
from stages._clean.duplicates import Keys, Texts, find_duplicates
from stages._clean.shards import Job, Shard, judge_shard, read_judged
from stages._clean.tally import Tally
from stages.core.params import Clean, Params
from stages.core.paths import CLEAN, DECONTAMINATE, METRICS, RAW, read_json, sha256, whole_directory, write_json
from stages.core.records import SPLITS, record_file
from stages.core.workers import count_workers, ordered_map
from stages.runtime.errors import UserError
from stages.runtime.progress import progress
from stages.runtime.runner import Outcome, run_stage

SAMPLES = METRICS / "clean.rejected.json"


def clean(shards: list[Path], params: Clean, layout: dict, folder: Path, workers: int) -> Tally:
    """Writes {train,validation,test,rejected}.parquet of the rows in `shards` to `folder`.

    Raises:
        UserError: more than params.max_malformed_rows rows do not fit the format.
    """
    work = folder / "work"
    work.mkdir()
    todo = [Job(path, work / f"{number:05}", params, layout) for number, path in enumerate(shards)]
    with progress("clean: rules", len(todo), " shards") as bar:
        judged = []
        for shard in ordered_map(judge_shard, todo, workers):
            judged.append(shard)
            bar.advance()
    refuse_malformed([line for shard in judged for line in shard.malformed], params.max_malformed_rows)
    duplicates = find_duplicates(keys_of(judged), params.near_duplicate_threshold, workers)
    tally = write(judged, duplicates, folder)
    shutil.rmtree(work)
    return tally


def refuse_malformed(lines: list[str], most: int) -> None:
    if len(lines) > most:
        raise UserError(
            f"malformed rows: {len(lines)}, more than clean.max_malformed_rows ({most}). The "
            f"first: {lines[0]}. Mend them, or raise the limit to have them rejected and counted"
        )


def keys_of(judged: list[Shard]) -> Keys:
    texts = Texts(
        [shard.job.work.with_suffix(".text") for shard in judged],
        np.repeat(np.arange(len(judged)), [len(shard.ends) for shard in judged]),
        np.concatenate([np.concatenate([[0], shard.ends])[:-1] for shard in judged]),
        np.concatenate([shard.ends for shard in judged]),
    )
    ids, fingerprints, bands = (
        np.concatenate([getattr(shard, name) for shard in judged]) for name in ("ids", "fingerprints", "bands")
    )
    return Keys(ids, [source for shard in judged for source in shard.sources], fingerprints, bands, texts)


def more_columns(split: str, judged: list[Shard]) -> list[str]:
    """Only the test split has them: what is trained on stays the same bytes when they change."""
    if split != "test":
        return []
    return [*judged[0].job.params.keep_fields, *(["tests"] if any(shard.tested for shard in judged) else [])]


def write(judged: list[Shard], duplicates: dict[int, tuple[str, str]], folder: Path) -> Tally:
    """The files, in the order read. `duplicates` counts the rows that passed, over all shards."""
    tally, before = Tally(), 0
    with ExitStack() as stack:
        files = {
            split: stack.enter_context(record_file(folder / f"{split}.parquet", *more_columns(split, judged)))
            for split in SPLITS
        }
        rejected = stack.enter_context(record_file(folder / "rejected.parquet", "reason", "detail"))
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
                file.write_table(table.select(file.schema.names).filter(pyarrow.array(kept)))
            for name, values in (("reason", reasons), ("detail", details)):
                place = table.schema.get_field_index(name)
                table = table.set_column(place, table.schema.field(place), pyarrow.array(values, pyarrow.string()))
            gone = table.select(rejected.schema.names).filter(pyarrow.array(outcomes == len(SPLITS)))
            tally.reject(gone)
            rejected.write_table(gone)
            tally.count(shard, outcomes, table["source"].to_pylist())
    return tally


def main(params: Params) -> Outcome:
    read_benchmarks(DECONTAMINATE, params.clean.decontaminate)  # what is wrong with them is said before anything
    shards, workers = sorted(RAW.glob("rows-*.jsonl")), count_workers(params.machine)
    with whole_directory(CLEAN) as folder:
        tally = clean(shards, params.clean, read_json(RAW / "format.json"), folder, workers)
        metrics = tally.metrics()
        for split in SPLITS:
            if not metrics["splits"][split]:
                raise UserError(f"no row is left for the {split} split: {metrics['rows']}. See clean in params.yaml")
        metrics["sha256"] = {split: sha256(folder / f"{split}.parquet") for split in SPLITS}
    write_json(METRICS / "clean.json", metrics)
    write_json(SAMPLES, tally.shown())
    counts = ", ".join(f"{count} {split}" for split, count in metrics["splits"].items())
    return Outcome(f"{metrics['rows']['kept']} of {metrics['rows']['read']} rows kept: {counts}", {"workers": workers})


if __name__ == "__main__":
    run_stage("clean", main)
