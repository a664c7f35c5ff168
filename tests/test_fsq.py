"""Finite scalar quantization and the FSQ autoencoder: formulas against loops, exact indices, masking, named losses."""

import math

import pytest
import torch
from torch import nn

from latentlm import FSQAutoencoderConfig, FSQAutoencoderModel
from latentlm.models.block_fsq import FSQ
from latentlm.models.modeling_fsq_autoencoder import FEW, Convolution, TransposedConvolution

ORIGINAL_LEVELS = (8, 8, 8, 8, 8, 5, 5, 5)
SMALL = {
    "max_chunk_bytes": 8,
    "embedding_size": 8,
    "hidden_size": 16,
    "conv_channels": [12, 16],
    "conv_strides": [1, 2],
    "deconv_channels": [16, 8],
    "deconv_strides": [2, 2],
    "levels": [8, 5, 3],
}
CHUNKS = [b"a", b"to", b"the ", b"\x00\xff\xe2", b"chunk 8b"]


def batch(chunks: list[bytes], width: int = 8) -> torch.Tensor:
    """`(B, width)`, 256 after the end of each chunk."""
    return torch.tensor([list(chunk) + [256] * (width - len(chunk)) for chunk in chunks])


def labels(chunks: list[bytes], width: int = 8) -> torch.Tensor:
    """`(B, width)`: bytes, one 256, then -100."""
    return torch.tensor([(list(chunk) + [256] + [-100] * width)[:width] for chunk in chunks])


@pytest.fixture
def model() -> FSQAutoencoderModel:
    return small()


def small(**changes) -> FSQAutoencoderModel:
    """The same random weights whatever the options, biases included."""
    torch.manual_seed(0)
    model = FSQAutoencoderModel(FSQAutoencoderConfig(**SMALL | changes)).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


# --- the quantization -------------------------------------------------------------------------------------------------


def test_every_code_has_its_own_index():
    fsq = FSQ(ORIGINAL_LEVELS)
    assert fsq.num_codes == 4_096_000
    index = torch.arange(fsq.num_codes)
    digits = fsq.digits(index)
    assert (digits >= 0).all() and (digits < torch.tensor(ORIGINAL_LEVELS)).all()
    assert torch.equal(fsq.index(digits), index)
    assert fsq.digits(torch.tensor([1, 8])).tolist() == [[1] + [0] * 7, [0, 1] + [0] * 6]  # the first changes fastest


def test_values_follow_the_formula_one_by_one():
    fsq = FSQ((8, 5, 2), temperature=0.7)
    z = torch.randn(50, 3) * 2
    values, index = fsq(z)
    for row, code, expected_index in zip(z.tolist(), values.tolist(), index.tolist(), strict=True):
        digits = [round((math.tanh(v / 0.7) + 1) / 2 * (n - 1)) for v, n in zip(row, fsq.levels, strict=True)]
        assert code == pytest.approx([2 * d / (n - 1) - 1 for d, n in zip(digits, fsq.levels, strict=True)])
        assert expected_index == digits[0] + 8 * digits[1] + 40 * digits[2]


@pytest.mark.parametrize("levels", [2, 5, 8])
def test_all_values_are_used_evenly_spaced_and_symmetric(levels):
    """The original round(tanh(z) * (L - 1) / 2) gives 7 values for L = 8."""
    values = FSQ([levels])(torch.linspace(-6, 6, 10_001)[:, None])[0].unique()
    torch.testing.assert_close(values, torch.linspace(-1, 1, levels))


def test_the_gradient_is_that_of_the_bounded_value():
    fsq = FSQ((8, 5), temperature=1.5)
    z = torch.randn(20, 2, requires_grad=True)
    weight = torch.randn(20, 2)
    (fsq(z)[0] * weight).sum().backward()
    torch.testing.assert_close(z.grad, weight * (1 - torch.tanh(z.detach() / 1.5) ** 2) / 1.5)


def test_nothing_is_kept_and_autocast_changes_no_code():
    fsq = FSQ(ORIGINAL_LEVELS)
    assert not fsq.state_dict()
    z = torch.randn(4096, 8)
    with torch.autocast("cpu", torch.bfloat16):
        values, index = fsq(z)
    assert values.dtype == torch.float32
    assert torch.equal(index, fsq(z)[1])


def test_noise_moves_a_share_of_the_values_in_training_alone():
    fsq = FSQ((8, 5), noise=0.25)
    z = torch.randn(4000, 2)
    rounded = fsq.eval()(z)
    noisy = fsq.train()(z)
    assert torch.equal(noisy[1], rounded[1])  # codes are those without noise
    steps = (noisy[0] - fsq.values(fsq.positions(z))).abs() * torch.tensor([7, 4]) / 2
    moved = ~torch.isclose(noisy[0], rounded[0], atol=1e-6)
    assert 0.22 < moved.float().mean() < 0.28
    assert steps.max() <= 0.5 + 1e-5


@pytest.mark.parametrize("num_quantizers", [2, 3])
def test_each_quantizer_refines_what_the_ones_before_leave(num_quantizers):
    levels = (8, 5)
    fsq = FSQ(levels, temperature=0.7, num_quantizers=num_quantizers)
    assert fsq.num_codes == 40**num_quantizers and len(fsq.levels) == 2 * num_quantizers
    z = torch.randn(200, 2, requires_grad=True)
    values, index = fsq(z)
    bounded = torch.tanh(z.detach() / 0.7).double()
    for row in range(50):
        expected, digits = [0.0, 0.0], []
        left, scale = bounded[row].tolist(), [1, 1]
        for _ in range(num_quantizers):
            for i, n in enumerate(levels):
                digit = round((left[i] + 1) / 2 * (n - 1))
                value = 2 * digit / (n - 1) - 1
                expected[i] += value / scale[i]
                left[i] = (left[i] - value) * (n - 1)  # stretched to [-1, 1]
                scale[i] *= n - 1
                digits.append(digit)
        if min(abs(abs(x) - 1) for x in left) > 1e-3:  # else rounding decides
            assert values[row].tolist() == pytest.approx(expected, abs=1e-5)
            assert fsq.digits(index[row]).tolist() == digits
            assert index[row] % 40 == FSQ(levels, 0.7)(z[row])[1]  # a prefix is the code of one quantizer
    steps = torch.tensor(levels) - 1.0
    assert ((values.detach() - bounded).abs() <= 1 / steps**num_quantizers + 1e-5).all()
    weight = torch.randn(200, 2)
    (values * weight).sum().backward()
    torch.testing.assert_close(z.grad, weight * (1 - torch.tanh(z.detach() / 0.7) ** 2) / 0.7)
    every = torch.arange(fsq.num_codes)
    assert torch.equal(fsq.index(fsq.digits(every)), every)


def test_a_residual_autoencoder_goes_through_all_its_codes():
    model = small(num_quantizers=2, code_entropy_loss_weight=0.5, margin_loss_weight=0.5).train()
    output = model(batch(CHUNKS), labels=labels(CHUNKS))
    assert output.code_values.shape == (5, 3) and model.config.num_codes == 120**2
    output.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    model.eval()
    codes = model.encode(batch(CHUNKS).clamp(max=255), torch.tensor([len(chunk) for chunk in CHUNKS]))
    coarse = small(code_entropy_loss_weight=0.5, margin_loss_weight=0.5)
    assert torch.equal(codes % 120, coarse(batch(CHUNKS)).code_index)
    decoded, _ = model.decode(codes)
    first = output.logits.argmax(-1)
    assert torch.equal(decoded[first[:, 0] != 256, 0].long(), first[first[:, 0] != 256, 0])


# --- the autoencoder --------------------------------------------------------------------------------------------------


def test_the_original_sizes():
    model = FSQAutoencoderModel(FSQAutoencoderConfig())
    encoder = 256 * 64 + (64 * 3 + 1) * 128 + (128 * 3 + 1) * 256 + (256 * 3 + 1) * 256 + 2 * 256 + 257 * 8
    decoder = 9 * 256 + 257 * 1024 + (256 * 3 + 1) * 256 + (256 * 3 + 1) * 128 + (128 * 3 + 1) * 64 + 65 * 257
    assert sum(p.numel() for p in model.parameters()) == encoder + decoder == 941_193
    assert model(batch([b"hello"], 16)).logits.shape == (1, 16, 257)


def convolve(signal: torch.Tensor, conv: nn.Conv1d) -> torch.Tensor:
    """`(D, T)` to `(D', T')`, one output position after the other, over nothing but the chunk itself."""
    reach = conv.kernel_size[0] // 2
    outputs = []
    for centre in range(0, signal.shape[1], conv.stride[0]):
        total = conv.bias.clone()
        for tap in range(conv.kernel_size[0]):
            if 0 <= centre + tap - reach < signal.shape[1]:
                total = total + conv.weight[:, :, tap] @ signal[:, centre + tap - reach]
        outputs.append(nn.functional.gelu(total))
    return torch.stack(outputs, dim=1)


@pytest.mark.parametrize("pooling", ["mean", "attention", "flatten"])
def test_a_chunk_is_encoded_as_if_nothing_came_after_it(pooling):
    model = small(pooling=pooling)
    encoder = model.encoder
    ids = batch(CHUNKS)
    found = encoder(ids, torch.tensor([len(chunk) for chunk in CHUNKS]))
    for row, chunk in enumerate(CHUNKS):
        signal = encoder.embed_bytes.weight[list(chunk)].T
        for conv in encoder.convs:
            signal = convolve(signal, conv)
        if pooling == "mean":
            pooled = signal.mean(1)
        elif pooling == "attention":
            pooled = signal @ encoder.pool_scores(signal.T)[:, 0].softmax(0)
        else:
            pooled = nn.functional.pad(signal, (0, 4 - signal.shape[1])).flatten()
        torch.testing.assert_close(found[row], encoder.to_code(encoder.norm(pooled)), rtol=1e-4, atol=1e-5)


def test_neither_what_follows_the_end_nor_the_neighbours_matter(model):
    ids = batch(CHUNKS)
    expected = model(ids)
    changed = ids.clone()
    changed[0, 2:] = 17  # after the end of "a"
    other = model(changed)
    assert torch.equal(other.logits[0], expected.logits[0])
    for row in range(len(CHUNKS)):
        alone = model(ids[row : row + 1])
        assert torch.equal(alone.code_index, expected.code_index[row : row + 1])
        torch.testing.assert_close(alone.logits[0], expected.logits[row])
    short = model(ids[:3, :4])  # a narrower batch of short chunks
    torch.testing.assert_close(short.logits, expected.logits[:3])


def test_encode_and_decode_are_the_two_halves_of_forward(model):
    lengths = torch.tensor([len(chunk) for chunk in CHUNKS])
    output = model(batch(CHUNKS))
    codes = model.encode(batch(CHUNKS).clamp(max=255).to(torch.uint8), lengths)
    assert torch.equal(codes, output.code_index)
    decoded, decoded_lengths = model.decode(codes)
    symbols = output.logits.argmax(-1)
    for row, length in enumerate(decoded_lengths.tolist()):
        assert decoded.dtype == torch.uint8
        assert decoded[row, :length].tolist() == symbols[row, :length].tolist()
        assert not decoded[row, length:].any()
        assert length == 8 or symbols[row, length] == 256


def test_many_codes_go_through_one_map(model):
    for count in (1, 40):
        values = model.fsq.values(model.fsq.digits(torch.arange(count)))
        torch.testing.assert_close(model._expand(values), model.decoder.expand(model.from_code(values)))


def test_new_weights_give_many_codes():
    """Without the LayerNorm or with a small projection they would collapse to one."""
    torch.manual_seed(0)
    model = FSQAutoencoderModel(FSQAutoencoderConfig())
    chunks = torch.randint(0, 256, (512, 16))
    assert len(model.encode(chunks, torch.full((512,), 16)).unique()) > 400


def test_losses_follow_their_formulas():
    model = small(margin_loss_weight=0.5, code_entropy_loss_weight=0.25, margin=0.3).train()
    ids, targets = batch(CHUNKS), labels(CHUNKS)
    output = model(ids, labels=targets)
    log_probabilities = output.logits.log_softmax(-1)
    nats = [-log_probabilities[b, t, targets[b, t]] for b in range(5) for t in range(8) if targets[b, t] >= 0]
    torch.testing.assert_close(output.reconstruction_loss, torch.stack(nats).mean())

    positions = model.fsq.positions(model.encoder(ids, torch.tensor([len(chunk) for chunk in CHUNKS])))
    total = 0.0
    for row, chunk in zip(positions.tolist(), CHUNKS, strict=True):
        to_border = [abs(p - (math.floor(p) + 0.5)) for p in row]
        symbols = min(len(chunk) + 1, 8)
        total += symbols * sum(max(0.0, (0.3 - d) / 0.3) for d in to_border) / 3
    assert output.margin_loss.item() == pytest.approx(total / len(nats), rel=1e-4)

    missing = []
    for column, levels in zip(positions.T.tolist(), SMALL["levels"], strict=True):
        shares = [sum(max(0.0, 1 - abs(p - digit)) for p in column) / len(column) for digit in range(levels)]
        missing.append(1 + sum(s * math.log(s) for s in shares if s) / math.log(levels))
    assert output.code_entropy_loss.item() == pytest.approx(sum(missing) / 3, rel=1e-4)

    expected = output.reconstruction_loss + 0.5 * output.margin_loss + 0.25 * output.code_entropy_loss
    torch.testing.assert_close(output.loss, expected)
    evaluated = model.eval()(ids, labels=targets)
    torch.testing.assert_close(evaluated.loss, evaluated.reconstruction_loss)


@pytest.mark.parametrize("kernel_size", [1, 3, 5])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_a_few_convolutions_as_matrix_products_are_convolutions(kernel_size, stride):
    torch.manual_seed(0)
    half = kernel_size // 2
    convolution = Convolution(4, 6, kernel_size, stride, half)
    transposed = TransposedConvolution(4, 6, kernel_size, stride, half, stride - 1)
    for layer, plain in ((convolution, nn.Conv1d.forward), (transposed, nn.ConvTranspose1d.forward)):
        for count in (1, FEW, FEW + 1):
            inputs = torch.randn(count, 4, 12)
            expected = plain(layer, inputs)
            assert layer(inputs).grad_fn is not None
            with torch.no_grad():
                torch.testing.assert_close(layer(inputs), expected)


def test_a_chunk_that_is_too_long_is_refused(model):
    with pytest.raises(ValueError, match=r"`input_ids` are \(1, 9\), but `max_chunk_bytes` is 8"):
        model(batch([b"nine byte"], width=9))
