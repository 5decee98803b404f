"""The vector of an item is that of a plain Qwen2-VL over the item alone, whatever stands beside it."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoProcessor, Qwen2VLModel

import vipolyqwen_core.model  # noqa: F401  # registers the classes
from tests.core.model.plain import DIM, ITEMS, build, picture, plain_vectors, vectors
from vipolyqwen_core.config import ModelSettings, Pooling, ProcessingSettings
from vipolyqwen_core.contract import Task
from vipolyqwen_core.model.attention import SEGMENTS
from vipolyqwen_core.model.modeling import ViPolyQwenModel
from vipolyqwen_core.model.pooling import concentration
from vipolyqwen_core.processing.packing import pack
from vipolyqwen_core.processing.processor import EncodedItem, Item, ViPolyQwenProcessor


@pytest.fixture(scope="module")
def model(tiny_backbone: Path, tiny_processing: ProcessingSettings) -> ViPolyQwenModel:
    return build(tiny_backbone, tiny_processing, Pooling.ATTENTION)


@pytest.fixture(scope="module")
def processor(tiny_backbone: Path, tiny_processing: ProcessingSettings) -> ViPolyQwenProcessor:
    return ViPolyQwenProcessor.from_backbone(tiny_backbone, tiny_processing)


@pytest.fixture(scope="module")
def encoded(processor: ViPolyQwenProcessor) -> list[EncodedItem]:
    return processor.encode_batch(ITEMS)


@pytest.mark.parametrize("pooling", list(Pooling))
def test_packed_vectors_are_those_of_plain_qwen2_vl_one_by_one(
    pooling: Pooling,
    tiny_backbone: Path,
    tiny_processing: ProcessingSettings,
    processor: ViPolyQwenProcessor,
    encoded: list[EncodedItem],
) -> None:
    model = build(tiny_backbone, tiny_processing, pooling)
    packed = vectors(model, encoded)
    alone = plain_vectors(model, tiny_backbone, processor, encoded)
    assert packed.dtype == torch.float32
    torch.testing.assert_close(packed.norm(dim=1), torch.ones(len(ITEMS)))
    assert (packed * alone).sum(1).min() >= 0.99999
    torch.testing.assert_close(packed, alone, atol=2e-5, rtol=0)
    assert (packed @ packed.T - torch.eye(len(ITEMS))).max() < 0.999, "the items must differ to tell anything"


def test_order_neighbours_and_batch_size_change_nothing(
    model: ViPolyQwenModel, encoded: list[EncodedItem]
) -> None:
    together = vectors(model, encoded)
    order = [5, 0, 3, 7, 1, 2, 6, 4]
    shuffled = vectors(model, [encoded[place] for place in order])
    torch.testing.assert_close(shuffled, together[order], atol=1e-5, rtol=0)
    for size in (1, 3):
        parts = [vectors(model, encoded[start : start + size]) for start in range(0, len(encoded), size)]
        torch.testing.assert_close(torch.cat(parts), together, atol=1e-5, rtol=0)


def test_pictures_and_their_order_matter(model: ViPolyQwenModel, processor: ViPolyQwenProcessor) -> None:
    first, second = picture(56, 56, 1), picture(56, 56, 2)
    text = "<image> rồi <image>"
    rows = vectors(model, processor.encode_batch([Item(text, (first, second)), Item(text, (second, first))]))
    assert rows[0] @ rows[1] < 0.9999


def test_a_prefix_changes_the_vector(model: ViPolyQwenModel, processor: ViPolyQwenProcessor) -> None:
    rows = vectors(model, processor.encode_batch([Item("tổng"), Item("tổng", prefix=Task.OCR)]))
    assert rows[0] @ rows[1] < 0.9999


@pytest.mark.parametrize("pooling", [Pooling.ATTENTION, Pooling.MULTI_HEAD_ATTENTION])
def test_pooling_weights_are_the_mean_of_the_heads_and_sum_to_one_by_item(
    pooling: Pooling, tiny_backbone: Path, tiny_processing: ProcessingSettings, encoded: list[EncodedItem]
) -> None:
    batch = pack(encoded)
    model = build(tiny_backbone, tiny_processing, pooling)
    weights = model.pooling_weights(batch)
    assert weights.shape == (batch.num_tokens,)
    with torch.no_grad():
        heads = model.pooling.weights(model.hidden_states(batch), batch.segment_ids, batch.num_items)
    torch.testing.assert_close(weights, sum(heads.unbind(1)) / heads.shape[1])
    sums = torch.zeros(batch.num_items).index_add(0, batch.segment_ids, weights)
    torch.testing.assert_close(sums, torch.ones(batch.num_items))


@pytest.mark.parametrize("pooling", Pooling)
def test_a_model_says_on_request_how_even_its_pooling_is_and_its_vectors_stay_the_same(
    pooling: Pooling, tiny_backbone: Path, tiny_processing: ProcessingSettings, encoded: list[EncodedItem]
) -> None:
    batch = pack(encoded)
    model = build(tiny_backbone, tiny_processing, pooling)
    with torch.no_grad():
        vectors, found = model(batch, with_concentration=True)
        assert torch.equal(vectors, model(batch))
        heads = model.pooling.weights(model.hidden_states(batch), batch.segment_ids, batch.num_items)
    assert torch.equal(found, concentration(heads, batch.segment_ids, batch.num_items))


def test_gradients_reach_every_part(model: ViPolyQwenModel, encoded: list[EncodedItem]) -> None:
    model = copy.deepcopy(model)
    target = torch.randn(len(ITEMS), DIM, generator=torch.Generator().manual_seed(0))
    (model(pack(encoded)) * target).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name
    rows = model.backbone.get_input_embeddings().weight.grad
    prefixes = model.config.contract["prefix_ids"]
    assert rows[prefixes["text_pair"]].any()
    assert rows[prefixes["vqa_single"]].any()
    assert not rows[prefixes["ocr"]].any(), "no item has this prefix"
    assert not rows[model.config.backbone.image_token_id].any(), "visual tokens stand in its place"


def test_gradients_are_those_of_plain_qwen2_vl_one_by_one(
    model: ViPolyQwenModel, tiny_backbone: Path, processor: ViPolyQwenProcessor, encoded: list[EncodedItem]
) -> None:
    model = copy.deepcopy(model)
    target = torch.randn(len(ITEMS), DIM, generator=torch.Generator().manual_seed(0))
    gradients = []
    for embedded in (model(pack(encoded)), plain_vectors(model, tiny_backbone, processor, encoded)):
        model.zero_grad()
        (embedded * target).sum().backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        expected = gradients[1][name]
        assert (gradient - expected).norm() <= 1e-4 * expected.norm(), name


def test_a_dummy_picture_changes_no_vector_and_touches_the_vision_tower(
    model: ViPolyQwenModel, encoded: list[EncodedItem]
) -> None:
    model = copy.deepcopy(model)
    texts = [encoded[1], encoded[6]]
    batch = pack(texts, dummy_picture=True)
    embedded = model(batch)
    torch.testing.assert_close(embedded, vectors(model, texts), atol=1e-6, rtol=0)
    embedded.sum().backward()
    for name, parameter in model.backbone.visual.named_parameters():
        assert parameter.grad is not None, name
        assert not parameter.grad.any(), name


def test_activation_checkpointing_changes_no_gradient(
    model: ViPolyQwenModel, encoded: list[EncodedItem]
) -> None:
    gradients = []
    for checkpointing in (False, True):
        copied = copy.deepcopy(model).train()
        if checkpointing:
            copied.activation_checkpointing_enable()
        copied(pack(encoded))[:, 0].sum().backward()
        gradients.append({name: parameter.grad for name, parameter in copied.named_parameters()})
    assert copied.is_activation_checkpointing
    torch.testing.assert_close(gradients[0], gradients[1])


def test_saved_model_gives_the_same_vectors(
    model: ViPolyQwenModel, processor: ViPolyQwenProcessor, encoded: list[EncodedItem], tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    assert not list(tmp_path.glob("*.bin"))
    loaded, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert isinstance(loaded, ViPolyQwenModel)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    again = AutoProcessor.from_pretrained(tmp_path)
    assert isinstance(again, ViPolyQwenProcessor)
    loaded.config.check_processor(again)
    torch.testing.assert_close(
        vectors(loaded, again.encode_batch(ITEMS)), vectors(model, encoded), atol=0, rtol=0
    )


def test_config_carries_the_contract_and_no_path(
    tiny_model_dir: Path, tiny_backbone: Path, tiny_processing: ProcessingSettings
) -> None:
    text = (tiny_model_dir / "config.json").read_text(encoding="utf-8")
    assert str(tiny_backbone.parent) not in text
    content = json.loads(text)
    assert content["model_type"] == "vipolyqwen"
    assert content["pooling"] == "attention"
    assert content["embedding_dim"] == 64
    assert content["contract"]["max_pixels"] == tiny_processing.max_pixels
    assert content["contract"]["prompt"].startswith("[prefix] content <|im_end|>")
    assert set(content["contract"]["prefix_ids"]) == {task.value for task in Task}
    assert content["backbone"]["model_type"] == "qwen2_vl"
    assert AutoConfig.from_pretrained(tiny_model_dir).backbone.text_config.hidden_size == 128


def test_a_processor_of_another_contract_is_refused(
    tiny_model_dir: Path, tiny_backbone: Path, tiny_processing: ProcessingSettings
) -> None:
    config = AutoConfig.from_pretrained(tiny_model_dir)
    other = ViPolyQwenProcessor.from_backbone(tiny_backbone, replace(tiny_processing, max_tokens=99))
    with pytest.raises(ValueError, match="max_tokens is 99, but the model was trained with 256"):
        config.check_processor(other)


def test_half_precision_keeps_the_head_in_float32(
    model: ViPolyQwenModel, encoded: list[EncodedItem], tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path / "full")
    half = AutoModel.from_pretrained(tmp_path / "full", dtype=torch.bfloat16)
    half.save_pretrained(tmp_path / "half")
    again = AutoModel.from_pretrained(tmp_path / "half")
    for loaded in (half, again):
        assert loaded.backbone.dtype == torch.bfloat16
        assert {p.dtype for p in loaded.projection.parameters()} == {torch.float32}
        assert loaded.pooling.context.dtype == torch.float32
        embedded = vectors(loaded, encoded)
        assert embedded.dtype == torch.float32
        assert (embedded * vectors(model, encoded)).sum(1).min() > 0.99


def test_pooling_and_projection_are_in_float32_whatever_the_states(
    tiny_backbone: Path,
    tiny_processing: ProcessingSettings,
    encoded: list[EncodedItem],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, batch = build(tiny_backbone, tiny_processing, Pooling.MEAN), pack(encoded)
    with torch.no_grad():
        half = model.hidden_states(batch).bfloat16()
        found = []
        for states in (half, half.float()):
            monkeypatch.setattr(model, "hidden_states", lambda _, states=states: states)
            found.append(model(batch))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found.append(model(batch))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[2], found[1])


def test_autocast_gives_vectors_close_to_full_precision(
    model: ViPolyQwenModel, encoded: list[EncodedItem]
) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        embedded = vectors(model, encoded)
    assert embedded.dtype == torch.float32
    assert (embedded * vectors(model, encoded)).sum(1).min() > 0.99


def test_a_new_model_has_the_weights_of_its_backbone(
    tiny_backbone: Path, tiny_processing: ProcessingSettings
) -> None:
    plain = Qwen2VLModel.from_pretrained(tiny_backbone).state_dict()
    models = [
        ViPolyQwenModel.from_backbone(tiny_backbone, ModelSettings(embedding_dim=DIM), tiny_processing, seed)
        for seed in (1, 1, 2)
    ]
    table = "language_model.embed_tokens.weight"
    prefixes = sorted(models[0].config.contract["prefix_ids"].values())
    for name, weight in models[0].backbone.state_dict().items():
        if name == table:
            kept = [row for row in range(len(weight)) if row not in prefixes]
            torch.testing.assert_close(weight[kept], plain[name][kept], atol=0, rtol=0)
            mean = plain[name][: prefixes[0]].mean(0)
            torch.testing.assert_close(weight[prefixes], mean.expand(5, -1))
        else:
            torch.testing.assert_close(weight, plain[name], atol=0, rtol=0)
    assert torch.equal(models[0].projection.weight, models[1].projection.weight)
    assert not torch.equal(models[0].projection.weight, models[2].projection.weight)
    assert not models[0].pooling.context.any()
    width = models[0].projection.in_features
    assert models[0].projection.weight.std().item() == pytest.approx(width**-0.5, rel=0.1)


def test_building_a_model_leaves_the_random_state_alone(
    tiny_backbone: Path, tiny_processing: ProcessingSettings
) -> None:
    before = torch.random.get_rng_state()
    ViPolyQwenModel.from_backbone(tiny_backbone, ModelSettings(embedding_dim=DIM), tiny_processing)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_table_without_spare_rows_grows(
    tiny_backbone: Path, tiny_processing: ProcessingSettings, encoded: list[EncodedItem], tmp_path: Path
) -> None:
    full = Qwen2VLModel.from_pretrained(tiny_backbone)
    prefixes = sorted(encoded_prefixes(tiny_backbone, tiny_processing))
    full.resize_token_embeddings(prefixes[0])
    full.save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"):
        (tmp_path / name).write_bytes((tiny_backbone / name).read_bytes())
    model = ViPolyQwenModel.from_backbone(tmp_path, ModelSettings(embedding_dim=DIM), tiny_processing)
    assert model.backbone.get_input_embeddings().num_embeddings == prefixes[-1] + 1
    assert model.config.backbone.text_config.vocab_size == prefixes[-1] + 1
    model.save_pretrained(tmp_path / "saved")
    again = AutoModel.from_pretrained(tmp_path / "saved")
    torch.testing.assert_close(vectors(again, encoded), vectors(model, encoded), atol=0, rtol=0)


def encoded_prefixes(backbone: Path, processing: ProcessingSettings) -> list[int]:
    return list(ViPolyQwenProcessor.from_backbone(backbone, processing).prompt.prefixes.values())


def test_only_attention_by_segment_is_ever_used(tiny_model_dir: Path) -> None:
    loaded = AutoModel.from_pretrained(tiny_model_dir, attn_implementation="eager")
    assert loaded.backbone.language_model.config._attn_implementation == SEGMENTS
    assert loaded.backbone.visual.config._attn_implementation == SEGMENTS


def test_another_architecture_is_refused(
    tiny_backbone: Path, tiny_processing: ProcessingSettings, tmp_path: Path
) -> None:
    for path in tiny_backbone.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "config.json").write_text('{"model_type": "qwen3"}', encoding="utf-8")
    with pytest.raises(ValueError, match="is a 'qwen3'; expected one of qwen2_vl, qwen2_5_vl, qwen3_vl"):
        ViPolyQwenModel.from_backbone(tmp_path, ModelSettings(), tiny_processing)


def test_a_missing_directory_is_named(tiny_processing: ProcessingSettings) -> None:
    with pytest.raises(ValueError, match="/no/such/place"):
        ViPolyQwenModel.from_backbone("/no/such/place", ModelSettings(), tiny_processing)


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "least"), [(torch.float32, 0.9999), (torch.bfloat16, 0.99)])
def test_a_gpu_gives_the_vectors_of_the_cpu(
    model: ViPolyQwenModel, encoded: list[EncodedItem], dtype: torch.dtype, least: float
) -> None:
    moved = copy.deepcopy(model).cuda()
    moved.backbone.to(dtype)
    with torch.no_grad():
        embedded = moved(pack(encoded).to("cuda")).cpu()
    assert (embedded * vectors(model, encoded)).sum(1).min() > least
