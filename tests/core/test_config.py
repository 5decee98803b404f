"""Settings survive JSON, refuse what is wrong, and the recipe of the paper holds its numbers."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from vipolyqwen_core.config import Negatives, Precision, Recipe, from_json, to_json
from vipolyqwen_core.recipes import RECIPES, load_recipe


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_survives_json(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert from_json(Recipe, to_json(recipe)) == recipe


def test_the_seed_recipe_holds_the_numbers_of_the_seed() -> None:
    recipe = load_recipe("qwen2vl_2b_h100x4")
    assert recipe.backbone == "Qwen/Qwen2-VL-2B-Instruct"
    assert recipe.model.embedding_dim == 1024
    assert (recipe.objective.temperature, recipe.objective.margin) == (0.07, 0.2)
    assert (recipe.batches.chunk_pairs, recipe.batches.pairs_per_step) == (24, 24 * 4 * 8)
    assert recipe.batches.prefix_dropout == 0.0
    assert recipe.batches.negatives is Negatives.CHUNK
    assert recipe.processing.max_tokens == 8192
    optimizer = recipe.optimizer
    assert (optimizer.learning_rate, optimizer.warmup_share) == (1e-4, 0.05)
    assert (optimizer.weight_decay, optimizer.max_grad_norm) == (0.001, 1.0)
    assert (recipe.training.epochs, recipe.training.processes) == (2, 4)
    assert recipe.training.precision is Precision.BFLOAT16


def test_step_negatives_on_4_gpus_differ_from_the_seed_in_the_candidates_alone() -> None:
    seed, step = load_recipe("qwen2vl_2b_h100x4"), load_recipe("qwen2vl_2b_h100x4_step")
    changed = replace(seed.batches, negatives=Negatives.STEP, chunk_pairs=None)
    assert step == replace(seed, name=step.name, batches=changed)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"name": "x"}', "backbone: "),
        ('{"name": "x", "backbone": "b", "optimiser": {}}', "optimiser: Unexpected keyword"),
        ('{"name": "x", "backbone": "b", "training": {"epochs": 0}}', "training.epochs: .*greater than 0"),
        ('{"name": "x", "backbone": "b", "model": {"pooling": "max"}}', "model.pooling: .*'attention'"),
        (
            '{"name": "x", "backbone": "b", "processing": {"min_pixels": 9, "max_pixels": 4}}',
            "min_pixels 9 is above max_pixels 4",
        ),
        (
            '{"name": "x", "backbone": "b", "objective": {"task_weights": {"orc": 1}}}',
            "objective.task_weights.orc",
        ),
        (
            '{"name": "x", "backbone": "b", "model": {"embedding_dim": 64, "matryoshka_dims": [64, 16]}}',
            "model: .*matryoshka_dims has 64, which is not below embedding_dim 64",
        ),
        # JSON has no infinity: a run.json that holds one could not be read
        (
            '{"name": "x", "backbone": "b", "optimizer": {"max_grad_norm": Infinity}}',
            "optimizer.max_grad_norm: .*finite",
        ),
        ('{"name": "x", "backbone": "b", "objective": {"margin": Infinity}}', "objective.margin: .*finite"),
        ('{"name": "x", "backbone": "b", "optimizer": {"beta2": 1.0}}', "optimizer.beta2: .*less than 1"),
        # NumPy takes no negative one, and torch none of 64 bits
        ('{"name": "x", "backbone": "b", "evaluation": {"seed": -1}}', "evaluation.seed: .*equal to 0"),
        (
            '{"name": "x", "backbone": "b", "training": {"seed": 99999999999999999999}}',
            "training.seed: .*less than",
        ),
        (
            '{"name": "x", "backbone": "b", "training": {"distribution": "none", "processes": 2}}',
            "training: .*2 processes share the model",
        ),
        *(
            (
                '{"name": "x", "backbone": "b", "objective": {"pooling_entropy_weight": 0.1}, '
                f'"model": {{"pooling": "{pooling}"}}}}',
                f"pooling_entropy_weight is 0.1, but the weights of model.pooling '{pooling}' are not "
                "learned: expected 'attention' or 'multi_head_attention'",
            )
            for pooling in ("mean", "last")
        ),
        ("not json", "Invalid JSON"),
        ('{"name": "../x", "backbone": "b"}', "name: String should match pattern"),
        ('{"name": ".x", "backbone": "b"}', "name: String should match pattern"),
        ('{"name": "a/b", "backbone": "b"}', "name: String should match pattern"),
        (
            '{"name": "x", "backbone": "b", "training": {"epochs": 9}, "training": {"seed": 1}}',
            "training stands twice",
        ),
        ('{"name": "x", "backbone": "b", "optimizer": {"beta2": 0.9, "beta2": 0.99}}', "beta2 stands twice"),
    ],
)
def test_wrong_settings_are_refused_with_their_place(text: str, expected: str) -> None:
    with pytest.raises(ValueError, match=rf"^run\.json: .*{expected}"):
        from_json(Recipe, text, origin="run.json")


def test_a_recipe_of_ones_own_is_a_file_or_a_function(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "mine.json"
    path.write_text(to_json(RECIPES["demo"]()), encoding="utf-8")
    assert load_recipe(str(path)) == RECIPES["demo"]()
    assert load_recipe("vipolyqwen_core.recipes:demo") == RECIPES["demo"]()


@pytest.mark.parametrize("name", ["dmeo", "nowhere.json", "no.such:recipe", "vipolyqwen_core.recipes:load"])
def test_an_unknown_recipe_is_named(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        load_recipe(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module:mine", "No module named 'no_such_module'; is its folder on PYTHONPATH?"),
        ("broken_recipes:mine", "cannot be imported: NameError: name 'undefined_name' is not defined"),
        ("recipes_of_test:absent", "module recipes_of_test has no function absent"),
        ("recipes_of_test:failing", "failed: AttributeError: 'NoneType' object has no attribute 'oops'"),
        ("recipes_of_test:lacking", "failed: ModuleNotFoundError: No module named 'lacking'"),
        ("recipes_of_test:nothing", "returned NoneType, not a Recipe"),
    ],
)
def test_a_recipe_of_ones_own_that_is_broken_is_told_how(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    (tmp_path / "broken_recipes.py").write_text("x = undefined_name")
    (tmp_path / "recipes_of_test.py").write_text(
        "def failing():\n    return None.oops\n\n\ndef lacking():\n    import lacking\n\n\n"
        "def nothing():\n    return None\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ValueError, match=f"^recipe '{name}'.*{re.escape(message)}$"):
        load_recipe(name)
