"""The tokenizer of a backbone: its files read, the prefixes added, and a twin that knows no special token.

Text that people wrote is tokenised by the twin, whose list of added tokens is empty: whatever is spelled
there (`<|im_end|>`, `<ocr>`) comes out as ordinary text. Special tokens enter inputs as ids only.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from vipolyqwen_core.contract import PREFIX_TOKENS, Task

PRETOKENIZER_PATTERN: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Qwen2 splits text before the merges."""

QWEN2_VL_SPECIAL_TOKENS: Final = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
"""In the order of their ids, right after the vocabulary."""


def byte_level_tokenizer(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> Tokenizer:
    """Qwen2's byte-level BPE without any added token."""
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZER_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def special(token: str) -> AddedToken:
    """A special token that is matched exactly as it is spelled."""
    return AddedToken(token, special=True, normalized=False)


def decoder_entry(token: AddedToken) -> dict[str, Any]:
    """What `added_tokens_decoder` of tokenizer_config.json says of a token."""
    flags = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
    return {flag: getattr(token, flag) for flag in flags}


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer with its prefixes, as files and as ids."""

    tokenizer: Tokenizer
    """The backbone's tokenizer, prefixes included."""
    tokenizer_config: Mapping[str, Any]
    """Content of tokenizer_config.json, prefixes included."""
    special_ids: Mapping[str, int]
    """Id of every added token by its spelling."""

    @property
    def prefix_ids(self) -> dict[Task, int]:
        """Id of each prefix."""
        return {task: self.special_ids[token] for task, token in PREFIX_TOKENS.items()}

    @cached_property
    def text_tokenizer(self) -> Tokenizer:
        """The twin for text: no added tokens, nothing put around a text, nothing cut or padded."""
        twin = Tokenizer(self.tokenizer.model)
        twin.normalizer = self.tokenizer.normalizer
        twin.pre_tokenizer = self.tokenizer.pre_tokenizer
        twin.decoder = self.tokenizer.decoder
        return twin

    def save(self, directory: Path) -> None:
        """Write tokenizer.json and tokenizer_config.json."""
        self.tokenizer.save(str(directory / "tokenizer.json"))
        write_object(directory / "tokenizer_config.json", self.tokenizer_config)


def read_vocabulary(directory: Path) -> Vocabulary:
    """The vocabulary of a backbone or of a saved model; prefixes that are missing are added at the end.

    Read from tokenizer.json, or, where that is absent, from vocab.json and merges.txt with the added tokens
    of tokenizer_config.json.

    Raises:
        ValueError: no tokenizer there, a damaged one, or one that lacks a token of Qwen2-VL
    """
    settings = directory / "tokenizer_config.json"
    config = read_object(settings) if settings.is_file() else {}
    if (directory / "tokenizer.json").is_file():
        tokenizer = _read_tokenizer(directory / "tokenizer.json")
    elif (directory / "vocab.json").is_file() and (directory / "merges.txt").is_file():
        tokenizer = byte_level_tokenizer(
            read_object(directory / "vocab.json"), _read_merges(directory / "merges.txt")
        )
        added = sorted((int(key), token) for key, token in config.get("added_tokens_decoder", {}).items())
        tokenizer.add_tokens([AddedToken(**token) for _, token in added])
    else:
        raise ValueError(f"no tokenizer in {directory}: neither tokenizer.json nor vocab.json and merges.txt")
    tokenizer.add_special_tokens([special(token) for token in PREFIX_TOKENS.values()])
    ids = {token.content: number for number, token in tokenizer.get_added_tokens_decoder().items()}
    missing = [token for token in QWEN2_VL_SPECIAL_TOKENS if token not in ids]
    if missing:
        raise ValueError(f"the tokenizer in {directory} is not Qwen2-VL's: it lacks {missing[0]}")
    return Vocabulary(tokenizer, _with_added(config, tokenizer), ids)


def _with_added(config: Mapping[str, Any], tokenizer: Tokenizer) -> dict[str, Any]:
    """tokenizer_config.json with all added tokens, the prefixes among them.

    transformers 5 names none there, but takes those that stand there for all, and gives the others new ids.
    """
    decoder = {
        str(number): decoder_entry(token) for number, token in tokenizer.get_added_tokens_decoder().items()
    }
    decoder |= config.get("added_tokens_decoder", {})
    extra = list(config.get("additional_special_tokens") or QWEN2_VL_SPECIAL_TOKENS[1:])
    extra += [token for token in PREFIX_TOKENS.values() if token not in extra]
    return {**config, "added_tokens_decoder": decoder, "additional_special_tokens": extra}


def _read_merges(path: Path) -> list[tuple[str, str]]:
    """Pairs of merges.txt. Line ends of either kind are stripped: a stray CR would spoil every merge."""
    lines: Iterable[str] = path.read_text(encoding="utf-8").split("\n")
    pairs = (line.rstrip("\r") for line in lines)
    return [
        (first, second)
        for first, _, second in (line.partition(" ") for line in pairs if not line.startswith("#version"))
        if second
    ]


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a model.

    Raises:
        ValueError: it does not exist or is damaged; names it
    """
    if not path.is_file():
        raise ValueError(f"{path} does not exist")
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # of the decoding, too
        raise ValueError(f"{path} is damaged ({error}); copy the model anew") from error
    return content


def write_object(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file of a model."""
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _read_tokenizer(path: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises no other
        raise ValueError(f"{path} is damaged ({error}); copy the model anew") from error
