"""viPolyQwen: one vector for text, pictures and both, from Qwen2-VL with attention pooling.

    from vipolyqwen_core import ViPolyQwenEmbedder

Importing this package imports nothing heavy; the embedder arrives when it is asked for.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vipolyqwen_core.serving.encoder import ViPolyQwenEmbedder

__version__ = "0.1.0"
__all__ = ["ViPolyQwenEmbedder", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "ViPolyQwenEmbedder":
        from vipolyqwen_core.serving.encoder import ViPolyQwenEmbedder

        return ViPolyQwenEmbedder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
