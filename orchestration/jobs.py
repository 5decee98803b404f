"""The jobs `corpus`, for one source, and `model`, for what comes of all of them.

`rollback` (to an earlier version), `pooling_ablation` and `prune` have a module each.

Materialising everything for one partition would train after one source; hence two jobs.
"""

from typing import TYPE_CHECKING

import dagster as dg

from assets.training_set import READERS, TRAINING_SET_TAG

if TYPE_CHECKING:  # dagster exports the function and not its type
    from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

CORPUS_ASSETS = ("curated_corpus", "tagged_corpus", "validated_corpus")
MODEL_ASSETS = ("training_set", *READERS)
ASSET_KEYS = (*CORPUS_ASSETS, *MODEL_ASSETS)

ALONE = {TRAINING_SET_TAG: "alone"}
"""Tags of a job that reads the training set through several steps: one such run at a time."""
WHOLE = {"dagster/retry_strategy": "ALL_STEPS"}
"""Tags of a job that is repeated from its start where its process was lost: what stands is reused."""


def corpus_job(sources: dg.PartitionsDefinition[str]) -> "UnresolvedAssetJobDefinition":
    """The first three stages of one source, with their checks."""
    return dg.define_asset_job(
        "corpus",
        selection=dg.AssetSelection.assets(*CORPUS_ASSETS),
        partitions_def=sources,
        description="Curate, tag and validate one source.",
        tags=WHOLE,
    )


def model_job() -> "UnresolvedAssetJobDefinition":
    """From the accepted sources to searchable vectors, with all checks."""
    return dg.define_asset_job(
        "model",
        selection=dg.AssetSelection.assets(*MODEL_ASSETS),
        description="Training set, hard negatives, training, evaluation, registration, export.",
        tags={**ALONE, **WHOLE},
    )
