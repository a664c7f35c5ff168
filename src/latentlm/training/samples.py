"""Sample outputs of a run, which are continuations of prompts from the validation set."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from .callbacks import SAMPLES_FILE, append_line


def choose_prompts(rows: Iterable[dict[str, Any]], longest: int) -> list[torch.Tensor]:
    """Return the beginning `(t,)` of each row, which lies within one document and has at most `longest` tokens."""
    prompts = []
    for row in rows:
        ids = torch.as_tensor(row["input_ids"])
        positions = torch.as_tensor(row.get("position_ids", range(len(ids))))
        restarts = (positions[1:] == 0).nonzero().flatten().tolist()
        prompts.append(ids[: max(min([longest, *(restart + 1 for restart in restarts)]), 1)])
    return prompts


def continue_prompts(
    model: Any,
    tokenizer: Any,
    prompts: Iterable[torch.Tensor],
    new_tokens: int,
    seed: int,
    device: torch.device,
    synced: bool = False,
) -> list[dict[str, str]]:
    """Return the texts `prompt`, `greedy` and `sampled` (its continuations) of each prompt. The state of the random
    number generators does not change.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        prompts: ids `(t,)` of each prompt.
        new_tokens: largest number of new tokens, which the context of the model also limits.
        seed: seed of the sampling.
        device: the device of the model.
        synced: whether all processes generate together, because each has only a part of the parameters.
    """
    samples = []
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.no_grad():
        torch.manual_seed(seed)
        for prompt in prompts:
            texts = {"prompt": tokenizer.decode(prompt)}
            limit = getattr(model.config, "max_position_embeddings", None)
            for kind, do_sample in (("greedy", False), ("sampled", True)):
                ids = model.generate(
                    prompt[None].to(device),
                    attention_mask=torch.ones_like(prompt[None], device=device),
                    max_new_tokens=new_tokens if limit is None else min(new_tokens, limit - len(prompt)),
                    do_sample=do_sample,
                    pad_token_id=tokenizer.pad_token_id,
                    synced_gpus=synced,
                )
                texts[kind] = tokenizer.decode(ids[0, len(prompt) :])
            samples.append(texts)
    return samples


def write_texts(texts: dict[str, str], step: int, folder: Path, console: Console) -> None:
    """Append texts as a line to `samples.jsonl`, and print them. The first text is the input, the others are
    outputs."""
    append_line(folder / SAMPLES_FILE, {"step": step, **texts})
    (_, before), (_, after), *more = texts.items()
    text = f"    {before!r} → {after!r}" + "".join(f", {name} {value!r}" for name, value in more)
    console.print(text, markup=False, highlight=False, soft_wrap=True)
