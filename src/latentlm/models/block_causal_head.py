"""What the causal language models share: the beginning of a forward, the backbone, and the head with its named
losses."""

from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache, DynamicCache
from transformers.loss.loss_utils import ForCausalLMLoss
from transformers.masking_utils import create_causal_mask
from transformers.modeling_utils import slice_logits_to_keep
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.import_utils import is_torchdynamo_compiling
from transformers.utils.output_capturing import capture_outputs

from .block_attention import Attention, rotary_table
from .block_chunked_loss import LARGE_VOCABULARY, can_chunk, chunked_cross_entropy, number_of_items
from .block_laid_out import LaidOutLayers
from .block_layers import make_norm
from .block_learned_dropout import make_shared_mask_attention, mask_loss_weight, mean_penalties
from .block_masks import Mask, causal_mask
from .block_ngram_embedding import make_ngram_embedding, previous_ids
from .block_outputs import CausalLMOutput, CausalModelOutput
from .block_positions import check_context, resolve_position_ids
from .block_pretrained import TrainedByOthers, TransformerPreTrainedModel, pop_shift_labels
from .block_refusals import check_filled_cache


class CausalPreTrainedModel(TransformerPreTrainedModel):
    """Base class of causal language models with a cache of transformers: how every forward begins."""

    def embed(
        self,
        input_ids: torch.LongTensor | None,  # (B, T)
        attention_mask: torch.Tensor | None,
        position_ids: torch.LongTensor | None,
        past_key_values: Cache | None,
        inputs_embeds: torch.Tensor | None,  # (B, T, D)
        use_cache: bool | None,
    ) -> tuple[torch.Tensor, Mask, torch.Tensor, Cache | None]:
        """Begin a forward: return token embeddings `(B, T, D)`, the causal mask, positions `(B or 1, T)`, and the cache
        to fill.

        Packed documents get no cache, since several documents are not continued at once.

        Raises:
            ValueError: if not exactly one of `input_ids` and `inputs_embeds` is given, the context is too long, or
                packed documents come with a cache.
        """
        check_filled_cache(past_key_values, self.config)
        if input_ids is not None and inputs_embeds is None:
            inputs_embeds = self.embed_ids(input_ids)
        elif input_ids is not None or inputs_embeds is None:
            raise ValueError("Give exactly one of `input_ids` and `inputs_embeds`.")
        mask, packed = causal_mask(
            self.config, inputs_embeds, attention_mask, past_key_values, position_ids, look=not self.training
        )
        positions = resolve_position_ids(
            inputs_embeds, attention_mask, position_ids, past_key_values, self.config.max_position_embeddings
        )
        if use_cache and past_key_values is None and not packed:
            past_key_values = DynamicCache(config=self.config)
        return inputs_embeds, mask, positions, past_key_values

    def embed_ids(self, input_ids: torch.LongTensor) -> torch.Tensor:
        """Return token embeddings `(B, T, D)`."""
        return self.get_input_embeddings()(input_ids)


class PositionSubtraction(nn.Module):
    """Positional embedding subtraction: h - position_embedding(t + 1), optionally followed by a LayerNorm."""

    def __init__(self, config: Any):
        super().__init__()
        self.norm = make_norm(config) if config.position_subtraction == "layer_norm" else nn.Identity()

    def forward(self, hidden_states: torch.Tensor, next_positions: torch.Tensor) -> torch.Tensor:
        return self.norm(hidden_states - next_positions)


class CausalModel(CausalPreTrainedModel):
    """Base class of causal models: embeddings of tokens, n-grams and positions, the layers of a subclass, the final
    norm and the position subtraction.

    In the cache the attentions of the layers come first (`config.attention_configs`), then those that decide
    LearnedDropout's masks, then the ids that n-grams need.
    """

    output_class: type[CausalModelOutput] = CausalModelOutput

    def __init__(self, config: Any):
        super().__init__(config)
        self.embed_tokens = self.build_embedding(config)
        self.embed_ngrams: Any = make_ngram_embedding(config)
        self.id_cache_idx = len(config.per_layer_config) - 1  # where n-grams have their ids
        if config.num_position_embeddings:
            self.embed_positions = nn.Embedding(config.num_position_embeddings, config.hidden_size)
        if config.position_embedding_type == "rotary":
            self.rotary = rotary_table(config)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.mask_attention = make_shared_mask_attention(config, len(config.attention_configs))
        self.build_layers(config)
        self.norm = make_norm(config)
        if config.position_subtraction != "none":
            self.position_subtraction = PositionSubtraction(config)
        self.gradient_checkpointing = False
        self.post_init()

    def build_embedding(self, config: Any) -> nn.Embedding:
        """Make the module that embeds token ids as `(B, T, D)`."""
        return nn.Embedding(config.vocab_size, config.hidden_size)

    def build_layers(self, config: Any) -> None:
        """Make the layers that [`run_layers`] runs."""
        raise NotImplementedError

    def add_ngrams(
        self,
        embeddings: torch.Tensor,  # (B, T, D)
        input_ids: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        positions: torch.Tensor,
        past_key_values: Cache | None,
    ) -> torch.Tensor:
        """Add the embeddings of n-grams. Padding and embeddings that were given have no ids: nothing is added to them,
        and n-grams of later ids do not include them."""
        ids, previous = input_ids, None
        if ids is None:
            ids = torch.full(embeddings.shape[:2], -1, device=embeddings.device)
        elif attention_mask is not None and attention_mask.ndim == 2:
            ids = ids.where(attention_mask[:, -ids.shape[1] :].bool(), -1)
        if past_key_values is not None:
            previous = previous_ids(ids, past_key_values, self.id_cache_idx, self.config, embeddings.dtype)
        return embeddings if input_ids is None else embeddings + self.embed_ngrams(ids, positions, previous)

    def run_layers(
        self,
        embeddings: torch.Tensor,  # (B, T, D)
        positions: torch.Tensor,  # (B or 1, T)
        shared_attention: torch.Tensor | None,  # (B, T, M), of LearnedDropout
        **shared: Any,  # what every layer gets
    ) -> tuple[torch.Tensor, list[torch.Tensor | None], dict[str, Any]]:
        """Run the layers: return the last hidden states, the penalties of each layer's mask, and further fields of the
        output."""
        raise NotImplementedError

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,  # (B, T)
        attention_mask: torch.Tensor | None = None,  # (B, T_seen), 1 where a token is real
        position_ids: torch.LongTensor | None = None,  # (B, T), restarting at 0 for each packed document
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,  # (B, T, D)
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> CausalModelOutput:
        embeddings, mask, positions, past_key_values = self.embed(
            input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, use_cache
        )
        if self.embed_ngrams is not None:
            embeddings = self.add_ngrams(embeddings, input_ids, attention_mask, positions, past_key_values)
        shared: dict[str, Any] = {"mask": mask, "past_key_values": past_key_values, **kwargs}
        rotary = None
        if self.config.position_embedding_type == "learned":
            embeddings = embeddings + self.embed_positions(positions)
        else:
            rotary = self.rotary(embeddings, positions)
        embeddings = self.dropout(embeddings)
        shared_attention = None if self.mask_attention is None else self.mask_attention(embeddings, **shared)[0]
        laid_out = LaidOutLayers.of(past_key_values, embeddings, mask, kwargs)
        hidden_states, penalties, fields = self.run_layers(
            embeddings, positions, shared_attention, rotary=rotary, laid_out=laid_out, **shared
        )
        hidden_states = self.norm(hidden_states)
        if self.config.position_subtraction != "none":
            next_positions = self.embed_positions(positions + 1).to(hidden_states.device)
            hidden_states = self.position_subtraction(hidden_states, next_positions)
        return self.output_class(
            last_hidden_state=hidden_states,
            past_key_values=past_key_values,
            mask_penalties=mean_penalties(penalties),
            **fields,
        )


class CausalLMHead(TrainedByOthers):
    """The forward of every `...ForCausalLM`. It goes first among its bases, before the `PreTrainedModel`. The class has
    `model` and `lm_head`; its further losses come from `extra_losses`.

    Attributes:
        returns_training_logits: whether forwards with labels also return logits in training with a large vocabulary,
            at the cost of their memory and time.
    """

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _fsdp_plan = {"lm_head": "keep_full_weight"}
    output_class: type[CausalLMOutput] = CausalLMOutput
    returns_training_logits: bool = False
    config: Any
    model: Any
    lm_head: Any
    generation_config: Any

    @property
    def further_losses(self) -> list[str]:
        return self.config.mask_losses

    def takes_chunks(self, device: torch.device) -> bool:
        """Whether a forward with labels takes the loss in chunks and returns no logits. It does in training, with a
        large vocabulary and a plain head, unless `returns_training_logits` is set. Compiled graphs have whole
        logits."""
        model: Any = self  # a PreTrainedModel, which has a loss function
        return (
            self.training
            and torch.is_grad_enabled()
            and not self.returns_training_logits
            and self.config.vocab_size >= LARGE_VOCABULARY
            and model.loss_function is ForCausalLMLoss
            and can_chunk(self.lm_head, device)
            and not is_torchdynamo_compiling()
        )

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,  # (B, T)
        attention_mask: torch.Tensor | None = None,  # (B, T_seen), 1 where a token is real
        position_ids: torch.LongTensor | None = None,  # (B, T), restarting at 0 for each packed document
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,  # (B, T, D)
        labels: torch.LongTensor | None = None,  # (B, T), -100 is ignored; position t is scored against label t + 1
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        num_items_in_batch: torch.Tensor | int | None = None,
        training_step: torch.Tensor | None = None,  # scalar; where scheduled loss weights are, at their end if None
        **kwargs,  # also shift_labels (B, T), instead of labels: already moved by one
    ) -> CausalLMOutput:
        shift_labels = pop_shift_labels(kwargs, labels)
        if shift_labels is not None and use_cache is None:
            use_cache = False  # nobody continues from a training batch
        # Asked before the forward, which fills the cache.
        continued = shift_labels is not None and past_key_values is not None and past_key_values.get_seq_length() > 0
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        hidden_states, losses, logits = outputs.last_hidden_state, {}, None
        whole = isinstance(logits_to_keep, int) and logits_to_keep == 0
        if shift_labels is None or not whole or not self.takes_chunks(hidden_states.device):
            logits = self.compute_logits(slice_logits_to_keep(hidden_states, logits_to_keep))  # (B, T, V)
        if shift_labels is not None:
            if logits is None:
                loss = chunked_cross_entropy(self.lm_head, hidden_states, shift_labels, num_items_in_batch)
            else:
                loss = self.loss_function(
                    logits, labels, self.config.vocab_size, num_items_in_batch, shift_labels=shift_labels
                )
            losses["loss"] = losses["lm_loss"] = loss
            if training_step is not None:
                training_step = training_step.to(loss.device)
            token_mask = None
            if attention_mask is not None and attention_mask.ndim == 2:
                token_mask = attention_mask[:, -shift_labels.shape[1] :]
            terms = self.extra_losses(
                outputs,
                input_ids=input_ids,
                token_mask=token_mask,
                position_ids=position_ids,
                shift_labels=shift_labels,
                training_step=training_step,
                continued=continued,
            )
            for name, (values_BT, weight) in terms.items():
                losses[name] = mean_over_predicted(values_BT.to(loss.device), shift_labels, num_items_in_batch)
                if self.training:
                    losses["loss"] = losses["loss"] + weight * losses[name]
        shared = {name: value for name, value in outputs.items() if name in self.output_class.__dataclass_fields__}
        return self.output_class(logits=logits, **shared, **losses)

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return logits `(..., V)` of final hidden states `(..., D)`."""
        return self.lm_head(hidden_states)

    def generate_batch(self, inputs, generation_config=None, *args, **kwargs):
        """Check, then run transformers' continuous batching, which would only put the following errors into its
        results.

        Raises:
            ValueError: if a context would be too long, an attention keeps more values than the cache of that method, or
                the model has n-grams.
        """
        config, limits = self.config, self.generation_config if generation_config is None else generation_config
        if config.ngram_embedding is not None:
            raise ValueError(
                f"`ngram_embedding` is {config.ngram_embedding}, but the cache of `generate_batch` holds no ids that "
                "n-grams could be made of. Use `generate`."
            )
        new_tokens = kwargs.get("max_new_tokens") or limits.max_new_tokens or 1
        check_context(max(map(len, inputs), default=0) + new_tokens, config.max_position_embeddings)
        attentions = [module for module in self.modules() if isinstance(module, Attention)]
        needed = max(heads * size for attention in attentions for heads, size in attention.pair_shapes)
        room = config.hidden_size * config.num_key_value_heads // config.num_attention_heads
        if needed > room:
            raise ValueError(
                f"`learned_dropout` is {config.learned_dropout!r}, `key_value_latent_size` "
                f"{config.key_value_latent_size}, `num_key_value_heads` {config.num_key_value_heads}, `hidden_size` "
                f"{config.hidden_size}: an attention keeps {needed} values of a token, but the cache of "
                f"`generate_batch` has {room} in every layer. Use `generate`."
            )
        parent: Any = super()  # GenerationMixin
        return parent.generate_batch(inputs, generation_config, *args, **kwargs)

    @staticmethod
    def create_masks_for_generate(config, inputs_embeds, attention_mask, past_key_values=None, cache=None, **kwargs):
        """Make one mask for all layers, though the configuration has `layer_types`. The cache comes under one of two
        names, as [`TakesCache`] explains."""
        cache = past_key_values if cache is None else cache
        return create_causal_mask(config, inputs_embeds, attention_mask, cache)

    def extra_losses(
        self, outputs: CausalModelOutput, training_step: torch.Tensor | None, **inputs: torch.Tensor | bool | None
    ) -> dict[str, tuple[torch.Tensor, torch.Tensor | float]]:
        """Return the values `(B, T)` and the weight of every named loss beside `lm_loss`.

        `inputs` are `input_ids` (None where embeddings were given), `token_mask` (1 where a token is real),
        `position_ids` and `shift_labels` (the next tokens), each `(B, T)` or, but for the last, None; and `continued`,
        whether earlier tokens are in a cache.
        """
        penalties = outputs.mask_penalties
        if penalties is None:
            return {}
        return {
            name: (penalties[..., k], mask_loss_weight(self.config, name, training_step, self.training))
            for k, name in enumerate(self.config.mask_losses)
        }


def mean_over_predicted(
    values: torch.Tensor, shift_labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None
) -> torch.Tensor:
    """Return the mean of `values` `(B, T)` over the positions whose next token counts (label not -100). Where
    `num_items_in_batch` is given, return their sum divided by it, so that micro-batches and processes add up to one big
    batch. Labels and their number may lie on another device than the values."""
    predicted = shift_labels.to(values.device).ne(-100)
    return values.masked_fill(~predicted, 0).sum() / number_of_items(predicted, num_items_in_batch)
