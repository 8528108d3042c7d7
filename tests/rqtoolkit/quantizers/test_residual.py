import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from rqtoolkit import ResidualQuantizer
from rqtoolkit.errors import ArtifactError, ConfigError
from rqtoolkit.io.artifact import read_artifact, write_artifact


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def by_hand(**options):
    """One dimension, two levels: {0, 10} and {-1, 0, 2}."""
    quantizer = ResidualQuantizer(1, 2, [2, 3], **options)
    tables = torch.tensor([[[0.0], [10.0], [0.0]], [[-1.0], [0.0], [2.0]]])
    quantizer.state.set_tables(tables, vectors=4)
    return quantizer


def fitted(depth=3, size=8, dim=4, rows=200, **options):
    x = torch.randn(rows, dim, generator=generator(1))
    return ResidualQuantizer(dim, depth, size, **options).fit(x, seed=0), x


def test_encode_and_decode_by_hand():
    quantizer = by_hand()
    x = torch.tensor([[1.9], [9.2], [10.1]])
    codes = quantizer.encode(x)
    assert codes.tolist() == [[0, 2], [1, 0], [1, 1]]
    assert quantizer.decode(codes).flatten().tolist() == [2, 9, 10]
    assert quantizer.decode(codes[:, :1]).flatten().tolist() == [0, 10, 10]
    assert quantizer.partial_sums(codes).squeeze(-1).tolist() == [[0, 2], [10, 9], [10, 10]]
    assert quantizer.encode(x, depth=1).tolist() == [[0], [1], [1]]


def test_losses_by_hand():
    quantizer = by_hand(update="gradient", restart_threshold=0).eval()
    out = quantizer(torch.tensor([[1.5], [9.0]]))
    # 1.5: partial sums 0, 2 leave 1.5, -.5; 9: partial sums 10, 9 leave -1, 0
    expected = (1.5**2 + 0.5**2 + 1**2 + 0) / 4
    assert out.commitment_loss.item() == pytest.approx(expected)
    # The residuals quantized are 1.5 and 1.5, 9 and -1: the same differences to the codewords
    assert out.codebook_loss.item() == pytest.approx(expected)
    assert out.stats.usage == [1.0, 2 / 3]
    assert out.stats.perplexity == pytest.approx([2.0, 2.0])


def test_gradients():
    quantizer, x = fitted(update="gradient")
    quantizer.eval()
    x = x[:20].clone().requires_grad_()
    out = quantizer(x)
    (gradient,) = torch.autograd.grad(out.quantized.sum(), x, retain_graph=True)
    assert torch.equal(gradient, torch.ones_like(x))  # straight-through

    # Commitment: derivative of the mean over levels and elements of (x - partial sum)²
    sums = quantizer.partial_sums(out.codes)
    (gradient,) = torch.autograd.grad(out.commitment_loss, x, retain_graph=True)
    torch.testing.assert_close(gradient, 2 * (x[:, None] - sums).mean(1) / x.numel())

    # A step against the codebook loss brings the codewords closer, and moves nothing else
    assert torch.autograd.grad(out.codebook_loss, x, retain_graph=True, allow_unused=True) == (
        None,
    )
    out.codebook_loss.backward()
    before = out.codebook_loss.item()
    with torch.no_grad():
        quantizer.state.tables -= 0.5 * quantizer.state.tables.grad
    assert quantizer(x).codebook_loss.item() < before


def test_ema_step_by_hand():
    quantizer = by_hand(decay=0.5, restart_threshold=0).train()
    quantizer(torch.tensor([[1.0], [3.0], [9.0], [11.0]]))
    # Level 1: counts start at 4/2 = 2. Two vectors (1, 3) choose entry 0, two (9, 11) entry 1.
    # Entry 0: sum .5·2·0 + .5·(1+3) = 2, count .5·2 + .5·2 = 2 -> 1; entry 1: 10 + 10 = 20 / 2 = 10
    assert quantizer.codebooks[0, :2].flatten().tolist() == [1.0, 10.0]
    assert quantizer.state.counts[0, :2].tolist() == [2.0, 2.0]
    # Level 2: residuals 1, 3, -1, 1 (before the update), 1 is nearest to 0 and 2 alike: the first.
    # Counts start at 4/3. Entry 0 (-1): one vector; entry 1 (0): two ones; entry 2 (2): one three.
    a = 4 / 3
    expected = [(a * -1 - 1) / (a + 1), (0 + 2) / (a + 2), (a * 2 + 3) / (a + 1)]
    assert quantizer.codebooks[1].flatten().tolist() == pytest.approx(expected)
    assert quantizer.state.counts[1].tolist() == pytest.approx(
        [(a + 1) / 2, (a + 2) / 2, (a + 1) / 2]
    )


def test_ema_converges_to_the_mean_of_each_cell():
    quantizer, x = fitted(depth=1, size=5, decay=0.9, restart_threshold=0)
    quantizer.train()
    for _ in range(300):
        codes = quantizer(x).codes
    means = torch.stack([x[codes[:, 0] == k].mean(0) for k in range(5)])
    torch.testing.assert_close(quantizer.codebooks[0], means, rtol=1e-4, atol=1e-5)


def test_a_dead_entry_is_revived_with_its_state():
    quantizer, x = fitted(depth=1, size=8, decay=0.9)
    with torch.no_grad():
        quantizer.state.tables[0, 3] = 1e4  # nothing will ever choose it
    quantizer.train()
    revived_at = next(
        step for step in range(100) if quantizer(x) and quantizer.codebooks[0, 3].abs().max() < 100
    )
    assert revived_at > 3  # the count has to fall first: one empty batch is no death
    # The mean count is 200 / 8, a quarter of which exceeds the cap: the threshold is 1
    assert quantizer.state.counts[0, 3].item() == pytest.approx(3.0)
    row = quantizer.codebooks[0, 3].clone()
    assert (x == row).all(1).any()  # a vector of the batch
    quantizer(x)
    assert (quantizer.codebooks[0, 3] - row).norm() < 2  # not dragged back by stale sums


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("ratio", [4, 0.25])
def test_usage_and_error_do_not_depend_on_the_batch(shared, ratio):
    torch.manual_seed(0)
    quantizer = ResidualQuantizer(8, 2, 64, shared_codebook=shared)
    for _ in range(200):
        quantizer(torch.randn(int(64 * ratio), 8))
    quantizer.eval()
    x = torch.randn(4000, 8, generator=generator(9))
    error = (x - quantizer.decode(quantizer.encode(x))).square().sum() / x.square().sum()
    assert error < (0.33 if shared else 0.27)  # a batch of 256 gave .30 and .24
    assert quantizer(x).stats.usage[-1] > (0.5 if shared else 0.95)


def test_few_vectors_stand_in_until_k_means_can_start():
    torch.manual_seed(0)
    quantizer = ResidualQuantizer(4, 2, 16)
    for step in range(3):
        x = torch.randn(9, 4)
        out = quantizer(x)
        assert all(t.isfinite().all() for t in (out.quantized, out.commitment_loss))
        assert quantizer.state.is_initialized == (step == 3)
    out = quantizer(torch.randn(9, 4))  # 36 vectors, above 2 · 16
    assert quantizer.state.is_initialized
    assert quantizer.state.gathered.numel() == 0
    assert quantizer.state.counts.sum(1).tolist() == pytest.approx([9.0, 9.0], rel=0.3)


def test_the_first_update_restarts_nothing():
    torch.manual_seed(0)
    quantizer = ResidualQuantizer(4, 2, 16, decay=0.99)
    x = torch.randn(64, 4)
    quantizer(x)
    before = quantizer.codebooks.clone()
    quantizer(x)
    assert (quantizer.codebooks - before).norm(dim=-1).max() < 0.1


def test_nothing_moves_in_eval_encode_or_frozen():
    quantizer, x = fitted()
    state = copy.deepcopy(quantizer.state_dict())
    quantizer.train().encode(x)
    quantizer.soft_codes(x, 0.5, stochastic=True)
    quantizer.eval()(x)
    quantizer.train().freeze()(x)
    for name, tensor in quantizer.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    quantizer, x = fitted(update="gradient")
    assert not any(p.requires_grad for p in quantizer.freeze().parameters())


@pytest.mark.parametrize("shared", [True, False])
def test_state_dict_and_deepcopy_continue_to_the_bit(shared):
    def batches():
        return (torch.randn(12, 4, generator=generator(s)) for s in range(20))

    def run(quantizer, steps):
        for number, x in enumerate(batches()):
            if number in steps:
                quantizer(x, generator=generator(number))

    whole = ResidualQuantizer(4, 2, 16, shared_codebook=shared)
    other = ResidualQuantizer(4, 2, 16, shared_codebook=shared)
    run(whole, range(2))  # still gathering
    other.load_state_dict(whole.state_dict())
    twin = copy.deepcopy(whole)
    for quantizer in (whole, other, twin):
        run(quantizer, range(2, 20))
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name
        assert torch.equal(tensor, twin.state_dict()[name]), name


@pytest.mark.parametrize(("rows", "pace"), [(64, 0.05), (8, 0.025), (1, 0.01)])
def test_the_averages_are_as_long_as_the_batches_are_small(rows, pace):
    quantizer, x = fitted(depth=1, size=16, restart_threshold=0)
    given = copy.deepcopy(quantizer)
    given.state.decay = 1 - pace
    x = x.repeat(64 // len(x) + 1, 1)[:rows]
    for one in (quantizer, given):
        one.train()(x)
    torch.testing.assert_close(quantizer.codebooks, given.codebooks)
    torch.testing.assert_close(quantizer.state.counts, given.state.counts)


def test_not_a_number_teaches_nothing():
    quantizer, x = fitted(decay=0.99)
    quantizer.train()
    quantizer.state.counts[0, 0] = 0  # and a dead entry takes no such vector
    spoiled = x.clone()
    spoiled[3, 1], spoiled[7, 0] = torch.nan, torch.inf
    clean = copy.deepcopy(quantizer)
    quantizer(spoiled, generator=generator(4))
    assert quantizer.codebooks.isfinite().all()
    keep = torch.ones(len(x), dtype=torch.bool)
    keep[[3, 7]] = False
    clean(x[keep], generator=generator(4))
    torch.testing.assert_close(quantizer.codebooks, clean.codebooks)
    assert (x[keep] == quantizer.codebooks[0, 0]).all(1).any()


def test_a_batch_without_vectors_changes_nothing():
    quantizer, x = fitted()
    quantizer.train()
    quantizer.state.counts[0, 0] = 0
    state = copy.deepcopy(quantizer.state_dict())
    quantizer(torch.empty(0, 4))
    quantizer(torch.full((5, 4), torch.nan))
    for name, tensor in quantizer.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    quantizer(x)
    assert quantizer.codebooks[0, 0].isfinite().all()


def test_a_single_vector_needs_no_batch():
    quantizer, x = fitted()
    quantizer.eval()
    codes = quantizer.encode(x)
    assert torch.equal(quantizer.encode(x[3]), codes[3])
    assert torch.equal(quantizer.decode(codes[3]), quantizer.decode(codes)[3])
    assert torch.equal(quantizer.partial_sums(codes[3]), quantizer.partial_sums(codes)[3])
    assert quantizer(x[3]).quantized.shape == (4,)
    assert quantizer.soft_codes(x[3], 1.0).probabilities.shape == (3, 8)


def test_quantized_is_the_decoded_codes_where_no_gradient_flows():
    quantizer, x = fitted()
    out = quantizer.eval()(x * 1e5)
    assert torch.equal(out.quantized, quantizer.decode(out.codes))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_parents_and_autocast_keep_float32_tables(dtype):
    quantizer, x = fitted(dim=16, size=32)
    codes, greedy = quantizer.eval().encode(x), quantizer(x).codes
    parent = nn.Sequential(quantizer).to(dtype)
    assert quantizer.codebooks.dtype == quantizer.state.counts.dtype == torch.float32
    assert parent(x.to(dtype)).quantized.dtype == dtype
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(quantizer.encode(x), codes)
        assert torch.equal(quantizer(x).codes, greedy)
    assert torch.equal(nn.Sequential(quantizer).double()[0].codebooks, quantizer.codebooks)


def test_soft_codes_are_the_paper_s_distribution():
    quantizer, x = fitted(size=[8, 5, 3])
    soft = quantizer.soft_codes(x, 0.7)
    assert torch.equal(soft.codes, quantizer.encode(x, beam=1))
    tables = quantizer.state.levels(3)
    distances = torch.cdist(x - tables[0][soft.codes[:, 0]], tables[1]).square()
    torch.testing.assert_close(soft.probabilities[:, 1, :5], (-distances / 0.7).softmax(1))
    assert soft.probabilities[:, 2, 3:].count_nonzero() == 0
    torch.testing.assert_close(soft.probabilities.sum(-1), torch.ones(len(x), 3))
    norm = torch.cat(tables).square().sum(1).mean()
    relative = quantizer.soft_codes(x, 0.7 / norm.item(), relative=True)
    torch.testing.assert_close(relative.probabilities, soft.probabilities, rtol=1e-4, atol=1e-6)
    cold = quantizer.soft_codes(x, 1e-9).probabilities
    assert torch.equal(cold.argmax(-1), soft.codes)


def test_stochastic_codes_follow_their_distribution():
    quantizer, x = fitted(depth=2, size=6)
    many = x[:1].expand(20000, -1)
    soft = quantizer.soft_codes(many, 2.0, stochastic=True, generator=generator(3))
    observed = torch.bincount(soft.codes[:, 0], minlength=6)
    expected = soft.probabilities[0, 0] * len(many)
    assert ((observed - expected).square() / expected).sum() < 20.5  # chi-square, 5 dof, p = .001
    # The second level quantizes what the drawn code left
    tables = quantizer.state.levels(2)
    residual = many - tables[0][soft.codes[:, 0]]
    expected = (-torch.cdist(residual, tables[1]).square() / 2.0).softmax(1)
    torch.testing.assert_close(soft.probabilities[:, 1], expected, rtol=1e-4, atol=1e-6)


def test_channels_first_is_the_same_on_moved_axes():
    quantizer, _ = fitted(dim=6)
    maps = torch.randn(2, 6, 3, 5)
    first = ResidualQuantizer(6, 3, 8, channels_first=True)
    first.load_state_dict(quantizer.state_dict())
    codes = first.encode(maps)
    assert torch.equal(codes, quantizer.encode(maps.movedim(1, -1)))
    assert torch.equal(first.decode(codes), quantizer.decode(codes).movedim(-1, 1))
    assert first.eval()(maps).quantized.shape == maps.shape


def test_a_wider_beam_is_no_worse_and_is_remembered(tmp_path):
    x = torch.randn(500, 8, generator=generator(2))
    quantizer = ResidualQuantizer(8, 4, 8).fit(x, beam=6)
    assert quantizer.beam == 6
    assert torch.equal(quantizer.encode(x), quantizer.encode(x, beam=6))
    errors = [
        (x - quantizer.decode(quantizer.encode(x, beam=b))).square().sum().item() for b in (1, 6)
    ]
    assert errors[1] < errors[0]
    quantizer.save(tmp_path / "rq.safetensors")
    assert ResidualQuantizer.load(tmp_path / "rq.safetensors").beam == 6


@pytest.mark.parametrize(
    "options", [{}, {"shared_codebook": True}, {"update": "gradient"}, {"channels_first": True}]
)
def test_save_and_load(tmp_path, options):
    quantizer, _ = fitted(size=8 if "shared_codebook" in options else [8, 5, 6], **options)
    path = tmp_path / "rq.safetensors"
    quantizer.save(path)
    loaded = ResidualQuantizer.load(path)
    assert str(loaded) == str(quantizer)
    assert loaded.state.is_initialized
    for name, tensor in quantizer.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_damaged_artifacts_are_refused(tmp_path):
    quantizer, _ = fitted()
    path = tmp_path / "rq.safetensors"
    quantizer.save(path)
    arguments, tensors = read_artifact(path, class_name="ResidualQuantizer")
    changes = ({"colour": 1}, {"dim": 5}, {"depth": 0}, {"depth": 10**9}, {"dim": 10**9})
    for change in changes:
        broken = {**arguments, **change}
        write_artifact(path, class_name="ResidualQuantizer", arguments=broken, tensors=tensors)
        with pytest.raises(ArtifactError, match=r"rq\.safetensors"):
            ResidualQuantizer.load(path)
    next(iter(tensors.values())).view(-1)[0] = torch.nan
    write_artifact(path, class_name="ResidualQuantizer", arguments=arguments, tensors=tensors)
    with pytest.raises(ArtifactError, match="NaN or infinity"):
        ResidualQuantizer.load(path)


def test_trains_inside_an_autoencoder():
    torch.manual_seed(0)
    basis = torch.randn(6, 32)
    encoder, decoder = nn.Linear(32, 6), nn.Linear(6, 32)
    quantizer = ResidualQuantizer(6, 3, 16)
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], 1e-2)
    errors = []
    for _ in range(300):
        x = torch.randn(128, 6) @ basis
        out = quantizer(encoder(x))
        error = F.mse_loss(decoder(out.quantized), x)
        optimizer.zero_grad()
        (error + 0.25 * out.commitment_loss).backward()
        optimizer.step()
        errors.append(error.item() / x.var().item())
    assert np.mean(errors[-20:]) < 0.25
    assert min(out.stats.usage) > 0.9


def test_a_frozen_quantizer_is_not_fitted_and_a_loaded_one_is_in_eval_mode(tmp_path):
    quantizer, x = fitted()
    quantizer.save(tmp_path / "rq.safetensors")
    loaded = ResidualQuantizer.load(tmp_path / "rq.safetensors", "cpu")
    loaded(x * 3)
    assert torch.equal(loaded.codebooks, quantizer.codebooks)
    with pytest.raises(ConfigError, match="frozen"):
        quantizer.freeze().fit(x)


def test_an_empty_batch_is_no_trouble():
    quantizer, _ = fitted()
    out = quantizer.eval()(torch.empty(0, 7, 4))
    assert out.quantized.shape == (0, 7, 4)
    assert out.codes.shape == (0, 7, 3)
    assert out.commitment_loss.item() == 0


def test_gradient_updates_train_and_restart():
    torch.manual_seed(0)
    x = torch.randn(400, 4)
    quantizer = ResidualQuantizer(4, 2, 16, update="gradient", kmeans_init=False)
    optimizer = torch.optim.Adam(quantizer.parameters(), 2e-2)
    losses = []
    for _ in range(150):
        out = quantizer(x)
        optimizer.zero_grad()
        out.codebook_loss.backward()
        optimizer.step()
        losses.append(out.codebook_loss.item())
    assert losses[-1] < 0.6 * losses[0]
    assert min(out.stats.usage) == 1.0
