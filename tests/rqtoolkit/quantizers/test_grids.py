"""Scalar and binary residual quantizers: closed forms, properties, and vector-quantize-pytorch."""

import copy
import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import rqtoolkit
from rqtoolkit import ResidualBinaryQuantizer, ResidualScalarQuantizer, load_quantizer
from rqtoolkit.errors import ArtifactError, ConfigError, DataError, ShapeError
from rqtoolkit.io.artifact import write_artifact

KINDS = {
    "scalar": lambda **more: ResidualScalarQuantizer(6, 3, (8, 5, 4), **more),
    "binary": lambda **more: ResidualBinaryQuantizer(6, 3, 5, **more),
    "spherical": lambda **more: ResidualBinaryQuantizer(6, 3, 5, spherical=True, **more),
    "scalar, no projection": lambda **more: ResidualScalarQuantizer(3, 2, (3, 2, 7), **more),
    "binary, no projection": lambda **more: ResidualBinaryQuantizer(4, 2, 4, **more),
}


@pytest.fixture(params=KINDS)
def make(request):
    return KINDS[request.param]


def test_scalar_by_hand():
    # Three values: −1, 0, 1, then the same over thirds. Cells of the first level are 2/3 · 1.5 = 1
    # wide: atanh undoes the bound, so that the rounding sees 0.6 and −1.4.
    quantizer = ResidualScalarQuantizer(2, 2, (3, 3))
    z = torch.tensor([[0.6, -1.4]])
    out = quantizer(1.5 * torch.atanh(z / 1.5))
    # 0.6 -> 1 (digit 2), left −0.4 -> −1/3 (digit 0); −1.4 -> −1 (0), left −0.4 -> −1/3 (0).
    assert out.codes.tolist() == [[2 + 3 * 0, 0 + 3 * 0]]
    torch.testing.assert_close(out.quantized, torch.tensor([[1 - 1 / 3, -1 - 1 / 3]]))
    errors = [0.4**2 + 0.4**2, 2 * (0.4 - 1 / 3) ** 2]
    assert out.stats.distortion == pytest.approx(errors, rel=1e-4)
    assert out.commitment_loss.item() == 0
    assert float(out.codebook_loss) == 0
    assert out.entropy_loss is None


def test_binary_by_hand():
    quantizer = ResidualBinaryQuantizer(3, 2, 3)
    out = quantizer(torch.tensor([[0.8, -0.3, 1.7]]))
    # Signs + − +: 101 = 5. Left: −0.2, 0.7, 0.7, signs − + + at one half: 011 = 3.
    assert out.codes.tolist() == [[5, 3]]
    torch.testing.assert_close(out.quantized, torch.tensor([[0.5, -0.5, 1.5]]))
    after = [[-0.2, 0.7, 0.7], [0.3, 0.2, 0.2]]
    squares = sum(v**2 for row in after for v in row)
    assert out.commitment_loss.item() == pytest.approx(squares / 6, rel=1e-5)


def test_spherical_codewords_lie_on_the_sphere():
    quantizer = ResidualBinaryQuantizer(5, 1, 5, spherical=True)
    x = 7 * torch.randn(50, 5)
    out = quantizer(x)
    torch.testing.assert_close(out.quantized.norm(dim=1), torch.ones(50))
    torch.testing.assert_close(out.quantized, x.sign() / math.sqrt(5))


def test_every_level_brings_spherical_codes_nearer():
    # Levels refine the direction; the length of x is none of theirs.
    quantizer = ResidualBinaryQuantizer(8, 4, 8, spherical=True)
    x = 3 * torch.randn(500, 8)
    errors = quantizer(x).stats.distortion
    assert all(after < 0.4 * before for before, after in pairwise(errors))
    assert torch.equal(quantizer(9 * x).codes, quantizer(x).codes)


@pytest.mark.parametrize("levels", [2, 3, 4, 5, 8])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_levels_together_are_one_even_grid(levels, depth):
    quantizer = ResidualScalarQuantizer(1, depth, (levels,))
    codes = torch.cartesian_prod(*[torch.arange(levels)] * depth).reshape(-1, depth)
    values = quantizer.decode(codes).flatten().sort().values
    edge = levels / (levels - 1)
    count = levels**depth
    expected = edge * (2 * torch.arange(count) + 1 - count) / count
    torch.testing.assert_close(values, expected, atol=1e-6, rtol=0)
    z = torch.linspace(-0.999 * edge, 0.999 * edge, 501)
    nearest = expected[(z[:, None] - expected).abs().argmin(dim=1)]
    found = quantizer(edge * torch.atanh(z / edge)[:, None]).quantized.flatten()
    assert float((found - z).abs().max()) <= edge / count + 1e-5
    assert float((found - nearest).abs().gt(1e-5).float().mean()) < 0.01  # ties alone


@settings(max_examples=40)
@given(
    levels=st.lists(st.integers(2, 9), min_size=1, max_size=4),
    depth=st.integers(1, 3),
    rows=st.integers(0, 20),
    seed=st.integers(0, 100),
)
def test_scalar_codes_are_in_range_and_decode_to_what_was_quantized(levels, depth, rows, seed):
    torch.manual_seed(seed)
    quantizer = ResidualScalarQuantizer(len(levels) + seed % 2, depth, levels)
    x = 10 ** (seed % 5 - 2) * torch.randn(rows, quantizer.dim)
    out = quantizer(x)
    assert torch.equal(out.codes, quantizer.encode(x))
    assert ((out.codes >= 0) & (out.codes < math.prod(levels))).all()
    torch.testing.assert_close(quantizer.decode(out.codes), out.quantized.detach())


@settings(max_examples=40)
@given(
    bits=st.integers(1, 62),
    depth=st.integers(1, 3),
    rows=st.integers(0, 20),
    spherical=st.booleans(),
)
def test_binary_codes_are_in_range_and_decode_to_what_was_quantized(bits, depth, rows, spherical):
    quantizer = ResidualBinaryQuantizer(7, depth, bits, spherical=spherical)
    x = 3 * torch.randn(rows, 7)
    out = quantizer(x)
    assert torch.equal(out.codes, quantizer.encode(x))
    assert ((out.codes >= 0) & (out.codes < 2**bits)).all()
    torch.testing.assert_close(quantizer.decode(out.codes), out.quantized.detach())
    assert len(out.stats.usage) == len(out.stats.perplexity) == depth


def test_codes_of_a_codeword_are_its_own(make):
    quantizer = make()
    codes = torch.randint(quantizer.codebook_sizes[0], (40, quantizer.depth))
    digits = quantizer._digits_of(codes[:, 0])
    assert torch.equal((digits * quantizer.places).sum(dim=1), codes[:, 0])


def test_every_prefix_decodes_to_what_so_many_levels_give(make):
    quantizer = make()
    x = torch.randn(5, 4, quantizer.dim)
    codes = quantizer.encode(x)
    for depth in range(1, quantizer.depth + 1):
        out = quantizer(x, depth=depth)
        assert torch.equal(out.codes, codes[..., :depth])
        assert torch.equal(quantizer.encode(x, depth=depth), codes[..., :depth])
        torch.testing.assert_close(quantizer.decode(codes[..., :depth]), out.quantized.detach())


def test_codebooks_sum_to_what_decode_gives(make):
    quantizer = make()
    size = quantizer.codebook_sizes[0]
    tables = quantizer.codebooks
    assert tables.shape == (quantizer.depth, size, quantizer.dim)
    codes = torch.randint(size, (30, quantizer.depth))
    summed = sum(table[codes[:, level]] for level, table in enumerate(tables))
    torch.testing.assert_close(summed, quantizer.decode(codes))


def test_masked_vectors_change_nothing_for_the_rest(make):
    quantizer = make()
    x = torch.randn(4, 6, quantizer.dim)
    mask = torch.rand(4, 6) < 0.6
    x[~mask] = torch.nan
    x.requires_grad_()
    out, kept = quantizer(x, mask), quantizer(x[mask].detach())
    assert torch.equal(out.codes[mask], kept.codes)
    assert (out.codes[~mask] == -1).all()
    assert (out.quantized[~mask] == 0).all()
    torch.testing.assert_close(out.quantized[mask], kept.quantized)
    torch.testing.assert_close(out.commitment_loss, kept.commitment_loss)
    torch.testing.assert_close(out.stats.distortion, kept.stats.distortion)
    if out.entropy_loss is not None:
        torch.testing.assert_close(out.entropy_loss, kept.entropy_loss)
    out.quantized.sum().backward()
    assert x.grad.isfinite().all()
    assert (x.grad[~mask] == 0).all()


def test_nothing_but_padding_gives_finite_losses(make):
    quantizer = make()
    out = quantizer(torch.randn(3, quantizer.dim), torch.zeros(3, dtype=torch.bool))
    assert out.commitment_loss.item() == 0
    assert out.entropy_loss is None or bool(out.entropy_loss.isfinite())


def test_dropped_levels_add_nothing(make):
    quantizer = make(depth_dropout=0.7)
    x = torch.randn(60, 2, quantizer.dim)
    out = quantizer(x)
    assert set(out.depths.unique().tolist()) == set(range(1, quantizer.depth + 1))
    assert (out.depths == out.depths[:, :1]).all()
    for depth in range(1, quantizer.depth + 1):
        rows = out.depths == depth
        torch.testing.assert_close(
            out.quantized[rows], quantizer.decode(out.codes[rows][:, :depth])
        )
    quantizer.eval()
    assert quantizer(x).depths is None


def test_gradients_pass_the_rounding_unchanged():
    x = torch.randn(20, 4, requires_grad=True)
    weights = torch.randn(20, 4)
    (ResidualBinaryQuantizer(4, 3, 4)(x).quantized * weights).sum().backward()
    torch.testing.assert_close(x.grad, weights)
    x.grad = None
    (ResidualScalarQuantizer(4, 3, (3,) * 4)(x).quantized * weights).sum().backward()
    slope = 1 - torch.tanh(x.detach() / 1.5).square()
    torch.testing.assert_close(x.grad, weights * slope)


def test_gradients_reach_both_projections(make):
    quantizer = make()
    x = torch.randn(20, quantizer.dim, requires_grad=True)
    quantizer(x).quantized.square().sum().backward()
    assert bool(x.grad.abs().sum() > 0)
    assert all(bool(p.grad.abs().sum() > 0) for p in quantizer.parameters())


@pytest.mark.parametrize("spherical", [False, True])
def test_losses_are_those_of_soft_codes_over_all_codewords(spherical):
    quantizer = ResidualBinaryQuantizer(
        4, 2, 4, spherical=spherical, temperature=2.0, diversity=0.5
    )
    x = torch.randn(1, 4, requires_grad=True)
    out = quantizer(x)
    # One vector: the batch is the vector, and the entropy of both is that of the product.
    z = x / x.norm() if spherical else x
    unit = 0.5 if spherical else 1.0
    total, left = 0.0, z
    for level, table in enumerate(quantizer.codebooks):
        distances = (left - table).square().sum(dim=1)
        soft = torch.softmax(-distances / (2.0 * (unit * 2.0**-level) ** 2), dim=0)
        total = total - 0.5 * (soft * soft.log()).sum() / 2  # (1 − diversity) · H, mean of 2 levels
        left = left - table[distances.argmin()]
    torch.testing.assert_close(out.entropy_loss, total)
    (gradient,) = torch.autograd.grad(out.entropy_loss, x, retain_graph=True)
    (expected,) = torch.autograd.grad(total, x)
    torch.testing.assert_close(gradient, expected)


def test_entropy_loss_is_low_for_sure_bits_that_differ_over_the_batch():
    quantizer = ResidualBinaryQuantizer(3, 1, 3, temperature=1.0)
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 3)
    even, same = quantizer(9 * signs), quantizer(9 * signs[:1].expand(8, 3))
    vague = quantizer(1e-3 * signs)
    assert even.entropy_loss.item() == pytest.approx(-3 * math.log(2), abs=1e-4)
    assert same.entropy_loss.item() == pytest.approx(0, abs=1e-4)
    assert vague.entropy_loss.item() == pytest.approx(0, abs=1e-4)
    x = torch.full((4, 3), 200.0, requires_grad=True)
    quantizer(x).entropy_loss.backward()
    assert x.grad.isfinite().all()


def test_descending_the_entropy_loss_puts_all_codes_to_use():
    x = (0.3 + 0.2 * torch.randn(400, 4)).requires_grad_()
    quantizer = ResidualBinaryQuantizer(4, 1, 4, temperature=1.0)
    before = quantizer(x).stats.perplexity[0]
    optimizer = torch.optim.Adam([x], lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        out = quantizer(x)
        (out.entropy_loss + 0.25 * out.commitment_loss).backward()
        optimizer.step()
    assert before < 8
    assert quantizer(x).stats.perplexity[0] > 12


def test_processes_share_the_entropy_of_the_batch(monkeypatch):
    quantizer = ResidualBinaryQuantizer(3, 2, 3)
    x = torch.randn(40, 3, requires_grad=True)
    whole = quantizer(x).entropy_loss
    (expected,) = torch.autograd.grad(whole, x)
    seen = []
    exchange = "rqtoolkit.quantizers.binary.sum_over_ranks"
    monkeypatch.setattr(exchange, lambda *own: seen.append([one.clone() for one in own]))
    halves = x[:20], x[20:]
    for half in halves:
        quantizer(half)
    totals = [sum(parts) for parts in zip(*seen, strict=True)]

    def replace(*own):
        for mine, total in zip(own, totals, strict=True):
            mine.copy_(total)

    monkeypatch.setattr(exchange, replace)
    loss = torch.stack([quantizer(half).entropy_loss for half in halves]).mean()
    torch.testing.assert_close(loss, whole)
    (gradient,) = torch.autograd.grad(loss, x)
    torch.testing.assert_close(gradient, expected)
    monkeypatch.setattr(exchange, None)
    quantizer.eval()(x)  # evaluation asks no other process


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_parent_of_low_precision_keeps_the_grid(make, dtype):
    quantizer = make()
    x = torch.randn(50, quantizer.dim)
    low = copy.deepcopy(quantizer).to(dtype)
    out = low(x.to(dtype))
    assert out.quantized.dtype == dtype
    restored = copy.deepcopy(low).float()
    assert torch.equal(out.codes, restored(x.to(dtype).float()).codes)


def test_autocast_changes_no_code(make):
    quantizer = make()
    x = torch.randn(50, quantizer.dim)
    with torch.autocast("cpu", torch.bfloat16):
        codes = quantizer(x).codes
    assert torch.equal(codes, quantizer(x).codes)


def test_huge_and_broken_vectors_get_codes_that_exist(make):
    quantizer = make()
    x = torch.randn(6, quantizer.dim)
    x[0], x[1], x[2], x[3] = torch.nan, torch.inf, 1e30, 0
    codes = quantizer(x).codes
    assert ((codes >= 0) & (codes < quantizer.codebook_sizes[0])).all()
    with pytest.raises(DataError, match="finite"):
        quantizer.encode(x)


def test_a_file_holds_all(make, tmp_path):
    quantizer = make(depth_dropout=0.5)
    quantizer.save(tmp_path / "grid.safetensors")
    loaded = load_quantizer(tmp_path / "grid.safetensors")
    assert type(loaded) is type(quantizer)
    assert repr(loaded) == repr(quantizer)
    x = torch.randn(30, quantizer.dim)
    codes = quantizer.encode(x)
    assert torch.equal(loaded.encode(x), codes)
    assert torch.equal(loaded.decode(codes), quantizer.decode(codes))


def test_a_file_of_another_grid_is_refused(tmp_path):
    path = tmp_path / "grid.safetensors"
    arguments, tensors = ResidualScalarQuantizer(2, 2, (5, 5)).stored()
    tensors["scales"] = tensors["scales"] * 2
    write_artifact(path, class_name="ResidualScalarQuantizer", arguments=arguments, tensors=tensors)
    with pytest.raises(ArtifactError, match="scales"):
        load_quantizer(path)


def test_channels_first(make):
    last = make()
    first = make(channels_first=True)
    first.load_state_dict(last.state_dict())
    x = torch.randn(2, last.dim, 3, 4)
    out = first(x)
    assert torch.equal(out.codes, last(x.movedim(1, -1)).codes)
    assert out.quantized.shape == x.shape
    torch.testing.assert_close(first.decode(out.codes), out.quantized.detach())


def test_few_bytes_change_no_code(make):
    quantizer = make()
    x = torch.randn(100, quantizer.dim)
    assert torch.equal(quantizer.encode(x, max_bytes=500), quantizer.encode(x))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["scalar", "spherical"])
def test_one_graph_when_compiled(kind):
    quantizer = KINDS[kind]()
    x = torch.randn(10, quantizer.dim)
    compiled = torch.compile(quantizer, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x).quantized, quantizer(x).quantized)
    encode = torch.compile(quantizer.encode, fullgraph=True, backend="eager")
    assert torch.equal(encode(x), quantizer.encode(x))


class Encoder(torch.nn.Module):
    def __init__(self, quantizer):
        super().__init__()
        self.quantizer = quantizer

    def forward(self, x):
        return self.quantizer.encode(x)


class Decoder(Encoder):
    def forward(self, codes):
        return self.quantizer.decode(codes)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["scalar", "spherical"])
def test_encode_and_decode_are_exported_for_any_number_of_vectors(kind):
    quantizer = KINDS[kind]().eval()
    x = torch.randn(20, quantizer.dim)
    codes = quantizer.encode(x)
    rows = ({0: torch.export.Dim("rows", min=2)},)
    encode = torch.export.export(Encoder(quantizer), (x[:7],), dynamic_shapes=rows).module()
    assert torch.equal(encode(x), codes)
    decode = torch.export.export(Decoder(quantizer), (codes[:7],), dynamic_shapes=rows).module()
    torch.testing.assert_close(decode(codes), quantizer.decode(codes))


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: ResidualScalarQuantizer(4, 2, (8, 1)), ConfigError, "at least 2"),
        (lambda: ResidualScalarQuantizer(4, 2, ()), ConfigError, "sequence"),
        (lambda: ResidualScalarQuantizer(4, 2, 8), ConfigError, "sequence"),
        (lambda: ResidualScalarQuantizer(4, 2, (2**40, 2**40)), ConfigError, "fewer dimensions"),
        (lambda: ResidualScalarQuantizer(4, 0), ConfigError, "depth=0"),
        (lambda: ResidualScalarQuantizer(4, 2, depth_dropout=2.0), ConfigError, "depth_dropout"),
        (lambda: ResidualBinaryQuantizer(4, 2, 63), ConfigError, "fewer dimensions"),
        (lambda: ResidualBinaryQuantizer(4, 2, 0), ConfigError, "bits=0"),
        (lambda: ResidualBinaryQuantizer(4, 2, 4, temperature=0.0), ConfigError, "temperature"),
        (lambda: ResidualBinaryQuantizer(4, 2, 4, diversity=-1.0), ConfigError, "diversity"),
        (lambda: ResidualBinaryQuantizer(4, 2, 40).codebooks, ConfigError, "too many"),
        (lambda: ResidualBinaryQuantizer(4, 2, 4)(torch.randn(3, 5)), ShapeError, "dim=4"),
        (
            lambda: ResidualBinaryQuantizer(4, 2, 4).encode(torch.randn(3, 4), depth=3),
            ConfigError,
            "depth=3",
        ),
    ],
)
def test_refusals(call, error, match):
    with pytest.raises(error, match=match):
        call()


def test_exported():
    assert {"ResidualBinaryQuantizer", "ResidualScalarQuantizer"} <= set(dir(rqtoolkit))
