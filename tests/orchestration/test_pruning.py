"""The job deletes what is left over, and says what."""

from pathlib import Path

from assets.resources import WorkspaceResource
from orchestration.pruning import prune
from vipolyqwen_core.workspace import Workspace


def test_the_job_deletes_and_lists_what_it_deleted_and_kept(tmp_path: Path) -> None:
    runs = Workspace(tmp_path).runs
    for run in ("finished", "interrupted"):
        (runs / run / "checkpoints").mkdir(parents=True)
        (runs / run / "checkpoints" / "shard").write_bytes(bytes(5_000_000))
    for name in ("result.json", "model/config.json"):
        (runs / "finished" / name).parent.mkdir(exist_ok=True)
        (runs / "finished" / name).write_text("{}")
    done = prune.execute_in_process(resources={"workspace": WorkspaceResource(home=str(tmp_path))})
    assert [place.parent.name for place in runs.glob("*/checkpoints")] == ["interrupted"]
    (output,) = [event.step_output_data for event in done.all_events if event.is_successful_output]
    told = {name: str(value.value) for name, value in output.metadata.items()}
    assert told["GB deleted"] == "0.005"
    assert f"{runs / 'finished' / 'checkpoints'} | 0.005 | checkpoints of a finished run" in told["deleted"]
    assert f"{runs / 'interrupted' / 'checkpoints'} | 0.005 | of a run that has not" in told["kept"]
