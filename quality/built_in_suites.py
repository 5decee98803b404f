"""The suites of validation that are built in, by name: `quality.expectations` holds what they expect.

Apart from these, which bring Great Expectations along: who lists the checks needs the names alone.
"""

from typing import Final

from vipolyqwen_core.contract import Task

BUILT_IN: Final = {
    "validated": "What holds for every pair that may train: prefix, placeholders, tokens, scores.",
    **{f"task_{task.value}": f"What holds for the pairs of task {task.value}." for task in Task},
    "balance": "No answer and no score drowns the others of its task.",
    "stages": "Schemas, order, both equations, and the shares of rejects, duplicates and languages.",
    "pictures": "Every picture that is named is stored, and of a size that can be read.",
    "drift": "Volume, languages, tasks, lengths and scores are near those of the last accepted version.",
}
"""Each is an asset check, described here. Where a critical expectation fails, nothing trains on it."""
