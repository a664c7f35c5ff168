"""The parallel encoder-decoder: two streams run in lockstep. The encoder stream represents the text so far; the decoder
stream predicts the next token, and each of its layers cross-attends to the encoder layer of its own depth. The original
design comes from github.com/yiphei/yif-AI.

Shared with the auto-regressive model: the layers (block_layers.py), which attentions a decoder layer has, the bridge
and the place of the embedding loss (block_encoder_decoder.py), and the rest of the forward, from the embedding to the
logits and `lm_loss` (block_causal_head.py).
"""

from .block_encoder_decoder import EncoderDecoderForCausalLM, EncoderDecoderModel
from .configuration_parallel_encoder_decoder import ParallelEncoderDecoderConfig


class ParallelEncoderDecoderModel(EncoderDecoderModel):
    """Both streams, without a head. Each decoder layer cross-attends to the encoder layer of its own depth."""

    config: ParallelEncoderDecoderConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    def run_stacks(self, embeddings, positions, shared_attention, memory_rotary, **shared):
        penalties = []
        encoder_states = hidden_states = embeddings
        start = len(self.encoder_layers) - len(self.decoder_layers)
        for depth, encoder_layer in enumerate(self.encoder_layers):
            if depth == start:  # with equal depths, the bridge reads the embeddings
                hidden_states = self.cross_bridge(encoder_states, positions)
            encoder_states, layer_penalties = encoder_layer(encoder_states, None, shared_attention, **shared)
            penalties.append(layer_penalties)
            if depth >= start:  # the decoder layer reads the encoder stream after its update
                hidden_states, layer_penalties = self.decoder_layers[depth - start](
                    hidden_states, encoder_states, shared_attention, memory_rotary=memory_rotary, **shared
                )
                penalties.append(layer_penalties)
        return encoder_states, hidden_states, penalties


class ParallelEncoderDecoderForCausalLM(EncoderDecoderForCausalLM):
    """[`ParallelEncoderDecoderModel`] with a head that predicts the next token."""

    config: ParallelEncoderDecoderConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    model_class = ParallelEncoderDecoderModel


__all__ = ["ParallelEncoderDecoderForCausalLM", "ParallelEncoderDecoderModel"]
