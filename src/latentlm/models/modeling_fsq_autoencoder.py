"""The FSQ autoencoder, which maps the bytes of a chunk to one code, and the code back to bytes."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_utils import PreTrainedModel
from transformers.utils.generic import ModelOutput, can_return_tuple
from transformers.utils.import_utils import is_tracing

from .block_byte_pieces import MAX_PIECE_BYTES
from .block_fsq import FSQ
from .block_typing import ModuleList
from .configuration_fsq_autoencoder import END_CLASS, FSQAutoencoderConfig


@dataclass
class FSQAutoencoderOutput(ModelOutput):
    """Output of the autoencoder. C is `max_chunk_bytes`, and n is the number of quantized values.

    Args:
        loss: scalar; in training the weighted sum of all losses, in evaluation `reconstruction_loss` alone.
        logits: `(B, C, 257)` of the bytes, and of the end class (256), which follows the last byte.
        code_index: `(B,)`, int64.
        code_values: `(B, n)` in [-1, 1], with the straight-through gradient.
        reconstruction_loss: scalar, cross-entropy in nats of the bytes and of the end. Every loss is a mean over these
            symbols, or, with `num_items_in_batch`, their sum divided by it.
        margin_loss: scalar, unweighted: the mean distance by which positions are inside `margin` of a border between
            two digits, as a fraction of `margin`. A chunk is weighted by its number of symbols.
        code_entropy_loss: scalar, unweighted: 1 - H / log L, where H is the entropy of the soft digits of one
            micro-batch, averaged over the dimensions. It is 0 if all digits are used equally often.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    code_index: torch.Tensor | None = None
    code_values: torch.Tensor | None = None
    reconstruction_loss: torch.Tensor | None = None
    margin_loss: torch.Tensor | None = None
    code_entropy_loss: torch.Tensor | None = None


FEW = 8
"""The largest number of inputs whose convolutions are computed as matrix products. For so few inputs, the kernels of
convolutions take twice the time of the products; for many inputs they take less."""


def are_few(inputs: torch.Tensor) -> bool:
    """Return whether there are at most [`FEW`] inputs, on a CPU, that need no gradient and are not traced."""
    if torch.is_grad_enabled() or is_tracing(inputs):  # a traced graph must not depend on the number
        return False
    return inputs.device.type == "cpu" and len(inputs) <= FEW


class Convolution(nn.Conv1d):
    """`nn.Conv1d` with padding by half the kernel size, which takes half the time for a few inputs `(B, D, C)`."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not are_few(input):
            return super().forward(input)
        (size,), (stride,), (padding,) = self.kernel_size, self.stride, self.padding
        windows = nn.functional.pad(input, (int(padding),) * 2).unfold(-1, size, stride)  # (B, D, C / stride, size)
        products = nn.functional.linear(windows.transpose(1, 2).flatten(2), self.weight.flatten(1), self.bias)
        return products.transpose(1, 2)


class TransposedConvolution(nn.ConvTranspose1d):
    """`nn.ConvTranspose1d` from C positions to C * stride, which takes two thirds of the time for a few inputs `(B, D,
    C)`."""

    def forward(self, input: torch.Tensor, output_size: list[int] | None = None) -> torch.Tensor:
        if not are_few(input):
            return super().forward(input, output_size)
        (size,), (stride,), (padding,) = self.kernel_size, self.stride, self.padding
        taps = self.weight.flatten(1).T @ input  # (B, D_out * size, C): what each position adds to those around it
        length = (1, input.shape[-1] * stride)
        hidden = nn.functional.fold(taps, length, (1, size), padding=(0, int(padding)), stride=(1, stride)).squeeze(2)
        return hidden if self.bias is None else hidden + self.bias.unsqueeze(1)


class ChunkEncoder(nn.Module):
    """Encoder from bytes `(B, C)` to z `(B, n)`: embedding, convolutions, pooling, LayerNorm and projection.

    Without the LayerNorm, and with a projection of the usual small standard deviation, all chunks get the same code.
    """

    embed_bytes: nn.Module  # an embedding, or the module that a tool puts in its place

    def __init__(self, config: FSQAutoencoderConfig):
        super().__init__()
        self.embed_bytes = nn.Embedding(END_CLASS, config.embedding_size)
        self.convs: ModuleList[nn.Conv1d] = ModuleList()
        width = config.embedding_size
        positions = config.max_chunk_bytes
        for channels, stride in zip(config.conv_channels, config.conv_strides, strict=True):
            self.convs.append(Convolution(width, channels, config.kernel_size, stride, config.kernel_size // 2))
            width = channels
            positions = -(-positions // stride)
        self.activation: nn.Module = ACT2FN[config.hidden_act]
        self.pooling = config.pooling
        if self.pooling == "attention":
            self.pool_scores = nn.Linear(width, 1)
        pooled_size = width * positions if self.pooling == "flatten" else width
        self.norm = nn.LayerNorm(pooled_size, eps=config.layer_norm_eps)
        self.to_code = nn.Linear(pooled_size, len(config.levels))

    def initialize_parameters(self) -> None:
        init.normal_(self.to_code.weight, std=self.to_code.in_features**-0.5)

    def forward(self, input_ids: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        real = torch.arange(input_ids.shape[1], device=input_ids.device) < lengths.unsqueeze(1)  # (B, C)
        hidden = self.embed_bytes(input_ids.masked_fill(~real, 0)).transpose(1, 2)  # (B, D_byte, C)
        hidden = hidden * real.unsqueeze(1)
        for conv in self.convs:
            hidden = self.activation(conv(hidden))
            real = real[:, :: conv.stride[0]]
            hidden = hidden * real.unsqueeze(1)  # despite the biases, positions after the chunk stay 0
        if self.pooling == "mean":
            pooled = hidden.sum(-1) / real.sum(-1, keepdim=True).clamp(min=1)
        elif self.pooling == "attention":
            scores = self.pool_scores(hidden.transpose(1, 2)).squeeze(-1)
            weights = scores.masked_fill(~real, torch.finfo(scores.dtype).min).softmax(-1)  # (B, C')
            pooled = (hidden * weights.unsqueeze(1)).sum(-1)
        else:
            pooled = hidden.flatten(1)
        return self.to_code(self.norm(pooled))


class VectorDecoder(nn.Module):
    """Decoder from a vector `(B, D)` to logits `(B, C, 257)`. Transposed convolutions multiply the number of positions
    by their strides.

    It is also the byte head of a language model, where it maps hidden states to the bytes of the next token.
    """

    def __init__(self, config: FSQAutoencoderConfig):
        super().__init__()
        self.num_start_positions = config.num_start_positions
        width = config.hidden_size
        self.expand = nn.Linear(width, self.num_start_positions * width)
        self.deconvs = nn.ModuleList()
        for channels, stride in zip(config.deconv_channels, config.deconv_strides, strict=True):
            # The output padding makes the length an exact multiple.
            self.deconvs.append(
                TransposedConvolution(width, channels, config.kernel_size, stride, config.kernel_size // 2, stride - 1)
            )
            width = channels
        self.activation: nn.Module = ACT2FN[config.hidden_act]
        self.to_bytes = nn.Linear(width, config.vocab_size)
        self.to_bytes.is_output = True  # pyright: ignore[reportArgumentType]

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        return self.spell(self.expand(vectors))

    def spell(self, expanded: torch.Tensor) -> torch.Tensor:
        """Return the logits `(B, C, 257)` for the output of `expand`."""
        hidden = self.activation(expanded)
        hidden = hidden.unflatten(-1, (-1, self.num_start_positions))  # (B, D, C / strides)
        for deconv in self.deconvs:
            hidden = self.activation(deconv(hidden))
        return self.to_bytes(hidden.transpose(1, 2))


class FSQAutoencoderPreTrainedModel(PreTrainedModel):
    """Base class of the autoencoder, with flags and the initialisation of weights."""

    config: FSQAutoencoderConfig
    base_model_prefix = "autoencoder"
    main_input_name = "input_ids"
    _can_compile_fullgraph = True

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv1d | nn.ConvTranspose1d | nn.Linear):
            # This preserves the variance of activations (He et al. 2015, arXiv:1502.01852); the stack has no norms.
            init.kaiming_normal_(module.weight, nonlinearity="relu", mode="fan_in")
            assert module.bias is not None
            init.zeros_(module.bias)
        else:
            super()._init_weights(module)
        if isinstance(module, ChunkEncoder | FSQ):
            module.initialize_parameters()


class FSQAutoencoderModel(FSQAutoencoderPreTrainedModel):
    """The autoencoder, which maps a chunk of at most `max_chunk_bytes` bytes to one code and back."""

    def __init__(self, config: FSQAutoencoderConfig):
        super().__init__(config)
        self.encoder = ChunkEncoder(config)
        self.fsq = FSQ(config.levels, config.temperature, config.quantization_noise, config.num_quantizers)
        self.from_code = nn.Linear(len(config.levels), config.hidden_size)
        self.decoder = VectorDecoder(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.encoder.embed_bytes

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.encoder.embed_bytes = value

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor,  # (B, T), T <= C; a chunk ends at its first id of 256
        labels: torch.Tensor | None = None,  # (B, T), -100 is ignored; position t is scored against label t
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Any,
    ) -> FSQAutoencoderOutput:
        """
        Raises:
            ValueError: if `input_ids` are longer than `max_chunk_bytes`.
        """
        missing = self.config.max_chunk_bytes - input_ids.shape[1]
        if missing < 0:
            raise ValueError(
                f"`input_ids` are {tuple(input_ids.shape)}, but `max_chunk_bytes` is {self.config.max_chunk_bytes}: a "
                f"chunk has at most that many bytes. The rows of a recipe have {MAX_PIECE_BYTES}."
            )
        input_ids = nn.functional.pad(input_ids, (0, missing), value=END_CLASS)
        lengths = (input_ids != END_CLASS).cumprod(-1).sum(-1)
        z = self.encoder(input_ids, lengths)
        values, index = self.fsq(z)
        logits = self.decoder(self.from_code(values.to(z.dtype)))
        losses = {}
        if labels is not None:
            losses = self._losses(z, logits, labels, num_items_in_batch)
        return FSQAutoencoderOutput(logits=logits, code_index=index, code_values=values, **losses)

    def _losses(
        self,
        z: torch.Tensor,
        logits: torch.Tensor,
        labels: torch.Tensor,
        num_items_in_batch: torch.Tensor | int | None,
    ) -> dict[str, torch.Tensor]:
        logits = logits[:, : labels.shape[1]]
        total = nn.functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), reduction="sum")
        symbols = labels.ne(-100).sum(-1)  # (B,)
        count = symbols.sum() if num_items_in_batch is None else num_items_in_batch
        losses = {"reconstruction_loss": total / count}
        positions = self.fsq.positions(z)
        if self.config.margin_loss_weight:
            to_border = 0.5 - (positions - positions.detach().round()).abs()
            short = (1 - to_border / self.config.margin).clamp(min=0).mean(-1)
            losses["margin_loss"] = (short * symbols).sum() / count
        if self.config.code_entropy_loss_weight:
            losses["code_entropy_loss"] = self._unused_entropy(positions) * symbols.sum() / count
        loss = losses["reconstruction_loss"]
        if self.training:
            for name in ("margin_loss", "code_entropy_loss"):
                if name in losses:
                    loss = loss + getattr(self.config, f"{name}_weight") * losses[name]
        return {"loss": loss, **losses}

    def _unused_entropy(self, positions: torch.Tensor) -> torch.Tensor:
        """Return 1 - H / log L of the digits, averaged over the dimensions. Each of the positions `(B, N)` counts for
        the two digits around it, by linear interpolation."""
        missing = []
        for values, levels in zip(positions.unbind(-1), self.fsq.levels, strict=True):
            digits = torch.arange(levels, device=values.device)
            share = (1 - (values.unsqueeze(-1) - digits).abs()).clamp(min=0).mean(0)  # (L,), sums to 1
            missing.append(1 - torch.special.entr(share).sum() / math.log(levels))
        return torch.stack(missing).mean()

    @torch.no_grad()
    def encode(self, chunks: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Return the code indices `(B,)`, int64, of chunks `(B, C)`, uint8 or int64, whose first `lengths` `(B,)` bytes
        count."""
        return self.fsq(self.encoder(chunks.long(), lengths))[1]

    @torch.no_grad()
    def decode(self, code_index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the bytes of code indices `(B,)`: `(B, C)`, uint8, 0 after the end, and their numbers `(B,)`,
        int64."""
        values = self.fsq.values(self.fsq.digits(code_index)).to(self.from_code.weight.dtype)
        symbols = self.decoder.spell(self._expand(values)).argmax(-1)  # (B, C)
        inside = (symbols != END_CLASS).cumprod(-1)
        return (symbols * inside).to(torch.uint8), inside.sum(-1)

    def _expand(self, values: torch.Tensor) -> torch.Tensor:
        """Return `decoder.expand(from_code(values))` for values `(B, n)`. These two layers are one affine map of n
        numbers. For many values, the map is computed from its results for 0 and for each unit vector, which saves a
        tenth of the time of decoding."""
        count, size = values.shape
        if count <= size:
            return self.decoder.expand(self.from_code(values))
        axes = torch.eye(size + 1, size, dtype=values.dtype, device=values.device)  # the last is 0
        ends = self.decoder.expand(self.from_code(axes))
        return torch.addmm(ends[-1], values, ends[:-1] - ends[-1])


__all__ = ["FSQAutoencoderModel", "FSQAutoencoderPreTrainedModel"]
