"""The chunked cross-entropy against torch's own, values and gradients, and what it allocates."""

import pytest
import torch
from largest_tensor import LargestTensor
from torch import nn
from torch.nn import functional as F

from rqtoolkit.functional.cross_entropy import linear_cross_entropy
from rqtoolkit.functional.soft_targets import SoftTargets


def inputs(rows=13, dim=5, entries=7, dtype=torch.float64):
    x = torch.randn(rows, dim, dtype=dtype, requires_grad=True)
    weight = torch.randn(entries, dim, dtype=dtype, requires_grad=True)
    bias = torch.randn(entries, dtype=dtype, requires_grad=True)
    return x, weight, bias


def soft_targets(rows, entries):
    residuals = torch.randn(rows, 2, 4, dtype=torch.float64)
    tables = (torch.randn(entries, 4, dtype=torch.float64),) * 2
    return SoftTargets(residuals, tables, 1.5)


def gradients(loss, tensors):
    return torch.autograd.grad(3.0 * loss, tensors)


@pytest.mark.parametrize("max_bytes", [1, 4 * 7 * 8, 10**9])
@pytest.mark.parametrize("kind", ["codes", "probabilities", "unnormalised", "function"])
def test_equals_the_plain_way(kind, max_bytes):
    tensors = inputs()
    if kind == "codes":
        given = dense = torch.randint(7, (13,))
    elif kind == "function":
        soft = soft_targets(13, 7)
        given, dense = soft.level(1), soft.probabilities()[:, 1]
    else:
        given = dense = torch.rand(13, 7, dtype=torch.float64).softmax(-1)
        if kind == "unnormalised":
            given = dense = given * torch.rand(13, 1, dtype=torch.float64)
    found = linear_cross_entropy(*tensors, given, max_bytes=max_bytes)
    expected = F.cross_entropy(F.linear(*tensors), dense)
    torch.testing.assert_close(found, expected)
    for one, other in zip(gradients(found, tensors), gradients(expected, tensors), strict=True):
        torch.testing.assert_close(one, other)


def test_gradients_are_those_of_finite_differences():
    tensors, targets = inputs(4, 3, 5), torch.rand(4, 5, dtype=torch.float64).softmax(-1)
    assert torch.autograd.gradcheck(
        lambda *args: linear_cross_entropy(*args, targets, max_bytes=80), tensors
    )


def test_gradients_go_only_where_they_are_asked_for():
    x, weight, bias = inputs()
    weight.requires_grad_(False)
    targets = torch.randint(7, (13,))
    linear_cross_entropy(x, weight, bias, targets).backward()
    assert weight.grad is None
    assert x.grad is not None
    with torch.no_grad():
        assert not linear_cross_entropy(x, weight, bias, targets).requires_grad


def test_no_rows_cost_nothing():
    x, weight, bias = inputs(rows=0)
    loss = linear_cross_entropy(x, weight, bias, torch.empty(0, dtype=torch.int64))
    loss.backward()
    assert loss == 0
    assert weight.grad.abs().sum() == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_reduced_precision_sums_in_float32(dtype):
    tensors = inputs(200, 16, 50, dtype=torch.float32)
    targets = torch.randint(50, (200,))
    exact = F.cross_entropy(F.linear(*tensors), targets)
    wanted = gradients(exact, tensors)
    with torch.autocast("cpu", dtype):
        under_autocast = linear_cross_entropy(*tensors, targets, max_bytes=4096)
    low = [tensor.detach().to(dtype).requires_grad_() for tensor in tensors]
    cast = linear_cross_entropy(*low, targets, max_bytes=4096)
    for loss, leaves, kept in ((under_autocast, tensors, torch.float32), (cast, low, dtype)):
        assert loss.dtype == torch.float32
        assert abs(loss - exact) < 0.01 * exact
        for found, expected in zip(gradients(loss, leaves), wanted, strict=True):
            assert found.dtype == kept
            assert (found.float() - expected).norm() < 0.02 * expected.norm()


def test_no_tensor_is_larger_than_a_chunk():
    rows, entries, budget = 4096, 512, 2**18
    tensors = inputs(rows, 8, entries, dtype=torch.float32)
    residuals = torch.randn(rows, 1, 4)
    soft = SoftTargets(residuals, (torch.randn(entries, 4),), 1.0)
    with LargestTensor() as largest:
        linear_cross_entropy(*tensors, soft.level(0), max_bytes=budget).backward()
    assert largest.bytes <= budget  # all logits would be 32 times as much
    with LargestTensor() as largest:
        F.cross_entropy(F.linear(*tensors), torch.randint(entries, (rows,)))
    assert largest.bytes == 4 * rows * entries


def test_layers_before_get_their_gradients():
    layer, x = nn.Linear(3, 5).double(), torch.randn(6, 3, dtype=torch.float64)
    _, weight, bias = inputs(entries=7)
    targets = torch.randint(7, (6,))
    linear_cross_entropy(layer(x), weight, bias, targets, max_bytes=1).backward()
    found = layer.weight.grad.clone()
    layer.zero_grad()
    F.cross_entropy(F.linear(layer(x), weight, bias), targets).backward()
    torch.testing.assert_close(found, layer.weight.grad)


@pytest.mark.parametrize("soft", [False, True])
def test_autocast_rounds_the_logits_and_not_the_loss(soft):
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (
        torch.randn(*shape, generator=generator) for shape in ((50, 8), (6, 8), (6,))
    )
    targets = torch.randint(6, (50,), generator=generator)
    if soft:
        targets = torch.randn(50, 6, generator=generator).softmax(-1)
    logits = F.linear(x.bfloat16(), weight.bfloat16(), bias.bfloat16()).float()
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_cross_entropy(x, weight, bias, targets)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, F.cross_entropy(logits, targets), rtol=1e-6, atol=0)
