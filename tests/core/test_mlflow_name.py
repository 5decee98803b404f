"""Names of metrics that MLflow takes."""

import pytest

from vipolyqwen_core.mlflow_name import mlflow_name


@pytest.mark.parametrize(
    ("name", "taken"),
    [
        ("positive_similarity@0.5", "positive_similarity_at_0.5"),
        ("recall@1/instr/en>vi", "recall_at_1/instr/en_to_vi"),
        ("collapse/effective_rank", "collapse/effective_rank"),
        ("a (b)", "a _b_"),
    ],
)
def test_names_are_those_that_mlflow_allows(name: str, taken: str) -> None:
    assert mlflow_name(name) == taken
