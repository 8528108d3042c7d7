"""Table encoding against plain torch, the residual arithmetic and brute force."""

import pytest
import torch

from rqtoolkit.functional import encoding
from rqtoolkit.functional.assign import sum_codewords
from rqtoolkit.functional.encoding import encode_prefixes, encode_vectors


@pytest.fixture(params=["compiled", "torch"])
def path(request, monkeypatch):
    """Encode small inputs too by the compiled kernel, or all by plain torch."""
    monkeypatch.setattr(encoding, "_SMALL_WORK", 0 if request.param == "compiled" else 10**15)
    return request.param


def problem(seed, sizes, rows=30, dim=6):
    generator = torch.Generator().manual_seed(seed)
    tables = [torch.randn(size, dim, generator=generator) / 2**d for d, size in enumerate(sizes)]
    return torch.randn(rows, dim, generator=generator), tables


def errors(x, codes, tables, penalties=None):
    """Squared error + penalties of each vector in float64."""
    tables = [table.double() for table in tables]
    total = (x.double() - sum_codewords(codes, tables)).square().sum(1)
    if penalties is not None:
        total += sum(p.double()[codes[:, level]] for level, p in enumerate(penalties))
    return total


def brute_beam(x, tables, width, penalties=None):
    """All prefixes of each level in float64, the best kept."""
    codes = torch.zeros(len(x), 1, 0, dtype=torch.int64)
    for level, table in enumerate(tables):
        stacks = torch.cat(
            [
                codes[:, :, None].expand(-1, -1, len(table), -1),
                torch.arange(len(table))[None, None, :, None].expand(*codes.shape[:2], -1, 1),
            ],
            dim=3,
        ).flatten(1, 2)
        scores = torch.stack(
            [
                errors(x, stacks[:, i], tables[: level + 1], penalties)
                for i in range(stacks.shape[1])
            ],
            dim=1,
        )
        kept = scores.sort(dim=1, stable=True).indices[:, :width]
        codes = stacks.gather(1, kept[..., None].expand(-1, -1, level + 1))
    return codes


@pytest.mark.usefixtures("path")
def test_two_levels_by_hand():
    # 1.9 = 0 + 1.9 -> 2; 9.2 = 10 - .8 -> -1; 10.1 = 10 + .1 -> 0; 5.5 is nearer 10, -4.5 -> -1
    tables = [torch.tensor([[0.0], [10.0]]), torch.tensor([[-1.0], [0.0], [2.0]])]
    x = torch.tensor([[1.9], [9.2], [10.1], [5.5]])
    assert encode_vectors(x, tables).tolist() == [[0, 2], [1, 0], [1, 1], [1, 0]]
    # of 4.5, 0 + 2 leaves 2.5 and 10 - 1 leaves -4.5
    assert encode_prefixes(x[3:] - 1, tables, beam=2).tolist() == [[[0, 2], [0, 1]]]
