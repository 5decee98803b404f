"""The job `prune`: what retraining leaves behind and nothing reads again is deleted."""

from collections.abc import Sequence

import dagster as dg

from assets.metadata import table
from assets.resources import WorkspaceResource
from orchestration.executor import signed_executor
from vipolyqwen_core.pruning import Leftover, leftovers, unfinished
from vipolyqwen_core.pruning import prune as delete


@dg.op(out=dg.Out(dg.Nothing))
def delete_leftovers(context: dg.OpExecutionContext, workspace: WorkspaceResource) -> None:
    """Delete it, and list what only a person can decide about."""
    place = workspace.open()
    kept = unfinished(place)
    found = delete(leftovers(place), place)
    context.add_output_metadata(
        {
            "GB deleted": round(sum(leftover.num_bytes for leftover in found) / 1e9, 3),
            "deleted": described(found),
            "kept": described(kept),
        }
    )


def described(found: Sequence[Leftover]) -> dg.MetadataValue:
    """Where, how large, what."""
    rows = [(str(leftover.path), leftover.num_bytes / 1e9, leftover.what) for leftover in found]
    return table(["place", "GB", "what"], rows)


@dg.job(
    description="Delete checkpoints of finished runs and vectors of earlier model versions.",
    executor_def=signed_executor,
)
def prune() -> None:
    """Prune."""
    delete_leftovers()
