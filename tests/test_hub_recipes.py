"""The recipes in hub_configs: each loads, and those of the seed are the seed's published runs to the digit."""

import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, get_scheduler

from latentlm import ByteTokenizer
from latentlm.training import load_recipe

HUB_CONFIGS = Path(__file__).resolve().parent.parent / "hub_configs"
RECIPES = {path.relative_to(HUB_CONFIGS).as_posix(): path for path in HUB_CONFIGS.glob("*/recipe*.yaml")}
# The table of published runs: parameters without the position table, position subtraction, embedding loss, its weight.
PUBLISHED = {
    "ar-encoder-decoder-seed/recipe.yaml": (15_763_500, "plain", "mse", 8),
    "ar-encoder-decoder-seed/recipe-plain.yaml": (15_762_900, "none", "none", None),
    "ar-encoder-decoder-seed/recipe-position-subtraction.yaml": (15_762_900, "plain", "none", None),
    "ar-encoder-decoder-seed/recipe-mse.yaml": (15_763_500, "none", "mse", 1),
    "ar-encoder-decoder-seed/recipe-cosine.yaml": (15_763_500, "none", "cosine", 1),
    "decoder-only-seed/recipe.yaml": (16_036_800, "none", None, None),
    "decoder-only-seed/recipe-smaller.yaml": (15_441_192, "none", None, None),
    "decoder-only-seed/recipe-dropout.yaml": (16_036_800, "none", None, None),
}


def model_on_meta(recipe, vocab_size: int) -> torch.nn.Module:
    config_class = type(recipe.build_config(ByteTokenizer()))
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config_class(**recipe.model | {"vocab_size": vocab_size}))


def count(model: torch.nn.Module) -> int:
    return sum(p.numel() for name, p in model.named_parameters() if "embed_positions" not in name)


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_recipe_loads(name):
    recipe = load_recipe(RECIPES[name])
    folder, file = name.split("/")
    assert recipe.model_type == folder.rsplit("-", 1)[0].replace("-", "_")
    assert recipe.data.context_length == recipe.max_position_embeddings
    suffix = file.removeprefix("recipe").removesuffix(".yaml")
    assert recipe.training.output_dir == f"runs/{folder}{suffix}"  # no two recipes share a run folder


def test_every_folder_has_a_recipe():
    assert {path.name for path in HUB_CONFIGS.iterdir() if path.is_dir()} == {name.split("/")[0] for name in RECIPES}
    assert {name for name in RECIPES if "-seed/" in name} == set(PUBLISHED)


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_published_models(name):
    parameters, subtraction, embedding_loss, weight = PUBLISHED[name]
    model = model_on_meta(load_recipe(RECIPES[name]), 50257)
    config = model.config
    assert count(model) == parameters
    assert config.position_subtraction == subtraction
    assert getattr(config, "embedding_loss", None) == embedding_loss
    if weight is not None:
        assert config.embedding_loss_weight == weight
    dropout = 0.2 if "dropout" in name else 0.0
    assert (config.hidden_dropout, config.attention_dropout) == (dropout, dropout)


def test_sizes_of_the_other_models():
    assert count(model_on_meta(load_recipe(RECIPES["ar-encoder-decoder-base/recipe.yaml"]), 50257)) == 138_309_120
    for name in RECIPES:
        if "-tiny/" in name:
            assert model_on_meta(load_recipe(RECIPES[name]), 259).num_parameters() < 1_000_000


def test_runs_of_one_family_differ_in_the_model_alone():
    recipes = {name: load_recipe(RECIPES[name]).to_dict() for name in PUBLISHED}
    first = recipes["ar-encoder-decoder-seed/recipe.yaml"]
    for recipe in recipes.values():
        assert recipe["data"] == first["data"]
        assert recipe["training"] == first["training"]


def test_published_training():
    recipe = load_recipe(RECIPES["ar-encoder-decoder-seed/recipe.yaml"])
    training, data = recipe.training, recipe.data
    assert (training.per_device_train_batch_size, training.gradient_accumulation_steps, training.max_steps) == (
        50,
        16,
        9000,
    )
    assert (training.adam_beta1, training.adam_beta2, training.weight_decay) == (0.9, 0.95, 0.1)
    assert training.eval_steps == 500
    assert data.max_validation_rows == 200 * training.per_device_eval_batch_size
    assert data.context_length == 200


def test_published_schedule_is_the_beginning_of_a_cosine_over_700000_steps():
    training = load_recipe(RECIPES["ar-encoder-decoder-seed/recipe.yaml"]).training
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=training.learning_rate)
    scheduler = get_scheduler(
        training.lr_scheduler_type,
        optimizer,
        num_warmup_steps=training.get_warmup_steps(training.max_steps),
        num_training_steps=training.max_steps,
        scheduler_specific_kwargs=training.lr_scheduler_kwargs,
    )
    [factor] = scheduler.lr_lambdas
    for step in (0, 1, 150, 300, 301, 4500, 9000):
        if step < 300:
            expected = 9e-4 * step / 300
        else:
            cosine = 0.5 * (1 + math.cos(math.pi * (step - 300) / (700_000 - 300)))
            expected = 9e-5 + cosine * (9e-4 - 9e-5)
        assert factor(step) * training.learning_rate == pytest.approx(expected, rel=1e-9), step
    assert factor(9000) * training.learning_rate == pytest.approx(8.997e-4, rel=1e-4)
