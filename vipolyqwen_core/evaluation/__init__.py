"""Judging a model: pools, metrics, baselines, bootstrap, verdict, promotion, report."""

from typing import Final

EVALUATION_FILE: Final = "evaluation.json"
"""What an evaluation found, in its folder."""
REPORT_FILE: Final = "report.html"
"""What it found, as a page for a person, in its folder."""
