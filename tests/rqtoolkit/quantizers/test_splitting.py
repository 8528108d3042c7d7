import pytest
import torch

from rqtoolkit import ResidualQuantizer
from rqtoolkit.quantizers import offline
from rqtoolkit.quantizers.joint import mean_error
from rqtoolkit.quantizers.splitting import split_entries


def heavy_tailed(rows, seed=1):
    """Return vectors of which few lie so far out that joint training strands entries."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(rows, 8, generator=generator)
    return directions / (torch.randn(rows, 1, generator=generator).abs() + 0.02)


def unused(quantizer, x):
    codes = quantizer.encode(x)
    return [
        size - len(column.unique())
        for column, size in zip(codes.T, quantizer.codebook_sizes, strict=True)
    ]


def test_a_stranded_entry_takes_half_of_the_costliest_by_hand():
    x = torch.tensor([[-3.0], [-1.0], [1.0], [3.0], [20.0], [21.0]])
    tables = torch.tensor([[[0.0], [100.0], [20.5]]])
    found = split_entries(x, tables, [3], beam=1)
    torch.testing.assert_close(found[0, :, 0].sort().values, torch.tensor([-2.0, 2.0, 20.5]))
    assert tables[0, 1] == 100


def test_fits_use_every_entry_where_some_were_left_over(monkeypatch):
    x = heavy_tailed(6000)
    fitted = ResidualQuantizer(8, 3, [64, 64, 48]).fit(x, seed=0)
    assert unused(fitted, x) == [0, 0, 0]
    monkeypatch.setattr(offline, "split_entries", lambda _, tables, *__, **___: tables)
    without = ResidualQuantizer(8, 3, [64, 64, 48]).fit(x, seed=0)
    assert sum(unused(without, x)) > 0
    errors = [float((x - q.decode(q.encode(x))).square().sum()) for q in (fitted, without)]
    assert errors[0] < errors[1]


@pytest.mark.parametrize("prefix_weight", [0.0, 1.0])
def test_error_never_rises(prefix_weight):
    x = heavy_tailed(500)
    judge = {"beam": 3, "prefix_weight": prefix_weight}
    for seed in range(10):
        generator = torch.Generator().manual_seed(seed)
        tables = 10 * torch.randn(3, 16, 8, generator=generator)
        found = split_entries(x, tables, [16, 16, 12], **judge)
        before, after = (mean_error(x, t, [16, 16, 12], 3, **judge) for t in (tables, found))
        assert after <= before
        assert torch.equal(found[2, 12:], tables[2, 12:])


def test_equal_vectors_leave_nothing_to_split():
    x = torch.tensor([[1.0, 2.0], [5.0, 5.0]]).repeat(50, 1)
    tables = torch.tensor([[[1.0, 2.0], [5.0, 5.5], [90.0, 0.0], [0.0, 90.0]]])
    assert torch.equal(split_entries(x, tables, [4], beam=1), tables)
