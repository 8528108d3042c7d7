import ast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rqtoolkit.errors import ConfigError
from rqtoolkit.functional.arguments import (
    check_count,
    check_number,
    check_rate,
    check_sizes,
    shown,
)

words = st.text(st.characters(exclude_characters="\0"), max_size=3)
plain = st.recursive(
    st.integers(-(2**40), 2**40) | words | st.booleans() | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple),
    max_leaves=6,
)


@given(plain)
def test_plain_values_are_shown_as_python_writes_them(value):
    assert shown(value) == repr(value)


@given(plain)
def test_numbers_and_strings_of_numpy_are_shown_as_plain_ones(value):
    def as_numpy(part):
        if isinstance(part, list | tuple):
            return type(part)(map(as_numpy, part))
        kinds = {int: np.int64, str: np.str_, bool: np.bool_}
        return kinds.get(type(part), lambda same: same)(part)

    assert ast.literal_eval(shown(as_numpy(value))) == ast.literal_eval(repr(value))


def test_arrays_are_shown_as_lists():
    assert shown(np.array([[1, 2]])) == "[[1, 2]]"
    assert shown(np.array(3)) == "3"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: check_count("f", "n", np.int64(0)), "f: n=0 must be"),
        (lambda: check_rate("f", "p", np.float32(1.5)), "f: p=1.5 must be"),
        (lambda: check_number("f", "x", np.float64(0), over=0), "x=0.0 must be .* over 0"),
        (lambda: check_sizes("f", [np.int64(4)], 2), r"f: codebook_size=\[4\] must"),
        (lambda: check_sizes("f", (np.int64(4), np.int64(0)), 2), "f: codebook_size=0 must"),
    ],
)
def test_messages_name_numbers_of_numpy_as_plain_ones(call, message):
    with pytest.raises(ConfigError, match=message):
        call()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1, "1", None, True])
def test_numbers_are_finite_and_within_bounds(value):
    assert check_number("f", "x", np.int64(0), least=0) == 0
    assert check_number("f", "x", -1e-9) == -1e-9
    with pytest.raises(ConfigError, match=r"f: x=.* must be a finite number of at least 0"):
        check_number("f", "x", value, least=0)
