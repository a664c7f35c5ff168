"""The models that the GPU benchmark measures: every architecture at a number of parameters, and a batch of it."""

import dataclasses
from collections.abc import Callable
from pydoc_data.topics import topics
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedConfig, PreTrainedModel

import latentlm

Batch = dict[str, Any]
VOCAB_SIZE = 264  # of bytes, filled up to a multiple of eight


@dataclasses.dataclass(frozen=True)
class Subject:
    """One architecture.

    Args:
        make: configuration and class of the model, of a width, a depth and a context length.
        batch: rows of a length, labels included.
        generates: whether `generate` continues a row; a model that repairs texts reads one and writes it.
        static: whether it decodes with a static cache.
        chooses: whether it picks codes, of which rounding may pick others where two are equally near.
    """

    make: Callable[[int, int, int], tuple[PreTrainedConfig, type[PreTrainedModel]]]
    batch: Callable[[PreTrainedModel, int, int], Batch]
    generates: bool = True
    static: bool = True
    chooses: bool = False

    def build(self, width: int, depth: int, length: int, **options: Any) -> PreTrainedModel:
        """A model with random weights of seed 0, and the attention implementation of `options`."""
        config, model_class = self.make(width, depth, length)
        torch.manual_seed(0)
        model = model_class._from_config(config, **options)
        model.generation_config.eos_token_id = None  # so that the length of what is written is known
        return model

    def depth_of(self, width: int, parameters: int, length: int) -> int:
        """The depth at which the body comes nearest to `parameters`."""

        def body(depth: int) -> int:
            config, model_class = self.make(width, depth, length)
            with torch.device("meta"):
                return body_parameters(model_class(config))

        first, second = body(1), body(2)
        return max(1, 1 + round((parameters - first) / (second - first)))


def body_parameters(model: torch.nn.Module) -> int:
    """All but tables that are looked up."""
    tables = {id(m.weight): m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    return sum(parameter.numel() for parameter in model.parameters()) - sum(tables.values())


def text_bytes(count: int) -> bytes:
    text = " ".join(" ".join(topics.values()).split()).encode()
    return (text * (1 + count // len(text)))[:count]


def rows(model: PreTrainedModel, count: int, length: int) -> Batch:
    ids = torch.tensor([*text_bytes(count * length)]).view(count, length)
    return {"input_ids": ids, "labels": ids}


def texts(model: PreTrainedModel, count: int, length: int) -> Batch:
    """Texts with every seventh byte changed, and how their words are laid in rows."""
    data = text_bytes(count * length).decode()
    split = [data[i * length : (i + 1) * length] for i in range(count)]
    inputs = latentlm.EncodzallTokenizer()(split, padding=True, return_tensors="pt", max_length=length, truncation=True)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    changed = (torch.arange(ids.shape[1]) % 7 == 0) & (ids > ord(" ")) & (ids < 256)
    labels = ids.masked_fill(mask == 0, -100)
    batch = {"input_ids": ids.masked_fill(changed, ord("x")), "attention_mask": mask, "labels": labels}
    return batch | model.pack(**batch, bucketed=True)


def transformer(width: int, length: int) -> dict[str, Any]:
    heads = max(2, width // 64)
    return {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": width,
        "num_attention_heads": heads,
        "max_position_embeddings": length,
        "position_embedding_type": "rotary",
    }


def gpt2(width: int, depth: int, length: int):
    config = GPT2Config(
        vocab_size=VOCAB_SIZE,
        n_embd=width,
        n_layer=depth,
        n_head=max(2, width // 64),
        n_positions=length,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=None,
        eos_token_id=None,
    )
    return config, GPT2LMHeadModel


def decoder_only(width: int, depth: int, length: int):
    config = latentlm.DecoderOnlyConfig(num_hidden_layers=depth, **transformer(width, length))
    return config, latentlm.DecoderOnlyForCausalLM


def ar_encoder_decoder(width: int, depth: int, length: int):
    fields = transformer(width, length) | {"position_embedding_type": "learned", "position_subtraction": "plain"}
    config = latentlm.AREncoderDecoderConfig(num_encoder_layers=depth, num_decoder_layers=depth, **fields)
    return config, latentlm.AREncoderDecoderForCausalLM


def parallel_encoder_decoder(width: int, depth: int, length: int):
    config = latentlm.ParallelEncoderDecoderConfig(
        num_encoder_layers=depth, num_decoder_layers=depth, **transformer(width, length)
    )
    return config, latentlm.ParallelEncoderDecoderForCausalLM


def abstractinator(width: int, depth: int, length: int):
    level = {f"num_{part}_layers": depth for part in ("entropy", "compressor", "expander")}
    config = latentlm.AbstractinatorConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=width,
        num_attention_heads=max(2, width // 64),
        max_position_embeddings=length,
        num_top_layers=depth,
        levels=[level | {"num_codes": 256, "code_dim": 16, "delta": 0.02}],
    )
    return config, latentlm.AbstractinatorForCausalLM


def encodzall(width: int, depth: int, length: int):
    config = latentlm.EncodzallConfig(
        hidden_size=width,
        num_attention_heads=max(2, width // 64),
        num_key_value_heads=max(2, width // 64),
        intermediate_size=4 * width,
        num_word_encoder_layers=depth,
        num_context_encoder_layers=depth,
        num_decoder_layers=depth,
        max_position_embeddings=2 * length,  # long words are split, each part with a mark
        max_word_bytes=16,
    )
    return config, latentlm.EncodzallForMaskedDenoising


SUBJECTS = {
    "decoder_only": Subject(decoder_only, rows),
    "ar_encoder_decoder": Subject(ar_encoder_decoder, rows),
    "parallel_encoder_decoder": Subject(parallel_encoder_decoder, rows),
    "encodzall": Subject(encodzall, texts, generates=False),
    "abstractinator": Subject(abstractinator, rows, static=False, chooses=True),
    "gpt2": Subject(gpt2, rows),
}
"""By model type; the last is that of transformers, which the others are compared with."""
