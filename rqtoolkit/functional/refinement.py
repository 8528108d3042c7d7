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
from dataclasses import dataclass
from numbers import Integral

import numpy as np
import torch
from torch import Tensor

from rqtoolkit.errors import ConfigError
from rqtoolkit.functional.arguments import check_count, shown
from rqtoolkit.functional.assign import DEFAULT_MAX_BYTES, beam_widths, chunk_slices
from rqtoolkit.functional.codebook_products import CodebookProducts, product_bytes
from rqtoolkit.functional.encoding import (
    PRODUCTS_SHARE,
    encode_vectors,
    inner_products,
    search_compiled,
    search_tensors,
    share_chunks,
)
from rqtoolkit.functional.kernels.torch_refinement import ProductScores, ResidualScores, refine

__all__ = ["encode_refined", "refine_codes"]

_CHUNK_BYTES = 8 * 2**20  # of inner products per thread: the last cache holds them
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
        products: `CodebookProducts.of` these tables and penalties with `both_ways=True`, or of
            more levels of which they are the first, where the caller has them.
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
    effort = _Effort("refine_codes", rounds, perturbations, seed, threads)
    if not tables or effort.is_none:
        return codes.clone()
    if _products_fit(x, tables, max_bytes):
        return _refine_by_products(x, codes, tables, penalties, products, max_bytes, effort)
    return _refine_by_residuals(x, codes, tables, penalties, max_bytes, effort)


def encode_refined(
    x: Tensor,
    tables: Sequence[Tensor],
    *,
    beam: int,
    rounds: int,
    perturbations: int = 0,
    penalties: Sequence[Tensor] | None = None,
    seed: int = 0,
    products: CodebookProducts | None = None,
    max_bytes: int = DEFAULT_MAX_BYTES,
    threads: int | None = None,
) -> Tensor:
    """Encode by a beam and refine its codes, with one matrix product for both.

    Args:
        x: Vectors, shape (N, dim), float32.
        tables: One (K_d, dim) float32 tensor per level; sizes may differ.
        beam: Prefixes kept after each level but the last, as in `encode_vectors`.
        rounds: As in `refine_codes`, and so are the others; `products` need not be both ways where
            rounds and perturbations are 0.

    Returns:
        Codes, shape (N, levels), int64: those of `refine_codes` after `encode_vectors`.

    Raises:
        ConfigError: As `encode_vectors` and `refine_codes`.
    """
    check_count("encode_refined", "beam", beam)
    effort = _Effort("encode_refined", rounds, perturbations, seed, threads)
    if tables and not effort.is_none and _products_fit(x, tables, max_bytes):
        return _refine_by_products(x, beam, tables, penalties, products, max_bytes, effort)
    codes = encode_vectors(
        x,
        tables,
        beam=beam,
        penalties=penalties,
        products=products if effort.is_none else None,  # both ways they may exceed max_bytes
        max_bytes=max_bytes,
        threads=threads,
    )
    if not tables or effort.is_none:
        return codes
    return _refine_by_residuals(x, codes, tables, penalties, max_bytes, effort)


@dataclass(frozen=True)
class _Effort:
    where: str
    rounds: int
    perturbations: int
    seed: int
    threads: int | None

    def __post_init__(self) -> None:
        for name in ("rounds", "perturbations"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, Integral) or value < 0:
                raise ConfigError(
                    f"{self.where}: {name}={shown(value)} must be a whole number of at least 0."
                )
        if self.threads is not None:
            check_count(self.where, "threads", self.threads)

    @property
    def is_none(self) -> bool:
        return self.rounds == self.perturbations == 0


def _products_fit(x: Tensor, tables: Sequence[Tensor], max_bytes: int) -> bool:
    needed = product_bytes([len(table) for table in tables], both_ways=True)
    return x.dtype == torch.float32 and needed <= PRODUCTS_SHARE * max_bytes


@torch.compiler.disable
def _refine_by_products(
    x: Tensor,
    start: Tensor | int,
    tables: Sequence[Tensor],
    penalties: Sequence[Tensor] | None,
    products: CodebookProducts | None,
    max_bytes: int,
    effort: _Effort,
) -> Tensor:
    """Refine given codes, or those that a beam of a given width finds."""
    made = products or CodebookProducts.of(tables, penalties, both_ways=True)
    sizes = made.sizes[: len(tables)]
    columns = made.starts[len(sizes)]
    widths = beam_widths(sizes, start if isinstance(start, int) else 1)
    widths[-1] = 1
    passes = max(widths) + effort.rounds + effort.perturbations
    compiled = x.device.type == "cpu" and len(x) * columns * passes >= _SMALL_WORK
    refined = torch.empty(len(x), len(sizes), dtype=torch.int64, device=x.device)

    def work(rows: slice) -> None:
        dots = inner_products(x[rows], made, len(sizes))
        before = refined[rows].clone()
        if isinstance(start, Tensor):
            before = start[rows]
        elif compiled:
            search_compiled(dots, made, widths, before[:, None])
        else:
            before = search_tensors(dots, made, widths)[:, 0]
        draws = _draws(x[rows], effort)
        if compiled:
            refined[rows] = before
            _refine_compiled(dots, made, draws, effort.rounds, refined[rows])
        else:
            scores = ProductScores(made)
            state = scores.start(dots, before)
            refined[rows] = refine(
                state, before, draws, scores=scores, sizes=sizes, rounds=effort.rounds
            )
        _take_back_worse(x[rows], before, refined[rows], tables, penalties)

    free = max_bytes - made.bytes
    if compiled:
        threads = effort.threads or torch.get_num_threads()
        bytes_per_row = 4 * (columns + x.shape[1])
        taken = bytes_per_row + _bytes_per_row(x, effort)
        limit = min(_CHUNK_BYTES, free // threads * bytes_per_row // taken)
        share_chunks(work, chunk_slices(len(x), bytes_per_row, limit), threads)
    else:
        bytes_per_row = 24 * columns + 32 * max(widths) * max(sizes) + _bytes_per_row(x, effort)
        for rows in chunk_slices(len(x), bytes_per_row, free):
            work(rows)
    return refined


def _refine_compiled(
    dots: Tensor, products: CodebookProducts, draws: Tensor, rounds: int, codes: Tensor
) -> None:
    from rqtoolkit.functional.kernels import cpu_refinement

    numbers = (products.starts, products.sizes, products.row_starts, products.row_lengths)
    layout = tuple(np.array(values, dtype=np.int64) for values in numbers)
    tensors = (products.offsets.numpy(), products.products.numpy())
    cpu_refinement.refine(dots.numpy(), *tensors, *layout, draws.numpy(), rounds, codes.numpy())


@torch.compiler.disable
def _refine_by_residuals(
    x: Tensor,
    codes: Tensor,
    tables: Sequence[Tensor],
    penalties: Sequence[Tensor] | None,
    max_bytes: int,
    effort: _Effort,
) -> Tensor:
    scores = ResidualScores(tables, penalties)
    sizes = [len(table) for table in tables]
    refined = torch.empty_like(codes)
    bytes_per_row = _bytes_per_row(x, effort) + 2 * x.itemsize * max(sizes)
    for rows in chunk_slices(len(x), bytes_per_row, max_bytes):
        state, draws = scores.start(x[rows], codes[rows]), _draws(x[rows], effort)
        refined[rows] = refine(
            state, codes[rows], draws, scores=scores, sizes=sizes, rounds=effort.rounds
        )
        _take_back_worse(x[rows], codes[rows], refined[rows], tables, penalties)
    return refined


def _bytes_per_row(x: Tensor, effort: _Effort) -> int:
    """Return what draws, and residuals in float64, take of one vector."""
    return 8 * (4 * x.shape[1] + 4 * effort.perturbations)


def _mixed(z: Tensor) -> Tensor:
    """Return splitmix64's mixing of whole numbers: any bit of the input changes all others.

    References:
        Steele, Lea & Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
    """
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15), (31, 1)):
        unsigned = (z >> shift) & ((1 << (64 - shift)) - 1)
        z = (z ^ unsigned) * factor
    return z


def _draws(x: Tensor, effort: _Effort) -> Tensor:
    """Whole numbers in [0, 2^31) that follow from the vector and the seed, (N, perturbations)."""
    if not effort.perturbations:
        return torch.empty(len(x), 0, dtype=torch.int64, device=x.device)
    places = torch.arange(x.shape[1], device=x.device)
    bits = x.float().view(torch.int32).long()
    keys = (bits * (_mixed(places * _GOLDEN) | 1)).sum(dim=1)
    seed = (effort.seed + 2**63) % 2**64 - 2**63  # as a signed number
    steps = torch.arange(1, effort.perturbations + 1, device=x.device) * _GOLDEN
    steps += _mixed(torch.tensor(seed, device=x.device))
    return (_mixed(keys[:, None] + steps) >> 33) & (2**31 - 1)


def _take_back_worse(
    x: Tensor,
    before: Tensor,
    after: Tensor,
    tables: Sequence[Tensor],
    penalties: Sequence[Tensor] | None,
) -> None:
    """Undo, in place, what is not better in float64: scores round, errors of vectors never grow."""
    changed = (before != after).any(dim=1).nonzero()[:, 0]
    if len(changed) == 0:
        return
    old = before.index_select(0, changed)
    codes = torch.cat([old, after.index_select(0, changed)])
    residuals = x.index_select(0, changed).double().repeat(2, 1)
    spent = residuals.new_zeros(len(codes))
    for level, table in enumerate(tables):
        residuals -= table.index_select(0, codes[:, level])
        if penalties is not None:
            spent += penalties[level].index_select(0, codes[:, level])
    errors_before, errors_after = (residuals.square().sum(dim=1) + spent).chunk(2)
    worse = ~(errors_after < errors_before)
    after[changed[worse]] = old[worse]
