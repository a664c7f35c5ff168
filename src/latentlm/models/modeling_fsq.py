"""The language model on the codes of an FSQ tokenizer: a decoder-only transformer with embeddings, heads and losses of
codes."""

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import GenerationMixin
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache
from transformers.utils.import_utils import is_tracing

from .block_causal_head import CausalLMHead
from .block_fsq import FSQ
from .block_layers import is_plain
from .block_masks import Mask
from .block_outputs import CausalLMOutput
from .configuration_decoder_only import DecoderOnlyConfig
from .configuration_fsq import FSQConfig, own_fields
from .configuration_fsq_autoencoder import END_CLASS, FSQAutoencoderConfig
from .modeling_decoder_only import DecoderOnlyModel, DecoderOnlyPreTrainedModel
from .modeling_fsq_autoencoder import FSQAutoencoderModel

NUM_SYMBOLS = END_CLASS + 1  # classes of a position: the bytes and the end


@dataclass
class FSQCausalLMOutput(CausalLMOutput):
    """Output of the language model on codes, which adds two losses to [`CausalLMOutput`].

    Args:
        byte_loss: scalar, unweighted: cross-entropy in nats *per token* of the bytes and the end of the next token,
            which the autoencoder's decoder predicts from the hidden state.
        reconstruction_loss: scalar, unweighted: the same cross-entropy for each token's own bytes, predicted from its
            code.
    """

    byte_loss: torch.Tensor | None = None
    reconstruction_loss: torch.Tensor | None = None


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


class FactorisedHead(nn.Module):
    """Output head with one logit for each value of each digit and for each special token. The logit of a token is the
    sum over its digits.

    `weight` is that of the linear layer with the same logits, for tools that multiply by it themselves.
    """

    bias = None

    def __init__(self, config: FSQConfig, code_embedding: CodeEmbedding):
        super().__init__()
        self.beside = (code_embedding,)  # a tuple, so that it is a module of the model alone
        self.std = config.initializer_range
        width = sum(code_embedding.fsq.levels) + config.num_special_tokens
        self.columns = nn.Parameter(torch.empty(width, config.hidden_size))
        self.code_table = CodeTable(self.build_digit_table)

    def initialize_parameters(self) -> None:
        init.normal_(self.columns, std=self.std)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(nn.functional.linear(hidden_states, self.columns), self.digit_table())

    @property
    def weight(self) -> torch.Tensor | None:
        """The weight `(V, D)` of the linear layer that gives the same logits."""
        return self.digit_table() @ self.columns

    def digit_table(self) -> torch.Tensor:
        """Return the table `(V, sum(levels) + specials)` of 1 and 0 that marks the columns whose sum is the logit of a
        token. It is stored until the codes change."""
        return self.code_table(self.beside[0].codes, self.columns)

    def build_digit_table(self, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
        """Compute the table that [`digit_table`] returns."""
        codes, fsq = self.beside[0].codes, self.beside[0].fsq
        offsets = fsq.level_counts.cumsum(0) - fsq.level_counts
        columns = fsq.digits(codes.clamp(min=0)) + offsets  # (V, n)
        coded = (codes >= 0).unsqueeze(1)
        width = sum(fsq.levels)
        digits = torch.zeros(len(codes), width, device=codes.device).scatter(1, columns, 1.0) * coded
        special = torch.arange(len(self.columns) - width, device=codes.device)
        rank = (codes < 0).long().cumsum(0) - 1
        return torch.cat((digits, (rank.unsqueeze(1) == special) & ~coded), dim=1).to(device, dtype)


class HierarchicalHead(FactorisedHead):
    """Output head that predicts the codes of a residual quantization one after the other, from coarse to fine.

    Each code is predicted among the codes that tokens have after the same earlier codes. The logit of a code is the sum
    over its digits, as in [`FactorisedHead`], and the softmax is over the codes after the same earlier codes. Therefore

        p(token | h) = prod_i p(i-th code | earlier codes, h)

    sums to 1 over the tokens. The logit of a token is the logarithm of this probability. Special tokens are
    alternatives to the coarse codes.
    """

    def __init__(self, config: FSQConfig, code_embedding: CodeEmbedding):
        super().__init__(config, code_embedding)
        self.code_table = CodeTable(self.build_tree)

    @property
    def weight(self) -> None:
        """None, because the logits are not a product with a matrix."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return logits `(..., V)`, float32, of hidden states `(..., D)`."""
        scores = nn.functional.linear(hidden_states, self.columns)
        log_p = scores.new_zeros(*scores.shape[:-1], 1, dtype=torch.float32)  # log-probability of the root
        for digits, parents in self.code_table(self.beside[0].codes, self.columns):
            log_p = log_p[..., parents] + log_softmax_by(nn.functional.linear(scores, digits), parents, log_p.shape[-1])
        return log_p

    def build_tree(self, device: torch.device, dtype: torch.dtype) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Compute the tree of codes, whose last level has the tokens as its nodes. A token without a code is a node of
        its own on every level.

        Returns:
            For each quantizer, a table `(nodes, columns)` of 1 and 0 that marks the columns whose sum is the logit of a
            node, and the parents of the nodes on the level before, `(nodes,)`, int64.
        """
        codes, fsq = self.beside[0].codes, self.beside[0].fsq
        whole, tokens = self.build_digit_table(codes.device, dtype), torch.arange(len(codes), device=codes.device)
        tree, parents = [], torch.zeros_like(codes)
        for start in range(0, len(fsq.levels), fsq.num_dimensions):
            end = start + fsq.num_dimensions
            nodes = tokens
            if end < len(fsq.levels):  # the remainder of an index has its first digits
                prefix = (codes % math.prod(fsq.levels[:end])).where(codes >= 0, -1 - tokens)
                nodes = prefix.unique(return_inverse=True)[1]
            token = nodes.new_zeros(int(nodes.max()) + 1).scatter(0, nodes, tokens)  # one token of each node
            own = torch.zeros_like(whole[0])
            own[sum(fsq.levels[:start]) : sum(fsq.levels[:end])] = 1
            own[sum(fsq.levels) :] = start == 0  # special tokens are alternatives to the coarse codes
            tree.append(((whole[token] * own).to(device), parents[token].to(device)))
            parents = nodes
        return tree


def log_softmax_by(logits: torch.Tensor, groups: torch.Tensor, count: int) -> torch.Tensor:
    """Return the log-softmax of logits `(..., N)`, float32, over the logits of the same group. `groups` `(N,)` are
    integers from 0 to `count` - 1."""
    logits = logits.float()
    index = groups.expand_as(logits)
    shape = (*logits.shape[:-1], count)
    top = logits.detach().new_full(shape, -torch.inf).scatter_reduce(-1, index, logits.detach(), "amax")
    total = logits.new_zeros(shape).scatter_add(-1, index, (logits - top.gather(-1, index)).exp())
    return logits - (total.log() + top).gather(-1, index)


class DecoderHead(nn.Module):
    """The output head of the original design, in which the autoencoder's decoder spells the next token from the hidden
    state.

    A linear layer and the decoder give each position t of a chunk a distribution p_t over the 256 bytes and the end.
    These distributions are independent. A byte string s of up to C bytes therefore has the probability

        prod_t p_t(s_t) · p_|s|(end)

    and the probabilities of all strings sum to 1. The logit of a token is the log-probability of its spelling, and the
    softmax normalises over the vocabulary. Special tokens, which have no spelling, have logits of a linear layer.
    """

    weight = bias = None  # the logits are not a product with a matrix

    def __init__(self, config: FSQConfig, code_embedding: CodeEmbedding):
        super().__init__()
        self.beside = (code_embedding,)  # a tuple, so that it is a module of the model alone
        self.to_vector = nn.Linear(config.hidden_size, config.autoencoder_config.hidden_size)
        self.special = nn.Linear(config.hidden_size, config.num_special_tokens)
        self.special.is_output = True  # pyright: ignore[reportArgumentType]
        self.code_table = CodeTable(self.build_spelling_table)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return logits `(..., V)`, float32, of hidden states `(..., D)`."""
        embedding, flat = self.beside[0], hidden_states.flatten(0, -2)
        places, columns, unreachable = self.code_table(embedding.codes)
        spelled = embedding.network.decoder(self.to_vector(flat))  # (N, C, 257)
        scores = spelled.float().log_softmax(-1).flatten(1).T.contiguous()  # (C * 257, N)
        logits = nn.functional.embedding_bag(places, scores, mode="sum", padding_idx=END_CLASS).T  # (N, V)
        logits = logits + self.special(flat).float() @ columns
        logits = logits.masked_fill(unreachable, torch.finfo(logits.dtype).min)
        return logits.unflatten(0, hidden_states.shape[:-1])

    def build_spelling_table(self, device: torch.device, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
        """Compute how the log-probabilities of symbols and the special logits become the logits of tokens.

        Returns:
            The places `(V, C)`, int64, of each token's bytes and end among the C * 257 symbols. Unused places are 256,
            which is the end before the first byte.
            The columns `(specials, V)` of 1 and 0, which assign special logits to tokens.
            The tokens that have neither bytes nor a special logit, `(V,)`, bool.
        """
        embedding = self.beside[0]
        targets = embedding.targets(torch.arange(len(embedding.lengths), device=embedding.lengths.device))
        offsets = torch.arange(targets.shape[1], device=targets.device) * NUM_SYMBOLS
        places = (targets + offsets).where(targets >= 0, END_CLASS)
        without = embedding.lengths == 0
        special = torch.arange(self.special.out_features, device=without.device)
        columns = (without.cumsum(0) - 1 == special.unsqueeze(1)) & without
        return places.to(device), columns.to(device, dtype), (without & ~columns.any(0)).to(device)


HEADS = {"factorised": FactorisedHead, "hierarchical": HierarchicalHead, "decoder": DecoderHead}


class FSQPreTrainedModel(DecoderOnlyPreTrainedModel):
    """Base class of the language model on codes, with its configuration and the resizing of embeddings."""

    config: FSQConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    def resize_token_embeddings(self, new_num_tokens: int | None = None, *args: Any, **kwargs: Any) -> nn.Embedding:
        """Resize the embeddings as everywhere in transformers, and the table of codes.

        Raises:
            ValueError: if the size changes and `head` is not `"tied"`, because the logits of other heads are those of
                existing codes or spellings.
        """
        if self.config.head != "tied" and new_num_tokens not in (None, self.config.vocab_size):
            raise ValueError(
                f"`head` {self.config.head!r} has logits of "
                + {"decoder": "spellings"}.get(self.config.head, "digits")
                + ", none for tokens that are added."
            )
        embedding = super().resize_token_embeddings(new_num_tokens, *args, **kwargs)
        model = self.base_model
        assert isinstance(model, FSQModel)
        code_embedding = model.code_embedding
        code_embedding.resize_table(embedding.num_embeddings)
        self.config.num_special_tokens = int((code_embedding.codes < 0).sum())
        return embedding


class FSQModel(FSQPreTrainedModel, DecoderOnlyModel):
    """The decoder-only transformer on codes, without a head."""

    config: FSQConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    def build_embedding(self, config: DecoderOnlyConfig) -> nn.Embedding:
        code_embedding = CodeEmbedding(self.config)
        # This order matters: PEFT takes the first parameter with a row per token as the embedding.
        self.embed_tokens = TokenEmbedding(self.config, code_embedding)
        self.code_embedding = code_embedding
        return self.embed_tokens

    def embed_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.code_embedding(input_ids, self.embed_tokens(input_ids, rows_only=True))

    def embed(
        self,
        input_ids: torch.LongTensor | None,
        attention_mask: torch.Tensor | None,
        position_ids: torch.LongTensor | None,
        past_key_values: Cache | None,
        inputs_embeds: torch.Tensor | None,
        use_cache: bool | None,
    ) -> tuple[torch.Tensor, Mask, torch.Tensor, Cache | None]:
        continues = type(past_key_values) is DynamicCache and inputs_embeds is None and not torch.is_grad_enabled()
        if continues and input_ids is not None and input_ids.shape[1] == 1:
            added = self.added_rows(input_ids, past_key_values)
            if added is not None:
                rows = self.embed_tokens(input_ids, rows_only=True)
                input_ids, inputs_embeds = None, rows + nn.functional.embedding(input_ids, added)
        return super().embed(input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, use_cache)

    def added_rows(self, input_ids: torch.Tensor, cache: Any) -> torch.Tensor | None:
        """Return the code embeddings of all tokens, `(V, D)`, or None if they have to be computed for each token. The
        table belongs to the cache, because weights do not change while a text is continued."""
        if torch.is_autocast_enabled(input_ids.device.type):
            return None
        if not hasattr(cache, "added_rows"):
            if is_tracing(input_ids):
                return None
            cache.added_rows = self.code_embedding.added_rows()
        return cache.added_rows

    @torch.no_grad()
    def load_tokenizer(self, tokenizer: Any, missing_keys: Collection[str] | None = None) -> None:
        """Copy the codes and bytes of an `FSQTokenizer`, and the weights of its network if the model includes the
        autoencoder.

        Args:
            tokenizer: the tokenizer.
            missing_keys: names of the weights that a checkpoint lacked (`output_loading_info` of `from_pretrained`),
                None for a new model. An autoencoder that the checkpoint has may have been trained, so its weights are
                not replaced.

        Raises:
            ValueError: if codes or network of the tokenizer do not match the configuration, or if the model already has
                the table of a tokenizer with other pieces, to which its rows and heads belong.
        """
        chunks, lengths = (torch.as_tensor(part) for part in tokenizer.piece_table())
        self.check_network(tokenizer)
        self.code_embedding.check_spellings(chunks, lengths)
        self.code_embedding.set_table(torch.as_tensor(tokenizer.codes), chunks, lengths)
        if self.config.has_autoencoder and (
            missing_keys is None or any(".autoencoder." in key for key in missing_keys)
        ):
            self.code_embedding.network.load_state_dict(tokenizer.autoencoder.state_dict())

    def check_network(self, tokenizer: Any) -> None:
        """Raise ValueError if the codes of a tokenizer, or its network if the model includes the autoencoder, do not
        match the configuration."""
        own, fields = {"levels": list(self.code_embedding.fsq.levels)}, {"levels": list(tokenizer.levels)}
        if self.config.has_autoencoder and tokenizer.autoencoder_config is not None:
            own |= own_fields(self.config.autoencoder_config)
            fields |= own_fields(FSQAutoencoderConfig(**tokenizer.autoencoder_config))
        for name, value in fields.items():
            if own[name] != value:
                raise ValueError(
                    f"the tokenizer's autoencoder has `{name}` {value}, that of the model {own[name]}: give the "
                    "configuration the tokenizer's `autoencoder_config`, or take the tokenizer that the model had"
                )


class FSQForCausalLM(CausalLMHead, FSQPreTrainedModel, GenerationMixin):
    """[`FSQModel`] with a head that predicts the next token by its id, by the digits of its code or by its bytes."""

    output_class = FSQCausalLMOutput

    def __init__(self, config: FSQConfig):
        super().__init__(config)
        self.model = FSQModel(config)
        if config.head != "tied":
            self._tied_weights_keys = {}
            self.lm_head = HEADS[config.head](config, self.embedding)
        else:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.byte_loss_weight:
            self.byte_head = nn.Linear(config.hidden_size, config.autoencoder_config.hidden_size)
        self.post_init()
        self.freeze()

    @property
    def embedding(self) -> CodeEmbedding:
        return self.model.code_embedding

    def freeze(self) -> None:
        """Freeze the parts of the autoencoder that the configuration does not train."""
        autoencoder = self.embedding.autoencoder
        if autoencoder is not None and not self.config.joint:
            autoencoder.requires_grad_(False)
            autoencoder.decoder.requires_grad_(self.config.train_decoder)

    def load_tokenizer(self, tokenizer: Any, missing_keys: Collection[str] | None = None) -> None:
        """Copy codes, bytes and network from an `FSQTokenizer`, as [`FSQModel.load_tokenizer`] does."""
        self.model.load_tokenizer(tokenizer, missing_keys)

    @property
    def further_losses(self) -> list[str]:
        own = {"byte_loss": self.config.byte_loss_weight, "reconstruction_loss": self.config.joint}
        return [*super().further_losses, *(name for name, used in own.items() if used)]

    def extra_losses(self, outputs: Any, training_step: torch.Tensor | None, **inputs: Any) -> dict[str, Any]:
        losses = super().extra_losses(outputs, training_step, **inputs)
        input_ids, shift_labels = inputs["input_ids"], inputs["shift_labels"]
        if self.config.byte_loss_weight:
            vectors = self.byte_head(outputs.last_hidden_state).flatten(0, 1)
            nats = self.embedding.spelling_loss(vectors, shift_labels.clamp(min=0).flatten())
            losses["byte_loss"] = (nats.view_as(shift_labels), self.config.byte_loss_weight)
        if self.config.joint and input_ids is not None:
            autoencoder, tokens = self.embedding.network, input_ids.flatten()
            vectors = autoencoder.from_code(self.embedding.code_values(tokens).to(autoencoder.dtype))
            nats = self.embedding.spelling_loss(vectors, tokens)
            losses["reconstruction_loss"] = (nats.view_as(input_ids), self.config.reconstruction_loss_weight)
        return losses


__all__ = ["FSQForCausalLM", "FSQModel", "FSQPreTrainedModel"]
