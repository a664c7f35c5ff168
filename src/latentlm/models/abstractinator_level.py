"""One level of the Abstractinator: a small language model cuts the symbols where its next-symbol entropy jumps, a
compressor turns every segment into a code, and an expander turns codes back into symbols."""

import math
from dataclasses import dataclass

import torch
from torch import nn
from transformers import initialization as init

from .abstractinator_pooling import PoolingState, SegmentPooling
from .abstractinator_symbols import SequenceEmbedding, SymbolHead
from .block_attention import Pair, ProjectedRMSNorm
from .block_optimizer_steps import follow_optimizer
from .block_quantization import Float32Buffers, FSQQuantizer, Quantized, VectorQuantizer, all_summed
from .block_ragged import bucket
from .block_row_cache import RowState, StackCache, where_active
from .block_segmentation import SegmentRule, adapt_delta, find_segments, opens_segment, segment_index
from .block_stack import CausalStack, StackOutput
from .configuration_abstractinator import NUM_SPECIAL_CODES, AbstractinatorConfig, LevelConfig


@dataclass(frozen=True)
class Alphabet:
    """The symbols of a level.

    Attributes:
        num_ids: number of ids of a digit, special ids included.
        num_codes: number of ids that can be predicted.
        num_digits: number of digits of a symbol.
        size: of the smaller space for embedding and logits, if there is one.
    """

    num_ids: int
    num_codes: int
    num_digits: int
    size: int | None

    @classmethod
    def above(cls, level: LevelConfig) -> "Alphabet":
        """Make the alphabet of a level's codes, as the level above reads them."""
        return cls(level.num_ids + NUM_SPECIAL_CODES, level.num_ids, level.num_digits, level.code_dim)

    def embedding(self, config: AbstractinatorConfig, level: LevelConfig) -> SequenceEmbedding:
        """Make an embedding of the symbols, which `level` reads."""
        return SequenceEmbedding(config, level, self.num_ids, self.num_digits, self.size)

    @property
    def begin(self) -> int:
        """The special code that a sequence of codes begins with."""
        return self.num_codes + 1


@dataclass
class Segments:
    """Segments of R rows of T symbols. Column T belongs to the symbol that is to come.

    Attributes:
        entropies: `(R, T + 1)`, in nats, of the distribution that predicts each symbol; the first has no meaning.
        opens: `(R, T + 1)`, bool, whether a symbol opens a segment.
        index: `(R, T + 1)`, int64, the segment of each symbol.
        lengths: `(R,)`, int64, number of real symbols.
    """

    entropies: torch.Tensor
    opens: torch.Tensor
    index: torch.Tensor
    lengths: torch.Tensor

    @property
    def real(self) -> torch.Tensor:
        """Whether a symbol is real, `(R, T)`, bool."""
        return torch.arange(self.index.shape[1] - 1, device=self.index.device) < self.lengths.unsqueeze(1)

    @property
    def count(self) -> torch.Tensor:
        """The number of segments of each row `(R,)`, the last one open or closed."""
        last = self.index.gather(1, (self.lengths - 1).clamp(min=0).unsqueeze(1)).squeeze(1)
        return torch.where(self.lengths > 0, last + 1, 0)

    def exist(self, size: int) -> torch.Tensor:
        """Return whether a row has so many segments, `(R, size)`, bool."""
        return torch.arange(size, device=self.index.device) < self.count.unsqueeze(1)

    def closed(self, lengths: torch.Tensor) -> torch.Tensor:
        """Return the number of closed segments `(R,)` in the first `lengths` `(R,)` symbols, which is the index of the
        next segment."""
        return self.index.gather(1, lengths.unsqueeze(1)).squeeze(1)

    def ending(self, closes: torch.Tensor, size: int) -> torch.Tensor:
        """Return whether each of `size` segments holds the end of a text `(R, T)`: `(R, S)`, bool."""
        return self.totals(closes.long(), size) > 0

    def totals(self, values: torch.Tensor, size: int) -> torch.Tensor:
        """Return the sum of the symbols' values `(R, T)` in each of `size` segments, `(R, S)`."""
        place = torch.where(self.real, self.index[:, :-1], size)
        return values.new_zeros(len(values), size + 1).scatter_add(1, place, values)[:, :size]


@dataclass
class Cut:
    """The cuts that a level makes in R rows of T symbols.

    Attributes:
        symbols: `(R, T, digits)`, int64.
        segments: between the cuts.
        entropy_states: `(R, T, D)` of the entropy model.
        items: of its layers, for a cache.
        penalties: of LearnedDropout's masks in its layers, `(R, T, K)` each.
    """

    symbols: torch.Tensor
    segments: Segments
    entropy_states: torch.Tensor
    items: list[Pair]
    penalties: list[torch.Tensor | None]


@dataclass
class Compressed:
    """What a level makes of R rows of T symbols with at most S segments.

    Attributes:
        symbols: `(R, T, digits)`, int64.
        segments: of the rows.
        entropy_states: `(R, T, D)` of the entropy model.
        vectors: `(R, S, D)` before quantization.
        quantized: the vectors after it, and their codes.
        items: of the layers of entropy model and compressor, for a cache.
        pooled_from: `(R, T, D)`, the input of the pooling.
        keys: `(R, S)`, int64, equal only for equal beginnings of rows ([`prefix_keys`]); None where nobody asked.
        penalties: of LearnedDropout's masks in the layers of entropy model and compressor, `(R, T, K)` each.
    """

    symbols: torch.Tensor
    segments: Segments
    entropy_states: torch.Tensor
    vectors: torch.Tensor
    quantized: Quantized
    items: tuple[list[Pair], list[Pair]]
    pooled_from: torch.Tensor
    keys: torch.Tensor | None
    penalties: list[torch.Tensor | None]

    @property
    def exists(self) -> torch.Tensor:
        """Whether a row has so many segments, `(R, S)`, bool."""
        return self.segments.exist(self.vectors.shape[1])

    def weights(self, symbol_weights: torch.Tensor) -> torch.Tensor:
        """Return the weight of each segment `(R, S)`: the sum of the weights of its symbols. Column t of
        `symbol_weights` `(R, T)` is that of symbol t + 1."""
        size = self.vectors.shape[1]
        index = self.segments.index[:, 1:].clamp(max=size)
        return symbol_weights.new_zeros(len(index), size + 1).scatter_add(1, index, symbol_weights)[:, :size]


@dataclass
class LevelCache(RowState):
    """What cached decoding remembers of a level, for each of R rows.

    Attributes:
        entropy, compressor, expander: the caches of the stacks.
        pool: the open segment.
        entropy_before: `(R,)`, in nats, of the distribution of the symbol to come, with which the next one is compared.
        open_length: `(R,)`, symbols of the segment of the last symbol.
        opens: `(R,)`, bool, whether the symbol to come opens a segment.
        recent: `(R, P, digits)`, the last symbols, as many as the longest n-gram has; without meaning before the first.
        row: `(R, D)`, the current memory row, in decoding from codes.
        trunk: `(R, D)`, the state of the entropy model after the last symbol, where other parts read it.
    """

    entropy: StackCache
    compressor: StackCache
    expander: StackCache
    pool: PoolingState
    entropy_before: torch.Tensor
    open_length: torch.Tensor
    opens: torch.Tensor
    recent: torch.Tensor
    row: torch.Tensor
    trunk: torch.Tensor


class EntropyModel(nn.Module):
    """Causal language model with a short window. The entropy of its next-symbol distribution decides where segments
    begin."""

    def __init__(self, config: AbstractinatorConfig, level: LevelConfig, alphabet: Alphabet):
        super().__init__()
        self.kind = level.entropy_head
        self.embedding = alphabet.embedding(config, level)
        self.stack = CausalStack(config, level.num_entropy_layers, level.entropy_window)
        if self.kind != "gaussian":
            self.head = SymbolHead(config, alphabet.num_codes, alphabet.num_digits, alphabet.size)
        if self.kind != "categorical":
            self.gaussian = nn.Linear(config.hidden_size, 2 * config.hidden_size, bias=False)
            self.gaussian.is_output = True  # pyright: ignore[reportArgumentType]

    def forward(self, symbols: torch.Tensor) -> StackOutput:
        return self.stack(self.embedding.of_rows(symbols))

    def normal(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean and log-variance `(..., D)`, float32, of the next embedding."""
        mean, log_variance = self.gaussian(hidden_states).float().chunk(2, -1)
        return mean, log_variance.clamp(-8, 8)

    def entropy(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return the entropy `(...)`, float32, in nats, of the distribution after hidden states `(..., D)`: of its
        first digit, or of the normal distribution per dimension. It only decides about cuts, and has no gradient."""
        with torch.no_grad():
            if self.kind == "gaussian":
                _, log_variance = self.normal(hidden_states)
                return 0.5 * (log_variance + math.log(2 * math.pi * math.e)).mean(-1)
            logs = self.head.digit_logits(hidden_states, None, 0).float().log_softmax(-1)
            return -(logs.exp() * logs).sum(-1)

    def losses(self, hidden_states: torch.Tensor, symbols: torch.Tensor) -> torch.Tensor:
        """Return the negative log-likelihood `(...)`, in nats, of symbols `(..., digits)` after hidden states
        `(..., D)`; for the normal distribution it is per dimension."""
        total = hidden_states.new_zeros((), dtype=torch.float32)
        if self.kind != "gaussian":
            total = self.head.losses(hidden_states, symbols)
        if self.kind != "categorical":
            mean, log_variance = self.normal(hidden_states)
            error = (self.embedding(symbols).detach().float() - mean) ** 2
            total = total + 0.5 * (log_variance + error / log_variance.exp() + math.log(2 * math.pi)).mean(-1)
        return total


class AbstractinatorLevel(Float32Buffers):
    """One level of the pyramid: [`compress`] goes up, [`expand`] goes down."""

    delta: torch.Tensor  # adapted to a target length, where there is one
    quantizer: "VectorQuantizer | FSQQuantizer | NoQuantizer"

    def __init__(self, config: AbstractinatorConfig, level: LevelConfig, alphabet: Alphabet, is_first: bool):
        super().__init__()
        self.config = config
        self.level_config = level
        self.alphabet = alphabet
        size = config.hidden_size
        self.entropy_model = EntropyModel(config, level, alphabet)
        if is_first and not level.shares_trunk:
            self.compressor_embedding = alphabet.embedding(config, level)
        if not is_first:
            self.begin = nn.Embedding(1, size)
            self.to_row = nn.Linear(size, size, bias=False)
        self.compressor = CausalStack(config, level.num_compressor_layers, level.compressor_window)
        self.pooling = SegmentPooling(size, config.num_attention_heads, level.num_queries, config.rms_norm_eps)
        if level.quantizer == "fsq":
            self.quantizer = FSQQuantizer(size, level.fsq_levels)
        elif level.quantizer == "none":
            self.quantizer = NoQuantizer()
        else:
            self.quantizer = VectorQuantizer(
                size, level.num_codes, level.code_dim, level.num_digits, level.commitment, level.codebook_decay
            )
        if not level.shares_trunk:
            self.embedding = alphabet.embedding(config, level)
        self.memory_norm = ProjectedRMSNorm(size, eps=config.rms_norm_eps)
        self.expander = CausalStack(config, level.num_expander_layers, level.expander_window, level.lookback)
        self.head = SymbolHead(config, alphabet.num_codes, alphabet.num_digits, alphabet.size)
        if level.target_segment_length is not None:
            self.register_buffer("delta", torch.full((), float(level.delta), dtype=torch.float32))
        self.seen: torch.Tensor | None = None  # symbols and segments since the last update

    def initialize_parameters(self) -> None:
        if self.level_config.target_segment_length is not None:
            init.constant_(self.delta, self.level_config.delta)

    @property
    def rule(self) -> SegmentRule:
        level = self.level_config
        delta = float(level.delta) if level.target_segment_length is None else self.delta
        return SegmentRule(delta, level.threshold, level.min_segment_length, level.max_segment_length)

    # ---- Whole rows ----

    def compress(
        self,
        symbols: torch.Tensor,  # (R, T, digits)
        vectors: torch.Tensor | None,  # (R, T, D) of the level below, before quantization; None at the first level
        lengths: torch.Tensor,  # (R,)
        closes: torch.Tensor,  # (R, T), whether a symbol ends a text
        keys: torch.Tensor | None = None,  # (R, T), int64, by which training gathers; None where it does not
    ) -> Compressed:
        """Cut rows of symbols, and make a code for each segment."""
        cut = self.cut(symbols, lengths, closes)
        # The one number that the host waits for. No rule bounds it below T, of which it is a third or a fourth: without
        # it, compressor vectors, codes and all that is above would be computed for T segments.
        size = bucket(max(int(cut.segments.count.max()), 1), symbols.shape[1])
        if keys is not None and self.training and self.followed.requires_grad:
            follow_optimizer(self)
            seen = torch.stack((lengths.sum(), cut.segments.count.sum()))
            self.seen = seen if self.seen is None else self.seen + seen
        return self.encode(cut, vectors, size, keys)

    def cut(self, symbols: torch.Tensor, lengths: torch.Tensor, closes: torch.Tensor) -> Cut:
        """Cut rows of symbols; the arguments are those of [`compress`]."""
        states, items, _, penalties = self.entropy_model(symbols)
        entropies = nn.functional.pad(self.entropy_model.entropy(states), (1, 0))
        opens = find_segments(entropies, nn.functional.pad(closes, (0, 1)), self.rule)
        return Cut(symbols, Segments(entropies, opens, segment_index(opens), lengths), states, items, penalties)

    def encode(self, cut: Cut, vectors: torch.Tensor | None, size: int, keys: torch.Tensor | None) -> Compressed:
        """Make the codes of rows with at most `size` segments; the arguments are those of [`compress`]."""
        segments = cut.segments
        index = segments.index[:, :-1]
        if vectors is None:
            shares = self.level_config.shares_trunk
            vectors = cut.entropy_states if shares else self.compressor_embedding.of_rows(cut.symbols)
        local = index if self.level_config.compressor_attention == "segment" else None
        hidden_states, items, _, penalties = self.compressor(vectors, local)
        pooled = self.pooling(hidden_states, index.masked_fill(~segments.real, -1), size)
        keys = None if keys is None else segments.totals(keys, size)
        gathers = self.training and self.followed.requires_grad
        quantized = self.quantizer(pooled, segments.exist(size), keys if gathers else None)
        return Compressed(
            cut.symbols,
            segments,
            cut.entropy_states,
            pooled,
            quantized,
            (cut.items, items),
            hidden_states,
            keys,
            cut.penalties + penalties,
        )

    def symbols_of(
        self, below: Compressed, begins: bool
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Return this level's input from the one below, with the begin symbol first: symbols `(R, S + 1, digits)`,
        vectors `(R, S + 1, D)`, lengths `(R,)`, and keys `(R, S + 1)` if there are any. With `begins` the begin symbol
        is real in empty rows too."""
        codes = nn.functional.pad(below.quantized.codes.clamp(min=0), (0, 0, 1, 0), value=self.alphabet.begin)
        begin = self.begin(codes.new_zeros(len(codes), 1)).to(below.vectors.dtype)
        keys = None if below.keys is None else nn.functional.pad(below.keys, (1, 0))
        lengths = below.segments.count + 1
        if not begins:
            lengths = torch.where(below.segments.lengths > 0, lengths, 0)
        return codes, torch.cat((begin, below.vectors), 1), lengths, keys

    @property
    def input_embedding(self) -> SequenceEmbedding:
        """The embedding of the symbols that the expander reads: its own, or that of the entropy model."""
        return self.entropy_model.embedding if self.level_config.shares_trunk else self.embedding

    def expander_inputs(self, compressed: Compressed) -> torch.Tensor:
        """Return the expander's input for the symbols, `(R, T, D)`."""
        if self.level_config.shares_trunk:
            return compressed.entropy_states
        return self.embedding.of_rows(compressed.symbols)

    def expand(
        self,
        inputs: torch.Tensor,  # (R, T, D), of the symbols, or what the first layer's self-attention makes of them
        memory: tuple[torch.Tensor, torch.Tensor] | None,  # (R, S, D) past codes, (R, S + 1, D) of the segment itself
        index: torch.Tensor,  # (R, T + 1), the segment of each symbol
        has_read_self: bool = False,
    ) -> StackOutput:
        """Run the expander over the symbols: return states `(R, T, D)`, from which the head predicts the next symbol.
        Without memory, rows of zeros are read."""
        if memory is not None:
            index = index[:, 1:].clamp(max=memory[0].shape[1])
        return self.expander(inputs, memory=memory, memory_segments=index, has_read_self=has_read_self)

    def code_rows(self, vectors: torch.Tensor) -> torch.Tensor:
        """Return the memory rows of quantized vectors, both `(..., D)`."""
        if self.training and self.level_config.quantizer == "fsq":
            # With odd `fsq_levels` alone the middle code is a vector of zeros, for which the norm multiplies a gradient
            # by 1 / sqrt(eps). It gets that of a vector of unit size instead.
            vectors = vectors.where(vectors.any(-1, keepdim=True), vectors * self.config.rms_norm_eps**0.5)
        return self.memory_norm(vectors)

    # ---- One symbol ----

    def new_cache(self, num_rows: int, like: torch.Tensor) -> LevelCache:
        zeros = torch.zeros(num_rows, dtype=torch.long, device=like.device)
        num_recent = max(self.level_config.ngram_embedding or [1])
        return LevelCache(
            entropy=self.entropy_model.stack.new_cache(num_rows, like),
            compressor=self.compressor.new_cache(num_rows, like),
            expander=self.expander.new_cache(num_rows, like),
            pool=self.pooling.start(num_rows, like),
            entropy_before=torch.full((num_rows,), torch.inf, device=like.device),
            open_length=zeros,
            opens=torch.ones(num_rows, dtype=torch.bool, device=like.device),
            recent=zeros.view(-1, 1, 1).repeat(1, num_recent, self.alphabet.num_digits),
            row=like.new_zeros(num_rows, self.config.hidden_size),
            trunk=like.new_zeros(num_rows, self.config.hidden_size),
        )

    def fill_cache(self, cache: LevelCache, compressed: Compressed, lengths: torch.Tensor) -> None:
        """Put the first `lengths` `(R,)` symbols of what was compressed into the cache; the expander's part does not
        change."""
        segments = compressed.segments
        self.entropy_model.stack.fill_cache(cache.entropy, compressed.items[0], lengths)
        self.compressor.fill_cache(cache.compressor, compressed.items[1], lengths)
        at = lengths.unsqueeze(1)
        inside = torch.arange(segments.index.shape[1] - 1, device=lengths.device) < at
        index = segments.index[:, :-1].masked_fill(~inside, -1)
        last = (lengths - 1).clamp(min=0)
        cache.pool = self.pooling.state_of_open(compressed.pooled_from.detach(), index, lengths)
        opens = segments.opens.gather(1, at).squeeze(1)
        entropy = segments.entropies.gather(1, at).squeeze(1)
        cache.entropy_before = torch.where(lengths > 0, entropy, torch.inf)
        own = index.gather(1, last.unsqueeze(1))
        cache.open_length = (index == own).logical_and(inside).sum(1)
        cache.opens = opens | (lengths == 0)
        starts = (index == own).logical_and(inside).long().argmax(1)
        if self.level_config.compressor_attention == "segment":
            cache.compressor.segment_starts = starts
        num_recent, digits = cache.recent.shape[1:]
        recent = (at - num_recent + torch.arange(num_recent, device=lengths.device)).clamp(min=0)
        cache.recent = compressed.symbols.gather(1, recent.unsqueeze(-1).expand(-1, -1, digits))
        if self.level_config.shares_trunk:
            states = compressed.entropy_states.detach()
            cache.trunk = states.gather(1, last.view(-1, 1, 1).expand(-1, 1, states.shape[-1])).squeeze(1)

    def notice(
        self, cache: LevelCache, active: torch.Tensor, symbols: torch.Tensor, closes: torch.Tensor
    ) -> torch.Tensor:
        """Run the entropy model on the next symbols `(R, digits)` of the active rows `(R,)`. Return `(R,)`, bool:
        whether a row is active and the symbol after this one opens a segment."""
        recent = torch.cat((cache.recent[:, 1:], symbols.unsqueeze(1)), 1)
        cache.recent = where_active(active, recent, cache.recent)
        inputs = self.entropy_model.embedding.of_last(cache.recent, cache.entropy.lengths)
        hidden_states = self.entropy_model.stack.step(cache.entropy, active, inputs)
        if self.level_config.shares_trunk:
            cache.trunk = where_active(active, hidden_states, cache.trunk)
        entropy = self.entropy_model.entropy(hidden_states)
        length = torch.where(cache.opens, 1, cache.open_length + 1)
        opens = opens_segment(entropy, cache.entropy_before, length, closes, self.rule)
        cache.entropy_before = where_active(active, entropy, cache.entropy_before)
        cache.open_length = where_active(active, length, cache.open_length)
        cache.opens = where_active(active, opens, cache.opens)
        return opens & active

    def pool(
        self,
        cache: LevelCache,
        active: torch.Tensor,  # (R,)
        vectors: torch.Tensor | None,  # (R, D)
        fresh: torch.Tensor,  # (R,), whether the symbol opened a segment
    ) -> None:
        """Add the last noticed symbol of the active rows to their open segments."""
        if vectors is None and self.level_config.shares_trunk:
            vectors = cache.trunk
        elif vectors is None:
            vectors = self.compressor_embedding.of_last(cache.recent, cache.compressor.lengths)
        if self.level_config.compressor_attention == "segment":
            seen = cache.compressor
            seen.segment_starts = where_active(active & fresh, seen.lengths, seen.segment_starts)
        hidden_states = self.compressor.step(cache.compressor, active, vectors)
        cache.pool = cache.pool.updated(active, self.pooling.add(cache.pool, hidden_states, fresh))

    def close(self, cache: LevelCache, closing: torch.Tensor) -> tuple[torch.Tensor, Quantized]:
        """Return the vectors `(R, D)` of the open segments of closing rows `(R,)`, before and after quantization."""
        pooled = self.pooling.finish(cache.pool)
        return pooled, self.quantizer(pooled, closing)

    def expand_last(self, cache: LevelCache, active: torch.Tensor) -> torch.Tensor:
        """Run the expander on the last noticed symbol of the active rows `(R,)`: `(R, D)`."""
        shares = self.level_config.shares_trunk
        inputs = cache.trunk if shares else self.embedding.of_last(cache.recent, cache.expander.lengths)
        return self.expander.step(cache.expander, active, inputs)

    # ---- Once per optimizer step ----

    @property
    def followed(self) -> nn.Parameter:
        """The parameter whose optimizer steps move codebook and delta. Under an adapter, which is saved without them,
        it is not trained, and they stay."""
        return self.memory_norm.weight

    def update(self) -> None:
        """Apply what was gathered for the codebook and the running mean of segment lengths since the last update, in
        all processes."""
        self.quantizer.update()
        if self.level_config.target_segment_length is not None:
            seen = torch.zeros(2, dtype=torch.long, device=self.delta.device) if self.seen is None else self.seen
            symbols, segments = all_summed(seen).double().unbind()
            adapted = adapt_delta(self.delta, symbols / segments, self.level_config.target_segment_length)
            self.delta.copy_(torch.where(segments > 0, adapted, self.delta))
        self.seen = None


class NoQuantizer(nn.Module):
    """A quantizer that leaves vectors as they are, without codes."""

    def forward(self, vectors: torch.Tensor, real: torch.Tensor, keys: torch.Tensor | None = None) -> Quantized:
        codes = torch.full((*real.shape, 1), -1, device=real.device)
        return Quantized(vectors, codes, None)

    def update(self) -> None:
        pass
