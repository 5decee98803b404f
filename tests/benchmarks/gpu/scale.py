"""The two sizes of the GPU script: the 2B model on a GPU, and a tiny one anywhere, by the same code."""

from dataclasses import dataclass

from tests.benchmarks.gpu.mix import MIX, TINY_MIX, Kind
from vipolyqwen_core.config import ModelSettings, ProcessingSettings


@dataclass(frozen=True)
class Scale:
    """How large everything is."""

    at_full_size: bool
    """Whether the model has the shapes of Qwen2-VL-2B."""
    mix: tuple[Kind, ...]
    """Kinds of pairs."""
    processing: ProcessingSettings
    """Pixel budget and longest side."""
    model: ModelSettings
    """The head."""
    num_pairs: int
    """Pairs of the training set."""
    pairs_per_step: int
    """Pairs of a measured step."""
    warm_pairs: int
    """Pairs of the step before it, which is not measured: so many that a chunk has more than 256 items, for
    which FlashAttention-4 compiles other kernels."""
    budget: tuple[int, int]
    """Tokens and patches of a chunk at most; less where memory is short."""
    probe: tuple[int, int]
    """Tokens, or patches, of the two chunks from which memory is measured."""
    row_seconds: float
    """A setting is measured for so long, and for one step at least."""
    loader_workers: int
    """Processes that load, at most half the cores."""
    matmul: int
    """Side of the matrices whose product is the machine's rate."""
    padded_tokens: int
    """Length to which the original implementation padded every side."""
    padded_pairs: tuple[int, ...]
    """Pairs of a padded step to try, most first."""
    checked_pairs: int
    """Pairs whose vectors are compared with those of the CPU."""
    peer_pairs: int
    """Pairs of the peer's step."""
    peer_mini_batches: tuple[int, ...]
    """Sizes of mini-batch that the peer may try."""


FULL = Scale(
    at_full_size=True,
    mix=MIX,
    processing=ProcessingSettings(),
    model=ModelSettings(),
    num_pairs=2000,
    pairs_per_step=500,
    warm_pairs=384,
    budget=(32_768, 65_536),
    probe=(2048, 8192),
    row_seconds=6.0,
    loader_workers=8,
    matmul=8192,
    padded_tokens=8192,
    padded_pairs=(24, 12, 6, 3, 1),
    checked_pairs=6,
    peer_pairs=48,
    peer_mini_batches=(4, 8, 2),
)

SMOKE = Scale(
    at_full_size=False,
    mix=TINY_MIX,
    processing=ProcessingSettings(min_pixels=28 * 28, max_pixels=36 * 28 * 28, max_tokens=256),
    model=ModelSettings(embedding_dim=64),
    num_pairs=20,
    pairs_per_step=20,
    warm_pairs=10,
    budget=(512, 512),
    probe=(64, 128),
    row_seconds=0.1,
    loader_workers=1,
    matmul=256,
    padded_tokens=256,
    padded_pairs=(2, 1),
    checked_pairs=4,
    peer_pairs=10,
    peer_mini_batches=(8,),
)
