"""Text stays text: nothing that is spelled becomes a special token."""

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from vipolyqwen_core.contract import PREFIX_TOKENS, Task
from vipolyqwen_core.processing.vocabulary import (
    QWEN2_VL_SPECIAL_TOKENS,
    Vocabulary,
    decoder_entry,
    read_vocabulary,
    special,
)

SPELLINGS = (*QWEN2_VL_SPECIAL_TOKENS, *PREFIX_TOKENS.values())
SENTENCES = (
    "Tổng cộng: 125.000 đồng  (đã gồm VAT)\n\n\tCảm ơn quý khách!",
    "It's the user's 3rd try; 12345 items, don't they'll say.",
    "收据的总额是多少？  １２３",
    "e\u0301 and é, 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 👩‍👩‍👧 \u200b\r\n end ",
)


@pytest.fixture(scope="module")
def tiny(tiny_backbone: Path) -> Vocabulary:
    return read_vocabulary(tiny_backbone)


@pytest.fixture(scope="module", params=["tiny", "real"])
def vocabulary(request: pytest.FixtureRequest) -> Vocabulary:
    found: Vocabulary = request.getfixturevalue(request.param)
    return found


@pytest.mark.parametrize("token", SPELLINGS)
@pytest.mark.parametrize("text", ["{}", "a{}b", " {} ", "{}{}", "x\n{}\ny", "<|{}|>"])
def test_spelled_tokens_are_text(vocabulary: Vocabulary, token: str, text: str) -> None:
    spelled = text.replace("{}", token)
    ids = vocabulary.text_tokenizer.encode(spelled).ids
    assert not set(ids) & set(vocabulary.special_ids.values())
    assert vocabulary.text_tokenizer.decode(ids) == spelled


@given(parts=st.lists(st.one_of(st.sampled_from(SPELLINGS), st.text(max_size=8)), max_size=6))
def test_no_mixture_yields_a_special_token(tiny: Vocabulary, parts: list[str]) -> None:
    ids = tiny.text_tokenizer.encode("".join(parts)).ids
    assert not set(ids) & set(tiny.special_ids.values())


def test_every_added_token_of_the_backbone_is_covered(vocabulary: Vocabulary) -> None:
    assert set(SPELLINGS) == set(vocabulary.special_ids)


def test_text_is_tokenised_as_by_transformers(shared_data: Path, real: Vocabulary) -> None:
    theirs = AutoTokenizer.from_pretrained(shared_data / "qwen2_vl_2b_files")
    for text in SENTENCES:
        assert real.text_tokenizer.encode(text).ids == theirs(text)["input_ids"]


def test_prefixes_take_the_spare_rows(real: Vocabulary) -> None:
    assert sorted(real.prefix_ids.values()) == [151657, 151658, 151659, 151660, 151661]
    assert real.special_ids["<|video_pad|>"] == 151656


def test_windows_line_ends_in_merges_change_nothing(
    shared_data: Path, real: Vocabulary, tmp_path: Path
) -> None:
    files = shared_data / "qwen2_vl_2b_files"
    for name in ("vocab.json", "tokenizer_config.json"):
        shutil.copy(files / name, tmp_path / name)
    merges = (files / "merges.txt").read_bytes().replace(b"\n", b"\r\n")
    (tmp_path / "merges.txt").write_bytes(merges)
    spoiled = read_vocabulary(tmp_path)
    for text in SENTENCES:
        assert spoiled.text_tokenizer.encode(text).ids == real.text_tokenizer.encode(text).ids


def test_a_merge_may_begin_as_a_comment_does_and_added_tokens_keep_their_ids(tmp_path: Path) -> None:
    vocabulary = {"a": 0, "#": 1, "##": 2, "#a": 3, "aa": 4}
    merges = "#version: 0.2\n# #\n# a\na a\n"
    added = {
        str(number): decoder_entry(special(token))
        for number, token in enumerate(QWEN2_VL_SPECIAL_TOKENS, len(vocabulary))
    }
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "merges.txt").write_text(merges)
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"added_tokens_decoder": dict(sorted(added.items()))})  # 10 before 5
    )
    small = read_vocabulary(tmp_path)
    assert small.text_tokenizer.encode("##aa").tokens == ["##", "aa"]
    assert small.text_tokenizer.encode("#a").tokens == ["#a"]
    assert [small.special_ids[token] for token in SPELLINGS] == list(range(5, 5 + len(SPELLINGS)))


def test_saved_tokenizer_loads_in_transformers(tiny: Vocabulary, tmp_path: Path) -> None:
    tiny.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for task in Task:
        assert theirs.convert_tokens_to_ids(PREFIX_TOKENS[task]) == tiny.prefix_ids[task]
        assert theirs(PREFIX_TOKENS[task])["input_ids"] == [tiny.prefix_ids[task]]
    assert theirs.eos_token == "<|im_end|>"
    again = read_vocabulary(tmp_path)
    assert again.special_ids == tiny.special_ids
    assert again.tokenizer.to_str() == tiny.tokenizer.to_str()
    assert again.tokenizer_config == tiny.tokenizer_config


def test_a_tokenizer_that_transformers_saved_keeps_the_ids_of_its_special_tokens(
    tiny: Vocabulary, tmp_path: Path
) -> None:
    tiny.save(tmp_path)
    AutoTokenizer.from_pretrained(tmp_path).save_pretrained(tmp_path / "saved")
    assert "added_tokens_decoder" not in json.loads(
        (tmp_path / "saved" / "tokenizer_config.json").read_text()
    )
    (tmp_path / "again").mkdir()
    read_vocabulary(tmp_path / "saved").save(tmp_path / "again")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "again")
    text = "".join(tiny.special_ids)
    assert theirs(text)["input_ids"] == list(tiny.special_ids.values())


def test_a_folder_without_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no tokenizer in"):
        read_vocabulary(tmp_path)


@pytest.mark.parametrize("content", [b'{"a": ', "{}".encode("utf-16"), b"\xef\xbb\xbf{}"])
def test_a_damaged_file_of_a_tokenizer_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "vocab.json").write_bytes(content)
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    with pytest.raises(ValueError, match=r"vocab\.json is damaged .*; copy the model anew"):
        read_vocabulary(tmp_path)


def test_a_foreign_tokenizer_is_refused(tiny_backbone: Path, tmp_path: Path) -> None:
    content = json.loads((tiny_backbone / "tokenizer.json").read_text(encoding="utf-8"))
    content["added_tokens"] = [t for t in content["added_tokens"] if t["content"] != "<|vision_start|>"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ValueError, match=r"lacks <\|vision_start\|>"):
        read_vocabulary(tmp_path)
