"""A stage that is killed leaves nothing half: the next run gives what an undisturbed one gives."""

import subprocess
import sys
import time

import pytest

from quality.curate import curate
from tests.quality.conftest import instruction, question
from vipolyqwen_core.config import CurationSettings, to_json
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
def test_curation_that_was_killed_at_any_point_gives_the_same_tables(write_source, tmp_path) -> None:
    records = [instruction(i % 900) for i in range(1000)] + [question(i) for i in range(300)]
    source = write_source(records, pictures=range(300))
    began = time.monotonic()
    whole = curate(source, CurationSettings(), Workspace(tmp_path / "whole"))
    duration = time.monotonic() - began
    disturbed = Workspace(tmp_path / "disturbed")
    for share in (0.1, 0.3, 0.5, 0.7, 0.9):
        command = [sys.executable, "-c", PROGRAM, to_json(source), str(disturbed.home)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            time.sleep(share * duration)
            process.kill()
    after = curate(source, CurationSettings(), disturbed)
    assert after.data_version == whole.data_version
    assert [path.name for path in disturbed.curated("corpus").parent.iterdir()] == ["corpus"]
