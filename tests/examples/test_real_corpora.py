"""The example manifest on the real corpora: what is known to be dirty is found, and nothing else is lost.

Skipped where the folder beside the checkout is absent. The numbers are those of the files that lie there, and
were counted apart from this code.
"""

import unicodedata
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pytest

from examples.recipes import public_corpora_on_cpu
from quality.curate import curate
from quality.training_set import build_training_set
from quality.validate import validate
from vipolyqwen_core.contract import Task
from vipolyqwen_core.corpus.image_store import ImageStore
from vipolyqwen_core.corpus.manifest import Manifest, load_manifest
from vipolyqwen_core.corpus.readers import read_source
from vipolyqwen_core.corpus.tables import StageSummary
from vipolyqwen_core.corpus.tagging import tag
from vipolyqwen_core.workspace import Workspace

MANIFEST = Path(__file__).parents[2] / "examples" / "real_corpora.yaml"
LINKED = ("gaokao_mm", "owleval", "nlvr", "sroie", "sroie_text")
"""Sources whose pictures are shared by several rows."""


@dataclass
class Curated:
    """All sources of the manifest, curated once for all tests here."""

    manifest: Manifest
    workspace: Workspace
    stages: dict[str, StageSummary]

    def pairs(self, name: str) -> pl.DataFrame:
        return pl.read_parquet(self.workspace.curated(name) / "pairs.parquet")

    def ledger(self, name: str) -> pl.DataFrame:
        return pl.read_parquet(self.workspace.curated(name) / "ledger.parquet")

    def store(self, name: str) -> ImageStore:
        return ImageStore(**self.stages[name].details["images"])


@pytest.fixture(scope="module")
def curated(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Curated:
    manifest = load_manifest(MANIFEST, shared_data)
    workspace = Workspace(tmp_path_factory.mktemp("real"))
    settings = public_corpora_on_cpu().curation
    stages = {source.name: curate(source, settings, workspace) for source in manifest.sources}
    return Curated(manifest, workspace, stages)


def test_every_record_is_accounted_for_and_all_tasks_are_filled(curated: Curated) -> None:
    assert {
        name: (stage.records, stage.pairs_in, stage.pairs_out) for name, stage in curated.stages.items()
    } == {
        "stsb_en": (7249, 7249, 7194),
        "stsb_zh": (7249, 7249, 7176),
        "vnpara": (3083, 3083, 3076),
        "alpaca_vi": (1092, 1092, 1091),
        "alpaca_en": (999, 999, 984),
        "alpaca_zh": (1000, 1000, 992),
        "chats_with_pictures": (6, 6, 6),
        "crohme": (300, 300, 300),
        "gaokao_mm": (67, 67, 67),
        "vnhsge": (600, 600, 600),
        "owleval": (492, 467, 462),
        "nlvr": (200, 400, 398),
        "sroie": (112, 110, 98),
        "sroie_text": (28, 28, 27),
    }
    tasks: Counter[str] = Counter()
    for stage in curated.stages.values():
        tasks.update(stage.details["tasks"])
    assert set(tasks) == {task.value for task in Task}


def test_what_is_dirty_is_found_by_its_rule(curated: Curated) -> None:
    found = {
        name: {**stage.records_rejected, **stage.rejected}
        for name, stage in curated.stages.items()
        if stage.records_rejected or stage.rejected
    }
    assert found == {
        "stsb_en": {"exact_duplicate": 51, "near_duplicate": 4},
        "stsb_zh": {"exact_duplicate": 73},
        "vnpara": {"exact_duplicate": 2, "near_duplicate": 5},
        "alpaca_vi": {"answer_in_query": 1},
        "alpaca_en": {"exact_duplicate": 14, "answer_in_query": 1},
        "alpaca_zh": {"exact_duplicate": 8},
        "owleval": {"no_answer": 25, "exact_duplicate": 4, "undecoded_target": 1},
        "nlvr": {"exact_duplicate": 2},
        "sroie": {"missing_key": 2, "exact_duplicate": 11, "near_duplicate": 1},
        "sroie_text": {"near_duplicate": 1},
    }


def test_scores_that_disagree_are_named_with_the_copy_that_is_dropped(curated: Curated) -> None:
    ledger = curated.ledger("stsb_en").filter(pl.col("rule") == "exact_duplicate")
    assert ledger.filter(pl.col("reason").str.contains("scores differ")).height == 5


def test_of_receipts_that_lie_there_twice_one_answer_stays(curated: Curated) -> None:
    ledger = curated.ledger("sroie")
    assert Counter(ledger.select("file", "rule").iter_rows()) == {
        ("018.json", "exact_duplicate"): 3,
        ("018.json", "near_duplicate"): 1,  # its address lacks a blank that 016 has
        ("624.json", "exact_duplicate"): 4,
        ("625.json", "exact_duplicate"): 4,
        ("033.json", "missing_key"): 1,
        ("104.json", "missing_key"): 1,
    }
    images = curated.pairs("sroie").select("file", pl.col("query_images").list.first()).unique()
    pictures = dict(images.iter_rows())
    assert len(set(pictures.values())) == 25  # 28 receipts, three of them twice
    # Boxes of one scan were cut in two ways: where the texts differ, both stay, and the picture links them.
    texts = curated.pairs("sroie_text")
    assert texts["query_images"].list.first().n_unique() == 25
    assert texts.height == 27


def test_texts_of_all_sources_are_composed(curated: Curated) -> None:
    decomposed = {}
    for source in curated.manifest.sources:
        raw = [pair for record in read_source(source) for pair in record.pairs]
        decomposed[source.name] = sum(not unicodedata.is_normalized("NFC", p.query + p.target) for p in raw)
        kept = curated.pairs(source.name)
        assert all(
            unicodedata.is_normalized("NFC", text) for side in ("query", "target") for text in kept[side]
        )
    assert {name: count for name, count in decomposed.items() if count} == {
        "stsb_en": 1, "alpaca_vi": 1, "vnhsge": 17,
    }  # fmt: skip


def test_languages_are_those_that_the_corpora_are_in(curated: Curated) -> None:
    for source in curated.manifest.sources:
        languages, rows = (
            curated.stages[source.name].details["languages"],
            curated.stages[source.name].pairs_out,
        )
        if source.languages:
            assert sum(languages.get(name, 0) for name in source.languages) >= 0.96 * rows, source.name


def test_pictures_are_what_they_are_whatever_they_are_called(curated: Curated) -> None:
    table = curated.store("gaokao_mm").table(["format", "reencoded", "origin"])
    formats = Counter(zip(table["format"].to_pylist(), table["reencoded"].to_pylist(), strict=True))
    assert sum(formats.values()) == 102
    assert formats["JPEG", False] == 6  # named .png, stored as they are
    origins = curated.store("vnhsge").table(["origin"])["origin"].to_pylist()
    assert len(origins) == 23
    assert "test/Geography/Geo_27/Geo_27_30.png" in origins  # written `Geo_27/ Geo_27_30.png`
    assert curated.stages["chats_with_pictures"].pairs_out == 6
    assert curated.store("chats_with_pictures").table(["origin"]).num_rows == 3


def test_shared_pictures_link_few_rows_and_lose_none(
    curated: Curated, tiny_backbone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quality.validate.judge", lambda suites, tables, docs: [])
    recipe = public_corpora_on_cpu()
    sources = tuple(source for source in curated.manifest.sources if source.name in LINKED)
    for source in sources:
        tag(source, recipe.processing, tiny_backbone, curated.workspace)
        validate(source, curated.workspace)
    summary = build_training_set(Manifest(sources=sources), recipe, curated.workspace)
    assert summary.pairs_in == summary.pairs_out == sum(curated.stages[name].pairs_out for name in LINKED)
    splits = [curated.workspace.training_set / f"{split}.arrow" for split in ("train", "eval")]
    rows = pl.concat([pl.read_ipc(path) for path in splits])
    assert rows.group_by("component").agg(pl.col("split").n_unique())["split"].max() == 1
    sizes = rows.group_by("source", "component").len()
    largest = dict(sizes.group_by("source").agg(pl.col("len").max()).iter_rows())
    assert largest["nlvr"] == 2  # the two orders of a scene, not the statements that stand there many times
    assert largest["gaokao_mm"] == 1
    assert largest["owleval"] <= 48  # eight questions on one picture, answered by six models
    assert rows.filter(pl.col("source") == "nlvr")["component"].n_unique() == 200
