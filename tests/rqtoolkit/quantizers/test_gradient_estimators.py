"""Losses and gradients of training, against autograd of the formulae written down naively."""

import itertools

import pytest
import torch
from torch.nn import functional as F

from rqtoolkit import ResidualQuantizer
from rqtoolkit.functional.gradient import rotation_trick, straight_through


def quantizer_of(sizes=(7, 4, 5), dim=6, **options):
    quantizer = ResidualQuantizer(dim, len(sizes), sizes, kmeans_init=False, **options)
    with torch.no_grad():
        quantizer.state.tables.copy_(torch.randn_like(quantizer.state.tables))
    return quantizer


def inputs(rows=11, dim=6):
    return torch.randn(rows, dim, requires_grad=True)


def share_of(depths, mask, rows, depth):
    """Which levels count for which vectors, one by one."""
    share = torch.zeros(rows, depth)
    for row, level in itertools.product(range(rows), range(depth)):
        used = depth if depths is None else int(depths[row])
        share[row, level] = level < used and (mask is None or bool(mask[row]))
    return share


def naive_losses(quantizer, x, codes, share):
    """Commitment and codebook loss of the paper and of van den Oord et al., level by level."""
    commitment, alignment, total = 0, 0, torch.zeros_like(x)
    for level, table in enumerate(quantizer.state.levels(quantizer.depth)):
        codeword = table[codes[:, level]]
        alignment += (share[:, level, None] * ((x - total).detach() - codeword) ** 2).sum()
        total = total + codeword.detach()
        commitment += (share[:, level, None] * (x - total) ** 2).sum()
    terms = share.sum().clamp_min(1) * x.shape[1]
    return commitment / terms, alignment / terms


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("depth", [None, 2, "dropped"])
def test_both_losses_and_their_gradients(shared, masked, depth):
    sizes = (7, 7, 7) if shared else (7, 4, 5)
    quantizer = quantizer_of(sizes, update="gradient", shared_codebook=shared, restart_threshold=0)
    x, mask = inputs(), None
    if masked:
        mask = torch.rand(len(x)) < 0.6
    if depth == "dropped":
        depth = torch.randint(1, 4, (len(x),))
    out = quantizer(x, mask, depth=depth)
    codes = quantizer.eval()(x).codes
    share = share_of(out.depths, mask, len(x), 3)
    commitment, alignment = naive_losses(quantizer, x, codes, share)
    torch.testing.assert_close(out.commitment_loss, commitment)
    torch.testing.assert_close(out.codebook_loss, alignment)
    tables = quantizer.state.tables
    for ours, theirs, source in [
        (out.commitment_loss, commitment, x),
        (out.codebook_loss, alignment, tables),
    ]:
        expected = torch.autograd.grad(theirs, source)
        found = torch.autograd.grad(ours, source, retain_graph=True)
        torch.testing.assert_close(found, expected)
    # Each loss moves its own side alone
    assert torch.autograd.grad(out.commitment_loss, tables, allow_unused=True) == (None,)
    assert torch.autograd.grad(out.codebook_loss, x, allow_unused=True) == (None,)


def test_a_scaled_loss_has_a_scaled_gradient():
    quantizer, x = quantizer_of().eval(), inputs()
    (one,) = torch.autograd.grad(quantizer(x).commitment_loss, x)
    (many,) = torch.autograd.grad((0.25 * quantizer(x).commitment_loss) ** 2, x)
    scale = 2 * 0.25**2 * quantizer(x).commitment_loss
    torch.testing.assert_close(many, scale * one)


@pytest.mark.parametrize("estimator", ["straight_through", "rotation"])
@pytest.mark.parametrize("depth", [None, 2])
def test_quantized_has_the_estimator_s_gradient_and_the_codes_value(estimator, depth):
    quantizer, x = quantizer_of(estimator=estimator).eval(), inputs()
    mask = torch.arange(len(x)) != 3
    weight = torch.randn_like(x)
    out = quantizer(x, mask, depth=depth)
    expected = quantizer.decode(out.codes[mask])
    torch.testing.assert_close(out.quantized[mask], expected)
    assert out.quantized[3].tolist() == [0] * 6
    (gradient,) = torch.autograd.grad((out.quantized * weight).sum(), x)
    rule = {"straight_through": straight_through, "rotation": rotation_trick}[estimator]
    twin = x.detach()[mask].requires_grad_()
    (theirs,) = torch.autograd.grad((rule(twin, expected) * weight[mask]).sum(), twin)
    torch.testing.assert_close(gradient[mask], theirs)
    assert gradient[3].tolist() == [0] * 6
    if estimator == "straight_through":
        assert torch.equal(gradient[mask], weight[mask])


def factorised_by_hand(quantizer, x, codes, share, rule):
    """The factorised pass, with autograd through every step of it."""
    left, quantized, commitment, alignment = x, 0, 0, 0
    for level, table in enumerate(quantizer.state.levels(quantizer.depth)):
        down, up = quantizer.projections.down[level], quantizer.projections.up[level]
        z, used = down(left), share[:, level, None]
        codeword = table[codes[:, level]]
        commitment += (used * (z - codeword.detach()) ** 2).sum()
        alignment += (used * (z.detach() - codeword) ** 2).sum()
        back = up(rule(z, codeword))
        quantized, left = quantized + used * back, left - back.detach()
    terms = share.sum() * table.shape[1]
    return quantized, commitment / terms, alignment / terms


@pytest.mark.parametrize("similarity", ["euclidean", "cosine"])
@pytest.mark.parametrize("estimator", ["straight_through", "rotation"])
@pytest.mark.parametrize("dropped", [True, False])
def test_factorised_gradients_reach_vectors_projections_and_tables(similarity, estimator, dropped):
    quantizer = quantizer_of(
        update="gradient",
        codebook_dim=3,
        similarity=similarity,
        estimator=estimator,
        restart_threshold=0,
    )
    x = inputs()
    mask = torch.rand(len(x)) < 0.7
    depth = torch.randint(1, 4, (len(x),)) if dropped else None
    out = quantizer(x, mask, depth=depth)
    rule = {"straight_through": straight_through, "rotation": rotation_trick}[estimator]
    share = share_of(depth, mask, len(x), 3)
    codes = quantizer.encode(x.detach())
    assert torch.equal(out.codes[mask], codes[mask])
    by_hand = factorised_by_hand(quantizer, x, codes, share, rule)
    ours = (out.quantized, out.commitment_loss, out.codebook_loss)
    sources = [x, quantizer.state.tables, *quantizer.projections.parameters()]
    for found, expected in zip(ours, by_hand, strict=True):
        torch.testing.assert_close(found, expected)
        gradients = [
            torch.autograd.grad(value.square().sum(), sources, retain_graph=True, allow_unused=True)
            for value in (found, expected)
        ]
        for one, other in zip(*gradients, strict=True):
            assert (one is None) == (other is None)
            if one is not None:
                torch.testing.assert_close(one, other)
    # The task moves vectors and projections, the commitment loss those into the codes' space
    task = torch.autograd.grad(out.quantized.sum(), sources, retain_graph=True, allow_unused=True)
    assert [gradient is None for gradient in task] == [False, True] + [False] * 12
    down = torch.autograd.grad(out.commitment_loss, quantizer.projections.down[2].weight)
    assert down[0].abs().max() > 0


def test_descending_each_loss_lowers_it():
    quantizer = quantizer_of(update="gradient", codebook_dim=3, restart_threshold=0)
    x = torch.randn(64, 6)
    for name in ("commitment_loss", "codebook_loss"):
        before = getattr(quantizer(x), name)
        parameters = list(quantizer.parameters())
        gradients = torch.autograd.grad(before, parameters, allow_unused=True)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                if gradient is not None:
                    parameter -= 0.05 * gradient
        assert getattr(quantizer(x), name) < before


def test_a_loss_over_several_forwards_can_be_backpropagated_at_once():
    """Gradient accumulation: later forwards write tables that earlier graphs have looked at."""
    for options in ({}, {"codebook_dim": 3}, {"estimator": "rotation"}):
        for update in ("ema", "gradient"):
            quantizer = quantizer_of(update=update, **options)
            x, losses = inputs(), []
            for _ in range(3):
                out = quantizer(x)
                losses.append(F.mse_loss(out.quantized, x) + out.commitment_loss)
                losses.append(out.codebook_loss)
            sum(losses).backward()
            assert x.grad.isfinite().all()
