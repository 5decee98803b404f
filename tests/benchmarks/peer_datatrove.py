"""The peer of the curation benchmark: datatrove's MinHash pipeline, run by an interpreter that has datatrove.

    python peer_datatrove.py FOLDER      reads FOLDER/input/*.jsonl (id, text), writes FOLDER/kept/*.jsonl

Settings are those of FineWeb: word 5-grams, 14 buckets of 8 hashes. All four steps, two processes.
"""

import sys
from pathlib import Path

from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.dedup import MinhashDedupSignature
from datatrove.pipeline.dedup.minhash import (
    MinhashConfig,
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupFilter,
)
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter

WORKERS = 2


def main() -> None:
    """Run the pipeline."""
    folder = sys.argv[1]
    config = MinhashConfig()
    parts = len(list(Path(folder, "input").iterdir()))

    def steps(pipeline: list, tasks: int) -> None:
        LocalPipelineExecutor(pipeline=pipeline, tasks=tasks, workers=min(tasks, WORKERS)).run()

    def reader() -> JsonlReader:
        return JsonlReader(f"{folder}/input")

    steps([reader(), MinhashDedupSignature(f"{folder}/signatures", config=config)], parts)
    buckets = MinhashDedupBuckets(f"{folder}/signatures", f"{folder}/buckets", config=config)
    steps([buckets], config.num_buckets)
    steps([MinhashDedupCluster(f"{folder}/buckets", f"{folder}/remove", config=config)], 1)
    kept = JsonlWriter(f"{folder}/kept", compression=None)
    steps([reader(), MinhashDedupFilter(f"{folder}/remove"), kept], parts)


if __name__ == "__main__":
    main()
