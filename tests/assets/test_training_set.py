"""training_set: rebuilt in place, and never under the feet of another run."""

from uuid import uuid4

import dagster as dg
import pytest

from assets.training_set import READERS, TRAINING_SET_TAG, refuse_beside_readers, training_set

STARTED = dg.DagsterRunStatus.STARTED


@dg.job
def model() -> None: ...


def by_hand(instance: dg.DagsterInstance, name: str) -> None:
    """A run under way in which somebody materialises an asset from its own page."""

    @dg.asset(name=name)
    def some() -> None: ...

    job = dg.Definitions([some], jobs=[dg.define_asset_job("by_hand", [name])]).resolve_job_def("by_hand")
    instance.create_run_for_job(job, asset_selection=frozenset([dg.AssetKey(name)]), status=STARTED)


def test_a_run_that_trains_on_it_is_named_and_not_disturbed() -> None:
    instance = dg.DagsterInstance.ephemeral()
    run = instance.create_run_for_job(model, tags={TRAINING_SET_TAG: "alone"}, status=STARTED)
    refuse_beside_readers(instance, run.run_id, 0)
    with pytest.raises(dg.Failure, match=f"run {run.run_id[:8]} of model needs it"):
        refuse_beside_readers(instance, str(uuid4()), 0)
    instance.report_run_failed(run)
    refuse_beside_readers(instance, str(uuid4()), 0)


@pytest.mark.parametrize("reader", READERS)
def test_assets_that_are_materialised_by_hand_count_too(reader: str) -> None:
    instance = dg.DagsterInstance.ephemeral()
    by_hand(instance, reader)
    with pytest.raises(dg.Failure, match="the training set stays as it is"):
        refuse_beside_readers(instance, str(uuid4()), 0)


def test_runs_that_do_not_read_it_are_no_hindrance() -> None:
    instance = dg.DagsterInstance.ephemeral()
    by_hand(instance, "curated_corpus")
    instance.create_run_for_job(model, status=STARTED)
    refuse_beside_readers(instance, str(uuid4()), 0)


def test_it_is_rebuilt_while_no_step_reads_it() -> None:
    assert training_set.op.pool == "gpu"
