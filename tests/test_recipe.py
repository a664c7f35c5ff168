"""Recipes: what is accepted, how command-line values are typed, and what the errors say."""

import os
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

import latentlm
from latentlm import ByteTokenizer
from latentlm.cli.arguments import parse_command_line
from latentlm.cli.train import main
from latentlm.data.tokenizers import train_bpe
from latentlm.runs import RecipeError, load_recipe

RECIPE = """
model:
  model_type: decoder_only
  hidden_size: 16
  num_attention_heads: 2
  num_hidden_layers: 1
  max_position_embeddings: 64
data:
  context_length: 32
training:
  learning_rate: 1e-3
  lr_scheduler_type: cosine_with_min_lr
  lr_scheduler_kwargs: {min_lr_rate: 0.1}
  save_strategy: no
  seed: 7
"""


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(RECIPE, encoding="utf-8")
    return path


def test_sections_become_typed_objects(recipe_file):
    recipe = load_recipe(recipe_file)
    assert recipe.model_type == "decoder_only" and recipe.model["hidden_size"] == 16
    assert recipe.data.context_length == 32
    assert recipe.training.learning_rate == 1e-3  # YAML 1.1 reads 1e-3 as text
    assert recipe.training.save_strategy.value == "no"  # and `no` as false
    assert recipe.training.seed == 7
    assert recipe.training.output_dir == str(Path("runs") / "small")
    assert recipe.training.use_cpu


def test_config_folder_is_found_beside_the_recipe(tmp_path):
    config = latentlm.AREncoderDecoderConfig(hidden_size=16, num_attention_heads=2, vocab_size=1000, bos_token_id=5)
    config.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "recipe.yaml").write_text("model: {config: ., num_encoder_layers: 3}\n", encoding="utf-8")
    recipe = load_recipe(tmp_path / "model" / "recipe.yaml")
    assert recipe.model_type == "ar_encoder_decoder"
    assert recipe.training.output_dir == str(Path("runs") / "model")
    built = recipe.build_config(latentlm.ByteTokenizer())
    assert (built.num_encoder_layers, built.num_decoder_layers) == (3, 13)
    # Vocabulary and special tokens are the tokenizer's, not the folder's.
    assert (built.vocab_size, built.bos_token_id, built.eos_token_id, built.pad_token_id) == (259, 257, 258, 256)


@pytest.mark.parametrize(
    ("overrides", "section", "field", "expected"),
    [
        ({"learning_rate": "3e-4"}, "training", "learning_rate", 3e-4),
        ({"bf16": "true"}, "training", "bf16", True),
        ({"max_steps": "7"}, "training", "max_steps", 7),
        ({"training.seed": "1"}, "training", "seed", 1),
        ({"report_to": ["tensorboard", "trackio"]}, "training", "report_to", ["tensorboard", "trackio"]),
        ({"eval_strategy": "no"}, "training", "eval_strategy", "no"),
        ({"lr_scheduler_kwargs": "{min_lr: 1e-5}"}, "training", "lr_scheduler_kwargs", {"min_lr": 1e-5}),
        ({"save_total_limit": "null"}, "training", "save_total_limit", None),
        ({"dataset": "123"}, "data", "dataset", "123"),
        ({"document_start": "# "}, "data", "document_start", "# "),  # a comment in YAML
        ({"document_start": "^ = "}, "data", "document_start", "^ = "),  # which drops spaces at the end
        ({"document_start": "null"}, "data", "document_start", None),
        ({"document_start": "'# '"}, "data", "document_start", "# "),
        ({"run_name": "try #3"}, "training", "run_name", "try #3"),
        ({"validation_fraction": "0.2"}, "data", "validation_fraction", 0.2),
    ],
)
def test_overrides_take_the_field_s_type(recipe_file, overrides, section, field, expected):
    value = getattr(getattr(load_recipe(recipe_file, overrides), section), field)
    value = getattr(value, "value", value)  # of an enumeration
    assert value == expected and type(value) is type(expected)


def test_model_overrides(recipe_file):
    recipe = load_recipe(recipe_file, {"hidden_size": "32", "model.use_cache": "false", "rope_parameters": "null"})
    assert recipe.model["hidden_size"] == 32 and recipe.model["use_cache"] is False
    assert recipe.build_config(latentlm.ByteTokenizer()).intermediate_size == 4 * 32  # follows the override
    recipe_file.write_text("model: {model_type: decoder_only}\n", encoding="utf-8")
    other = load_recipe(recipe_file, {"model_type": "ar_encoder_decoder", "num_decoder_layers": "2"})
    assert other.model_type == "ar_encoder_decoder" and other.model["num_decoder_layers"] == 2


@pytest.mark.parametrize(
    ("text", "nearest"),
    [
        ("modle: {}", "'model'"),
        ("training: {learning_rat: 1.0}", "'learning_rate'"),
        ("data: {contextlength: 3}", "'context_length'"),
        ("model: {model_type: decoder_only, hiden_size: 3}", "'hidden_size'"),
        ("model: {model_type: decoder_onyl}", "'decoder_only'"),
    ],
)
def test_unknown_names_are_errors_that_name_the_nearest(tmp_path, text, nearest):
    path = tmp_path / "bad.yaml"
    path.write_text(text if text.startswith("mod") else f"model: {{model_type: decoder_only}}\n{text}")
    with pytest.raises(RecipeError, match="unknown; did you mean " + nearest):
        load_recipe(path)


@pytest.mark.parametrize(
    ("name", "nearest"), [("learning-rte", "learning_rate"), ("training.sede", "seed"), ("modl.x", "model")]
)
def test_unknown_overrides_are_errors_that_name_the_nearest(recipe_file, name, nearest):
    with pytest.raises(RecipeError, match=f"did you mean '{nearest}'"):
        load_recipe(recipe_file, {name: "1"})


LEVELS = """
model:
  model_type: abstractinator
  levels: [{delta: 0.5, quantizer: fsq, fsq_levels: [8, 5]}, {delta: 0.25}]
training:
  lr_scheduler_type: cosine_with_min_lr
  lr_scheduler_kwargs: {min_lr_rate: 0.1}
"""


@pytest.mark.parametrize(
    ("override", "section", "expected"),
    [
        ("--levels.1.delta 4e-1", "model", [{"delta": 0.5}, {"delta": 0.4}]),
        ("--model.levels.0.delta=2 --levels.1.num_codes 8", "model", [{"delta": 2}, {"delta": 0.25, "num_codes": 8}]),
        ("--levels.0.fsq_levels 4 4 4", "model", [{"fsq_levels": [4, 4, 4]}, {}]),
        ("--levels.0.fsq_levels.1 7", "model", [{"fsq_levels": [8, 7]}, {}]),
        ("--lr_scheduler_kwargs.min_lr_rate 0.2", "training", {"min_lr_rate": 0.2}),
    ],
)
def test_nested_overrides_change_one_value_of_a_list_or_mapping(tmp_path, override, section, expected):
    path = tmp_path / "levels.yaml"
    path.write_text(LEVELS, encoding="utf-8")
    before, after = (load_recipe(path, fields) for fields in ({}, parse_command_line(override.split())[1]))
    if section == "training":
        assert after.training.lr_scheduler_kwargs == expected
    else:
        pairs = zip(before.model["levels"], expected, strict=True)
        assert after.model["levels"] == [{**level, **change} for level, change in pairs]
        assert before.to_dict()["training"] == after.to_dict()["training"]


def test_nested_overrides_change_a_pretrained_model(tmp_path):
    latentlm.AbstractinatorConfig(levels=[{"delta": 0.5}, {"num_codes": 9}]).save_pretrained(tmp_path / "model")
    path = tmp_path / "further.yaml"
    path.write_text(f"model: {{from_pretrained: {tmp_path / 'model'}}}\n", encoding="utf-8")
    recipe = load_recipe(path, {"levels.0.target_segment_length": "5"})
    first, second = recipe.build_config(ByteTokenizer()).levels
    assert (first["delta"], first["target_segment_length"], second["num_codes"]) == (0.5, 5, 9)
    assert recipe.to_dict()["model"].keys() == {"from_pretrained", "levels"}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("levels.2.delta", "'levels.2.delta': '2' is no place in a list of 2; the first is 0"),
        ("level.0.delta", "the recipe has no 'level'; did you mean 'levels'"),
        ("model.level.0.delta", "the recipe has no 'level'; did you mean 'levels'"),
        ("levels.0.fsq_levels.x", "'x' is no place in a list of 2"),
        ("levels.0.delta.x", "0.5 has no 'x'"),
        ("levels.0.dleta", "levels.*dleta"),
        ("levels.0.num_codes", "num_codes.*must be"),
    ],
)
def test_nested_overrides_of_no_place_are_errors(tmp_path, name, message):
    path = tmp_path / "levels.yaml"
    path.write_text(LEVELS, encoding="utf-8")
    with pytest.raises(RecipeError, match=message):
        load_recipe(path, {name: "-1"})


def test_ambiguous_override_lists_both(recipe_file):
    with pytest.raises(RecipeError, match=r"--model\.use_cache or --training\.use_cache"):
        load_recipe(recipe_file, {"use_cache": "true"})


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"learning_rate": "fast"}, "training.learning_rate is 'fast' .str., but it must be float"),
        ({"max_steps": "1.5"}, "training.max_steps is 1.5 .float., but it must be int"),
        ({"bf16": "maybe"}, "training.bf16 is 'maybe'"),
        ({"hidden_size": "true"}, "model.hidden_size is True"),
        ({"hidden_size": "15"}, "num_attention_heads"),
        (
            {"eval_strategy": "sometimes"},
            "training.eval_strategy is 'sometimes', but it must be one of no, steps, epoch",
        ),
        ({"position_subtraction": "much"}, "model.position_subtraction is 'much'"),
        ({"label_smoothing_factor": "0.1"}, "label_smoothing_factor is 0.1"),
        ({"average_tokens_across_devices": "false"}, "average_tokens_across_devices"),
        ({"validation_fraction": "2"}, "validation_fraction"),
        ({"per_device_train_batch_size": "0"}, "per_device_train_batch_size is 0, but it must be at least 1"),
        ({"config": "nowhere"}, "no config.json in"),
        ({"dataset": ["a.txt", "b.txt"]}, "data.dataset has 2 values, but takes one; quote a pattern of files"),
        ({"learning_rate": ["1", "2"]}, "training.learning_rate is .'1', '2'. .list., but it must be float"),
        ({"streaming": "true", "max_validation_rows": "2"}, "training.max_steps is -1, but a stream"),
        (
            {"streaming": "true", "max_validation_rows": "2", "max_steps": "5", "dataloader_num_workers": "2"},
            "training.dataloader_num_workers is 2, but each worker would repeat the stream",
        ),
    ],
)
def test_wrong_values_are_errors_that_name_the_field(recipe_file, overrides, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe(recipe_file, overrides)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"model: [", "not valid YAML"),
        (b"- a\n- b\n", "must hold mappings named model, data, training"),
        (b"model: 3\n", "must hold mappings"),
        (b"model: {model_type: \xff}", "cannot be read"),
        (b"data: {}\n", "give exactly one of config, model_type, from_pretrained, got none"),
        (b"model: {model_type: decoder_only, config: .}\n", "got config, model_type"),
        (b"model: {model_type: decoder_only, 1: 2}\n", "1 in section 'model' is no name of a field"),
        (b"1: {hidden_size: 2}\n", "1 in section 1 is no name"),
    ],
)
def test_unreadable_recipes(tmp_path, content, message):
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    with pytest.raises(RecipeError, match=message):
        load_recipe(path)
    with pytest.raises(RecipeError, match="no recipe"):
        load_recipe(tmp_path / "missing.yaml")


def test_data_and_model_of_encodzall_split_words_alike(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("model: {model_type: encodzall, max_word_bytes: 12}\n", encoding="utf-8")
    with pytest.raises(RecipeError, match=r"data\.max_word_bytes is 16, but it must be that of the model: 12"):
        load_recipe(path)
    assert load_recipe(path, {"data.max_word_bytes": "12"}).data.max_word_bytes == 12


def test_missing_noise_tables_are_a_message_before_any_work(tmp_path, monkeypatch):
    """The recipe of a published model can be read all the same."""
    path = tmp_path / "recipe.yaml"
    path.write_text("model: {model_type: encodzall}\n", encoding="utf-8")
    assert load_recipe(path, {"noise_tables": "nope.json"}).training.noise_tables == "nope.json"
    monkeypatch.setattr("latentlm.training.run.load_data", lambda recipe: pytest.fail("data were read"))
    with pytest.raises(SystemExit, match=r"latentlm train: training: nope\.json holds no noise tables"):
        main([str(path), "--noise_tables", "nope.json", "--output_dir", str(tmp_path / "run")])


@pytest.mark.parametrize("name", ["frob", "neptune"])
def test_missing_trackers_are_a_message_before_any_work(recipe_file, tmp_path, monkeypatch, name):
    """The recipe of a published model can be read all the same."""
    assert load_recipe(recipe_file, {"report_to": name}).training.report_to == [name]
    monkeypatch.setattr("latentlm.training.run.load_data", lambda recipe: pytest.fail("data were read"))
    with pytest.raises(SystemExit, match=f"train: training: report_to is '{name}', but no tracker .* is installed"):
        main([str(recipe_file), "--report_to", name, "--output_dir", str(tmp_path / "run")])


@pytest.mark.parametrize("backend", ["frob", "flash_attention_2"])
def test_a_missing_attention_backend_is_a_message(recipe_file, backend):
    recipe = load_recipe(recipe_file, {"attn_implementation": backend})
    with pytest.raises(RecipeError, match=f"model.attn_implementation is '{backend}': "):
        recipe.build_model(ByteTokenizer(), AutoModelForCausalLM)


@pytest.mark.parametrize("name", ["file", "file/run"])
def test_a_file_in_place_of_a_run_folder_is_a_message(recipe_file, tmp_path, name):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match=r"training\.output_dir \S+: \S+/file is a file; name a folder"):
        main([str(recipe_file), "--output_dir", str(tmp_path / name)])


def test_a_run_folder_that_cannot_be_made_is_a_message(recipe_file, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    with pytest.raises(SystemExit, match=rf"output_dir \S+/run: there is no permission to write to {tmp_path}"):
        main([str(recipe_file), "--output_dir", str(tmp_path / "run")])


def test_vocabulary_smaller_than_the_tokenizer_s(recipe_file):
    recipe = load_recipe(recipe_file, {"vocab_size": "100"})
    with pytest.raises(RecipeError, match="vocab_size is 100, but the tokenizer has 259"):
        recipe.build_config(latentlm.ByteTokenizer())
    assert load_recipe(recipe_file, {"vocab_size": "320"}).build_config(latentlm.ByteTokenizer()).vocab_size == 320


def test_stored_recipe_gives_the_same_recipe(recipe_file, tmp_path):
    recipe = load_recipe(recipe_file, {"adam_beta2": "0.95", "document_start": "^ = no = $"})
    stored = tmp_path / "stored.yaml"
    stored.write_text(recipe.to_yaml(), encoding="utf-8")
    assert load_recipe(stored).to_dict() == recipe.to_dict()


def test_from_pretrained_starts_from_its_weights(recipe_file, tmp_path):
    tokenizer = latentlm.ByteTokenizer()
    model = load_recipe(recipe_file).build_model(tokenizer, latentlm.training.LatentTrainer.auto_class)
    model.save_pretrained(tmp_path / "pretrained")
    recipe = load_recipe(recipe_file, {"from_pretrained": str(tmp_path / "pretrained")} | {"hidden_dropout": "0.1"})
    tuned = recipe.build_model(tokenizer, latentlm.training.LatentTrainer.auto_class)
    assert tuned.config.hidden_dropout == 0.1
    assert all((a == b).all() for a, b in zip(model.parameters(), tuned.parameters(), strict=True))


def test_another_tokenizer_than_that_of_the_pretrained_model_is_refused(recipe_file, tmp_path):
    first, second = (
        train_bpe([text], 300) for text in ("some words of a text " * 9, "other letters, other pairs " * 9)
    )
    model = load_recipe(recipe_file).build_model(first, latentlm.training.LatentTrainer.auto_class)
    for part in (model, first):
        part.save_pretrained(tmp_path / "pretrained")
    recipe = load_recipe(recipe_file, {"from_pretrained": str(tmp_path / "pretrained"), "tokenizer": "bpe"})
    assert recipe.build_config(first).vocab_size == len(first)
    with pytest.raises(
        RecipeError, match=r"data\.tokenizer 'bpe' gives .* tokens another id .* model's own: .*pretrained"
    ):
        recipe.build_config(second)
    with pytest.raises(RecipeError, match="another id"):
        recipe.build_config(ByteTokenizer())


def test_fields_that_do_not_go_with_the_pretrained_ones_are_an_error_before_the_training(recipe_file, tmp_path):
    """transformers would set them unchecked, and saving would fail."""
    config = latentlm.DecoderOnlyConfig(learned_dropout="bernoulli", learned_dropout_shift=1.0)
    config.save_pretrained(tmp_path / "pretrained")
    with pytest.raises(RecipeError, match=r"model: `learned_dropout_shift` is 1\.0, but `learned_dropout` is 'none'"):
        load_recipe(recipe_file, {"from_pretrained": str(tmp_path / "pretrained"), "learned_dropout": "none"})


def test_command_line():
    path, overrides = parse_command_line(["r.yaml", "--bf16", "--seed", "3", "--report_to", "a", "b", "--max-steps=-1"])
    assert path == "r.yaml"
    assert overrides == {"bf16": "true", "seed": "3", "report_to": ["a", "b"], "max_steps": "-1"}
    with pytest.raises(RecipeError, match="unexpected argument 'y'"):
        parse_command_line(["x", "y"])
    with pytest.raises(RecipeError, match="given twice"):
        parse_command_line(["--seed", "1", "--seed", "2"])
