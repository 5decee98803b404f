"""Search: the table in use answers, with the model that it was made with."""

import json
import shutil
import unicodedata
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa
import pytest

from tests.core.serving.conftest import DAMAGES, SETTINGS, rows_of, run_export
from tests.core.small_training_set import SmallPair, picture, some_pairs
from vipolyqwen_core import ViPolyQwenEmbedder
from vipolyqwen_core.serving import search as search_module
from vipolyqwen_core.serving.current_export import read_current
from vipolyqwen_core.serving.export import _vector_index, export
from vipolyqwen_core.serving.search import Hit, open_export, search, search_words
from vipolyqwen_core.workspace import Workspace


def test_search_finds_the_same_text_and_picture(workspace: Workspace) -> None:
    (hit,) = search(workspace, "Nói số 5", top=1)
    assert hit == Hit(
        rank=1,
        score=pytest.approx(1, abs=1e-5),
        source="small",
        task="instr",
        side="query",
        language="vi",
        text="Nói số 5",
        origin="small.jsonl:32",
        image_ids=(),
        sample_id=hit.sample_id,
    )
    by_picture = search(workspace, images=picture(3), top=1)[0]
    assert by_picture.origin == "pictures/3.png"
    both = search(workspace, "What colour is shown?", [picture(4)], top=1)[0]
    assert (both.origin, both.score) == ("pictures/4.png", pytest.approx(1, abs=1e-5))


def test_hits_come_in_order_and_say_different_things(workspace: Workspace) -> None:
    hits = search(workspace, "yes", top=20)
    assert [hit.rank for hit in hits] == list(range(1, 21))
    assert sorted((hit.score for hit in hits), reverse=True) == [hit.score for hit in hits]
    assert len({(hit.text, hit.image_ids) for hit in hits}) == 20
    assert hits[0].text == "yes"


def test_the_same_question_on_another_picture_is_another_hit(workspace: Workspace) -> None:
    question = "<image>What colour is shown?"
    hits = search(workspace, "What colour is shown?", [picture(4)], top=1000)
    assert len([hit for hit in hits if hit.text == question]) == 8


def test_a_filter_narrows_the_search(workspace: Workspace) -> None:
    hits = search(workspace, "yes", top=5, where="language = 'vi' AND side = 'target'")
    assert {(hit.language, hit.side) for hit in hits} == {("vi", "target")}


def test_scores_are_cosines_with_the_query(workspace: Workspace, tiny_model_dir: Path) -> None:
    asked = ViPolyQwenEmbedder.from_pretrained(tiny_model_dir).encode("yes").reshape(-1)
    cosines = {(row["sample_id"], row["side"]): row["embedding"] @ asked for row in rows_of(workspace)}
    hits = search(workspace, "yes", top=20)
    expected = [cosines[hit.sample_id, hit.side] for hit in hits]
    assert [hit.score for hit in hits] == pytest.approx(expected, abs=1e-5)
    assert expected[-1] < 0.99


def test_what_a_filter_leaves_is_looked_for_in_all_of_the_index(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    nearest, filtered = search_module.nearest, []

    def spied(*arguments: Any, is_filtered: bool) -> Any:
        filtered.append(is_filtered)
        return nearest(*arguments, is_filtered=is_filtered)

    monkeypatch.setattr(search_module, "nearest", spied)
    search(workspace, "yes", top=3, where="side = 'query'")
    assert filtered == [True]


def test_brackets_in_a_string_are_none(workspace: Workspace) -> None:
    where = "text != ':) it''s )' AND (side = 'query') -- )"
    assert search(workspace, "a", top=1, where=where)[0].side == "query"


@pytest.mark.parametrize("form", [str, partial(unicodedata.normalize, "NFD"), '"{}"'.format, '"{}'.format])
@pytest.mark.parametrize("words", ["noi SO 5", "Nói số 5"])
def test_words_are_found_without_accents_and_case_however_they_are_spelled(
    workspace: Workspace, words: str, form: Callable[[str], str]
) -> None:
    assert search_words(workspace, form(words), top=1)[0].text == "Nói số 5"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "nothing to look for"),
        ({"images": []}, "nothing to look for"),
        ({"text": "a", "where": "colour = 'red'"}, "where \"colour = 'red'\" cannot be used: .*colour"),
        ({"text": "a", "where": "source ="}, "cannot be used"),
        ({"text": "a", "where": "side = 'query' language = 'vi'"}, "cannot be used"),
        ({"text": "a", "where": "language = ?"}, "where 'language = .' cannot be used"),
        ({"text": "a", "where": "length(text) / 0 = 1"}, r"with where .* cannot be read: .*ivide by zero"),
        ({"text": "a", "where": "1=1) OR (1=1"}, "it closes a bracket that it did not open"),
        ({"text": "a", "where": b"side"}, "where must be a string, not bytes"),
        ({"text": "a", "top": 0}, "top must be at least 1, not 0"),
        ({"text": "a", "top": "3"}, "top must be at least 1, not '3'"),
        ({"text": ["a", "b"]}, "text must be a string, not list: a search has one query"),
        ({"text": "a", "images": ["absent.png"]}, "absent.png"),
        ({"text": "a", "prefix": "summary"}, "unknown prefix"),
    ],
)
def test_a_wrong_search_is_refused(workspace: Workspace, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        search(workspace, **arguments)


@pytest.mark.parametrize("words", [None, 5, ["a"], b"a"])
def test_words_that_are_no_text_are_refused(workspace: Workspace, words: Any) -> None:
    with pytest.raises(ValueError, match=f"words must be a string, not {type(words).__name__}"):
        search_words(workspace, words)


def test_as_many_hits_can_be_asked_for_as_one_likes(workspace: Workspace) -> None:
    every = search(workspace, "Say number 3", top=1000)
    assert search(workspace, "Say number 3", top=2**40) == every
    assert len(search_words(workspace, "number", top=2**40)) == len(
        search_words(workspace, "number", top=1000)
    )


def test_pictures_of_a_query_may_come_one_by_one(workspace: Workspace) -> None:
    given = [picture(2), picture(3)]
    assert search(workspace, images=iter(given)) == search(workspace, images=given)


@pytest.fixture
def exported(tmp_path: Path, tiny_model_dir: Path) -> Workspace:
    """A workspace of its own, with one pair."""
    run_export(Workspace(tmp_path), tiny_model_dir, pairs=[SmallPair("a question", "an answer")])
    return Workspace(tmp_path)


@pytest.mark.parametrize("look", [search, search_words])
def test_a_search_goes_on_in_the_table_that_was_swapped_in_meanwhile(
    look: Callable[..., list[Hit]],
    exported: Workspace,
    model_of_the_same_shape: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened = []

    def slowly(place: Workspace) -> Any:
        opened.append(open_export(place))
        if len(opened) == 1:  # as while the model is loaded
            export(exported.training_set, model_of_the_same_shape, "2", exported, SETTINGS)
        return opened[-1]

    monkeypatch.setattr(search_module, "open_export", slowly)
    assert look(exported, "question", top=1)[0].text == "a question"
    assert [current.model_version for current, _ in opened] == ["1", "2"]
    with pytest.raises(ValueError, match="cannot be used"):
        look(exported, "question", where="colour = 'red'")
    assert len(opened) == 3


def test_a_search_whose_table_is_replaced_each_time_says_so_and_blames_no_filter(
    exported: Workspace, tiny_model_dir: Path, model_of_the_same_shape: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models, encoded, swaps = {"1": tiny_model_dir, "2": model_of_the_same_shape}, [], 3
    encode, opened = ViPolyQwenEmbedder.encode, 0

    def spied(embedder: ViPolyQwenEmbedder, *arguments: Any) -> Any:
        encoded.append(arguments)
        return encode(embedder, *arguments)

    def swapping(place: Workspace) -> Any:
        nonlocal opened
        found = open_export(place)
        if opened < swaps:
            version = "2" if found[0].model_version == "1" else "1"
            export(exported.training_set, models[version], version, exported, SETTINGS)
        opened += 1
        return found

    monkeypatch.setattr(search_module, "open_export", swapping)
    monkeypatch.setattr(ViPolyQwenEmbedder, "encode", spied)
    assert search(exported, "question", top=1, where="side = 'query'")[0].text == "a question"
    assert (opened, len(encoded)) == (swaps + 1, len(models))
    opened, swaps = 0, 100
    with pytest.raises(ValueError, match=r"^another export was swapped in \d times during the search"):
        search_words(exported, "question", where="side = 'query'")


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("look", [search, search_words])
def test_a_damaged_table_is_said_to_be_one_and_no_filter_is_blamed(
    look: Callable[..., list[Hit]], exported: Workspace, damage: Callable[[Path], None]
) -> None:
    assert look(exported, "question", where="side = 'query'")
    damage(exported.lancedb / f"{search_module.TABLE}.lance")
    for where in (None, "side = 'query'"):
        with pytest.raises(ValueError, match=r"the exported table cannot be read: ."):
            look(exported, "question", where=where)


@pytest.mark.parametrize("look", [search, search_words])
def test_what_is_said_again_and_again_does_not_hide_what_is_said_once(
    look: Callable[..., list[Hit]], tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    often = ["it's yes\\", "yes; it is", "'yes' it is"]
    once = [
        f"{number} said neither no nor maybe, but at last and after some words: yes" for number in range(9)
    ]
    pairs = [SmallPair(f"{i}?", answer) for answer in often for i in range(300)]
    pairs += [SmallPair("which?", answer) for answer in once]
    run_export(Workspace(tmp_path), tiny_model_dir, pairs=pairs)
    fetched, run = [], search_module._run

    def spied(*arguments: Any) -> Any:
        rows = run(*arguments)
        fetched.append(len(rows))
        return rows

    monkeypatch.setattr(search_module, "_run", spied)
    hits = look(Workspace(tmp_path), "yes", top=12, where="side = 'target'")
    assert {hit.text for hit in hits} == {*often, *once}
    assert max(fetched) < 800


def test_what_was_said_already_is_a_filter_like_others(
    tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = [SmallPair(f"{i}?", "yes") for i in range(300)]
    run_export(Workspace(tmp_path), tiny_model_dir, pairs=pairs)
    nearest, filtered = search_module.nearest, []

    def spied(*arguments: Any, is_filtered: bool) -> Any:
        filtered.append(is_filtered)
        return nearest(*arguments, is_filtered=is_filtered)

    monkeypatch.setattr(search_module, "nearest", spied)
    search(Workspace(tmp_path), "yes", top=3)
    assert filtered == sorted(filtered)
    assert (filtered[0], filtered[-1]) == (False, True)


DIM = 64
LIKE = 500
"""Rows that are nearly the same."""


@pytest.fixture(scope="module")
def like_rows(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, np.ndarray]:
    """A table with a vector index, and its vectors."""
    random = np.random.default_rng(0)
    centres = random.normal(size=(100, DIM)).repeat(LIKE, axis=0)
    vectors = (centres + 0.05 * random.normal(size=centres.shape)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    embeddings = pa.FixedSizeListArray.from_arrays(vectors.ravel(), DIM)
    rows = pa.table({"row": np.arange(len(vectors)), "embedding": embeddings})
    table = lancedb.connect(tmp_path_factory.mktemp("like_rows")).create_table("rows", rows)
    table.create_index("embedding", config=_vector_index(DIM))
    return table, vectors


def test_a_filter_finds_the_nearest_of_many_like_rows_by_short_vectors_too(
    like_rows: tuple[Any, np.ndarray],
) -> None:
    table, vectors = like_rows
    left, top, found = 20 * LIKE, 10, 0
    queries = vectors[left :: 10 * LIKE]
    for query in queries:
        asked = search_module.nearest(table, query, top * search_module.OVERSAMPLING, is_filtered=True)
        rows = asked.where(f"row < {left}", prefilter=True).to_arrow()["row"].to_pylist()
        exact = np.argsort(-vectors[:left] @ query)[:top]
        found += len(set(exact.tolist()) & set(rows))
    assert found > 0.9 * top * len(queries)


@pytest.mark.parametrize("is_filtered", [False, True])
def test_every_row_of_an_index_can_be_asked_for(like_rows: tuple[Any, np.ndarray], is_filtered: bool) -> None:
    table, vectors = like_rows
    rows = search_module.nearest(table, vectors[0], 2**40, is_filtered).to_arrow()["row"].to_pylist()
    assert len(set(rows)) == len(vectors)
    assert rows[0] // LIKE == 0


def test_search_before_any_export_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing was exported yet"):
        search(Workspace(tmp_path), "anything")


def test_the_current_export_is_named(workspace: Workspace) -> None:
    current = json.loads((workspace.exports / "current.json").read_text())
    assert (current["model_version"], current["rows"]) == ("1", 2 * len(some_pairs()))


def test_a_workspace_that_was_moved_is_searched_with_its_own_model(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    before, after = Workspace(tmp_path / "before"), Workspace(tmp_path / "after")
    shutil.copytree(tiny_model_dir, before.models / "v1")
    run_export(before, before.models / "v1")
    before.home.rename(after.home)
    assert read_current(after).model_directory() == after.models / "v1"
    assert Path(read_current(after).parquet).is_file()
    assert search(after, "a text", top=1)[0].rank == 1
