"""A stage that is killed leaves nothing half: the next run gives what an undisturbed one gives."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pyarrow as pa
import pytest

from quality.curate import curate
from tests.quality.conftest import instruction, question
from vipolyqwen_core.config import CurationSettings, to_json
from vipolyqwen_core.contract import IMAGE_STORE
from vipolyqwen_core.corpus.image_store import ImageStore
from vipolyqwen_core.corpus.tables import read_stage
from vipolyqwen_core.workspace import Workspace

PROGRAM = """
import sys
from pathlib import Path
from quality.curate import curate
from vipolyqwen_core.config import CurationSettings, from_json
from vipolyqwen_core.corpus.manifest import Source
from vipolyqwen_core.workspace import Workspace
print("ready", flush=True)
curate(from_json(Source, sys.argv[1]), CurationSettings(), Workspace(Path(sys.argv[2])))
"""


@pytest.mark.slow
def test_curation_that_was_killed_at_random_times_gives_the_same_tables(write_source, tmp_path) -> None:
    records = [instruction(i % 900) for i in range(1000)] + [question(i) for i in range(300)]
    source = write_source(records, pictures=range(300))
    began = time.monotonic()
    whole, disturbed = Workspace(tmp_path / "whole"), Workspace(tmp_path / "disturbed")
    summary = curate(source, CurationSettings(), whole)
    duration = time.monotonic() - began
    moments = random.Random(0)
    environment = {**os.environ, "TMPDIR": str(tmp_path)}  # what is killed leaves its scratch
    killed = 0
    while killed < 5:
        command = [sys.executable, "-c", PROGRAM, to_json(source), str(disturbed.home)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            time.sleep(moments.uniform(0, duration))
            process.send_signal(signal.SIGKILL)
        if process.returncode == -signal.SIGKILL:
            killed += 1
        else:  # it ended before: what it made must go, or the next one has nothing to do
            shutil.rmtree(disturbed.home)
            duration *= 0.8
    after = curate(source, CurationSettings(), disturbed)
    assert after.data_version == summary.data_version
    assert [path.name for path in disturbed.curated("corpus").parent.iterdir()] == ["corpus"]
    for name in ("pairs.parquet", "ledger.parquet", "pictures.parquet", "source.json"):
        one, two = (home.curated("corpus") / name for home in (whole, disturbed))
        assert one.read_bytes() == two.read_bytes()
    assert stored(whole).equals(stored(disturbed))


def stored(workspace: Workspace) -> pa.Table:
    images = read_stage(workspace.curated("corpus")).details["images"]
    return ImageStore(**images).table([column.name for column in IMAGE_STORE])
