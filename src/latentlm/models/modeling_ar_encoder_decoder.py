"""The auto-regressive encoder-decoder: a causal encoder, then a causal decoder that also cross-attends to the encoder
output. One pass predicts the next token at every position. The original design comes from github.com/yiphei/yif-AI.

Shared with the parallel model: the layers (block_layers.py), which attentions a decoder layer has, the bridge and the
place of the embedding loss (block_encoder_decoder.py), and the rest of the forward, from the embedding to the logits
and `lm_loss` (block_causal_head.py).
"""

from .block_encoder_decoder import EncoderDecoderForCausalLM, EncoderDecoderModel
from .configuration_ar_encoder_decoder import AREncoderDecoderConfig


class AREncoderDecoderModel(EncoderDecoderModel):
    """The encoder and the decoder, without a head. The decoder starts from the encoder output, through the bridge."""

    config: AREncoderDecoderConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    def run_stacks(self, embeddings, positions, shared_attention, memory_rotary, **shared):
        penalties = []
        encoder_states = embeddings
        for layer in self.encoder_layers:
            encoder_states, layer_penalties = layer(encoder_states, None, shared_attention, **shared)
            penalties.append(layer_penalties)
        hidden_states = self.cross_bridge(encoder_states, positions)
        for layer in self.decoder_layers:
            hidden_states, layer_penalties = layer(
                hidden_states, encoder_states, shared_attention, memory_rotary=memory_rotary, **shared
            )
            penalties.append(layer_penalties)
        return encoder_states, hidden_states, penalties


class AREncoderDecoderForCausalLM(EncoderDecoderForCausalLM):
    """[`AREncoderDecoderModel`] with a head that predicts the next token, and the optional embedding loss."""

    config: AREncoderDecoderConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    model_class = AREncoderDecoderModel


__all__ = ["AREncoderDecoderForCausalLM", "AREncoderDecoderModel"]
