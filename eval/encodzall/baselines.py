"""EncodZall with another encoder in place of its two, as many parameters, the same decoder, losses, noise and rows.

    python eval/encodzall/baselines.py {pieces|convolutions} RECIPE.yaml [--field value ...]

`pieces` is a transformer over sub-word pieces (BPE of 4,096, learned from the training text), `convolutions` reads
bytes with residual convolutions and averages each word. Neither knows masks: for recipes with realistic noise.
"""

import sys
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import Split
from tokenizers.trainers import BpeTrainer
from torch import nn
from transformers import AutoModelForSeq2SeqLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from latentlm import EncodzallConfig, EncodzallForMaskedDenoising
from latentlm.models.block_attention import Attention
from latentlm.models.block_layers import PreNormLayer, make_norm
from latentlm.models.block_masks import bidirectional_mask
from latentlm.models.encodzall_base import EncodzallModelOutput, EncodzallPreTrainedModel
from latentlm.models.encodzall_packing import Packing
from latentlm.models.encodzall_words import NUM_BYTES
from latentlm.train import recipe_from_command_line, train

NUM_PIECES = 4096
PIECES_WIDTH = 224  # of the SwiGLU layers: what leaves as many parameters as EncodZall has
CONVOLUTION_BLOCKS = 5
KERNEL = 5


def learn_pieces(text: bytes) -> Tokenizer:
    """BPE over bytes, each a character of latin-1; pieces do not cross words."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = Split(Regex(r"\S+\s*|\s+"), "isolated")
    letters = [chr(byte) for byte in range(NUM_BYTES)]
    trainer = BpeTrainer(vocab_size=NUM_PIECES - 1, initial_alphabet=letters, show_progress=False)
    lines = text.decode("latin-1").splitlines(keepends=True)
    tokenizer.train_from_iterator(lines, trainer)
    return tokenizer


class PieceEncoder(EncodzallPreTrainedModel):
    """As many layers as both encoders of EncodZall have, over pieces; the end of a text is one."""

    def __init__(self, config: EncodzallConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)  # of the decoder
        self.embed_pieces = nn.Embedding(NUM_PIECES, config.hidden_size)
        self.rotary = LlamaRotaryEmbedding(config)
        wide, config.intermediate_size = config.intermediate_size, PIECES_WIDTH
        count = config.num_word_encoder_layers + config.num_context_encoder_layers
        self.layers = nn.ModuleList(PreNormLayer(config, Attention(config, i)) for i in range(count))
        config.intermediate_size = wide
        self.norm = make_norm(config)
        config.pieces = config.pieces  # training sets it on the class; saved with this one
        self.tokenizer = Tokenizer.from_str(config.pieces)
        self.post_init()

    def forward(self, input_ids: torch.Tensor, attention_mask=None, word_ids=None, **kwargs) -> EncodzallModelOutput:
        rows = [bytes(row[row < NUM_BYTES].tolist()).decode("latin-1") for row in input_ids.cpu()]
        found = self.tokenizer.encode_batch_fast(rows)
        ids = [torch.tensor([*e.ids, NUM_PIECES - 1]) for e in found]
        starts = [
            torch.tensor([*(start for start, _ in e.offsets), len(row)]) for e, row in zip(found, rows, strict=True)
        ]
        pieces = nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=-1).to(input_ids.device)
        positions = nn.utils.rnn.pad_sequence(starts, batch_first=True).to(input_ids.device)
        mask = pieces >= 0
        hidden_states = self.embed_pieces(pieces.clamp(min=0))
        seen = bidirectional_mask(self.config, hidden_states, mask)
        rotary = self.rotary(hidden_states, torch.arange(pieces.shape[1], device=pieces.device).unsqueeze(0))
        for layer in self.layers:
            hidden_states, _ = layer(hidden_states, rotary=rotary, mask=seen)
        return averaged(self.norm(hidden_states) * mask.unsqueeze(-1), mask, positions)


class ConvolutionEncoder(EncodzallPreTrainedModel):
    """Residual convolutions over the bytes of a text, then the mean of each word."""

    def __init__(self, config: EncodzallConfig):
        super().__init__(config)
        size = config.hidden_size
        self.embed_tokens = nn.Embedding(config.vocab_size, size)
        self.norms = nn.ModuleList([make_norm(config) for _ in range(CONVOLUTION_BLOCKS)])
        convolutions = [
            nn.Conv1d(size, size, KERNEL, padding="same", bias=False) for _ in range(2 * CONVOLUTION_BLOCKS)
        ]
        self.convolutions = nn.ModuleList(convolutions)
        self.norm = make_norm(config)
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        word_ids: torch.Tensor | None = None,
        packing: Packing | None = None,
        **kwargs,
    ) -> EncodzallModelOutput:
        real = input_ids != self.config.pad_token_id
        kept = real.unsqueeze(-1)  # padding stays 0 between all convolutions, as beyond the end of a text
        hidden_states = self.embed_tokens(input_ids) * kept

        def convolve(index: int, states: torch.Tensor) -> torch.Tensor:
            return self.convolutions[index](states.transpose(1, 2)).transpose(1, 2) * kept

        for block, norm in enumerate(self.norms):
            change = nn.functional.gelu(convolve(2 * block, norm(hidden_states)))
            hidden_states = hidden_states + convolve(2 * block + 1, change)
        if packing is None:
            packing = self.pack(input_ids, attention_mask, word_ids)["packing"]
        lengths, words = packing["lengths"], packing["word_ids"]  # (B, S), (B, T)
        place = torch.where(words < 0, lengths.shape[1], words).unsqueeze(-1).expand_as(hidden_states)
        sums = hidden_states.new_zeros(len(words), lengths.shape[1] + 1, hidden_states.shape[-1])
        sums = sums.scatter_add(1, place, self.norm(hidden_states))[:, :-1]
        return averaged(sums / lengths.clamp(min=1).unsqueeze(-1), lengths > 0, packing["starts"])


def averaged(memory: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor) -> EncodzallModelOutput:
    return EncodzallModelOutput(
        last_hidden_state=memory,
        pooler_output=memory.sum(1) / mask.sum(1, keepdim=True),
        word_mask=mask,
        word_positions=positions,
    )


class PieceDenoiser(EncodzallForMaskedDenoising):
    _auto_class = None  # loaded by this file, not from the Hub
    encoder_class = PieceEncoder

    def __init__(self, config: EncodzallConfig):
        super().__init__(config)
        self.model = self.encoder_class(config)
        self.post_init()


class ConvolutionDenoiser(PieceDenoiser):
    encoder_class = ConvolutionEncoder


BASELINES = {"pieces": PieceDenoiser, "convolutions": ConvolutionDenoiser}

if __name__ == "__main__":
    kind, *arguments = sys.argv[1:]
    recipe = recipe_from_command_line(arguments)
    if kind == "pieces":
        EncodzallConfig.pieces = learn_pieces(Path(recipe.data.dataset).read_bytes()).to_str()
    AutoModelForSeq2SeqLM.register(EncodzallConfig, BASELINES[kind], exist_ok=True)
    train(recipe)
