"""The three stages of the FSQ tokenizer from the command line, in miniature: autoencoder and table, language model on
frozen codes, joint training and the rebuilt table."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from test_fsq_training import RECIPE, text  # noqa: F401 - a fixture
from training_setup import metrics_of
from transformers import AutoModelForCausalLM

from latentlm import FSQForCausalLM, FSQTokenizer, FSQTokenizerFast
from latentlm.cli.tokenizer import main as tokenizer_main
from latentlm.data.chunks import load_run_pieces
from latentlm.data.pieces import load_pieces
from latentlm.evaluation import tokenizers as tokenizer_evaluation
from latentlm.hub.files import published_files
from latentlm.models.fsq_vocabulary import AUTOENCODER_FILE, VOCABULARY_FILE
from latentlm.runs import load_recipe
from latentlm.train import main as train_main

LANGUAGE_MODEL = """
model:
  model_type: fsq
  hidden_size: 16
  num_attention_heads: 2
  num_hidden_layers: 1
  max_position_embeddings: 64
  byte_loss_weight: 0.1
data:
  dataset: TEXT
  tokenizer: TOKENIZER
  context_length: 64
  max_validation_rows: 6
training:
  max_steps: 4
  learning_rate: 1e-2
  per_device_train_batch_size: 2
  per_device_eval_batch_size: 4
  logging_steps: 2
  eval_strategy: steps
  eval_steps: 2
  eval_on_start: true
  save_steps: 2
  sample_prompts: 1
  sample_new_tokens: 4
"""
JOINT = ["--joint", "true", "--max_steps", "4"]


@pytest.fixture(scope="module")
def stages(tmp_path_factory, text) -> Path:  # noqa: F811
    """`autoencoder`, `tokenizer`, `frozen`, `joint` and `rebuilt`, one made from the other."""
    folder = tmp_path_factory.mktemp("stages")
    (folder / "autoencoder.yaml").write_text(RECIPE.replace("TEXT", str(text)))
    train_main([str(folder / "autoencoder.yaml"), "--output_dir", str(folder / "autoencoder")])
    tokenizer_main(["build", str(folder / "autoencoder"), str(folder / "tokenizer")])
    # The recipe names the tokenizer that lies beside it.
    recipe = LANGUAGE_MODEL.replace("TEXT", str(text)).replace("TOKENIZER", "tokenizer")
    (folder / "language_model.yaml").write_text(recipe)
    train_main([str(folder / "language_model.yaml"), "--output_dir", str(folder / "frozen")])
    options = ["--from_pretrained", str(folder / "frozen"), *JOINT, "--min_code_entropy", "0.1"]
    train_main([str(folder / "language_model.yaml"), "--output_dir", str(folder / "joint"), *options])
    tokenizer_main(["rebuild", str(folder / "joint"), str(folder / "rebuilt")])
    return folder


def message(main, *arguments: str | Path) -> str:
    with pytest.raises(SystemExit) as error:
        main([str(argument) for argument in arguments])
    assert isinstance(error.value.code, str)  # printed, exit status 1
    return error.value.code


def test_the_table_is_that_of_the_run(stages):
    tokenizer = FSQTokenizerFast.from_pretrained(stages / "tokenizer")
    pieces = load_pieces(stages / "autoencoder" / "pieces.json")
    assert tokenizer.vocabulary.pieces == pieces.pieces and len(tokenizer) == 400
    assert tokenizer.levels == [8, 8, 8]
    chunks, lengths = tokenizer.piece_table()
    wanted = tokenizer.autoencoder.encode(torch.from_numpy(chunks[:-4]), torch.from_numpy(lengths[:-4])).numpy()
    moved = np.flatnonzero(wanted != tokenizer.vocabulary.codes)
    assert moved.tolist() == tokenizer.vocabulary.moved
    assert len(set(wanted.tolist())) == 396 - len(moved)


def test_the_language_model_knows_the_table_and_leaves_it_alone(stages):
    tokenizer = FSQTokenizerFast.from_pretrained(stages / "frozen")
    model = FSQForCausalLM.from_pretrained(stages / "frozen")
    assert np.array_equal(model.embedding.codes.numpy(), tokenizer.codes)
    assert model.config.vocab_size == 400 and model.config.num_special_tokens == 4
    assert (model.config.pad_token_id, model.config.bos_token_id, model.config.eos_token_id) == (396, 397, 398)
    for name, tensor in tokenizer.autoencoder.state_dict().items():
        assert torch.equal(model.embedding.autoencoder.state_dict()[name], tensor), name
    last = metrics_of(stages / "frozen")[-1]
    assert {"eval_bits_per_byte", "eval_byte_loss"} <= last.keys()
    size = sum(len(tokenizer.decode_bytes([index])) for index in range(400))
    assert last["eval_bits_per_byte"] > 0 and size > 400


LOAD = """
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

for name in sys.argv[1:]:
    tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=True)
    model = AutoModelForCausalLM.from_pretrained(name, trust_remote_code=True)
    ids = tokenizer("The documentation", return_tensors="pt").input_ids
    assert (model.model.code_embedding.codes.numpy() == tokenizer.codes).all()
    print(type(tokenizer).__name__, tokenizer.decode(model.generate(ids, max_new_tokens=8, do_sample=False)[0]))
"""


def test_every_stage_loads_without_latentlm(stages, run_without_latentlm):
    folders = [stages / name for name in ("frozen", "joint", "rebuilt")]
    lines = run_without_latentlm(LOAD, *folders).splitlines()
    assert len(lines) >= 3 and all(line.startswith("FSQTokenizerFast <bos>The docu") for line in lines[:1])


def test_what_is_published_holds_the_table_and_its_network(stages):
    names = set(published_files(stages / "frozen"))
    assert {VOCABULARY_FILE, AUTOENCODER_FILE, "tokenizer.json", "model.safetensors", "modeling_fsq.py"} <= names
    assert not any(name.endswith((".bin", ".pt", ".pkl")) for name in names)
    assert "pieces.json" in published_files(stages / "autoencoder")  # the tokenizer can be built from it


def test_joint_training_watches_its_codes(stages):
    logged = [entry for entry in metrics_of(stages / "joint") if "loss" in entry][-1]
    assert {"reconstruction_loss", "byte_loss", "code_entropy", "codes_moved"} <= logged.keys()
    assert 0 < logged["code_entropy"] <= 1 and 0 < logged["codes_moved"] <= 1
    before = FSQForCausalLM.from_pretrained(stages / "frozen").embedding.autoencoder.encoder.to_code.weight
    after = FSQForCausalLM.from_pretrained(stages / "joint").embedding.autoencoder.encoder.to_code.weight
    assert not torch.equal(before, after)


def test_joint_training_stops_when_codes_collapse(stages, tmp_path):
    options = ["--from_pretrained", stages / "frozen", *JOINT, "--output_dir", tmp_path]
    found = message(
        train_main, stages / "language_model.yaml", *options, "--min_code_entropy", "1.0", "--learning_rate", "1.0"
    )
    assert "step 2: code_entropy fell to" in found and "reconstruction_loss_weight" in found


def test_joint_training_resumes_exactly(stages, tmp_path):
    train_main(
        ["--resume_from_checkpoint", str(stages / "joint" / "checkpoint-2"), "--output_dir", str(tmp_path / "again")]
    )
    assert metrics_of(tmp_path / "again") == metrics_of(stages / "joint")


def test_a_trained_autoencoder_is_continued(stages, tmp_path):
    """The tokenizer gives its network to models without one alone: to new ones, and from checkpoints that lack it."""
    tokenizer = FSQTokenizer.from_pretrained(stages / "tokenizer")
    FSQForCausalLM.from_pretrained(stages / "joint", joint=False, byte_loss_weight=0).save_pretrained(tmp_path)

    def encoder(source: Path | None) -> torch.Tensor:
        overrides = {} if source is None else {"from_pretrained": str(source)}
        recipe = load_recipe(stages / "language_model.yaml", overrides)
        return recipe.build_model(tokenizer, AutoModelForCausalLM).embedding.network.encoder.to_code.weight

    trained = FSQForCausalLM.from_pretrained(stages / "joint").embedding.network.encoder.to_code.weight
    untrained = tokenizer.autoencoder.encoder.to_code.weight
    assert not torch.equal(trained, untrained)
    assert torch.equal(encoder(stages / "joint"), trained)
    assert torch.equal(encoder(None), untrained) and torch.equal(encoder(tmp_path), untrained)


def test_an_autoencoder_saved_before_a_field_was_there_is_continued(stages):
    """Its configuration, which a recipe takes over as it is, has the field's default."""
    tokenizer = FSQTokenizer.from_pretrained(stages / "tokenizer")
    assert tokenizer.autoencoder_config.pop("num_quantizers") == 1
    recipe = load_recipe(stages / "language_model.yaml", {"from_pretrained": str(stages / "joint")})
    assert recipe.build_model(tokenizer, AutoModelForCausalLM).config.has_autoencoder


def test_the_rebuilt_table_has_new_codes_and_the_old_ids(stages):
    old, new = (FSQTokenizer.from_pretrained(stages / name) for name in ("joint", "rebuilt"))
    assert (old.vocabulary.version, new.vocabulary.version) == (1, 2)
    words = "The documentation of <eos> is naïve."
    assert new(words).input_ids == old(words).input_ids
    assert not np.array_equal(new.codes, old.codes)
    model = FSQForCausalLM.from_pretrained(stages / "rebuilt")
    assert not model.config.joint
    assert np.array_equal(model.embedding.codes.numpy(), new.codes)
    # Where no code had to move, the model's embeddings are what joint training gave them.
    joint = FSQForCausalLM.from_pretrained(stages / "joint")
    kept = torch.tensor([index for index in range(396) if index not in new.vocabulary.moved])
    torch.testing.assert_close(model.model.embed_ids(kept), joint.model.embed_ids(kept), rtol=1e-4, atol=1e-5)


def test_unigram_costs_are_those_of_the_pieces_text(stages, text, tmp_path):  # noqa: F811
    tokenizer_main(["build", str(stages / "autoencoder"), str(tmp_path / "unigram"), "--segmentation", "unigram"])
    fewest, unigram = (FSQTokenizer.from_pretrained(f) for f in (stages / "tokenizer", tmp_path / "unigram"))
    pieces = load_run_pieces(stages / "autoencoder")
    uses = np.concatenate((pieces.byte_counts, pieces.counts))
    bits = -np.log2(np.maximum(uses, 0.5) / uses.sum())
    assert np.abs(np.array(unigram.vocabulary.costs) / 16 - bits).max() <= 1 / 32
    ids = [tokenizer(text.read_text(), add_special_tokens=False).input_ids for tokenizer in (fewest, unigram)]
    assert unigram.decode_bytes(ids[1]) == text.read_bytes()
    assert len(ids[0]) < len(ids[1])
    assert sum(bits[index] for index in ids[1]) < sum(bits[index] for index in ids[0])


def test_check_and_analyse(stages, tmp_path, capsys, monkeypatch):
    # Every scalar takes ten seconds.
    scalars = tokenizer_evaluation.every_scalar()[::50]
    monkeypatch.setattr(tokenizer_evaluation, "every_scalar", lambda: scalars)
    (tmp_path / "some.txt").write_text("The documentation | of\n<eos> things, naïve.\n" * 20)
    tokenizer_main(["check", str(stages / "tokenizer"), str(tmp_path / "some.txt")])
    assert "Nothing is lost" in capsys.readouterr().out
    tokenizer_main(["analyse", str(stages / "tokenizer"), str(tmp_path / "some.txt"), str(tmp_path / "analysis")])
    report = (tmp_path / "analysis" / "analysis.md").read_text()
    tokens = FSQTokenizer.from_pretrained(stages / "tokenizer")(
        (tmp_path / "some.txt").read_text(), add_special_tokens=False, split_special_tokens=True
    ).input_ids
    assert f"{len(tokens):,} tokens" in report
    assert f"vocabulary used: {len(set(tokens)) / 396:.2%}" in report
    assert {path.name for path in (tmp_path / "analysis").iterdir()} == {"analysis.md", "use.png", "digits.png"}


def test_mistakes_say_what_is_wrong(stages, tmp_path):
    assert "no pieces.json" in message(tokenizer_main, "build", stages / "frozen", tmp_path / "x")
    assert "`joint` is false" in message(tokenizer_main, "rebuild", stages / "frozen", tmp_path / "x")
    assert not (tmp_path / "x").exists()
    content = json.loads((stages / "tokenizer" / VOCABULARY_FILE).read_text())
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in (stages / "tokenizer").iterdir():
        if path.is_file():
            (broken / path.name).write_bytes(path.read_bytes())
    (broken / VOCABULARY_FILE).write_text(json.dumps(content | {"version": 3}))
    assert "does not match its sha256" in message(tokenizer_main, "check", broken)
    recipe = stages / "language_model.yaml"
    assert "needs an FSQ tokenizer" in message(
        train_main, recipe, "--tokenizer", "bytes", "--output_dir", tmp_path / "y"
    )
