"""Every block of docs/use-with.md and README.md runs as it stands, on tiny models in the folders that it names."""

import re
from pathlib import Path

import pytest
import torch
from forked import Forks

from latentlm import (
    ByteTokenizer,
    DecoderOnlyConfig,
    DecoderOnlyForCausalLM,
    EncodzallConfig,
    EncodzallForMaskedDenoising,
    EncodzallTokenizer,
)

REPOSITORY = Path(__file__).resolve().parent.parent
PAGES = {"README.md": 5, "docs/use-with.md": 13}  # and how many blocks they have
BLOCK = re.compile(r"^## (?P<heading>.+?)$|^```(?P<language>\w+)\n(?P<code>.*?)^```", re.MULTILINE | re.DOTALL)
OPTIONAL = {"executorch": "executorch", "torchao": "quantization"}  # packages that `make test` leaves out, their extra
RECIPE = """
model: {model_type: decoder_only, hidden_size: 16, num_attention_heads: 2, num_hidden_layers: 1,
        max_position_embeddings: 64}
data: {context_length: 64, max_validation_rows: 2}
training: {max_steps: 2, per_device_train_batch_size: 2, logging_steps: 1, eval_strategy: steps, eval_steps: 2,
           sample_prompts: 0, use_cpu: true}
"""


def blocks(page: str) -> list[pytest.param]:
    """Language and code of each block, named by its heading and its number below it."""
    found, heading, number = [], "", 0
    for match in BLOCK.finditer((REPOSITORY / page).read_text(encoding="utf-8")):
        if match["heading"]:
            heading, number = match["heading"], 0
            continue
        number += 1
        found.append(pytest.param(match["language"], match["code"], id=f"{heading}-{number}".replace(" ", "_")))
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with `org/name`, `org/encodzall`, a recipe and the tasks of this project."""
    folder = tmp_path_factory.mktemp("reader")
    torch.manual_seed(0)
    tokenizer = ByteTokenizer(model_max_length=512)
    ids = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    sizes = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1, "max_position_embeddings": 512}
    DecoderOnlyForCausalLM(DecoderOnlyConfig(vocab_size=len(tokenizer), **sizes, **ids)).save_pretrained(
        folder / "org" / "name"
    )
    tokenizer.save_pretrained(folder / "org" / "name")
    config = EncodzallConfig(hidden_size=32, num_attention_heads=2, intermediate_size=32, max_position_embeddings=128)
    EncodzallForMaskedDenoising(config).save_pretrained(folder / "org" / "encodzall")
    EncodzallTokenizer(model_max_length=128).save_pretrained(folder / "org" / "encodzall")
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    for name in ("eval", "hub_configs"):
        (folder / name).symlink_to(REPOSITORY / name)
    return folder


@pytest.mark.parametrize("page", PAGES)
def test_blocks_are_short(page: str):
    codes = [block.values[1] for block in blocks(page)]
    assert len(codes) == PAGES[page]
    assert all(len(code.splitlines()) <= 13 for code in codes)


@pytest.mark.parametrize("language, code", [block for page in PAGES for block in blocks(page)])
def test_block_runs(language: str, code: str, folder: Path, forks: Forks, request: pytest.FixtureRequest):
    for package, extra in OPTIONAL.items():
        if f"from {package}" in code:
            pytest.importorskip(package, reason=f"needs an extra: pip install 'latentlm[{extra}]'")
    if "lm_eval" in code:
        request.getfixturevalue("shared_data")
    if language == "bash":
        forks.run_shell(folder, "bash", "-euc", code)
    else:
        forks.run(folder, code)
