"""What the classes of EncodZall share: outputs, flags, and the files of sentence-transformers."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import (
    BaseModelOutputWithPastAndCrossAttentions,
    Seq2SeqLMOutput,
    TokenClassifierOutput,
)
from transformers.modeling_utils import PreTrainedModel
from transformers.utils.generic import ModelOutput

from .block_outputs import TakesCache
from .configuration_encodzall import EncodzallConfig
from .encodzall_packing import PackedBatch, pack_batch

# What sentence-transformers reads beside the model: the vectors of words, then their mean; or `text_embeds`.
SENTENCE_TRANSFORMERS_FILES: dict[str, Any] = {
    "modules.json": [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.base.modules.Transformer"},
        {"idx": 1, "name": "1", "path": "", "type": "encodzall_base.WordMean"},
    ],
    "sentence_bert_config.json": {
        "transformer_task": "feature-extraction",
        "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
        "module_output_name": "token_embeddings",
    },
    "config_sentence_transformers.json": {"model_type": "SentenceTransformer", "similarity_fn_name": "cosine"},
}


def sentence_transformers_files(config: EncodzallConfig) -> dict[str, Any]:
    """Return the files of sentence-transformers by name. With `text_ngrams` the model's `text_embeds` is the embedding,
    and no module follows."""
    if config.text_ngrams is None:
        return SENTENCE_TRANSFORMERS_FILES
    name = "sentence_bert_config.json"
    reads = {
        **SENTENCE_TRANSFORMERS_FILES[name],
        "modality_config": {"text": {"method": "forward", "method_output_name": "text_embeds"}},
        "module_output_name": "sentence_embedding",
    }
    return {**SENTENCE_TRANSFORMERS_FILES, "modules.json": SENTENCE_TRANSFORMERS_FILES["modules.json"][:1], name: reads}


class WordMean(nn.Module):
    """The module of sentence-transformers after the model: the mean over words, which equals `pooler_output`. The
    library's own pooling would count by the mask of the ids."""

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        words = features["token_embeddings"]  # (B, S, D), 0 after a text's last word
        mask = words.any(-1)
        mean = words.sum(1) / mask.sum(1, keepdim=True)
        return features | {"attention_mask": mask, "sentence_embedding": mean}

    @classmethod
    def load(cls, model_name_or_path: str, **kwargs: Any) -> "WordMean":
        return cls()

    def save(self, output_path: str, **kwargs: Any) -> None:
        """Save nothing: there are no weights."""


@dataclass
class EncodzallModelOutput(ModelOutput):
    """Output of the encoders. S is the largest number of words in a text.

    Args:
        last_hidden_state: `(B, S, D)`, one vector per word, 0 after a text's last word: the memory.
        pooler_output: `(B, D)`, the mean over the words.
        word_mask: `(B, S)`, bool, true where there is a word.
        word_positions: `(B, S)`, int64, the place of each word's first byte in the input.
        word_ids: `(B, T)`, int64, the word of each id, -1 for padding.
        hidden_states, attentions: of Encoder 2, `(B, S, D)` and `(B, H, S, S)` each.
        mask_penalties: `(B, K)`, float32: what LearnedDropout's masks cost in each text, one value for each of
            `config.mask_losses`: a mean over its modules, and over the text's bytes or words.
        text_embeds: `(B, D + K)`, the embedding of the text, see [`TextEmbedding`]; None without `text_ngrams`, and
            `pooler_output` is the embedding.
    """

    last_hidden_state: torch.Tensor | None = None
    pooler_output: torch.Tensor | None = None
    word_mask: torch.Tensor | None = None
    word_positions: torch.Tensor | None = None
    word_ids: torch.Tensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    mask_penalties: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None


@dataclass
class EncodzallDecoderOutput(BaseModelOutputWithPastAndCrossAttentions):
    """Output of a decoder.

    Args:
        mask_penalties: `(B, T, K)`, float32: what LearnedDropout's masks cost at each position, a mean over its
            modules.
    """

    mask_penalties: torch.Tensor | None = None


@dataclass
class EncodzallDenoisingOutput(Seq2SeqLMOutput):
    """Output of [`EncodzallForMaskedDenoising`].

    Args:
        loss: scalar; in training the weighted sum of all terms, in evaluation `sequence_loss` alone, or, where the
            sequence decoder is not trained, the weighted sum of the others.
        logits: `(B, T, V)` of the sequence decoder; None where it has no part in the loss.
        word_logits: `(N, V)` of the word decoder: of each word in turn (with a gate: of each changed one) its bytes and
            its end; with labels only. A bucketed packing has room after the last.
        gate_logits: `(B, S)`, log-odds that a word was changed by noise; with a gate, and with labels only.
        sequence_loss: scalar, cross-entropy in nats of the clean bytes and the end of the text. Like every term: a mean
            over these symbols, or, where `num_items_in_batch` is given, their sum divided by it.
        word_loss: scalar, unweighted: focal cross-entropy of each word's bytes and end, where a word of n bytes counts
            n times, and so each of its n + 1 symbols n / (n + 1) times.
        gate_loss: scalar, unweighted: cross-entropy of whether each word was changed, summed over the words of a text.
        contrastive_loss: scalar, unweighted: multiple-negatives ranking of noisy against clean texts, where a text
            counts as often as it has symbols.
        mask_entropy_loss, mask_l1_loss: scalars, unweighted, of LearnedDropout's masks: a mean over all modules that
            took part, where a text's bytes and words count together as often as it has symbols; None where the weight
            is 0.
        encoder_last_hidden_state: `(B, S, D)`, the memory: `last_hidden_state` of [`EncodzallModelOutput`].
        past_key_values, decoder_hidden_states, decoder_attentions, cross_attentions: of the sequence decoder.
        encoder_hidden_states, encoder_attentions: of Encoder 2.
    """

    word_logits: torch.Tensor | None = None
    gate_logits: torch.Tensor | None = None
    sequence_loss: torch.FloatTensor | None = None
    word_loss: torch.FloatTensor | None = None
    gate_loss: torch.Tensor | None = None
    contrastive_loss: torch.FloatTensor | None = None
    mask_entropy_loss: torch.Tensor | None = None
    mask_l1_loss: torch.Tensor | None = None


@dataclass
class EncodzallTokenClassifierOutput(TokenClassifierOutput):
    """Output of [`EncodzallForTokenClassification`].

    Args:
        loss: scalar, cross-entropy in nats of the labels that are not -100: their mean, or, where `num_items_in_batch`
            is given, their sum divided by it.
        logits: `(B, T, num_labels)`, for each id those of its word; 0 for padding.
        hidden_states, attentions: of Encoder 2, `(B, S, D)` and `(B, H, S, S)` each.
        word_logits: `(B, S, num_labels)`, one row per word; the end of the text is the last word.
    """

    word_logits: torch.FloatTensor | None = None


class EncodzallPreTrainedModel(TakesCache, PreTrainedModel):
    """Base class of the models of EncodZall: flags, packing, and what is saved."""

    config: EncodzallConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["PreNormLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        initialize: Any = getattr(module, "initialize_parameters", None)
        if initialize is not None:
            initialize()

    def pack(self, *args: torch.Tensor | None, **kwargs: Any) -> PackedBatch:
        """Return the index tensors with which the model gathers in a batch. [`pack_batch`] makes them from its ids,
        masks, words and labels, with `bucketed=True` in few sizes. Each distinct word is encoded once, since its vector
        depends on its own bytes alone; where training draws dropout, each word is."""
        config = self.config
        draws = config.hidden_dropout or config.attention_dropout or config.learned_dropout != "none"
        make: Any = pack_batch  # the type that `torch.compiler.disable` gives it says nothing
        return make(config, *args, **kwargs, distinct=not (self.training and draws))

    def save_pretrained(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> None:
        """Save as everywhere in transformers, with the files that
        `SentenceTransformer(save_directory, trust_remote_code=True)` needs."""
        super().save_pretrained(save_directory, *args, **kwargs)
        if kwargs.get("is_main_process", True):
            self.write_sentence_transformers_files(save_directory)

    def _upload_modified_files(self, working_dir: Any, *args: Any, **kwargs: Any) -> Any:
        """Write the files here too, because `save_pretrained(push_to_hub=True)` uploads before it returns, and only
        files that are newer than its call."""
        self.write_sentence_transformers_files(working_dir)
        return super()._upload_modified_files(working_dir, *args, **kwargs)

    def write_sentence_transformers_files(self, folder: str | Path) -> None:
        for name, content in sentence_transformers_files(self.config).items():
            (Path(folder) / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
