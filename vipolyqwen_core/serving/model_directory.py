"""A saved model directory: made complete for sentence-transformers, and told from another."""

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Final

from vipolyqwen_core.contract import PREFIX_TOKENS
from vipolyqwen_core.serving.model_card import ModelFacts, write_model_card

MODULES: Final = [
    {
        "idx": 0,
        "name": "0",
        "path": "",
        "type": "vipolyqwen_core.serving.sentence_transformers.ViPolyQwenModule",
    }
]
"""Named as text: writing it needs no sentence-transformers."""

SENTENCE_TRANSFORMERS: Final = {
    "model_type": "SentenceTransformer",
    "similarity_fn_name": "cosine",
    "default_prompt_name": None,
    "prompts": {task.value: token for task, token in PREFIX_TOKENS.items()},
}
"""`encode(..., prompt_name="ocr")` gives the prefix; the everyday use has none."""


def complete_model_directory(path: Path, facts: ModelFacts) -> None:
    """Write modules.json, config_sentence_transformers.json and README.md into a saved model directory.

    Raises:
        ValueError: no model was saved there
    """
    if not (path / "config.json").is_file():
        raise ValueError(f"{path} is no model directory: it has no config.json")
    files = {"modules.json": MODULES, "config_sentence_transformers.json": SENTENCE_TRANSFORMERS}
    for name, content in files.items():
        (path / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    write_model_card(path, facts)


def model_digest(model: Path) -> str:
    """32 hex digits: hash of the files that decide a vector. A version with other files is another model.

    A process reads them once, while they stay as they are: a run of the factory asks at each of its last
    stages, and gigabytes take seconds.
    """
    decisive = ("config.json", "tokenizer.json", "preprocessor_config.json")
    files = [
        path for path in sorted(model.iterdir()) if path.name in decisive or path.suffix == ".safetensors"
    ]
    states = (path.stat() for path in files)
    return _digest(tuple(files), tuple((state.st_ino, state.st_size, state.st_mtime_ns) for state in states))


@cache
def _digest(files: tuple[Path, ...], _states: tuple[tuple[int, int, int], ...]) -> str:
    """Hash of files by name and content; inodes, sizes and times tell whether they are the same as before."""
    digest = hashlib.blake2b(digest_size=16)
    for path in files:
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "blake2b").digest())
    return digest.hexdigest()
