"""The language model on codes: embeddings, heads and losses against loops; what is frozen; the table of a tokenizer."""

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from architectures import ARCHITECTURES, AUTOENCODER, Case, randomise, token_ids
from torch import nn

from latentlm import FSQConfig, FSQForCausalLM
from latentlm.models.fsq_embedding import CodeTable

ROW = next(architecture for architecture in ARCHITECTURES if architecture.config_class is FSQConfig)
SPELLINGS = [b"a", b"of", b"the", b"\xe2\x82\xac!", b"\x00"]


def case_model(variant: str = "default", **changes) -> FSQForCausalLM:
    """A tiny model whose first tokens spell `SPELLINGS`, all others one byte, with codes out of order."""
    model = Case(ROW, variant).model(**changes)
    chunks = torch.zeros(60, 4, dtype=torch.uint8)
    lengths = torch.ones(60, dtype=torch.long)
    for token, spelling in enumerate(SPELLINGS):
        chunks[token, : len(spelling)] = torch.tensor(list(spelling))
        lengths[token] = len(spelling)
    model.embedding.set_table(torch.arange(60) * 7 % 100, chunks, lengths)
    return model


def digits_of(index: int, levels=(8, 8, 5)) -> list[int]:
    digits = []
    for n in levels:
        digits.append(index % n)
        index //= n
    return digits


def test_an_embedding_is_the_row_and_the_network_of_the_code():
    model = case_model()
    embedding = model.embedding
    rows = model.get_input_embeddings()
    found = rows(torch.arange(64))
    for token in range(64):
        expected = rows.weight[token]
        if token < 60:  # the last four are special: they have no code
            digits = digits_of(token * 7 % 100)
            values = [2 * d / (n - 1) - 1 for d, n in zip(digits, (8, 8, 5), strict=True)]
            expected = expected + embedding.code_network(torch.tensor(values))
        torch.testing.assert_close(found[token], expected)


def test_new_models_start_neighbouring_codes_near_each_other():
    torch.manual_seed(0)
    model = FSQForCausalLM(FSQConfig(**ROW.sizes | {"hidden_size": 128, "intermediate_size": 128}))
    # The values of the first digit, the rest alike.
    vectors = model.get_input_embeddings()(torch.arange(56)).reshape(7, 8, -1)
    near = (vectors[:, 1:] - vectors[:, :-1]).norm(dim=-1).mean()
    far = (vectors[:, 5:] - vectors[:, :-5]).norm(dim=-1).mean()
    assert near < 0.9 * far


def test_the_factorised_head_adds_the_logits_of_the_digits():
    model = case_model("factorised")
    hidden = torch.randn(3, 32)
    columns = hidden @ model.lm_head.columns.T
    assert columns.shape == (3, 8 + 8 + 5 + 4)
    logits = model.lm_head(hidden)
    torch.testing.assert_close(logits, hidden @ model.lm_head.weight.T)
    for token in range(64):
        if token < 60:
            first, second, third = digits_of(token * 7 % 100)
            expected = columns[:, first] + columns[:, 8 + second] + columns[:, 16 + third]
        else:
            expected = columns[:, 21 + token - 60]
        torch.testing.assert_close(logits[:, token], expected)


RESIDUAL = AUTOENCODER | {"levels": [3, 2], "num_quantizers": 3}


def hierarchical_model(**changes) -> FSQForCausalLM:
    return case_model(autoencoder=RESIDUAL, head="hierarchical", **changes)


def test_the_hierarchical_head_predicts_coarse_then_fine():
    """Against loops over all codes that begin alike; special tokens stand beside the coarse codes."""
    model = hierarchical_model()
    hidden = torch.randn(2, 3, 32)
    logits = model.lm_head(hidden)
    torch.testing.assert_close(logits.exp().sum(-1), torch.ones(2, 3))
    columns = hidden @ model.lm_head.columns.T
    assert columns.shape == (2, 3, 3 * (3 + 2) + 4)
    digits = [digits_of(token * 7 % 100, (3, 2) * 3) for token in range(60)]
    prefixes = [[tuple(code[: 2 * level]) for code in digits] for level in range(4)]
    for token in (0, 1, 17, 59):
        expected = torch.zeros(2, 3)
        for level in range(3):

            def score(prefix, level=level):
                first, second = prefix[-2:]
                return columns[..., 5 * level + first] + columns[..., 5 * level + 3 + second]

            mine = prefixes[level + 1][token]
            rivals = [score(other) for other in sorted(set(prefixes[level + 1])) if other[: 2 * level] == mine[:-2]]
            if level == 0:
                rivals += [columns[..., 15 + special] for special in range(4)]
            expected = expected + score(mine) - torch.stack(rivals).logsumexp(0)
        torch.testing.assert_close(logits[..., token], expected)
    # All tokens that begin with a code have together what the first step gives it, whatever the later ones say.
    together = torch.stack([logits[..., t] for t in range(60) if digits[t][:2] == digits[0][:2]]).logsumexp(0)
    with torch.no_grad():
        model.lm_head.columns[5:15].normal_()
    again = model.lm_head(hidden)
    torch.testing.assert_close(
        torch.stack([again[..., t] for t in range(60) if digits[t][:2] == digits[0][:2]]).logsumexp(0), together
    )
    assert not torch.allclose(again, logits)


def test_with_one_code_the_hierarchical_head_is_the_factorised_one():
    factorised, hierarchical = (case_model("factorised", head=head) for head in ("factorised", "hierarchical"))
    hierarchical.load_state_dict(factorised.state_dict())
    hidden = torch.randn(3, 32)
    torch.testing.assert_close(hierarchical.lm_head(hidden), factorised.lm_head(hidden).log_softmax(-1))


def test_the_hierarchical_head_writes_learns_and_follows_the_tokenizer(tmp_path):
    model = hierarchical_model().eval()
    ids = token_ids(2, 5)
    cached, anew = (model.generate(ids, max_new_tokens=6, do_sample=False, use_cache=use) for use in (True, False))
    assert torch.equal(cached, anew)
    before = model(ids).logits
    swapped = model.embedding.codes.clone()
    swapped[[0, 1]] = swapped[[1, 0]]
    model.embedding.codes.copy_(swapped)
    after = model.lm_head(model.model(ids).last_hidden_state)
    torch.testing.assert_close(after.exp().sum(-1), torch.ones(2, 5))
    assert not torch.allclose(after, before)
    model.train()(ids, labels=ids).loss.backward()
    assert (model.lm_head.columns.grad[:10].abs().sum(1) > 0).all()
    model.save_pretrained(tmp_path)
    loaded = FSQForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(loaded(ids).logits, model.eval()(ids).logits)
    assert model.bfloat16()(ids).logits.isfinite().all()
    compiled = torch.compile(loaded, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(ids, use_cache=False).logits, loaded(ids).logits)
    with pytest.raises(ValueError, match="'hierarchical' has logits of digits"):
        loaded.resize_token_embeddings(70)


def decoder_model(**changes) -> FSQForCausalLM:
    return case_model(head="decoder", **changes)


def test_the_decoder_spells_tokens_byte_by_byte():
    model = decoder_model()
    hidden = torch.randn(2, 3, 32)
    logits = model.lm_head(hidden)
    assert logits.shape == (2, 3, 64) and logits.dtype == torch.float32
    assert not torch.equal(logits[0, 0], logits[0, 1])
    vectors = model.lm_head.to_vector(hidden[0])
    for token in range(60):  # the loss that counts symbol by symbol
        expected = -model.embedding.spelling_loss(vectors, torch.tensor([token] * 3))
        torch.testing.assert_close(logits[0, :, token], expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits[0, :, 60:], model.lm_head.special(hidden[0]))


def test_the_decoder_gives_distributions_over_byte_strings_and_tokens():
    """All byte strings of up to C bytes sum to 1, those of the tokens to less, their softmax to 1."""
    model = decoder_model()
    hidden = torch.randn(5, 32)
    p = model.embedding.network.decoder(model.lm_head.to_vector(hidden)).softmax(-1)  # (5, 4, 257)
    going_on = p[..., :256].sum(-1).cumprod(1)  # of all first t + 1 bytes together
    lengths = [p[:, 0, 256]] + [going_on[:, t - 1] * p[:, t, 256] for t in (1, 2, 3)] + [going_on[:, 3]]
    torch.testing.assert_close(torch.stack(lengths).sum(0), torch.ones(5))
    logits = model.lm_head(hidden)
    assert (logits[:, : len(SPELLINGS)].exp().sum(-1) < 1).all()
    torch.testing.assert_close(logits.softmax(-1).sum(-1), torch.ones(5))


def test_the_decoder_writes_and_scores():
    model = decoder_model(vocab_size=70).eval()  # six ids more than the tokenizer has: never written
    model.embedding.lengths[64:] = 0
    model.embedding.codes[64:] = -1
    ids = token_ids(2, 5)
    cached, anew = (model.generate(ids, max_new_tokens=8, do_sample=False, use_cache=use) for use in (True, False))
    assert torch.equal(cached, anew)
    probabilities = model(ids).logits.softmax(-1)
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(2, 5))
    padded = model(nn.functional.pad(ids, (0, 3)), attention_mask=nn.functional.pad(torch.ones_like(ids), (0, 3)))
    torch.testing.assert_close(padded.logits[:, :5], model(ids).logits)
    loss = model(ids, labels=ids).loss
    expected = -probabilities[:, :-1].gather(-1, ids[:, 1:, None]).log().mean()
    torch.testing.assert_close(loss, expected)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(ids, use_cache=False).logits, model(ids).logits)
    assert model.bfloat16()(ids).logits.isfinite().all()


@pytest.mark.parametrize("train_decoder", [False, True])
def test_gradients_go_through_the_decoder(train_decoder, tmp_path):
    model = decoder_model(train_decoder=train_decoder).train()
    ids = token_ids(2, 6)
    model(ids, labels=ids).loss.backward()
    decoder = model.embedding.network.decoder
    assert model.lm_head.to_vector.weight.grad.abs().sum() > 0
    assert all((p.grad is not None) == train_decoder for p in decoder.parameters())
    assert model.model.layers[0].mlp.down_proj.weight.grad.abs().sum() > 0
    model.save_pretrained(tmp_path)
    loaded = FSQForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(loaded.eval()(ids).logits, model.eval()(ids).logits)
    with pytest.raises(ValueError, match="'decoder' has logits of spellings, none for tokens that are added"):
        loaded.resize_token_embeddings(70)


def test_the_decoders_table_follows_the_tokenizer():
    model, ids = decoder_model().eval(), token_ids(1, 4)
    before = model(ids).logits
    builds, build = [], model.lm_head.code_table.build
    model.lm_head.code_table.build = lambda *place: builds.append(1) or build(*place)
    model.generate(ids, max_new_tokens=6, do_sample=False)
    assert not builds
    chunks, lengths = model.embedding.chunks.clone(), model.embedding.lengths.clone()
    chunks[[0, 1]], lengths[[0, 1]] = chunks[[1, 0]], lengths[[1, 0]]
    model.embedding.set_table(model.embedding.codes.clone(), chunks, lengths)
    assert torch.equal(model(ids).logits[..., [1, 0]], before[..., :2]) and len(builds) == 1


@pytest.mark.parametrize("owner", ["lm_head", "embedding"])
def test_tables_of_codes_are_kept_until_codes_change(owner, monkeypatch):
    model = case_model("factorised", code_embedding_size=8)
    table, builds = getattr(model, owner).code_table, []
    build = table.build
    monkeypatch.setattr(table, "build", lambda *place: builds.append(1) or build(*place))
    ids = token_ids(2, 5)
    with torch.inference_mode():
        model.generate(ids, max_new_tokens=8, do_sample=False)
    labelled = model.train()(ids, labels=ids)
    labelled.loss.backward()  # a table that was built in inference mode would not let it
    assert len(builds) == 1

    codes = model.embedding.codes
    changes = {
        "in place": lambda: codes.copy_(codes.flip(0)),
        "one token": lambda: codes.__setitem__(3, 99),
        "a tokenizer's": lambda: model.embedding.set_table(
            torch.arange(10), torch.ones(10, 4, dtype=torch.uint8), torch.ones(10, dtype=torch.long)
        ),
        "a loaded state": lambda: model.load_state_dict(case_model("factorised", code_embedding_size=8).state_dict()),
        "a size": lambda: model.embedding.resize_table(62),
        "another tensor": lambda: setattr(model.embedding, "codes", torch.arange(62) % 7),
        "the dtype": lambda: model.double(),
    }
    for count, (name, change) in enumerate(changes.items(), 2):
        before = table.built[2]
        change()
        model(ids.clamp(max=61))
        dtype = model.dtype if owner == "lm_head" else torch.float32  # values are float32 whatever the model is
        assert torch.equal(table.built[2], build(codes.device, dtype)), name
        if name == "the dtype":
            assert len(builds) == (count if owner == "lm_head" else count - 1)
        else:
            assert not torch.equal(table.built[2], before), name
            assert len(builds) == count, name


@pytest.mark.parametrize("variant", ["default", "factorised"])
def test_kept_tables_give_the_logits_of_tables_made_anew(variant, monkeypatch):
    model, ids = case_model(variant).train(), token_ids(2, 6)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    for _ in range(2):  # what training changes shows at once: only codes are kept, not what the network makes of them
        model(ids, labels=ids).loss.backward()
        optimizer.step()
        kept = model.eval()(ids).logits
        with monkeypatch.context() as patch:
            patch.setattr(CodeTable, "__call__", lambda self, codes, like=None: self.build(codes.device, torch.float32))
            assert torch.equal(model(ids).logits, kept)
        model.train()


@torch.no_grad()
def continued(model: FSQForCausalLM, ids: torch.Tensor) -> tuple[torch.Tensor, list]:
    """Logits of ids that come one by one after the first two, and what the cache holds of the codes."""
    cache = model(ids[:, :2], use_cache=True).past_key_values
    steps = [model(ids[:, t : t + 1], past_key_values=cache).logits for t in range(2, ids.shape[1])]
    return torch.cat(steps, 1), getattr(cache, "added_rows", None)


@pytest.mark.parametrize("rows", [1, 3])
def test_a_step_looks_up_what_codes_add_and_changes_show(rows):
    model, ids = case_model().eval(), torch.cat((token_ids(rows, 6), torch.full((rows, 1), 61)), 1)  # 61 is special
    kept = None

    def check() -> None:
        nonlocal kept
        logits, added = continued(model, ids)
        torch.testing.assert_close(logits, model(ids).logits[:, 2:])
        assert added is not None and added is not kept and not added[60:].any()
        kept = added

    check()
    assert continued(model, ids)[1] is kept  # the next text has the same
    network = model.embedding.code_network
    network[0].weight.data.mul_(2)  # which no version of a tensor tells
    check()
    network[2].weight.data.mul_(2)
    check()
    model.embedding.codes.copy_(model.embedding.codes.where(model.embedding.codes < 0, model.embedding.codes.flip(0)))
    model.embedding.codes[60:] = -1
    check()
    model.train()
    assert model.embedding.made is None
    model.eval()
    network[0].bias.data.add_(1)
    check()


def test_a_step_calls_what_somebody_watches():
    model, ids = case_model().eval(), token_ids(1, 5)
    calls = []
    handle = model.embedding.code_network[0].register_forward_hook(lambda *_: calls.append(1))
    assert continued(model, ids)[1] is None and len(calls) == 4
    handle.remove()
    assert continued(case_model("joint").eval(), ids)[1] is None  # codes come from the encoder
    logits, added = continued(case_model(code_embedding_size=0).eval(), ids)
    assert added is None and logits.isfinite().all()
    with pytest.raises(ValueError, match="exactly one"):
        model(ids[:, :1], inputs_embeds=torch.zeros(1, 1, 32), past_key_values=model(ids).past_key_values)


def test_copies_and_loaded_models_have_their_own_tables(tmp_path):
    """The head and the rows refer to a module that is the whole model's."""
    model = case_model("factorised")
    model(token_ids(1, 4))
    model.save_pretrained(tmp_path)
    for other in (copy.deepcopy(model), FSQForCausalLM.from_pretrained(tmp_path)):
        assert other.lm_head.beside[0] is other.embedding is other.model.embed_tokens.beside[0]
        other.embedding.codes.copy_(other.embedding.codes.flip(0))
        place = (other.device, other.dtype)
        assert torch.equal(other.lm_head.digit_table(), other.lm_head.build_digit_table(*place))
        assert not torch.equal(other.lm_head.digit_table(), model.lm_head.digit_table())


def test_spelling_is_scored_byte_by_byte():
    model = case_model("byte_head")
    vectors = torch.randn(6, 16)
    tokens = torch.tensor([0, 1, 2, 3, 4, 63])
    found = model.embedding.spelling_loss(vectors, tokens)
    log_probabilities = model.embedding.autoencoder.decoder(vectors).log_softmax(-1)
    for row, spelling in enumerate(SPELLINGS):
        symbols = [*spelling, 256][:4]
        expected = -sum(log_probabilities[row, position, symbol] for position, symbol in enumerate(symbols))
        torch.testing.assert_close(found[row], expected)
    assert found[5] == 0  # a special token has no spelling


def test_the_byte_loss_spells_the_next_token_from_the_hidden_state():
    model = case_model("byte_head").train()
    ids = token_ids(2, 6, vocab_size=60)
    output = model(ids, labels=ids)
    hidden = model.model(ids).last_hidden_state
    vectors = model.byte_head(hidden[:, :-1]).flatten(0, 1)
    expected = model.embedding.spelling_loss(vectors, ids[:, 1:].flatten()).mean()
    torch.testing.assert_close(output.byte_loss, expected)
    torch.testing.assert_close(output.loss, output.lm_loss + 0.5 * output.byte_loss)


def test_joint_codes_are_the_tables_once_it_is_rebuilt():
    """Rebuilding the table from the encoder and leaving joint training changes no output."""
    joint = case_model("joint").eval()
    embedding = joint.embedding
    embedding.codes[:60] = embedding.encode_tokens()
    table = Case(ROW, "joint").model(joint=False).eval()
    table.load_state_dict(joint.state_dict())
    ids = token_ids(2, 7)
    torch.testing.assert_close(table(ids).logits, joint(ids).logits)


def test_joint_training_reaches_the_encoder_from_the_language_models_loss():
    model = case_model("joint", reconstruction_loss_weight=0.0, byte_loss_weight=0.0).train()
    ids = token_ids(2, 7, vocab_size=60)
    model(ids, labels=ids).loss.backward()
    assert model.embedding.autoencoder.encoder.to_code.weight.grad.abs().sum() > 0


def test_only_what_the_configuration_trains_gets_gradients():
    for variant, trained in (("byte_head", {"decoder"}), ("joint", {"encoder", "decoder", "from_code"})):
        model = case_model(variant).train()
        parts = {name.split(".")[0] for name, p in model.embedding.autoencoder.named_parameters() if p.requires_grad}
        assert parts == trained
    frozen = case_model("byte_head", train_decoder=False)
    assert not any(p.requires_grad for p in frozen.embedding.autoencoder.parameters())


@pytest.mark.parametrize("train_decoder", [False, True])
def test_what_is_frozen_stays_frozen_where_a_checkpoint_is_loaded(train_decoder, tmp_path):
    """transformers gives loaded parameters gradients, whatever the constructor said."""
    case_model("byte_head", train_decoder=train_decoder).save_pretrained(tmp_path)
    model = FSQForCausalLM.from_pretrained(tmp_path)
    for mode in (False, True):
        autoencoder = model.train(mode).embedding.autoencoder
        trained = {name.split(".")[0] for name, p in autoencoder.named_parameters() if p.requires_grad}
        assert trained == ({"decoder"} if train_decoder else set())
    autoencoder.decoder.requires_grad_(False)
    assert not any(p.requires_grad for p in model.train().embedding.autoencoder.parameters())


def test_joint_training_survives_loading(tmp_path):
    case_model("joint").save_pretrained(tmp_path)
    loaded = FSQForCausalLM.from_pretrained(tmp_path).train()
    assert all(p.requires_grad for p in loaded.embedding.autoencoder.parameters())


def test_ids_beyond_the_tokenizer_have_neither_code_nor_spelling():
    embedding = case_model().embedding
    embedding.set_table(torch.arange(10), torch.ones(10, 4, dtype=torch.uint8), torch.ones(10, dtype=torch.long))
    assert (embedding.codes[10:] == -1).all() and not embedding.lengths[10:].any()


@pytest.mark.parametrize("head", ["factorised", "hierarchical", "decoder"])
def test_ids_beyond_the_tokenizer_are_never_predicted(head):
    model = case_model(head=head)
    size, special = model.config.vocab_size, model.config.num_special_tokens
    lengths = torch.ones(10, dtype=torch.long)
    model.embedding.set_table(torch.arange(10), torch.arange(40, dtype=torch.uint8).view(10, 4), lengths)
    p = model(torch.zeros(1, 2, dtype=torch.long)).logits.float().softmax(-1)
    known = 10 + special
    assert (p[..., :known] > 0).all() and size > known and not p[..., known:].any()
    torch.testing.assert_close(p[..., :known].sum(-1), torch.ones(1, 2))
    if head == "factorised":  # tools read the weight and the bias
        hidden = torch.randn(3, 32)
        expected = model.lm_head(hidden)
        torch.testing.assert_close(nn.functional.linear(hidden, model.lm_head.weight, model.lm_head.bias), expected)


@pytest.mark.parametrize("head", ["factorised", "hierarchical", "decoder"])
def test_other_heads_than_the_tied_one_keep_their_size(head):
    model = case_model(head=head)
    with pytest.raises(ValueError, match=r"the size would be 100, but `vocab_size` 64 must stay"):
        model.resize_token_embeddings(pad_to_multiple_of=50)
    model.resize_token_embeddings(pad_to_multiple_of=16)  # 64 is one
    assert model.config.vocab_size == 64
    tied = case_model()
    tied.resize_token_embeddings(pad_to_multiple_of=50)
    assert tied.config.vocab_size == len(tied.embedding.codes) == 100


def tokenizer_of(model: FSQForCausalLM, **changes) -> SimpleNamespace:
    """What a model asks a tokenizer for, by default its own."""
    embedding = model.embedding
    fields = {
        "levels": list(embedding.fsq.levels),
        "autoencoder_config": model.config.autoencoder,
        "autoencoder": embedding.autoencoder,
        "codes": embedding.codes.clone(),
        "piece_table": lambda: (embedding.chunks.clone(), embedding.lengths.clone()),
    }
    return SimpleNamespace(**fields | changes)


def test_a_model_takes_its_own_tokenizer_with_other_codes_alone():
    model = decoder_model()
    chunks, lengths, codes = (getattr(model.embedding, name).clone() for name in ("chunks", "lengths", "codes"))
    new = codes.clone()
    new[[0, 1]] = new[[1, 0]]  # as joint training rebuilds a table
    model.load_tokenizer(tokenizer_of(model, codes=new))
    assert torch.equal(model.embedding.codes, new)
    fresh = Case(ROW, "default").model()
    fresh.load_tokenizer(tokenizer_of(model))
    assert torch.equal(fresh.embedding.chunks, chunks)
    swapped = chunks.clone()
    swapped[[0, 1]] = swapped[[1, 0]]
    wider = AUTOENCODER | {"hidden_size": 32}
    for changes, message in (
        ({"levels": [8, 8, 6], "autoencoder_config": None}, r"`levels` \[8, 8, 6\], that of the model \[8, 8, 5\]"),
        ({"autoencoder_config": wider}, "`hidden_size` 32, that of the model 16"),
        ({"piece_table": lambda: (swapped, lengths)}, "2 of 64 ids of the model are other pieces"),
        ({"piece_table": lambda: (chunks[:50], lengths[:50])}, "10 of 64 ids"),
        ({"piece_table": lambda: (chunks.repeat(2, 1), lengths.repeat(2))}, "128 tokens, the model only 64"),
    ):
        with pytest.raises(ValueError, match=message):
            model.load_tokenizer(tokenizer_of(model, **changes))
    assert torch.equal(model.embedding.chunks, chunks) and torch.equal(model.embedding.codes, new)


def test_the_table_is_a_part_of_the_checkpoint(tmp_path):
    model = case_model("joint")
    model.save_pretrained(tmp_path)
    loaded = FSQForCausalLM.from_pretrained(tmp_path)
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, dict(loaded.named_buffers())[name]), name


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"vocab_size": 400}, ["`vocab_size` 400", "[8, 8, 5]", "320"]),
        ({"autoencoder": AUTOENCODER | {"num_quantizers": 0}}, ["`num_quantizers` is 0", "at least 1"]),
        ({"num_special_tokens": 64}, ["`num_special_tokens` is 64", "`vocab_size` 64"]),
        ({"byte_loss_weight": -1}, ["`byte_loss_weight` is -1"]),
        ({"byte_loss_weight": math.nan}, ["`byte_loss_weight` is nan"]),
        ({"joint": True, "code_embedding_size": 0}, ["`joint`", "`code_embedding_size` is 0"]),
        ({"train_decoder": True}, ["`train_decoder`", "`byte_loss_weight`"]),
        ({"min_code_entropy": 2}, ["`min_code_entropy` is 2", "[0, 1]"]),
        ({"autoencoder": AUTOENCODER | {"levels": [1]}}, ["`levels`", "at least 2"]),
    ],
)
def test_bad_configurations_say_what_is_wrong(fields, words):
    with pytest.raises(Exception) as error:
        FSQConfig(**ROW.sizes | fields)
    message = str(error.value.__cause__ or error.value)
    assert all(word in message for word in words), message


def test_randomised_tables_stay_what_they_are():
    """The tests' random weights must not touch codes."""
    model = case_model()
    before = model.embedding.codes.clone()
    randomise(model)
    assert torch.equal(model.embedding.codes, before)
    assert isinstance(model.lm_head, nn.Linear)
