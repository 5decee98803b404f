"""The real tokenizer of Qwen2-VL, read once."""

from pathlib import Path

import pytest

from vipolyqwen_core.processing.vocabulary import Vocabulary, read_vocabulary


@pytest.fixture(scope="session")
def real(shared_data: Path) -> Vocabulary:
    """Skips where the real files are absent."""
    return read_vocabulary(shared_data / "qwen2_vl_2b_files")
