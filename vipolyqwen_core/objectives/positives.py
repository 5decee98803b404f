"""Which pairs are positives, for tables and arrays; the losses ask it of tensors (`routing.positives`)."""

import numpy as np
from numpy.typing import NDArray


def is_positive(score: NDArray[np.floating], positive_score: float) -> NDArray[np.bool_]:
    """Whether a pair's target is a right answer, which a scored pair's is only from `positive_score` on.

    Compared as float32, the table's type: else a score of 0.7 would lie below a threshold of 0.7.

    Shapes:
        score: [R], NaN where the pair has none
        returns: [R]
    """
    return np.asarray(np.isnan(score) | (score.astype(np.float32) >= np.float32(positive_score)))
