"""datatrove's MinHash pipeline: FOLDER/texts/*.jsonl → FOLDER/datatrove/removed/*.jsonl. Needs its own interpreter.

PYTHONPATH=. /path/to/python -m bench._clean.datatrove FOLDER BANDS HASHES WORKERS
"""

from stages.runtime.command import command_parser

from pathlib import Path

from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers.jsonl import JsonlWriter


def main(folder: Path, bands: int, hashes: int, workers: int) -> None:
    work = folder / "datatrove"
    config = MinhashConfig(num_buckets=bands, hashes_per_bucket=hashes)
    reader = JsonlReader(str(folder / "texts"))
    tasks = len(list((folder / "texts").glob("*.jsonl")))
    signatures, buckets, remove = (str(work / name) for name in ("signatures", "buckets", "remove"))
    writers = {name: JsonlWriter(str(work / name), compression=None) for name in ("removed", "kept")}
    steps = (
        ([reader, MinhashDedupSignature(signatures, config)], tasks),
        # -1: all of a file at once, which is faster than its default on files of this size.
        ([MinhashDedupBuckets(signatures, buckets, config=config, lines_to_buffer=-1)], bands),
        ([MinhashDedupCluster(buckets, remove, config, lines_to_buffer=-1)], 1),
        ([reader, MinhashDedupFilter(remove, writers["removed"]), writers["kept"]], tasks),
    )
    for number, (pipeline, count) in enumerate(steps):
        logs = str(work / "logs" / str(number))
        LocalPipelineExecutor(pipeline=pipeline, tasks=count, workers=min(workers, count), logging_dir=logs).run()


if __name__ == "__main__":
    parser = command_parser("bench._clean.datatrove", __doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where the texts are")
    for name in ("bands", "hashes", "workers"):
        parser.add_argument(name, type=int, metavar=name.upper())
    main(**vars(parser.parse_args()))
