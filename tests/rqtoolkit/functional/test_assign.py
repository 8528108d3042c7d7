import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import beam, exhaustive, greedy

from rqtoolkit.functional.assign import (
    beam_codes,
    chunk_slices,
    greedy_codes,
    level_tables,
    nearest_codes,
    soft_assignment,
    sum_codewords,
)


def problem(seed, rows=20, dim=3, sizes=(5, 4, 6)):
    generator = torch.Generator().manual_seed(seed)
    tables = [torch.randn(size, dim, generator=generator) / 2**d for d, size in enumerate(sizes)]
    return torch.randn(rows, dim, generator=generator), tables


def test_two_levels_by_hand():
    # Level 1 has 0 and 10, level 2 has -1, 0 and 2 (one dimension).
    tables = [torch.tensor([[0.0], [10.0]]), torch.tensor([[-1.0], [0.0], [2.0]])]
    x = torch.tensor([[1.9], [9.2], [10.1], [5.5]])
    # 1.9 = 0 + 1.9 -> 2; 9.2 = 10 - .8 -> -1; 10.1 = 10 + .1 -> 0; 5.5 is nearer 10, -4.5 -> -1
    codes = greedy_codes(x, tables)
    assert codes.tolist() == [[0, 2], [1, 0], [1, 1], [1, 0]]
    assert sum_codewords(codes, tables).flatten().tolist() == [2, 9, 10, 9]
    # 5.5 by a beam of two: 0 + 2 leaves 3.5, 10 - 1 leaves -3.5; either is as good
    assert sum_codewords(beam_codes(x, tables, 2), tables)[3].item() in (2, 9)


@given(seed=st.integers(0, 10**6), width=st.integers(1, 7))
def test_greedy_and_beam_equal_the_plain_loop(seed, width):
    x, tables = problem(seed)
    assert torch.equal(greedy_codes(x, tables), greedy(x, tables))
    assert torch.equal(beam_codes(x, tables, width), beam(x, tables, width))


@given(seed=st.integers(0, 10**6))
def test_a_beam_of_everything_is_exhaustive_search(seed):
    x, tables = problem(seed, sizes=(3, 3, 3))
    assert torch.equal(beam_codes(x, tables, 27), exhaustive(x, tables))


@given(seed=st.integers(0, 10**6), rows=st.integers(0, 40))
def test_chunks_change_nothing(seed, rows):
    x, tables = problem(seed, rows=rows)
    for width in (1, 3):
        whole = beam_codes(x, tables, width)
        assert whole.shape == (rows, 3)
        assert torch.equal(beam_codes(x, tables, width, max_bytes=1), whole)
    covered = [row for part in chunk_slices(rows, 7, 30) for row in range(part.start, part.stop)]
    assert covered == list(range(rows))


def test_ties_go_to_the_lowest_code():
    table = torch.tensor([[1.0], [-1.0], [1.0], [-1.0]])
    assert nearest_codes(torch.tensor([[0.0], [1.0], [-1.0]]), table).tolist() == [0, 0, 1]


@pytest.mark.parametrize("size", [1, 31, 32, 64, 1000, 1024])
def test_the_nearest_is_the_first_of_the_nearest_whatever_else_is_asked(size):
    generator = torch.Generator().manual_seed(size)
    # Integers, so that there is no rounding and there are many ties.
    table = torch.randint(-2, 3, (size, 4), generator=generator).float()
    x = torch.randint(-3, 4, (700, 4), generator=generator).float()
    table -= table.mean(dim=0).round()
    distances = (x[:, None] - table).square().sum(dim=2)
    codes = nearest_codes(x, table)
    chosen = distances.gather(1, codes[:, None])
    assert torch.equal(chosen, distances.amin(dim=1, keepdim=True))
    first = (distances == chosen).int().argmax(dim=1)
    copies = (table[codes] == table[first]).all(dim=1)
    assert torch.equal(codes[copies], first[copies])
    noise = torch.randn(x.shape, generator=generator)
    alone = torch.cat([nearest_codes(row[None], table) for row in (x + noise)[:50]])
    assert torch.equal(alone, nearest_codes(x + noise, table)[:50])


def test_data_far_from_the_origin_lose_nothing():
    x, tables = problem(1, rows=200, dim=16, sizes=(64,))
    near = nearest_codes(x, tables[0])
    # 2^12 is exact for these magnitudes only up to 2^-11; that is the input's rounding, not ours
    shifted = nearest_codes(x + 4096, tables[0] + 4096)
    distance = torch.cdist(x.double(), tables[0].double())
    lost = distance.gather(1, shifted[:, None]) - distance.gather(1, near[:, None])
    assert lost.max() < 1e-2


def test_soft_assignment_is_the_softmax_of_distances():
    x, (table, *_) = problem(2)
    exact = (-torch.cdist(x.double(), table.double()).square() / 0.3).softmax(1)
    torch.testing.assert_close(soft_assignment(x, table, 0.3).double(), exact, rtol=1e-4, atol=1e-6)


def test_level_tables_cut_padding_and_repeat_a_shared_table():
    tables = torch.arange(24.0).view(2, 4, 3)
    assert [len(t) for t in level_tables(tables, [2, 4], 2)] == [2, 4]
    shared = level_tables(tables[:1], [4], 3)
    assert len(shared) == 3
    assert all(torch.equal(t, tables[0]) for t in shared)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_keeps_the_precision_of_its_input(dtype):
    x, tables = problem(3)
    tables = [t.to(dtype) for t in tables]
    assert sum_codewords(greedy_codes(x.to(dtype), tables), tables).dtype == dtype


@pytest.mark.parametrize(("rows", "dim"), [(40, 3), (3000, 5), (20000, 70)])
def test_sums_equal_the_loop_over_levels_exactly(rows, dim):
    # few vectors are summed by the loop, more in bags, and many in bags that fit the caches
    _, tables = problem(4, dim=dim, sizes=(9, 200, 30))
    codes = torch.stack([torch.randint(len(t), (rows,)) for t in tables], dim=1)
    for depth in (1, 2, 3):
        total = torch.zeros(rows, dim)
        for level in range(depth):
            total += tables[level][codes[:, level]]
        assert torch.equal(sum_codewords(codes[:, :depth], tables), total)
        assert torch.equal(sum_codewords(codes[:, :depth].int(), tables), total)
