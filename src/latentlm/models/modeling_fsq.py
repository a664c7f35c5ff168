"""The language model on the codes of an FSQ tokenizer: a decoder-only transformer with embeddings, heads and losses of
codes."""

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import GenerationMixin
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache
from transformers.utils.import_utils import is_tracing

from .block_causal_head import CausalLMHead
from .block_masks import Mask
from .block_outputs import CausalLMOutput
from .configuration_decoder_only import DecoderOnlyConfig
from .configuration_fsq import FSQConfig, own_fields
from .configuration_fsq_autoencoder import END_CLASS, FSQAutoencoderConfig
from .fsq_embedding import CodeEmbedding, CodeTable, TokenEmbedding
from .modeling_decoder_only import DecoderOnlyModel, DecoderOnlyPreTrainedModel

NUM_SYMBOLS = END_CLASS + 1  # classes of a position: the bytes and the end
UNREACHABLE = torch.finfo(torch.float16).min  # logit of ids beyond the tokenizer; finite in every dtype


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


class FactorisedHead(nn.Module):
    """Output head with one logit for each value of each digit and for each special token. The logit of a token is the
    sum over its digits. Ids beyond the tokenizer, which are neither, are never predicted.

    `weight` and `bias` are those of the linear layer with the same logits, for tools that use them themselves.
    """

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
        return add_columns(nn.functional.linear(hidden_states, self.columns), self.digit_table())

    @property
    def weight(self) -> torch.Tensor | None:
        """The weight `(V, D)` of the linear layer that gives the same logits."""
        return self.digit_table()[:, :-1] @ self.columns

    @property
    def bias(self) -> torch.Tensor | None:
        """The bias `(V,)` of the linear layer that gives the same logits."""
        return self.digit_table()[:, -1]

    def digit_table(self) -> torch.Tensor:
        """Return the table `(V, sum(levels) + specials + 1)` of 1 and 0 that marks the columns whose sum is the logit
        of a token. The last column is added to the logit: [`UNREACHABLE`] for ids beyond the tokenizer, else 0. The
        table is stored until the codes change."""
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
        rank = ((codes < 0).long().cumsum(0) - 1).unsqueeze(1)
        beyond = (~coded & (rank >= len(special))) * UNREACHABLE
        return torch.cat((digits, (rank == special) & ~coded, beyond), dim=1).to(device, dtype)


def add_columns(scores: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Return the logits `(..., N)` whose columns among scores `(..., W)` a table `(N, W + 1)` marks; its last column is
    added to them."""
    return nn.functional.linear(scores, table[:, :-1], table[:, -1])


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

    @property
    def bias(self) -> None:
        """None, as the weight."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return logits `(..., V)`, float32, of hidden states `(..., D)`."""
        scores = nn.functional.linear(hidden_states, self.columns)
        log_p = scores.new_zeros(*scores.shape[:-1], 1, dtype=torch.float32)  # log-probability of the root
        for digits, parents in self.code_table(self.beside[0].codes, self.columns):
            log_p = log_p[..., parents] + log_softmax_by(add_columns(scores, digits), parents, log_p.shape[-1])
        return log_p

    def build_tree(self, device: torch.device, dtype: torch.dtype) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Compute the tree of codes, whose last level has the tokens as its nodes. A token without a code is a node of
        its own on every level.

        Returns:
            For each quantizer, a table `(nodes, columns + 1)`, as that of [`digit_table`], that marks the columns whose
            sum is the logit of a node, and the parents of the nodes on the level before, `(nodes,)`, int64.
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
            own[sum(fsq.levels) :] = start == 0  # other tokens are alternatives to the coarse codes
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

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, *args: Any, **kwargs: Any
    ) -> nn.Embedding:
        """Resize the embeddings as everywhere in transformers, and the table of codes.

        Raises:
            ValueError: if the size changes and `head` is not `"tied"`, because the logits of other heads are those of
                existing codes or spellings.
        """
        model = self.base_model
        assert isinstance(model, FSQModel)
        if self.config.head != "tied":
            size = self.config.vocab_size if new_num_tokens is None else new_num_tokens
            if pad_to_multiple_of is not None:
                size = -(-size // pad_to_multiple_of) * pad_to_multiple_of
            if size == self.config.vocab_size:  # where transformers would look at the weight of any head
                return model.embed_tokens
            raise ValueError(
                f"`head` {self.config.head!r} has logits of "
                + {"decoder": "spellings"}.get(self.config.head, "digits")
                + f", none for tokens that are added: the size would be {size}, but `vocab_size` "
                f"{self.config.vocab_size} must stay."
            )
        embedding = super().resize_token_embeddings(new_num_tokens, pad_to_multiple_of, *args, **kwargs)
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
        self.train()

    @property
    def embedding(self) -> CodeEmbedding:
        return self.model.code_embedding

    def train(self, mode: bool = True) -> "FSQForCausalLM":
        """Switch between training and evaluation as everywhere in torch. The parts of the autoencoder that the
        configuration does not train are frozen here: loading a checkpoint unfreezes everything, but ends with
        `eval()`."""
        autoencoder = self.embedding.autoencoder
        if autoencoder is not None and not self.config.joint:
            for name, part in autoencoder.named_children():
                if name != "decoder" or not self.config.train_decoder:
                    part.requires_grad_(False)
        return super().train(mode)

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
