"""Vector quantization: equal to loops written out, blind to padding, the same over micro-batches and processes."""

import copy
import math

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from latentlm.models.quantizer import FSQQuantizer, VectorQuantizer, code_usage

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
        found = module(given, everything(20))
        latents = module.norm(module.down(given)).detach()
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
            total = counts[stage].sum()
            for k in range(K):
                smoothed = (counts[stage, k] + 1e-5) / (total + K * 1e-5) * total
                codebook[stage, k] = sums[stage, k] / smoothed
        torch.testing.assert_close(module.codebook, codebook, rtol=1e-4, atol=1e-5)
        codebook, counts, sums = module.codebook.clone(), module.counts.clone(), module.sums.clone()


def test_the_codebook_is_used():
    """Counts that begin at 0 make the original collapse to one or two codes at its first step."""
    module = build(depth=1, num_codes=64, updates=0, commitment=0.0)
    centres = 3 * vectors(48, 7)
    for step in range(60):
        which = torch.randint(0, 48, (256,), generator=torch.Generator().manual_seed(step))
        found = module(centres[which] + 0.05 * vectors(256, step), everything(256))
        module.update()
        perplexity, _ = code_usage(found.codes[:, 0], 64)
        assert perplexity > 6, step
    assert perplexity > 30
    assert found.loss.mean() < 0.05


def test_padding_takes_no_part():
    real = torch.rand(6, 5, generator=torch.Generator().manual_seed(2)) < 0.6
    given = vectors(30).view(6, 5, D)
    alone, padded, other = build(reset_after=0.5), build(reset_after=0.5), build(reset_after=0.5)
    only = alone(given[real], everything(int(real.sum())))
    first = padded(given, real)
    changed = torch.where(real.unsqueeze(-1), given, 1e4)
    second = other(changed, real)
    for name in ("vectors", "codes", "loss"):
        assert torch.equal(getattr(first, name), getattr(second, name))
        assert torch.equal(getattr(first, name)[real], getattr(only, name))
    assert (first.codes[~real] == -1).all() and not first.vectors[~real].any() and not first.loss[~real].any()
    for module in (alone, padded, other):
        module.update()
    assert_same_state(alone, padded, rtol=0, atol=0)
    assert_same_state(other, padded, rtol=0, atol=0)


def test_micro_batches_and_processes_give_what_one_batch_gives():
    given = vectors(40)
    whole, parts = build(reset_after=math.inf), build(reset_after=math.inf)
    ranks = [build(reset_after=math.inf), build(reset_after=math.inf)]
    whole(given, everything(40))
    whole.update()
    for part in given.split(10):
        parts(part, everything(10))
    parts.update()
    for module, part in zip(ranks, given.split(20), strict=True):
        module(part, everything(20))
    gathered = [module.gathered for module in ranks]
    for module in ranks:
        sums = iter([sum(getattr(s, name) for s in gathered) for name in ("counts", "sums", "recent")])
        module.update(lambda tensor, sums=sums: next(sums))
    for module in (parts, *ranks):
        assert_same_state(whole, module, rtol=1e-5, atol=1e-6)
    assert_same_state(*ranks, rtol=0, atol=0)


def test_processes_replace_the_same_entries():
    ranks = [build(reset_after=0.5), build(reset_after=0.5)]
    before = ranks[0].codebook.clone()
    for module, part in zip(ranks, vectors(40).split(20), strict=True):
        module(part, everything(20))
    gathered = [module.gathered for module in ranks]
    for module in ranks:
        sums = iter([sum(getattr(s, name) for s in gathered) for name in ("counts", "sums", "recent")])
        module.update(lambda tensor, sums=sums: next(sums))
    assert_same_state(*ranks, rtol=0, atol=0)
    assert ((ranks[0].codebook - before).abs().amax(-1) > 0.1).any()


def test_unused_entries_become_vectors_of_the_batch():
    module = build(depth=1, num_codes=64, reset_after=1)
    given = vectors(100)
    latents = module.norm(module.down(given)).detach()
    used = module(given, everything(100)).codes.unique()
    module.update()
    found = torch.cdist(module.codebook[0], latents).amin(1)
    unused = torch.ones(64, dtype=torch.bool).index_fill(0, used, False)
    assert len(used) < 60 and (found[unused] < 2e-3).all()
    assert (found[used] > 1e-2).any()  # those that are used only follow


def test_codes_keep_their_meaning():
    """Of vectors that are as unequal in number as words are, in batches smaller than the codebook."""
    module = build(depth=1, num_codes=64, updates=0)
    centres, shares = 3 * vectors(100, 7), 1 / torch.arange(1, 101)
    held_out = centres[torch.multinomial(shares, 1000, True, generator=torch.Generator().manual_seed(0))]
    codes = []
    for step in range(600):
        which = torch.multinomial(shares, 40, True, generator=torch.Generator().manual_seed(step))
        module(centres[which] + 0.05 * vectors(40, step), everything(40))
        module.update()
        if step in (499, 599):
            codes.append(module.eval()(held_out, everything(1000)).codes[:, 0])
            module.train()
    assert (codes[0] == codes[1]).double().mean() > 0.9


def test_the_first_vectors_are_the_first_codebook():
    module = build(updates=0)
    given = vectors(40)
    latents = module.norm(module.down(given)).detach()
    module(given, everything(40))
    module.update()
    assert torch.cdist(module.codebook[0], latents).amin(1).max() < 2e-3
    assert code_usage(module(given, everything(40)).codes[:, 0], K)[1] == 1


def test_evaluation_changes_nothing():
    module = build().eval()
    before = state(module)
    module(vectors(9), everything(9))
    module.update()
    for name, value in state(module).items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_counts_once(use_reentrant):
    plain, saved = build(), build()
    given = vectors(9).requires_grad_()
    plain(given, everything(9)).vectors.sum().backward()
    checkpoint(lambda v: saved(v, everything(9)).vectors, given, use_reentrant=use_reentrant).sum().backward()
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
        module(vectors(30, step), everything(30))
        module.update()
    other = build(reset_after=1)
    other.load_state_dict(copy.deepcopy(module.state_dict()))
    for step in range(3, 6):
        for one in (module, other):
            one(vectors(30, step), everything(30))
            one.update()
    assert_same_state(module, other, rtol=0, atol=0)


def test_autocast_leaves_statistics_alone():
    module = build()
    with torch.autocast("cpu", torch.bfloat16):
        found = module(vectors(9), everything(9))
    module.update()
    assert found.loss.dtype == module.codebook.dtype == module.sums.dtype == torch.float32


@pytest.mark.parametrize(("count", "same"), [(0, False), (1, False), (7, True)], ids=["none", "one", "equal"])
def test_few_rows(count, same):
    module = build(num_codes=64, reset_after=0.05)
    given = vectors(1).expand(count, -1) if same else vectors(count)
    found = module(given, everything(count))
    (found.vectors.sum() + found.loss.sum()).backward()
    module.update()
    assert found.codes.shape == (count, 2) and module.codebook.isfinite().all()
    assert found.vectors.isfinite().all()


def test_usage_of_codes():
    perplexity, used = code_usage(torch.tensor([0, 0, 1, 1, 2, 2, 3, 3]), 8)
    assert math.isclose(perplexity, 4) and used == 0.5
