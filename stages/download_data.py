"""Download the data set: params `data` → data/raw.

The shards data/raw/rows-00000.jsonl, rows-00001.jsonl… hold every row as it came, one JSON object a line:
{"source": "file:line", "row": {…}}. For a row that cannot be read it is {"source": …, "unreadable": "the text", "why":
"the reason"}, so that `clean` can count what it rejects. `clean` has one shard a worker in memory.
data/raw/format.json names the format of the rows and the columns from which `clean` reads them. It also says whether
`tests` are tests, which columns were left unread on purpose, and whether all answers are Python.

    dvc repro download_data
"""

from stages.runtime.stage_options import stage_options

import json
import sysconfig
from collections.abc import Iterable, Iterator
from fnmatch import fnmatch
from itertools import islice
from pathlib import Path

from stages._download_data.files import READERS, file_rows, path_rows
from stages._download_data.formats import Survey, describe_layout, recognise
from stages._download_data.stdlib import stdlib_rows
from stages._download_data.text_files import TextSettings
from stages._download_data.url import fetch_url, file_name
from stages.core.params import Data, Params
from stages.core.paths import RAW, whole_directory, write_json
from stages.runtime.counts import plural
from stages.runtime.errors import UserError
from stages.runtime.runner import Outcome, run_stage

SHARD_ROWS = 10_000
SHARD_CHARACTERS = 1 << 24


def hub_rows(data: Data) -> Iterator[dict]:
    """Yields every row of one split of a hub data set at the pinned commit."""
    from stages.core.hub import fetch

    patterns = [f"*{data.split}*{suffix}" for suffix in READERS]
    folder = fetch(data.id, data.revision, "dataset", patterns, "data")
    for path in sorted(folder.rglob("*")):
        # The cache may hold files of another split from an earlier run.
        if any(fnmatch(path.relative_to(folder).as_posix(), pattern) for pattern in patterns):
            yield from file_rows(path, path.relative_to(folder).as_posix(), TextSettings(data.encoding, data.delimiter))


def download_data(data: Data) -> Iterable[dict]:
    """Returns the first data.limit rows of the source that `data` names.

    Raises:
        UserError: a missing or unreadable file, or a hub that does not answer.
    """
    reading = TextSettings(data.encoding, data.delimiter)
    if data.source == "stdlib":
        rows = stdlib_rows(Path(sysconfig.get_path("stdlib")))
    elif data.source == "url":
        rows = file_rows(fetch_url(data), file_name(data.url), reading)
    elif data.source == "file":
        rows = path_rows(Path(data.path), data.files, data.split, reading)
    else:
        rows = hub_rows(data)
    return islice(rows, data.limit)


def split_into_shards(lines: Iterable[str]) -> Iterator[list[str]]:
    """Yields lists of at most SHARD_ROWS lines. A list ends with the line that takes it past SHARD_CHARACTERS."""
    shard, size = [], 0
    for line in lines:
        shard.append(line)
        size += len(line)
        if len(shard) == SHARD_ROWS or size > SHARD_CHARACTERS:
            yield shard
            shard, size = [], 0
    if shard:
        yield shard


def main(params: Params) -> Outcome:
    data, survey, count = params.data, Survey(params.data.ignore_columns), 0
    encode = json.JSONEncoder(allow_nan=False).encode  # the readers leave no value that JSON does not have

    def lines() -> Iterator[str]:
        for row in download_data(data):
            survey.add(row)
            yield encode(row) + "\n"

    with whole_directory(RAW) as folder:
        for number, shard in enumerate(split_into_shards(lines())):
            (folder / f"rows-{number:05}.jsonl").write_text("".join(shard), encoding="utf-8", newline="")
            count += len(shard)
        if not count:
            raise UserError(f"data.source: {data.source} gave no row at all")
        layout = recognise(survey, data) | {"python": data.source == "stdlib"}
        write_json(folder / "format.json", layout)
    form, tests = describe_layout(layout, survey)
    return Outcome(f"{plural(count, 'row')} of the format {form} from {data.source} in {RAW}{tests}")


if __name__ == "__main__":
    stage_options("download_data", __doc__)
    run_stage("download_data", main)
