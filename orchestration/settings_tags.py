"""Tags by which Dagster's list of runs tells the recipe and the manifest of each.

Where they come from the command line or the environment, no page of Dagster's would name them.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg

RECIPE_TAG = "vipolyqwen/recipe"
MANIFEST_TAG = "vipolyqwen/manifest"
DEMO_CORPUS = "demo corpus"


def settings_tags(job: dg.JobDefinition, run_config: Mapping[str, Any]) -> dict[str, str]:
    """What a run of a job takes, as its resources were made or its own config has it."""
    resources = dg.validate_run_config(job, run_config)["resources"]
    tags = {}
    if "recipe" in resources:
        tags[RECIPE_TAG] = str(resources["recipe"]["config"]["name"])
    if "manifest" in resources:
        path = resources["manifest"]["config"]["path"]
        tags[MANIFEST_TAG] = DEMO_CORPUS if path is None else Path(path).name
    return tags
