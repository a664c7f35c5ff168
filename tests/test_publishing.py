"""Publishing: a run pushed over HTTP, loaded by its name where latentlm is unknown; its card; what cannot be pushed."""

import json
import os
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from conftest import REPOSITORY
from huggingface_hub import ModelCard
from safetensors.torch import save_file
from training_setup import Rows, make_trainer, metrics_of
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
)

from latentlm import (
    ByteTokenizer,
    EncodzallConfig,
    EncodzallForMaskedDenoising,
    EncodzallTokenizer,
    FSQTokenizer,
    FSQTokenizerFast,
)
from latentlm.cli.publish import main as publish_main
from latentlm.data.tokenizers import train_bpe
from latentlm.hub import push
from latentlm.hub.card import MARKER, write_card
from latentlm.hub.files import CARD_FILE, PublishError, published_files, without_local_paths
from latentlm.hub.push import publish
from latentlm.runs import load_recipe
from latentlm.train import main as train_main
from latentlm.training import LatentTrainer

RECIPE = """
model:
  model_type: ar_encoder_decoder
  hidden_size: 16
  num_attention_heads: 2
  num_encoder_layers: 1
  num_decoder_layers: 1
  max_position_embeddings: 64
  position_subtraction: plain
  embedding_loss: mse
data:
  context_length: 64
training:
  max_steps: 4
  learning_rate: 0.01
  per_device_train_batch_size: 2
  logging_steps: 1
  eval_strategy: steps
  eval_steps: 4
  eval_on_start: true
  save_steps: 2
  sample_prompts: 1
  sample_new_tokens: 2
"""
CODE = {"block_attention.py", "block_byte_pieces.py", "block_causal_head.py", "block_chunked_loss.py",
        "block_embedding_loss.py",
        "block_encoder_decoder.py", "block_laid_out.py", "block_layers.py", "block_learned_dropout.py",
        "block_lossless_decoding.py", "block_lossless_tokenizer.py", "block_masks.py", "block_ngram_embedding.py",
        "block_outputs.py",
        "block_positions.py", "block_pretrained.py", "block_refusals.py", "block_row_encodings.py",
        "configuration_ar_encoder_decoder.py", "configuration_attention.py", "configuration_common.py",
        "configuration_encoder_decoder.py", "configuration_learned_dropout.py",
        "configuration_ngram_embedding.py",
        "modeling_ar_encoder_decoder.py", "tokenization_byte.py"}  # fmt: skip
PUBLISHED = CODE | {"config.json", "generation_config.json", "model.safetensors", "tokenizer_config.json",
                    "README.md", "recipe.yaml", "curves.png"}  # fmt: skip
SECRET = "hf_secret_token_of_the_user"
PLACE = "me/where-the-author-publishes"
IDS = torch.arange(40, 60)[None]


def write_recipe(folder: Path) -> Path:
    """A recipe over files whose place is nobody's business."""
    (folder / "private").mkdir()
    for name, count in (("train.txt", 40), ("held-out.txt", 5)):
        (folder / "private" / name).write_text(f"A line of {name}, and another one after it.\n" * count)
    recipe = yaml.safe_load(RECIPE)
    recipe["data"] |= {
        "dataset": str(folder / "private" / "train.txt"),
        "validation_dataset": str(folder / "private" / "held-out.txt"),
        "cache_dir": str(folder / "private" / "cache"),
    }
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A finished run of four steps with checkpoints at 2 and 4; not to be changed."""
    folder = tmp_path_factory.mktemp("finished")
    hub = ["--hub_token", SECRET, "--hub_model_id", PLACE]
    train_main([str(write_recipe(folder)), "--output_dir", str(folder / "run"), *hub])
    return folder / "run"


@pytest.fixture
def run(finished, tmp_path) -> Path:
    """A copy of it that a test may spoil."""
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


# ---- Over HTTP ----

# In a process of its own: huggingface_hub reads its environment when imported.
PUSH = """
import sys, torch
from pathlib import Path
from safetensors.torch import save_file
from latentlm.cli.publish import main as publish_main
from latentlm.training.run import train
from latentlm.runs import load_recipe

recipe, folder = map(Path, sys.argv[1:])
settings = {"output_dir": str(folder / "run"), "push_to_hub": "true", "hub_model_id": "org/trained"}
trainer = train(load_recipe(recipe, settings))
ids = torch.arange(40, 60)[None]
save_file({"logits": trainer.model.eval()(ids).logits.detach()}, folder / "trained.safetensors")

def publish(*arguments):
    publish_main(list(map(str, arguments)))

publish(folder / "run" / "checkpoint-2", "org/checkpoint")
publish(folder / "run" / "checkpoint-2", "org/updated", "--private", "--message", "half of it")
publish(folder / "run", "org/updated", "--message", "the rest")
"""

LOAD = """
import re, torch
from huggingface_hub import hf_hub_download
from pathlib import Path
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

ids = torch.arange(40, 60)[None]
for name in ("trained", "checkpoint"):
    trusted = {"trust_remote_code": True}
    assert AutoConfig.from_pretrained(f"org/{name}", **trusted).model_type == "ar_encoder_decoder"
    tokenizer = AutoTokenizer.from_pretrained(f"org/{name}", **trusted)
    assert tokenizer.decode(tokenizer("Zoë").input_ids, skip_special_tokens=True) == "Zoë"
    assert AutoModel.from_pretrained(f"org/{name}", **trusted)(ids)[0].shape == (1, 20, 16)
    model = AutoModelForCausalLM.from_pretrained(f"org/{name}", **trusted)
    assert torch.equal(model(ids).logits, load_file(f"{sys.argv[1]}/{name}.safetensors")["logits"]), name
card = Path(hf_hub_download("org/trained", "README.md")).read_text()
exec(re.search("```python\\n(.*?)```", card, re.DOTALL)[1])
print("same bits")
"""


def test_trainer_and_command_push_and_a_stranger_loads(finished, mini_hub, tmp_path, run_without_latentlm):
    recipe = finished.parent / "small.yaml"
    command = [sys.executable, "-c", PUSH, str(recipe), str(tmp_path)]
    environment = os.environ | mini_hub.environment
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("trained", "checkpoint", "updated"):
        assert f"Published: {mini_hub.endpoint}/org/{name}" in done.stdout
        assert {path.name for path in (mini_hub.root / "org" / name).iterdir()} == PUBLISHED
    weights = {path.parent.name: path.read_bytes() for path in mini_hub.root.glob("org/*/model.safetensors")}
    assert weights["updated"] == weights["trained"] == (finished / "model.safetensors").read_bytes()
    assert weights["checkpoint"] == (finished / "checkpoint-2" / "model.safetensors").read_bytes()
    cards = {path.parent.name: path.read_text() for path in mini_hub.root.glob("org/*/README.md")}
    assert '"org/updated"' in cards["updated"] and '"org/checkpoint"' in cards["checkpoint"]
    assert "\nThe run took 4 steps" in cards["updated"] and "\nThe run took 2 steps" in cards["checkpoint"]

    half = AutoModelForCausalLM.from_pretrained(finished / "checkpoint-2")(IDS).logits.detach()
    save_file({"logits": half}, tmp_path / "checkpoint.safetensors")
    assert run_without_latentlm(LOAD, tmp_path, env=mini_hub.environment).endswith("same bits\n")


# The models that ship, in a process without latentlm: what they did here, they do there.
LOAD_SHIPPED = """
import torch
from pathlib import Path
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

expected = load_file(sys.argv[1])
tokenizer = AutoTokenizer.from_pretrained("org/abstractinator-wikitext2", trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained("org/abstractinator-wikitext2", trust_remote_code=True)
assert model.dtype == torch.float32
ids = tokenizer("The river", return_tensors="pt", add_special_tokens=False).input_ids
assert torch.equal(model.generate(ids, max_new_tokens=12), expected["generated"])
model = AutoModelForSeq2SeqLM.from_pretrained("org/encodzall-wikitext2", trust_remote_code=True)
[repaired] = model.denoise([sys.argv[2]])
assert torch.equal(torch.tensor([*repaired.encode()]), expected["repaired"])
vectors = SentenceTransformer("org/encodzall-wikitext2", trust_remote_code=True).encode([sys.argv[2]])
torch.testing.assert_close(torch.as_tensor(vectors), expected["vectors"])
print("same")
"""
SHIPPED = ("abstractinator-wikitext2", "encodzall-wikitext2")


def test_models_that_ship_are_pushed_with_their_code(mini_hub, tmp_path, run_without_latentlm):
    pytest.importorskip("sentence_transformers")
    folders = [REPOSITORY / "hub_configs" / name for name in SHIPPED]
    assert all(folder / "model.safetensors" in folder.iterdir() for folder in folders)
    push = "import sys\nfrom latentlm.cli.publish import main\nmain(sys.argv[1:])"
    for folder in folders:
        command = [sys.executable, "-c", push, str(folder), f"org/{folder.name}"]
        done = subprocess.run(
            command, env=os.environ | mini_hub.environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stdout + done.stderr
        pushed = mini_hub.root / "org" / folder.name
        names = {path.name for path in folder.iterdir()}
        assert names <= {path.name for path in pushed.iterdir()} and (pushed / "tokenization_byte.py").exists()
        for name in ("model.safetensors", "README.md"):
            assert (pushed / name).read_bytes() == (folder / name).read_bytes()

    noisy = "The brigde would be rebuilt nxet year ."
    model = AutoModelForCausalLM.from_pretrained(folders[0])
    ids = AutoTokenizer.from_pretrained(folders[0])(
        "The river", return_tensors="pt", add_special_tokens=False
    ).input_ids
    expected = {"generated": model.generate(ids, max_new_tokens=12)}
    repairer = AutoModelForSeq2SeqLM.from_pretrained(folders[1])
    [repaired] = repairer.denoise([noisy])
    assert repaired == "The bridge would be rebuilt next year ."
    inputs = AutoTokenizer.from_pretrained(folders[1])([noisy], return_tensors="pt")
    with torch.no_grad():
        vectors = repairer.model(**inputs).text_embeds
    expected |= {"repaired": torch.tensor([*repaired.encode()]), "vectors": vectors}
    save_file(expected, tmp_path / "expected.safetensors")
    arguments = (tmp_path / "expected.safetensors", noisy)
    assert run_without_latentlm(LOAD_SHIPPED, *arguments, env=mini_hub.environment).endswith("same\n")


# ---- What is published ----


def test_nothing_of_the_machine_is_published(run):
    write_card(run, "org/name")
    files = published_files(run)
    assert set(files) == PUBLISHED
    for name, content in files.items():
        content = content if isinstance(content, bytes) else content.read_bytes()
        for word in (SECRET, PLACE, "private/", str(run.parent), str(Path.home()) + "/"):
            assert word.encode() not in content, f"{name} holds {word}"
    assert SECRET not in (run / "recipe.yaml").read_text()


def test_what_else_lies_in_the_folder_is_not_published(run):
    """Files are published by their names, not by their kind."""
    strangers = ["notes.json", "wandb.json", "credentials.py", "secret.model", "private.jinja", "vocab.txt",
                 "merges.txt", "spiece.model", "other.safetensors", "model-00001-of-00002.safetensors",
                 "modeling_other.py", "tokenization_encodzall.py", "optimizer.pt", ".env"]  # fmt: skip
    for name in strangers:
        (run / name).write_text("a stranger")
    (run / "folder.json").mkdir()
    write_card(run, "org/name")
    assert set(published_files(run)) == PUBLISHED
    assert set(published_files(run / "checkpoint-2")) == PUBLISHED - {"README.md", "curves.png"}


def save_bpe(folder: Path) -> None:
    tokenizer = train_bpe(["some words of a text"], 300)
    tokenizer.chat_template = "{{ messages }}"
    tokenizer.save_pretrained(folder)


def save_fsq(folder: Path, tokenizer_class=FSQTokenizerFast) -> None:
    tokenizer_class.from_pretrained(REPOSITORY / "hub_configs" / "fsq-tokenizer-tiny").save_pretrained(folder)


@pytest.mark.parametrize(
    ("save", "files"),
    [
        (save_bpe, {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}),
        (save_fsq, {"tokenizer.json", "fsq_vocabulary.json", "fsq_autoencoder.safetensors", "tokenization_fsq.py"}),
        (partial(save_fsq, tokenizer_class=FSQTokenizer), {"fsq_vocabulary.json", "fsq_autoencoder.safetensors"}),
        (
            EncodzallTokenizer().save_pretrained,
            {"tokenizer_config.json", "tokenization_encodzall.py", "encodzall_words.py"},
        ),
    ],
    ids=["bpe", "fsq", "fsq_slow", "encodzall"],
)
def test_every_file_that_a_tokenizer_saves_is_published(run, save, files):
    (run / "tokenizer_config.json").unlink()
    before = {path.name for path in run.iterdir()}
    save(run)
    saved = {path.name for path in run.iterdir()} - before
    assert files <= saved | before
    assert saved <= set(published_files(run))
    shutil.copytree(run, run.parent / "copy")
    for path in (run.parent / "copy").iterdir():
        if path.is_file() and path.name not in published_files(run):
            path.unlink()
    text = "Words – of a text."
    for folder in (run, run.parent / "copy"):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
        assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text


def test_weights_in_parts_are_published(run):
    model = AutoModelForCausalLM.from_pretrained(run)
    (run / "model.safetensors").unlink()
    model.save_pretrained(run, max_shard_size="20KB")
    parts = {path.name for path in run.glob("model-*.safetensors")}
    assert len(parts) > 1 and parts | {"model.safetensors.index.json"} <= set(published_files(run))


def test_what_cannot_be_published_whole_says_so(run):
    config = json.loads((run / "tokenizer_config.json").read_text())
    (run / "tokenizer_config.json").write_text(json.dumps(config | {"tokenizer_class": "SomebodysTokenizer"}))
    with pytest.raises(PublishError, match="names the tokenizer SomebodysTokenizer, which neither latentlm nor"):
        published_files(run)
    (run / "tokenizer_config.json").write_text(json.dumps(config))
    (run / "block_attention.py").unlink()
    with pytest.raises(PublishError, match=r"attention\.py is missing, which an `auto_map` in .* needs"):
        published_files(run)


def test_what_sentence_transformers_reads_is_published(tmp_path):
    EncodzallForMaskedDenoising(
        EncodzallConfig(hidden_size=16, num_attention_heads=2, intermediate_size=16, max_position_embeddings=128)
    ).save_pretrained(tmp_path)
    saved = {path.name for path in tmp_path.iterdir()}
    assert (
        {"modules.json", "sentence_bert_config.json", "modeling_encodzall.py"}
        <= saved
        == set(published_files(tmp_path))
    )


def test_the_published_recipe_describes_the_same_run(run):
    stored = load_recipe(run / "recipe.yaml").to_dict()
    (run / "recipe.yaml").write_bytes(published_files(run)["recipe.yaml"])
    published = load_recipe(run / "recipe.yaml").to_dict()
    assert stored["training"].pop("hub_model_id") == PLACE
    stored["data"] |= {"dataset": "train.txt", "validation_dataset": "held-out.txt", "cache_dir": None}
    assert published == stored


@pytest.mark.parametrize(
    ("path", "published"),
    [
        ("/home/me/corpus/*.txt", "*.txt"),
        ("~/corpus.txt", "corpus.txt"),
        ("../data/train.txt", "train.txt"),
        ("C:\\Users\\me\\train.txt", "train.txt"),
        ("file:///home/me/train.txt", "train.txt"),
        ("data/train.txt", "data/train.txt"),
        ("wikimedia/wikipedia", "wikimedia/wikipedia"),
    ],
)
def test_paths_outside_of_the_working_folder_lose_their_folders(path, published):
    assert without_local_paths({"a": [path], "document_start": path}) == {"a": [published], "document_start": path}


# ---- The card ----


def test_card_holds_the_numbers_of_the_run(run):
    write_card(run, "org/name")
    assert "license" not in ModelCard.load(run / CARD_FILE).data.to_dict()  # the user's own to choose
    write_card(run, "org/name", tags=["mine"], language="en", license="apache-2.0")
    card = ModelCard.load(run / CARD_FILE)
    metrics = metrics_of(run)
    data = card.data.to_dict()
    assert data["library_name"] == "transformers" and data["license"] == "apache-2.0" and data["language"] == "en"
    assert data["tags"] == ["ar_encoder_decoder", "latentlm", "mine"]
    assert "datasets" not in data  # a file of this machine is no dataset of the Hub
    results = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert results == {"loss": metrics[-1]["eval_loss"], "bits_per_byte": metrics[-1]["eval_bits_per_byte"]}

    rows = re.findall(r"^\| (training|held-out text), (\w+) \| (\d+) \| (\S+) \| (\d+) \| (\S+) \|$", card.text, re.M)
    training = [entry for entry in metrics if "loss" in entry]
    evaluation = [entry for entry in metrics if "eval_loss" in entry]
    expected = {
        ("training", name): (training[0][name], training[-1][name]) for name in training[0] if name.endswith("loss")
    }
    for name in ("lm_loss", "embedding_loss", "bits_per_byte"):
        expected["held-out text", name] = (evaluation[0][f"eval_{name}"], evaluation[-1][f"eval_{name}"])
    assert {(kind, name): (first, last) for kind, name, _, first, _, last in rows} == {
        key: (f"{first:.4f}", f"{last:.4f}") for key, (first, last) in expected.items()
    }
    assert {(kind, first, last) for kind, _, first, _, last, _ in rows} == {
        ("training", "1", "4"),
        ("held-out text", "0", "4"),
    }

    model = AutoModelForCausalLM.from_pretrained(run)
    positions = model.get_parameter("model.embed_positions.weight").numel()
    total = model.num_parameters()
    assert f"{total:,} parameters, {total - positions:,} without the position table" in card.text
    counts, environment = (json.loads((run / name).read_text()) for name in ("data.json", "environment.json"))
    for split in ("train", "validation"):
        assert " | ".join(f"{counts[split][kind]:,}" for kind in ("documents", "bytes", "tokens")) in card.text
    for name, version in environment["versions"].items():
        assert f"{name} {version}" in card.text
    assert (environment["git_revision"] or "not a checkout") in card.text
    assert "learning_rate: 0.01" in card.text and f"({(run / 'curves.png').name})" in card.text
    assert '"org/name", trust_remote_code=True' in card.text


def test_a_local_model_that_a_run_started_from_is_none_of_the_hub(run, tmp_path):
    """The card may be written in another folder than the run was trained in."""
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    recipe["model"]["from_pretrained"] = "runs/base"
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    write_card(run, "org/name")
    assert ModelCard.load(run / CARD_FILE).data.base_model == ["runs/base"]
    (tmp_path / "runs" / "base").mkdir(parents=True)
    write_card(run, "org/name")
    assert ModelCard.load(run / CARD_FILE).data.base_model is None


def test_card_and_results_are_those_of_the_best_checkpoint(tmp_path):
    """With `load_best_model_at_end` the weights are not those of the last evaluation."""
    best = {"load_best_model_at_end": True, "metric_for_best_model": "loss", "greater_is_better": True}
    options = [f"--{name}={value}" for name, value in best.items()]
    train_main(
        [
            str(write_recipe(tmp_path)),
            "--output_dir",
            str(tmp_path / "run"),
            "--eval_steps=2",
            "--eval_on_start=false",
            *options,
        ]
    )
    first, last = (entry for entry in metrics_of(tmp_path / "run") if "eval_loss" in entry)
    assert first["eval_loss"] > last["eval_loss"] and (first["step"], last["step"]) == (2, 4)
    weights = [tmp_path / "run" / folder / "model.safetensors" for folder in (".", "checkpoint-2")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert (results["steps"], results["best_step"], results["eval_loss"]) == (4, 2, first["eval_loss"])
    write_card(tmp_path / "run", "org/name")
    card = ModelCard.load(tmp_path / "run" / CARD_FILE)
    assert card.data.eval_results[0].metric_value == first["eval_loss"]
    assert "The weights are those of step 2, the best one on the held-out text." in card.text


def test_a_card_of_the_users_own_stays(run):
    write_card(run, "org/name")
    write_card(run, "org/other")
    text = (run / CARD_FILE).read_text()
    assert "org/other" in text and "org/name" not in text
    mine = text.replace(MARKER, "").replace("This is a research model", "This is my model")
    (run / CARD_FILE).write_text(mine)
    write_card(run, "org/name")
    assert (run / CARD_FILE).read_text() == mine


def test_a_model_of_transformers_itself_gets_a_card(tmp_path):
    """A recipe may name its type. Its code is in transformers, that of the byte tokenizer in the folder."""
    config = GPT2Config(
        n_embd=8, n_layer=1, n_head=2, n_positions=32, vocab_size=259, bos_token_id=257, eos_token_id=258
    )
    for name, tokenizer in (("bytes", ByteTokenizer()), ("pieces", train_bpe(["some words of a text"], 300))):
        folder = tmp_path / name
        trainer = make_trainer(folder, GPT2LMHeadModel(config))
        trainer.processing_class = tokenizer
        trainer.save_model(_internal_call=True)
        log = {"step": 1, "loss": 2.0, "lm_loss": 2.0, "training_seconds": 1.0}
        (folder / "metrics.jsonl").write_text(json.dumps(log), encoding="utf-8")
        trainer.create_model_card()
        text = (folder / CARD_FILE).read_text(encoding="utf-8")
        assert "Model type `gpt2`.\n" in text and "of the package latentlm" not in text
        assert 'AutoModelForCausalLM.from_pretrained("' in text and "contexts of up to 32 tokens" in text
        assert ("trust_remote_code" in text) == ("the code is in this repository" in text) == (name == "bytes")
        assert ("tokenization_byte.py" in published_files(folder)) == (name == "bytes")


def test_a_card_names_each_validation_set_of_a_dictionary(tmp_path):
    sets = {"near": Rows(5), "far": Rows(7)}
    trainer = make_trainer(tmp_path, evaluation=sets, eval_strategy="steps", eval_steps=2)
    trainer.train()
    trainer.save_model()
    trainer.create_model_card()
    card = ModelCard.load(tmp_path / CARD_FILE)
    metrics = metrics_of(tmp_path)
    for name in sets:
        first, last = (entry[f"eval_{name}_loss"] for entry in metrics if f"eval_{name}_loss" in entry)
        assert f"| held-out text {name}, lm_loss | 2 | {first:.4f} | 4 | {last:.4f} |" in card.text
        results = {
            one.metric_type: one for one in card.data.eval_results if one.dataset_name == f"held-out text {name}"
        }
        assert results["loss"].metric_value == last and "bits_per_byte" in results


def test_a_trainer_without_a_recipe_writes_a_card_too(tmp_path):
    trainer = make_trainer(tmp_path / "mine")
    trainer.train()
    trainer.save_model()
    trainer.create_model_card(license="mit")
    card = ModelCard.load(tmp_path / "mine" / CARD_FILE)
    assert card.data.license == "mit" and card.data.eval_results is None
    assert "# mine\n" in card.text and "training, lm_loss" in card.text and "## Data" not in card.text


@pytest.mark.parametrize(
    "folder", sorted(path for path in (REPOSITORY / "hub_configs").iterdir()), ids=lambda p: p.name
)
def test_cards_of_the_published_folders(folder):
    """Valid front matter, and the parameter counts of the model."""
    card = ModelCard.load(folder / CARD_FILE)
    config = AutoConfig.from_pretrained(folder)
    # Its training data have terms of their own, which the card names.
    license = "other" if folder.name == "encodzall-wikitext2" else "apache-2.0"
    assert card.data.library_name == "transformers" and card.data.license == license
    embeds = ["sentence-transformers"] if config.model_type == "encodzall" else []
    assert card.data.tags == [config.model_type, "latentlm", *embeds]
    heads = [head for head in (AutoModelForCausalLM, AutoModelForSeq2SeqLM) if head.__name__ in config.auto_map]
    auto_class = heads[0] if heads else AutoModel
    with torch.device("meta"):
        model = auto_class.from_config(config)
    total = model.num_parameters()
    positions = sum(p.numel() for name, p in model.named_parameters() if "embed_positions" in name)
    without = f"; {total - positions:,} without the position table" if positions else ""
    assert f"| parameters | {total:,}{without} |" in card.text
    for recipe in re.findall(r"`(recipe[\w-]*\.yaml)`", card.text):
        assert (folder / recipe).exists()
    generates = (folder / "generation_config.json").exists()
    assert generates == bool(heads)
    generation = json.loads((folder / "generation_config.json").read_text()) if generates else {}
    if "max_length" in generation:
        assert generation.pop("max_length") == config.max_position_embeddings
    assert all(getattr(config, name) == value for name, value in generation.items())


# ---- What cannot be published ----


def error_of(*arguments: str | Path) -> str:
    with pytest.raises(SystemExit) as stopped:
        publish_main([str(argument) for argument in arguments])
    assert isinstance(stopped.value.code, str), "exit status 0 or 2"
    return stopped.value.code


def test_folders_that_cannot_be_published(run, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_test")

    def cut(path: Path) -> None:
        path.write_bytes(path.read_bytes()[:-100])

    assert "no folder" in error_of(run / "nowhere", "org/name")
    (run.parent / "empty").mkdir()
    assert "neither a run folder" in error_of(run.parent / "empty", "org/name")
    cut(run / "model.safetensors")
    assert "model.safetensors is damaged or cut short" in error_of(run, "org/name")
    (run / "model.safetensors").unlink()
    message = error_of(run, "org/name")
    assert "has no model.safetensors" in message and "checkpoint-4" in message
    cut(run / "checkpoint-4" / "model.safetensors")
    assert "checkpoint-4 is not complete: model.safetensors has" in error_of(run / "checkpoint-4", "org/name")
    (run / "checkpoint-2" / "checkpoint.json").unlink()
    assert "checkpoint-2 is not complete: it has no" in error_of(run / "checkpoint-2", "org/name")


def test_a_hub_that_cannot_be_reached_or_written_to(run, monkeypatch):
    """The tests' own environment is offline."""
    monkeypatch.delenv("HF_TOKEN", raising=False)
    assert "no token; log in with `hf auth login` or set HF_TOKEN" in error_of(run, "org/name")
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    message = error_of(run, "org/name")
    assert "offline mode" in message and f"latentlm publish {run} org/name" in message
    assert "a/b/c" in error_of(run, "a/b/c")


def test_train_command_says_so_before_training_and_keeps_the_model_after_it(finished, tmp_path, monkeypatch, capsys):
    arguments = [str(finished.parent / "small.yaml"), "--output_dir", str(tmp_path / "run"), "--push_to_hub", "true"]
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(SystemExit, match=r"run was not published: there is no token"):
        train_main(arguments)
    assert not (tmp_path / "run").exists()
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    monkeypatch.setattr(LatentTrainer, "init_hf_repo", lambda self: None)  # the Hub goes away during the run
    with pytest.raises(SystemExit, match=f"latentlm publish {tmp_path}/run run"):
        train_main(arguments)
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == (finished / "model.safetensors").read_bytes()


def test_only_the_main_process_publishes(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path)
    monkeypatch.setattr(trainer, "is_world_process_zero", lambda: False)
    assert trainer.push_to_hub() is None
    trainer.init_hf_repo()
    trainer.create_model_card()
    assert not (tmp_path / CARD_FILE).exists()


def test_weights_under_other_names_are_removed(run, monkeypatch):
    """mini_hub knows no deletions: look at what would be sent."""
    sent = {}

    class Api:
        def __init__(self, token):
            pass

        def list_repo_files(self, *_, **__):
            return ["model-00001-of-00002.safetensors", "model.safetensors.index.json", "pytorch_model.bin",
                    "training_args.bin", "model.safetensors", "notes.md", ".gitattributes"]  # fmt: skip

        def create_commit(self, repo_id, operations, **_):
            sent.update({operation.path_in_repo: type(operation).__name__ for operation in operations})

    monkeypatch.setattr(push, "HfApi", Api)
    monkeypatch.setattr(push, "create_repository", lambda *_: "org/name")
    publish(run, "org/name")
    assert {name for name, kind in sent.items() if kind == "CommitOperationAdd"} == PUBLISHED
    assert {name for name, kind in sent.items() if kind == "CommitOperationDelete"} == {
        "model-00001-of-00002.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "training_args.bin",
    }  # fmt: skip
    with pytest.raises(PublishError, match="no folder"):
        publish(run / "nowhere", "org/name")
