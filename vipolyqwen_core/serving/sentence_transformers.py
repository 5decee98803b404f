"""The model as a module of sentence-transformers.

    model = SentenceTransformer("path/to/model", trust_remote_code=True)
    model.encode(["a sentence", picture, {"text": "what is the total?", "image": [page_1, page_2]}])
    model.encode(questions, prompt_name="ocr")

sentence-transformers asks for the flag for every module that is not its own. Texts, pictures (PIL, a path, a
data URI, an array), dicts of both and messages come in; they are treated as by `ViPolyQwenEmbedder`.
A prompt that is a prefix (`<ocr>`) becomes that prefix; any other prompt is text in front of the text, of the
last message where messages are given; it is the text of pictures that have none.
"""

import base64
import binascii
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sentence_transformers.base.modality import is_image_url_or_path, is_message_dict
from sentence_transformers.base.modules import InputModule

from vipolyqwen_core.contract import IMAGE_PLACEHOLDER, PREFIX_TOKENS, Task, Turn
from vipolyqwen_core.model.modeling import ViPolyQwenModel
from vipolyqwen_core.processing.packing import pack
from vipolyqwen_core.processing.processor import Item, ViPolyQwenProcessor
from vipolyqwen_core.serving.inputs import Picture, make_item, warn_of_cut_texts

ROUNDING = 0.01
"""How far floats may leave [0, 1], as behind an interpolation."""

TASK_OF_PROMPT: dict[str, Task] = {token: task for task, token in PREFIX_TOKENS.items()}


class ViPolyQwenModule(InputModule):
    """Items in, unit vectors out: input, transformer, pooling and norm in one module."""

    save_in_root = True

    def __init__(self, model: ViPolyQwenModel, processor: ViPolyQwenProcessor) -> None:
        super().__init__()
        model.config.check_processor(processor)
        self.model = model
        self.processor = processor
        self.tokenizer = processor.tokenizer

    @property
    def modalities(self) -> list[Any]:
        """What an input may be."""
        return ["text", "image", ("image", "text"), "message"]

    @property
    def max_seq_length(self) -> int:
        """Longer texts are cut.

        Raises:
            ValueError: where another limit is set
        """
        return self.processor.settings.max_tokens

    @max_seq_length.setter
    def max_seq_length(self, value: int) -> None:
        if value != self.max_seq_length:
            raise ValueError(f"max_seq_length {value!r}: the model was trained with {self.max_seq_length}")

    def get_embedding_dimension(self) -> int:
        """Dimension of the vectors."""
        return int(self.model.config.embedding_dim)

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **kwargs: Any) -> dict[str, Any]:
        """The inputs as one packed batch, under the key `packed`.

        Its token ids, `input_ids`, tell the trainer of sentence-transformers that there are features. They
        are no tensor: cached losses would cut that, and not the batch, and be wrong without a word.

        Raises:
            ValueError: names the input and what is wrong with it
        """
        items = []
        for number, given in enumerate(inputs):
            try:
                items.append(_item(given, prompt, self.processor))
            except ValueError as error:
                raise ValueError(f"input {number}: {error}") from error
        encoded = self.processor.encode_batch(items)
        cut = [item.truncated_tokens for item in encoded if item.truncated_tokens]
        warn_of_cut_texts(len(cut), sum(cut), self.max_seq_length)
        packed = pack(encoded, self.processor.layout)
        return {"packed": packed, "input_ids": packed.input_ids.tolist()}

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """The features with `sentence_embedding` [S, D] added."""
        packed = features["packed"].to(self.model.device)
        return {**features, "sentence_embedding": self.model(packed)}

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        """Write model and processor. There is no other format than safetensors."""
        self.model.save_pretrained(output_path)
        self.processor.save_pretrained(output_path)

    @classmethod
    def load(
        cls,
        model_name_or_path: str,
        subfolder: str = "",
        token: bool | str | None = None,
        cache_folder: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        init_defaults: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> "ViPolyQwenModule":
        """The module of a model directory or of a hub id.

        Raises:
            ValueError: it is neither
        """
        path = cls.load_dir_path(
            model_name_or_path, subfolder, token, cache_folder, revision, local_files_only
        )
        if path is None:
            raise ValueError(f"{model_name_or_path} is neither a directory nor a model on the hub")
        of_model = {**(kwargs.get("config_kwargs") or {}), **(kwargs.get("model_kwargs") or {})}
        model = ViPolyQwenModel.from_pretrained(path, **of_model)
        return cls(model, ViPolyQwenProcessor.from_pretrained(path, **(kwargs.get("processor_kwargs") or {})))


def _item(given: Any, prompt: str | None, processor: ViPolyQwenProcessor) -> Item:
    """An item out of one input of sentence-transformers."""
    prefix = TASK_OF_PROMPT.get(prompt or "")
    spelled = prompt if prompt and prefix is None else ""
    if is_message_dict(given) or (isinstance(given, list) and given and is_message_dict(given[0])):
        return _dialogue([given] if isinstance(given, dict) else given, prefix, spelled, processor)
    text, pictures = _text_and_pictures(given)
    if isinstance(text, str) or (text is None and pictures and spelled):
        text = spelled + (text or "")
    shown = [_picture(picture) for picture in pictures]
    return make_item(text, shown, prefix, shrink=processor.shrink, max_chars=processor.max_chars)


def _text_and_pictures(given: Any) -> tuple[str | None, list[Any]]:
    if isinstance(given, dict):
        unknown = sorted(set(given) - {"text", "image"}, key=str)
        if unknown:
            raise ValueError(f"expected the keys text and image, not {', '.join(map(str, unknown))}")
        pictures = given.get("image")
        if pictures is None:
            return given.get("text"), []
        return given.get("text"), list(pictures) if isinstance(pictures, (list, tuple)) else [pictures]
    if isinstance(given, str) and not is_image_url_or_path(given):
        return given, []
    if isinstance(given, (tuple, list)):
        raise ValueError("a pair of inputs has no one vector: give a text, a picture, or a dict of both")
    return None, [given]


def _dialogue(
    messages: Sequence[Any], prefix: Task | None, prompt: str, processor: ViPolyQwenProcessor
) -> Item:
    """Messages of roles and contents; the last one is the query, those before it its history."""
    turns, pictures = [], []
    for message in messages:
        if not is_message_dict(message):
            raise ValueError("a message is a dict with the keys role and content")
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if not isinstance(parts, (list, tuple)):
            raise ValueError(
                f"the content of a message is a text or a list of parts, not {type(parts).__name__}"
            )
        text = ""
        for part in parts:
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            if kind not in ("text", "image"):
                raise ValueError(f"a part of a message is text or image, not {kind!r}")
            if kind not in part:
                raise ValueError(f"a part of type {kind} has what it shows under the key {kind}")
            if kind == "image":
                text += IMAGE_PLACEHOLDER
                pictures.append(_picture(part["image"]))
            elif isinstance(part["text"], str):
                text += part["text"]
            else:
                raise ValueError(f"text must be a string, not {type(part['text']).__name__}")
        turns.append(Turn(message["role"], text))
    text, earlier = prompt + turns[-1].text, turns[:-1]
    return make_item(text, pictures, prefix, earlier, processor.shrink, processor.max_chars)


def _picture(given: Any) -> Picture:
    """A picture in one of the forms of sentence-transformers. Nothing is fetched from the network."""
    if isinstance(given, torch.Tensor):
        given = given.detach().cpu()
        given = (given.float() if given.is_floating_point() else given).numpy()  # NumPy has no bfloat16
    if isinstance(given, np.ndarray):
        return _from_array(given)
    if isinstance(given, str) and given.startswith("data:"):
        try:
            return base64.b64decode(given.partition(",")[2], validate=True)
        except binascii.Error as error:
            raise ValueError(f"a data URI that is not base64: {error}") from error
    if isinstance(given, str) and given.startswith(("http://", "https://")):
        raise ValueError(
            f"pictures are not fetched from the network: {given[:200]!r}; for the text itself use "
            "{'text': ...}"
        )
    if not isinstance(given, (Image.Image, str, Path, bytes)):
        raise ValueError(f"a {type(given).__name__} is neither a text nor a picture")
    return given


def _from_array(array: np.ndarray) -> Image.Image:
    """[H, W, C] or [C, H, W], of whole numbers from 0 to 255 or of floats in [0, 1].

    Raises:
        ValueError: another shape, or values that are no picture before they are scaled
    """
    if array.ndim != 3:
        raise ValueError(f"an array of {array.ndim} dimensions is no picture: expected 3")
    if array.shape[2] not in (1, 3, 4) and array.shape[0] in (1, 3, 4):
        array = array.transpose(1, 2, 0)
    if not 1 <= array.shape[2] <= 4:
        raise ValueError(f"an array of shape {list(array.shape)} is no picture: expected 1, 3 or 4 channels")
    floats = np.issubdtype(array.dtype, np.floating)
    if not floats and not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"an array of {array.dtype} is no picture: expected uint8 or floats in [0, 1]")
    low, high = (-ROUNDING, 1 + ROUNDING) if floats else (0, 255)
    if not ((array >= low) & (array <= high)).all():  # not so where one is NaN
        raise ValueError(
            f"an array of {array.dtype} from {array.min()} to {array.max()} is no picture: expected whole "
            "numbers from 0 to 255 or floats in [0, 1]"
        )
    if floats:
        array = np.rint(np.clip(array, 0.0, 1.0) * 255)
    array = array.astype(np.uint8)
    return Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)
