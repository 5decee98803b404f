"""The model in sentence-transformers gives the vectors of the embedder."""

import base64
import logging
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
from sentence_transformers.sentence_transformer.data_collator import SentenceTransformerDataCollator
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from transformers import AutoModel, AutoProcessor

from tests.core.small_training_set import picture
from vipolyqwen_core import ViPolyQwenEmbedder
from vipolyqwen_core.config import ProcessingSettings
from vipolyqwen_core.processing.packing import pack
from vipolyqwen_core.processing.processor import Item, ViPolyQwenProcessor
from vipolyqwen_core.serving.model_card import ModelFacts
from vipolyqwen_core.serving.model_directory import complete_model_directory
from vipolyqwen_core.serving.sentence_transformers import ViPolyQwenModule, _from_array


@pytest.fixture(scope="module")
def directory(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("complete") / "model"
    shutil.copytree(tiny_model_dir, path)
    facts = ModelFacts("run-1", "demo", "tiny", "v1", {"ocr": 1200}, {"receipts": 1200}, {"receipts": "MIT"})
    complete_model_directory(path, facts)
    return path


@pytest.fixture(scope="module")
def model(directory: Path) -> SentenceTransformer:
    return SentenceTransformer(str(directory), trust_remote_code=True, device="cpu")


@pytest.fixture(scope="module")
def embedder(directory: Path) -> ViPolyQwenEmbedder:
    return ViPolyQwenEmbedder.from_pretrained(directory)


def test_a_truncated_vector_is_that_of_the_embedder_once_it_is_normalised(
    directory: Path, embedder: ViPolyQwenEmbedder
) -> None:
    cut = SentenceTransformer(str(directory), trust_remote_code=True, device="cpu", truncate_dim=16)
    assert np.linalg.norm(cut.encode("một câu")) < 0.99
    normalised = cut.encode("một câu", normalize_embeddings=True)
    assert np.allclose(normalised, embedder.encode("một câu", dim=16), atol=1e-6)


def test_text_one_picture_three_pictures_and_both_give_the_same_vectors(
    model: SentenceTransformer, embedder: ViPolyQwenEmbedder, directory: Path
) -> None:
    three = [picture(1), picture(2), picture(3)]
    inputs: list[Any] = [
        "một câu",
        picture(1),
        {"image": three},
        {"text": "which is red? <image>", "image": tuple(three)},
    ]
    ours = [
        embedder.encode("một câu"),
        embedder.encode(images=picture(1)),
        embedder.encode(images=[three])[0],
        embedder.encode("which is red? <image>", images=three),
    ]
    assert np.allclose(model.encode(inputs), ours, atol=2e-6)
    assert np.allclose(model.encode(inputs, batch_size=1), ours, atol=2e-6)
    items = [
        Item("một câu"),
        Item("<image>", (picture(1),)),
        Item("<image>" * 3, tuple(three)),
        Item("<image><image>which is red? <image>", tuple(three)),
    ]
    processor = AutoProcessor.from_pretrained(directory)
    with torch.inference_mode():
        vectors = AutoModel.from_pretrained(directory)(pack(processor.encode_batch(items)))
    assert np.allclose(vectors, ours, atol=2e-6)


def test_what_is_cut_is_counted_and_logged(
    model: SentenceTransformer, caplog: pytest.LogCaptureFixture
) -> None:
    limit = model.get_max_seq_length()
    with caplog.at_level(logging.WARNING, "vipolyqwen_core"):
        model.encode(["short", "x " * (limit + 20)])
    assert f"1 items were longer than {limit} tokens" in caplog.text


def test_a_prompt_name_is_a_prefix(model: SentenceTransformer, embedder: ViPolyQwenEmbedder) -> None:
    assert np.allclose(
        model.encode("total?", prompt_name="ocr"), embedder.encode("total?", prefix="ocr"), atol=1e-6
    )
    assert np.allclose(model.encode("total?", prompt="Say: "), embedder.encode("Say: total?"), atol=1e-6)
    assert np.allclose(model.encode_query("total?"), embedder.encode("total?"), atol=1e-6)
    message = {"role": "user", "content": "total?"}
    assert np.allclose(
        model.encode(message, prompt_name="ocr"), embedder.encode("total?", prefix="ocr"), atol=1e-6
    )
    assert np.allclose(model.encode(message, prompt="Say: "), embedder.encode("Say: total?"), atol=1e-6)


@pytest.mark.parametrize("form", [lambda given: given, lambda given: {"text": None, "image": [given]}])
def test_a_prompt_is_the_text_of_a_picture_that_has_none(
    form: Callable[[Any], Any], model: SentenceTransformer, embedder: ViPolyQwenEmbedder
) -> None:
    given = form(picture(1))
    told = embedder.encode("Say:", images=picture(1))
    assert np.allclose(model.encode([given], prompt="Say: ")[0], told, atol=1e-6)
    alone = embedder.encode(images=picture(1))
    assert np.allclose(model.encode([given])[0], alone, atol=1e-6)
    assert not np.allclose(told, alone, atol=1e-4)
    with pytest.raises(ValueError, match="neither text nor picture"):
        model[0].preprocess([{}], prompt="Say: ")


def test_forms_of_a_picture_are_one_picture(model: SentenceTransformer, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    picture(4).save(path)
    array = np.asarray(picture(4))
    uri = "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
    tensor = torch.from_numpy(array.copy())
    floats = [array.transpose(2, 0, 1) / 255.0, (tensor / 255.0).bfloat16().requires_grad_()]
    forms: list[Any] = [picture(4), str(path), uri, array, array.astype(np.int64), tensor, floats[0]]
    assert model.encode([floats[1]]).shape == (1, 64)
    vectors = np.stack([model.encode([form])[0] for form in forms])
    assert np.allclose(vectors, vectors[0], atol=1e-6)


def test_an_array_is_the_picture_that_it_shows() -> None:
    low = np.arange(4 * 9 * 3, dtype=np.uint8).reshape(4, 9, 3)  # its height could be a number of channels
    for array, shown in ((low, low), (low.transpose(2, 0, 1), low), (low[:, :, :1], low[:, :, 0])):
        assert np.array_equal(np.asarray(_from_array(array)), shown)
    floats = np.array([-0.005, 0.6 / 255, 1.005]).reshape(1, 1, 3)
    assert np.asarray(_from_array(floats)).tolist() == [[[0, 1, 255]]]
    around_zero = np.linspace(-1, 1, 192, dtype=np.float32).reshape(8, 8, 3)
    with pytest.raises(ValueError, match=r"from -1\.0 to 1\.0 is no picture"):
        _from_array(around_zero)


def test_a_message_is_its_text_and_pictures(model: SentenceTransformer, embedder: ViPolyQwenEmbedder) -> None:
    parts = [
        {"type": "text", "text": "what is "},
        {"type": "image", "image": picture(1)},
        {"type": "text", "text": "?"},
    ]
    vector = model.encode([[{"role": "user", "content": parts}]])[0]
    assert np.allclose(vector, embedder.encode("what is <image>?", images=picture(1)), atol=1e-6)


def test_earlier_messages_are_the_history(model: SentenceTransformer) -> None:
    question = {"role": "user", "content": "And now?"}
    earlier = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
    alone, told = model.encode([[question], [*earlier, question]])
    assert not np.allclose(alone, told, atol=1e-4)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("a", "b"), "a pair of inputs has no one vector"),
        ({}, "neither text nor picture"),
        ({"video": "x.mp4"}, "expected the keys text and image, not video"),
        ("https://example.org/a.png", "not fetched from the network"),
        ("data:image/png;base64,!!", "data URI that is not base64"),
        (np.zeros(4), "1 dimensions is no picture"),
        (np.zeros((8, 9, 7)), r"shape \[8, 9, 7\] is no picture"),
        (np.full((8, 8, 3), 256, np.uint16), "uint16 from 256 to 256 is no picture"),
        (np.full((8, 8, 3), 200, np.float32), "float32 from 200.0 to 200.0 is no picture"),
        (np.full((8, 8, 3), np.nan), "float64 from nan to nan is no picture"),
        (np.ones((8, 8, 3), bool), "an array of bool is no picture"),
        ([{"role": "user", "content": "a"}, "b"], "a message is a dict with the keys role and content"),
        ({"role": "user", "content": None}, "a text or a list of parts, not NoneType"),
        ({"role": "user", "content": ["a"]}, "a part of a message is text or image, not 'str'"),
        ({"role": "user", "content": [{"type": "image", "url": "a.png"}]}, "under the key image"),
        (
            {"role": "user", "content": [{"type": "text", "text": None}]},
            "text must be a string, not NoneType",
        ),
    ],
)
def test_what_it_cannot_encode_is_named(model: SentenceTransformer, given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"input 0: .*{message}"):
        model[0].preprocess([given])


def test_it_says_what_it_is(model: SentenceTransformer) -> None:
    assert model.get_embedding_dimension() == 64
    assert model.similarity_fn_name == "cosine"
    assert model.max_seq_length == 256
    assert model.supports(("image", "text"))
    model.max_seq_length = 256
    with pytest.raises(ValueError, match="max_seq_length 128: the model was trained with 256"):
        model.max_seq_length = 128


def test_the_precision_may_be_chosen_but_not_the_processor(
    model: SentenceTransformer, directory: Path, tiny_backbone: Path, tiny_processing: ProcessingSettings
) -> None:
    half = SentenceTransformer(
        str(directory), trust_remote_code=True, device="cpu", model_kwargs={"dtype": "bfloat16"}
    )
    assert half[0].model.backbone.dtype == torch.bfloat16
    other = ViPolyQwenProcessor.from_backbone(tiny_backbone, replace(tiny_processing, max_tokens=99))
    with pytest.raises(ValueError, match="max_tokens is 99, but the model was trained with 256"):
        ViPolyQwenModule(model[0].model, other)


def test_saved_by_sentence_transformers_it_is_the_same_model(
    model: SentenceTransformer, embedder: ViPolyQwenEmbedder, tmp_path: Path
) -> None:
    model.save_pretrained(str(tmp_path))
    again = SentenceTransformer(str(tmp_path), trust_remote_code=True, device="cpu")
    assert np.array_equal(again.encode("one"), model.encode("one"))
    assert np.allclose(
        ViPolyQwenEmbedder.from_pretrained(tmp_path).encode("one"), embedder.encode("one"), atol=1e-6
    )


def test_the_trainer_of_sentence_transformers_finds_the_features_of_each_column(
    directory: Path,
) -> None:
    """Without its loop, which needs `datasets`."""
    model = SentenceTransformer(str(directory), trust_remote_code=True, device="cpu")
    collate = SentenceTransformerDataCollator(model.preprocess, prompts={"anchor": "<instr>"})
    rows = [{"anchor": f"Câu {n}?", "positive": {"text": "trả lời", "image": picture(n)}} for n in range(4)]
    features, labels = SentenceTransformerTrainer.collect_features(None, collate(rows))  # type: ignore[arg-type]
    loss = MultipleNegativesRankingLoss(model)(features, labels)
    loss.backward()
    anchors = model.encode([row["anchor"] for row in rows], prompt="<instr>", convert_to_tensor=True)
    positives = model.encode([row["positive"] for row in rows], convert_to_tensor=True)
    expected = torch.nn.functional.cross_entropy(20 * anchors @ positives.T, torch.arange(4))
    assert loss.item() == pytest.approx(expected.item(), abs=1e-4)
    assert all(weight.grad is not None for weight in model[0].model.projection.parameters())


def test_without_the_flag_it_is_refused(directory: Path) -> None:
    with pytest.raises(ValueError, match="trust_remote_code"):
        SentenceTransformer(str(directory))


def test_the_card_says_where_the_model_comes_from(directory: Path) -> None:
    card = (directory / "README.md").read_text(encoding="utf-8")
    for expected in (
        "run run-1",
        "Recipe `demo`",
        "| ocr | 1,200 |",
        "| receipts | 1,200 | MIT |",
        "64",
        "`attention`",
    ):
        assert expected in card
    assert str(directory) not in card


def test_the_snippets_of_the_card_run_one_after_the_other_and_agree(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, name in enumerate(("receipt.jpg", "page1.png", "page2.png")):
        picture(number).save(tmp_path / name)
    (tmp_path / "path" / "to" / "this").mkdir(parents=True)
    (tmp_path / "path" / "to" / "this" / "folder").symlink_to(directory)
    monkeypatch.chdir(tmp_path)
    card = (directory / "README.md").read_text(encoding="utf-8")
    snippets = re.findall(r"^```python\n(.*?)^```$", card, re.MULTILINE | re.DOTALL)
    assert len(snippets) == 3
    names: dict[str, Any] = {}
    for snippet in snippets:
        exec(snippet, names)
    embedder = names["embedder"]
    assert names["texts"].shape == (2, 64)
    assert np.allclose(names["asked"], embedder.encode("What is the total?", "receipt.jpg", "ocr"), atol=2e-6)
    assert np.allclose(names["vectors"], names["texts"], atol=2e-6)


def test_a_folder_without_a_model_is_not_completed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no model directory"):
        complete_model_directory(tmp_path, ModelFacts("r", "demo", "tiny", "v"))
