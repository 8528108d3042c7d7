"""What holds of `forward` for any finite input and any combination of its parts."""

import copy

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rqtoolkit import ResidualQuantizer

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
FILLS = ["normal", "huge", "tiny", "constant", "zero", "duplicated", "one-hot", "far"]


def vectors(fill, shape, seed):
    """Finite vectors (rows, dim) of an awkward kind, float64."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    if fill == "huge":
        x = 1e15 * x / x.abs().max().clamp_min(1e-9) if x.numel() else x
    if fill == "tiny":
        x *= 1e-30
    if fill == "constant":
        x = torch.full_like(x, 3.7)
    if fill == "zero":
        x.zero_()
    if fill == "duplicated" and len(x):
        x = x[:1].expand(shape).clone()
    if fill == "one-hot":
        x = (x.abs() > 2).double()
    if fill == "far":
        x += 1e4
    return x


@st.composite
def quantizers(draw):
    depth = draw(st.integers(1, 3))
    shared = draw(st.booleans())
    size = st.integers(1, 9)
    sizes = draw(size) if shared else draw(st.lists(size, min_size=depth, max_size=depth))
    update = draw(st.sampled_from(["ema", "gradient", "paper"]))
    options = {"shared_codebook": shared, "update": update}
    options["estimator"] = draw(st.sampled_from(["straight_through", "rotation"]))
    options["depth_dropout"] = draw(st.sampled_from([0.0, 1.0]))
    options["kmeans_init"] = draw(st.booleans())
    options["restart_threshold"] = draw(st.sampled_from([0.0, 0.25, 0.9]))
    options["channels_first"] = draw(st.booleans())
    if update != "paper":
        options["similarity"] = draw(st.sampled_from(["euclidean", "cosine"]))
        options["codebook_dim"] = draw(st.sampled_from([None, 1, 2]))
        options["tau"] = draw(st.sampled_from([0.0, 0.5]))
        if options["similarity"] == "euclidean" and not options["tau"]:
            options["forward_beam"] = draw(st.integers(1, 3))
    return ResidualQuantizer(draw(st.integers(1, 5)), depth, sizes, **options)


@st.composite
def cases(draw):
    torch.manual_seed(seed := draw(st.integers(0, 99)))  # so that an example can be repeated
    quantizer = draw(quantizers())
    axes = tuple(draw(st.lists(st.integers(0, 6), min_size=1, max_size=3)))
    fill, dtype = draw(st.sampled_from(FILLS)), draw(st.sampled_from(DTYPES))
    assume(not (fill == "huge" and dtype == torch.float16))  # which does not hold such values
    rows = int(torch.tensor(axes).prod())
    x = vectors(fill, (rows, quantizer.dim), seed).to(dtype).reshape(*axes, quantizer.dim)
    mask = torch.rand(axes) < 0.7 if draw(st.booleans()) else None
    return quantizer, x.movedim(-1, 1) if quantizer.channels_first else x, mask


def check_output(quantizer, x, mask, out):
    axes = tuple(x.movedim(1, -1).shape[:-1] if quantizer.channels_first else x.shape[:-1])
    assert out.quantized.shape == x.shape
    assert out.quantized.dtype == x.dtype
    assert out.codes.shape == (*axes, quantizer.depth)
    assert out.codes.dtype == torch.int64
    real = torch.ones(axes, dtype=torch.bool) if mask is None else mask
    assert out.codes[~real].eq(-1).all()
    assert out.codes[real].ge(0).all()
    assert out.codes[real].lt(torch.tensor(quantizer.codebook_sizes)).all()
    for loss in (out.commitment_loss, out.codebook_loss):
        assert loss.shape == ()
        assert loss.dtype == torch.float32
    numbers = [out.quantized, out.commitment_loss, out.codebook_loss]
    numbers += [quantizer.codebooks, quantizer.state.counts]
    for values in numbers:
        assert not values.isnan().any()
        assert values.dtype == torch.float16 or values.isfinite().all()
    assert all(0 <= usage <= 1 for usage in out.stats.usage)


@settings(max_examples=80)
@given(cases())
def test_never_nan_and_always_the_right_shape(case):
    quantizer, x, mask = case
    for _ in range(3):
        x = x.detach().requires_grad_()
        out = quantizer(x, mask)
        check_output(quantizer, x, mask, out)
        loss = out.quantized.float().sum() + out.commitment_loss + out.codebook_loss
        (gradient,) = torch.autograd.grad(loss, x)
        assert not gradient.isnan().any()
    quantizer.eval()
    check_output(quantizer, x, mask, quantizer(x.detach(), mask))


def errors(quantizer, x, codes):
    sums = quantizer.decode(codes).double()
    return (x.double() - sums).square().sum(1)


@settings(max_examples=60)
@given(cases())
def test_forward_in_eval_mode_is_encode(case):
    """Equal codes, or codes of an error that is equal to rounding where codewords tie."""
    quantizer, x, _ = case
    quantizer.channels_first = False
    quantizer(x := x.detach().reshape(-1, quantizer.dim))
    quantizer.eval()
    forward, encoded = quantizer(x).codes, quantizer.encode(x, beam=quantizer.forward_beam)
    differ = (forward != encoded).any(1)
    scale = x.float().square().sum(1).double() + quantizer.codebooks.square().sum(-1).max()
    gap = errors(quantizer, x, forward) - errors(quantizer, x, encoded)
    assert gap[differ].abs().le(1e-5 * scale[differ] + 1e-37).all()
    sums = quantizer.decode(forward)
    found = quantizer(x).quantized
    torch.testing.assert_close(found.float(), sums.to(found.dtype).float())


@settings(max_examples=30)
@given(cases(), st.randoms(use_true_random=False))
def test_the_order_of_vectors_does_not_matter_in_eval_mode(case, random):
    quantizer, x, _ = case
    quantizer.channels_first = False
    quantizer(x := x.detach().reshape(-1, quantizer.dim))
    order = list(range(len(x)))
    random.shuffle(order)
    quantizer.eval()
    assert torch.equal(quantizer(x[order]).codes, quantizer(x).codes[order])


@pytest.mark.parametrize("scale", [1e-12, 1e-3, 1e6, 1e12])
@pytest.mark.parametrize("update", ["ema", "paper"])
def test_scaling_the_data_scales_the_result(scale, update):
    scale = 2.0 ** round(torch.tensor(scale).log2().item())  # which loses no digit
    x = torch.randn(200, 6)
    outs = []
    for factor in (1.0, scale):
        torch.manual_seed(0)
        quantizer = ResidualQuantizer(6, 3, 8, update=update, restart_threshold=0)
        for _ in range(4):
            out = quantizer(factor * x)
        outs.append((out.codes, out.quantized / factor, out.commitment_loss / factor**2))
    for one, other in zip(*outs, strict=True):
        torch.testing.assert_close(one, other)


def test_one_vector_of_one_entry():
    quantizer = ResidualQuantizer(1, 1, 1)
    for _ in range(3):
        out = quantizer(torch.tensor([2.0]))
    assert out.codes.tolist() == [0]
    assert out.quantized.item() == pytest.approx(2.0)
    assert out.stats.perplexity == [1.0]
    twin = copy.deepcopy(quantizer).eval()
    assert twin(torch.empty(0, 1)).codes.shape == (0, 1)
