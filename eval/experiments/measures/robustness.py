"""Bits per byte of a causal model on text unlike its training text: with noise, by its rate, and in 47 languages.

Noise is in the run's own validation text, as people, keyboards and scanners make it (`latentlm.training.noise`).
`LATENTLM_TEXT` names the folder with `udhr/`, by default the corpora beside the repository.
"""

import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from records import corpora
from texts import read_documents

from latentlm.data import token_bytes
from latentlm.training.noise import CHARACTER_SHARE, MIXTURE, corrupt_text

RATES = (0, 3, 10, 30)  # percent of the characters, white space apart, that are hit
NOISY_CHARACTERS = 20_000
LANGUAGE_CHARACTERS = 600  # of each language
ROWS = 16


@torch.no_grad()
def token_losses(model: Any, texts: Sequence[list[int]], length: int) -> np.ndarray:
    """Nats, float64, of all tokens of texts but the first of each, in rows of `length` tokens, each of which begins
    with the last token of the row before."""
    device = next(model.parameters()).device
    rows = [ids[i : i + length] for ids in texts for i in range(0, len(ids) - 1, length - 1)]
    parts = [torch.zeros(0)]
    for i in range(0, len(rows), ROWS):
        part = rows[i : i + ROWS]
        width = max(map(len, part))
        batch = torch.tensor([row + [row[-1]] * (width - len(row)) for row in part], device=device)
        real = torch.tensor([[j < len(row) for j in range(1, width)] for row in part], device=device)
        logits = model(batch, use_cache=False).logits[:, :-1].float()
        losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), batch[:, 1:], reduction="none")
        parts.append(losses[real].cpu())
    return torch.cat(parts).double().numpy()


def bits_per_byte(model: Any, tokenizer: Any, texts: Sequence[str], length: int) -> float:
    """Of texts in the rows of `token_losses`: the first token of a text is not predicted, and its bytes do not
    count."""
    sizes = token_bytes(tokenizer)
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    num_bytes = sum(float(sizes[one[1:]].sum()) for one in ids)
    return float(token_losses(model, ids, length).sum()) / math.log(2) / num_bytes


def with_noise(text: str, rate: float, mixture: dict[str, float] = MIXTURE) -> str:
    """The text, of whose characters `rate` percent, from 0 to 30, are hit."""
    return corrupt_text(text, rate / 100 / CHARACTER_SHARE, 0, mixture)[0]


def read_languages(data: Path) -> dict[str, tuple[str, str]]:
    """Script, and the beginning of the Declaration of Human Rights, of each language."""
    languages: dict[str, tuple[str, str]] = {}
    for line in (data / "udhr" / "udhr_articles.jsonl").read_text(encoding="utf-8").splitlines():
        article = json.loads(line)
        _, text = languages.get(article["lang"], ("", ""))
        languages[article["lang"]] = article["script"], f"{text}{article['text']}\n"
    return {name: (script, text[:LANGUAGE_CHARACTERS]) for name, (script, text) in languages.items()}


def measure(model: Any, tokenizer: Any, run: Path) -> dict[str, float]:
    """`noise_<percent>`; `language_<code>`, and their means `languages` (all), `languages_latin` and
    `languages_other` by script, English apart."""
    recipe: Any = yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))
    length = recipe["data"]["context_length"]
    clean = "".join(read_documents(Path(recipe["data"]["validation_dataset"])))[:NOISY_CHARACTERS]
    metrics = {f"noise_{rate}": bits_per_byte(model, tokenizer, [with_noise(clean, rate)], length) for rate in RATES}
    languages = read_languages(corpora())
    scores = {name: bits_per_byte(model, tokenizer, [text], length) for name, (_, text) in languages.items()}
    latin = {name for name, (script, _) in languages.items() if script == "Latn" and name != "eng"}
    groups = {"": set(scores), "_latin": latin, "_other": set(scores) - latin - {"eng"}}
    means = {f"languages{group}": statistics.fmean(scores[name] for name in names) for group, names in groups.items()}
    return metrics | means | {f"language_{name.lower()}": score for name, score in scores.items()}
