import numpy as np
import pytest
import torch

from rqtoolkit.functional import least_squares
from rqtoolkit.functional.assign import level_tables, sum_codewords
from rqtoolkit.functional.least_squares import joint_codebooks


def problem(shared, seed=0):
    generator = torch.Generator().manual_seed(seed)
    sizes = [6] if shared else [6, 4, 5]
    x = torch.randn(300, 7, generator=generator)
    codes = torch.stack(
        [
            torch.randint(size, (300,), generator=generator)
            for size in (sizes * 3 if shared else sizes)
        ],
        dim=1,
    )
    return x, codes, torch.randn(len(sizes), 6, 7, generator=generator), sizes


def dense_solution(x, codes, tables, strength):
    """The same problem as one stacked least-squares system, in NumPy."""
    shared = len(tables) == 1
    uses = np.zeros((len(x), tables.shape[0] * tables.shape[1]))
    for level in range(codes.shape[1]):
        for row in range(len(x)):
            uses[row, codes[row, level] + (0 if shared else level * tables.shape[1])] += 1
    pull = np.sqrt(strength) * np.eye(uses.shape[1])
    now = tables.reshape(-1, 7).double().numpy()
    left = np.concatenate([uses, pull])
    right = np.concatenate([x.double().numpy(), pull @ now])
    return torch.from_numpy(np.linalg.lstsq(left, right, rcond=None)[0]).view(tables.shape)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("dense_limit", [6144, 0])
def test_equals_numpys_least_squares(shared, dense_limit, monkeypatch):
    monkeypatch.setattr(least_squares, "_DENSE_LIMIT", dense_limit)  # 0: conjugate gradients
    x, codes, tables, sizes = problem(shared)
    found = joint_codebooks(x, codes, tables, sizes, strength=0.5)
    expected = dense_solution(x, codes, tables, 0.5)
    for table, size in enumerate(sizes):
        torch.testing.assert_close(
            found[table, :size].double(), expected[table, :size], rtol=1e-4, atol=1e-5
        )


def test_padding_stays_and_unused_entries_stay():
    x, codes, tables, sizes = problem(shared=False)
    codes[codes[:, 0] == 2, 0] = 1
    found = joint_codebooks(x, codes, tables, sizes)
    assert torch.equal(found[1, 4:], tables[1, 4:])
    torch.testing.assert_close(found[0, 2], tables[0, 2])


@pytest.mark.parametrize("shared", [True, False])
def test_the_error_for_given_codes_falls(shared):
    x, codes, tables, sizes = problem(shared)
    found = joint_codebooks(x, codes, tables, sizes)
    errors = [
        (x - sum_codewords(codes, level_tables(t, sizes, 3))).square().sum()
        for t in (tables, found)
    ]
    assert errors[1] < errors[0]


def test_an_exact_fit_stays_in_place():
    _, codes, tables, sizes = problem(shared=False)
    x = sum_codewords(codes, level_tables(tables, sizes, 3))
    torch.testing.assert_close(joint_codebooks(x, codes, tables, sizes), tables)
