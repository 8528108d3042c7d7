"""The Triton kernel against plain torch: in Triton's interpreter, and on a GPU where there is one.

The interpreter is switched on by a variable that Triton reads once, hence another process.
"""

import importlib.util
import os
import subprocess
import sys

import pytest
import torch

from rqtoolkit.functional import encoding
from rqtoolkit.functional.assign import beam_widths
from rqtoolkit.functional.codebook_products import CodebookProducts
from rqtoolkit.functional.encoding import encode_vectors, inner_products
from rqtoolkit.functional.kernels import torch_beam

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed"
)


def compare(device, seeds):
    from rqtoolkit.functional.kernels import triton_beam

    for seed in seeds:
        g = torch.Generator().manual_seed(seed)
        depth = int(torch.randint(1, 6, (), generator=g))
        sizes = torch.randint(1, 20, (depth,), generator=g).tolist()
        x = torch.randn(7, 5, generator=g)
        tables = [torch.randn(size, 5, generator=g) for size in sizes]
        if seed % 2:  # small whole numbers: many candidates are equal
            x, tables = x.round(), [table.round() for table in tables]
        penalties = [torch.rand(size, generator=g) for size in sizes] if seed % 3 == 0 else None
        tables = [table.to(device) for table in tables]
        penalties = penalties and [p.to(device) for p in penalties]
        products = CodebookProducts.of(tables, penalties, both_ways=bool(seed % 5))
        dots = inner_products(x.to(device), products, depth)
        for beam in (1, 3, 8):
            widths = beam_widths(sizes, beam)
            assert triton_beam.block_size(sizes, widths) <= triton_beam.LARGEST_BLOCK
            found = triton_beam.beam_prefixes(dots, products, widths)
            assert torch.equal(found, torch_beam.beam_prefixes(dots, products, widths))
        assert len(triton_beam.beam_prefixes(dots[:0], products, widths)) == 0


@pytest.mark.slow
def test_equals_torch_in_the_interpreter():
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    code = f"import sys; sys.path.insert(0, {os.path.dirname(__file__)!r}); "  # noqa: PTH120
    code += "import test_triton_beam; test_triton_beam.compare('cpu', range(8))"
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=250)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_equals_torch_on_a_gpu():
    compare("cuda", range(40))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_encoding_on_a_gpu_uses_it(monkeypatch):
    tables = [torch.randn(16, 4, device="cuda") for _ in range(3)]
    x = torch.randn(50, 4, device="cuda")
    found = encode_vectors(x, tables, beam=4)
    monkeypatch.setattr(encoding, "find_spec", lambda *_: None)
    assert torch.equal(found, encode_vectors(x, tables, beam=4))
