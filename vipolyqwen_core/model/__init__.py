"""The model. Importing this package registers its classes with transformers: the sole registration.

    import vipolyqwen_core.model
    model = transformers.AutoModel.from_pretrained(path)

It imports the Qwen2-VL classes, which takes seconds and hundreds of megabytes. What loader workers need lies
in `vipolyqwen_core.processing`.
"""

from transformers import AutoConfig, AutoModel, AutoProcessor

from vipolyqwen_core.model.configuration import ViPolyQwenConfig
from vipolyqwen_core.model.modeling import ViPolyQwenModel
from vipolyqwen_core.processing.processor import ViPolyQwenProcessor

AutoConfig.register(ViPolyQwenConfig.model_type, ViPolyQwenConfig, exist_ok=True)
AutoModel.register(ViPolyQwenConfig, ViPolyQwenModel, exist_ok=True)
AutoProcessor.register(ViPolyQwenConfig, ViPolyQwenProcessor, exist_ok=True)

__all__ = ["ViPolyQwenConfig", "ViPolyQwenModel", "ViPolyQwenProcessor"]
