"""Table encoding against plain torch, residual arithmetic and brute force."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rqtoolkit.errors import ConfigError
from rqtoolkit.functional import encoding
from rqtoolkit.functional.assign import (
    beam_codes,
    beam_prefixes,
    beam_widths,
    smallest_first,
    sum_codewords,
)
from rqtoolkit.functional.codebook_products import CodebookProducts, product_bytes
from rqtoolkit.functional.encoding import encode_prefixes, encode_vectors


@pytest.fixture(params=["compiled", "torch"])
def _path(request, monkeypatch):
    """Encode small inputs too by the compiled kernel, or everything by plain torch."""
    monkeypatch.setattr(encoding, "_is_small", lambda *_: request.param == "torch")


def both(x, tables, **options):
    """Prefixes by plain torch and by the compiled kernel."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoding, "_is_small", lambda *_: True)
        plain = encode_prefixes(x, tables, **options)
        patch.setattr(encoding, "_is_small", lambda *_: False)
        return plain, encode_prefixes(x, tables, **options)


def problem(seed, sizes, rows=30, dim=6, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    tables = [
        scale * torch.randn(size, dim, generator=generator) / 2**level
        for level, size in enumerate(sizes)
    ]
    return scale * torch.randn(rows, dim, generator=generator), tables


def errors(x, codes, tables, penalties=None):
    """Squared error + penalties of each vector, in float64."""
    total = (x.double() - sum_codewords(codes, [t.double() for t in tables])).square().sum(1)
    for level, penalty in enumerate(penalties or ()):
        total += penalty.double()[codes[:, level]]
    return total


def brute_beam(x, tables, width, penalties=None):
    """Every extension of every kept prefix, scored by its sum in float64."""
    codes = torch.zeros(len(x), 1, 0, dtype=torch.int64)
    for level, table in enumerate(tables):
        size = len(table)
        kept = codes.repeat_interleave(size, dim=1)
        new = torch.arange(size).repeat(codes.shape[1]).expand(len(x), -1)
        stacks = torch.cat([kept, new[..., None]], dim=2)
        used = None if penalties is None else penalties[: level + 1]
        scores = [errors(x, s, tables[: level + 1], used) for s in stacks.unbind(1)]
        best = torch.stack(scores, dim=1).argsort(dim=1, stable=True)[:, :width]
        codes = stacks.gather(1, best[..., None].expand(-1, -1, level + 1))
    return codes


@pytest.mark.usefixtures("_path")
def test_two_levels_by_hand():
    # 1.9 = 0 + 1.9 -> 2; 9.2 = 10 - .8 -> -1; 10.1 = 10 + .1 -> 0; 5.5 is nearer 10, -4.5 -> -1
    tables = [torch.tensor([[0.0], [10.0]]), torch.tensor([[-1.0], [0.0], [2.0]])]
    x = torch.tensor([[1.9], [9.2], [10.1], [5.5]])
    assert encode_vectors(x, tables).tolist() == [[0, 2], [1, 0], [1, 1], [1, 0]]
    # 4.5: 0 + 2 leaves 2.5, 0 + 0 and 10 - 1 leave 4.5: equal, so the better prefix (0) wins
    assert encode_prefixes(x[3:] - 1, tables, beam=2).tolist() == [[[0, 2], [0, 1]]]
    # a penalty of 19 on the code 2 makes 0 + 2 cost 25.25, more than the 20.25 of 0 + 0
    penalties = [torch.zeros(2), torch.tensor([0.0, 0.0, 19.0])]
    assert encode_vectors(x[3:] - 1, tables, beam=2, penalties=penalties).tolist() == [[0, 1]]


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    sizes=st.lists(st.integers(1, 300), min_size=1, max_size=5),
    dim=st.integers(1, 40),
    beam=st.integers(1, 40),
    kind=st.sampled_from(["normal", "ties", "constant", "low rank", "huge", "tiny", "far"]),
    penalized=st.booleans(),
)
def test_the_kernel_equals_plain_torch(seed, sizes, dim, beam, kind, penalized):
    scale = {"huge": 1e15, "tiny": 1e-20}.get(kind, 1.0)
    x, tables = problem(seed, sizes, rows=9, dim=dim, scale=scale)
    if kind == "ties":
        x, tables = x.round(), [table.round() for table in tables]
    elif kind == "constant":
        x, tables = x * 0 + 1, [table * 0 + 1 for table in tables]
    elif kind == "low rank":
        x, tables = x[:, :1].repeat(1, dim), [table[:, :1].repeat(1, dim) for table in tables]
    elif kind == "far":
        x, tables = x + 4096, [tables[0] + 4096, *tables[1:]]
    generator = torch.Generator().manual_seed(seed)
    penalties = [scale**2 * torch.rand(size, generator=generator) for size in sizes]
    plain, compiled = both(x, tables, beam=beam, penalties=penalties if penalized else None)
    assert torch.equal(plain, compiled)
    assert plain.shape == (9, beam_widths(sizes, beam)[-1], len(sizes))
    assert (plain >= 0).all()
    assert (plain < torch.tensor(sizes)).all()


@pytest.mark.usefixtures("_path")
@pytest.mark.parametrize("scale", [1.0, 1e15, 1e-20])
@pytest.mark.parametrize("penalized", [False, True])
@pytest.mark.parametrize("sizes", [(5, 4, 6), (17, 1, 3, 2), (40,)])
@pytest.mark.parametrize("beam", [1, 3, 100])
def test_equals_brute_force(sizes, beam, penalized, scale):
    x, tables = problem(0, sizes, scale=scale)
    penalties = [scale**2 * torch.rand(size) for size in sizes] if penalized else None
    codes = encode_prefixes(x, tables, beam=beam, penalties=penalties)
    assert torch.equal(codes, brute_beam(x, tables, beam, penalties))
    best = encode_vectors(x, tables, beam=beam, penalties=penalties)
    assert torch.equal(best, codes[:, 0])


@pytest.mark.usefixtures("_path")
@pytest.mark.parametrize("beam", [1, 5])
def test_data_far_from_the_origin_lose_nothing(beam):
    x, tables = problem(1, (32, 16, 16), rows=100, dim=16)
    x, tables = x + 4096, [tables[0] + 4096, *tables[1:]]
    assert torch.equal(encode_prefixes(x, tables, beam=beam), brute_beam(x, tables, beam))


@pytest.mark.usefixtures("_path")
def test_equals_the_residual_arithmetic_but_for_rounding():
    x, tables = problem(2, (256, 256, 256, 256), rows=400, dim=32)
    for beam in (1, 5, 16):
        table, residual = encode_vectors(x, tables, beam=beam), beam_codes(x, tables, beam)
        assert (table == residual).all(1).float().mean() > 0.99
        ratio = errors(x, table, tables) / errors(x, residual, tables)
        assert (ratio - 1).abs().mean() < 1e-4


@pytest.mark.usefixtures("_path")
def test_first_levels_of_given_products():
    x, tables = problem(3, (20, 30, 40))
    products = CodebookProducts.of(tables)
    for depth in (1, 2, 3):
        given_products = encode_vectors(x, tables[:depth], beam=4, products=products)
        assert torch.equal(given_products, encode_vectors(x, tables[:depth], beam=4))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_and_chunks_change_nothing(threads, monkeypatch):
    x, tables = problem(4, (16, 16, 16), rows=700, dim=8)
    expected = encode_vectors(x, tables, beam=4)
    monkeypatch.setattr(encoding, "_is_small", lambda *_: False)
    monkeypatch.setattr(encoding, "CHUNK_BYTES", 3000)
    before = torch.get_num_threads()
    assert torch.equal(encode_vectors(x, tables, beam=4, threads=threads), expected)
    assert torch.get_num_threads() == before
    alone = torch.cat([encode_vectors(row[None], tables, beam=4) for row in x[:50]])
    assert torch.equal(alone, expected[:50])


@pytest.mark.parametrize("penalized", [False, True])
def test_tables_beyond_the_memory_go_by_residuals(penalized):
    x, tables = problem(5, (30, 30, 30))
    penalties = [torch.rand(30) for _ in tables] if penalized else None
    few = product_bytes([30, 30, 30])
    for beam in (1, 4):
        codes = encode_prefixes(x, tables, beam=beam, penalties=penalties, max_bytes=few)
        assert torch.equal(codes, brute_beam(x, tables, beam, penalties))
        best = beam_codes(x, tables, beam, penalties=penalties)
        assert torch.equal(best, codes[:, 0])


def test_no_level_and_no_vector():
    x, tables = problem(6, (5, 5))
    assert encode_prefixes(x, [], beam=3).shape == (30, 1, 0)
    assert encode_vectors(x[:0], tables, beam=3).shape == (0, 2)
    assert beam_prefixes(x, [], []).shape == (30, 1, 0)


@pytest.mark.usefixtures("_path")
def test_what_is_not_finite_or_too_large_still_gives_codes():
    x, tables = problem(7, (20, 20))
    x[0], x[1], x[2, 0] = torch.nan, 3e38, -torch.inf
    codes = encode_prefixes(x, tables, beam=7)
    assert (codes >= 0).all()
    assert (codes < 20).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(
    values=st.lists(st.floats(-2, 2, width=16), min_size=1, max_size=30), count=st.integers(1, 9)
)
def test_smallest_first_is_a_stable_sort(dtype, values, count):
    values = torch.tensor([values], dtype=dtype)
    expected = values.sort(dim=1, stable=True).indices[:, :count]
    assert torch.equal(smallest_first(values, min(count, values.shape[1])), expected)


@pytest.mark.parametrize("option", [{"beam": 0}, {"beam": 1.5}, {"threads": 0}])
def test_refuses_what_is_no_count(option, monkeypatch):
    monkeypatch.setattr(encoding, "_is_small", lambda *_: False)
    x, tables = problem(8, (5, 5))
    with pytest.raises(ConfigError, match=next(iter(option))):
        encode_vectors(x, tables, **option)
