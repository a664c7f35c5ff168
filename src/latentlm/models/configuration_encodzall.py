"""Configuration of EncodZall."""

from typing import Any, Literal

from huggingface_hub.dataclasses import strict

from .configuration_learned_dropout import LearnedDropoutConfig
from .configuration_ngram_embedding import NgramEmbeddingConfig

VOCAB_SIZE = 264
"""The number of ids: the bytes, then `<pad>`, `<bos>`, `<eos>`, `<mask>` (a whole word) and the masks of one character,
`<vowel>`, `<consonant>`, `<nonspace>` (any other visible character) and `<any>`."""


@strict
class EncodzallConfig(LearnedDropoutConfig, NgramEmbeddingConfig):
    """A denoising autoencoder from bytes to word vectors and back, with two encoders and two decoders.

    Arguments are those of [`LearnedDropoutConfig`], which acts in the encoders and decoders, those of
    [`NgramEmbeddingConfig`], and the ones below. In the word encoder and the word decoder, n-grams do not cross the
    border of a word; in the sequence decoder they may.

    Args:
        vocab_size: 264, the bytes and eight special ids; fixed.
        hidden_size: width D.
        num_attention_heads: number of heads of every attention; must divide `hidden_size` into heads of an even size.
        num_word_encoder_layers: number of layers of Encoder 1, which encodes the bytes of a word.
        num_context_encoder_layers: number of layers of Encoder 2, which encodes the words of a text.
        num_decoder_layers: number of layers of the sequence decoder, and of the word decoder if it has its own weights.
        intermediate_size: width of the SwiGLU layers.
        max_position_embeddings: maximum length of a text in bytes, its end included.
        max_word_bytes: maximum length of a word in bytes, at least 8; longer words are split.
        word_pooling: how the bytes of a word become its vector: `"mean"`, `"max"` or `"query"` (learned weights).
        word_decoder: `"own"`, `"shared"` (the sequence decoder's weights) or `"none"`.
        cross_attention_positions: `"bytes"` rotates queries by the position of their byte and keys by the position of
            their word's first byte in the input, so that a decoder can align its output with a long text; `"none"`
            rotates neither.
        packed_row_length: number of slots of the rows that words are packed into.
        sequence_loss_weight, word_loss_weight, contrastive_loss_weight: weights of the losses with these names.
        gate_loss_weight: weight of the loss of the gate, which predicts for each word whether noise has changed it; 0
            for no gate. With a gate, the word decoder spells only changed words. If `sequence_loss_weight` is also 0, a
            separate sequence decoder is not trained, and the loss in evaluation is the weighted sum of the others.
        edit_cost: cost in nats of each edit of a character in log p(old | new), the noisy channel of `denoise`, which
            needs it in a model with a gate; training does not.
        denoise_threshold: difference in log-likelihood, in nats, by which a repair must exceed the unchanged word in
            `denoise`.
        dictionary_bytes: size in bytes of the dictionary that a checkpoint stores for `denoise`, 0 for none;
            `set_dictionary` sets it.
        unknown_word_odds: nats that the score of a repair gains if it replaces a word outside of the dictionary by one
            inside, and loses in the opposite case; divided by the square root of the number of words of the text.
            It has no effect without a dictionary.
        word_loss_gamma: exponent of the focal loss, (1 - p)^gamma CE (Lin et al. 2017, arXiv:1708.02002); 0 is plain
            cross-entropy.
        contrastive_scale: factor of the cosines in the contrastive loss.
        contrastive_symmetric: whether the contrastive loss also ranks clean texts against noisy ones.
        text_ngrams: lengths n, such as `[2, 3]`. With them, `text_embeds` contains weighted counts of the n-grams of a
            text's words, in addition to the whitened mean of the word vectors; see [`TextEmbedding`], which
            `fit_text_embedding` fits. None for no `text_embeds`.
        text_prefixes: lengths n, such as `[3, 4]`, of the prefixes of words that are counted as well.
        text_ngram_buckets: number K of buckets to which n-grams are hashed.
        text_context_share: share of the whitened mean in the cosine of two `text_embeds`, in [0, 1]; the counts
            contribute the rest.
        initializer_range: standard deviation of the initial weights.
        rope_parameters: rotary parameters in the format of transformers.
        attention_dropout: dropout on attention probabilities.
        hidden_dropout: dropout on the input of every stack of layers, and on what each block adds to the residual
            stream.
        classifier_dropout: dropout before the output layer of the classification heads.

    The defaults are those of size xs of the original design.
    """

    model_type = "encodzall"
    keys_to_ignore_at_inference = [  # `compute_metrics` of a Trainer expects the logits alone
        "past_key_values",
        "hidden_states",
        "attentions",
        "decoder_hidden_states",
        "decoder_attentions",
        "cross_attentions",
        "encoder_last_hidden_state",
        "encoder_hidden_states",
        "encoder_attentions",
        "word_logits",
        "gate_logits",
        "sequence_loss",
        "word_loss",
        "gate_loss",
        "contrastive_loss",
        "mask_entropy_loss",
        "mask_l1_loss",
    ]
    attribute_map = {"num_hidden_layers": "num_context_encoder_layers"}
    base_model_fsdp_plan = {
        "embed_tokens": "free_full_weight",
        "word_encoder.*": "free_full_weight",
        "context_encoder.*": "free_full_weight",
    }

    vocab_size: int = VOCAB_SIZE
    hidden_size: int = 256
    num_attention_heads: int = 4
    num_word_encoder_layers: int = 2
    num_context_encoder_layers: int = 2
    num_decoder_layers: int = 1
    intermediate_size: int = 1536
    max_position_embeddings: int = 2048
    max_word_bytes: int = 16
    word_pooling: Literal["mean", "max", "query"] = "mean"
    word_decoder: Literal["own", "shared", "none"] = "own"
    cross_attention_positions: Literal["bytes", "none"] = "bytes"
    packed_row_length: int = 128
    sequence_loss_weight: float | int = 0.75
    word_loss_weight: float | int = 0.25
    contrastive_loss_weight: float | int = 0.0
    gate_loss_weight: float | int = 0.0
    edit_cost: float | int | None = None
    denoise_threshold: float | int = 0.0
    dictionary_bytes: int = 0
    unknown_word_odds: float | int = 0.0
    word_loss_gamma: float | int = 1.0
    contrastive_scale: float | int = 20.0
    contrastive_symmetric: bool = False
    text_ngrams: list[int] | None = None
    text_prefixes: list[int] | None = None
    text_ngram_buckets: int = 4096
    text_context_share: float | int = 0.1
    rope_parameters: dict | None = None
    rms_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    hidden_dropout: float | int = 0.0
    attention_dropout: float | int = 0.0
    classifier_dropout: float | int = 0.0
    use_cache: bool = True
    is_encoder_decoder: bool = True
    tie_word_embeddings: bool = False
    pad_token_id: int | None = 256
    bos_token_id: int | None = 257
    eos_token_id: int | list[int] | None = 258
    decoder_start_token_id: int | None = 257

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        self.auto_map = {
            "AutoConfig": "configuration_encodzall.EncodzallConfig",
            "AutoModel": "modeling_encodzall.EncodzallModel",
            "AutoModelForSeq2SeqLM": "modeling_encodzall.EncodzallForMaskedDenoising",
            "AutoModelForMaskedLM": "modeling_encodzall.EncodzallForMaskedLM",
            "AutoModelForSequenceClassification": "modeling_encodzall.EncodzallForSequenceClassification",
            "AutoModelForTokenClassification": "modeling_encodzall.EncodzallForTokenClassification",
        }

    @property
    def projection_dim(self) -> int:
        """The size of `text_embeds`, under the name that sentence-transformers reads."""
        return self.hidden_size + self.text_ngram_buckets

    @property
    def custom_pipelines(self) -> dict[str, dict[str, Any]]:
        """The pipelines that `pipeline(task, folder, trust_remote_code=True)` runs. The mapping is made for each call,
        because `pipeline` writes classes into it."""
        kinds = {
            "token-classification": ("WordTaggingPipeline", "AutoModelForTokenClassification"),
            "fill-mask": ("WordFillingPipeline", "AutoModelForMaskedLM"),
        }
        return {
            task: {"impl": f"encodzall_pipelines.{name}", "pt": [auto_class], "type": "text"}
            for task, (name, auto_class) in kinds.items()
        }

    @property
    def per_layer_config(self) -> list["EncodzallConfig"]:
        """One configuration for each *cache* layer: those of the sequence decoder, then those that compute its masks,
        then one that stores ids for n-grams."""
        masks, ids = 0, [] if self.ngram_embedding is None else [self.id_cache_config]
        if self.learned_dropout != "none":
            masks = 1 if self.learned_dropout_input == "embedding" else self.num_decoder_layers
        return [*[self.cache_config] * self.num_decoder_layers, *[self.mask_cache_config] * masks, *ids]

    @per_layer_config.setter
    def per_layer_config(self, value: None) -> None:
        if value is not None:
            raise ValueError(f"`per_layer_config` is derived from the other fields and cannot be set, got {value!r}.")

    def validate_vocabulary(self) -> None:
        if self.vocab_size != VOCAB_SIZE:
            raise ValueError(
                f"`vocab_size` is {self.vocab_size}, but must be {VOCAB_SIZE}: the bytes and eight special ids."
            )

    def validate_sizes(self) -> None:
        for name, least in {
            "hidden_size": 1,
            "num_attention_heads": 1,
            "num_word_encoder_layers": 0,
            "num_context_encoder_layers": 0,
            "num_decoder_layers": 1,
            "intermediate_size": 1,
            "max_position_embeddings": 2,
            "max_word_bytes": 8,
            "packed_row_length": 1,
            "dictionary_bytes": 0,
        }.items():
            if getattr(self, name) < least:
                raise ValueError(f"`{name}` is {getattr(self, name)}, but it must be at least {least}.")
        for name in ("hidden_dropout", "attention_dropout", "classifier_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}, but a dropout rate lies in [0, 1).")
        weights = [f"{name}_loss_weight" for name in ("sequence", "word", "contrastive", "gate")]
        for name in (*weights, "word_loss_gamma", "edit_cost", "denoise_threshold", "unknown_word_odds"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise ValueError(f"`{name}` is {value}, but it must be at least 0.")
        if self.gate_loss_weight and (self.word_decoder == "none" or not self.word_loss_weight):
            raise ValueError(
                f"`gate_loss_weight` is {self.gate_loss_weight}, but `word_decoder` is {self.word_decoder!r} and "
                f"`word_loss_weight` {self.word_loss_weight}: words that the gate finds need a decoder that is trained."
            )

    def validate_text_embedding(self) -> None:
        for name in ("text_ngrams", "text_prefixes"):
            lengths = getattr(self, name)
            if lengths is not None and (not lengths or min(lengths) < 1 or len(set(lengths)) < len(lengths)):
                raise ValueError(
                    f"`{name}` is {lengths}, but it must be a list of distinct lengths of at least 1, as [2, 3], or "
                    "None for none."
                )
        if self.text_prefixes is not None and self.text_ngrams is None:
            raise ValueError(
                f"`text_prefixes` is {self.text_prefixes}, but `text_ngrams` is None: there are no counts."
            )
        if self.text_ngram_buckets < 1:
            raise ValueError(f"`text_ngram_buckets` is {self.text_ngram_buckets}, but it must be at least 1.")
        if not 0 <= self.text_context_share <= 1:
            raise ValueError(f"`text_context_share` is {self.text_context_share}, but a share lies in [0, 1].")

    def validate_with_sizes(self) -> None:  # validators run in the order of their names, and this one divides by sizes
        if self.hidden_size % self.num_attention_heads or (self.hidden_size // self.num_attention_heads) % 2:
            raise ValueError(
                f"`num_attention_heads` is {self.num_attention_heads}, but must divide `hidden_size` "
                f"{self.hidden_size} into heads of an even size, which rotary positions need."
            )


__all__ = ["EncodzallConfig"]
