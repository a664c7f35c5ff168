"""The models against slow, obvious re-implementations, their options one by one, and their initial weights."""

import math
from typing import Any, NamedTuple

import pytest
import torch
from architectures import (
    ARCHITECTURES,
    CAUSAL,
    PAD,
    SIZES,
    Case,
    build,
    each_architecture,
    gradients,
    loss_terms,
    options,
    parameters,
    randomise,
    token_ids,
)
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from latentlm import (
    AREncoderDecoderConfig,
    AREncoderDecoderForCausalLM,
    DecoderOnlyConfig,
    DecoderOnlyForCausalLM,
    ParallelEncoderDecoderConfig,
    ParallelEncoderDecoderForCausalLM,
)
from latentlm.models.block_embedding_loss import CausalConvolution, CausalMixing, EmbeddingLoss

# --- the forward pass, one token and one head at a time ---------------------------------------------------------------


class Weights:
    """The parameters of one module by name; a missing bias is 0 and a missing gain is 1."""

    def __init__(self, parameters: dict[str, torch.Tensor], prefix: str = ""):
        self.parameters, self.prefix = parameters, prefix

    def __getitem__(self, name: str) -> "Weights":
        return Weights(self.parameters, f"{self.prefix}{name}.")

    def linear(self, x: torch.Tensor) -> torch.Tensor:
        y = self.parameters[f"{self.prefix}weight"] @ x
        return y + self.parameters.get(f"{self.prefix}bias", 0)

    def norm(self, x: torch.Tensor, eps: float) -> torch.Tensor:
        centred = x - x.mean()
        normal = centred / (centred.pow(2).mean() + eps).sqrt()
        return normal * self.parameters.get(f"{self.prefix}weight", 1) + self.parameters.get(f"{self.prefix}bias", 0)


def turn(vector: torch.Tensor, position: int, theta: float = 10_000.0) -> torch.Tensor:
    """Rotary position: the pair (i, i + d / 2) is a complex number, turned by position * theta^(-2 i / d)."""
    half = len(vector) // 2
    pairs = torch.complex(vector[:half], vector[half:])
    angles = torch.tensor([position * theta ** (-i / half) for i in range(half)])
    turned = pairs * torch.polar(torch.ones(half), angles)
    return torch.cat([turned.real, turned.imag])


def attention(queries: list, keys: list, values: list, heads: int, turned: int) -> list[torch.Tensor]:
    """Position t over the positions up to t; each a list over positions of all heads' vectors side by side. Keys and
    values may have fewer heads, each for a group of heads. Positions turn the last `turned` of a vector."""

    def head(vector: torch.Tensor, h: int, parts: int) -> torch.Tensor:
        return vector.chunk(parts)[h * parts // heads]

    size = len(queries[0]) // heads
    shared = len(keys[0]) // size  # heads of keys and values
    outputs = []
    for t in range(len(queries)):
        output = []
        for h in range(heads):
            scores = []
            for z in range(t + 1):
                query, key = head(queries[t], h, heads), head(keys[z], h, shared)
                if turned:
                    query, key = (
                        torch.cat([vector[:-turned], turn(vector[-turned:], place)])
                        for vector, place in ((query, t), (key, z))
                    )
                scores.append(query @ key / math.sqrt(size))
            probabilities = torch.stack(scores).softmax(0)
            output.append(sum(p * head(values[z], h, shared) for z, p in enumerate(probabilities)))
        outputs.append(torch.cat(output))
    return outputs


def ngram_rows(ids: list[int], config: Any) -> list[int]:
    """The row of the n-gram table for each length, of the last of `ids`, all that its document has up to there."""
    rows = []
    for number, n in enumerate(config.ngram_embedding):
        window = [*[0] * n, *(i + 1 for i in ids)][-n:]  # ids are counted from 1, 0 stands before the first
        total = sum(symbol * config.ngram_multiplier**back for back, symbol in enumerate(reversed(window)))
        rows.append(number * config.ngram_buckets + total % (2**31 - 1) % config.ngram_buckets)
    return rows


@torch.no_grad()
def reference_logits(model: nn.Module, ids: list[int]) -> torch.Tensor:
    """Logits `(T, V)` of one unpadded row, by the formulas of the design's page."""
    config = model.config
    weights = Weights({**dict(model.named_parameters()), **dict(model.named_buffers())})
    inner = weights["model"]
    rotary = config.position_embedding_type == "rotary"
    eps = config.layer_norm_eps

    def attend(queries: list, keys: list, module: Weights, heads: int) -> list:
        """What an attention reads, from the normal states of queries and of keys."""
        if config.attention_form == "latent":
            rope = config.latent_rope_size

            def through(x: torch.Tensor, name: str, size: int) -> torch.Tensor:
                latent = module[f"{name}_down"].linear(x)[:size]
                scale = (latent.pow(2).mean() + eps).sqrt()
                return module[f"{name}_up"].linear(
                    latent / scale * module.parameters[f"{module.prefix}{name}_norm.weight"]
                )

            q = [through(x, "q", config.query_latent_size) for x in queries]
            pairs = [through(x, "kv", config.key_value_latent_size).chunk(2) for x in keys]
            together = [module["kv_down"].linear(x)[config.key_value_latent_size :] for x in keys]
            k = [
                torch.cat([torch.cat([part, extra]) for part in key.chunk(heads)])
                for (key, _), extra in zip(pairs, together, strict=True)
            ]
            v = [value for _, value in pairs]
        else:
            rope, groups = config.hidden_size // heads, config.num_attention_heads // config.num_key_value_heads
            size = config.hidden_size // groups
            if f"{module.prefix}qkv_proj.weight" in module.parameters:
                q, k, v = zip(
                    *(module["qkv_proj"].linear(x).split([config.hidden_size, size, size]) for x in queries),
                    strict=True,
                )
            else:
                q = [module["q_proj"].linear(x) for x in queries]
                k, v = zip(*(module["kv_proj"].linear(x).chunk(2) for x in keys), strict=True)
        read = attention(q, k, v, heads, rope if rotary else 0)
        return [module["o_proj"].linear(x) for x in read]

    def self_attention(states: list, layer: Weights) -> list:
        normal = [layer["self_attn_norm"].norm(x, eps) for x in states]
        read = attend(normal, normal, layer["self_attn"], config.num_attention_heads)
        return [x + r for x, r in zip(states, read, strict=True)]

    def cross_attention(states: list, encoded: list, layer: Weights) -> list:
        queries = [layer["cross_attn_query_norm"].norm(x, eps) for x in states]
        keys = [layer["cross_attn_key_norm"].norm(x, eps) for x in encoded]
        read = attend(queries, keys, layer["cross_attn"], config.num_cross_attention_heads)
        gate = weights.parameters[f"{layer.prefix}cross_attn_gate"] if config.cross_attention_gate else 1
        return [x + gate * r for x, r in zip(states, read, strict=True)]

    def mask_values(inputs: list, module: Weights) -> list:
        """A of LearnedDropout: what its attention gives at each position."""
        queries, keys, values = zip(*(module["qkv_proj"].linear(x).chunk(3) for x in inputs), strict=True)
        return attention(queries, keys, values, config.num_mask_heads, turned=0)

    def learned_mask(inputs: list, module: Weights) -> list:
        """The rounded mask at each position, as in evaluation."""
        if config.learned_dropout_input == "hidden_state":
            attended = mask_values(inputs, module["attention"])
        else:
            attended = mask_values(embeddings, inner["mask_attention"])
        shift = weights.parameters[f"{module.prefix}shift"]
        masks = []
        for a in attended:
            m = 0.5 * torch.cos(a + shift) + 0.5
            hard = config.learned_dropout == "bernoulli"
            masks.append(torch.where(m < 0.5, 0.0, 1.0) if hard else 1 / (1 + torch.exp(-60 * (m - 0.5))))
        return masks

    def feed_forward(states: list, layer: Weights) -> list:
        mlp = layer["mlp"]
        normal = [layer["mlp_norm"].norm(x, eps) for x in states]
        inner_channels = [mlp["up_proj"].linear(x) for x in normal]
        if config.hidden_act == "relu2":
            inner_channels = [up.clamp(min=0) ** 2 for up in inner_channels]
        else:
            inner_channels = [up * 0.5 * (1 + torch.erf(up / math.sqrt(2))) for up in inner_channels]
        outputs = [mlp["down_proj"].linear(channels) for channels in inner_channels]
        if f"{mlp.prefix}learned_dropout.shift" in weights.parameters:
            outputs = [o * m for o, m in zip(outputs, learned_mask(outputs, mlp["learned_dropout"]), strict=True)]
        return [x + output for x, output in zip(states, outputs, strict=True)]

    tokens = weights.parameters["model.embed_tokens.weight"]
    positions = weights.parameters.get("model.embed_positions.weight")
    states = [tokens[i] if rotary else tokens[i] + positions[t] for t, i in enumerate(ids)]
    if config.ngram_embedding is not None:
        table = weights.parameters["model.embed_ngrams.table.weight"]
        places = [ngram_rows(ids[: t + 1], config) for t in range(len(ids))]
        read = [[table[row] for row in rows] for rows in places]
        if config.ngram_embedding_size is None:
            vectors = [sum(rows) for rows in read]
        else:
            vectors = [weights["model"]["embed_ngrams"]["up"].linear(torch.cat(rows)) for rows in read]
        states = [x + vector for x, vector in zip(states, vectors, strict=True)]
    embeddings = states

    def bridge(states: list) -> list:
        if config.bridge_layer_norm:
            states = [inner["bridge_norm"].norm(x, eps) for x in states]
        states = [inner["bridge"].linear(x) for x in states]
        return [x + positions[t + 1] for t, x in enumerate(states)] if config.add_next_position else states

    def encode(states: list, layer: Weights) -> list:
        return feed_forward(self_attention(states, layer), layer)

    def decode(states: list, encoded: list, layer: Weights) -> list:
        if not getattr(config, "decoder_self_attention", True):
            states = cross_attention(states, encoded, layer)
        elif config.decoder_order == "self_first":
            states = cross_attention(self_attention(states, layer), encoded, layer)
        else:
            states = self_attention(cross_attention(states, encoded, layer), layer)
        return feed_forward(states, layer)

    if config.model_type == "decoder_only":
        for i in range(config.num_hidden_layers):
            states = encode(states, inner[f"layers.{i}"])
    elif config.model_type == "ar_encoder_decoder":
        for i in range(config.num_encoder_layers):
            states = encode(states, inner[f"encoder_layers.{i}"])
        encoded = states
        states = bridge(encoded)
        for i in range(config.num_decoder_layers):
            states = decode(states, encoded, inner[f"decoder_layers.{i}"])
    else:
        encoded, decoded = states, None
        for i in range(config.num_encoder_layers):
            beside = i - (config.num_encoder_layers - config.num_decoder_layers)
            if beside == 0:
                decoded = bridge(encoded)
            encoded = encode(encoded, inner[f"encoder_layers.{i}"])
            if beside >= 0:
                decoded = decode(decoded, encoded, inner[f"decoder_layers.{beside}"])
        states = decoded
    states = [inner["norm"].norm(x, eps) for x in states]
    if config.position_subtraction != "none":
        states = [x - positions[t + 1] for t, x in enumerate(states)]
    if config.position_subtraction == "layer_norm":
        states = [inner["position_subtraction"]["norm"].norm(x, eps) for x in states]
    return torch.stack([weights.parameters.get("lm_head.weight", tokens) @ x for x in states])


REFERENCES = ("decoder_only", "ar_encoder_decoder", "parallel_encoder_decoder")


@pytest.mark.parametrize("case", parameters([a for a in CAUSAL if a.name in REFERENCES]))
def test_logits_equal_a_loop_over_tokens_and_heads(case: Case):
    model = case.model()
    ids = token_ids(1, 9)
    torch.testing.assert_close(model(ids).logits[0], reference_logits(model, ids[0].tolist()), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("use_bias", [False, True])
def test_decoder_only_equals_gpt2_of_transformers(use_bias: bool):
    config = DecoderOnlyConfig(**SIZES, num_hidden_layers=2, use_bias=use_bias)
    model = build(DecoderOnlyForCausalLM, config)
    peer = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=config.vocab_size,
            n_embd=config.hidden_size,
            n_head=config.num_attention_heads,
            n_inner=config.intermediate_size,
            n_layer=2,
            n_positions=config.max_position_embeddings,
            activation_function="gelu",
            **dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), 0.0),
        )
    )
    names = {
        "transformer.wte": "model.embed_tokens",
        "transformer.wpe": "model.embed_positions",
        "transformer.ln_f": "model.norm",
        ".h.": ".layers.",
        "transformer.": "model.",
        "ln_1": "self_attn_norm",
        "ln_2": "mlp_norm",
        "attn.c_attn": "self_attn.qkv_proj",
        "attn.c_proj": "self_attn.o_proj",
        "mlp.c_fc": "mlp.up_proj",
        "mlp.c_proj": "mlp.down_proj",
    }
    ours = model.state_dict()
    state = peer.state_dict()
    for name, value in state.items():
        for theirs, mine in names.items():
            name = name.replace(theirs, mine)
        weight = ours.get(name, torch.zeros(()))  # GPT-2 always has biases
        is_conv1d = ".layers." in name and weight.ndim == 2  # its Conv1D holds the transpose
        value.copy_(weight.T if is_conv1d else weight)
    peer.eval()

    ids = token_ids(2, 20)
    torch.testing.assert_close(model(ids).logits, peer(ids).logits, rtol=1e-4, atol=1e-4)
    loss, peer_loss = (m(ids, labels=ids).loss for m in (model, peer))
    torch.testing.assert_close(loss, peer_loss)
    mask = torch.ones_like(ids)
    mask[1, :7] = 0  # left padding
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    torch.testing.assert_close(
        model(ids, attention_mask=mask).logits[1, 7:],
        peer(ids, attention_mask=mask, position_ids=positions).logits[1, 7:],
        rtol=1e-4,
        atol=1e-4,
    )


# --- every option -----------------------------------------------------------------------------------------------------


def training_step(architecture, fields: dict) -> dict[str, torch.Tensor]:
    """Everything that a training step shows of a model: logits, losses, gradients of its first layers."""
    torch.manual_seed(1)
    model = build(architecture.head_class, architecture.config_class(**fields)).train()
    output = model(**architecture.batch(2, 0), training_step=torch.tensor(3.0))
    output.loss.backward()
    shown = {name: gradient for name, gradient in gradients(model).items() if "embed_" in name or ".0." in name}
    return {"logits": output.logits.detach(), "loss": output.loss.detach(), **loss_terms(output), **shown}


@pytest.mark.parametrize(
    ("architecture", "before", "after"),
    [
        pytest.param(architecture, before, after, id=f"{architecture.name}-{name}")
        for architecture in ARCHITECTURES
        for name, before, after in options(architecture)
    ],
)
def test_every_option_changes_the_training_step(architecture, before, after):
    """Both models agree in every parameter they share, so only the option can make the difference."""
    first, second = training_step(architecture, before), training_step(architecture, after)
    common = {name for name in first.keys() & second.keys() if first[name].shape == second[name].shape}
    assert first["logits"].shape != second["logits"].shape or any(
        not torch.allclose(first[name], second[name], rtol=1e-3, atol=1e-6) for name in common
    )


@each_architecture
def test_the_same_option_twice_changes_nothing(architecture):
    """The test above would pass for every option if a training step were not repeatable."""
    fields = architecture.sizes | architecture.loss_base
    first, second = training_step(architecture, fields), training_step(architecture, fields)
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=0, atol=0)


# --- the embedding loss -----------------------------------------------------------------------------------------------


def plain_norm(x: torch.Tensor, norm: nn.Module) -> torch.Tensor:
    if isinstance(norm, nn.Identity):
        return x
    normal = (x - x.mean()) / (x.var(unbiased=False) + norm.eps).sqrt()
    return normal if norm.weight is None else normal * norm.weight + norm.bias


class Document(NamedTuple):
    """A document's tokens: what the model makes of them, which of them count, their places in the row, and their
    positions."""

    embeddings: torch.Tensor  # (T, D)
    encoded: torch.Tensor  # (T, D)
    counted: list[bool]
    places: list[int]
    positions: list[int]


def reference_embedding_loss(
    config: AREncoderDecoderConfig, module: EmbeddingLoss, documents: list[Document]
) -> torch.Tensor:
    """Mean over the counted tokens of all documents."""
    losses = []
    for embeddings, encoded, counted, places, positions in documents:
        before = [
            plain_norm(e, module.input_norm) if config.embedding_loss_input_norm == "before" else e for e in embeddings
        ]
        for t in range(len(embeddings)):
            if not counted[t]:
                continue
            if config.embedding_loss_aggregation == "mean":
                aggregate = sum(before[: t + 1]) / (t + 1)
            elif config.embedding_loss_aggregation == "convolution":
                taps = module.aggregation.weight
                distances = {places[t] - place: z for z, place in enumerate(places[: t + 1])}
                inside = [k for k in range(len(taps)) if k in distances]
                aggregate = len(taps) / len(inside) * sum(taps[k] * before[distances[k]] for k in inside)
            else:
                shares = module.aggregation.weight[positions[t], positions[: t + 1]].softmax(0)
                aggregate = sum(share * e for share, e in zip(shares, before, strict=False))
            if config.embedding_loss_input_norm == "after":
                aggregate = plain_norm(aggregate, module.input_norm)
            target = plain_norm(encoded[t], module.output_norm)
            if config.embedding_loss == "mse":
                losses.append((aggregate - target).pow(2).sum() / len(target))
            else:
                cosine = (aggregate @ target) / (aggregate.norm() * target.norm())
                affinity = (cosine + 1) / 2
                losses.append(1 - affinity if config.embedding_loss == "cosine" else -affinity.log())
    return torch.stack(losses).mean()


LOSSES = [
    {"embedding_loss": kind, "embedding_loss_aggregation": aggregation, "embedding_loss_kernel_size": 3}
    for kind in ("mse", "cosine", "log_cosine")
    for aggregation in ("mean", "convolution", "mixing")
] + [
    {"embedding_loss": "mse", "embedding_loss_input_norm": place, "embedding_loss_output_norm": output}
    for place in ("before", "after", "none")
    for output in ("affine", "plain", "none")
]


LAYOUTS = ["plain", "left_padding", "right_padding", "packing", "ignored_labels", "hole", "hole_in_packing", "gap"]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("fields", LOSSES, ids=lambda fields: "-".join(map(str, fields.values())))
def test_embedding_loss_equals_a_loop_over_tokens(fields: dict, layout: str):
    config = AREncoderDecoderConfig(**SIZES, num_encoder_layers=1, num_decoder_layers=1, **fields)
    model = build(AREncoderDecoderForCausalLM, config)
    ids = token_ids(2, 11)
    labels = ids.clone()
    inputs: dict[str, torch.Tensor] = {}
    spans = [(row, range(11)) for row in range(2)]  # (row, places) of each document
    if layout == "left_padding":
        spans = [(0, range(4, 11)), (1, range(11))]
    elif layout == "right_padding":
        spans = [(0, range(7)), (1, range(11))]
    elif layout in ("packing", "gap"):
        spans = [(0, range(4)), (0, range(4, 11)), (1, range(1)), (1, range(1, 11))]
        inputs["position_ids"] = torch.tensor([[*range(4), *range(7)], [0, *range(10)]])
    elif layout == "ignored_labels":
        labels[0, 3:6] = -100
        labels[1, 10] = -100
    elif layout == "hole":  # in the second row after the first token, as the position does not show
        spans = [(0, [0, 1, 2, 5, 6, 7, 8, 9, 10]), (1, [0, *range(2, 11)])]
    elif layout == "hole_in_packing":
        spans = [(0, range(4)), (0, [4, 5, 7, 8, 9, 10]), (1, range(11))]
        inputs["position_ids"] = torch.tensor([[*range(4), 0, 1, 0, 2, 3, 4, 5], [*range(11)]])
    if layout == "gap":
        inputs["position_ids"][0, 5:] += 4  # more than tokens before them
        inputs["position_ids"][1, 6:] += 1
    if "padding" in layout or "hole" in layout:
        mask = torch.zeros_like(ids)
        for row, places in spans:
            mask[row, list(places)] = 1
        inputs["attention_mask"] = mask
        labels[mask == 0] = -100
        ids[mask == 0] = PAD
    for row, places in spans:
        labels[row, [place for place in places if place - 1 not in places]] = -100  # predicted by none of its document
    output = model(ids, labels=labels, **inputs)

    documents = []
    for row, places in spans:
        places = list(places)
        positions = list(range(len(places)))
        if layout == "gap":
            positions = inputs["position_ids"][row, places].tolist()
        states = model.model(ids[row : row + 1, places], position_ids=torch.tensor([positions]))
        counted = [t + 1 < 11 and bool(labels[row, t + 1] != -100) for t in places]
        documents.append(
            Document(states.input_embeddings[0], states.encoder_last_hidden_state[0], counted, places, positions)
        )
    expected = reference_embedding_loss(config, model.embedding_loss, documents)
    torch.testing.assert_close(output.embedding_loss, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("aggregation", ["mean", "convolution", "mixing"])
def test_no_other_document_moves_the_embedding_loss(aggregation: str):
    """Also where positions have gaps, and where a real token follows padding in its document."""
    config = AREncoderDecoderConfig(**SIZES, embedding_loss="mse", embedding_loss_aggregation=aggregation)
    module = EmbeddingLoss(config)
    randomise(module)
    embeddings, encoded = torch.randn(2, 1, 8, 32)
    other = torch.cat((torch.randn(1, 4, 32), embeddings[:, 4:]), 1)
    positions, mask = torch.tensor([[0, 1, 2, 3, 0, 5, 6, 6]]), torch.tensor([[1, 1, 1, 1, 1, 0, 1, 1]])
    values = module(embeddings, encoded, mask, positions)
    torch.testing.assert_close(module(other, encoded, mask, positions)[:, 4:], values[:, 4:], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(module(other, encoded, mask, positions)[:, 3], values[:, 3], atol=1e-2)


def test_the_convolution_starts_as_a_local_mean():
    """Over the real tokens of the document among the last three places."""
    config = AREncoderDecoderConfig(**SIZES, embedding_loss="mse", embedding_loss_kernel_size=3)
    aggregation = CausalConvolution(config)
    aggregation.initialize_parameters()
    values = torch.arange(1.0, 9.0).view(1, 8, 1).expand(-1, -1, 32)
    positions, mask = torch.tensor([[0, 1, 2, 3, 0, 1, 0, 2]]), torch.tensor([[1, 1, 1, 1, 1, 1, 0, 1]])
    means = aggregation(values, mask, positions)[0, :, 0]
    expected = torch.tensor([1, (1 + 2) / 2, 2, 3, 5, (5 + 6) / 2, (5 + 6) / 2, (6 + 8) / 2])
    torch.testing.assert_close(means, expected)
    plain = aggregation(values, None, None)[0, :, 0]
    torch.testing.assert_close(plain, torch.tensor([1, 1.5, 2, 3, 4, 5, 6, 7]))


def test_mixing_takes_its_shares_in_float32():
    config = AREncoderDecoderConfig(**SIZES, embedding_loss="mse", embedding_loss_aggregation="mixing")
    aggregation = CausalMixing(config)
    randomise(aggregation)
    embeddings = torch.randn(1, 30, 32)
    aggregation.bfloat16()
    found = aggregation(embeddings, None, None)
    assert torch.equal(found, aggregation.float()(embeddings, None, None))


@pytest.mark.parametrize("detach", ["encoder", "embeddings", "none"])
def test_embedding_loss_leaves_alone_what_is_detached(detach: str):
    config = AREncoderDecoderConfig(**SIZES, embedding_loss="mse", embedding_loss_detach=detach)
    embeddings, encoded = torch.randn(2, 1, 5, 32, requires_grad=True).unbind()
    embeddings.retain_grad()
    encoded.retain_grad()
    module = EmbeddingLoss(config)
    module(embeddings, encoded).sum().backward()
    assert (embeddings.grad is None) == (detach == "embeddings")
    assert (encoded.grad is None) == (detach == "encoder")


def test_embedding_loss_joins_the_training_loss_only():
    config = AREncoderDecoderConfig(**SIZES, embedding_loss="mse", embedding_loss_weight=8.0)
    model = build(AREncoderDecoderForCausalLM, config)
    ids = token_ids(2, 8)
    scored = model(ids, labels=ids)
    assert scored.loss == scored.lm_loss and scored.embedding_loss > 0
    trained = model.train()(ids, labels=ids)
    torch.testing.assert_close(trained.loss, trained.lm_loss + 8 * trained.embedding_loss)
    torch.testing.assert_close(trained.lm_loss, scored.lm_loss)
    assert AREncoderDecoderForCausalLM(AREncoderDecoderConfig(**SIZES))(ids, labels=ids).embedding_loss is None


def test_norm_gains_and_gates_are_training_statistics():
    fields = SIZES | {"num_encoder_layers": 1, "num_decoder_layers": 2}
    config = AREncoderDecoderConfig(**fields, embedding_loss="mse", cross_attention_gate=True)
    model = AREncoderDecoderForCausalLM(config)
    assert model.training_statistics() == {
        "embedding_loss_output_norm_gain": 1.0,
        "embedding_loss_input_norm_gain": 1.0,
        "cross_attention_gate_0": 1.0,
        "cross_attention_gate_1": 1.0,
    }
    with torch.no_grad():
        model.embedding_loss.output_norm.weight.fill_(-0.25)
        model.model.decoder_layers[1].cross_attn_gate.fill_(0.5)
    statistics = model.training_statistics()
    assert statistics["embedding_loss_output_norm_gain"] == 0.25
    assert statistics["cross_attention_gate_1"] == 0.5


# --- initial weights --------------------------------------------------------------------------------------------------


def assert_initial_weights(model: nn.Module, residual_std: float) -> None:
    for name, parameter in model.named_parameters():
        values = parameter.detach()
        if name.endswith("bias"):
            assert (values == 0).all(), name
        elif "norm" in name or "gate" in name:
            assert (values == 1).all(), name
        elif "aggregation" not in name:
            std = (
                residual_std if name.endswith(("o_proj.weight", "down_proj.weight")) else model.config.initializer_range
            )
            assert values.std().item() == pytest.approx(std, rel=0.06), name
            assert abs(values.mean().item()) < 0.06 * std, name


BIG = SIZES | {"vocab_size": 200, "hidden_size": 64, "intermediate_size": 256, "max_position_embeddings": 100}


def test_initial_weights_of_decoder_only():
    model = DecoderOnlyForCausalLM(DecoderOnlyConfig(**BIG, num_hidden_layers=8, use_bias=True))
    assert_initial_weights(model, residual_std=0.02 / math.sqrt(2 * 8))


def test_initial_weights_of_ar_encoder_decoder():
    fields = BIG | {"num_encoder_layers": 6, "num_decoder_layers": 2, "use_bias": True, "cross_attention_gate": True}
    model = AREncoderDecoderForCausalLM(AREncoderDecoderConfig(**fields, embedding_loss="mse", bridge_layer_norm=True))
    assert_initial_weights(model, residual_std=0.02 / math.sqrt(8))  # sqrt(2 L) with L layers per stack
    model = AREncoderDecoderForCausalLM(AREncoderDecoderConfig(**fields, initializer_range=0.5))
    assert_initial_weights(model, residual_std=0.5 / math.sqrt(8))


def test_initial_weights_of_parallel_encoder_decoder():
    fields = BIG | {"num_encoder_layers": 5, "num_decoder_layers": 3, "use_bias": True, "cross_attention_gate": True}
    model = ParallelEncoderDecoderForCausalLM(ParallelEncoderDecoderConfig(**fields))
    assert_initial_weights(model, residual_std=0.02 / math.sqrt(8))


def test_a_new_gate_is_open_and_new_aggregations_are_means():
    def new_model(**fields):
        torch.manual_seed(0)
        return AREncoderDecoderForCausalLM(AREncoderDecoderConfig(**SIZES | fields)).eval()

    ids = token_ids(2, 8)
    torch.testing.assert_close(
        new_model(cross_attention_gate=True)(ids).logits, new_model()(ids).logits, rtol=0, atol=0
    )
    mean = new_model(embedding_loss="mse")(ids, labels=ids).embedding_loss
    mixing = new_model(embedding_loss="mse", embedding_loss_aggregation="mixing")(ids, labels=ids).embedding_loss
    torch.testing.assert_close(mixing, mean)
    model = new_model(embedding_loss="mse", embedding_loss_aggregation="convolution", embedding_loss_kernel_size=4)
    assert (model.embedding_loss.aggregation.weight == 1 / 4).all()


def test_dropout_of_embeddings_blocks_and_attention_probabilities():
    """Everything that is added to the residual stream is dropped: with a rate near 1 nothing of the layers remains."""
    config = AREncoderDecoderConfig(**SIZES, num_encoder_layers=1, num_decoder_layers=1, hidden_dropout=0.5)
    model = AREncoderDecoderForCausalLM(config)
    randomise(model)
    seen: dict[str, torch.Tensor] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Dropout):
            module.register_forward_hook(lambda _, args, out, name=name: seen.setdefault(name, out))
    model.train()(token_ids(4, 16))
    assert set(seen) == {"model.dropout", "model.encoder_layers.0.dropout", "model.decoder_layers.0.dropout"}
    for out in seen.values():
        assert 0.4 < (out == 0).float().mean() < 0.6
