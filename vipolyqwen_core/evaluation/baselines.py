"""What a model must be better than: the same model before training, and a search by words alone."""

import re
from collections.abc import Sequence
from typing import Final

import bm25s
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csc_array

from vipolyqwen_core.config import Precision, TrainingRun
from vipolyqwen_core.contract import IMAGE_PLACEHOLDER
from vipolyqwen_core.model.modeling import ViPolyQwenModel
from vipolyqwen_core.processing.processor import ViPolyQwenProcessor
from vipolyqwen_core.serving.encoder import ViPolyQwenEmbedder

_EAST_ASIAN: Final = r"[\u3400-\u9fff\uf900-\ufaff\u3040-\u30ff\uac00-\ud7af]"
WORD: Final = re.compile(rf"{_EAST_ASIAN}|(?:(?!{_EAST_ASIAN})[^\W_])+")
"""A run of letters and digits; a Chinese, Japanese or Korean character is a word of its own."""


def words(text: str) -> list[str]:
    """The words of a text, lower case; the placeholder of a picture is none."""
    return WORD.findall(text.replace(IMAGE_PLACEHOLDER, " ").lower())


class Bm25:
    """BM25 over some targets.

    Reference:
        Robertson and Zaragoza 2009, in the variant of Lucene (k1 = 1.5, b = 0.75) as bm25s computes it
    """

    def __init__(self, targets: Sequence[str]) -> None:
        self.num_targets = len(targets)
        corpus = [words(text) for text in targets]
        self.index = bm25s.BM25(method="lucene") if any(corpus) else None
        if self.index is not None:
            self.index.index(corpus, show_progress=False)

    def similarity(self, queries: Sequence[str]) -> NDArray[np.float32]:
        """Score of each target for each query, [Q, N]; 0 where they share no word."""
        scores = np.zeros((len(queries), self.num_targets), dtype=np.float32)
        if self.index is None:
            return scores
        for row, text in enumerate(queries):
            known = [word for word in words(text) if word in self.index.vocab_dict]
            if known:
                scores[row] = self.index.get_scores(known)
        return scores

    def similarity_of_pairs(self, queries: Sequence[str]) -> NDArray[np.float32]:
        """Score of each target for the query at its place, [N], without those of the other targets."""
        vocabulary = self.index.vocab_dict if self.index is not None else {}
        asked = [
            (place, vocabulary[word])
            for place, text in enumerate(queries)
            for word in words(text)
            if word in vocabulary
        ]
        if self.index is None or not asked:
            return np.zeros(len(queries), dtype=np.float32)
        places, columns = np.array(asked).T
        of_words = self.index.scores
        layout = (of_words["data"], of_words["indices"], of_words["indptr"])
        scores = csc_array(layout, shape=(self.num_targets, len(of_words["indptr"]) - 1))
        of_pairs = np.bincount(places, weights=scores[places, columns], minlength=len(queries))
        return of_pairs.astype(np.float32)


def untrained_embedder(run: TrainingRun) -> ViPolyQwenEmbedder:
    """The model of a run as it was before its first step: the backbone and a fresh head of the same seed."""
    recipe = run.recipe
    dtype = torch.bfloat16 if recipe.training.precision is Precision.BFLOAT16 else torch.float32
    model = ViPolyQwenModel.from_backbone(
        str(run.backbone), recipe.model, recipe.processing, recipe.training.seed, dtype
    )
    processor = ViPolyQwenProcessor.from_backbone(str(run.backbone), recipe.processing)
    return ViPolyQwenEmbedder(model, processor)
