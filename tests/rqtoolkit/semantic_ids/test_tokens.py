import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rqtoolkit.errors import ConfigError, DataError, ShapeError
from rqtoolkit.semantic_ids.tokens import (
    flatten_codes,
    format_tokens,
    level_name,
    level_tokens,
    parse_tokens,
    split_tokens,
    token_offsets,
    unflatten_codes,
)

STYLES = ("<{level}_{code}>", "<s_{level}_{code}>", "[{number}.{code}]", "{{{level}}}{code}$")


class TestText:
    def test_by_hand(self):
        codes = [[12, 7, 201], [0, 255, 3]]
        assert format_tokens(codes) == ["<a_12><b_7><c_201>", "<a_0><b_255><c_3>"]
        assert split_tokens(codes)[0] == ["<a_12>", "<b_7>", "<c_201>"]
        assert level_tokens((2, 1)) == [["<a_0>", "<a_1>"], ["<b_0>"]]
        assert format_tokens(codes, "<{number}:{code}>")[0] == "<0:12><1:7><2:201>"

    def test_letters_of_levels(self):
        assert [level_name(level) for level in (0, 25, 26, 51, 52, 701, 702)] == [
            "a", "z", "aa", "az", "ba", "zz", "aaa",
        ]  # fmt: skip

    @pytest.mark.parametrize("style", STYLES)
    @settings(max_examples=25)
    @given(st.integers(1, 30).flatmap(lambda n: st.lists(
        st.lists(st.integers(0, 10**6), min_size=n, max_size=n), min_size=1, max_size=5
    )))  # fmt: skip
    def test_parsing_inverts(self, style, codes):
        texts = format_tokens(codes, style)
        assert parse_tokens(texts, len(codes[0]), style).tolist() == codes
        assert len(set(texts)) == len({tuple(code) for code in codes})

    def test_white_space_of_decoded_text(self):
        assert parse_tokens([" <a_1> <b_2>\n", "<a_1><b_2>"], 2).tolist() == [[1, 2]] * 2

    @pytest.mark.parametrize(
        "text",
        [
            "<a_1>",
            "<a_1><b_2><c_3>",
            "<b_1><a_2>",
            "<a_1><b_x>",
            "",
            "<a_9999999999999999999><b_1>",
        ],
    )
    def test_what_is_no_semantic_id(self, text):
        assert parse_tokens([text, "<a_1><b_2>"], 2, errors="null").tolist() == [[-1, -1], [1, 2]]
        with pytest.raises(DataError, match="text 0"):
            parse_tokens([text], 2)

    @pytest.mark.parametrize(
        "style",
        [
            "<{code}>",
            "<{level}>",
            "<{level}_{code}_{code}>",
            "<{level}_{item}>",
            "{",
            "<{level}_{code:03}>",
            "{}{code}",
        ],
    )
    def test_styles_that_tell_nothing(self, style):
        for call in (lambda: format_tokens([[1]], style), lambda: level_tokens((1,), style)):
            with pytest.raises(ConfigError, match="style"):
                call()

    def test_refusals(self):
        with pytest.raises(DataError, match="unknown items"):
            format_tokens([[1, -1]])
        with pytest.raises(ShapeError, match="shape"):
            format_tokens([1, 2])
        with pytest.raises(DataError, match="integers"):
            format_tokens([[0.5]])
        with pytest.raises(ConfigError, match="errors='ignore'"):
            parse_tokens([], 2, errors="ignore")

    def test_nothing(self):
        assert format_tokens(np.zeros((0, 3), int)) == []
        assert parse_tokens([], 3).shape == (0, 3)


class TestFlatVocabulary:
    def test_by_hand(self):
        assert token_offsets((4, 2, 3), start=2).tolist() == [2, 6, 8]
        assert token_offsets((4,)).tolist() == [0]
        flat = flatten_codes([[3, 0, 2], [0, 1, 0]], (4, 2, 3), start=2)
        assert flat.tolist() == [[5, 6, 10], [2, 7, 8]]
        assert unflatten_codes(flat, (4, 2, 3), start=2).tolist() == [[3, 0, 2], [0, 1, 0]]

    @settings(max_examples=30)
    @given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(0, 100))
    def test_every_token_has_one_level_and_code(self, sizes, start):
        offsets = token_offsets(sizes, start=start)
        everything = [
            offset + code
            for offset, size in zip(offsets, sizes, strict=True)
            for code in range(size)
        ]
        assert everything == list(range(start, start + sum(sizes)))

    def test_tokens_of_another_level(self):
        flat = [[5, 6, 10], [6, 5, 8]]
        assert unflatten_codes(flat, (4, 2, 3), start=2, errors="null").tolist() == [
            [3, 0, 2],
            [-1, -1, -1],
        ]
        with pytest.raises(DataError, match="row 1"):
            unflatten_codes(flat, (4, 2, 3), start=2)
        with pytest.raises(DataError, match="row 0"):
            unflatten_codes(flat, (4, 2, 3))  # the offset of special tokens forgotten

    def test_codes_that_do_not_fit(self):
        with pytest.raises(DataError, match="codebook_size"):
            flatten_codes([[4, 0]], (4, 2))
        with pytest.raises(ShapeError, match="transposed"):
            flatten_codes(np.zeros((2, 5), int), (4, 2))
