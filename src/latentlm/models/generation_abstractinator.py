"""Generation with the Abstractinator: the cache for `generate()`, and `generate_bytes`, which samples a code and then
the bytes of its segment."""

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from transformers import (
    GenerationMixin,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.modeling_outputs import BaseModelOutputWithPast

from .abstractinator_base import AbstractinatorCache
from .block_layers import execution_device
from .block_positions import check_context
from .block_row_cache import where_active

CACHE = "cache" if "cache" in BaseModelOutputWithPast.__dataclass_fields__ else "past_key_values"
"""The name that the cache has in the outputs of the installed version of transformers."""


class AbstractinatorGeneration(GenerationMixin):
    """Mixin of the language model, which has `model`. It extends `GenerationMixin`."""

    config: Any
    model: Any

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> bool:
        if generation_config.cache_implementation is not None:
            raise ValueError(
                f"`cache_implementation` is {generation_config.cache_implementation!r}, but an Abstractinator has a "
                "cache of its own kind: leave it out."
            )
        compiled = None if generation_config.disable_compile else generation_config.compile_config
        options, cache = None if compiled is None else compiled.to_dict(), model_kwargs.get(CACHE)
        if generation_config.use_cache is not False and cache is None:
            model_kwargs[CACHE] = AbstractinatorCache(options)
            return False
        if isinstance(cache, AbstractinatorCache) and not cache.levels:
            cache.compile_options = options
        mixin: Any = super()  # marks a cache that the caller passes as user-defined
        return mixin._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)

    def _valid_auto_compile_criteria(self, model_kwargs: dict[str, Any], generation_config: Any) -> bool:
        # The forward is never compiled. Where the cache compiles no steps either, transformers says so.
        mixin: Any = super()
        compiles = getattr(model_kwargs.get(CACHE), "compile_options", None) is not None
        return not compiles and mixin._valid_auto_compile_criteria(model_kwargs, generation_config)

    def init_continuous_batching(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise ValueError(
            "`generate_batch` keeps the keys and values of equal layers in pages; an Abstractinator remembers windows, "
            "open segments and codes. Use `generate`, which takes a padded batch."
        )

    @torch.no_grad()
    def generate_bytes(
        self,
        prompts: list[bytes],
        max_new_bytes: int = 256,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        byte_temperature: float = 1.0,
    ) -> list[bytes]:
        """Continue each prompt with sampled codes. A top code is sampled and expanded, level by level, to bytes, until
        the entropy model opens the next segment. This repeats until the text ends.

        The end of a prompt closes the open segment of every level, so the first new byte opens a new one.

        Args:
            prompts: any byte strings, which may be empty.
            max_new_bytes: largest number of new bytes of each text.
            temperature, top_k, top_p: parameters of the sampling of top codes. Temperature 0 takes the most likely one.
            byte_temperature: temperature of the sampling of all symbols below a top code, which are bytes and the codes
                of the levels between. 0 takes the most likely one.

        Returns:
            Each prompt with its continuation.

        Raises:
            ValueError: if `prompts` is no list of byte strings, if there is no top model with a categorical head, if
                there is no `bos_token_id`, if a text may become longer than `max_position_embeddings`, or if a
                temperature is below 0.
        """
        config = self.config
        if not isinstance(prompts, list) or not all(isinstance(prompt, bytes) for prompt in prompts):
            raise ValueError(f"`prompts` is {prompts!r}, but it must be a list of byte strings, as [b'The '].")
        if self.model.top is None or config.top_head != "categorical":
            raise ValueError("Sampling codes needs a top model with `top_head` 'categorical'.")
        if config.bos_token_id is None:
            raise ValueError("`bos_token_id` is None, but the first byte of a text is predicted from a begin symbol.")
        check_context(1 + max(map(len, prompts), default=0) + max_new_bytes, config.max_position_embeddings)
        if not prompts:
            return []
        device = execution_device(self)
        ids = [torch.tensor([config.bos_token_id, *prompt]) for prompt in prompts]
        batch = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=-1).to(device)
        choose_code, choose_symbol = chooser(temperature, top_k, top_p), chooser(byte_temperature, None, None)
        sampler = CodeSampler(self.model, choose_code, choose_symbol, device)
        sampler.read(batch.clamp(min=0), batch >= 0)
        active = torch.ones(len(prompts), dtype=torch.bool, device=device)
        new: list[torch.Tensor] = []
        while len(new) < max_new_bytes:
            # The host reads both flags in one copy: whether a text continues, and whether one needs a code.
            continues, opens = torch.stack((active, active & sampler.cache.levels[0].opens)).any(1).tolist()
            if not continues:
                break
            ids = sampler.next_symbols(0, active, opens)[:, 0]
            new.append(ids.where(active, -1))
            active = active & ~self.model.ends_text(ids)
        rows = torch.stack(new, 1).tolist() if new else [[] for _ in prompts]
        return [prompt + bytes(i for i in row if 0 <= i < 256) for prompt, row in zip(prompts, rows, strict=True)]


def chooser(temperature: float, top_k: int | None, top_p: float | None) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return a function that samples ids `(n,)` from logits `(n, V)`, or takes the argmax at temperature 0."""
    if temperature < 0:
        raise ValueError(f"`temperature` is {temperature}, but it must be at least 0.")
    if temperature == 0:
        return lambda logits: logits.argmax(-1)
    warpers = LogitsProcessorList([TemperatureLogitsWarper(float(temperature))])
    if top_k:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p is not None:
        warpers.append(TopPLogitsWarper(top_p))
    no_ids: Any = None  # these warpers do not read the ids
    return lambda logits: warpers(no_ids, logits.float()).softmax(-1).multinomial(1).squeeze(1)


class CodeSampler:
    """Decoding from sampled codes for a batch whose rows need their next codes at different times.

    The expander of a level reads the last symbol only when it is known whether the next symbol opens a segment, because
    the code of that segment then comes from the level above.

    Args:
        model: the model with its levels and a top model.
        choose_code: returns top codes `(n,)` for logits `(n, V)`.
        choose_symbol: returns bytes, or digits of lower codes, `(n,)` for logits `(n, V)`.
        device: of the ids that it reads.
    """

    top_states: torch.Tensor  # (B, D), from which the next top code is predicted

    def __init__(
        self,
        model: Any,
        choose_code: Callable[[torch.Tensor], torch.Tensor],
        choose_symbol: Callable[[torch.Tensor], torch.Tensor],
        device: torch.device,
    ):
        self.model = model
        self.cache = AbstractinatorCache()
        self.choose_code, self.choose_symbol = choose_code, choose_symbol
        special = {*range(256, model.config.vocab_size), model.config.pad_token_id, model.config.bos_token_id}
        never = sorted(special - {None, *model.end_ids})
        self.never = torch.tensor(never, dtype=torch.long, device=device)

    def read(self, ids: torch.Tensor, mask: torch.Tensor) -> None:
        """Fill the cache with prompts `(B, T)`, whose open segments are closed.

        Args:
            ids: `(B, T)`, int64, padded on the right.
            mask: `(B, T)`, bool, which ids are real.
        """
        model = self.model
        pyramid = model.expand_rows(model.compress_rows(ids, mask.sum(1)))
        model.new_cache(self.cache, len(ids), pyramid.states[0])
        for level, state, compressed in zip(model.levels, self.cache.levels, pyramid.levels, strict=True):
            lengths, count = compressed.segments.lengths, compressed.segments.count
            level.fill_cache(state, compressed, lengths)
            known = level.code_rows(compressed.quantized.vectors)
            currents = torch.nn.functional.pad(known, (0, 0, 0, 1))
            items = level.expand(level.expander_inputs(compressed), (known, currents), compressed.segments.index).pairs
            level.expander.fill_cache(state.expander, items, lengths - 1)
            last = (count - 1).clamp(min=0)
            level.expander.fill_memory(state.expander, known, currents, last)
            state.row = known.gather(1, last.view(-1, 1, 1).expand(-1, 1, known.shape[-1])).squeeze(1)
            state.opens = torch.ones_like(state.opens)
        count = pyramid.levels[-1].segments.count
        model.top.stack.fill_cache(self.cache.top, pyramid.top_items, count + 1)
        at = count.view(-1, 1, 1).expand(-1, 1, pyramid.top_states.shape[-1])
        self.top_states = pyramid.top_states.gather(1, at).squeeze(1)

    def choose_byte(self, logits: torch.Tensor) -> torch.Tensor:
        """Return bytes or ends of texts `(n,)` for logits `(n, V)`: no text goes on with padding or a begin."""
        return self.choose_symbol(logits.index_fill(-1, self.never, -torch.inf))

    def next_symbols(self, i: int, active: torch.Tensor, opens: bool | None = None) -> torch.Tensor:
        """Return the next symbols `(B, digits)` of level i. Those of inactive rows are undefined.

        Args:
            i: the level, from 0 on.
            active: `(B,)`, bool.
            opens: whether an active row opens a segment. It is read from the device if None.
        """
        level, state = self.model.levels[i], self.cache.levels[i]
        opening = active & state.opens
        # For most symbols no row opens a segment. The levels above, which are most of the work, are then skipped.
        if opening.any() if opens is None else opens:
            self.open(i, opening)
        states = level.expand_last(state, active)
        symbols = level.head.sample(states, self.choose_symbol if i else self.choose_byte)
        closes = self.model.ends_text(symbols[:, 0]) if i == 0 else torch.zeros_like(active)
        level.notice(state, active, symbols, closes)
        return symbols

    def open(self, i: int, opening: torch.Tensor) -> None:
        """Choose the code of the next segment of level i in the opening rows `(B,)`, bool, and add it to the memory of
        the expander."""
        level, state = self.model.levels[i], self.cache.levels[i]
        row = level.code_rows(level.quantizer.embed(self.next_codes(i, opening)))
        level.expander.open_row(state.expander, opening, row, state.row)
        state.row = where_active(opening, row, state.row)
        if i == len(self.model.levels) - 1:
            states = self.model.top.stack.step(self.cache.top, opening, row)
            self.top_states = where_active(opening, states, self.top_states)

    def next_codes(self, i: int, active: torch.Tensor) -> torch.Tensor:
        """Return the next codes `(B, digits)` of level i from the level above it, or from the top model. Those of
        inactive rows are undefined."""
        if i + 1 < len(self.model.levels):
            return self.next_symbols(i + 1, active)
        return self.model.top.head.sample(self.top_states, self.choose_code)
