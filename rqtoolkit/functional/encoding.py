"""Encode vectors with fixed codebooks: greedy and beam search at the speed of one matrix product.

Vectors meet the codewords of all levels in one product; what residuals would say beyond that
comes from a table of inner products between codewords (`CodebookProducts`). Codebooks whose table
does not fit the memory allowed are searched on residuals instead (`assign.beam_prefixes`).
"""

import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec

import numpy as np
import torch
from torch import Tensor

from rqtoolkit.functional.arguments import check_count
from rqtoolkit.functional.assign import (
    DEFAULT_MAX_BYTES,
    beam_codes,
    beam_prefixes,
    beam_widths,
    chunk_slices,
)
from rqtoolkit.functional.codebook_products import CodebookProducts, product_bytes
from rqtoolkit.functional.kernels import torch_beam

__all__ = [
    "encode_prefixes",
    "encode_vectors",
    "inner_products",
    "search_compiled",
    "search_tensors",
    "share_chunks",
]

CHUNK_BYTES = 4 * 2**20  # of inner products per thread: the last cache holds them
_ALLOCATED = 4  # bytes that a thread's allocator keeps per byte of its chunks, as measured
PRODUCTS_SHARE = 0.75  # of the memory allowed; the rest is for chunks
_KERNEL = "rqtoolkit.functional.kernels.cpu_beam"
_SMALL_WORK = 2**24  # candidates that plain torch scores in less time than a compiler takes


def encode_vectors(
    x: Tensor,
    tables: Sequence[Tensor],
    *,
    beam: int = 1,
    penalties: Sequence[Tensor] | None = None,
    products: CodebookProducts | None = None,
    max_bytes: int = DEFAULT_MAX_BYTES,
    threads: int | None = None,
) -> Tensor:
    """Encode vectors as stacks of codes of the smallest error that a beam search finds.

    Args:
        x: Vectors, shape (N, dim), float32.
        tables: One (K_d, dim) float32 tensor per level; sizes may differ.
        beam: Prefixes kept after each level but the last; 1 is the greedy rule.
        penalties: Added to the squared error where a codeword is used, one (K_d,) tensor per
            level.
        products: `CodebookProducts.of` these tables and penalties, or of more levels of which
            they are the first, where the caller has them.
        max_bytes: Bound on the memory taken beyond input and output.
        threads: On a CPU; as many as torch uses when None.

    Returns:
        Codes, shape (N, levels), int64. Of equal errors, the one that extends the better prefix
        wins, then the lower code.

    Raises:
        ConfigError: If beam or threads is not a whole number of at least 1.
    """
    check_count("encode_vectors", "beam", beam)
    if torch.compiler.is_compiling():  # a graph has no place for kernels that others compiled
        return beam_codes(x, tables, beam, penalties=penalties, max_bytes=max_bytes)
    widths = beam_widths(_sizes(tables), beam)
    widths[-1:] = [1]
    return _encode(x, tables, widths, penalties, products, max_bytes, threads)[:, 0]


def encode_prefixes(
    x: Tensor,
    tables: Sequence[Tensor],
    *,
    beam: int = 1,
    penalties: Sequence[Tensor] | None = None,
    products: CodebookProducts | None = None,
    max_bytes: int = DEFAULT_MAX_BYTES,
    threads: int | None = None,
) -> Tensor:
    """Encode vectors as all the stacks of codes that a beam search ends with.

    Args:
        x: As for `encode_vectors`, and so are the others.

    Returns:
        Codes, shape (N, prefixes, levels), int64, best first; as many prefixes as the beam, or as
        there are stacks.
    """
    widths = beam_widths(_sizes(tables), check_count("encode_prefixes", "beam", beam))
    return _encode(x, tables, widths, penalties, products, max_bytes, threads)


def _sizes(tables: Sequence[Tensor]) -> list[int]:
    return [len(table) for table in tables]


def _encode(
    x: Tensor,
    tables: Sequence[Tensor],
    widths: Sequence[int],
    penalties: Sequence[Tensor] | None,
    products: CodebookProducts | None,
    max_bytes: int,
    threads: int | None,
) -> Tensor:
    if not tables or product_bytes(_sizes(tables)) > PRODUCTS_SHARE * max_bytes:
        return beam_prefixes(x, tables, widths, penalties=penalties, max_bytes=max_bytes)
    if products is None:
        products = CodebookProducts.of(tables, penalties)
    free = max_bytes - products.bytes
    if x.device.type != "cpu" or _is_small(len(x), products, widths):
        return _encode_with_torch(x, products, widths, free)
    if threads is None:
        threads = torch.get_num_threads()
    return _encode_on_cpu(x, products, widths, free, check_count("encode", "threads", threads))


def _is_small(rows: int, products: CodebookProducts, widths: Sequence[int]) -> bool:
    """Whether it is not worth loading the compiled kernel, if that has not been done before."""
    work = rows * max(widths) * products.starts[len(widths)]
    return work < _SMALL_WORK and _KERNEL not in sys.modules


def inner_products(x: Tensor, products: CodebookProducts, levels: int) -> Tensor:
    """Inner products of vectors with the codewords of the first levels.

    Args:
        x: Vectors, shape (N, dim), float32.
        products: Of the codebooks.
        levels: How many of them.

    Returns:
        Shape (N, columns of these levels), float32, as scaled as the codewords of `products`.
    """
    x, codewords = products.normalized(x), products.codewords[: products.starts[levels]]
    if x.device.type == "cpu" and torch.backends.mkldnn.is_available():
        # oneDNN is twice as fast as MKL on AMD's processors. Of two vectors or more, each has the
        # same result whatever the others are.
        pair = x.expand(2, -1) if len(x) == 1 else x
        return torch.ops.mkldnn._linear_pointwise(pair, codewords, None, "none", [], "")[: len(x)]
    return x @ codewords.T


def _encode_with_torch(
    x: Tensor, products: CodebookProducts, widths: Sequence[int], free: int
) -> Tensor:
    columns = products.starts[len(widths)]
    # gains and scores, then keys, of one level
    bytes_per_row = 4 * columns + 32 * max(widths) * max(products.sizes)
    codes = x.new_empty(len(x), widths[-1], len(widths), dtype=torch.int64)
    for rows in chunk_slices(len(x), bytes_per_row, free):
        dots = inner_products(x[rows], products, len(widths))
        codes[rows] = search_tensors(dots, products, widths)
    return codes


def search_tensors(dots: Tensor, products: CodebookProducts, widths: Sequence[int]) -> Tensor:
    """Do what `torch_beam.beam_prefixes` does, on CUDA by Triton where it is installed."""
    if dots.device.type == "cuda" and find_spec("triton") is not None:
        from rqtoolkit.functional.kernels import triton_beam

        if triton_beam.block_size(products.sizes, widths) <= triton_beam.LARGEST_BLOCK:
            return triton_beam.beam_prefixes(dots, products, widths)
    return torch_beam.beam_prefixes(dots, products, widths)


def _encode_on_cpu(
    x: Tensor, products: CodebookProducts, widths: Sequence[int], free: int, threads: int
) -> Tensor:
    levels = len(widths)
    codes = torch.empty(len(x), widths[-1], levels, dtype=torch.int64)

    def search(rows: slice) -> None:
        search_compiled(inner_products(x[rows], products, levels), products, widths, codes[rows])

    bytes_per_row = 4 * (products.starts[levels] + x.shape[1])
    own = free // threads - products.codewords.nbytes  # which oneDNN reorders for each thread
    chunk_bytes = min(CHUNK_BYTES, max(own // _ALLOCATED, CHUNK_BYTES // 64))
    share_chunks(search, chunk_slices(len(x), bytes_per_row, chunk_bytes), threads)
    return codes


def search_compiled(
    dots: Tensor, products: CodebookProducts, widths: Sequence[int], out: Tensor
) -> None:
    """Do what `torch_beam.beam_prefixes` does with a compiled loop on this thread of the CPU.

    Args:
        dots: Inner products with the codewords of `len(widths)` levels, contiguous.
        products: Of the codebooks.
        widths: Prefixes to keep after each level.
        out: Codes, shape (N, widths[-1], levels), int64; written.
    """
    from rqtoolkit.functional.kernels import cpu_beam

    tensors = (products.offsets.numpy(), products.products.numpy())
    numbers = (products.starts, products.sizes, products.row_starts, products.row_lengths, widths)
    layout = tuple(np.array(values, dtype=np.int64) for values in numbers)
    cpu_beam.beam_prefixes(dots.view(-1).numpy(), *tensors, *layout, out.numpy())


def share_chunks(work: Callable[[slice], None], chunks: Iterator[slice], threads: int) -> None:
    """Do all chunks on `threads` threads, each of which computes alone.

    One thread multiplies matrices while another searches, with no pool of a library waiting busily
    for its next call on the core that another one needs.

    Args:
        work: Called with each chunk.
        chunks: Slices of rows.
        threads: At least 1.
    """
    own_threads = torch.get_num_threads()
    if threads == own_threads == 1:
        deque(map(work, chunks), maxlen=0)
        return
    chunks = iter(list(chunks))

    def drain() -> None:
        for chunk in chunks:  # a list's iterator may be shared between threads
            work(chunk)

    # In torch, a thread's number of threads is its own, and that of threads yet to be born.
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            for done in [pool.submit(drain) for _ in range(threads)]:
                done.result()
        finally:
            deque(chunks, maxlen=0)
            torch.set_num_threads(own_threads)
