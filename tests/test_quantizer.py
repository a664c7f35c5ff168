"""Vector quantization: equal to loops written out, blind to padding, the same over micro-batches and processes."""

import copy
import math

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from latentlm.models import block_quantization as quantizer
from latentlm.models.block_quantization import FSQQuantizer, Statistics, VectorQuantizer, code_usage, prefix_keys

D, K, CODE = 12, 16, 4


def build(depth: int = 2, num_codes: int = K, updates: int = 1, **fields) -> VectorQuantizer:
    torch.manual_seed(0)
    module = VectorQuantizer(D, num_codes, CODE, depth, **fields)
    module.initialize_parameters()
    module.updates.fill_(updates)  # the first one replaces the whole codebook
    return module.train()


def vectors(count: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(count, D, generator=torch.Generator().manual_seed(seed))


def everything(count: int) -> torch.Tensor:
    return torch.ones(count, dtype=torch.bool)


def keys_of(given: torch.Tensor) -> torch.Tensor:
    """Numbers that tell vectors `(..., D)` apart, wherever they are."""
    return given.detach().contiguous().view(torch.int32).long().sum(-1)


def read(module: VectorQuantizer, given: torch.Tensor, real: torch.Tensor | None = None) -> quantizer.Quantized:
    """A forward that gathers."""
    return module(given, everything(len(given)) if real is None else real, keys_of(given))


def latents_of(module: VectorQuantizer, given: torch.Tensor) -> torch.Tensor:
    return module.norm(module.down(given)).detach()


def state(module: VectorQuantizer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.named_buffers()}


def assert_same_state(one: VectorQuantizer, other: VectorQuantizer, **tolerance) -> None:
    for name, value in state(one).items():
        torch.testing.assert_close(value, state(other)[name], **tolerance)


def test_stages_and_averages_equal_loops_written_out():
    module = build(reset_after=math.inf)
    codebook, counts, sums = module.codebook.clone(), module.counts.clone(), module.sums.clone()
    for step in range(3):
        given = vectors(20, step)
        found = read(module, given)
        latents = latents_of(module, given)
        uses, added = torch.zeros_like(counts), torch.zeros_like(sums)
        for row, latent in enumerate(latents):
            rest = latent
            for stage in range(2):
                code = min(range(K), key=lambda k: float((rest - codebook[stage, k]).square().sum()))
                assert code == found.codes[row, stage]
                uses[stage, code] += 1
                added[stage, code] += rest
                rest = rest - codebook[stage, code]
            expected = (latent - (latent - rest)).square().mean() * 1.25
            torch.testing.assert_close(found.loss[row], expected, rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(found.vectors[row], module.up(latent - rest), rtol=1e-4, atol=1e-5)
        module.update()
        counts, sums = 0.99 * counts + 0.01 * uses, 0.99 * sums + 0.01 * added
        for stage in range(2):
            for k in range(K):
                if uses[stage, k]:
                    codebook[stage, k] = sums[stage, k] / counts[stage, k]
        assert torch.equal(module.codebook[uses == 0], codebook[uses == 0]) and (uses == 0).any()
        torch.testing.assert_close(module.codebook, codebook, rtol=1e-4, atol=1e-5)
        codebook, counts, sums = module.codebook.clone(), module.counts.clone(), module.sums.clone()


def test_the_codebook_is_used():
    """Counts that begin at 0 make the original collapse to one or two codes at its first step."""
    module = build(depth=1, num_codes=64, updates=0, commitment=0.0)
    centres = 3 * vectors(48, 7)
    for step in range(60):
        which = torch.randint(0, 48, (256,), generator=torch.Generator().manual_seed(step))
        found = read(module, centres[which] + 0.05 * vectors(256, step))
        module.update()
        perplexity, _ = code_usage(torch.bincount(found.codes[:, 0], minlength=64))
        assert perplexity > 6, step
    assert perplexity > 30
    assert found.loss.mean() < 0.05


def test_padding_takes_no_part():
    real = torch.rand(6, 5, generator=torch.Generator().manual_seed(2)) < 0.6
    given = vectors(30).view(6, 5, D)
    alone, padded, other = build(reset_after=0.5), build(reset_after=0.5), build(reset_after=0.5)
    only = read(alone, given[real])
    first = read(padded, given, real)
    changed = torch.where(real.unsqueeze(-1), given, 1e4)
    second = read(other, changed, real)
    for name in ("vectors", "codes", "loss"):
        assert torch.equal(getattr(first, name), getattr(second, name))
        assert torch.equal(getattr(first, name)[real], getattr(only, name))
    assert (first.codes[~real] == -1).all() and not first.vectors[~real].any() and not first.loss[~real].any()
    for module in (alone, padded, other):
        module.update()
    assert_same_state(alone, padded, rtol=0, atol=0)
    assert_same_state(other, padded, rtol=0, atol=0)


def in_processes(ranks: list[VectorQuantizer], monkeypatch) -> None:
    """Update the modules as if each were the one of another process."""
    mine = [module.gathered for module in ranks]

    def together(combine):
        def collective(values: torch.Tensor) -> torch.Tensor:
            [name] = {name for one in mine for name, value in vars(one).items() if value is values}
            return combine([getattr(one, name) for one in mine])

        return collective

    monkeypatch.setattr(quantizer, "all_summed", together(sum))
    monkeypatch.setattr(quantizer, "all_gathered", together(torch.cat))
    for module in ranks:
        module.update()


@pytest.mark.parametrize("updates", [0, 1], ids=["first", "later"])
def test_micro_batches_and_processes_give_what_one_batch_gives(updates, monkeypatch):
    """Everything: averages, which entries are replaced, and by which vectors. One update, and one more over what it
    made."""
    whole, parts, *ranks = (build(updates=updates, reset_after=1, num_codes=32) for _ in range(4))
    for step in range(2):
        given = vectors(60, step)
        before = whole.codebook.clone()
        read(whole, given)
        whole.update()
        for part in given.flip(0).split([10, 20, 7, 23]):
            read(parts, part)
        parts.update()
        for module, part in zip(ranks, (given[:25], given[25:]), strict=True):
            for micro_batch in part.split(10):
                read(module, micro_batch)
        in_processes(ranks, monkeypatch)
        monkeypatch.undo()
        for module in (parts, *ranks):
            assert_same_state(whole, module, rtol=1e-5, atol=1e-6)
        assert_same_state(*ranks, rtol=0, atol=0)
        assert ((whole.codebook - before).abs().amax(-1) > 0.1).any()  # some were replaced
    assert whole.updates == updates + 2


def test_a_step_without_vectors_in_one_process(monkeypatch):
    whole, *ranks = (build() for _ in range(3))
    read(whole, vectors(30))
    whole.update()
    read(ranks[0], vectors(30))
    ranks[1].gathered = Statistics.empty(ranks[1].codebook)
    in_processes(ranks, monkeypatch)
    for module in ranks:
        assert_same_state(whole, module, rtol=1e-5, atol=1e-6)


def test_unused_entries_become_vectors_of_the_step():
    """Each another one, by itself and not in a mean or a sum; its average begins anew."""
    module = build(depth=1, num_codes=64, reset_after=1)
    given = vectors(100)
    latents = latents_of(module, given)
    used = torch.cat([read(module, part).codes for part in given.split(25)]).unique()
    module.update()
    distance, nearest = torch.cdist(module.codebook[0], latents, compute_mode="donot_use_mm_for_euclid_dist").min(1)
    unused = torch.ones(64, dtype=torch.bool).index_fill(0, used, False)
    assert len(used) < 60 and (distance[unused] < 1e-6).all()
    assert len(nearest[unused].unique()) == unused.sum()
    assert (distance[used] > 1e-2).any()  # those that are used only follow
    assert torch.equal(module.sums[0, unused], module.codebook[0, unused]) and (module.counts[0, unused] == 1).all()
    assert not module.idle[0].any()


def test_vectors_are_chosen_by_what_they_are_and_anew_in_each_step():
    chosen = {}
    for updates in (1, 2):
        for order in (torch.arange(100), torch.arange(100).flip(0)):
            module = build(depth=1, updates=updates)
            read(module, vectors(100)[order])
            rows = module.gathered.recent[:, 0]
            places = torch.cdist(rows, latents_of(module, vectors(100))).argmin(1).tolist()
            assert chosen.setdefault(updates, places) == places
    assert len(chosen[1]) == K and len(set(chosen[1]) & set(chosen[2])) < K / 2


def test_vectors_that_are_alike_replace_one_entry():
    module = build(depth=1, num_codes=64, updates=0)
    read(module, vectors(3).repeat(20, 1))
    module.update()
    assert (torch.cdist(module.codebook[0], latents_of(module, vectors(3))).amin(1) < 2e-3).sum() == 3


def test_keys_say_what_a_row_holds_up_to_a_place():
    rows = torch.tensor([[5, 6, 7, 8], [5, 6, 0, 8], [6, 5, 7, 8]])
    keys = prefix_keys(rows)
    assert torch.equal(keys[0, :2], keys[1, :2]) and torch.equal(prefix_keys(rows[:, :3]), keys[:, :3])
    assert len(keys.unique()) == 3 * 4 - 2


def test_codes_keep_their_meaning():
    """Of vectors that are as unequal in number as words are, in batches smaller than the codebook; also of those that
    do not come for hundreds of steps."""
    module = build(depth=1, num_codes=64, updates=0, decay=0.95)
    centres, shares = 3 * vectors(100, 7), 1 / torch.arange(1, 101)
    held_out = centres[torch.multinomial(shares, 1000, True, generator=torch.Generator().manual_seed(0))]

    def learn(steps: range, shares: torch.Tensor) -> None:
        for step in steps:
            which = torch.multinomial(shares, 40, True, generator=torch.Generator().manual_seed(step))
            read(module, centres[which] + 0.05 * vectors(40, step))
            module.update()

    def codes_of(given: torch.Tensor) -> torch.Tensor:
        codes = module.eval()(given, everything(len(given))).codes[:, 0]
        module.train()
        return codes

    learn(range(500), shares)
    codes, before = codes_of(held_out), module.codebook[0].clone()
    learn(range(500, 600), shares)
    # Averages drift by less than half of this; what takes the place of another entry is several units away.
    moved = (module.codebook[0, codes] - before[codes]).norm(dim=-1)
    assert (moved < 0.3).double().mean() > 0.97
    codes, before = codes_of(centres), module.codebook[0].clone()
    module.seen.fill_(10**6)  # nothing is replaced
    learn(range(600, 1100), shares * (torch.arange(100) < 10))
    unused = module.idle[0] >= 500 * 40
    assert unused.sum() > 30 and torch.equal(module.codebook[0, unused], before[unused])
    stayed = unused[codes]
    assert stayed.sum() > 50 and torch.equal(codes_of(centres)[stayed], codes[stayed])


def test_an_entry_stays_while_its_averages_vanish_and_comes_back():
    """With a decay of 0 they do at once."""
    module = build(decay=0.0, reset_after=math.inf)
    before = module.codebook.clone()
    for step in range(6):
        read(module, vectors(4, step % 2))
        used = module.gathered.counts > 0
        expected = (module.gathered.sums / module.gathered.counts.unsqueeze(-1)).where(used.unsqueeze(-1), before)
        module.update()
        assert torch.equal(module.codebook, expected) and not module.counts[~used].any() and not used.all()
        before = expected


def test_the_first_vectors_are_the_first_codebook():
    """In several micro-batches too."""
    module = build(updates=0)
    given = vectors(40)
    for part in given.split(10):
        read(module, part)
    module.update()
    assert torch.cdist(module.codebook[0], latents_of(module, given)).amin(1).max() < 2e-3
    assert code_usage(torch.bincount(read(module, given).codes[:, 0], minlength=K))[1] == 1


@pytest.mark.parametrize("how", ["evaluation", "no_gradient", "frozen"])
def test_forwards_that_train_nothing_change_nothing(how):
    module = build().train(how != "evaluation").requires_grad_(how != "frozen")
    before = state(module)
    with torch.set_grad_enabled(how != "no_gradient"):
        module(vectors(9), everything(9), keys_of(vectors(9)) if how == "evaluation" else None)
    module.update()
    for name, value in state(module).items():
        assert torch.equal(value, before[name])


def test_vectors_without_keys_are_told_apart_by_their_bits():
    """For users of the module alone: micro-batches move it as one batch does."""
    whole, parts = build(), build()
    given = vectors(40)
    whole(given, everything(40))
    for part in given.split(10):
        parts(part, everything(10))
    for module in (whole, parts):
        module.update()
        assert code_usage(torch.bincount(read(module, given).codes[:, 0], minlength=K))[1] == 1
    for name, value in state(whole).items():
        torch.testing.assert_close(state(parts)[name], value)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_counts_once(use_reentrant):
    plain, saved = build(), build()
    given = vectors(9).requires_grad_()
    read(plain, given).vectors.sum().backward()
    checkpoint(lambda v: read(saved, v).vectors, given, use_reentrant=use_reentrant).sum().backward()
    assert saved.gathered.counts.sum() == plain.gathered.counts.sum() == 18


def test_the_gradient_goes_straight_through():
    module = build()
    given = vectors(5).requires_grad_()
    weight = torch.randn(5, D)
    (module(given, everything(5)).vectors * weight).sum().backward()
    straight = given.detach().requires_grad_()
    (module.up(module.norm(module.down(straight))) * weight).sum().backward()
    torch.testing.assert_close(given.grad, straight.grad)
    assert given.grad.abs().sum() > 0


@pytest.mark.parametrize("module", [build(), FSQQuantizer(D, [5, 3, 4])], ids=["vq", "fsq"])
def test_codes_embed_to_the_vectors_they_came_from(module):
    found = module.eval()(vectors(30), everything(30))
    torch.testing.assert_close(module.embed(found.codes), found.vectors, rtol=1e-5, atol=1e-6)
    assert found.codes.min() >= 0 and found.codes.max() < module.num_codes


def test_a_saved_codebook_goes_on_as_if_nothing_had_happened():
    module = build(reset_after=1)
    for step in range(3):
        read(module, vectors(30, step))
        module.update()
    other = build(reset_after=1)
    other.load_state_dict(copy.deepcopy(module.state_dict()))
    for step in range(3, 6):
        for one in (module, other):
            read(one, vectors(30, step))
            one.update()
    assert_same_state(module, other, rtol=0, atol=0)


CASTS = {
    "bfloat16": lambda module: module.to(torch.bfloat16),
    "half": lambda module: module.half(),
    "as_parts": lambda module: torch.nn.ModuleList([module]).to(dtype=torch.bfloat16)[0],
    "autocast": lambda module: module,
}


@pytest.mark.parametrize("cast", CASTS)
def test_statistics_stay_float32(cast):
    """In 16 bits counts end at 256, what is idle at 8192 or at infinity, and averages of 0.99 do not move."""
    module = build(depth=1, num_codes=64, reset_after=200)
    module.counts.fill_(1000 / 3)
    before = state(module)
    assert_same_state(module, CASTS[cast](module), rtol=0, atol=0)
    assert all(torch.equal(value, before[name]) for name, value in module.named_buffers())
    given = vectors(30).to(module.down.weight.dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=cast == "autocast"):
        for _ in range(500):
            found = module(given, everything(30), torch.arange(30))
            module.update()
    for name in ("codebook", "counts", "sums", "idle"):
        assert getattr(module, name).dtype == torch.float32, name
    assert found.loss.dtype == torch.float32 and found.vectors.dtype == (
        torch.bfloat16 if cast == "autocast" else given.dtype
    )
    used = torch.bincount(found.codes[:, 0], minlength=64) > 0
    assert (module.idle[0][used] == 0).all() and (module.idle[0][~used] < 200 * 64).all()  # the dead were replaced
    assert module.seen == 500 * 30


@pytest.mark.parametrize(("count", "same"), [(0, False), (1, False), (7, True)], ids=["none", "one", "equal"])
def test_few_rows(count, same):
    module = build(num_codes=64, reset_after=0.05)
    given = vectors(1).expand(count, -1) if same else vectors(count)
    found = read(module, given)
    (found.vectors.sum() + found.loss.sum()).backward()
    module.update()
    assert found.codes.shape == (count, 2) and module.codebook.isfinite().all()
    assert found.vectors.isfinite().all()


def test_usage_of_codes():
    perplexity, used = code_usage(torch.tensor([2, 2, 2, 2, 0, 0, 0, 0]))
    assert math.isclose(perplexity, 4) and used == 0.5
    assert code_usage(torch.zeros(8)) == (1, 0)
