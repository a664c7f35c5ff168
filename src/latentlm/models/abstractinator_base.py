"""What the classes of the Abstractinator share: outputs, the cache, and the rows of a batch."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from .abstractinator_level import Compressed, LevelCache
from .block_attention import Pair
from .block_positions import check_context
from .block_ragged import Documents, RaggedRows, bucket
from .block_refusals import WORKS
from .block_row_cache import StackCache


@dataclass
class AbstractinatorModelOutput(BaseModelOutputWithPast):
    """Output of the model without head.

    Args:
        last_hidden_state: `(B, T, D)`, from which the first level's head predicts the next symbol; 0 at padding.
        past_key_values: the cache, if one was used.
        hidden_states: the input of each layer of the first level's expander, and `last_hidden_state`; `(B, T, D)` each.
            None in cached steps.
    """


@dataclass
class AbstractinatorCausalLMOutput(CausalLMOutputWithPast):
    """Output of the language model.

    Every loss is a mean over predicted bytes, or their sum divided by `num_items_in_batch` where that is given. What
    belongs to a segment counts as often as the segment has predicted bytes. Losses are scalars and unweighted, but for
    `loss`.

    Args:
        loss: in training the weighted sum of all terms, in evaluation `lm_loss` alone.
        logits: `(B, T, V)`, a proper distribution of the next symbol.
        past_key_values, hidden_states: as [`AbstractinatorModelOutput`].
        lm_loss: nats of the next symbol, whose segment's code is predicted, not known.
        reconstruction_loss: nats of the next symbol, whose segment's code is known; a mean over levels.
        vq_loss: of the quantizers, the sum over levels.
        entropy_loss: nats of the next symbol for the entropy models, the sum over levels.
        code_lm_loss: nats of the next top code; squared error of its vector with the continuous head.
        mask_entropy_loss, mask_l1_loss: of LearnedDropout's masks, a mean over all modules; None where the weight is 0.
        level_losses: with more than one level, the terms of each, as `level_1_vq_loss` and so on.
        code_statistics: the result of [`AbstractinatorLikelihood.code_statistics`], where it is asked for.
    """

    lm_loss: torch.Tensor | None = None
    reconstruction_loss: torch.Tensor | None = None
    vq_loss: torch.Tensor | None = None
    entropy_loss: torch.Tensor | None = None
    code_lm_loss: torch.Tensor | None = None
    mask_entropy_loss: torch.Tensor | None = None
    mask_l1_loss: torch.Tensor | None = None
    level_losses: dict[str, torch.Tensor] | None = None
    code_statistics: dict[str, torch.Tensor] | None = None


@dataclass
class Pyramid:
    """What the model computes for R rows.

    Attributes:
        levels: from the bytes up.
        top_states: `(R, S + 1, D)` of the top model, from which code s is predicted at s; None without one.
        top_items: of its layers, for a cache.
        states: `(R, T, D)` of each level's expander, whose current memory rows are predicted.
        items: of its layers, for a cache.
        known_states: the same with true codes as current rows; None where nobody asked.
        currents: `(R, S + 1, D)`, the predicted memory rows of each level.
        hidden_states: `(R, T, D)` each, of the first level's expander: the input of each layer, and the last one's
            output.
        penalties: of the layers of each level's expander, as it made `states`, then of those of the top model: the
            penalties of LearnedDropout's masks, `(R, T, K)` or `(R, S + 1, K)` each.
    """

    levels: list[Compressed]
    top_states: torch.Tensor | None
    top_items: list[Pair]
    states: list[torch.Tensor]
    items: list[list[Pair]]
    known_states: list[torch.Tensor] | None
    currents: list[torch.Tensor]
    hidden_states: list[torch.Tensor]
    penalties: list[list[torch.Tensor | None]]


class AbstractinatorCache(Cache):
    """The cache of the Abstractinator, for rows that advance at their own pace. It holds, at each level, the keys of
    windows, the open segment and the rows to look back at, and every code of the top model.

    Attributes:
        levels, top: the caches of the parts; empty before the first forward.
        seen: the number of positions so far, padding included.
        compile_options: arguments of `torch.compile` for steps of a single row; None where they are not compiled.
    """

    def __init__(self, compile_options: dict[str, Any] | None = None) -> None:
        super().__init__(layers=[])
        self.compile_options = compile_options
        self.levels: list[LevelCache] = []
        self.top: StackCache | None = None
        self.seen = 0

    @classmethod
    def check(cls, cache: Cache | None) -> None:
        """Check that a cache is of this class.

        Raises:
            ValueError: if `cache` is one of another kind, as prefix tuning fills it.
        """
        if cache is not None and not isinstance(cache, cls):
            raise ValueError(
                f"`past_key_values` is a {type(cache).__name__}, but the Abstractinator has a cache of its own kind, "
                f"which prefix tuning cannot fill. {WORKS}"
            )

    def __bool__(self) -> bool:
        return True  # also before the first symbol

    def __len__(self) -> int:
        return len(self.levels)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.seen

    def get_max_length(self, layer_idx: int | None = None) -> int:
        return -1

    @property
    def batch_size(self) -> int:
        return len(self.levels[0].opens) if self.levels else -1

    @property
    def is_linear(self) -> list[bool]:
        """Always false: `generate` asks for linear attention, whose states do not tell how many tokens they have
        seen."""
        return [False]

    @property
    def is_compileable(self) -> bool:
        return False

    @property
    def is_croppable(self) -> bool:
        return False

    def reset(self) -> None:
        """Forget all symbols."""
        self.levels, self.top, self.seen = [], None, 0

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Select the rows of `beam_idx`, for beam search."""
        self.levels = [level.select(beam_idx) for level in self.levels]
        self.top = None if self.top is None else self.top.select(beam_idx)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        self.reorder_cache(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.levels:
            rows = torch.arange(self.batch_size, device=self.levels[0].opens.device)
            self.reorder_cache(rows.repeat_interleave(repeats))

    def leave_inference_mode(self) -> None:
        """Replace tensors that were made inside `torch.inference_mode()`, if it has ended: they could not be updated in
        place."""
        if self.levels and self.levels[0].opens.is_inference() and not torch.is_inference_mode_enabled():
            self.batch_repeat_interleave(1)

    def crop(self, max_length: int, *args: Any, **kwargs: Any) -> None:
        """Refuse: closed segments cannot be opened again.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "An Abstractinator's cache cannot be cropped: closed segments are gone. There is no assisted generation."
        )


@dataclass
class Rows:
    """The real symbols of a batch `(B, T)`: a row for each document, aligned to the left.

    Attributes:
        ids: `(R, L)`, int64.
        lengths: `(R,)`, int64.
        ragged: the layout of the batch's positions in the rows; None if nothing moves.
        num_documents: the number of documents; rows after them are empty.
    """

    ids: torch.Tensor
    lengths: torch.Tensor
    ragged: RaggedRows | None
    num_documents: int

    def to_rows(self, values: torch.Tensor, fill: float) -> torch.Tensor:
        """Lay values `(B, T)` out as `(R, L)`."""
        return values if self.ragged is None else self.ragged.to_rows(values, fill)

    def from_rows(self, values: torch.Tensor) -> torch.Tensor:
        """Lay values `(R, L, ...)` out as `(B, T, ...)`, with 0 where a position is not real."""
        return values if self.ragged is None else self.ragged.from_rows(values)


def mask_of_padding(attention_mask: torch.Tensor | None, output_hidden_states: bool | None) -> torch.Tensor | None:
    """Return the mask `(B, T)`, or None where hidden states are asked for and nothing is padded. They are then the very
    tensors that the layers read, of which a caller may want the gradient, and not copies. That is worth a value that
    the host reads."""
    if output_hidden_states and attention_mask is not None and attention_mask.all():
        return None
    return attention_mask


def check_shape(name: str, values: torch.Tensor | None, input_ids: torch.Tensor) -> None:
    """Raise ValueError if values of symbols have another shape than their ids `(B, T)`. None has none."""
    if values is not None and values.shape != input_ids.shape:
        raise ValueError(f"`{name}` has the shape {(*values.shape,)}, but `input_ids` have {(*input_ids.shape,)}.")


DocumentSizes = tuple[int, int, int]
"""Sizes of packed documents: their number, the length of the longest, and the largest of the `position_ids`."""


def read_sizes(documents: Documents, position_ids: torch.Tensor) -> DocumentSizes:
    """Return the sizes of documents; the host waits for them where they are on an accelerator."""
    count, longest, last = torch.stack((documents.total, documents.longest, position_ids.max())).tolist()
    return count, longest, last


def make_rows(
    input_ids: torch.Tensor,  # (B, T)
    attention_mask: torch.Tensor | None,  # (B, T)
    position_ids: torch.Tensor | None,  # (B or 1, T), 0 where a document begins
    max_position_embeddings: int,
    sizes: DocumentSizes | None = None,  # where they are known
) -> Rows:
    """Lay the real symbols of a batch out in rows.

    Raises:
        ValueError: if the batch is wider than `max_position_embeddings`, padding included, as a cache counts positions;
            with `position_ids`, if a document is longer; if the mask has another shape than the ids.
    """
    batch, length = input_ids.shape
    check_shape("attention_mask", attention_mask, input_ids)
    real = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    real = real.bool()
    num_documents = batch
    ragged = None if attention_mask is None else RaggedRows.left_aligned(real)
    if position_ids is None:
        check_context(length, max_position_embeddings)
    else:
        documents = Documents.of(real, position_ids)
        # How many documents there are is in the data alone. A bound would be a row for each symbol.
        num_documents, longest, last = sizes or read_sizes(documents, position_ids)
        check_context(last + 1, max_position_embeddings)
        if num_documents > batch:
            num_rows, row_length = bucket(num_documents, batch * length, 1), bucket(max(longest, 1), length)
            ragged = documents.rows(num_rows, row_length)
    if ragged is None:
        return Rows(input_ids, torch.full((batch,), length, device=input_ids.device), None, batch)
    return Rows(ragged.to_rows(input_ids), ragged.lengths, ragged, num_documents)
