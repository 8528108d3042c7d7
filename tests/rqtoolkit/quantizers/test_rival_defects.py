"""Defects found in other libraries' residual quantizers, each shown to be absent here.

What is named in brackets is where it was found. Those of distributed training, of memory and of
export have tests of their own.
"""

import copy

import pytest
import reference
import torch
from torch import nn

from rqtoolkit import GroupedResidualQuantizer, ResidualQuantizer

UPDATES = pytest.mark.parametrize("update", ["ema", "gradient", "paper"])


def clustered(rows=400, dim=8, clusters=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centers = 4 * torch.randn(clusters, dim, generator=generator)
    chosen = torch.randint(clusters, (rows,), generator=generator)
    return centers[chosen] + torch.randn(rows, dim, generator=generator)


def error(quantizer, x):
    return (x - quantizer.decode(quantizer.encode(x, beam=1))).square().sum(1).mean().item()


def started(x, depth=2, size=16, **options):
    quantizer = ResidualQuantizer(x.shape[1], depth, size, **options)
    quantizer(x)
    assert quantizer.state.is_initialized
    return quantizer


@pytest.mark.parametrize("update", ["ema", "paper"])
@pytest.mark.parametrize("shared", [True, False])
def test_the_k_means_start_survives_the_first_steps(update, shared):
    """Moving sums that start as centroids, not centroid times count [encodec, audiocraft].

    There the norms of codewords fell from 2.43 to 0.06 in one step.
    """
    x = clustered()
    quantizer = ResidualQuantizer(8, 2, 16, update=update, shared_codebook=shared)
    quantizer.state.start(x, 2, None)
    norms, before = quantizer.codebooks.norm(dim=2).mean(), error(quantizer, x)
    for _ in range(5):
        quantizer(x)
        assert quantizer.codebooks.norm(dim=2).mean() > 0.8 * norms
        assert error(quantizer, x) < 1.1 * before


@pytest.mark.parametrize("shared", [True, False])
def test_a_revived_entry_keeps_its_new_place(shared):
    """The replaced row overwritten from its stale moving sum [encodec, audiocraft, espnet]."""
    x = clustered()
    quantizer = started(x, shared_codebook=shared, decay=0.99)
    quantizer.state.tables[0, 3] = 400.0
    quantizer.state.counts[0, 3] = 0
    quantizer(x)
    place = quantizer.state.tables[0, 3].clone()
    assert place.norm() < 40  # a vector of the data, whose norm is about 12
    for _ in range(20):
        quantizer(x)
    assert (quantizer.state.tables[0, 3] - place).norm() < 10
    assert quantizer.state.counts[0, 3] > 1


def test_two_entries_are_revived_on_two_vectors():
    """One replacement for all dead entries, which then stay equal for ever."""
    x = clustered()
    quantizer = started(x, depth=1)
    quantizer.state.tables[0, [3, 5]] = 400.0
    quantizer.state.counts[0, [3, 5]] = 0
    quantizer(x, generator=torch.Generator().manual_seed(2))
    first, second = quantizer.codebooks[0, [3, 5]]
    assert (first - second).norm() > 0.1
    for row in (first, second):
        assert (x == row).all(1).any()


def test_restarts_with_fewer_vectors_than_entries():
    """An assertion of multinomial where a batch has too few vectors [vector-quantize-pytorch]."""
    quantizer = started(clustered(), size=64)
    for rows in (1, 2, 5):
        quantizer.state.counts.zero_()
        assert min(quantizer(clustered(rows)).stats.dead) >= 64 - rows
        assert quantizer.codebooks.isfinite().all()


def test_a_threshold_means_the_same_for_every_batch():
    """Restart thresholds that are absolute counts [vector-quantize-pytorch, encodec].

    With a sixteenth of a vector for each entry and step, most of a codebook is under them.
    """
    x, shares = torch.randn(2000, 8), {}
    for update in ("ema", "paper"):
        torch.manual_seed(0)
        quantizer = ResidualQuantizer(8, 1, 64, update=update)
        quantizer.set_codebooks(x[None, :64])
        for step in range(200):
            quantizer(x[4 * step : 4 * step + 4])
        shares[update] = quantizer.eval()(x).stats.usage[0], error(quantizer, x)
    assert shares["ema"][0] > 0.95
    assert shares["ema"][1] < 0.8 * shares["paper"][1]  # which keeps the rule of its code


@pytest.mark.parametrize("training", [True, False])
def test_a_beam_is_ranked_by_the_error_at_its_end(training):
    """Beams ranked by the sum of every level's error [vector-quantize-pytorch]."""
    quantizer = started(clustered(), depth=3, size=6, forward_beam=6).train(training)
    x = clustered(60, seed=1)
    tables = [table.clone() for table in quantizer.state.levels(3)]
    expected = reference.beam(x, tables, 6)
    assert torch.equal(quantizer.encode(x, beam=6), expected)
    assert torch.equal(quantizer(x).codes, expected)
    summed = min_sum_of_errors(x, tables, 6)
    assert residual(x, tables, expected) < residual(x, tables, summed)


def min_sum_of_errors(x, tables, beam):
    """The rule of the rival: prefixes of the least sum of the errors after each level."""
    codes = []
    for row in x:
        kept = [((), row, 0.0)]
        for table in tables:
            grown = [
                ((*stack, k), left - table[k], total + (left - table[k]).square().sum().item())
                for stack, left, total in kept
                for k in range(len(table))
            ]
            kept = sorted(grown, key=lambda entry: entry[2])[:beam]
        codes.append(kept[0][0])
    return torch.tensor(codes)


def residual(x, tables, codes):
    chosen = [table[codes[:, level]] for level, table in enumerate(tables)]
    return (x - sum(chosen)).square().sum()


def test_a_beam_needs_no_commitment_loss():
    """An exception in training where the commitment weighs nothing [vector-quantize-pytorch]."""
    quantizer = started(clustered(), forward_beam=4)
    x = clustered().requires_grad_()
    quantizer(x).quantized.sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))


@UPDATES
@pytest.mark.parametrize("grouped", [True, False])
def test_freezing_reaches_all_levels(update, grouped):
    """`freeze_codebook` that the layers inside never hear of [vector-quantize-pytorch]."""
    if grouped:
        quantizer = GroupedResidualQuantizer(8, 2, 8, groups=2, update=update)
    else:
        quantizer = ResidualQuantizer(8, 2, 8, update=update)
    quantizer(clustered())
    state = copy.deepcopy(quantizer.freeze().state_dict())
    parent = nn.Sequential(quantizer).train()
    for _ in range(3):
        out = parent(clustered().requires_grad_())
    for name, tensor in quantizer.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    assert out.quantized.requires_grad  # the network around it still learns
    assert not out.codebook_loss.requires_grad


@UPDATES
def test_nothing_learns_in_eval_mode_or_in_encode(update):
    """Codebooks updated in eval mode [vector-quantize-pytorch], or by encode [the paper's]."""
    quantizer = started(clustered(), update=update)
    state = copy.deepcopy(quantizer.state_dict())
    quantizer.train().encode(clustered())
    quantizer.eval()(clustered())
    for name, tensor in quantizer.state_dict().items():
        assert torch.equal(tensor, state[name]), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("options", [{}, {"similarity": "cosine"}, {"codebook_dim": 4}])
def test_autocast_changes_no_code_and_no_table(dtype, options):
    """4.3% of vectors with other codes under bfloat16 on a CPU [vector-quantize-pytorch]."""
    quantizer = started(clustered(), depth=4, size=32, **options)
    twin = copy.deepcopy(quantizer)
    x = clustered(2000, seed=1)
    with torch.autocast("cpu", dtype):
        out = quantizer(x, generator=torch.Generator().manual_seed(0))
    expected = twin(x, generator=torch.Generator().manual_seed(0))
    assert torch.equal(out.codes, expected.codes)
    assert torch.equal(out.commitment_loss, expected.commitment_loss)
    for name, tensor in twin.state_dict().items():
        assert torch.equal(quantizer.state_dict()[name], tensor), name


@UPDATES
@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf, 1e30])
def test_one_element_does_not_poison_the_codebooks(update, poison):
    """One NaN turned every codeword of every level NaN, for ever [vector-quantize-pytorch]."""
    x = clustered()
    for start in (False, True):
        quantizer = ResidualQuantizer(8, 2, 16, update=update)
        if start:
            quantizer(x)
        spoiled = x.clone()
        spoiled[5, 3] = poison
        quantizer(spoiled)
        for name, tensor in quantizer.state_dict().items():
            assert tensor.isfinite().all(), name
        assert quantizer.codebooks.abs().max() < 100
        assert error(quantizer, x) < 0.3 * x.var(0).sum()


@UPDATES
def test_every_prefix_decodes_without_depth_dropout(update):
    """An assertion unless trained with dropout [vector-quantize-pytorch]."""
    quantizer, x = started(clustered(), depth=3, update=update).eval(), clustered(50)
    codes = quantizer(x).codes
    for depth in (1, 2, 3):
        decoded = quantizer.decode(codes[:, :depth])
        torch.testing.assert_close(decoded, quantizer.partial_sums(codes)[:, depth - 1])
        assert torch.equal(quantizer(x, depth=depth).codes, codes[:, :depth])


def test_every_level_pulls_the_vectors():
    """No gradient of the commitment beyond the first level [encodec]."""
    quantizer, x = started(clustered(), depth=3).eval(), clustered(50).requires_grad_()
    gradients = []
    for depth in (1, 2, 3):
        loss = quantizer(x, depth=depth).commitment_loss * depth
        gradients.append(torch.autograd.grad(loss, x)[0])
    sums = quantizer.partial_sums(quantizer.encode(x))
    for level in (1, 2):
        own = gradients[level] - gradients[level - 1]
        torch.testing.assert_close(own, 2 * (x - sums[:, level]).detach() / x.numel())
        assert own.norm() > 0


@pytest.mark.parametrize("training", [True, False])
def test_a_number_of_levels_is_heeded_in_training_too(training):
    """`n_quantizers` ignored in training mode [descript-audio-codec]."""
    quantizer, x = started(clustered(), depth=4).train(training), clustered(50)
    tables = copy.deepcopy(quantizer)
    out = quantizer(x, depth=2)
    torch.testing.assert_close(out.quantized, tables.decode(out.codes))
    assert out.codes.shape == (50, 2)


def test_the_last_level_is_among_the_depths_drawn():
    """Depth dropout off by one, which never trains the last level [soundstream-pytorch]."""
    quantizer = ResidualQuantizer(8, 3, 16, depth_dropout=1.0, update="gradient")
    out = quantizer(clustered())
    assert set(out.depths.tolist()) == {1, 2, 3}
    (gradient,) = torch.autograd.grad(out.codebook_loss, quantizer.state.tables)
    assert gradient[2].norm() > 0


def test_k_means_starts_every_level():
    """K-means that starts the first level alone, or all with the same chance."""
    x = clustered()
    quantizer = started(x, depth=3)
    stats = copy.deepcopy(quantizer).eval()(x).stats
    assert min(stats.usage) > 0.9
    assert stats.distortion == sorted(stats.distortion, reverse=True)
    assert stats.distortion[2] < 0.5 * stats.distortion[0]


@pytest.mark.parametrize("update", ["ema", "gradient"])
def test_cosine_goes_with_every_update(update):
    """Refused with learnable codebooks [vector-quantize-pytorch]."""
    x = clustered()
    quantizer = ResidualQuantizer(8, 3, 16, similarity="cosine", update=update)
    quantizer(x)
    optimizer = torch.optim.Adam(quantizer.parameters(), 1e-2) if update == "gradient" else None
    distortions = []
    for _ in range(25):
        out = quantizer(x)
        if optimizer is not None:
            optimizer.zero_grad()
            out.codebook_loss.backward()
            optimizer.step()
        distortions.append(out.stats.distortion[-1])
    assert distortions[-1] <= distortions[0]
    assert min(out.stats.usage) > 0.9


def test_codes_of_maps_keep_their_places():
    """Codes that come back transposed [vector-quantize-pytorch]."""
    quantizer = ResidualQuantizer(8, 2, 16, channels_first=True)
    maps = torch.randn(2, 8, 3, 40)
    quantizer(maps)
    out = quantizer.eval()(maps)
    assert out.codes.shape == (2, 3, 40, 2)
    torch.testing.assert_close(quantizer.decode(out.codes), out.quantized)
    one = quantizer.encode(maps[1:, :, 2, 5])
    assert torch.equal(one[0], out.codes[1, 2, 5])
