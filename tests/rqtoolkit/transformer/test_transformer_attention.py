"""Cached attention against full attention, and the cache's own contract."""

import pytest
import torch

from rqtoolkit.transformer import attention
from rqtoolkit.transformer.attention import CausalSelfAttention, KeyValueCache
from rqtoolkit.transformer.stack import Stack


def test_cache_by_hand():
    cache = KeyValueCache(3)
    ones, twos = torch.ones(1, 1, 2, 4), torch.full((1, 1, 1, 4), 2.0)
    assert cache.append(ones, -ones)[0].shape == (1, 1, 2, 4)
    keys, values = cache.append(twos, -twos)
    assert keys[0, 0, :, 0].tolist() == [1, 1, 2]
    assert values[0, 0, :, 0].tolist() == [-1, -1, -2]
    with pytest.raises(AssertionError, match="more positions"):
        cache.append(twos, twos)


def test_cache_keeps_its_buffers_when_reset():
    cache = KeyValueCache(2)
    first = cache.append(torch.ones(1, 1, 2, 4), torch.ones(1, 1, 2, 4))[0].data_ptr()
    cache.reset()
    keys, _ = cache.append(torch.zeros(1, 1, 1, 4), torch.zeros(1, 1, 1, 4))
    assert keys.shape == (1, 1, 1, 4)
    assert keys.data_ptr() == first


@pytest.mark.parametrize("filled", [1, 4, 6])
def test_steps_equal_one_pass(filled):
    stack = Stack(16, 2, 4).double()
    x = torch.randn(3, 7, 16, dtype=torch.float64)
    with torch.no_grad():
        full = stack(x)
        caches = stack.make_caches(7)
        parts = [stack(x[:, :filled], caches)]
        parts += [stack(x[:, t : t + 1], caches) for t in range(filled, 7)]
    torch.testing.assert_close(torch.cat(parts, 1), full)


def test_a_position_sees_only_what_came_before():
    layer = CausalSelfAttention(8, 2).double()
    x = torch.randn(1, 5, 8, dtype=torch.float64, requires_grad=True)
    layer(x)[0, 2].sum().backward()
    reached = x.grad[0].abs().sum(-1) > 0
    assert reached.tolist() == [True, True, True, False, False]


def test_large_batches_are_split_without_a_trace(monkeypatch):
    layer, x = CausalSelfAttention(8, 2).double(), torch.randn(7, 4, 8, dtype=torch.float64)
    whole = layer(x)
    monkeypatch.setattr(attention, "_MOST_ROWS", 3)
    torch.testing.assert_close(layer(x), whole)


def test_taken_rows_of_a_cache_go_on_as_those_rows():
    torch.manual_seed(0)
    attention = CausalSelfAttention(8, 2).eval()
    x = torch.randn(3, 4, 8)
    rows = torch.tensor([2, 0, 2])
    cache = KeyValueCache(4)
    for t in range(3):
        attention(x[:, t : t + 1], cache)
    taken = cache.take(rows)
    out = attention(x[rows, 3:], taken)
    torch.testing.assert_close(out, attention(x[rows])[:, 3:])
    assert cache.length == 3
