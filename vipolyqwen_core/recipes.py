"""Recipes: each is a function that returns all settings of a run.

A recipe of one's own is a function in any importable module, `--recipe package.module:function`, or a JSON
file like the part `recipe` of a run's `run.json`, `--recipe recipe.json`.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from vipolyqwen_core.config import (
    BatchSettings,
    Distribution,
    EvaluationSettings,
    ExportSettings,
    ModelSettings,
    Negatives,
    ObjectiveSettings,
    OptimizerSettings,
    Precision,
    ProcessingSettings,
    Recipe,
    SplitSettings,
    TrainingSettings,
    from_json,
)
from vipolyqwen_core.named_function import call_function


def demo() -> Recipe:
    """A tiny model of the real architecture on the built-in corpus: minutes on 2 cores."""
    return Recipe(
        name="demo",
        backbone="tiny",
        processing=ProcessingSettings(min_pixels=28 * 28, max_pixels=64 * 28 * 28, max_tokens=512),
        split=SplitSettings(eval_share=0.25),
        batches=BatchSettings(
            pairs_per_step=128, chunk_tokens=16_384, chunk_patches=16_384, negatives=Negatives.CHUNK
        ),
        optimizer=OptimizerSettings(learning_rate=1e-3, weight_decay=0.01),
        training=TrainingSettings(
            epochs=6,
            precision=Precision.FLOAT32,
            distribution=Distribution.NONE,
            processes=1,
            loader_workers=0,
            activation_checkpointing=False,
            save_steps=100,
        ),
    )


def qwen2vl_2b_h100x4() -> Recipe:
    """The paper: Qwen2-VL-2B on 4 H100s of 94 GB, 22M uses of 11M pairs in steps of 24 x 4 x 8 = 768."""
    return Recipe(
        name="qwen2vl_2b_h100x4",
        backbone="Qwen/Qwen2-VL-2B-Instruct",
        model=ModelSettings(),
        processing=ProcessingSettings(max_tokens=8192),
        split=SplitSettings(eval_share=0.0005, max_eval_pairs=5000),
        objective=ObjectiveSettings(temperature=0.07, margin=0.2),
        batches=BatchSettings(pairs_per_step=768, chunk_pairs=24, chunk_patches=32_768, prefix_dropout=0.0),
        optimizer=OptimizerSettings(
            learning_rate=1e-4, warmup_share=0.05, weight_decay=0.001, max_grad_norm=1.0
        ),
        training=TrainingSettings(
            epochs=2,
            precision=Precision.BFLOAT16,
            distribution=Distribution.FSDP2,
            processes=4,
            loader_workers=8,
            activation_checkpointing=False,
            compile_layers=True,
        ),
        evaluation=EvaluationSettings(batch_tokens=65_536),
        export=ExportSettings(compile_layers=True),
    )


def qwen2vl_2b_h100x4_step() -> Recipe:
    """The same with all 768 pairs of a step as candidates: one more forward, and chunks filled by budgets."""
    recipe = qwen2vl_2b_h100x4()
    batches = replace(recipe.batches, negatives=Negatives.STEP, chunk_pairs=None)
    return replace(recipe, name="qwen2vl_2b_h100x4_step", batches=batches)


RECIPES: dict[str, Callable[[], Recipe]] = {
    recipe.__name__: recipe for recipe in (demo, qwen2vl_2b_h100x4, qwen2vl_2b_h100x4_step)
}


def load_recipe(name: str) -> Recipe:
    """The recipe of that name, of a JSON file, or of `package.module:function`.

    Raises:
        ValueError: no such recipe, or what was found is none or fails
    """
    if name in RECIPES:
        return RECIPES[name]()
    if name.endswith(".json"):
        path = Path(name)
        if not path.is_file():
            raise ValueError(f"recipe file {name} does not exist")
        return from_json(Recipe, path.read_bytes(), origin=name)
    if ":" not in name:
        raise ValueError(
            f"unknown recipe {name!r}: give {', '.join(RECIPES)}, a .json file or package.module:function"
        )
    recipe = call_function(name, f"recipe {name!r}")
    if not isinstance(recipe, Recipe):
        raise ValueError(f"recipe {name!r} returned {type(recipe).__name__}, not a Recipe")
    return recipe
