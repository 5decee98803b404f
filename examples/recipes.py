"""Recipes of one's own: `vipolyqwen run --recipe examples.recipes:public_corpora_on_cpu`."""

from dataclasses import replace

from vipolyqwen_core.config import ProcessingSettings, Recipe, SplitSettings
from vipolyqwen_core.recipes import demo


def public_corpora_on_cpu() -> Recipe:
    """The demo's tiny model over `real_corpora.yaml` in minutes on 2 cores: to try the factory, not to use.

    One epoch; pictures of up to 256 visual tokens, since receipts and formulas are larger than the demo's,
    and room for a question with five of them.
    """
    recipe = demo()
    return replace(
        recipe,
        name="public_corpora_on_cpu",
        processing=ProcessingSettings(min_pixels=28 * 28, max_pixels=256 * 28 * 28, max_tokens=2048),
        split=SplitSettings(eval_share=0.1),
        training=replace(recipe.training, epochs=1),
    )
