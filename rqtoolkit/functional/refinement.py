"""Refine codes: each level's code anew given the others, with perturbations out of local minima.

A beam fixes early codes before it knows the later ones. Iterated conditional modes (ICM) walk over
the levels and give each the best code given all others, until nothing changes; an iterated local
search then changes one code by chance, lets the others answer, and keeps what is better.

References:
    Babenko & Lempitsky, "Additive Quantization for Extreme Vector Compression", CVPR 2014,
    section 3 (ICM). https://doi.org/10.1109/CVPR.2014.124
    Martinez et al., "Revisiting Additive Quantization", ECCV 2016, section 3.2 (iterated local
    search). https://doi.org/10.1007/978-3-319-46475-6_9
"""

from collections.abc import Sequence
from numbers import Integral

import numpy as np
import torch
from torch import Tensor

from rqtoolkit.errors import ConfigError
from rqtoolkit.functional.arguments import check_count
from rqtoolkit.functional.assign import DEFAULT_MAX_BYTES, chunk_slices
from rqtoolkit.functional.codebook_products import CodebookProducts, product_bytes
from rqtoolkit.functional.encoding import (
    CHUNK_BYTES,
    PRODUCTS_SHARE,
    inner_products,
    share_chunks,
)
from rqtoolkit.functional.kernels.torch_refinement import ProductScores, ResidualScores, refine

__all__ = ["refine_codes"]

_SMALL_WORK = 2**20  # scores that plain torch updates in less time than a compiler takes
_GOLDEN = -0x61C8864680B583EB  # 2^64 / golden ratio, as a signed number: splitmix64's step


def refine_codes(
    x: Tensor,
    codes: Tensor,
    tables: Sequence[Tensor],
    *,
    rounds: int,
    perturbations: int = 0,
    penalties: Sequence[Tensor] | None = None,
    seed: int = 0,
    products: CodebookProducts | None = None,
    max_bytes: int = DEFAULT_MAX_BYTES,
    threads: int | None = None,
) -> Tensor:
    """Lower the squared error (plus penalties) of given codes; never raise that of any vector.

    A vector's result follows from the vector, its codes and the seed alone: neither the other
    vectors nor its place among them, chunks or threads change it.

    Args:
        x: Vectors, shape (N, dim), float32 or float64, finite.
        codes: Shape (N, levels), int64; not changed.
        tables: One (K_d, dim) tensor per level, of the dtype of x; sizes may differ.
        rounds: Sweeps over the levels at most, first and (at least one) after each perturbation;
            a vector whose codes no longer change is done. 2 to 4 bring nearly all there is.
        perturbations: Codes changed by chance, one at a time, each change kept with what follows
            from it where that is better.
        penalties: Added to the squared error where a codeword is used, one (K_d,) tensor per
            level; none when None.
        seed: Of the perturbations.
        products: `CodebookProducts.of` these tables and penalties with `both_ways=True`, where the
            caller has them.
        max_bytes: Bound on the memory taken beyond input and output. Where the inner products
            between codewords do not fit, residuals take their place.
        threads: On a CPU; as many as torch uses when None.

    Returns:
        Codes, shape (N, levels), int64. Of equally good codes a level keeps its own, else takes
        the lowest.

    Raises:
        ConfigError: If rounds or perturbations is not a whole number of at least 0, or threads not
            one of at least 1.
    """
    _check_rounds("rounds", rounds)
    _check_rounds("perturbations", perturbations)
    if threads is None:
        threads = torch.get_num_threads()
    check_count("refine_codes", "threads", threads)
    refined = codes.clone()
    if not len(tables) or not len(x) or not rounds + perturbations:
        return refined

    sizes = [len(table) for table in tables]
    bytes_per_row = 8 * (4 * x.shape[1] + 4 * perturbations + len(sizes))
    fits = product_bytes(sizes, both_ways=True) <= PRODUCTS_SHARE * max_bytes
    if x.dtype == torch.float32 and fits:
        if products is None:
            products = CodebookProducts.of(tables, penalties, both_ways=True)
        free = max_bytes - products.bytes
        columns = products.starts[-1]
        small = len(x) * columns * (1 + rounds + perturbations) < _SMALL_WORK
        compiled = x.device.type == "cpu" and not small
        bytes_per_row += 4 * columns * (1 if compiled else 6)
    else:
        free, compiled = max_bytes, False
        bytes_per_row += 2 * x.itemsize * max(sizes)

    def work(rows: slice) -> None:
        draws = _draws(x[rows], perturbations, seed)
        if compiled and products is not None:
            _refine_compiled(x[rows], refined[rows], draws, products, rounds)
        else:
            scores, state = _plain_scores(x[rows], codes[rows], tables, penalties, products)
            refined[rows] = refine(
                state, codes[rows], draws, scores=scores, sizes=sizes, rounds=rounds
            )
        _take_back_worse(x[rows], codes[rows], refined[rows], tables, penalties)

    if compiled:
        chunks = chunk_slices(len(x), bytes_per_row, min(CHUNK_BYTES, free // threads))
        share_chunks(work, chunks, threads)
    else:
        for rows in chunk_slices(len(x), bytes_per_row, free):
            work(rows)
    return refined


def _check_rounds(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 0:
        raise ConfigError(f"refine_codes: {name}={value!r} must be a whole number of at least 0.")


def _mixed(z: Tensor) -> Tensor:
    """Return splitmix64's mixing of whole numbers: any bit of the input changes all others.

    References:
        Steele, Lea & Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
    """
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15), (31, 1)):
        unsigned = (z >> shift) & ((1 << (64 - shift)) - 1)
        z = (z ^ unsigned) * factor
    return z


def _draws(x: Tensor, perturbations: int, seed: int) -> Tensor:
    """Whole numbers in [0, 2^31) that follow from the vector and the seed, (N, perturbations)."""
    if not perturbations:
        return torch.empty(len(x), 0, dtype=torch.int64, device=x.device)
    places = torch.arange(x.shape[1], device=x.device)
    bits = x.float().view(torch.int32).long()
    keys = (bits * (_mixed(places * _GOLDEN) | 1)).sum(dim=1)
    start = np.int64(np.uint64(seed % 2**64)).item()
    steps = (
        _mixed(torch.tensor(start, device=x.device))
        + torch.arange(1, perturbations + 1, device=x.device) * _GOLDEN
    )
    return (_mixed(keys[:, None] + steps) >> 33) & (2**31 - 1)


def _refine_compiled(
    x: Tensor, codes: Tensor, draws: Tensor, products: CodebookProducts, rounds: int
) -> None:
    from rqtoolkit.functional.kernels import cpu_refinement

    dots = inner_products(x, products, len(products.sizes))
    numbers = (products.starts, products.sizes, products.row_starts, products.row_lengths)
    layout = tuple(np.array(values, dtype=np.int64) for values in numbers)
    tensors = (products.offsets.numpy(), products.products.numpy())
    cpu_refinement.refine(dots.numpy(), *tensors, *layout, draws.numpy(), rounds, codes.numpy())


def _plain_scores(
    x: Tensor,
    codes: Tensor,
    tables: Sequence[Tensor],
    penalties: Sequence[Tensor] | None,
    products: CodebookProducts | None,
) -> tuple[ProductScores | ResidualScores, Tensor]:
    if products is None:
        by_residuals = ResidualScores(tables, penalties)
        return by_residuals, by_residuals.start(x, codes)
    by_products = ProductScores(products)
    return by_products, by_products.start(inner_products(x, products, len(tables)), codes)


def _take_back_worse(
    x: Tensor,
    before: Tensor,
    after: Tensor,
    tables: Sequence[Tensor],
    penalties: Sequence[Tensor] | None,
) -> None:
    """Undo, in place, what is not better in float64: scores round, errors of vectors never grow."""
    changed = (before != after).any(dim=1).nonzero()[:, 0]
    x = x[changed].double()
    old, new = before[changed], after[changed]
    worse = ~(_errors(x, new, tables, penalties) < _errors(x, old, tables, penalties))
    after[changed[worse]] = old[worse]


def _errors(
    x: Tensor, codes: Tensor, tables: Sequence[Tensor], penalties: Sequence[Tensor] | None
) -> Tensor:
    spent = x.new_zeros(len(x))
    for level, table in enumerate(tables):
        x = x - table[codes[:, level]]
        if penalties is not None:
            spent += penalties[level][codes[:, level]]
    return x.square().sum(dim=1) + spent
