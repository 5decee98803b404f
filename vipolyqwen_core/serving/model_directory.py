"""Completes a saved model directory: loadable by sentence-transformers, and with its model card."""

import json
from pathlib import Path
from typing import Any, Final

from vipolyqwen_core.contract import PREFIX_TOKENS
from vipolyqwen_core.corpus.tables import written_aside
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
    _write_json(path / "modules.json", MODULES)
    _write_json(path / "config_sentence_transformers.json", SENTENCE_TRANSFORMERS)
    write_model_card(path, facts)


def _write_json(path: Path, content: Any) -> None:
    with written_aside(path) as aside:
        aside.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
