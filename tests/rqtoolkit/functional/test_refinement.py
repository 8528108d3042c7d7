"""Refinement of codes against brute force, plain torch and the errors that it may not raise."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rqtoolkit.errors import ConfigError
from rqtoolkit.functional import refinement
from rqtoolkit.functional.codebook_products import CodebookProducts, product_bytes
from rqtoolkit.functional.encoding import encode_vectors
from rqtoolkit.functional.refinement import encode_refined, refine_codes

SIZES = st.lists(st.integers(1, 20), min_size=1, max_size=5)
PATHS = ("compiled", "torch", "residuals")


def refine(path, x, codes, tables, **options):
    """Take one of the paths whatever the size of the problem."""
    before = refinement._SMALL_WORK
    refinement._SMALL_WORK = 10**15 if path == "torch" else 0
    if path == "residuals":
        needed = product_bytes([len(table) for table in tables], both_ways=True)
        options["max_bytes"] = max(1, needed)  # of which products get three quarters
    try:
        if codes is None:
            return encode_refined(x, tables, **options)
        return refine_codes(x, codes, tables, **options)
    finally:
        refinement._SMALL_WORK = before


def problem(seed, sizes, rows=12, dim=4, penalty=0.0):
    g = torch.Generator().manual_seed(seed)
    tables = [torch.randn(size, dim, generator=g) for size in sizes]
    codes = torch.stack([torch.randint(size, (rows,), generator=g) for size in sizes], dim=1)
    penalties = [penalty * torch.rand(size, generator=g) for size in sizes] if penalty else None
    return torch.randn(rows, dim, generator=g) * 2, codes, tables, penalties


def errors(x, codes, tables, penalties=None):
    """Squared error + penalties of each vector, by residuals in float64."""
    x, spent = x.double(), torch.zeros(len(x), dtype=torch.float64)
    for level, table in enumerate(tables):
        x = x - table.double()[codes[:, level]]
        if penalties is not None:
            spent += penalties[level].double()[codes[:, level]]
    return x.square().sum(1) + spent


def neighbours(codes, sizes):
    """Yield the codes with one level changed to each of its entries."""
    for level, size in enumerate(sizes):
        for code in range(size):
            changed = codes.clone()
            changed[:, level] = code
            yield changed


@pytest.mark.parametrize("path", PATHS)
def test_two_levels_by_hand(path):
    # 5 = 10 - 4 leaves -1 where a greedy search took 0 + 2: level 0 moves to 10 only together with
    # level 1. From (10, 2), level 0 goes to 0; from (0, -4), to 10, and then all stay.
    tables = [torch.tensor([[0.0], [10.0]]), torch.tensor([[-4.0], [0.0], [2.0]])]
    x = torch.tensor([[5.0], [5.0], [5.0]])
    codes = torch.tensor([[0, 2], [1, 2], [0, 0]])
    assert refine(path, x, codes, tables, rounds=5).tolist() == [[0, 2], [0, 2], [1, 0]]
    assert codes.tolist() == [[0, 2], [1, 2], [0, 0]]
    # giving level 1 its entry -4 by chance brings level 0 to 10: the better stack is found
    perturbed = refine(path, x, codes, tables, rounds=5, perturbations=20)
    assert perturbed.tolist() == [[1, 0]] * 3


@pytest.mark.parametrize("path", PATHS)
@settings(max_examples=25)
@given(seed=st.integers(0, 10**6), sizes=SIZES, penalty=st.sampled_from([0.0, 2.0]))
def test_ends_where_no_single_change_helps(path, seed, sizes, penalty):
    x, codes, tables, penalties = problem(seed, sizes, penalty=penalty)
    refined = refine(path, x, codes, tables, rounds=100, penalties=penalties)
    reached = errors(x, refined, tables, penalties)
    assert (reached <= errors(x, codes, tables, penalties)).all()
    for changed in neighbours(refined, sizes):
        assert (errors(x, changed, tables, penalties) > reached - 1e-4).all()


@pytest.mark.parametrize("path", PATHS)
@settings(max_examples=25)
@given(
    seed=st.integers(0, 10**6),
    sizes=SIZES,
    rounds=st.integers(0, 3),
    perturbations=st.integers(0, 6),
    scale=st.sampled_from([1e-12, 1.0, 1e12]),
    offset=st.sampled_from([0.0, 1e4]),
    penalty=st.sampled_from([0.0, 2.0]),
)
def test_never_raises_the_error_of_a_vector(
    path, seed, sizes, rounds, perturbations, scale, offset, penalty
):
    x, codes, tables, penalties = problem(seed, sizes, penalty=penalty)
    x, tables = (x + offset) * scale, [table * scale for table in tables]
    tables[0] = tables[0] + offset * scale
    penalties = penalties and [p * scale**2 for p in penalties]
    options = {"rounds": rounds, "perturbations": perturbations, "penalties": penalties}
    refined = refine(path, x, codes, tables, **options)
    assert ((refined >= 0) & (refined < torch.tensor(sizes))).all()
    before, after = (errors(x, c, tables, penalties) for c in (codes, refined))
    assert (after <= before).all()
    assert ((after < before) | (refined == codes).all(1)).all()


@given(
    seed=st.integers(0, 10**6),
    sizes=st.lists(st.integers(1, 70), min_size=1, max_size=6),
    rounds=st.integers(0, 4),
    perturbations=st.integers(0, 8),
    lattice=st.booleans(),
    penalty=st.sampled_from([0.0, 1.0]),
)
def test_compiled_equals_torch_exactly(seed, sizes, rounds, perturbations, lattice, penalty):
    x, codes, tables, penalties = problem(seed, sizes, rows=30, penalty=penalty)
    if lattice:  # small whole numbers: many choices are equally good
        x, tables = x.round(), [table.round() for table in tables]
    options = {"rounds": rounds, "perturbations": perturbations, "penalties": penalties}
    compiled = refine("compiled", x, codes, tables, seed=seed, **options)
    assert torch.equal(compiled, refine("torch", x, codes, tables, seed=seed, **options))


@pytest.mark.parametrize("path", PATHS)
@settings(max_examples=10)
@given(seed=st.integers(0, 10**6), threads=st.integers(1, 3))
def test_a_vector_depends_on_itself_and_the_seed_alone(path, seed, threads):
    x, codes, tables, _ = problem(seed, (5, 9, 7), rows=25)
    options = {"rounds": 2, "perturbations": 5, "seed": seed}
    whole = refine(path, x, codes, tables, **options)
    order = torch.randperm(25, generator=torch.Generator().manual_seed(seed))
    options["threads"] = threads
    assert torch.equal(refine(path, x[order], codes[order], tables, **options), whole[order])
    assert torch.equal(refine(path, x[7:9], codes[7:9], tables, **options), whole[7:9])
    if path != "residuals":
        needed = product_bytes([5, 9, 7], both_ways=True)
        options["max_bytes"] = int(needed / 0.75) + 3000  # room for few rows at a time
        assert torch.equal(refine(path, x, codes, tables, **options), whole)


def test_the_seed_changes_what_perturbations_find():
    x, codes, tables, _ = problem(3, (16, 16, 16), rows=200, dim=8)
    found = [
        refine_codes(x, codes, tables, rounds=2, perturbations=2, seed=seed) for seed in (0, 1, -1)
    ]
    assert not torch.equal(found[0], found[1])
    assert not torch.equal(found[1], found[2])


@pytest.mark.parametrize("path", PATHS)
def test_perturbations_lower_the_error_on_the_average(path):
    x, codes, tables, _ = problem(4, (32,) * 4, rows=100, dim=8)
    means = [
        float(errors(x, refine(path, x, codes, tables, rounds=4, perturbations=p), tables).mean())
        for p in (0, 4, 16, 32)
    ]
    assert means == sorted(means, reverse=True)
    assert means[-1] < 0.85 * means[0]


@pytest.mark.parametrize("path", PATHS)
def test_equally_good_codes_stay_and_the_lowest_of_better_ones_is_taken(path):
    tables = [torch.tensor([[4.0], [1.0], [1.0], [0.0]]), torch.zeros(3, 1)]
    x = torch.tensor([[1.0], [1.0], [0.5]])
    codes = torch.tensor([[2, 1], [0, 2], [3, 0]])
    assert refine(path, x, codes, tables, rounds=9).tolist() == [[2, 1], [1, 2], [3, 0]]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("x", [torch.zeros(40, 3), torch.ones(40, 3).cumsum(0), torch.zeros(0, 3)])
def test_degenerate_data(path, x):
    tables = [torch.ones(4, 3), torch.zeros(5, 3)]
    codes = torch.zeros(len(x), 2, dtype=torch.int64)
    refined = refine(path, x, codes, tables, rounds=3, perturbations=3)
    assert torch.equal(refined, codes)


def test_given_products_are_used_and_change_nothing(monkeypatch):
    x, codes, tables, penalties = problem(5, (40, 3, 17), rows=50, penalty=1.0)
    products = CodebookProducts.of(tables, penalties, both_ways=True)
    refinements = {"rounds": 3, "perturbations": 3, "penalties": penalties}
    plain = refine_codes(x, codes, tables, **refinements)
    encoded = encode_vectors(x, tables, beam=3, penalties=penalties)
    monkeypatch.setattr(CodebookProducts, "of", None)  # would fail if it were called
    given_them = refine_codes(x, codes, tables, products=products, **refinements)
    assert torch.equal(given_them, plain)
    nothing = {"rounds": 0, "penalties": penalties}
    given_them = encode_refined(x, tables, beam=3, products=products, **nothing)
    assert torch.equal(given_them, encoded)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("penalty", [0.0, 2.0])
def test_encoding_and_refining_at_once_equals_one_after_the_other(path, penalty):
    x, _, tables, penalties = problem(8, (20, 7, 33), rows=60, penalty=penalty)
    for beam in (1, 4):
        codes = encode_vectors(x, tables, beam=beam, penalties=penalties)
        options = {"rounds": 3, "perturbations": 4, "penalties": penalties}
        once = refine(path, x, None, tables, beam=beam, **options)
        assert torch.equal(once, refine(path, x, codes, tables, **options))
        options = {"rounds": 0, "penalties": penalties}
        assert torch.equal(refine(path, x, None, tables, beam=beam, **options), codes)


@pytest.mark.parametrize("path", ["compiled", "torch"])
def test_products_of_more_levels_serve_the_first(path):
    x, codes, tables, _ = problem(9, (20, 7, 33, 18), rows=60)
    options = {"rounds": 3, "perturbations": 4}
    products = CodebookProducts.of(tables, both_ways=True)
    given_more = refine(path, x, codes[:, :2], tables[:2], products=products, **options)
    reached = errors(x, given_more, tables[:2])
    plain = refine(path, x, codes[:, :2], tables[:2], **options)
    torch.testing.assert_close(reached, errors(x, plain, tables[:2]))


def test_double_precision_is_kept():
    x, codes, tables, _ = problem(6, (8, 8, 8))
    x, tables = x.double() + 1e9, [tables[0].double() + 1e9, *(t.double() for t in tables[1:])]
    refined = refine_codes(x, codes, tables, rounds=100)
    reached = errors(x, refined, tables)
    for changed in neighbours(refined, (8, 8, 8)):
        assert (errors(x, changed, tables) > reached - 1e-4).all()


@pytest.mark.parametrize("wrong", [{"rounds": -1}, {"rounds": 1.5}, {"perturbations": True}])
def test_wrong_numbers_are_named(wrong):
    x, codes, tables, _ = problem(0, (2, 2))
    with pytest.raises(ConfigError, match=r"refine_codes: \w+="):
        refine_codes(x, codes, tables, **{"rounds": 1, **wrong})


def test_rows_both_ways_hold_all_products_of_other_levels():
    *_, tables, _ = problem(7, (5, 20, 3))
    products = CodebookProducts.of(tables, both_ways=True)
    one_way = CodebookProducts.of(tables)
    gram = products.codewords @ products.codewords.T
    for level, size in enumerate(products.sizes):
        begin, end = products.starts[level : level + 2]
        before, after = products.rows_of(level)
        torch.testing.assert_close(before, gram[begin : begin + size, :begin])
        torch.testing.assert_close(after, gram[begin : begin + size, end:])
        assert torch.equal(after, one_way.rows_of(level)[1])
        assert one_way.rows_of(level)[0].numel() == 0
    assert products.products.nbytes == product_bytes([5, 20, 3], both_ways=True)
