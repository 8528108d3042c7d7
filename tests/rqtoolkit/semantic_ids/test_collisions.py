"""Distinct codes: optimal within a prefix, the same for any order of rows, never moving others."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from rqtoolkit.errors import ConfigError, DataError, ShapeError
from rqtoolkit.quantizers.neural import NeuralResidualQuantizer
from rqtoolkit.quantizers.residual import ResidualQuantizer
from rqtoolkit.semantic_ids.collisions import add_counters, match_codes, place_new
from rqtoolkit.semantic_ids.stacks import stack_numbers, stacks_of


def quantizer_of(sizes, dim=4, seed=0, **options):
    torch.manual_seed(seed)
    return ResidualQuantizer(dim, len(sizes), list(sizes), **options)


def vectors(count, dim=4, seed=0, distinct=None):
    """Vectors of which only `distinct` differ, if given."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((distinct or count, dim)).astype(np.float32)
    return x[np.sort(rng.integers(distinct, size=count))] if distinct else x


def error(quantizer, x, codes):
    decoded = quantizer.decode(torch.from_numpy(codes)).numpy()
    return np.square(decoded - x).sum(axis=1)


def all_different(codes):
    return len(np.unique(codes, axis=0)) == len(codes)


def test_by_hand():
    # One level with codewords 0, 1 and 5. Both vectors are nearest to 0; 0.4 loses least by going
    # to 1 (0.36 - 0.16 against 1.21 - 0.01).
    quantizer = ResidualQuantizer(1, 1, 3)
    quantizer.state.set_tables(torch.tensor([[[0.0], [1.0], [5.0]]]), vectors=3)
    x = np.array([[0.4], [-0.1]], np.float32)
    assert match_codes(quantizer, x, np.arange(2)).tolist() == [[1], [0]]
    assert match_codes(quantizer, x, np.arange(2), taken=np.array([[1]])).tolist() in (
        [[2], [0]],
        [[0], [2]],
    )


@pytest.mark.parametrize("seed", range(5))
def test_one_level_is_matched_at_the_least_error_of_all(seed):
    quantizer, x = quantizer_of([12], seed=seed), vectors(10, seed=seed)
    costs = torch.cdist(torch.from_numpy(x), quantizer.codebooks[0]).square().double().numpy()
    rows, columns = linear_sum_assignment(costs)
    codes = match_codes(quantizer, x, np.arange(10))
    assert error(quantizer, x, codes).sum() == pytest.approx(costs[rows, columns].sum(), rel=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_error_lies_between_the_best_matching_of_all_stacks_and_that_within_prefixes(seed):
    quantizer, x = quantizer_of([3, 3, 9], seed=seed, beam=9), vectors(30, seed=seed)
    raw = quantizer.encode(torch.from_numpy(x)).numpy()
    stacks = np.array(list(itertools.product(*map(range, quantizer.codebook_sizes))))
    decoded = quantizer.decode(torch.from_numpy(stacks)).numpy()
    costs = np.square(x[:, None] - decoded).sum(axis=2)
    least = costs[linear_sum_assignment(costs)].sum()
    inside = np.where((stacks[:, :-1] == raw[:, None, :-1]).all(axis=2), costs, 1e6)
    codes = match_codes(quantizer, x, np.arange(30))
    assert all_different(codes)
    within = inside[linear_sum_assignment(inside)].sum()
    assert least * (1 - 1e-5) <= error(quantizer, x, codes).sum() <= within * (1 + 1e-5)


@settings(max_examples=40)
@given(data=st.data())
def test_row_order_changes_nothing_and_all_codes_differ(data):
    sizes = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))
    room = math.prod(sizes)
    gone = data.draw(st.integers(0, room - 1))
    count = data.draw(st.integers(1, room - gone))
    seed = data.draw(st.integers(0, 1000))
    distinct = data.draw(st.none() | st.integers(1, count))
    quantizer = quantizer_of(sizes, seed=seed, beam=data.draw(st.integers(1, 3)))
    x = vectors(count, seed=seed, distinct=distinct)
    rng = np.random.default_rng(seed)
    order = rng.permutation(count)
    taken = stacks_of(rng.choice(room, gone, replace=False), sizes)
    codes = match_codes(quantizer, x, order, taken=taken)
    assert all_different(np.concatenate([codes, taken]))
    assert (codes >= 0).all()
    assert (codes < np.array(sizes)).all()
    shuffled = np.array(data.draw(st.permutations(range(count))))
    again = match_codes(quantizer, torch.from_numpy(x[shuffled]), order[shuffled], taken=taken)
    np.testing.assert_array_equal(again, codes[shuffled])


def test_row_order_changes_nothing_where_chunks_and_products_differ():
    x = vectors(3000, dim=37, distinct=2500)
    quantizer = quantizer_of([8, 16, 64], dim=37, beam=4)
    order, shuffled = np.arange(3000), np.random.default_rng(1).permutation(3000)
    codes = match_codes(quantizer, x, order)
    assert all_different(codes)
    np.testing.assert_array_equal(match_codes(quantizer, x[shuffled], shuffled), codes[shuffled])


def test_where_nothing_collides_codes_are_the_encoders():
    quantizer, x = quantizer_of([8, 16, 64], beam=3), vectors(20)
    raw = quantizer.encode(torch.from_numpy(x)).numpy()
    assert all_different(raw)
    np.testing.assert_array_equal(match_codes(quantizer, x, np.arange(20)), raw)


def test_identical_vectors_get_better_codes_in_the_order_of_ids():
    quantizer, x = quantizer_of([2, 3, 4]), vectors(1).repeat(20, axis=0)
    order = np.random.default_rng(0).permutation(20)
    errors = error(quantizer, x, match_codes(quantizer, x, order))
    assert (np.diff(errors[np.argsort(order)]) >= -1e-5).all()


def test_every_code_can_be_filled():
    quantizer, x = quantizer_of([4, 4, 4]), vectors(64)
    assert all_different(match_codes(quantizer, x, np.arange(64)))
    with pytest.raises(DataError, match="65 items do not fit into the 64 codes"):
        match_codes(quantizer, vectors(65), np.arange(65))
    taken = np.array([[0, 0, 0]])
    with pytest.raises(DataError, match="1 are taken"):
        match_codes(quantizer, x, np.arange(64), taken=taken)


def test_spilled_items_are_those_that_lose_least():
    # Two first codewords, two last ones. Four vectors are nearest to the first codeword 0; the two
    # nearer to the other first codeword, 10, have to go there.
    quantizer = ResidualQuantizer(1, 2, 2)
    quantizer.state.set_tables(torch.tensor([[[0.0], [10.0]], [[-1.0], [1.0]]]), vectors=4)
    x = np.array([[4.0], [0.0], [3.0], [0.5]], np.float32)
    assert match_codes(quantizer, x, np.arange(4))[:, 0].tolist() == [1, 0, 1, 0]


@pytest.mark.parametrize("seed", range(3))
def test_first_codes_keep_to_a_limit_at_little_cost(seed):
    quantizer, x = quantizer_of([4, 4, 4], seed=seed), vectors(40, seed=seed)
    free, limited = (match_codes(quantizer, x, np.arange(40), limit=n) for n in (None, 10))
    assert all_different(limited)
    assert np.bincount(limited[:, 0]).max() <= 10 < np.bincount(free[:, 0]).max()
    assert error(quantizer, x, free).mean() <= error(quantizer, x, limited).mean()
    backwards = match_codes(quantizer, x[::-1].copy(), np.arange(40)[::-1], limit=10)
    np.testing.assert_array_equal(backwards[::-1], limited)
    wide = match_codes(quantizer, x, np.arange(40), limit=40)
    np.testing.assert_array_equal(wide, free)


def test_other_kinds_of_quantizers_are_matched_too():
    quantizer = NeuralResidualQuantizer(4, 2, 4, width=8)
    x = vectors(12)
    codes = match_codes(quantizer, x, np.arange(12))
    assert all_different(codes)
    shuffled = np.random.default_rng(0).permutation(12)
    np.testing.assert_array_equal(match_codes(quantizer, x[shuffled], shuffled), codes[shuffled])


@pytest.mark.parametrize("policy", ["match", "token", "allow"])
def test_new_items_go_beside_those_that_are_there(policy):
    quantizer = quantizer_of([3, 4, 5])
    x = vectors(40, distinct=20)
    none = np.empty((0, 3 + (policy == "token")), np.int64)
    old = place_new(quantizer, x[:25], np.arange(25), none, policy)
    new = place_new(quantizer, x[25:], np.arange(15), old, policy)
    raw = quantizer.encode(torch.from_numpy(x)).numpy()
    if policy == "match":
        assert all_different(np.concatenate([old, new]))
    else:
        np.testing.assert_array_equal(np.concatenate([old, new])[:, :3], raw)
    if policy == "token":
        np.testing.assert_array_equal(np.concatenate([old, new]), add_counters(raw, np.arange(40)))


def test_counters_start_at_zero_and_follow_the_ids():
    codes = np.array([[1, 2], [0, 0], [1, 2], [1, 2]])
    counted = add_counters(codes, np.array([3, 0, 1, 2]))
    assert counted.tolist() == [[1, 2, 2], [0, 0, 0], [1, 2, 0], [1, 2, 1]]
    taken = np.array([[1, 2, 0], [1, 2, 4]])
    assert add_counters(codes[:2], np.arange(2), taken=taken).tolist() == [[1, 2, 5], [0, 0, 0]]
    assert add_counters(codes[:0], np.arange(0)).shape == (0, 3)


def test_no_items_and_no_room_beyond_64_bits():
    quantizer = quantizer_of([4, 4])
    assert match_codes(quantizer, vectors(3)[:0], np.arange(0)).shape == (0, 2)
    deep = quantizer_of([256] * 10)
    x = vectors(40, distinct=3)
    codes = match_codes(deep, x, np.arange(40))
    assert all_different(codes)
    numbers = stack_numbers(codes, deep.codebook_sizes)
    np.testing.assert_array_equal(stacks_of(numbers, deep.codebook_sizes), codes)
    np.testing.assert_array_equal(np.argsort(numbers), np.lexsort(codes.T[::-1]))


def test_errors_say_what_is_wrong():
    quantizer = quantizer_of([4, 4])
    with pytest.raises(ShapeError, match=r"order \(N,\)"):
        match_codes(quantizer, vectors(3), np.arange(4))
    with pytest.raises(ShapeError, match=r"\(M, 2\)"):
        match_codes(quantizer, vectors(3), np.arange(3), taken=np.zeros((1, 3), int))
    with pytest.raises(ConfigError, match="Choose 'match', 'token' or 'allow'"):
        place_new(quantizer, vectors(3), np.arange(3), np.zeros((0, 2), int), "hash")


def test_beauty_in_a_second(shared_data):
    path = shared_data("data/recsys/beauty/item_embeddings.npy")
    x = np.load(path).astype(np.float32)
    quantizer = ResidualQuantizer(384, 3, 256).fit(x, rounds=0, beam=2, iterations=8)
    raw = quantizer.encode(torch.from_numpy(x)).numpy()
    codes = match_codes(quantizer, x, np.arange(len(x)))
    assert all_different(codes)
    assert error(quantizer, x, codes).mean() <= 1.02 * error(quantizer, x, raw).mean()
