"""The peer of the benchmarks gives the vectors of the embedder: without that no comparison means anything."""

from pathlib import Path
from typing import Any

from tests.benchmarks.peer import build_peer
from tests.core.small_training_set import picture
from vipolyqwen_core.config import ModelSettings, Pooling, ProcessingSettings
from vipolyqwen_core.model.modeling import ViPolyQwenModel
from vipolyqwen_core.processing.processor import ViPolyQwenProcessor
from vipolyqwen_core.serving.encoder import ViPolyQwenEmbedder


def test_the_peer_gives_the_vectors_of_the_embedder(
    tiny_backbone: Path, tiny_processing: ProcessingSettings
) -> None:
    settings = ModelSettings(embedding_dim=64, pooling=Pooling.MEAN)
    model = ViPolyQwenModel.from_backbone(tiny_backbone, settings, tiny_processing)
    embedder = ViPolyQwenEmbedder(model, ViPolyQwenProcessor.from_backbone(tiny_backbone, tiny_processing))
    peer = build_peer(tiny_backbone, tiny_processing, model.projection)
    wide = picture(4).resize((300, 200))  # beyond the pixel budget
    texts = ["một câu", "", "a longer sentence than the others", None, "what?", "three"]
    pictures = [None, None, None, picture(1), wide, [picture(1), picture(2), picture(3)]]
    inputs: list[Any] = [
        "một câu",
        "",
        "a longer sentence than the others",
        picture(1),
        {"text": "what?", "image": wide},
        {"text": "three", "image": [picture(1), picture(2), picture(3)]},
    ]
    cosines = (embedder.encode(texts, images=pictures) * peer.encode(inputs)).sum(1)
    assert cosines.min() > 0.99999
