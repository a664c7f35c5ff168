"""EncodZall: an encoder inside each word, pooling, an encoder over the words, and two decoders.

Words of all texts are packed into dense rows (encodzall_packing.py), so that Encoder 1 and the word decoder spend
almost no arithmetic on padding. The encoder sees the whole text; the decoders are causal in what they write. The
original design comes from github.com/dleemiller/Encodzall.
"""

from typing import Any, NoReturn

import torch
from torch import nn
from torch.utils._pytree import tree_map
from transformers import GenerationMixin
from transformers.cache_utils import Cache
from transformers.modeling_outputs import MaskedLMOutput, SequenceClassifierOutput
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .block_attention import Attention
from .block_layers import PreNormLayer, execution_device
from .block_learned_dropout import Part, mask_loss_weight, mean_mask_losses, mean_penalties
from .block_positions import check_context, end_with_context
from .block_ragged import take
from .block_refusals import WORKS, refuse_embeddings
from .configuration_encodzall import EncodzallConfig
from .encodzall_base import (
    EncodzallDecoderOutput,
    EncodzallDenoisingOutput,
    EncodzallModelOutput,
    EncodzallPreTrainedModel,
    EncodzallTokenClassifierOutput,
)
from .encodzall_contrastive import ranking_loss
from .encodzall_decoder import EncodzallDecoder
from .encodzall_dictionary import Dictionary
from .encodzall_encoders import Encoded, EncodzallEncoders, in_groups
from .encodzall_masking import MASKS, WORD_MASK
from .encodzall_packing import IGNORED, Packing, Spelling, pack_spelling
from .encodzall_pipelines import WordFillingPipeline, WordTaggingPipeline
from .encodzall_repair import EncodzallRepairs
from .encodzall_spelling import EncodzallSpelling
from .encodzall_words import NUM_BYTES, PAD, first_in_words, text_ids

# What a checkpoint of the whole model has besides the encoders, which load without a warning.
NO_ENCODER = [r"^decoder\.", r"^word_decoder\.", r"^lm_head\.", r"^gate\.", r"^dictionary\."]
NO_EMBEDDINGS = "words are found, packed and compared by their bytes"


class EncodzallModel(EncodzallEncoders):
    """The two encoders, from bytes to one vector per word and one per text."""

    _keys_to_ignore_on_load_unexpected = NO_ENCODER
    _can_record_outputs = {
        "hidden_states": OutputRecorder(PreNormLayer, layer_name="context_encoder"),
        "attentions": OutputRecorder(Attention, index=1, layer_name="context_encoder"),
    }

    def __init__(self, config: EncodzallConfig):
        super().__init__(config)
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,  # (B, T)
        attention_mask: torch.Tensor | None = None,  # (B, T), 1 where an id is real; without it, all but padding ids
        word_ids: torch.LongTensor | None = None,  # (B, T), the word of each id in its text; found in the ids if None
        packing: Packing | None = None,  # of these words, in place of mask and words; made of them if None
        **kwargs,
    ) -> EncodzallModelOutput:
        """
        Raises:
            ValueError: if a text is longer than `max_position_embeddings`, or has no id at all; if there are embeddings
                in place of ids, or a cache, as prefix tuning gives one.
        """
        refuse_embeddings(kwargs, NO_EMBEDDINGS)
        if kwargs.pop("past_key_values", None) is not None:
            raise ValueError(f"`past_key_values` is given, but the encoders see all words and have no cache. {WORKS}")
        assert input_ids is not None
        check_context(input_ids.shape[1], self.config.max_position_embeddings)
        if packing is None:
            packing = self.pack(input_ids, attention_mask, word_ids).get("packing")
        assert packing is not None
        memory, penalties = self.encode_words(input_ids, packing)  # (B, S, D), and (B, K) of each layer
        word_mask = packing["lengths"] > 0  # (B, S)
        flags = "output_hidden_states", "output_attentions"  # these want one call of each layer
        recorded = any(kwargs.get(flag, getattr(self.config, flag)) for flag in flags)
        if recorded or not self.encodes_in_groups(memory):
            hidden_states, costs = self.encode_context(memory, word_mask, **kwargs)
        else:

            def encode(memory: torch.Tensor, word_mask: torch.Tensor) -> Encoded:
                longest = int(word_mask.any(0).nonzero().max()) + 1
                hidden_states, costs = self.encode_context(memory[:, :longest], word_mask[:, :longest], **kwargs)
                return nn.functional.pad(hidden_states, (0, 0, 0, memory.shape[1] - longest)), costs

            hidden_states, costs = in_groups(encode, word_mask.sum(1).argsort(), memory, word_mask)
        penalties += costs
        pooled = hidden_states.sum(1) / word_mask.sum(1, keepdim=True)
        embed_text = self.text_embedding
        return EncodzallModelOutput(
            last_hidden_state=hidden_states,
            pooler_output=pooled,
            word_mask=word_mask,
            word_positions=packing["starts"],
            word_ids=packing["word_ids"],
            mask_penalties=mean_penalties(penalties),
            text_embeds=None if embed_text is None else embed_text(pooled, input_ids, packing["word_ids"] >= 0),
        )

    @torch.no_grad()
    def fit_text_embedding(self, texts: list[str], smoothing: float = 1e-3, batch_size: int = 32) -> None:
        """Fits `text_embeds` to a few thousand texts like those that it will embed, without labels: it takes the
        frequencies of their n-grams, and the mean and covariance of `pooler_output`. `save_pretrained` saves them.

        Args:
            smoothing: the frequency of a bucket at which an n-gram counts half; above 0.

        Raises:
            ValueError: if the configuration has no `text_ngrams`; if there are fewer than two different texts, or one
                is longer than `max_position_embeddings`; if `smoothing` is not above 0.
        """
        if self.text_embedding is None:
            raise ValueError(
                "`text_ngrams` is None, so there is nothing to fit: load the model with it, as "
                "`EncodzallModel.from_pretrained(name, text_ngrams=[2, 3])`."
            )
        if len({*texts}) < 2:
            raise ValueError(
                f"`texts` are {len(texts)}, of which {len({*texts})} differ, but a covariance needs at least two that "
                "differ, and thousands to be good."
            )
        if not smoothing > 0:
            raise ValueError(f"`smoothing` is {smoothing}, but it must be above 0, as 0.001.")
        was_training = self.training
        self.eval()
        pooled, device = [], execution_device(self)
        counts = torch.zeros(self.config.text_ngram_buckets, device=device, dtype=torch.float64)
        try:
            for start in range(0, len(texts), batch_size):
                ids = text_ids(texts[start : start + batch_size]).to(device)
                pooled.append(self(ids).pooler_output)
                counts += self.text_embedding.count(ids, ids != PAD).sum(0)
        finally:
            self.train(was_training)
        self.text_embedding.fit(torch.cat(pooled), counts, smoothing)


class EncodzallForMaskedDenoising(EncodzallPreTrainedModel, EncodzallSpelling, EncodzallRepairs, GenerationMixin):
    """The encoders with both decoders: a masked or noisy text in, the clean text and its words out."""

    def __init__(self, config: EncodzallConfig):
        super().__init__(config)
        self.model = EncodzallModel(config)
        self.decoder = EncodzallDecoder(config)
        if config.word_decoder == "own":
            self.word_decoder = EncodzallDecoder(config, one_word=True)
        if config.gate_loss_weight:
            self.gate = nn.Linear(config.hidden_size, 1)
        self.dictionary = Dictionary(config.dictionary_bytes) if config.dictionary_bytes else None
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()
        self.train()

    def train(self, mode: bool = True) -> "EncodzallForMaskedDenoising":
        """Switch between training and evaluation as everywhere in torch. A decoder without a loss is frozen here, since
        DDP would wait for its gradient: loading a checkpoint unfreezes everything, but ends with `eval()`."""
        if self.config.word_decoder == "own" and not self.config.word_loss_weight:
            self.word_decoder.requires_grad_(False)
        if not self.trains_sequence_decoder:
            if self.config.word_decoder == "shared":
                self.decoder.freeze_queries()
            else:
                self.decoder.requires_grad_(False)
        return super().train(mode)

    @property
    def trains_sequence_decoder(self) -> bool:
        config = self.config
        return bool(config.sequence_loss_weight or not config.gate_loss_weight)

    def get_encoder(self, *args, **kwargs) -> nn.Module:
        return self.model

    def init_continuous_batching(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise ValueError(
            "`generate_batch` continues prompts; here an encoder reads a text first. Use `generate`, which takes a "
            "padded batch."
        )

    def get_decoder(self) -> nn.Module:
        return self.decoder

    def _prepare_generated_length(
        self,
        generation_config: Any,
        has_default_max_length: bool,
        has_default_min_length: bool,
        model_input_name: str,
        input_ids_length: int,
        inputs_tensor: torch.Tensor,
    ) -> Any:
        """End generation, with a warning, where the context of the sequence decoder ends. It reads all ids but the
        last, so a text of `max_position_embeddings` ids fits, with `decoder_start_token_id` before it."""
        mixin: Any = super()
        generation_config = mixin._prepare_generated_length(
            generation_config,
            has_default_max_length,
            has_default_min_length,
            model_input_name,
            input_ids_length,
            inputs_tensor,
        )
        limit = self.config.max_position_embeddings
        check_context(input_ids_length, limit)
        end_with_context(generation_config, input_ids_length, limit + 1 - input_ids_length, limit)
        return generation_config

    def prepare_decoder_input_ids_from_labels(self, labels: torch.Tensor) -> torch.Tensor:
        """Return the labels `(B, T)` shifted right by one, with `decoder_start_token_id` where the text begins."""
        real = labels != IGNORED
        start = self.config.decoder_start_token_id
        assert start is not None
        ids = nn.functional.pad(torch.where(real, labels, PAD)[:, :-1], (1, 0), value=PAD)
        return ids.scatter(1, real.long().argmax(1, keepdim=True), start)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,  # (B, T_in), masked or noisy
        attention_mask: torch.Tensor | None = None,  # (B, T_in)
        word_ids: torch.LongTensor | None = None,  # (B, T_in)
        decoder_input_ids: torch.Tensor | None = None,  # (B, T)
        decoder_attention_mask: torch.Tensor | None = None,
        encoder_outputs: EncodzallModelOutput | None = None,
        past_key_values: Cache | None = None,
        labels: torch.LongTensor | None = None,  # (B, T), the clean text with its end; -100 is ignored
        target_word_ids: torch.LongTensor | None = None,  # (B, T), words of the clean text; found in it if None
        clean_input_ids: torch.LongTensor | None = None,  # (B, T_clean), for the contrastive loss
        packing: Packing | None = None,  # what `pack_batch` makes of all these, all of it or nothing
        spelling: Spelling | None = None,
        clean_packing: Packing | None = None,
        changed: torch.Tensor | None = None,  # (B, S), 1 where noise changed a word, 0 where not; -100 is ignored
        use_cache: bool | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        training_step: torch.Tensor | None = None,  # scalar; where scheduled loss weights are, at their end if None
        **kwargs,
    ) -> EncodzallDenoisingOutput:
        """
        Raises:
            ValueError: if the word decoder has to spell other words than the encoder has read: their numbers differ;
                if there is nothing for the sequence decoder to read, or embeddings in place of ids.
        """
        refuse_embeddings(kwargs, NO_EMBEDDINGS)
        if labels is None and decoder_input_ids is None:
            raise ValueError(
                "Give `labels` (the clean text) or `decoder_input_ids`; `denoise` and `generate` make the latter, "
                "`fill_mask` fills masked words, and `model.model` (AutoModel) is the encoders alone."
            )
        if packing is None and spelling is None and (encoder_outputs is None or labels is not None):
            texts = (input_ids, attention_mask, word_ids) if encoder_outputs is None else (None, None, None)
            word_mask = None if encoder_outputs is None else encoder_outputs["word_mask"]
            packed = self.pack(*texts, labels, target_word_ids, clean_input_ids, word_mask)
            packing, spelling = packed.get("packing"), packed.get("spelling")
            clean_packing, changed = packed.get("clean_packing"), packed.get("changed")
        if encoder_outputs is None:
            encoded: EncodzallModelOutput = self.model(input_ids, attention_mask, word_ids, packing=packing, **kwargs)
        elif isinstance(encoder_outputs, EncodzallModelOutput):
            encoded = encoder_outputs
        else:
            encoded = EncodzallModelOutput(**encoder_outputs)
        memory, word_mask = encoded.last_hidden_state, encoded.word_mask
        assert memory is not None
        decoded: Any = EncodzallDecoderOutput()
        logits = None
        if labels is None or self.trains_sequence_decoder:
            if labels is not None and decoder_input_ids is None:
                decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
                use_cache = bool(use_cache)
            if labels is not None and decoder_attention_mask is None and past_key_values is None:
                # A collator may pad labels on the left.
                decoder_attention_mask = (decoder_input_ids != self.config.pad_token_id).cumsum(1) > 0
            decoded = self.decoder(
                self.model.embed_tokens(decoder_input_ids),
                memory,
                word_mask,
                encoded.word_positions,
                attention_mask=decoder_attention_mask,
                past_key_values=past_key_values,
                use_cache=use_cache,
                input_ids=decoder_input_ids,
                embed_ngrams=self.model.embed_ngrams,
                **kwargs,
            )
            logits = self.lm_head(decoded.last_hidden_state)  # (B, T, V)
        losses, word_logits, gate_logits = {}, None, None
        if labels is not None:
            config = self.config
            symbols = (labels != IGNORED).sum(1)  # (B,)
            count = symbols.sum() if num_items_in_batch is None else num_items_in_batch
            if logits is not None:
                total = nn.functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), reduction="sum")
                losses["sequence_loss"] = total / count
            encoders = config.num_word_encoder_layers + config.num_context_encoder_layers
            masks: list[Part] = [
                (encoders, encoded.mask_penalties, symbols.float()),
                (config.num_decoder_layers, decoded.mask_penalties, (labels != IGNORED).float()),
            ]
            if spelling is not None:
                losses["word_loss"], word_logits, penalties = self.word_loss(memory, labels, spelling, count)
                masks.append((config.num_decoder_layers, penalties, spelling["weight"][0]))
            if config.gate_loss_weight and changed is not None:
                gate_logits = self.gate(memory).squeeze(-1).float()  # (B, S)
                values = nn.functional.binary_cross_entropy_with_logits(
                    gate_logits, changed.clamp(min=0).float(), (changed != IGNORED).float(), reduction="sum"
                )
                losses["gate_loss"] = values / count
            losses |= mean_mask_losses(config, masks, count)
            if config.contrastive_loss_weight and clean_input_ids is not None:
                assert encoded.pooler_output is not None
                clean = self.model(clean_input_ids, packing=clean_packing).pooler_output
                ranking = ranking_loss(
                    encoded.pooler_output, clean, config.contrastive_scale, config.contrastive_symmetric
                )
                losses["contrastive_loss"] = (ranking * symbols).sum() / count
            if self.training or logits is None:
                losses["loss"] = sum(
                    mask_loss_weight(config, name, training_step, self.training) * losses[name]
                    if name in config.mask_losses
                    else getattr(config, f"{name}_weight") * losses[name]
                    for name in losses
                )
            else:
                losses["loss"] = losses["sequence_loss"]
        return EncodzallDenoisingOutput(
            logits=logits,
            word_logits=word_logits,
            gate_logits=gate_logits,
            past_key_values=decoded.past_key_values,
            decoder_hidden_states=decoded.hidden_states,
            decoder_attentions=decoded.attentions,
            cross_attentions=decoded.cross_attentions,
            encoder_last_hidden_state=memory,
            encoder_hidden_states=encoded.hidden_states,
            encoder_attentions=encoded.attentions,
            **losses,
        )

    def word_loss(
        self, memory: torch.Tensor, labels: torch.Tensor, spelling: Spelling, count: torch.Tensor | int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Return the focal cross-entropy of every word's bytes and end, their logits `(N, V)`, and the penalties of
        LearnedDropout's masks `(N, K)` if there are any.

        The focal loss (Lin et al. 2017, 1708.02002) weights a symbol of probability p by (1 - p) ** `word_loss_gamma`.
        The words of the labels are those of the memory by their index, whatever became of their length.
        """
        logits, targets, penalties = self.spell(memory, labels, spelling)
        values = nn.functional.cross_entropy(logits.float(), targets, reduction="none")  # (N,)
        if self.config.word_loss_gamma:
            values = values * (1 - (-values).exp()) ** self.config.word_loss_gamma
        return (values * spelling["weight"][0]).sum() / count, logits, penalties


class EncodzallForMaskedLM(EncodzallPreTrainedModel, EncodzallSpelling):
    """The encoders with the word decoder, for texts with masked characters.

    Logits `(B, T, V)` are those of each id, given the vector of its word and the bytes before it in the word. These
    bytes are those of `labels` where there are labels, and else those of the text. Masked bytes without a label are
    filled with the likeliest, one after the other.
    """

    # Of the checkpoint of a denoising model.
    _keys_to_ignore_on_load_unexpected = [r"^decoder\.", r"^gate\.", r"^dictionary\."]

    def __init__(self, config: EncodzallConfig):
        super().__init__(config)
        self.refuse_no_word_decoder()
        self.model = EncodzallModel(config)
        if config.word_decoder == "own":
            self.word_decoder = EncodzallDecoder(config, one_word=True)
        else:
            self.decoder = EncodzallDecoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()
        self.train()

    def train(self, mode: bool = True) -> "EncodzallForMaskedLM":
        """Switch between training and evaluation as everywhere. What spelling does not use of a shared decoder is
        frozen, as in the denoising model."""
        if self.config.word_decoder == "shared":
            self.decoder.freeze_queries()
        return super().train(mode)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,  # (B, T), with masks of characters
        attention_mask: torch.Tensor | None = None,
        word_ids: torch.LongTensor | None = None,
        labels: torch.LongTensor | None = None,  # (B, T), the clean byte of an id; -100 is ignored
        num_items_in_batch: torch.Tensor | int | None = None,  # labels of all micro-batches and processes
        **kwargs,
    ) -> MaskedLMOutput:
        """
        Raises:
            ValueError: if a whole word is masked, which has no one id, or if there are embeddings in place of ids.
        """
        refuse_embeddings(kwargs, NO_EMBEDDINGS)
        assert input_ids is not None
        if (input_ids == WORD_MASK).any():
            raise ValueError(
                "`input_ids` have `<mask>`, which stands for a whole word, so that no id can stand there: `fill_mask` "
                'and `pipeline("fill-mask", folder, trust_remote_code=True)` fill it. For single characters write '
                '`<any>`; tools of transformers do after `tokenizer.mask_token = "<any>"`.'
            )
        packing = self.pack(input_ids, attention_mask, word_ids).get("packing")
        outputs = self.model(input_ids, packing=packing, **kwargs)
        words, positions = outputs.word_ids, torch.arange(input_ids.shape[1], device=input_ids.device)
        spelled = words.cpu()
        num_words = outputs.word_mask.shape[1]
        spelling = pack_spelling(torch.zeros_like(spelled), spelled, num_words, self.config.packed_row_length)
        spelling = tree_map(lambda tensor: tensor.to(words.device), spelling)
        place = take(spelling["target"], spelling["slot"])[0]  # of each logit in the flattened ids; B * T for an end

        def spell(clean: torch.Tensor) -> torch.Tensor:
            logits, _, _ = self.spell(outputs.last_hidden_state, clean, spelling)
            of_ids = logits.new_zeros(clean.numel() + 1, logits.shape[1]).index_copy(0, place, logits)
            return of_ids[:-1].unflatten(0, clean.shape)

        clean = input_ids if labels is None else torch.where(labels == IGNORED, input_ids, labels)
        logits = spell(clean)
        while (masked := (clean >= min(MASKS)) & (clean <= max(MASKS)) & (words >= 0)).any():
            is_first = masked & (positions == first_in_words(masked, words, num_words))
            clean = torch.where(is_first, logits[..., :NUM_BYTES].argmax(-1), clean)
            logits = spell(clean)
        loss = None
        if labels is not None:
            sizes = {"vocab_size": self.config.vocab_size, "num_items_in_batch": num_items_in_batch}
            loss = self.loss_function(logits, labels, **sizes)
        return MaskedLMOutput(loss, logits, outputs.hidden_states, outputs.attentions)


class ClassificationHead(nn.Module):
    """Dropout and a linear layer: features `(..., D)` to logits `(..., num_labels)`."""

    is_output = True

    def __init__(self, config: EncodzallConfig):
        super().__init__()
        self.dropout = nn.Dropout(config.classifier_dropout)
        assert config.num_labels is not None
        self.out_proj = nn.Linear(config.hidden_size, config.num_labels)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.out_proj(self.dropout(features))


class EncodzallForSequenceClassification(EncodzallPreTrainedModel):
    """The encoders with a head that classifies texts: logits `(B, num_labels)` from `pooler_output`."""

    _keys_to_ignore_on_load_unexpected = NO_ENCODER

    def __init__(self, config: EncodzallConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = EncodzallModel(config)
        self.classifier = ClassificationHead(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        word_ids: torch.LongTensor | None = None,
        labels: torch.Tensor | None = None,  # (B,) classes or values, or (B, num_labels) values
        num_items_in_batch: torch.Tensor | int | None = None,  # labels of all micro-batches and processes
        **kwargs,
    ) -> SequenceClassifierOutput:
        outputs = self.model(input_ids, attention_mask, word_ids, **kwargs)
        logits = self.classifier(outputs.pooler_output)
        loss = None
        if labels is not None:
            loss = self.loss_function(labels, logits, self.config, num_items_in_batch=num_items_in_batch)
            # transformers' losses of values are means, whatever the number of items.
            if num_items_in_batch is not None and self.config.problem_type != "single_label_classification":
                loss = loss * labels.numel() / num_items_in_batch
        return SequenceClassifierOutput(loss, logits, outputs.hidden_states, outputs.attentions)


class EncodzallForTokenClassification(EncodzallPreTrainedModel):
    """The encoders with a head that labels each word. Logits `(B, T, num_labels)` and labels are per id, as collators,
    metrics and pipelines expect: an id has the logits of its word. `word_logits` are per word, the end of the text
    last."""

    _keys_to_ignore_on_load_unexpected = NO_ENCODER

    def __init__(self, config: EncodzallConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = EncodzallModel(config)
        self.classifier = ClassificationHead(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        word_ids: torch.LongTensor | None = None,
        labels: torch.Tensor | None = None,  # (B, T) per id, or (B, S) per word; -100 is ignored
        num_items_in_batch: torch.Tensor | int | None = None,  # labels of all micro-batches and processes
        **kwargs,
    ) -> EncodzallTokenClassifierOutput:
        """
        Raises:
            ValueError: if there is neither one label per id nor one per word.
        """
        outputs = self.model(input_ids, attention_mask, word_ids, **kwargs)
        word_logits = self.classifier(outputs.last_hidden_state)  # (B, S, num_labels)
        word_of_id = outputs.word_ids.clamp(min=0).unsqueeze(-1).expand(-1, -1, self.num_labels)
        logits = word_logits.gather(1, word_of_id) * (outputs.word_ids >= 0).unsqueeze(-1)
        loss = None
        if labels is not None:
            assert input_ids is not None
            of_words = labels.shape != input_ids.shape
            if of_words and labels.shape != word_logits.shape[:2]:
                raise ValueError(
                    f"`labels` are {tuple(labels.shape)}, but must be {tuple(input_ids.shape)}, as `input_ids` (the "
                    f"label of a word at its first id, -100 at the others), or {tuple(word_logits.shape[:2])}, one per "
                    "word."
                )
            if not of_words:  # a word has one label, that of its first id, also where those of its parts follow
                labelled = labels != IGNORED
                first = first_in_words(labelled, outputs.word_ids, word_logits.shape[1])
                labels = labels.gather(1, first.clamp(max=labels.shape[1] - 1)).where(labelled, IGNORED)
            scored = word_logits if of_words else logits
            loss = self.loss_function(scored, labels, self.config, num_items_in_batch=num_items_in_batch)
        return EncodzallTokenClassifierOutput(
            loss, logits, outputs.hidden_states, outputs.attentions, word_logits=word_logits
        )


__all__ = [
    "EncodzallForMaskedDenoising",
    "EncodzallForMaskedLM",
    "EncodzallForSequenceClassification",
    "EncodzallForTokenClassification",
    "EncodzallModel",
    "EncodzallPreTrainedModel",
    "WordFillingPipeline",  # here so that saving copies their file
    "WordTaggingPipeline",
]
