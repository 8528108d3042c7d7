import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rqtoolkit.errors import ConfigError, DataError, ShapeError
from rqtoolkit.semantic_ids.decoding.prefix_table import PrefixTable

few = settings(max_examples=30)
CODES = [[3, 1], [0, 2], [3, 0], [0, 2]]


def array(codes, sizes):
    return np.array(codes, np.int64).reshape(-1, len(sizes))


class Trie:
    """The slow, obvious version: nested dictionaries, the rows in lists at the end."""

    def __init__(self, codes):
        self.root = {}
        for row, code in enumerate(codes):
            node = self.root
            for part in code[:-1]:
                node = node.setdefault(part, {})
            node.setdefault(code[-1], []).append(row)

    def find(self, prefix):
        node = self.root
        for part in prefix:
            node = node.get(part) if node is not None else None
        return node


@st.composite
def catalogues(draw, max_rows=30):
    sizes = tuple(draw(st.lists(st.integers(1, 5), min_size=1, max_size=3)))
    row = st.tuples(*(st.integers(0, size - 1) for size in sizes))
    return sizes, draw(st.lists(row, max_size=max_rows))


def all_prefixes(sizes, length):
    grid = list(itertools.product(*map(range, sizes[:length])))
    return np.array(grid, np.int64).reshape(len(grid), length)


class TestAgainstADictionaryTrie:
    @few
    @given(catalogues())
    def test_masks_steps_and_rows(self, make_table, catalogue):
        sizes, codes = catalogue
        table, trie = make_table(array(codes, sizes), sizes), Trie(codes)
        for level, size in enumerate(sizes):
            prefixes = all_prefixes(sizes, level)
            states = table.find(table._own(prefixes))
            mask = np.asarray(table.mask(states, level=level))
            assert mask.shape == (len(prefixes), size)
            for prefix, state, allowed in zip(prefixes, states, mask, strict=True):
                node = trie.find(prefix)
                assert (state >= 0) == (node is not None or level == 0)
                assert np.flatnonzero(allowed).tolist() == sorted(node or ())
        complete = all_prefixes(sizes, len(sizes))
        states = table.find(table._own(complete))
        for code, state, row in zip(complete, states, table.rows(states), strict=True):
            found = trie.find(code) or []
            assert int(row) == (found[0] if found else -1)
            assert table.all_rows(state).tolist() == found

    @few
    @given(catalogues(), st.data())
    def test_subset_equals_a_table_of_these_rows(self, make_table, catalogue, data):
        sizes, codes = catalogue
        rows = [row for row in range(len(codes)) if data.draw(st.booleans())]
        chosen = data.draw(st.permutations(rows))
        subset = make_table(array(codes, sizes), sizes).subset(np.array(chosen, np.int64))
        direct = PrefixTable(array([codes[r] for r in rows], sizes), sizes)
        assert subset.level_starts == direct.level_starts
        assert subset.num_rows == len(codes)
        for name in ("node_codes", "parents", "offsets", "row_offsets"):
            assert np.array_equal(getattr(subset.numpy(), name), getattr(direct, name)), name
        assert [rows[place] for place in direct.row_order] == list(subset.numpy().row_order)
        kept = np.isin(np.arange(len(codes)), rows)
        assert np.array_equal(
            PrefixTable(array(codes, sizes), sizes).subset(kept).offsets, subset.numpy().offsets
        )

    @few
    @given(catalogues(), st.randoms(use_true_random=False))
    def test_order_of_rows_does_not_matter(self, catalogue, random):
        sizes, codes = catalogue
        shuffled = random.sample(codes, len(codes))
        first, second = (PrefixTable(array(rows, sizes), sizes) for rows in (codes, shuffled))
        for name in ("node_codes", "parents", "offsets", "row_offsets"):
            assert np.array_equal(getattr(first, name), getattr(second, name))

    @few
    @given(catalogues())
    def test_prefixes_and_children_invert_find(self, make_table, catalogue):
        sizes, codes = catalogue
        table = make_table(array(codes, sizes), sizes)
        for level in range(len(sizes)):
            start, end = table.level_starts[level : level + 2]
            states = table._own(np.append(np.arange(start, end), -1))
            prefixes = table.prefixes(states, level)
            assert np.array_equal(table.find(prefixes[:-1]), states[:-1])
            assert (np.asarray(prefixes)[-1] == -1).all()
            which, children = table.children(states)
            # Each node of the next level is the child of its parent, in their order.
            assert children.tolist() == list(range(end, table.level_starts[level + 2]))
            assert np.array_equal(states[which], table.parents[children])


class TestByHand:
    def test_arrays(self, make_table):
        table = make_table(CODES, (4, 3))
        # Nodes: 0 root, 1 (0), 2 (3), 3 (0, 2), 4 (3, 0), 5 (3, 1).
        assert table.level_starts == (0, 1, 3, 6)
        assert table.node_codes.tolist() == [0, 0, 3, 2, 0, 1]
        assert table.parents.tolist() == [-1, 0, 0, 1, 2, 2]
        assert table.offsets.tolist() == [1, 3, 4, 6, 6, 6, 6]
        assert table.row_order.tolist() == [1, 3, 2, 0]
        assert len(table) == 3
        assert table.num_rows == 4

    def test_many_shapes_of_states(self, make_table):
        table = make_table(CODES, (4, 3))
        states = table.step(table.start(6).reshape(2, 3), table._own([[3, 0, 1], [9, -1, 3]]))
        assert states.tolist() == [[2, 1, -1], [-1, -1, 2]]
        mask = table.mask(states)
        assert mask.shape == (2, 3, 3)
        assert mask[0].tolist() == [[True, True, False], [False, False, True], [False] * 3]
        assert table.rows(table.step(states, states * 0)).tolist() == [[2, -1, -1], [-1, -1, 2]]

    def test_mask_writes_where_told(self, make_table):
        table = make_table(CODES, (4, 3))
        states = table.start(2)
        out = table.mask(states)
        again = out | True
        assert table.mask(states, out=again) is again
        assert (again == out).all()
        with pytest.raises(ShapeError, match="contiguous of shape"):
            table.mask(states, out=again[:1])
        with pytest.raises(ShapeError, match="contiguous"):
            table.mask(states, out=table._own(np.empty((4, 2), bool)).T)

    def test_nothing_at_all(self, make_table):
        table = make_table(array([], (4, 3)), (4, 3))
        assert len(table) == 0
        assert not table.mask(table.start(2)).any()
        assert table.step(table.start(1), table._own([0])).tolist() == [-1]
        assert table.rows(table.start(1)).tolist() == [-1]
        assert len(table.subset([])) == 0
        assert table.mask(table.start(0)).shape == (0, 4)
        assert len(make_table(CODES, (4, 3)).subset([])) == 0

    def test_kinds_of_arrays(self):
        table = PrefixTable(CODES, (4, 3))
        assert isinstance(table.step([0], [3]), np.ndarray)
        moved = table.to("cpu")
        assert moved.device == torch.device("cpu")
        assert isinstance(moved.step(np.array([0]), np.array([3])), torch.Tensor)
        assert isinstance(moved.numpy().node_codes, np.ndarray)
        assert repr(table) == "PrefixTable(3 semantic IDs, codebook_sizes=(4, 3), device=numpy)"
        assert isinstance(PrefixTable(torch.tensor(CODES), (4, 3)).offsets, np.ndarray)


class TestRefusals:
    def test_transposed_codes(self):
        with pytest.raises(ShapeError, match=r"transposed: pass codes\.T"):
            PrefixTable(np.zeros((3, 100), int), (4, 4, 4))

    def test_other_shapes_and_types(self):
        with pytest.raises(ShapeError, match=r"shape \(N, 2\)"):
            PrefixTable(np.zeros(6, int), (4, 4))
        with pytest.raises(DataError, match="integers"):
            PrefixTable(np.zeros((3, 2)), (4, 4))
        with pytest.raises(ConfigError, match="codebook_sizes"):
            PrefixTable(np.zeros((3, 2), int), (4, 0))
        with pytest.raises(ConfigError, match="codebook_sizes"):
            PrefixTable(np.zeros((3, 0), int), ())

    def test_codes_with_the_offsets_of_a_flat_vocabulary(self):
        with pytest.raises(DataError, match="unflatten_codes"):
            PrefixTable([[1, 5], [0, 6]], (4, 4))

    def test_states_of_several_levels_or_another_table(self):
        table = PrefixTable([[0, 1], [1, 1]], (2, 2))
        with pytest.raises(DataError, match="one level"):
            table.mask(np.array([0, 1]))
        with pytest.raises(ConfigError, match="rows"):
            table.mask(np.array([3]))
        with pytest.raises(DataError, match="another"):
            table.step(np.array([77]), np.array([0]))
        with pytest.raises(ShapeError, match="shape of states"):
            table.step(np.array([0]), np.array([0, 1]))

    def test_states_that_are_no_integers(self, make_table):
        table = make_table(CODES, (4, 3))
        with pytest.raises(DataError, match="integers"):
            table.step(table.start(1) * 1.0, table.start(1))
        short = table.find(table._own(np.array(CODES, np.uint8)))
        assert table.rows(short).tolist() == [0, 1, 2, 1]

    def test_rows_of_a_subset(self):
        table = PrefixTable([[0, 1], [1, 1]], (2, 2))
        with pytest.raises(DataError, match=r"\[0, 2\)"):
            table.subset([2])
        with pytest.raises(DataError, match="bool of shape"):
            table.subset(np.array([True]))
        with pytest.raises(DataError, match="row numbers"):
            table.subset([0.5])


@pytest.mark.parametrize("batch", [-1, 1.5, "2"])
def test_numbers_of_prefixes_are_checked(batch):
    with pytest.raises(ConfigError, match=r"PrefixTable.start: batch="):
        PrefixTable([[3, 1]], (4, 3)).start(batch)
    assert PrefixTable([[3, 1]], (4, 3)).start(0).shape == (0,)


def test_devices_that_are_not_there_are_named():
    with pytest.raises(ConfigError, match=r"PrefixTable.to: device='foo' cannot be used here"):
        PrefixTable([[3, 1]], (4, 3)).to("foo")
