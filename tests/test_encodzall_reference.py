"""EncodZall against an obvious implementation: outputs and losses. For LearnedDropout see
test_learned_dropout_parts.py."""

import math

import pytest
import torch
from encodzall_setup import (
    CLOSE,
    TEXTS,
    VARIANTS,
    build,
    encode,
    labels_of,
    tokenizer,
)
from torch import nn

from latentlm.models.encodzall_words import find_words

# ---- An obvious implementation ----


def norm_slowly(norm, h):
    return h / (h.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight


def turn_slowly(states, positions):
    """Rotary positions of `(H, T, d)`, pair by pair."""
    half = states.shape[-1] // 2
    angles = positions[:, None] * 10000.0 ** (-torch.arange(half) / half)
    left, right = states[..., :half], states[..., half:]
    return torch.cat((left * angles.cos() - right * angles.sin(), right * angles.cos() + left * angles.sin()), -1)


def attend_slowly(attention, queries, keys, allowed, positions=None, key_positions=None):
    """One text: `(T, D)` queries look at `(S, D)` keys where `allowed` `(T, S)`."""
    size, groups, width = attention.head_dim, attention.num_key_value_groups, queries.shape[-1]
    if hasattr(attention, "kv_down"):
        return attend_through_latents_slowly(attention, queries, keys, allowed, positions, key_positions)
    if attention.reads_memory:
        q, (k, v) = attention.q_proj(queries), attention.kv_proj(keys).chunk(2, -1)
    else:
        q, (k, v) = attention.qkv_proj(queries)[:, :width], attention.qkv_proj(keys)[:, width:].chunk(2, -1)
    q, k, v = (states.view(len(states), -1, size).transpose(0, 1) for states in (q, k, v))
    if positions is not None:
        q, k = turn_slowly(q, positions), turn_slowly(k, positions if key_positions is None else key_positions)
    k, v = k.repeat_interleave(groups, 0), v.repeat_interleave(groups, 0)
    weights = (q @ k.transpose(1, 2) / math.sqrt(size)).masked_fill(~allowed, -math.inf).softmax(-1)
    return attention.o_proj((weights @ v).transpose(0, 1).flatten(1))


def attend_through_latents_slowly(attention, queries, keys, allowed, positions, key_positions):
    """As [`attend_slowly`]; positions turn a part of each query, and one key that all heads share."""
    config, size = attention.config, attention.head_dim
    key_positions = positions if key_positions is None else key_positions
    down = attention.kv_down(keys)
    latent, shared = down[:, : config.key_value_latent_size], down[:, config.key_value_latent_size :]
    k, v = attention.kv_up(norm_slowly(attention.kv_norm, latent)).chunk(2, -1)
    q = attention.q_up(norm_slowly(attention.q_norm, attention.q_down(queries)))
    q, k, v = (states.view(len(states), config.num_attention_heads, -1).transpose(0, 1) for states in (q, k, v))
    plain, turning = q[..., :size], q[..., size:]
    scores = plain @ k.transpose(1, 2) + turn_slowly(turning, positions) @ turn_slowly(shared[None], key_positions).mT
    weights = (scores / math.sqrt(q.shape[-1])).masked_fill(~allowed, -math.inf).softmax(-1)
    return attention.o_proj((weights @ v).transpose(0, 1).flatten(1))


def mlp_slowly(mlp, h):
    gate = mlp.gate_proj(h)
    return mlp.down_proj(gate * gate.sigmoid() * mlp.up_proj(h))


def layer_slowly(layer, h, allowed, read=None):
    n = norm_slowly(layer.self_attn_norm, h)
    h = h + attend_slowly(layer.self_attn, n, n, allowed, torch.arange(len(h)))
    if read is not None:
        h = h + read(layer, h)
    return h + mlp_slowly(layer.mlp, norm_slowly(layer.mlp_norm, h))


def embed_slowly(model, ids):
    """Embeddings `(T, D)` of a word or text by itself: of each id, and of the n-grams that end with it."""
    vectors = list(model.embed_tokens(ids))
    config, numbers = model.config, [0] * 99 + (ids + 1).tolist()
    for t in range(len(ids) if config.ngram_embedding else 0):
        rows = []
        for k, n in enumerate(config.ngram_embedding):
            gram = numbers[t + 100 - n : t + 100]
            total = sum(x * config.ngram_multiplier**back for back, x in enumerate(reversed(gram)))
            row = k * config.ngram_buckets + total % (2**31 - 1) % config.ngram_buckets
            rows.append(model.embed_ngrams.table.weight[row])
        narrow = config.ngram_embedding_size is not None
        vectors[t] = vectors[t] + (model.embed_ngrams.up.weight @ torch.cat(rows) if narrow else sum(rows))
    return torch.stack(vectors)


def word_slowly(model, ids):
    h = embed_slowly(model, ids)
    for layer in model.word_encoder:
        h = layer_slowly(layer, h, torch.ones(len(ids), len(ids), dtype=torch.bool))
    h = norm_slowly(model.word_norm, h)
    kind = model.config.word_pooling
    if kind == "query":
        return (model.word_pooling.query(h).softmax(0) * h).sum(0)
    return h.mean(0) if kind == "mean" else h.max(0).values


def split_words(ids):
    words = find_words(ids[None], 16)[0]
    return [ids[words == k] for k in range(int(words.max()) + 1)]


def memory_slowly(model, ids):
    h = torch.stack([word_slowly(model, word) for word in split_words(ids)])
    for layer in model.context_encoder:
        h = layer_slowly(layer, h, torch.ones(len(h), len(h), dtype=torch.bool))
    return norm_slowly(model.context_norm, h)


def decode_slowly(decoder, embeddings, read):
    h = embeddings
    causal = torch.ones(len(h), len(h), dtype=torch.bool).tril()
    for layer in decoder.layers:
        h = layer_slowly(layer, h, causal, read)
    return norm_slowly(decoder.norm, h)


@torch.no_grad()
def outputs_slowly(model, ids, labels):
    """Logits of the text `(T, V)`, and of each word a matrix, for one text without padding."""
    memory = memory_slowly(model.model, ids)
    words = split_words(ids)
    starts = torch.tensor([sum(map(len, words[:k])) for k in range(len(words))])
    positions = None if model.config.cross_attention_positions == "none" else torch.arange(len(labels))

    def read_text(layer, h):
        everything = torch.ones(len(h), len(memory), dtype=torch.bool)
        return attend_slowly(
            layer.cross_attn, norm_slowly(layer.cross_attn_query_norm, h), memory, everything, positions, starts
        )

    inputs = torch.cat((torch.tensor([257]), labels[:-1]))
    logits = model.lm_head(decode_slowly(model.decoder, embed_slowly(model.model, inputs), read_text))
    spelled = []
    for word, vector in zip(split_words(labels), memory, strict=True):

        def read_word(layer, h, vector=vector):
            projection = getattr(layer.cross_attn, "v_proj", None) or layer.cross_attn.kv_proj
            value = projection(vector)[-layer.cross_attn.num_key_value_heads * layer.cross_attn.head_dim :]
            value = value.view(-1, layer.cross_attn.head_dim)
            return layer.cross_attn.o_proj(value.repeat_interleave(layer.cross_attn.num_key_value_groups, 0).flatten())

        inputs = torch.cat((torch.tensor([257]), word[word != 258]))
        decoder = model.word_decoder if model.config.word_decoder == "own" else model.decoder
        spelled.append(model.lm_head(decode_slowly(decoder, embed_slowly(model.model, inputs), read_word)))
    return logits, spelled


@pytest.mark.parametrize(
    ("variant", "backend"),
    [
        *((variant, backend) for variant in VARIANTS if "learned" not in variant for backend in ("eager", "sdpa")),
        ("grouped", "flex_attention"),
    ],
)
def test_every_output_is_that_of_the_obvious_implementation(variant, backend):
    model = build(variant, backend=backend)
    labels = labels_of()
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):  # flex attention would compile for 20 seconds
        output = model(**encode(), labels=labels)
    word_logits = []
    for row, text in enumerate(TEXTS):
        ids = torch.tensor(tokenizer(text)["input_ids"])
        logits, spelled = outputs_slowly(model, ids, ids)
        torch.testing.assert_close(output.logits[row, : len(ids)], logits, **CLOSE)
        word_logits += spelled
    if model.config.word_decoder != "none":
        torch.testing.assert_close(output.word_logits, torch.cat(word_logits), **CLOSE)


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0])
def test_losses_are_those_of_the_definition(gamma):
    model = build(word_loss_gamma=gamma).train()
    ids = encode()
    labels = labels_of()
    output = model(**ids, labels=labels)
    sequence = total = symbols = 0.0
    for text in TEXTS:
        target = torch.tensor(tokenizer(text)["input_ids"])
        logits, spelled = outputs_slowly(model, target, target)
        sequence += nn.functional.cross_entropy(logits, target, reduction="sum")
        for word, word_logits in zip(split_words(target), spelled, strict=True):
            wanted = word if word[0] == 258 else torch.cat((word, torch.tensor([258])))
            log_p = word_logits.log_softmax(-1).gather(1, wanted[:, None])[:, 0]
            total += len(word) * (-((1 - log_p.exp()) ** gamma) * log_p).mean()
        symbols += len(target)
    torch.testing.assert_close(output.sequence_loss, sequence / symbols, **CLOSE)
    torch.testing.assert_close(output.word_loss, total / symbols, **CLOSE)
    expected = 0.75 * output.sequence_loss + 0.25 * output.word_loss
    torch.testing.assert_close(output.loss, expected)
    with torch.no_grad():
        assert model.eval()(**ids, labels=labels)["loss"] == model(**ids, labels=labels)["sequence_loss"]


def test_the_contrastive_loss_is_that_of_the_definition():
    model = build(word_decoder="none", contrastive_loss_weight=0.5).train()
    noisy, clean = (
        encode(["Wrods of a text", "anothr one", "the thrid"]),
        encode(["Words of a text", "another one", "the third"]),
    )
    labels = clean["input_ids"].masked_fill(clean["input_ids"] == 256, -100)
    output = model(**noisy, labels=labels, clean_input_ids=clean["input_ids"])
    a, p = (model.model(**side).pooler_output for side in (noisy, clean))
    scores = 20 * nn.functional.cosine_similarity(a[:, None], p[None], dim=-1)
    each = -scores.log_softmax(-1).diagonal()
    symbols = (labels != -100).sum(1)
    torch.testing.assert_close(output.contrastive_loss, (each * symbols).sum() / symbols.sum())
    torch.testing.assert_close(output.loss, 0.75 * output.sequence_loss + 0.5 * output.contrastive_loss)
    model.config.contrastive_symmetric = True
    both = (each - scores.log_softmax(0).diagonal()) / 2
    output = model(**noisy, labels=labels, clean_input_ids=clean["input_ids"])
    torch.testing.assert_close(output.contrastive_loss, (both * symbols).sum() / symbols.sum())
