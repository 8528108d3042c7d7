"""The kinds of arrays that prefix tables hold."""

import pytest

from rqtoolkit.semantic_ids.decoding.prefix_table import PrefixTable


class OnTensors(PrefixTable):
    """A table that goes the way of accelerators on the CPU."""

    on_cpu = False


def convert(table, kind):
    if kind == "numpy":
        return table
    moved = table.to("cpu")
    if kind == "tensor operations":
        moved.__class__ = OnTensors
    return moved


@pytest.fixture(scope="session", params=("numpy", "torch", "tensor operations"))
def make_table(request):
    """Return a function that makes a table of one kind."""
    return lambda codes, sizes: convert(PrefixTable(codes, sizes), request.param)
