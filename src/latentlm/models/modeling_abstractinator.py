"""Abstractinator: a pyramid of autoencoders over bytes, and a language model on its top codes.

Going up, each level cuts its symbols into segments and turns each into a code. Going down, each level's expander
predicts its symbols one by one, from those before and from memory rows: the true codes of the segments before, and for
the current segment the prediction that the model above makes before the segment is known. The distribution of the bytes
is thus a proper one. The original design comes from github.com/OilProducts/abstractinator.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers import GenerationMixin
from transformers import initialization as init
from transformers.modeling_utils import slice_logits_to_keep
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults

from .abstractinator_base import (
    AbstractinatorCache,
    AbstractinatorCausalLMOutput,
    AbstractinatorModelOutput,
    DocumentSizes,
    Pyramid,
    Rows,
    check_shape,
    make_rows,
    mask_of_padding,
    read_sizes,
)
from .abstractinator_level import AbstractinatorLevel, Alphabet, Compressed
from .abstractinator_likelihood import AbstractinatorLikelihood
from .abstractinator_losses import IGNORED, AbstractinatorLosses
from .abstractinator_top import TopModel
from .block_masks import PACKED_CACHE
from .block_positions import check_context, packs_documents
from .block_pretrained import TrainedByOthers, TransformerPreTrainedModel, pop_shift_labels
from .block_quantization import Quantized, ScaledLinear, in_backward, prefix_keys
from .block_ragged import Documents
from .block_refusals import refuse_embeddings
from .configuration_abstractinator import AbstractinatorConfig
from .generation_abstractinator import AbstractinatorGeneration


class AbstractinatorPreTrainedModel(TransformerPreTrainedModel):
    """Base class with flags and initialisation."""

    config: AbstractinatorConfig
    _no_split_modules = ["PreNormLayer"]
    _can_compile_fullgraph = False  # the number of segments is known only when they are cut

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, ScaledLinear):
            init.normal_(module.weight, mean=0.0, std=module.in_features**-0.5)

    @property
    def num_residual_projections(self) -> int:
        return 2 * self.config.num_hidden_layers


class AbstractinatorModel(AbstractinatorPreTrainedModel):
    """The levels and the top model, over whole rows or one symbol at a time."""

    levels: Sequence[AbstractinatorLevel]
    top: TopModel | None

    def __init__(self, config: AbstractinatorConfig):
        super().__init__(config)
        levels = config.level_configs
        alphabets = [Alphabet(config.vocab_size, config.vocab_size, 1, config.byte_code_dim)]
        alphabets += [Alphabet.above(level) for level in levels[:-1]]
        parts = enumerate(zip(levels, alphabets, strict=True))
        modules = [AbstractinatorLevel(config, level, alphabet, i == 0) for i, (level, alphabet) in parts]
        self.levels = nn.ModuleList(modules)  # pyright: ignore[reportAttributeAccessIssue]  # knows no type of modules
        self.top = TopModel(config) if config.num_top_layers else None
        if self.top is None:
            self.unknown = nn.Embedding(1, config.hidden_size)  # all that is known of a segment to come
        self.gradient_checkpointing = False
        self.post_init()
        self.freeze()

    def get_input_embeddings(self) -> nn.Module:
        return self.levels[0].input_embedding.table

    def set_input_embeddings(self, value: nn.Module) -> None:
        assert isinstance(value, nn.Embedding)
        self.levels[0].input_embedding.table = value

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Embedding:
        """As everywhere in transformers, for every part that has a row per symbol of the first level: up to three
        embeddings and two heads."""
        level = self.levels[0]
        owners = [level.entropy_model.embedding]
        if not level.level_config.shares_trunk:
            owners += [level.compressor_embedding, level.embedding]
        for owner in owners:
            owner.table = self._get_resized_embeddings(owner.table, new_num_tokens, pad_to_multiple_of, mean_resizing)
            owner.num_ids = owner.table.num_embeddings
        size = level.input_embedding.num_ids
        for owner in (level.entropy_model, level):
            if hasattr(owner, "head"):
                owner.head.resize(lambda layer: self._get_resized_lm_head(layer, size, mean_resizing=mean_resizing))
        self.config.vocab_size = size
        self.vocab_size = size  # as transformers writes it
        level.alphabet = replace(level.alphabet, num_ids=size, num_codes=size)
        return level.input_embedding.table

    def freeze(self) -> None:
        """Freeze what the configuration says: entropy models, and whole levels."""
        for module in self.frozen_parts():
            module.requires_grad_(False)

    def frozen_parts(self) -> Iterator[nn.Module]:
        """Yield the parts that are not trained."""
        yield from self.levels[: self.config.num_left_alone]
        if self.config.freeze_entropy:
            for level in self.levels:
                yield level.entropy_model

    def train(self, mode: bool = True) -> "AbstractinatorModel":
        super().train(mode)
        for module in self.frozen_parts():
            module.train(False)
        return self

    def update(self) -> None:
        """Move codebooks and adapted deltas by the statistics of the training forwards since the last optimizer step,
        in all processes. A step of a torch optimizer that holds the levels' parameters calls this; call it yourself
        after each step of any other optimizer."""
        for level in self.levels:
            level.update()

    def code_parameters(self) -> Iterator[nn.Parameter]:
        """Yield the parameters that make codes: those of all parts between symbols and quantized vectors."""
        for level in self.levels:
            for name in ("compressor_embedding", "begin", "compressor", "pooling", "quantizer"):
                if hasattr(level, name):
                    yield from getattr(level, name).parameters()

    # ---- Whole rows ----

    @merge_with_config_defaults
    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor,  # (B, T)
        attention_mask: torch.Tensor | None = None,  # (B, T_seen), 1 where an id is real
        position_ids: torch.LongTensor | None = None,  # (B, T), restarting at 0 for each packed document
        past_key_values: AbstractinatorCache | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> AbstractinatorModelOutput:
        """
        Raises:
            ValueError: if the batch is wider than `max_position_embeddings`, or a packed document longer.
        """
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if past_key_values is not None and past_key_values.seen:
            states = self.continued(past_key_values, input_ids, attention_mask, position_ids)
            return AbstractinatorModelOutput(last_hidden_state=states, past_key_values=past_key_values)
        attention_mask = mask_of_padding(attention_mask, output_hidden_states)
        rows, pyramid, cache = self.begun(input_ids, attention_mask, position_ids, past_key_values, use_cache)
        return AbstractinatorModelOutput(
            last_hidden_state=rows.from_rows(pyramid.states[0]),
            past_key_values=cache,
            hidden_states=tuple(map(rows.from_rows, pyramid.hidden_states)) if output_hidden_states else None,
        )

    def begun(
        self,
        input_ids: torch.Tensor,  # (B, T)
        attention_mask: torch.Tensor | None,  # (B, T)
        position_ids: torch.Tensor | None,  # (B, T)
        cache: AbstractinatorCache | None,  # empty
        use_cache: bool | None,
        document_sizes: DocumentSizes | None = None,
        **options: Any,  # of `read_rows`
    ) -> tuple[Rows, Pyramid, AbstractinatorCache | None]:
        """Read whole rows: return the result of [`read`], and the cache filled with it. A cache is made if one is asked
        for and no documents are packed, since nobody continues these."""
        rows = make_rows(input_ids, attention_mask, position_ids, self.config.max_position_embeddings, document_sizes)
        if rows.num_documents > len(input_ids):
            if cache is not None:
                raise ValueError(PACKED_CACHE)
        elif cache is None and use_cache:
            cache = AbstractinatorCache()
        pyramid = self.read_rows(rows, begins=cache is not None, **options)
        if cache is not None:
            self.fill_cache(cache, pyramid)
            cache.seen = input_ids.shape[1]
        return rows, pyramid, cache

    def continued(
        self,
        cache: AbstractinatorCache,
        input_ids: torch.Tensor,  # (B, T)
        attention_mask: torch.Tensor | None,  # (B, T_seen)
        position_ids: torch.Tensor | None,  # (B, T)
    ) -> torch.Tensor:
        """Continue from a cache: return the states `(B, T, D)` of T more ids of each row."""
        if packs_documents(position_ids, attention_mask, cache):
            raise ValueError(PACKED_CACHE)
        length = input_ids.shape[1]
        check_context(cache.seen + length, self.config.max_position_embeddings)
        cache.leave_inference_mode()
        real = torch.ones_like(input_ids) if attention_mask is None else attention_mask[:, -length:]
        check_shape("attention_mask[:, -T:]", real, input_ids)
        states = [self.step(cache, ids, now) for ids, now in zip(input_ids.unbind(1), real.unbind(1), strict=True)]
        cache.seen += length
        return torch.stack(states, 1)

    def read(
        self,
        input_ids: torch.Tensor,  # (B, T)
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        known: bool = False,
    ) -> tuple[Rows, Pyramid]:
        """Lay the batch out as rows, and compute the pyramid above them; with `known` also the expanders' states given
        true codes."""
        rows = make_rows(input_ids, attention_mask, position_ids, self.config.max_position_embeddings)
        return rows, self.read_rows(rows, known)

    def read_rows(self, rows: Rows, known: bool = False, train_codes: bool = True, begins: bool = False) -> Pyramid:
        """Compute the pyramid above rows; `begins` is that of [`compress_rows`]."""
        gathers = self.training and torch.is_grad_enabled() and not in_backward()
        levels = self.compress_rows(rows.ids, rows.lengths, prefix_keys(rows.ids) if gathers else None, begins)
        if not train_codes:
            for compressed in levels:
                compressed.quantized = compressed.quantized.with_zero_gradient()
        return self.expand_rows(levels, known)

    def compress_rows(
        self, ids: torch.Tensor, lengths: torch.Tensor, keys: torch.Tensor | None = None, begins: bool = False
    ) -> list[Compressed]:
        """Compute every level's segments and codes of rows of ids `(R, L)`, from the bytes up. With keys `(R, L)`
        levels gather the statistics that move their codebooks. `begins` says whether levels above the first begin in
        empty rows too, for a cache of them; not where statistics are gathered, in which empty rows take no part."""
        begins = begins and keys is None
        symbols, vectors, closes = ids.unsqueeze(-1), None, self.ends_text(ids)
        levels: list[Compressed] = []
        for level in self.levels:
            if levels:
                below = levels[-1]
                closes = below.segments.ending(closes, below.vectors.shape[1])
                symbols, vectors, lengths, keys = level.symbols_of(below, begins)
                closes = nn.functional.pad(closes, (1, 0))
            levels.append(level.compress(symbols, vectors, lengths, closes, keys))
        return levels

    @property
    def end_ids(self) -> list[int]:
        """The ids that end a text."""
        ends = self.config.eos_token_id
        return [ends] if isinstance(ends, int) else list(ends or [])

    def ends_text(self, ids: torch.Tensor) -> torch.Tensor:
        """Return whether ids are the end of a text."""
        is_end = torch.zeros_like(ids, dtype=torch.bool)
        for end in self.end_ids:
            is_end = is_end | (ids == end)
        return is_end

    def mask_of_rows(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor | None:
        """Return which ids are not padding: rows of a data set come without a mask, and may be padded. A padding id
        that also begins or ends texts is padding only in a run at the end of a row, whose first may be the text's
        end."""
        pad = self.config.pad_token_id
        if attention_mask is not None or pad is None:
            return attention_mask
        real = input_ids != pad
        if pad in (self.config.bos_token_id, *self.end_ids):
            real = real.flip(1).cumsum(1).flip(1) > 0
            real = nn.functional.pad(real[:, :-1], (1, 0), value=True)
        return real

    def expand_rows(self, levels: list[Compressed], known: bool = False) -> Pyramid:
        """Expand from the top codes down to the states that predict the bytes."""
        pasts = [level.code_rows(c.quantized.vectors) for level, c in zip(self.levels, levels, strict=True)]
        top = None if self.top is None else self.top(pasts[-1])
        states, top_items, costs = (None, [], []) if top is None else (top.states, top.pairs, top.penalties)
        known_of_levels: list[torch.Tensor] = []
        pyramid = Pyramid(levels, states, top_items, [], [], known_of_levels if known else None, [], [], [costs])
        for i in reversed(range(len(levels))):
            level, compressed, past = self.levels[i], levels[i], pasts[i]
            inputs, index = level.expander_inputs(compressed), compressed.segments.index
            current = self.current_rows(i, states, past)
            pyramid.currents.insert(0, current)
            if known:  # both in one call
                current = torch.cat((current, nn.functional.pad(past, (0, 0, 0, 1))))
                inputs, past, index = (value.repeat(2, *[1] * (value.ndim - 1)) for value in (inputs, past, index))
            states, items, inputs, costs = level.expand(inputs, (past, current), index)
            if known:
                states, known_states = states.chunk(2)
                items = [(key.chunk(2)[0], value.chunk(2)[0]) for key, value in items]
                inputs = [value.chunk(2)[0] for value in inputs]
                costs = [None if value is None else value.chunk(2)[0] for value in costs]
                known_of_levels.insert(0, known_states)
            pyramid.states.insert(0, states)
            pyramid.items.insert(0, items)
            pyramid.penalties.insert(0, costs)
            if i == 0:
                pyramid.hidden_states = [*inputs, states]
        return pyramid

    def current_rows(self, i: int, states: torch.Tensor | None, past: torch.Tensor) -> torch.Tensor:
        """Predict the memory row of each segment of level i, `(R, S + 1, D)`, from the states of the part above it."""
        if states is None:
            places = torch.zeros(len(past), past.shape[1] + 1, dtype=torch.long, device=past.device)
            return self.unknown(places).to(past.dtype)
        above: Any = self.top if i == len(self.levels) - 1 else self.levels[i + 1]
        return above.to_row(states)

    # ---- One symbol at a time ----

    def new_cache(self, cache: AbstractinatorCache, num_rows: int, like: torch.Tensor) -> None:
        """Fill a cache with rows that have seen nothing, in the dtype and on the device of `like`."""
        cache.levels = [level.new_cache(num_rows, like) for level in self.levels]
        cache.top = None if self.top is None else self.top.stack.new_cache(num_rows, like)
        for level in cache.levels:
            for stack in (level.entropy, level.compressor, level.expander):
                stack.compile_options = cache.compile_options
        if cache.top is not None:
            cache.top.compile_options = cache.compile_options

    @torch.no_grad()
    def fill_cache(self, cache: AbstractinatorCache, pyramid: Pyramid) -> None:
        """Store the results of a forward over whole rows in a cache, as if its symbols had come one at a time."""
        lengths = pyramid.levels[0].segments.lengths
        self.new_cache(cache, len(lengths), pyramid.states[0])
        parts = zip(self.levels, cache.levels, pyramid.levels, pyramid.items, pyramid.currents, strict=True)
        for level, state, compressed, items, current in parts:
            level.fill_cache(state, compressed, lengths)
            level.expander.fill_cache(state.expander, items, lengths)
            closed = compressed.segments.closed(lengths)
            past = level.code_rows(compressed.quantized.vectors)
            level.expander.fill_memory(state.expander, past, current, closed)
            lengths = closed + 1  # with the begin of the level above, which does not know the open segment
        if self.top is not None and cache.top is not None:
            self.top.stack.fill_cache(cache.top, pyramid.top_items, lengths)

    @torch.no_grad()
    def step(self, cache: AbstractinatorCache, ids: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        """Return the state `(B, D)` after one more id of each row `(B,)`; 0 where the id is padding."""
        real = real.bool()
        states = self.advance(cache, 0, real, ids.unsqueeze(1), None, self.ends_text(ids))
        return states.where(real.unsqueeze(1), 0)

    def advance(
        self,
        cache: AbstractinatorCache,
        i: int,
        active: torch.Tensor,  # (R,), bool
        symbols: torch.Tensor,  # (R, digits)
        vectors: torch.Tensor | None,  # (R, D)
        closes: torch.Tensor,  # (R,)
    ) -> torch.Tensor:
        """Give level i its next symbol in the active rows. Return the states `(R, D)` from which its head predicts the
        symbol after; in other rows they mean nothing."""
        level, state = self.levels[i], cache.levels[i]
        fresh = state.opens
        opens = level.notice(state, active, symbols, closes)
        level.pool(state, active, vectors, fresh)
        # The one value of a symbol that is read: no row closes a segment at most symbols, and then all that is above,
        # the greater part of the work, is skipped.
        if opens.any():
            pooled, quantized = level.close(state, opens)
            row = level.code_rows(quantized.vectors)
            above = self.advance_above(cache, i, opens, pooled, quantized, row, closes)
            current = self.current_rows(i, None if above is None else above.unsqueeze(1), row[:, None])[:, 0]
            level.expander.open_row(state.expander, opens, current, row)
        return level.expand_last(state, active)

    def advance_above(
        self,
        cache: AbstractinatorCache,
        i: int,
        active: torch.Tensor,
        pooled: torch.Tensor,
        quantized: Quantized,
        row: torch.Tensor,
        closes: torch.Tensor,
    ) -> torch.Tensor | None:
        """Give the part above level i the codes of closed segments, and return its states `(R, D)`."""
        if i + 1 < len(self.levels):
            return self.advance(cache, i + 1, active, quantized.codes.clamp(min=0), pooled, closes)
        if self.top is None or cache.top is None:
            return None
        return self.top.stack.step(cache.top, active, row)


class AbstractinatorForCausalLM(
    TrainedByOthers,
    AbstractinatorPreTrainedModel,
    AbstractinatorLikelihood,
    AbstractinatorLosses,
    AbstractinatorGeneration,
    GenerationMixin,
):
    """[`AbstractinatorModel`] as a causal language model of bytes: the next byte, both likelihoods, and generation."""

    def __init__(self, config: AbstractinatorConfig):
        super().__init__(config)
        self.model = AbstractinatorModel(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        return self.model.levels[0].head.out[0]

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.model.levels[0].head.out[0] = new_embeddings

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        """As [`AbstractinatorModel.resize_token_embeddings`]."""
        embedding = self.model.resize_token_embeddings(*args, **kwargs)
        self.vocab_size = self.config.vocab_size
        return embedding

    @property
    def further_losses(self) -> list[str]:
        used = {
            "reconstruction_loss": self.config.reconstruction_loss_weight > 0,
            "vq_loss": any(level.quantizer in ("vq", "rvq") for level in self.config.level_configs),
            "entropy_loss": True,
            "code_lm_loss": self.model.top is not None,
        }
        return [name for name, is_used in used.items() if is_used] + self.config.mask_losses

    def training_statistics(self) -> dict[str, float]:
        """Return values that the trainer logs: the deltas that follow a target length."""
        levels = enumerate(self.model.levels, 1)
        return {f"level_{i}_delta": level.delta.item() for i, level in levels if hasattr(level, "delta")}

    def pack(
        self,
        input_ids: torch.Tensor,  # (B, T)
        attention_mask: torch.Tensor | None = None,  # (B, T)
        position_ids: torch.Tensor | None = None,  # (B, T)
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Return the sizes of packed documents, which a forward with labels takes as its argument `document_sizes`.
        They are computed from a batch on the CPU, so that an accelerator need not wait for them. Other parts of the
        batch are ignored."""
        if position_ids is None:
            return {}
        mask = self.model.mask_of_rows(input_ids, attention_mask)
        real = torch.ones_like(input_ids) if mask is None else mask
        return {"document_sizes": read_sizes(Documents.of(real.bool(), position_ids), position_ids)}

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,  # (B, T)
        attention_mask: torch.Tensor | None = None,  # (B, T_seen)
        position_ids: torch.LongTensor | None = None,  # (B, T), restarting at 0 for each packed document
        past_key_values: AbstractinatorCache | None = None,
        labels: torch.LongTensor | None = None,  # (B, T), -100 is ignored; position t is scored against label t + 1
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        num_items_in_batch: torch.Tensor | int | None = None,
        lm_loss_scale: torch.Tensor | float = 1.0,  # times `lm_loss_weight`: rises in training
        training_step: torch.Tensor | None = None,  # scalar; where scheduled loss weights are, at their end if None
        train_codes: bool = True,  # whether what reads codes trains what makes them
        code_statistics: bool = False,  # whether to find, beside losses, what the codes are worth
        document_sizes: DocumentSizes | None = None,  # with labels, as [`pack`] finds them; else they are read
        output_hidden_states: bool | None = None,
        **kwargs: Any,  # also shift_labels (B, T), instead of labels: already moved by one
    ) -> AbstractinatorCausalLMOutput:
        """
        Raises:
            ValueError: if the batch is wider than `max_position_embeddings`, or a packed document longer, or if
                training goes on from a cache.
        """
        head = self.model.levels[0].head
        refuse_embeddings(kwargs, "segments are found in the symbols, which three embeddings read")
        if input_ids is None:
            raise ValueError("`input_ids` is missing.")
        AbstractinatorCache.check(past_key_values)
        check_shape("labels", labels, input_ids)
        shift_labels = pop_shift_labels(kwargs, labels)
        if shift_labels is None:
            outputs = self.model(
                input_ids,
                attention_mask,
                position_ids,
                past_key_values,
                use_cache=use_cache,
                output_hidden_states=output_hidden_states,
                return_dict=True,
            )
            states = slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep)
            logits = head.digit_logits(states, None, 0)
            return AbstractinatorCausalLMOutput(
                logits=logits, past_key_values=outputs.past_key_values, hidden_states=outputs.hidden_states
            )
        if past_key_values is not None and past_key_values.seen:
            if self.training:
                raise ValueError(
                    f"`labels` came with `past_key_values` of {past_key_values.seen} ids in training, but steps with a "
                    "cache have no gradient: give whole rows and no cache, or call `model.eval()` first."
                )
            states = self.model.continued(past_key_values, input_ids, attention_mask, position_ids)
            logits = head.digit_logits(states, None, 0)
            loss = self.lm_loss(logits, shift_labels, num_items_in_batch)
            logits = slice_logits_to_keep(logits, logits_to_keep)
            return AbstractinatorCausalLMOutput(loss, logits, past_key_values, lm_loss=loss)
        attention_mask = self.model.mask_of_rows(input_ids, attention_mask)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        rows, pyramid, cache = self.model.begun(
            input_ids,
            mask_of_padding(attention_mask, output_hidden_states),
            position_ids,
            past_key_values,
            use_cache,
            document_sizes,
            known=not self.training or self.config.reconstruction_loss_weight > 0,
            train_codes=train_codes,
        )
        logits = head.digit_logits(rows.from_rows(pyramid.states[0]), None, 0)
        nats = self.code_nats(pyramid)
        losses = self.losses(
            rows, pyramid, nats, logits, shift_labels, num_items_in_batch, lm_loss_scale, training_step
        )
        if code_statistics:
            scored = rows.to_rows(shift_labels, IGNORED).ne(IGNORED)
            losses["code_statistics"] = self.code_statistics(pyramid, nats, scored)
        return AbstractinatorCausalLMOutput(
            logits=slice_logits_to_keep(logits, logits_to_keep),
            past_key_values=cache,
            hidden_states=tuple(map(rows.from_rows, pyramid.hidden_states)) if output_hidden_states else None,
            **losses,
        )


__all__ = ["AbstractinatorForCausalLM", "AbstractinatorModel", "AbstractinatorPreTrainedModel"]
