"""How linearly every layer can be read: one linear map (Alain & Bengio 2016, 1610.01644) from its states to the current
token, the next token and the position, fitted on half A of the validation text and scored on half B.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from texts import read_documents

ROWS, BATCH = 160, 16  # of each half: 40 thousand tokens in rows of 256
RIDGE = 1e-4  # of the mean squared state
STACKS = {"encoder_layers": "encoder", "decoder_layers": "decoder", "layers": "layer"}


def read_rows(text: Path, tokenizer: Any, length: int) -> torch.Tensor:
    """The first rows of a text, `(rows, length)`."""
    ids = tokenizer("".join(read_documents(text)), add_special_tokens=False)["input_ids"]
    count = min(ROWS, len(ids) // length)
    return torch.tensor(ids[: count * length]).view(count, length)


@torch.no_grad()
def layer_states(model: Any, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """The states after each layer, `(B, T, D)`, as `<stack>_<depth>`; `embedding_0` is what the first one reads.

    Depth is the number of layers on the longest way from the input: a decoder layer is one deeper than the decoder
    layer before it and than the last encoder layer that it reads.
    """
    states: dict[str, torch.Tensor] = {}
    depths = dict.fromkeys(STACKS.values(), 0)

    def enter(module: Any, inputs: Any) -> None:
        states.setdefault("embedding_0", inputs[0])

    def leave(module: Any, inputs: Any, output: Any) -> None:
        stack = names[module]
        depths[stack] = max(depths[stack], depths["encoder"]) + 1
        states[f"{stack}_{depths[stack]}"] = output[0]

    names = {layer: name for field, name in STACKS.items() for layer in getattr(model.model, field, ())}
    hooks = [
        hook for layer in names for hook in (layer.register_forward_pre_hook(enter), layer.register_forward_hook(leave))
    ]
    try:
        model(ids.to(next(model.parameters()).device), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return states


class Probe:
    """A least-squares map with a small ridge from states to one-hot tokens, current and next, and to positions."""

    def __init__(self, size: int, vocab_size: int):
        self.vocab_size = vocab_size
        self.squares = torch.zeros(size + 1, size + 1, dtype=torch.float64)
        self.products = torch.zeros(size + 1, 2 * vocab_size + 1, dtype=torch.float64)
        self.map = torch.zeros(0)
        self.hits, self.count = torch.zeros(2), 0
        self.errors, self.positions = 0.0, torch.zeros(0)

    def pairs(self, states: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """States with a constant, `(N, D + 1)`, tokens `(N, 2)`, positions `(N,)` in [0, 1], where a next token is."""
        flat = states[:, :-1].flatten(0, 1).double().cpu()
        tokens = torch.stack((ids[:, :-1], ids[:, 1:]), -1).flatten(0, 1)
        positions = (torch.arange(ids.shape[1] - 1, dtype=torch.float64) / ids.shape[1]).repeat(len(ids))
        return torch.cat((flat, torch.ones(len(flat), 1)), 1), tokens, positions

    def fit(self, states: torch.Tensor, ids: torch.Tensor) -> None:
        """Add a batch."""
        inputs, tokens, positions = self.pairs(states, ids)
        self.squares += inputs.T @ inputs
        for i in range(2):
            self.products.index_add_(1, tokens[:, i] + i * self.vocab_size, inputs.T)
        self.products[:, -1] += inputs.T @ positions

    def solve(self) -> None:
        ridge = RIDGE * self.squares.diagonal().mean() * torch.eye(len(self.squares), dtype=torch.float64)
        self.map = torch.linalg.solve(self.squares + ridge, self.products)

    def score(self, states: torch.Tensor, ids: torch.Tensor) -> None:
        inputs, tokens, positions = self.pairs(states, ids)
        read = inputs @ self.map
        guesses = [read[:, i * self.vocab_size : (i + 1) * self.vocab_size].argmax(1) for i in range(2)]
        self.hits += (torch.stack(guesses, 1) == tokens).sum(0)
        self.count += len(tokens)
        self.errors += (read[:, -1] - positions).square().sum().item()
        self.positions = torch.cat((self.positions, positions))

    def results(self) -> dict[str, float]:
        """Shares of tokens that are read right, and the share of the positions' variance that is explained."""
        current, following = (self.hits / self.count).tolist()
        variance = (self.positions - self.positions.mean()).square().sum().item()
        return {"current": current, "next": following, "position": 1 - self.errors / variance}


def batches(model: Any, rows: torch.Tensor) -> Iterator[tuple[torch.Tensor, dict[str, torch.Tensor]]]:
    for ids in rows.split(BATCH):
        yield ids, layer_states(model, ids)


def measure(model: Any, tokenizer: Any, run: Path) -> dict[str, float]:
    """`probe_<current, next or position>_<stack>_<depth>`."""
    recipe: Any = yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))
    data = recipe["data"]
    folder = Path(data["validation_dataset"]).parent
    halves = [read_rows(folder / f"validation-{half}.jsonl", tokenizer, data["context_length"]) for half in "ab"]
    probes: dict[str, Probe] = {}
    for ids, states in batches(model, halves[0]):
        for name, state in states.items():
            probe = probes.setdefault(name, Probe(state.shape[-1], model.config.vocab_size))
            probe.fit(state, ids)
    for probe in probes.values():
        probe.solve()
    for ids, states in batches(model, halves[1]):
        for name, state in states.items():
            probes[name].score(state, ids)
    return {f"probe_{what}_{name}": value for name, probe in probes.items() for what, value in probe.results().items()}
