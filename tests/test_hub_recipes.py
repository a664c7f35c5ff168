"""The recipes in hub_configs: each loads, and those of published runs are these runs to the digit."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, get_scheduler

from latentlm import ARCHITECTURES, ByteTokenizer, EncodzallTokenizer, FSQAutoencoderConfig, FSQTokenizerFast
from latentlm.architectures import architecture, resolve
from latentlm.data import ChunkConfig
from latentlm.models.block_ngram_embedding import NgramTable
from latentlm.runs import load_recipe

HUB_CONFIGS = Path(__file__).resolve().parent.parent / "hub_configs"
RECIPES = {path.relative_to(HUB_CONFIGS).as_posix(): path for path in HUB_CONFIGS.glob("*/recipe*.yaml")}
CONFIG_CLASSES = {name: resolve(row.config) for name, row in ARCHITECTURES.items()}
# Published runs, and the models beside them: parameters without the position table, position subtraction, embedding
# loss, its weight.
PUBLISHED = {
    "ar-encoder-decoder-original/recipe.yaml": (15_763_500, "plain", "mse", 8),
    "ar-encoder-decoder-original/recipe-plain.yaml": (15_762_900, "none", "none", None),
    "ar-encoder-decoder-original/recipe-position-subtraction.yaml": (15_762_900, "plain", "none", None),
    "ar-encoder-decoder-original/recipe-mse.yaml": (15_763_500, "none", "mse", 1),
    "ar-encoder-decoder-original/recipe-cosine.yaml": (15_763_500, "none", "cosine", 1),
    "decoder-only-original/recipe.yaml": (16_036_800, "none", None, None),
    "decoder-only-original/recipe-smaller.yaml": (15_441_192, "none", None, None),
    "decoder-only-original/recipe-dropout.yaml": (16_036_800, "none", None, None),
    "decoder-only-original/recipe-210.yaml": (15_850_380, "none", None, None),
    "parallel-encoder-decoder-original/recipe.yaml": (16_899_600, "none", "none", None),
    "parallel-encoder-decoder-original/recipe-mse.yaml": (15_698_400, "none", "mse", 0.25),
    "parallel-encoder-decoder-original/recipe-no-next-position.yaml": (15_698_400, "none", "mse", 0.25),
    "parallel-encoder-decoder-original/recipe-cosine.yaml": (15_698_400, "none", "cosine", 2),
    "parallel-encoder-decoder-original/recipe-plain.yaml": (15_697_600, "none", "none", None),
    "parallel-encoder-decoder-learned-dropout/recipe.yaml": (16_899_600, "none", "none", None),
    "decoder-only-learned-dropout/recipe.yaml": (15_335_424, "none", None, None),
    "decoder-only-learned-dropout/recipe-no-penalty.yaml": (15_335_424, "none", None, None),
    "decoder-only-learned-dropout/recipe-half-pi.yaml": (15_335_424, "none", None, None),
    "decoder-only-learned-dropout/recipe-pi.yaml": (15_335_424, "none", None, None),
    "decoder-only-learned-dropout/recipe-embedding.yaml": (13_780_224, "none", None, None),
}
# LearnedDropout as the follow-up's best run has it, and what the other recipes with LearnedDropout change.
FOLLOW_UP = {
    "learned_dropout": "bernoulli",
    "learned_dropout_input": "hidden_state",
    "learned_dropout_shift": 0,
    "mask_l1_loss": "squared",
    "mask_l1_loss_weight": 0.1,
    "mask_entropy_loss_weight": 0,
}
LEARNED_DROPOUT = {
    "parallel-encoder-decoder-original/recipe.yaml": {  # the original loss: CE + H(M) + |M|_1
        "mask_entropy_loss_weight": 1,
        "mask_l1_loss": "absolute",
        "mask_l1_loss_weight": 1,
    },
    "parallel-encoder-decoder-learned-dropout/recipe.yaml": {},
    "decoder-only-learned-dropout/recipe.yaml": {},
    "decoder-only-learned-dropout/recipe-no-penalty.yaml": {"mask_l1_loss_weight": 0},
    "decoder-only-learned-dropout/recipe-half-pi.yaml": {"learned_dropout_shift": pytest.approx(math.pi / 2)},
    "decoder-only-learned-dropout/recipe-pi.yaml": {"learned_dropout_shift": pytest.approx(math.pi)},
    "decoder-only-learned-dropout/recipe-embedding.yaml": {"learned_dropout_input": "embedding"},
}
# One recipe for each length of training; the others have its data and training.
SHORT, LONG = "ar-encoder-decoder-original/recipe.yaml", "decoder-only-learned-dropout/recipe.yaml"


# What folders are called that are not called after their model type.
FOLDERS = {"fsq_autoencoder": "fsq-tokenizer"}


def model_type_of(folder: str) -> str:
    """The longest known architecture that the name of the folder starts with."""
    names = {FOLDERS.get(name, name.replace("_", "-")): name for name in CONFIG_CLASSES}
    return names[max((name for name in names if folder.startswith(name + "-")), key=len)]


def build_config(recipe) -> PreTrainedConfig:
    """Of a recipe, with a tokenizer of the kind that it needs."""
    if isinstance(recipe.data, ChunkConfig):
        return recipe.build_config(None)
    if recipe.model_type == "fsq":
        return recipe.build_config(FSQTokenizerFast.from_pretrained(HUB_CONFIGS / "fsq-tokenizer-tiny"))
    return recipe.build_config(EncodzallTokenizer() if recipe.model_type == "encodzall" else ByteTokenizer())


def model_on_meta(recipe, vocab_size: int) -> torch.nn.Module:
    config_class = type(build_config(recipe))
    if config_class is FSQAutoencoderConfig:
        vocab_size = 257
    trainer_class = architecture(recipe.model_type).trainer_class
    with torch.device("meta"):
        return trainer_class.auto_class.from_config(config_class(**recipe.model | {"vocab_size": vocab_size}))


def count(model: torch.nn.Module) -> int:
    return sum(p.numel() for name, p in model.named_parameters() if "embed_positions" not in name)


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_recipe_loads(name):
    recipe = load_recipe(RECIPES[name])
    folder, file = name.split("/")
    assert recipe.model_type == model_type_of(folder)
    context, longest = getattr(recipe.data, "context_length", None), recipe.max_position_embeddings
    assert context == longest or (folder == "encodzall-wikitext2" and context < longest)  # repairs longer texts, too
    suffix = file.removeprefix("recipe").removesuffix(".yaml")
    assert recipe.training.output_dir == f"runs/{folder}{suffix}"  # no two recipes share a run folder


def test_every_folder_has_a_recipe():
    assert {path.name for path in HUB_CONFIGS.iterdir() if path.is_dir()} == {name.split("/")[0] for name in RECIPES}
    ours = ("-tiny/", "-base/", "fsq-", "encodzall-", "abstractinator-")  # made here: there is no run to compare with
    assert {name for name in RECIPES if not any(part in name for part in ours)} == set(PUBLISHED)


@pytest.mark.parametrize("folder", sorted({name.split("/")[0] for name in RECIPES}))
def test_configurations_name_every_field(folder):
    """In the order of the classes; what follows from other fields may be left out."""
    written = json.loads((HUB_CONFIGS / folder / "config.json").read_text())
    config_class = CONFIG_CLASSES[model_type_of(folder)]
    derived = {"num_cross_attention_heads", "rope_parameters"}
    derived |= {
        name for name in ("intermediate_size", "num_key_value_heads") if getattr(config_class, name, None) is None
    }
    fields = [field.name for field in dataclasses.fields(config_class)]
    inherited = {field.name for field in dataclasses.fields(PreTrainedConfig)}
    own = [name for name in fields if name not in inherited]
    ships = (HUB_CONFIGS / folder / "model.safetensors").exists()  # in bfloat16, to be loaded in float32
    assert list(written) == [
        *("architectures", "model_type", *(n for n in own if n not in derived or n in written), *["dtype"] * ships)
    ]


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
    dropout = 0.2 if name.endswith("/recipe-dropout.yaml") else 0.0
    assert (config.hidden_dropout, config.attention_dropout) == (dropout, dropout)
    next_position = name.startswith("parallel") and "no-next-position" not in name
    assert getattr(config, "add_next_position", False) == next_position


@pytest.mark.parametrize("name", sorted(name for name in RECIPES if not name.startswith("fsq-tokenizer-")))
def test_learned_dropout(name):
    """Nothing else differs from the defaults: no schedule, no groups, both stacks, and off where it is not named."""
    config = build_config(load_recipe(RECIPES[name]))
    fields = {
        field.name: field.default
        for field in dataclasses.fields(config)
        if field.name.startswith(("learned_dropout", "mask_"))
    }
    expected = fields | FOLLOW_UP | LEARNED_DROPOUT[name] if name in LEARNED_DROPOUT else fields
    assert {field: getattr(config, field) for field in fields} == expected


def test_sizes_of_the_other_models():
    assert count(model_on_meta(load_recipe(RECIPES["ar-encoder-decoder-base/recipe.yaml"]), 50257)) == 138_309_120
    with torch.device("meta"):
        config = AutoConfig.from_pretrained(HUB_CONFIGS / "parallel-encoder-decoder-original")
        assert count(AutoModelForCausalLM.from_config(config)) == 15_698_400
    encodzall = {"xs": 9_183_488, "s": 20_855_040, "l": 189_044_736}
    for size, parameters in encodzall.items():
        assert model_on_meta(load_recipe(RECIPES[f"encodzall-{size}/recipe.yaml"]), 264).num_parameters() == parameters
    for name in RECIPES:
        if "-tiny/" in name:
            recipe = load_recipe(RECIPES[name])
            model = model_on_meta(recipe, build_config(recipe).vocab_size)
            tables = sum(module.weight.numel() for module in model.modules() if isinstance(module, NgramTable))
            assert model.num_parameters() - tables < 1_000_000  # a table is looked up, at no cost


def test_runs_of_one_family_differ_in_the_model_alone():
    recipes = {name: load_recipe(RECIPES[name]).to_dict() for name in PUBLISHED}
    for name, recipe in recipes.items():
        first = recipes[LONG if name.startswith("decoder-only-learned-dropout/") else SHORT]
        assert recipe["data"] == first["data"], name
        assert recipe["training"] == first["training"], name


@pytest.mark.parametrize(("name", "steps"), [(SHORT, 9000), (LONG, 26_000)])
def test_published_training(name, steps):
    recipe = load_recipe(RECIPES[name])
    training, data = recipe.training, recipe.data
    assert (training.per_device_train_batch_size, training.gradient_accumulation_steps) == (50, 16)
    assert training.max_steps == steps
    assert (training.adam_beta1, training.adam_beta2, training.weight_decay) == (0.9, 0.95, 0.1)
    assert training.eval_steps == 500
    assert data.max_validation_rows == 200 * training.per_device_eval_batch_size
    assert data.context_length == 200


@pytest.mark.parametrize(("name", "last"), [(SHORT, 8.997e-4), (LONG, 8.973e-4)])
def test_published_schedule_is_the_beginning_of_a_cosine_over_700000_steps(name, last):
    training = load_recipe(RECIPES[name]).training
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=training.learning_rate)
    scheduler = get_scheduler(
        training.lr_scheduler_type,
        optimizer,
        num_warmup_steps=training.get_warmup_steps(training.max_steps),
        num_training_steps=training.max_steps,
        scheduler_specific_kwargs=training.lr_scheduler_kwargs,
    )
    [factor] = scheduler.lr_lambdas
    for step in (0, 1, 150, 300, 301, 4500, training.max_steps):
        if step < 300:
            expected = 9e-4 * step / 300
        else:
            cosine = 0.5 * (1 + math.cos(math.pi * (step - 300) / (700_000 - 300)))
            expected = 9e-5 + cosine * (9e-4 - 9e-5)
        assert factor(step) * training.learning_rate == pytest.approx(expected, rel=1e-9), step
    assert factor(training.max_steps) * training.learning_rate == pytest.approx(last, rel=1e-4)


def test_the_original_autoencoder_and_its_training():
    """The configuration at the end of the original design document; the decoder's 257th class is the end of a chunk."""
    recipe = load_recipe(RECIPES["fsq-tokenizer-original/recipe.yaml"])
    config, training = build_config(recipe), recipe.training
    assert (config.embedding_size, config.hidden_size, config.max_chunk_bytes) == (64, 256, 16)
    assert (config.conv_channels, config.conv_strides) == ([128, 256, 256], [1, 2, 2])
    assert (config.deconv_channels, config.deconv_strides) == ([256, 128, 64], [2, 2, 1])
    assert (config.kernel_size, config.temperature, config.levels) == (3, 1.0, [8, 8, 8, 8, 8, 5, 5, 5])
    assert (training.per_device_train_batch_size, training.max_steps, training.warmup_steps) == (256, 100_000, 1000)
    assert (training.learning_rate, training.weight_decay, training.eval_steps) == (1e-4, 0.01, 1000)
    assert recipe.data.tokenizer_vocab_size == 32768
