"""Our search for duplicates alone, as a process of its own: FOLDER/data/raw → FOLDER/ours.json, the rows that go.

python -m bench._clean.ours FOLDER WORKERS
"""

from stages.runtime.command import command_parser

import json
import tempfile
from pathlib import Path

from bench._clean.rows import LAYOUT, THRESHOLD
from stages._clean.duplicates import find_duplicates
from stages._clean.shards import ShardJob, judge_shard
from stages.clean import keys_of
from stages.core.params import Clean
from stages.core.paths import RAW
from stages.core.workers import ordered_map

NO_RULE = {
    **{"min_characters": 0, "max_characters": 1_000_000, "check_code": False, "fix_text": False},
    **{"reject_refusals": False, "secrets": "keep", "personal_data": "keep", "decontaminate": []},
    **{"keep_fields": [], "repair_turns": "drop"},
    **{"max_malformed_rows": 0, "validation_fraction": 0.04, "test_fraction": 0.1},
}


def removed(shards: list[Path], threshold: float | None, workers: int) -> set[int]:
    """Numbers of the rows that go: the stage with no other rule, but for the writing of its files. The one place here
    that knows how the stage looks for duplicates."""
    params = Clean.model_validate({**NO_RULE, "near_duplicate_threshold": threshold})
    with tempfile.TemporaryDirectory() as work:
        todo = [ShardJob(path, Path(work, f"{number:05}"), params, LAYOUT) for number, path in enumerate(shards)]
        keys = keys_of(list(ordered_map(judge_shard, todo, workers)))
        places = find_duplicates(keys, threshold, workers)
    return {int(keys.sources[place].removeprefix("rows:")) for place in places}


if __name__ == "__main__":
    parser = command_parser("bench._clean.ours", __doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where the rows are")
    parser.add_argument("workers", type=int, metavar="WORKERS", help="how many processes judge them")
    options = parser.parse_args()
    found = removed(sorted((options.folder / RAW).glob("rows-*.jsonl")), THRESHOLD, options.workers)
    (options.folder / "ours.json").write_text(json.dumps(sorted(found)))
