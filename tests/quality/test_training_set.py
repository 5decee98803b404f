"""The training set: exactly the manifest's sources, no copy, no leak, the same split for good."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from PIL import Image

from quality import training_set
from quality.assignments import read_assignments, split_id
from quality.polars_tables import polars_schema
from quality.training_set import build_training_set
from tests.quality.conftest import RECIPE, everything, instruction, question, read, scene, sentence
from tests.wrong_bytes import write_wrong_bytes
from vipolyqwen_core.config import CurationSettings, Recipe, SplitSettings
from vipolyqwen_core.contract import PLAN_INDEX, TRAINING
from vipolyqwen_core.corpus.image_identity import image_id
from vipolyqwen_core.corpus.image_store import ImageStore, read_pins
from vipolyqwen_core.corpus.manifest import Manifest
from vipolyqwen_core.corpus.pictures import decode_picture
from vipolyqwen_core.corpus.tables import arrow_schema
from vipolyqwen_core.workspace import Workspace


def sides(workspace: Workspace) -> dict[tuple[str, int], str]:
    """Split or rule of each row, by source and line."""
    found = {
        (s, line): split for s, line, split in everything(workspace).select("source", "line", "split").rows()
    }
    ledger = pl.read_parquet(workspace.training_set / "ledger.parquet")
    return found | {(s, line): rule for s, line, rule in ledger.select("source", "line", "rule").rows()}


def by_text(workspace: Workspace) -> dict[str, str]:
    """Split of each row, by its query without what was put behind it."""
    rows = everything(workspace).select("query", "split").rows()
    return {query.removesuffix(" Vâng."): split for query, split in rows}


def test_tables_are_those_of_the_contract(workspace, write_source, build) -> None:
    records = [instruction(i) for i in range(20)] + [question(i) for i in range(20)]
    records[0]["negatives"] = ["sai", {"text": "<image>", "images": ["3.png"]}]
    summary = build(write_source(records, pictures=range(20)))
    train, index = read(workspace, "train"), pl.read_parquet(workspace.training_set / "index.parquet")
    for split in ("train", "eval"):
        with pa.memory_map(str(workspace.training_set / f"{split}.arrow")) as file:
            table = pa.ipc.open_file(file).read_all()
        assert table.schema.equals(arrow_schema(TRAINING))
    assert index.schema == polars_schema(PLAN_INDEX)
    assert index["sample_id"].equals(train["sample_id"])
    assert (index["tokens"] == train["query_tokens"] + train["target_tokens"]).all()
    assert (index["images"] == train["query_images"].list.len()).sum() >= train.height - 1
    assert (summary.pairs_in, summary.pairs_out) == (40, 40)
    assert summary.details["eval"] == read(workspace, "eval").height == 10
    assert everything(workspace)["component"].null_count() == 0


def test_pictures_are_pinned_to_their_rows_in_the_store(workspace, write_source, build) -> None:
    record = {**question(1), "negatives": ["sai", {"text": "<image><image>", "images": ["3.png", "0.png"]}]}
    build(write_source([question(0), record, question(2), instruction(3)], pictures=range(4)))
    store = ImageStore(**read_pins(workspace.training_set)["corpus"])
    ids = store.table(["image_id"])["image_id"].to_pylist()
    for row in everything(workspace).to_dicts():
        assert [ids[place] for place in row["query_image_rows"]] == row["query_images"]
        assert row["target_image_rows"] == []
        if row["line"] == 2:
            assert row["negative_image_rows"][0] == []
            assert [ids[p] for p in row["negative_image_rows"][1]] == row["negatives"][1]["images"]
            data = store.read(row["query_image_rows"])[0]
            assert image_id(decode_picture(data, 10**6).image) == image_id(scene(1))
        else:
            assert row["negative_image_rows"] is None


def test_another_version_of_an_image_store_with_the_same_pictures_is_no_other_data(
    workspace, write_source, build
) -> None:
    """As a curation leaves it that was killed and repeated: nothing is to be trained anew."""
    source = write_source([question(i) for i in range(20)], pictures=range(20))
    first = build(source)
    (workspace.curated("corpus") / "stage.json").unlink()
    assert build(source).reused
    (workspace.validated("corpus") / "stage.json").unlink()  # a validation later on points into the new one
    again = build(source)
    assert not again.reused
    assert json.loads((workspace.training_set / "images.json").read_text())["corpus"]["version"] == 2
    assert again.data_version == first.data_version


def test_a_source_without_accepted_version_is_named(workspace, write_source, build) -> None:
    build(one := write_source([instruction(1)], name="one"))
    two, three = (write_source([instruction(2)], name=name) for name in ("two", "three"))
    with pytest.raises(ValueError, match="no accepted version of two, three"):
        build_training_set(Manifest(sources=(two, one, three)), RECIPE, workspace)


def test_a_row_that_replaces_its_copy_keeps_the_side(workspace, write_source, build) -> None:
    def scored(number: int, score: float, end: str = "") -> dict[str, object]:
        texts = {"input": sentence(number) + end, "output": sentence(number + 5000)}
        return {"data_type": "contrastive_with_score", "similarity_score": score, **texts}

    old = [scored(number, 0.5) for number in range(60)]
    build(write_source(old))
    first = by_text(workspace)
    assert set(first.values()) == {"train", "eval"}
    rescored = [scored(number, 0.6) for number in range(60)]
    summary = build(write_source(rescored + old))
    assert (summary.pairs_in, by_text(workspace)) == (60, first)
    summary = build(write_source(rescored))  # the old rows are gone
    assert (summary.pairs_in, by_text(workspace)) == (60, first)
    again = [scored(number, 0.7) for number in range(60)]
    summary = build(write_source(again))  # in place: no row of the last version is left
    assert (summary.pairs_in, by_text(workspace)) == (60, first)
    longer = [scored(number, 0.6, " Vâng.") for number in range(60)]
    summary = build(write_source(old + rescored + longer))
    assert (summary.pairs_in, by_text(workspace)) == (60, first)
    assert all(query.endswith("Vâng.") for query in everything(workspace)["query"])


def test_a_row_whose_answer_was_corrected_in_place_keeps_the_side(workspace, write_source, build) -> None:
    def records(end: str) -> list[dict[str, object]]:
        asked = [{**instruction(i), "output": sentence(i + 5000 + 100 * len(end))} for i in range(60)]
        return asked + [{**question(i), "output": f"Vật số {i}{end}"} for i in range(60)]

    def by_place() -> dict[int, str]:
        return dict(everything(workspace).select("line", "split").rows())

    build(write_source(records(""), pictures=range(60)))
    first = by_place()
    assert (len(first), set(first.values())) == (120, {"train", "eval"})
    for end in (" màu xanh", ""):  # and back again
        build(write_source(records(end)))
        assert by_place() == first


def test_pictures_stay_on_their_side_whatever_is_asked_about_them(workspace, write_source, build) -> None:
    """As where the manifest gives a source another `query_text`: all rows are new, and their pictures not."""

    def by_picture(asked: str) -> dict[str, str]:
        build(
            write_source([{**question(i), "input": f"{asked} {i}?"} for i in range(60)], pictures=range(60))
        )
        rows = everything(workspace).select(pl.col("query_images").list.first(), "split").rows()
        return dict(rows)

    first = by_picture("Vật gì đây")
    assert (len(first), set(first.values())) == (60, {"train", "eval"})
    assert by_picture("Hãy nói tên của vật") == first


def test_groups_stay_on_their_side_whatever_their_rows_say(workspace, write_source, build) -> None:
    """As where the questions about a document are made anew: all rows are new, and the document is not."""

    def by_group(asked: str) -> dict[str, str]:
        build(
            write_source(
                {
                    "data_type": "instruction",
                    "group_id": f"d{i % 40}",
                    "input": f"{asked} {i}?",
                    "output": str(i),
                }
                for i in range(80)
            )
        )
        return dict(everything(workspace).select("group_id", "split").rows())

    first = by_group("Vật gì đây")
    assert (len(first), set(first.values())) == (40, {"train", "eval"})
    assert by_group("Hãy nói tên của vật") == first


def test_a_copy_that_is_left_alone_keeps_the_side_of_what_stood_for_it(
    workspace, write_source, build
) -> None:
    longer = [{**instruction(i), "input": sentence(i, 30) + " Vâng."} for i in range(60)]
    shorter = [{**instruction(i), "input": sentence(i, 30)} for i in range(60)]

    build(write_source(longer[:30] + shorter[:30], name="one"), write_source(longer[30:], name="two"),
          three := write_source(shorter[30:], name="three"))  # fmt: skip
    first = by_text(workspace)
    assert set(first.values()) == {"train", "eval"}
    assert read_assignments(workspace.assignments).height == 120
    # Gone are the rows that stayed: of one source, and with another source.
    build(write_source(shorter[:30], name="one"), three)
    assert by_text(workspace) == first


def test_a_copy_that_came_later_and_changed_no_row_keeps_the_side(workspace, write_source, build) -> None:
    rows = [{**instruction(i), "input": sentence(i, 40), "output": f"Trả lời {i}"} for i in range(60)]
    copies = [{**row, "input": row["input"].rsplit(" ", 1)[0]} for row in rows]
    build(write_source(rows))
    first = {
        row["query"].rsplit(" ", 1)[0]: row["split"] for row in everything(workspace).iter_rows(named=True)
    }
    assert set(first.values()) == {"train", "eval"}
    assert build(write_source(rows + copies)).pairs_in == 60
    build(write_source(copies))  # the originals are gone
    sides = dict(everything(workspace).select("query", "split").iter_rows())
    assert all(sides[query] == "train" for query, split in first.items() if split == "train")


def test_copies_are_those_of_the_version_that_is_joined_whatever_is_accepted_meanwhile(
    workspace, write_source, build, monkeypatch
) -> None:
    longer = [{**instruction(i), "input": sentence(i, 30) + " Vâng."} for i in range(6)]
    shorter = [{**instruction(i), "input": sentence(i, 30)} for i in range(6)]
    source = write_source(longer + shorter)
    working = training_set.find_copies

    def late(*arguments: Any, **named: Any) -> pl.DataFrame:
        (workspace.validated("corpus") / "accepted.json").write_text('{"version": "the next one"}')
        (workspace.curated("corpus") / "ledger.parquet").unlink()
        return working(*arguments, **named)

    monkeypatch.setattr(training_set, "find_copies", late)
    assert build(source).pairs_in == 6
    assert read_assignments(workspace.assignments).height == 12


def test_copies_in_another_source_are_dropped_once(workspace, write_source, build) -> None:
    long = sentence(3, 30)
    one = write_source([instruction(1), {**instruction(2), "input": long}, instruction(3)], name="one")
    two = write_source(
        [
            {**instruction(1), "group_id": "labelled"},
            {**instruction(2), "input": long.upper() + "!"},
            instruction(4),
        ],
        name="two",
    )
    summary = build(one, two)
    found = sides(workspace)
    assert found["one", 1] == "exact_duplicate"
    assert {found["one", 2], found["two", 2]} - {"train", "eval"} == {"near_duplicate"}
    assert found["two", 1] in ("train", "eval")
    assert summary.rejected == {"exact_duplicate": 1, "near_duplicate": 1}
    facts = summary.details["sources"]
    assert {name: entry["pairs_in"] for name, entry in facts.items()} == {"one": 3, "two": 3}
    assert sum(entry["train"] + entry["eval"] for entry in facts.values()) == 4
    # Remembered are the near copy and each text once; so it can be built again.
    assert read_assignments(workspace.assignments)["sample_id"].is_unique().sum() == 5
    (workspace.training_set / "stage.json").unlink()
    assert build(one, two).data_version == summary.data_version


def linked(workspace: Workspace, *lines: int) -> bool:
    rows = everything(workspace).filter(pl.col("line").is_in(lines))
    assert rows.height == len(lines)
    return rows["component"].n_unique() == 1


def test_what_links_rows_and_what_does_not(workspace, write_source, build) -> None:
    long = sentence(8, 30)
    picture = scene(50, (300, 200))
    records = [
        question(0, "Có gì?"),  # 1, 2: one picture
        question(9, "Màu gì?", picture=0),
        question(
            1, "Trong hình này có tất cả bao nhiêu con vật?"
        ),  # 3, 4: the same question on other pictures
        question(2, "Trong hình này có tất cả bao nhiêu con vật?"),
        {**instruction(5), "input": long},  # 5, 6: the same long side
        {**instruction(6), "output": long},
        {**instruction(7), "input": "Kể một câu chuyện."},  # 7, 8: the same short side
        {**instruction(8), "input": "Kể một câu chuyện."},
        {**instruction(9), "group_id": "g"},  # 9, 10: one group
        {**instruction(10), "group_id": "g"},
        {**instruction(11), "input": long + " nữa"},  # 11: near 5
        {**question(12), "images": ["big.png"]},  # 12, 13: one picture in two sizes
        {**question(13), "images": ["small.jpg"]},
    ]
    source = write_source(records, pictures=range(4))
    picture.save(Path(str(source.image_root)) / "big.png")
    smaller = picture.resize((150, 100), Image.Resampling.LANCZOS)
    smaller.save(Path(str(source.image_root)) / "small.jpg", quality=90)
    build(source)
    assert linked(workspace, 1, 2)
    assert linked(workspace, 5, 6, 11)
    assert linked(workspace, 9, 10)
    assert linked(workspace, 12, 13)
    assert not linked(workspace, 3, 4)
    assert not linked(workspace, 7, 8)
    assert everything(workspace)["component"].n_unique() == 13 - 5


def test_equal_group_ids_of_two_sources_are_different_groups(workspace, write_source, build) -> None:
    one = write_source([{**instruction(1), "group_id": "1"}, {**instruction(2), "group_id": "1"}], name="one")
    two = write_source([{**instruction(3), "group_id": "1"}], name="two")
    build(one, two)
    components = everything(workspace).group_by("source").agg(pl.col("component").unique())
    assert sorted(len(found) for found in components["component"]) == [1, 1]
    assert everything(workspace)["component"].n_unique() == 2


def test_the_split_stays_when_the_corpus_grows(workspace, write_source, build) -> None:
    before: dict[tuple[str, int], str] = {}
    names = set()
    for size in (30, 45, 60):
        summary = build(write_source([instruction(i) for i in range(size)]))
        assert not summary.reused
        now = sides(workspace)
        assert all(now[place] == side for place, side in before.items())
        assert 0.2 <= summary.details["eval"] / size <= 0.3
        before = now
        assert read_assignments(workspace.assignments).height == size
        names.add(split_id(workspace.assignments))
    (name,) = names
    assert name is not None
    assert build(write_source([instruction(i) for i in range(60)])).reused
    # The same training set comes out when it is built again from its own assignments.
    version = summary.data_version
    (workspace.training_set / "stage.json").unlink()
    assert build(write_source([instruction(i) for i in range(60)])).data_version == version


def test_a_lost_table_of_assignments_is_noticed(workspace, write_source, build) -> None:
    source = write_source([instruction(i) for i in range(10)])
    first, name = build(source), split_id(workspace.assignments)
    workspace.assignments.unlink()
    again = build(source)
    assert not again.reused
    assert again.data_version == first.data_version
    assert split_id(workspace.assignments) != name, "models of before cannot be compared"


def test_rows_that_meet_both_sides_retire(workspace, write_source, build) -> None:
    records = [instruction(i) for i in range(12)]
    build(write_source(records))
    first = sides(workspace)
    trained = next(line for (_, line), side in first.items() if side == "train")
    evaluated = next(line for (_, line), side in first.items() if side == "eval")
    bridge = {
        "data_type": "instruction",
        "input": records[trained - 1]["input"],
        "output": records[evaluated - 1]["output"],
    }
    summary = build(write_source([*records, bridge]))
    now = sides(workspace)
    assert now["corpus", evaluated] == "evaluation_retired"
    assert now["corpus", trained] == now["corpus", 13] == "train"
    assert summary.rejected == {"evaluation_retired": 1}


def test_a_benchmark_never_trains_and_takes_what_it_touches_along(workspace, write_source, build) -> None:
    benchmark = write_source([instruction(1), instruction(2)], name="benchmark", off_limits=True)
    near = {**instruction(2), "input": instruction(2)["input"].lower().rstrip(".")}
    quoting = {**instruction(8), "input": f"{sentence(70, 40)} {instruction(1)['output']} {sentence(71, 40)}"}
    linked_text = {**instruction(7), "output": instruction(1)["input"]}
    corpus = write_source([near, linked_text, instruction(9), quoting])
    build(benchmark, corpus, recipe=Recipe(name="t", backbone="tiny", split=SplitSettings(eval_share=0.0)))
    assert sides(workspace) == {
        ("benchmark", 1): "off_limits",
        ("benchmark", 2): "near_duplicate",
        ("corpus", 1): "linked_to_off_limits",
        ("corpus", 2): "linked_to_off_limits",
        ("corpus", 3): "train",
        ("corpus", 4): "linked_to_off_limits",  # a run of 13 words of the benchmark stands inside
    }


def test_a_table_with_wrong_bytes_is_named(workspace, write_source, build) -> None:
    sources = [write_source([instruction(start + n) for n in range(20)], f"s{start}") for start in (0, 100)]
    build(*sources)
    (table,) = workspace.validated("s100").glob("*/pairs.parquet")
    write_wrong_bytes(table, "query")
    shutil.rmtree(workspace.training_set)
    with pytest.raises(ValueError, match=rf"{table} is damaged .* delete it"):
        build_training_set(Manifest(sources=sources), RECIPE, workspace)


def test_too_many_linked_rows_stop_the_stage_and_persist_nothing(workspace, write_source, build) -> None:
    source = write_source([{**instruction(i), "group_id": "all"} for i in range(120)])
    with pytest.raises(ValueError, match="120 of 120 rows"):
        build(source)
    assert not workspace.assignments.exists()
    assert not workspace.training_set.exists()


def test_components_never_cross_the_split(workspace, write_source, build) -> None:
    rng = np.random.default_rng(3)
    records = [
        question(i, f"Câu {i}?", picture=int(rng.integers(12))) if i % 2 else
        {**instruction(i), "group_id": f"g{rng.integers(15)}"}
        for i in range(80)
    ]  # fmt: skip
    build(write_source(records, pictures=range(12)))
    table = everything(workspace)
    assert set(table["split"]) == {"train", "eval"}
    for column in ("component", "group_id"):
        assert table.drop_nulls(column).group_by(column).agg(pl.col("split").n_unique())["split"].max() == 1
    pictures = table.explode("query_images").drop_nulls("query_images")
    assert pictures.group_by("query_images").agg(pl.col("split").n_unique())["split"].max() == 1
    assert CurationSettings().min_linking_chars == 32


def test_what_links_too_many_rows_is_named(workspace, write_source, build, monkeypatch) -> None:
    """A person has to find the logo, the group or the chain among thousands of rows."""
    monkeypatch.setattr("quality.split.SMALL_COMPONENT", 5)
    logos = [{**question(i, sentence(i)), "images": [f"{i}.png", "99.png"]} for i in range(6)]
    logos.append(question(0, sentence(50)))
    with pytest.raises(
        ValueError, match=r"7 of 27 rows.* 6 of them share the picture 99\.png of logo, the others"
    ):
        build(write_source(logos + [instruction(i) for i in range(20)], "logo", pictures=[*range(6), 99]))
    groups = [instruction(i, group_id="book") for i in range(6)] + [instruction(i) for i in range(6, 30)]
    with pytest.raises(ValueError, match=r": 6 of them share the group_id 'book'\. Leave"):
        build(write_source(groups, "groups"))
    words = sentence(0, 50).split()
    chain = [
        {**instruction(i), "input": " ".join([*words[i:], *(f"x{n}" for n in range(i))])} for i in range(7)
    ]
    with pytest.raises(ValueError, match=r"7 of 37 rows.*: no two of them share .* near copies in a chain"):
        build(write_source(chain + [instruction(i) for i in range(10, 40)], "chain"))


def test_a_chain_through_rows_that_are_gone_is_named(workspace, write_source, build, monkeypatch) -> None:
    """As where each picture was that of the row before, and is put right."""
    monkeypatch.setattr("quality.split.SMALL_COMPONENT", 5)
    rows = [question(i) | {"output": sentence(i)} for i in range(7)] + [instruction(i) for i in range(10, 40)]
    build(write_source(rows, pictures=range(7)))
    rows[:7] = [row | {"images": [f"{(i + 1) % 7}.png"]} for i, row in enumerate(rows[:7])]
    with pytest.raises(
        ValueError, match=r"7 of 37 rows.*: no two .* but 7 stand in the place of earlier rows"
    ):
        build(write_source(rows))


def test_groups_that_go_by_another_id_in_the_next_version_are_named(
    workspace, write_source, build, monkeypatch
) -> None:
    """As where they are numbered, and one was put in front of the others."""
    monkeypatch.setattr("quality.split.SMALL_COMPONENT", 5)

    def groups(kept: str, made_anew: str, first: int) -> list[dict[str, object]]:
        asked = [(i, f"{word} {i}?") for i in range(5) for word in (kept, made_anew)]
        return [
            {"data_type": "instruction", "group_id": f"{first + i}", "input": text, "output": str(i)}
            for i, text in asked
        ] + [instruction(i) for i in range(10, 40)]

    build(write_source(groups("Ai", "Bao giờ", first=0)))
    message = r"of 40 rows.*: 2 of them share the group_id '.', the others .*; 4 stand in the place of"
    with pytest.raises(ValueError, match=message):
        build(write_source(groups("Ai", "Khi nào", first=1)))
