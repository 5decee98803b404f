"""What the data report draws."""

import polars as pl

from quality.data_report import SCORE_BINS, histograms


def test_round_scores_stand_in_the_bin_that_they_begin() -> None:
    scores = [round(number / SCORE_BINS, 2) for number in range(SCORE_BINS)] + [1.0]
    rows = pl.LazyFrame({"task": ["text_pair"] * len(scores), "score": scores}).with_columns(
        pl.col("score").cast(pl.Float32),
        query_tokens=pl.lit(1),
        target_tokens=pl.lit(1),
        query_images=pl.lit([], dtype=pl.List(pl.String)),
        target_images=pl.lit([], dtype=pl.List(pl.String)),
    )
    figure = dict(histograms(rows))["score of a scored pair"]
    (steps,) = figure.axes[0].patches
    assert steps.get_data().values.tolist() == [1] * (SCORE_BINS - 1) + [2]
