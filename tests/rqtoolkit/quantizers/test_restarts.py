"""How entries die and start again, and how often a table is written."""

import pytest
import torch

from rqtoolkit import ResidualQuantizer


def with_dead(dead, sizes=(6, 4), vectors=24, dim=2, **options):
    """Entries around the origin, and dead ones far from everything."""
    quantizer = ResidualQuantizer(dim, 2, sizes, **options)
    tables = torch.randn_like(quantizer.state.tables)
    quantizer.set_codebooks(tables)
    with torch.no_grad():
        for table, size in enumerate(quantizer.state.codebook_sizes):
            quantizer.state.counts[table, :size] = vectors / size
        for table, entry in dead:
            quantizer.state.tables[table, entry] = 500.0
            quantizer.state.counts[table, entry] = 0.0
    return quantizer


def test_entries_of_each_level_restart_on_what_that_level_quantizes():
    quantizer = with_dead([(0, 1), (0, 4), (1, 2)], decay=0.9)
    x = torch.randn(24, 2)
    tables = quantizer.codebooks.clone()
    codes = quantizer(x).codes
    residual = x - tables[0][codes[:, 0]]
    for table, entry, rows in ((0, 1, x), (0, 4, x), (1, 2, residual)):
        revived = quantizer.codebooks[table, entry]
        assert torch.isclose(rows, revived).all(1).any()
        # Three times the threshold: here a quarter of the mean of what the others have
        counts = quantizer.state.counts[table, : quantizer.codebook_sizes[table]]
        dead = {0: 2, 1: 1}[table]
        mean_before = 24 * 0.9 * (len(counts) - dead) / len(counts) ** 2 + 24 * 0.1 / len(counts)
        assert counts[entry].item() == pytest.approx(3 * min(1, 0.25 * mean_before), rel=1e-4)


def test_the_padding_of_smaller_tables_stays_zero():
    quantizer = with_dead([(1, 2)])
    quantizer.set_codebooks(torch.where(quantizer.codebooks == 0, torch.nan, quantizer.codebooks))
    for _ in range(5):
        quantizer(torch.randn(24, 2))
    assert quantizer.codebooks[1, 4:].eq(0).all()
    assert quantizer.state.counts[1, 4:].eq(0).all()


def test_a_shared_table_restarts_on_what_any_level_quantizes():
    places = set()
    for seed in range(20):
        torch.manual_seed(5)
        quantizer = with_dead([(0, 1)], sizes=6, shared_codebook=True)
        table = quantizer.codebooks[0].clone()
        x = torch.randn(24, 2)
        codes = quantizer(x, generator=torch.Generator().manual_seed(seed)).codes
        revived = quantizer.codebooks[0, 1]
        levels = [x, x - table[codes[:, 0]]]
        found = [torch.isclose(rows, revived).all(1).any().item() for rows in levels]
        assert any(found)
        places.add(found.index(True))
    assert places == {0, 1}


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("update", ["ema", "gradient"])
def test_a_second_death_is_like_the_first(shared, update):
    quantizer = with_dead(
        [(0, 1)], sizes=6 if shared else (6, 4), shared_codebook=shared, update=update
    )
    for _ in range(2):
        with torch.no_grad():
            quantizer.state.tables[0, 1] = 500.0
            quantizer.state.counts[0, 1] = 0.0
        assert quantizer(torch.randn(24, 2)).stats.dead[0] == 1
        revived = quantizer.state.tables[0, 1].detach()
        assert revived.abs().max() < 10
        assert quantizer.state.counts[0, 1] > 0
        assert quantizer(torch.randn(24, 2)).stats.dead[0] == 0  # it has time to prove itself


@pytest.mark.parametrize("shared", [True, False])
def test_a_table_is_written_once_a_step_after_all_levels(shared):
    """One decay a step, whatever the depth, and all levels look at the table as it was."""
    sizes = 6 if shared else (6, 4)
    quantizer = with_dead([], sizes, shared_codebook=shared, decay=0.5, restart_threshold=0)
    tables, counts = quantizer.state.tables.clone(), quantizer.state.counts.clone()
    x = torch.randn(24, 2)
    codes = quantizer(x).codes
    residual = x
    expected, sums = counts / 2, tables * counts[..., None] / 2
    for level in range(2):
        table = 0 if shared else level
        for code, row in zip(codes[:, level], residual, strict=True):
            expected[table, code] += 0.5
            sums[table, code] += row / 2
        assert torch.equal(
            torch.cdist(residual, tables[table, : quantizer.codebook_sizes[level]]).argmin(1),
            codes[:, level],
        )
        residual = residual - tables[table][codes[:, level]]
    torch.testing.assert_close(quantizer.state.counts, expected)
    used = expected > 0
    torch.testing.assert_close(quantizer.state.tables[used], sums[used] / expected[used][:, None])
    total = 48 if shared else 24  # what the counts settle at: depth times as many for one table
    assert quantizer.state.counts[0].sum().item() == pytest.approx((24 + total) / 2)


def test_an_optimiser_s_tables_are_moved_by_restarts_alone():
    quantizer = with_dead([(0, 1)], update="gradient")
    before = quantizer.state.tables.detach().clone()
    quantizer(torch.randn(24, 2))
    moved = (quantizer.state.tables != before).any(dim=2)
    assert moved.nonzero().tolist() == [[0, 1]]


@pytest.mark.parametrize(("shared", "expected"), [(False, 40 / 8), (True, 3 * 40 / 8)])
def test_counts_start_where_steps_of_that_size_keep_them(shared, expected):
    """N / K of an own table, depth · N / K of a shared one: no entry is near death at the start."""
    quantizer = ResidualQuantizer(2, 3, 8, shared_codebook=shared)
    x = torch.randn(40, 2)
    quantizer.state.start(x, 3, None)
    assert quantizer.state.counts.eq(expected).all()
    for _ in range(5):
        assert max(quantizer(x).stats.dead) == 0
    torch.testing.assert_close(
        quantizer.state.counts.mean(1), torch.full_like(quantizer.state.counts[:, 0], expected)
    )


@pytest.mark.parametrize(
    ("vectors", "shared", "expected"),
    [
        (1, False, (0.01, 0.0125)),  # a batch of few vectors for an entry moves it little
        (4, False, (0.025, 0.05)),  # 4 / (20 · 8) and 4 / (20 · 4)
        (400, False, (0.05, 0.05)),
        (4, True, (0.025,)),  # 2 · 4 / (2 · 20 · 8): a shared table serves all levels
        (1, True, (0.01,)),
    ],
)
def test_the_pace_of_averages_goes_by_vectors_for_each_entry(vectors, shared, expected):
    quantizer = with_dead([], 8 if shared else (8, 4), shared_codebook=shared, restart_threshold=0)
    total = quantizer.state.counts.sum(1)
    quantizer(torch.randn(vectors, 2))
    collected = vectors * (2 if shared else 1)
    pace = torch.tensor(expected)
    torch.testing.assert_close(quantizer.state.counts.sum(1), total * (1 - pace) + collected * pace)
