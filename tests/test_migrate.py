"""The blocks of docs/migrate.md run one after the other, and the rows that they start are those they should be."""

import shutil
from pathlib import Path

import torch
from conftest import REPOSITORY
from forked import Forks
from test_use_with import BLOCK, RECIPE

from latentlm import DecoderOnlyConfig, DecoderOnlyForCausalLM, FSQTokenizerFast
from latentlm.data.tokenizers import train_bpe

PAGE = (REPOSITORY / "docs" / "migrate.md").read_text(encoding="utf-8")


def test_every_step_runs_and_rows_start_from_the_old_ones(tmp_path: Path, forks: Forks, monkeypatch):
    text = "The documentation of the tokenizer: naïve, (other) things & 日本.\n" * 40
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    recipe = RECIPE.replace("data: {", f"data: {{dataset: {tmp_path / 'text.txt'}, ")
    (tmp_path / "recipe.yaml").write_text(recipe, encoding="utf-8")
    bpe = train_bpe([text], 300)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "max_position_embeddings": 64}
    ids = {name: getattr(bpe, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    old = DecoderOnlyForCausalLM(DecoderOnlyConfig(vocab_size=len(bpe), **sizes, **ids))
    for part in (old, bpe):
        part.save_pretrained(tmp_path / "org" / "old")
    shutil.copytree(REPOSITORY / "hub_configs" / "fsq-tokenizer-tiny", tmp_path / "org" / "fsq")
    fsq = FSQTokenizerFast.from_pretrained(tmp_path / "org" / "fsq")
    fsq.save_pretrained(tmp_path / "org" / "fsq")

    monkeypatch.chdir(tmp_path)
    namespace: dict = {}
    for match in BLOCK.finditer(PAGE):
        if match["language"] == "python":
            exec(match["code"], namespace)
        elif match["language"] == "bash":
            forks.run_shell(tmp_path, "bash", "-euc", match["code"])

    rows, before = namespace["model"].get_input_embeddings().weight, old.get_input_embeddings().weight
    assert rows.shape == (len(fsq), 16)
    for index, spelling in enumerate(fsq.vocabulary.spellings):
        pieces = bpe(spelling.decode("utf-8", "ignore"), add_special_tokens=False).input_ids
        torch.testing.assert_close(rows[index], before[pieces].mean(0) if pieces else before.mean(0))
    torch.testing.assert_close(rows[fsq.eos_token_id], before[bpe.eos_token_id])
    moved = DecoderOnlyForCausalLM.from_pretrained("moved")
    assert (
        moved.config.bos_token_id == fsq.bos_token_id and (tmp_path / "runs" / "moved" / "model.safetensors").exists()
    )
    with_codes = namespace["with_codes"]
    for name, tensor in moved.state_dict().items():
        torch.testing.assert_close(with_codes.state_dict()[name], tensor)
