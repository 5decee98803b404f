"""Real public files are read as they lie there. Skipped where the folder beside the checkout is absent."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from vipolyqwen_core.contract import Task
from vipolyqwen_core.corpus.image_root import ImageRoot
from vipolyqwen_core.corpus.manifest import Format, Source
from vipolyqwen_core.corpus.pictures import PictureError, decode_picture
from vipolyqwen_core.corpus.readers import Record, check_source, read_source


def read(folder: Path, *paths: str, turns: str = "last", **keys: Any) -> list[Record]:
    source = Source(name="s", paths=tuple(str(folder / path) for path in paths), **keys)
    check_source(source)
    return list(read_source(source, turns))


def test_stsb_without_header(shared_data: Path) -> None:
    keys: dict[str, Any] = {"format": Format.STS_TABLE, "task": Task.TEXT_PAIR, "header": False}
    records = read(shared_data, "stsb_multi_mt/stsb-*.csv", score_range=(0.0, 5.0), **keys)
    assert all(len(record.pairs) == 1 for record in records)
    assert Counter(record.file for record in records) == {
        "stsb-en-train.csv": 5749, "stsb-en-dev.csv": 1500,
        "stsb-zh-train.csv": 5749, "stsb-zh-dev.csv": 1500,
    }  # fmt: skip
    scores = [record.pairs[0].score for record in records]
    assert min(scores) == 0.0
    assert max(scores) == 1.0
    quoted = [record.pairs[0].query for record in records if ", " in record.pairs[0].query]
    assert len(quoted) > 500
    assert not any(query.startswith('"') and query.endswith('",') for query in quoted)


def test_vietnamese_alpaca_with_other_names(shared_data: Path) -> None:
    columns = {"instruction": "prompt", "target": "response"}
    keys: dict[str, Any] = {"format": Format.ALPACA, "task": Task.INSTR, "columns": columns}
    records = read(shared_data, "alpaca_vi/*.jsonl", **keys)
    with open(shared_data / "alpaca_vi" / "vi_alpaca_reduced_11.jsonl", encoding="utf-8") as file:
        assert len(records) == sum(1 for _ in file)
    assert all(record.pairs[0].target for record in records)


def test_alpaca_arrays(shared_data: Path) -> None:
    keys: dict[str, Any] = {"format": Format.ALPACA, "task": Task.INSTR}
    records = read(shared_data, "llamafactory_demo/alpaca_*_demo.json", **keys)
    assert Counter(record.file for record in records) == {
        "alpaca_en_demo.json": 999, "alpaca_zh_demo.json": 1000,
    }  # fmt: skip
    assert all(record.pairs for record in records)


def test_dialogues_with_pictures(shared_data: Path) -> None:
    keys: dict[str, Any] = {"format": Format.MESSAGES, "task": Task.VQA_MULTI}
    root = str(shared_data / "llamafactory_demo")
    records = read(shared_data, "llamafactory_demo/mllm_demo.json", image_root=root, turns="each", **keys)
    assert len(records) == 6
    twice = records[0].pairs  # two turns, a picture in each, the same file twice
    assert [len(pair.query_images) for pair in twice] == [1, 2]
    assert twice[1].history is not None
    assert twice[1].history[0].text == "<image>Who are they?"
    for record in records:
        for pair in record.pairs:
            assert pair.target not in pair.query
            for path in pair.query_images:
                assert isinstance(path, str)
                assert decode_picture(ImageRoot(root).read(path), 10**7).format == "JPEG"


def test_formulas_with_a_question_of_the_manifest(shared_data: Path) -> None:
    root = str(shared_data / "crohme")
    columns = {"images": "image", "target": "latex"}
    keys: dict[str, Any] = {"format": Format.IMAGE_QA, "task": Task.OCR, "columns": columns}
    records = read(shared_data, "crohme/*.jsonl", image_root=root, query_text="Đọc công thức", **keys)
    assert len(records) >= 100
    for record in records:
        (pair,) = record.pairs
        assert pair.query == "Đọc công thức"
        assert pair.target.startswith("$")
    path = records[0].pairs[0].query_images[0]
    assert isinstance(path, str)
    picture = decode_picture(ImageRoot(root).read(path), 10**7)
    assert picture.image.mode == "RGB"


def test_parallel_lines_with_an_odd_label(shared_data: Path) -> None:
    paths = [f"vnpara/vnPara/{name}.txt" for name in ("Sentences1", "Sentences2", "Labels")]
    records = read(shared_data, *paths, format=Format.PARALLEL_LINES, task=Task.TEXT_PAIR)
    assert len(records) == 3083
    scores = Counter(record.pairs[0].score for record in records)
    assert scores[0.0] + scores[1.0] == 3083  # one label is written `1,`


def test_paths_that_climb_out_of_their_root_and_back_are_found(shared_data: Path) -> None:
    root = str(shared_data / "gaokao_mm" / "Data")
    keys: dict[str, Any] = {"format": Format.IMAGE_QA, "task": Task.VQA_SINGLE}
    columns = {"images": "picture"}
    records = read(shared_data, "gaokao_mm/Data/*.json", image_root=root, columns=columns, **keys)
    assert Counter(len(record.pairs[0].query_images) for record in records) == {1: 54, 2: 2, 4: 11}
    paths = [path for record in records for path in record.pairs[0].query_images]
    for path in paths:
        assert isinstance(path, str)
        assert path.startswith("../Data/")
        assert ImageRoot(root).read(path)
        with pytest.raises(PictureError) as refused:
            ImageRoot(str(shared_data / "gaokao_mm")).read(path)
        assert refused.value.rule == "path_leaves_root"


def test_paths_that_do_not_resolve_as_written_are_refused(shared_data: Path) -> None:
    folder = shared_data / "vnhsge" / "test" / "Geography"
    keys: dict[str, Any] = {"format": Format.IMAGE_QA, "task": Task.VQA_SINGLE}
    columns = {"images": "Image_Question", "query": "Question", "target": "Explanation"}
    records = read(shared_data, f"{folder}/*.json", image_root=str(folder), columns=columns, **keys)
    paths = [str(path) for record in records for pair in record.pairs for path in pair.query_images]
    assert len(paths) == 9
    for path in paths:
        if " " in path:
            with pytest.raises(PictureError) as refused:
                ImageRoot(str(folder)).read(path)
            assert refused.value.rule == "missing_image"
        else:
            assert ImageRoot(str(folder)).read(path)
    assert sum(" " in path for path in paths) == 1
