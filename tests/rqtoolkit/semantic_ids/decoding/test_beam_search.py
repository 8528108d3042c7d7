import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rqtoolkit.errors import ConfigError, DataError, ShapeError
from rqtoolkit.semantic_ids.decoding.beam_search import beam_search
from rqtoolkit.semantic_ids.decoding.prefix_table import PrefixTable

few = settings(max_examples=30)


def catalogue(rng, sizes, rows):
    return np.stack([rng.integers(size, size=rows) for size in sizes], 1)


class Model:
    """Random log-probabilities for every prefix and user, looked up in a dictionary."""

    def __init__(self, rng, sizes, users, ties=False):
        self.tables = {}
        for level, size in enumerate(sizes):
            for prefix in itertools.product(*map(range, sizes[:level])):
                scores = np.log(rng.dirichlet(np.ones(size), size=users))
                self.tables[prefix] = np.round(scores) if ties else scores

    def __call__(self, prefixes, origins):
        assert origins.shape == prefixes.shape[:2]
        rows = [
            [self.tables[tuple(prefix)][user] for prefix in beams]
            for user, beams in enumerate(np.asarray(prefixes).tolist())
        ]
        return np.array(rows).reshape(*prefixes.shape[:2], -1)

    def score(self, user, code):
        return sum(self.tables[tuple(code[:i])][user][c] for i, c in enumerate(code))


def plain_beam_search(model, codes, user, beams):
    """The slow, obvious version: sort all continuations that some row begins with."""
    distinct = {tuple(code) for code in codes.tolist()}
    kept = [((), 0.0)]
    for level in range(codes.shape[1]):
        prefixes = {code[: level + 1] for code in distinct}
        longer = [
            ((*prefix, code), score + added)
            for prefix, score in kept
            for code, added in enumerate(model.tables[prefix][user])
            if (*prefix, code) in prefixes
        ]
        kept = sorted(longer, key=lambda entry: (-entry[1], entry[0]))[:beams]
    return kept


class TestSearch:
    @few
    @given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.booleans())
    def test_equals_the_plain_search(self, make_table, seed, beams, ties):
        rng = np.random.default_rng(seed)
        sizes = tuple(rng.integers(1, 5, size=rng.integers(1, 4)).tolist())
        codes = catalogue(rng, sizes, int(rng.integers(1, 20)))
        model = Model(rng, sizes, 3, ties)
        found = beam_search(model, make_table(codes, sizes), 3, beams=beams)
        for user in range(3):
            wanted = plain_beam_search(model, codes, user, beams)
            assert found.codes[user, : len(wanted)].tolist() == [list(c) for c, _ in wanted]
            assert np.allclose(found.scores[user, : len(wanted)], [score for _, score in wanted])
            first = [codes.tolist().index(list(code)) for code, _ in wanted]
            assert found.rows[user, : len(wanted)].tolist() == first
            assert (np.asarray(found.rows[user, len(wanted) :]) == -1).all()

    def test_exact_with_as_many_beams_as_items(self, make_table):
        rng = np.random.default_rng(0)
        codes = np.unique(catalogue(rng, (4, 5, 6), 60), axis=0)
        rng.shuffle(codes)
        model = Model(rng, (4, 5, 6), 4)
        found = beam_search(model, make_table(codes, (4, 5, 6)), 4, beams=len(codes))
        for user in range(4):
            scores = np.array([model.score(user, code) for code in codes.tolist()])
            assert found.rows[user].tolist() == np.argsort(-scores).tolist()
            assert np.allclose(found.scores[user], np.sort(scores)[::-1])

    def test_by_hand(self, make_table):
        # Greedy takes code 0 first (0.6), whose one continuation has 0.1: 0.06; the other path has
        # 0.4 * 0.9 = 0.36. Code (0, 0), the best of all, is no item.
        steps = [
            np.log([[[0.6, 0.4]]]).astype(np.float32),
            np.log([[[0.9, 0.1], [0.1, 0.9]]]).astype(np.float32),
        ]
        table = make_table([[0, 1], [1, 1], [1, 0]], (2, 2))
        greedy = beam_search(
            lambda prefixes, _: steps[prefixes.shape[-1]][:, :1], table, 1, beams=1
        )
        assert greedy.codes.tolist() == [[[0, 1]]]
        both = beam_search(lambda prefixes, _: steps[prefixes.shape[-1]], table, 1, beams=2)
        assert both.codes.tolist() == [[[1, 1], [0, 1]]]
        assert both.rows.tolist() == [[1, 0]]
        assert np.allclose(np.exp(np.asarray(both.scores)), [[0.36, 0.06]])

    def test_origins_reorder_what_a_model_keeps(self, make_table):
        """A model that only sees origins knows its prefixes."""
        rng = np.random.default_rng(1)
        sizes, codes = (3, 3, 3, 3), catalogue(rng, (3, 3, 3, 3), 40)
        model = Model(rng, sizes, 2)
        caches = []

        def step(prefixes, origins):
            level = prefixes.shape[-1]
            if level > 1:
                caches[-1] = np.take_along_axis(caches[-1], np.asarray(origins)[..., None], 1)
            newest = np.asarray(prefixes)[..., -1:]
            cache = newest if level < 2 else np.concatenate([caches[-1], newest], -1)
            assert np.array_equal(cache, np.asarray(prefixes))
            caches.append(cache)
            return model(prefixes, origins)

        beam_search(step, make_table(codes, sizes), 2, beams=5)
        assert len(caches) == 4

    def test_only_items_are_found_at_any_order_of_rows(self, make_table):
        rng = np.random.default_rng(2)
        codes = catalogue(rng, (16, 16, 16), 300)
        shuffled = rng.permutation(codes)
        model = [rng.normal(size=(5, 1, 16)) for _ in range(3)]
        step = lambda prefixes, _: model[prefixes.shape[-1]]  # noqa: E731
        first, second = (
            beam_search(step, make_table(rows, (16, 16, 16)), 5, beams=20)
            for rows in (codes, shuffled)
        )
        assert np.array_equal(first.codes, second.codes)
        assert np.array_equal(codes[np.asarray(first.rows)], first.codes)
        assert np.array_equal(shuffled[np.asarray(second.rows)], second.codes)

    def test_shapes_and_kinds_of_what_step_returns(self, make_table):
        rng = np.random.default_rng(3)
        codes = catalogue(rng, (4, 4), 10)
        model = Model(rng, (4, 4), 3)
        table = make_table(codes, (4, 4))
        wanted = beam_search(model, table, 3, beams=4)
        flat = beam_search(lambda *given: model(*given).reshape(-1, 4), table, 3, beams=4)
        tensors = beam_search(
            lambda *given: torch.tensor(model(*given), requires_grad=True), table, 3, beams=4
        )
        for other in (flat, tensors):
            assert np.array_equal(other.codes, wanted.codes)
            assert type(other.codes) is type(wanted.codes)
        half = beam_search(lambda *given: torch.tensor(model(*given)).half(), table, 3, beams=4)
        assert half.scores.dtype in (np.float32, torch.float32)


class TestFewerThanAsked:
    def test_fewer_items_than_beams(self, make_table):
        table = make_table([[0, 1], [1, 0], [0, 1]], (2, 2))
        found = beam_search(lambda *_: np.zeros((2, 1, 2)), table, 2, beams=5)
        assert found.codes.shape == (2, 5, 2)
        assert found.codes[0].tolist() == [[0, 1], [1, 0], [-1, -1], [-1, -1], [-1, -1]]
        assert found.rows[1].tolist() == [0, 1, -1, -1, -1]
        assert found.scores[0].tolist() == [0, 0, -np.inf, -np.inf, -np.inf]

    def test_fewer_beams_than_results(self, make_table):
        table = make_table([[0], [1]], (2,))
        with pytest.raises(ConfigError, match="Pass beams=10"):
            beam_search(lambda *_: np.zeros((1, 1, 2)), table, 1, beams=5, count=10)
        found = beam_search(lambda *_: np.zeros((1, 1, 2)), table, 1, beams=2, count=1)
        assert found.rows.tolist() == [[0]]

    def test_an_empty_table(self, make_table):
        table = make_table(np.zeros((0, 2), int), (2, 2))
        found = beam_search(lambda *_: pytest.fail("no level to ask for"), table, 2, beams=3)
        assert found.codes.tolist() == [[[-1, -1]] * 3] * 2
        assert found.rows.tolist() == [[-1] * 3] * 2
        assert (np.asarray(found.scores) == -np.inf).all()

    def test_no_users(self, make_table):
        table = make_table([[0], [1]], (2,))
        found = beam_search(lambda *_: np.zeros((0, 1, 2)), table, 0, beams=2)
        assert found.codes.shape == (0, 2, 1)

    def test_impossible_codes_are_not_found(self, make_table):
        table = make_table([[0, 0], [1, 0], [1, 1]], (2, 2))
        steps = [[[0.0, -np.inf]], [[-1.0, 0.0]]]
        found = beam_search(lambda p, _: np.array([steps[p.shape[-1]]]), table, 1, beams=3)
        assert found.rows.tolist() == [[0, -1, -1]]
        assert found.scores.tolist() == [[-1, -np.inf, -np.inf]]

    def test_a_subset(self, make_table):
        rng = np.random.default_rng(0)
        codes = np.unique(catalogue(rng, (5, 5, 5), 60), axis=0)
        model = Model(rng, (5, 5, 5), 2)
        table = make_table(codes, (5, 5, 5)).subset(np.arange(10, 15))
        found = beam_search(model, table, 2, beams=8)
        assert np.sort(found.rows).tolist() == [[-1, -1, -1, 10, 11, 12, 13, 14]] * 2


class TestRefusals:
    def test_wrong_shape(self):
        table = PrefixTable([[0, 1], [1, 0]], (2, 2))
        with pytest.raises(ShapeError, match=r"shape \(3, 1, 2\) at level 0"):
            beam_search(lambda *_: np.zeros((3, 1, 3)), table, 3, beams=2)

    def test_nan(self, make_table):
        table = make_table([[0, 1], [1, 0]], (2, 3))
        steps = [np.zeros((1, 1, 2)), np.array([[[0, np.nan, 0]]])]
        with pytest.raises(DataError, match="NaN at level 1"):
            beam_search(lambda p, _: steps[p.shape[-1]], table, 1, beams=2)
        steps = [np.zeros((1, 1, 2)), np.array([[[0, 0, np.nan]]])]  # code 2 follows nothing
        assert beam_search(lambda p, _: steps[p.shape[-1]], table, 1, beams=1).rows.tolist() == [
            [0]
        ]

    def test_no_beams(self):
        with pytest.raises(ConfigError, match="beams=0"):
            beam_search(lambda p, _: p, PrefixTable([[0]], (1,)), 1, beams=0)
