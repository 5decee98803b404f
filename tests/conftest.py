"""Fixtures that many tests share: a tiny backbone, a tiny model, the folder of real files.

The model's modules are imported inside the fixtures: they take seconds, and most tests need none of them.
"""

import signal
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import torch

from tests.mlflow_store import same_store_afterwards
from vipolyqwen_core.config import ModelSettings, ProcessingSettings

hypothesis.settings.register_profile("steady", deadline=None, derandomize=True)
hypothesis.settings.load_profile("steady")  # the same examples at each run, on machines of any speed

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"

TEXTS = (
    "Hôm nay trời đẹp, chúng tôi đi dạo quanh hồ Hoàn Kiếm và ăn phở.",
    "Tổng số tiền trên hóa đơn là bao nhiêu? Tổng cộng 125.000 đồng.",
    "What is the total of this receipt? The total is 12.50 dollars.",
    "A red circle stands to the left of a blue square; a green triangle lies below.",
    "收据的总额是多少？总额是一百二十五元。",
    "Please translate the sentence into English, then explain each step.\nFirst, read it twice.",
)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """The models of tests are too small for threads to help."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> None:
    """A background job ignores SIGINT, and Dagster then SIGTERM; after `trap '' TERM` that is ignored, too.

    Processes that tests start would inherit it, and not end."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


@pytest.fixture(autouse=True)
def _own_store() -> Iterator[None]:
    """What a test tells MLflow, and MLflow writes into the environment, is not for the next test."""
    with same_store_afterwards():
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real files beside the checkout; skips where they are absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"{SHARED_DATA} is absent")
    return SHARED_DATA


@pytest.fixture(scope="session")
def tiny_processing() -> ProcessingSettings:
    """The pixel budget of the tests: at most 36 visual tokens a picture."""
    return ProcessingSettings(min_pixels=28 * 28, max_pixels=36 * 28 * 28, max_tokens=256)


@pytest.fixture(scope="session")
def tiny_backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny backbone with a tokenizer made of a few sentences in three languages."""
    from vipolyqwen_core.model.tiny import build_tiny_backbone

    return build_tiny_backbone(tmp_path_factory.mktemp("tiny_backbone"), TEXTS)


@pytest.fixture(scope="session")
def tiny_model_dir(
    tiny_backbone: Path, tiny_processing: ProcessingSettings, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A saved, untrained viPolyQwen model of 64 dimensions on the tiny backbone, with its processor."""
    from vipolyqwen_core.model.modeling import ViPolyQwenModel
    from vipolyqwen_core.processing.processor import ViPolyQwenProcessor

    directory = tmp_path_factory.mktemp("tiny_model")
    settings = ModelSettings(embedding_dim=64)
    ViPolyQwenModel.from_backbone(tiny_backbone, settings, tiny_processing).save_pretrained(directory)
    ViPolyQwenProcessor.from_backbone(tiny_backbone, tiny_processing).save_pretrained(directory)
    return directory
