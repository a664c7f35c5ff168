"""The embedding of tokens with the codes of an FSQ tokenizer, and the table of these codes and their spellings."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import initialization as init
from transformers.utils.import_utils import is_tracing

from .block_fsq import FSQ
from .block_layers import is_plain
from .configuration_fsq import FSQConfig
from .configuration_fsq_autoencoder import END_CLASS
from .modeling_fsq_autoencoder import FSQAutoencoderModel


class CodeTable:
    """A tensor that is computed from the codes of tokens, and stored until the codes change, so that it is not
    recomputed for every generated token.

    Args:
        build: computes the tensor for a device and a dtype.
    """

    def __init__(self, build: Callable[[torch.device, torch.dtype], Any]):
        self.build = build
        self.built: tuple[torch.Tensor, tuple[Any, ...], Any] | None = None  # codes, version and place, result

    def __call__(self, codes: torch.Tensor, like: torch.Tensor | None = None) -> Any:
        """Return the result of `build` for `codes`, on the device and in the dtype of `like`. Without `like`, these are
        the device of `codes` and float32."""
        place = (codes.device, torch.float32) if like is None else (like.device, like.dtype)
        if is_tracing(codes) or codes.is_inference():  # such tensors have no version
            return self.build(*place)
        version = (codes._version, *place)
        if self.built is None or self.built[0] is not codes or self.built[1] != version:
            with torch.inference_mode(False), torch.no_grad():
                self.built = (codes, version, self.build(*place))
        return self.built[2]


class CodeEmbedding(nn.Module):
    """Embedding of the codes of tokens. A small network maps the values of a code to a vector that is added to the
    token embedding, so that tokens with neighbouring codes (similar spellings) start with similar embeddings.

    V is the size of the vocabulary, n the number of dimensions of a code, and C the number of bytes of a chunk. The
    buffers are parts of a checkpoint.

    Attributes:
        codes: buffer `(V,)`, int64, the code index of each token; -1 for a token without a code.
        chunks: buffer `(V, C)`, uint8, the bytes of each token, with zeros after their end.
        lengths: buffer `(V,)`, int64, the number of bytes of each token; 0 for a token without bytes.
    """

    codes: torch.Tensor
    chunks: torch.Tensor
    lengths: torch.Tensor

    def __init__(self, config: FSQConfig):
        super().__init__()
        autoencoder = config.autoencoder_config
        self.num_coded = config.vocab_size - config.num_special_tokens
        self.max_chunk_bytes = autoencoder.max_chunk_bytes
        self.fsq = FSQ(autoencoder.levels, autoencoder.temperature, num_quantizers=autoencoder.num_quantizers)
        self.code_table = CodeTable(self.build_value_table)
        self.joint = config.joint
        self.autoencoder = FSQAutoencoderModel(autoencoder) if config.has_autoencoder else None
        if config.code_embedding_size:
            self.code_network = nn.Sequential(
                nn.Linear(len(autoencoder.levels), config.code_embedding_size),
                nn.GELU(),
                nn.Linear(config.code_embedding_size, config.hidden_size, bias=False),
            )
        else:
            self.code_network = None
        self.made: tuple[list[torch.Tensor], torch.Tensor] | None = None  # sources and table of `added_rows`
        for name, values in self.default_table(config.vocab_size).items():
            self.register_buffer(name, values)

    def default_table(self, size: int, device: torch.device | None = None) -> dict[str, torch.Tensor]:
        """Return the buffers of a model without a tokenizer. The code of a token is its id, and its text is the one
        byte `id mod 256`."""
        ids = torch.arange(size, device=device)
        coded = ids < self.num_coded
        first = ids.where(coded, 0) % 256
        return {
            "codes": ids.where(coded, -1),
            "chunks": nn.functional.pad(first[:, None], (0, self.max_chunk_bytes - 1)).to(torch.uint8),
            "lengths": coded.long(),
        }

    def initialize_parameters(self) -> None:
        for name, values in self.default_table(len(self.codes), self.codes.device).items():
            init.copy_(getattr(self, name), values)
        if self.code_network is not None:  # preserves the variance of the values
            first = self.code_network[0]
            assert isinstance(first, nn.Linear)
            init.normal_(first.weight, std=first.in_features**-0.5)

    @property
    def network(self) -> FSQAutoencoderModel:
        """The autoencoder of a model that includes it."""
        assert self.autoencoder is not None
        return self.autoencoder

    @torch.no_grad()
    def set_table(self, codes: torch.Tensor, chunks: torch.Tensor, lengths: torch.Tensor) -> None:
        """Copy the codes `(N,)`, bytes `(N, C)` and lengths `(N,)` of the N <= V tokens of a tokenizer. Ids beyond N
        get neither codes nor bytes."""
        self.codes.fill_(-1)
        self.chunks.zero_()
        self.lengths.zero_()
        for buffer, values in ((self.codes, codes), (self.chunks, chunks), (self.lengths, lengths)):
            buffer[: len(values)] = values.to(buffer)

    def check_spellings(self, chunks: torch.Tensor, lengths: torch.Tensor) -> None:
        """Raise ValueError if a tokenizer has more tokens than the model has rows, or if the model already has the
        table of a tokenizer in which ids have other bytes."""
        size = len(self.lengths)
        if len(lengths) > size:
            raise ValueError(f"the tokenizer has {len(lengths):,} tokens, the model only {size:,} rows")
        if all(
            torch.equal(getattr(self, name), new) for name, new in self.default_table(size, self.codes.device).items()
        ):
            return
        others = (self.chunks[: len(lengths)] != chunks.to(self.chunks)).any(1)
        others |= self.lengths[: len(lengths)] != lengths.to(self.lengths)
        count = int(others.sum()) + int((self.lengths[len(lengths) :] > 0).sum())
        if count:
            raise ValueError(
                f"{count:,} of {size:,} ids of the model are other pieces in this tokenizer: take the one that it had, "
                "or start the rows anew, from spellings that are alike"
            )

    def resize_table(self, size: int) -> None:
        """Resize the buffers to a vocabulary of `size` tokens. Added tokens have neither code nor text."""
        added = max(size - len(self.codes), 0)
        self.codes = nn.functional.pad(self.codes[:size], (0, added), value=-1)
        self.chunks = nn.functional.pad(self.chunks[:size], (0, 0, 0, added))
        self.lengths = nn.functional.pad(self.lengths[:size], (0, added))

    def code_values(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Return the values `(..., n)`, float32, of the codes of tokens `(...)`. In joint training the encoder computes
        them, with a gradient."""
        if self.joint:
            return self.network.fsq(self.network.encoder(*self.spelling(input_ids)))[0]
        return self.code_table(self.codes)[input_ids]

    def build_value_table(self, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
        """Return the values `(V, n)` of the codes of all tokens. Tokens without a code have the values of code 0."""
        return self.fsq.values(self.fsq.digits(self.codes.clamp(min=0))).to(device, dtype)

    def spelling(self, input_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the bytes `(N, C)`, int64, and lengths `(N,)` of N tokens."""
        return self.chunks[input_ids].long(), self.lengths[input_ids]

    @torch.no_grad()
    def encode_tokens(self) -> torch.Tensor:
        """Return the code indices `(V - specials,)` that the encoder computes, in batches, for all tokens with a
        code."""
        batches = (self.codes >= 0).nonzero().squeeze(1).split(4096)
        return torch.cat([self.network.encode(*self.spelling(batch)) for batch in batches])

    def forward(self, input_ids: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Return `rows` `(..., D)`, the embeddings of tokens `(...)`, plus the embeddings of their codes."""
        if self.code_network is None:
            return rows
        return rows + self.added(input_ids.flatten(), rows.dtype).view_as(rows)

    def added(self, tokens: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Return the code embeddings `(N, D)` of N tokens, which are 0 for tokens without a code."""
        assert self.code_network is not None
        embedded = self.code_network(self.code_values(tokens).to(dtype))
        return embedded.masked_fill((self.codes[tokens] < 0).unsqueeze(-1), 0)

    @torch.no_grad()
    def added_rows(self) -> torch.Tensor | None:
        """Return the code embeddings of all tokens, `(V, D)`, as a lookup table. It is stored until the codes or the
        weights of the network differ in value from those it was computed from. None is returned in joint training,
        without a network, and where hooks or replaced layers prevent the use of the weights."""
        device = self.codes.device
        network = None if self.joint else self.code_network
        layers = () if network is None else (network[0], network[2])
        seen = any(module._forward_hooks or module._forward_pre_hooks for module in (self, network) if module)
        if seen or not layers or not all(is_plain(layer, device) for layer in layers):
            self.made = None
            return None
        sources = [self.codes, *(parameter for layer in layers for parameter in layer.parameters())]
        if self.made is None or not all(map(is_same, self.made[0], sources)):
            with torch.inference_mode(False):
                batches = torch.arange(len(self.codes), device=device).split(4096)
                rows = torch.cat([self.added(batch, sources[1].dtype) for batch in batches])
                self.made = [source.detach().clone() for source in sources], rows
        return self.made[1]

    def train(self, mode: bool = True) -> "CodeEmbedding":
        """Switch between training and evaluation. No table is stored in training, because the network changes."""
        if mode:
            self.made = None
        return super().train(mode)

    def spelling_loss(self, vectors: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Return the cross-entropy `(N,)`, in nats, of the bytes and end of N tokens, which the decoder predicts from
        vectors `(N, D_latent)`. It is 0 for tokens without bytes."""
        logits = self.network.decoder(vectors).transpose(1, 2).float()
        return nn.functional.cross_entropy(logits, self.targets(tokens), reduction="none").sum(-1)

    def targets(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the targets `(N, C)`, int64, of the decoder for N tokens: their bytes, then the end (256), then -100.
        Tokens without bytes have -100 alone."""
        chunks, lengths = self.spelling(tokens)
        positions = torch.arange(chunks.shape[1], device=chunks.device)
        targets = chunks.where(positions < lengths.unsqueeze(1), END_CLASS)
        return targets.masked_fill((positions > lengths.unsqueeze(1)) | (lengths == 0).unsqueeze(1), -100)


def is_same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Return whether two tensors have the same values, device and dtype."""
    return one.device == other.device and one.dtype == other.dtype and torch.equal(one, other)


class TokenEmbedding(nn.Embedding):
    """The embedding of tokens. A call returns the token embeddings plus those of the codes, which are the inputs of the
    model.

    The model itself passes `rows_only` and adds the code embeddings, because layers of PEFT that replace this one look
    up rows without calling it.
    """

    def __init__(self, config: FSQConfig, code_embedding: CodeEmbedding):
        super().__init__(config.vocab_size, config.hidden_size)
        self.beside = (code_embedding,)  # a tuple, so that it is a module of the model alone

    def forward(self, input: torch.Tensor, rows_only: bool = False) -> torch.Tensor:
        rows = super().forward(input)
        return rows if rows_only else self.beside[0](input, rows)
