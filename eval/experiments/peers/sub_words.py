"""A transformer over sub-word pieces (a BPE of 4,096 from the training text) in place of EncodZall's encoders."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import Split
from tokenizers.trainers import BpeTrainer
from torch import nn
from transformers import TrainerCallback

from latentlm import EncodzallConfig
from latentlm.models.encodzall_base import EncodzallModelOutput, EncodzallPreTrainedModel
from latentlm.runs import Recipe

from .word_encoders import PeerDenoiser, as_memory, register

NUM_BYTES = 256
NUM_PIECES = 4096
FEEDFORWARD = 337  # width of the inner layers: what leaves as many parameters as EncodZall has


def learn_pieces(text: bytes, num_pieces: int = NUM_PIECES) -> Tokenizer:
    """BPE over bytes, each a character of latin-1; pieces do not cross words."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = Split(Regex(r"\S+\s*|\s+"), "isolated")
    letters = [chr(byte) for byte in range(NUM_BYTES)]
    trainer = BpeTrainer(vocab_size=num_pieces - 1, initial_alphabet=letters, show_progress=False)
    tokenizer.train_from_iterator(text.decode("latin-1").splitlines(keepends=True), trainer)
    return tokenizer


class PieceEncoder(EncodzallPreTrainedModel):
    """As many layers as both encoders of EncodZall have, over pieces; the end of a text is one. Rows without begin."""

    def __init__(self, config: EncodzallConfig):
        super().__init__(config)
        size = config.hidden_size
        self.embed_tokens = nn.Embedding(config.vocab_size, size)  # of the decoder
        self.embed_ngrams = None  # that of the decoder, which a peer has none of
        self.embed_pieces = nn.Embedding(NUM_PIECES, size)
        self.embed_positions = nn.Embedding(config.max_position_embeddings + 1, size)
        layer = nn.TransformerEncoderLayer(
            size, config.num_attention_heads, FEEDFORWARD, 0.0, "gelu", batch_first=True, norm_first=True, bias=False
        )
        count = config.num_word_encoder_layers + config.num_context_encoder_layers
        self.layers = nn.TransformerEncoder(layer, count, nn.RMSNorm(size), enable_nested_tensor=False)
        config.pieces = config.pieces  # training sets it on the class; saved with this one
        self.tokenizer = Tokenizer.from_str(config.pieces)
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor,  # (B, T)
        attention_mask: torch.Tensor | None = None,
        word_ids: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> EncodzallModelOutput:
        rows = [bytes(row[row < NUM_BYTES].tolist()).decode("latin-1") for row in input_ids.cpu()]
        encoded = self.tokenizer.encode_batch_fast(rows)
        ids = [torch.tensor([*one.ids, NUM_PIECES - 1]) for one in encoded]
        starts = [
            torch.tensor([*(start for start, _ in one.offsets), len(row)])
            for one, row in zip(encoded, rows, strict=True)
        ]
        pieces = nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=-1).to(input_ids.device)
        positions = nn.utils.rnn.pad_sequence(starts, batch_first=True).to(input_ids.device)
        mask = pieces >= 0
        places = torch.arange(pieces.shape[1], device=pieces.device)
        states = self.embed_pieces(pieces.clamp(min=0)) + self.embed_positions(places)
        return as_memory(self.layers(states, src_key_padding_mask=~mask), mask, positions)


class PieceDenoiser(PeerDenoiser):
    """[`PeerDenoiser`] that reads sub-word pieces."""

    encoder_class = PieceEncoder


def prepare(recipe: Recipe) -> list[TrainerCallback]:
    EncodzallConfig.pieces = learn_pieces(Path(recipe.data.dataset).read_bytes()).to_str()  # pyright: ignore[reportAttributeAccessIssue]  # a field of this peer's configurations alone
    register(PieceDenoiser)
    return []
