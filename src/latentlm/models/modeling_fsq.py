"""The language model on the codes of an FSQ tokenizer: the decoder-only transformer with embeddings of codes."""

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

NUM_SYMBOLS = END_CLASS + 1  # of a position: the bytes and the end


@dataclass
class FSQCausalLMOutput(CausalLMOutput):
    """[`CausalLMOutput`] of the language model on codes.

    Args:
        byte_loss: scalar, unweighted: cross-entropy in nats *per token* of the next token's bytes and their end,
            spelled from the hidden state by the autoencoder's decoder.
        reconstruction_loss: scalar, unweighted: the same, of each token's own bytes, spelled from its code.
    """

    byte_loss: torch.Tensor | None = None
    reconstruction_loss: torch.Tensor | None = None


class CodeTable:
    """A tensor computed from the codes of tokens, and stored until these change, so that it is not recomputed for every
    generated token.

    Args:
        build: computes it, from the device and the dtype that are wanted.
    """

    def __init__(self, build: Callable[[torch.device, torch.dtype], Any]):
        self.build = build
        self.built: tuple[torch.Tensor, tuple[Any, ...], Any] | None = None  # codes, their version, what is made

    def __call__(self, codes: torch.Tensor, like: torch.Tensor | None = None) -> Any:
        """Return what `build` computes for `codes`, on the device and in the dtype of `like`; by default on the codes'
        device, in float32."""
        place = (codes.device, torch.float32) if like is None else (like.device, like.dtype)
        if is_tracing(codes) or codes.is_inference():  # neither has a version to look at
            return self.build(*place)
        version = (codes._version, *place)
        if self.built is None or self.built[0] is not codes or self.built[1] != version:
            with torch.inference_mode(False), torch.no_grad():
                self.built = (codes, version, self.build(*place))
        return self.built[2]


class CodeEmbedding(nn.Module):
    """Embeddings of the codes of tokens: a small network of the code's values, added to the token embeddings so that
    neighbouring codes (similar spellings) start near each other. V is the size of the vocabulary, n the number of
    dimensions of a code, C the number of bytes of a chunk.

    Buffers, all parts of a checkpoint: `codes` `(V,)`, code index of each token, -1 without one; `chunks` `(V, C)`,
    uint8, and `lengths` `(V,)`, the bytes that it stands for.
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
        self.made: tuple[list[torch.Tensor], torch.Tensor] | None = None  # what `added_rows` keeps
        for name, values in self.default_table(config.vocab_size).items():
            self.register_buffer(name, values)

    def default_table(self, size: int, device: torch.device | None = None) -> dict[str, torch.Tensor]:
        """Return the table of a model without tokenizer: the code of a token is its id, and its text the one byte
        `id mod 256`."""
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
        if self.code_network is not None:  # keeps the variance of the values
            first = self.code_network[0]
            assert isinstance(first, nn.Linear)
            init.normal_(first.weight, std=first.in_features**-0.5)

    @property
    def network(self) -> FSQAutoencoderModel:
        """The autoencoder, where the configuration has made it a part of the model."""
        assert self.autoencoder is not None
        return self.autoencoder

    @torch.no_grad()
    def set_table(self, codes: torch.Tensor, chunks: torch.Tensor, lengths: torch.Tensor) -> None:
        """Take the codes and bytes of a tokenizer; ids beyond it get neither."""
        self.codes.fill_(-1)
        self.chunks.zero_()
        self.lengths.zero_()
        for buffer, values in ((self.codes, codes), (self.chunks, chunks), (self.lengths, lengths)):
            buffer[: len(values)] = values.to(buffer)

    def check_spellings(self, chunks: torch.Tensor, lengths: torch.Tensor) -> None:
        """Raise ValueError if there are more tokens than rows, or if the model already has a table in which ids have
        other bytes."""
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
        """Follow a change of the vocabulary's size: tokens that are added have neither code nor text."""
        added = max(size - len(self.codes), 0)
        self.codes = nn.functional.pad(self.codes[:size], (0, added), value=-1)
        self.chunks = nn.functional.pad(self.chunks[:size], (0, 0, 0, added))
        self.lengths = nn.functional.pad(self.lengths[:size], (0, added))

    def code_values(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Return the values `(..., n)`, float32, of the tokens' codes; in joint training from the encoder, with a
        gradient."""
        if self.joint:
            return self.network.fsq(self.network.encoder(*self.spelling(input_ids)))[0]
        return self.code_table(self.codes)[input_ids]

    def build_value_table(self, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
        """Return the values `(V, n)` of all codes; tokens without one have those of code 0."""
        return self.fsq.values(self.fsq.digits(self.codes.clamp(min=0))).to(device, dtype)

    def spelling(self, input_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the bytes `(N, C)` and lengths `(N,)` of N tokens."""
        return self.chunks[input_ids].long(), self.lengths[input_ids]

    @torch.no_grad()
    def encode_tokens(self) -> torch.Tensor:
        """Return the code index that the encoder gives each token that has a code, `(V - specials,)`, computed in
        batches."""
        batches = (self.codes >= 0).nonzero().squeeze(1).split(4096)
        return torch.cat([self.network.encode(*self.spelling(batch)) for batch in batches])

    def forward(self, input_ids: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Return the embeddings of tokens `(..., D)` plus those of their codes."""
        if self.code_network is None:
            return rows
        return rows + self.added(input_ids.flatten(), rows.dtype).view_as(rows)

    def added(self, tokens: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Return the code embeddings of N tokens, `(N, D)`."""
        assert self.code_network is not None
        embedded = self.code_network(self.code_values(tokens).to(dtype))
        return embedded.masked_fill((self.codes[tokens] < 0).unsqueeze(-1), 0)

    @torch.no_grad()
    def added_rows(self) -> torch.Tensor | None:
        """Return the code embeddings of all tokens, `(V, D)`, as a lookup table. The table is stored until the codes or
        the network differ from those it was made from, compared value by value; None where the network is not plain."""
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
        """Switch between training and evaluation. In training no table is stored, since the network changes."""
        if mode:
            self.made = None
        return super().train(mode)

    def spelling_loss(self, vectors: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Return the nats `(N,)` of spelling N tokens from vectors `(N, D_latent)`; 0 for tokens without bytes."""
        logits = self.network.decoder(vectors).transpose(1, 2).float()
        return nn.functional.cross_entropy(logits, self.targets(tokens), reduction="none").sum(-1)

    def targets(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the targets of spelling N tokens, `(N, C)`, int64: their bytes, the end (256), then -100; only -100
        for tokens without bytes."""
        chunks, lengths = self.spelling(tokens)
        positions = torch.arange(chunks.shape[1], device=chunks.device)
        targets = chunks.where(positions < lengths.unsqueeze(1), END_CLASS)
        return targets.masked_fill((positions > lengths.unsqueeze(1)) | (lengths == 0).unsqueeze(1), -100)


def is_same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors have the same values, in the same place and dtype."""
    return one.device == other.device and one.dtype == other.dtype and torch.equal(one, other)


class TokenEmbedding(nn.Embedding):
    """The embedding of tokens. A call returns token embeddings with what codes add, the inputs of the model.

    The model asks for `rows_only` and adds the rest itself: PEFT puts layers in place of this one that look rows up
    without calling it.
    """

    def __init__(self, config: FSQConfig, code_embedding: CodeEmbedding):
        super().__init__(config.vocab_size, config.hidden_size)
        self.beside = (code_embedding,)  # a tuple: it is a module of the model, not of this one

    def forward(self, input: torch.Tensor, rows_only: bool = False) -> torch.Tensor:
        rows = super().forward(input)
        return rows if rows_only else self.beside[0](input, rows)


class FactorisedHead(nn.Module):
    """One logit for each value of each digit and for each special token; a token's logit is the sum over its digits.

    `weight` is that of the linear layer that would give the same logits, for tools that multiply by it themselves.
    """

    bias = None

    def __init__(self, config: FSQConfig, code_embedding: CodeEmbedding):
        super().__init__()
        self.beside = (code_embedding,)  # a tuple: it is a module of the model, not of this one
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
        """Return the table `(V, sum(levels) + specials)` of which columns add up to a token's logit; 1 or 0. It is kept
        until the codes change."""
        return self.code_table(self.beside[0].codes, self.columns)

    def build_digit_table(self, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
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
    """Predicts the codes of a residual quantization one after the other: first among the coarse codes that tokens have,
    then among the finer ones that tokens have after that. A code's logit is the sum over its digits, as in
    [`FactorisedHead`], and the softmax is over the codes that follow the same earlier ones, so that

        p(token | h) = prod_i p(i-th code | earlier codes, h)

    sums to 1 over the tokens. A token's logit is the logarithm of that. Special tokens are alternatives to the coarse
    codes.
    """

    def __init__(self, config: FSQConfig, code_embedding: CodeEmbedding):
        super().__init__(config, code_embedding)
        self.code_table = CodeTable(self.build_tree)

    @property
    def weight(self) -> None:
        """None: the logits are no product with a matrix."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return logits `(..., V)`, float32, of hidden states `(..., D)`."""
        scores = nn.functional.linear(hidden_states, self.columns)
        log_p = scores.new_zeros(*scores.shape[:-1], 1, dtype=torch.float32)  # of the root
        for digits, parents in self.code_table(self.beside[0].codes, self.columns):
            log_p = log_p[..., parents] + log_softmax_by(nn.functional.linear(scores, digits), parents, log_p.shape[-1])
        return log_p

    def build_tree(self, device: torch.device, dtype: torch.dtype) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """The tree of codes, a level for each quantizer: which columns add up to a node's logit `(nodes, columns)`, and
        its parent on the level before `(nodes,)`. The last level's nodes are the tokens; one without a code is a node
        of its own on each."""
        codes, fsq = self.beside[0].codes, self.beside[0].fsq
        whole, tokens = self.build_digit_table(codes.device, dtype), torch.arange(len(codes), device=codes.device)
        tree, parents = [], torch.zeros_like(codes)
        for start in range(0, len(fsq.levels), fsq.num_dimensions):
            end = start + fsq.num_dimensions
            nodes = tokens
            if end < len(fsq.levels):  # the first digits of an index are its remainder
                prefix = (codes % math.prod(fsq.levels[:end])).where(codes >= 0, -1 - tokens)
                nodes = prefix.unique(return_inverse=True)[1]
            token = nodes.new_zeros(int(nodes.max()) + 1).scatter(0, nodes, tokens)  # one of each node
            own = torch.zeros_like(whole[0])
            own[sum(fsq.levels[:start]) : sum(fsq.levels[:end])] = 1
            own[sum(fsq.levels) :] = start == 0  # special tokens stand beside the coarse codes
            tree.append(((whole[token] * own).to(device), parents[token].to(device)))
            parents = nodes
        return tree


def log_softmax_by(logits: torch.Tensor, groups: torch.Tensor, count: int) -> torch.Tensor:
    """Return the log softmax of logits `(..., N)`, float32, over those of the same group `(N,)`, from 0 to `count` -
    1."""
    logits = logits.float()
    index = groups.expand_as(logits)
    shape = (*logits.shape[:-1], count)
    top = logits.detach().new_full(shape, -torch.inf).scatter_reduce(-1, index, logits.detach(), "amax")
    total = logits.new_zeros(shape).scatter_add(-1, index, (logits - top.gather(-1, index)).exp())
    return logits - (total.log() + top).gather(-1, index)


class DecoderHead(nn.Module):
    """The output path of the original design: the autoencoder's decoder spells the next token from the hidden state.

    A linear layer and the decoder give each position t of a chunk a distribution p_t over the 256 bytes and the end.
    These are independent, so a byte string s of up to C bytes has the probability prod_t p_t(s_t) · p_|s|(end), and the
    probabilities of all strings sum to 1. A token's logit is the log-probability of its spelling; the softmax then
    normalises over the vocabulary. Special tokens, which have no spelling, have a logit of their own.
    """

    weight = bias = None  # logits are no product with a matrix

    def __init__(self, config: FSQConfig, code_embedding: CodeEmbedding):
        super().__init__()
        self.beside = (code_embedding,)  # a tuple: it is a module of the model, not of this one
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
        """Of each token the places of its bytes and end among C * 257 symbols `(V, C)`, 256, an end before the first
        byte, where there is none; which token has which special logit `(specials, V)`; and which has neither `(V,)`."""
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
    """Base class of the language model on codes: its configuration, and resizing."""

    config: FSQConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    def resize_token_embeddings(self, new_num_tokens: int | None = None, *args: Any, **kwargs: Any) -> nn.Embedding:
        """Resize as everywhere in transformers.

        Raises:
            ValueError: with a head other than the tied one, whose logits are those of existing codes or spellings.
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
    """The decoder-only transformer without head, on codes."""

    config: FSQConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    def build_embedding(self, config: DecoderOnlyConfig) -> nn.Embedding:
        code_embedding = CodeEmbedding(self.config)
        # The rows first: PEFT takes the first parameter with a row per token for the embedding.
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
        """Return what codes add to every row of the embedding. The table belongs to the cache: while texts are
        continued, weights do not change. None where it has to be computed."""
        if torch.is_autocast_enabled(input_ids.device.type):
            return None
        if not hasattr(cache, "added_rows"):
            if is_tracing(input_ids):
                return None
            cache.added_rows = self.code_embedding.added_rows()
        return cache.added_rows

    @torch.no_grad()
    def load_tokenizer(self, tokenizer: Any, missing_keys: Collection[str] | None = None) -> None:
        """Take codes and bytes, and, where the model holds the autoencoder, its weights from an `FSQTokenizer`.

        Args:
            missing_keys: of a model from a checkpoint, the weights that it lacked (`output_loading_info` of
                `from_pretrained`): an autoencoder that is not among them may have been trained, and stays.

        Raises:
            ValueError: if its codes or its network are not of this configuration; or if the model has the table of a
                tokenizer already, and that had other pieces: rows and heads are those of their ids.
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
        """Raise ValueError if codes, or the network where the model holds it, are not those of the configuration."""
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
    """[`FSQModel`] with a head that predicts the next token, tied to the embeddings, of code digits or of bytes."""

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
        """Freeze those parts of the autoencoder that this configuration does not train."""
        autoencoder = self.embedding.autoencoder
        if autoencoder is not None and not self.config.joint:
            autoencoder.requires_grad_(False)
            autoencoder.decoder.requires_grad_(self.config.train_decoder)

    def load_tokenizer(self, tokenizer: Any, missing_keys: Collection[str] | None = None) -> None:
        """Take codes, bytes and autoencoder from an `FSQTokenizer`: see [`FSQModel.load_tokenizer`]."""
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
