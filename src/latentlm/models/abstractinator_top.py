"""The Abstractinator's language model on the codes of its last level."""

import torch
from torch import nn

from .abstractinator_symbols import SymbolHead
from .block_stack import CausalStack, StackOutput
from .configuration_abstractinator import AbstractinatorConfig


class TopModel(nn.Module):
    """Causal transformer over the rows of the top codes."""

    def __init__(self, config: AbstractinatorConfig):
        super().__init__()
        top = config.level_configs[-1]
        self.config = config
        self.begin = nn.Embedding(1, config.hidden_size)
        self.stack = CausalStack(config, config.num_top_layers, None)
        self.head: SymbolHead | nn.Linear
        if config.top_head == "categorical":
            self.head = SymbolHead(config, top.num_ids, top.num_digits, top.code_dim)
        else:
            self.head = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.to_row = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, rows: torch.Tensor) -> StackOutput:
        """Run the model on code rows `(R, S, D)`: hidden states are `(R, S + 1, D)`, and code s is predicted at s."""
        first = torch.zeros(len(rows), 1, dtype=torch.long, device=rows.device)
        return self.stack(torch.cat((self.begin(first).to(rows.dtype), rows), 1))

    def losses(self, hidden_states: torch.Tensor, codes: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
        """Return the loss `(...)` after hidden states `(..., D)`: of codes `(..., digits)` in nats, or of their vectors
        `(..., D)` as mean squared error."""
        if isinstance(self.head, SymbolHead):
            return self.head.losses(hidden_states, codes)
        return (self.head(hidden_states).float() - vectors.detach().float()).square().mean(-1)
