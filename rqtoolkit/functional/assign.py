"""Assign vectors to codewords: nearest, greedy over depth, beam over depth, soft.

A level's table is a plain tensor (K, dim); a list of tables, one per level, is a residual
quantizer. Every function walks its input in chunks, so that no more than `max_bytes` of scores
exist at a time.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "DEFAULT_MAX_BYTES",
    "beam_codes",
    "beam_prefixes",
    "beam_widths",
    "chunk_slices",
    "draw_codes",
    "greedy_codes",
    "half_distances",
    "level_tables",
    "nearest_codes",
    "smallest_first",
    "soft_assignment",
    "sum_codewords",
]

DEFAULT_MAX_BYTES = 64 * 2**20
_BAG_BYTES = 2 * 2**20  # of sums at a time: they stay in the caches until they are copied
# Of scores at a time on a CPU: they are read where they were written, in the caches. With fewer
# rows the table, which oneDNN rearranges for each product, would cost too much.
_BLOCK_BYTES, _BLOCK_ROWS = 4 * 2**20, 256
_ROW_PARTS = 32


def chunk_slices(rows: int, bytes_per_row: int, max_bytes: int) -> Iterator[slice]:
    """Yield slices that cover `rows`, each of at most `max_bytes` (and at least one row).

    One slice where a program for any number of rows is being exported.
    """
    step = max(1, max_bytes // max(1, bytes_per_row))
    if _is_exporting() or 0 < rows <= step:
        yield slice(0, rows)
        return
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def _is_exporting() -> bool:
    return torch.compiler.is_compiling() and not torch.compiler.is_dynamo_compiling()


def level_tables(tables: Tensor, codebook_sizes: Sequence[int], depth: int) -> list[Tensor]:
    """Return the table (K_d, dim) of each of the first `depth` levels, without padding.

    Args:
        tables: Shape (T, K, dim); T is 1 for a codebook shared over depth.
        codebook_sizes: Entries in use of each of the T tables.
        depth: Levels.
    """
    if len(tables) == 1:
        return [tables[0, : codebook_sizes[0]]] * depth
    return [tables[level, : codebook_sizes[level]] for level in range(depth)]


def half_distances(x: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """Return ½‖x − e‖² − ½‖x‖² (N, K), and ½‖x‖² (N, 1), both about the table's mean.

    Distances do not change when both sides move; moving the table's mean to the origin keeps the
    expanded square from cancelling where data lie far from it.

    Args:
        x: Vectors, shape (N, dim).
        table: Codewords, shape (K, dim), same dtype.
    """
    center = table.mean(dim=0)
    x, table = x - center, table - center
    scores = torch.addmm(table.square().sum(dim=1).mul_(0.5), x, table.T, alpha=-1)
    return scores, x.square().sum(dim=1, keepdim=True).mul_(0.5)


def nearest_codes(x: Tensor, table: Tensor, *, max_bytes: int = DEFAULT_MAX_BYTES) -> Tensor:
    """Index of the nearest codeword of each vector.

    Args:
        x: Vectors, shape (N, dim).
        table: Codewords, shape (K, dim), same dtype.
        max_bytes: Bound on the chunk of scores held at once.

    Returns:
        Codes, shape (N,), int64. Equal distances go to the lowest index.
    """
    if _has_fast_products(x):
        return _nearest_on_cpu(x.detach(), table.detach(), max_bytes)
    codes = torch.empty(x.shape[0], dtype=torch.int64, device=x.device)
    for rows in chunk_slices(x.shape[0], table.shape[0] * x.element_size(), max_bytes):
        codes[rows] = half_distances(x[rows], table)[0].argmin(dim=1)
    return codes


def _has_fast_products(x: Tensor) -> bool:
    """Whether oneDNN serves, twice as fast as MKL on AMD's processors; not while tracing."""
    plain = x.device.type == "cpu" and x.dtype == torch.float32
    # In this order: a compiler that traces must not meet the last call.
    return plain and not torch.compiler.is_compiling() and torch.backends.mkldnn.is_available()


def _nearest_on_cpu(x: Tensor, table: Tensor, max_bytes: int) -> Tensor:
    """Do what `nearest_codes` does, with the scores of `half_distances` block by block."""
    codes = torch.empty(x.shape[0], dtype=torch.int64)
    center = table.mean(dim=0)
    opposite = center - table  # so that the product with x comes with its sign
    norms = opposite.square().sum(dim=1).mul_(0.5)
    row_bytes = table.shape[0] * x.element_size()
    block = min(max_bytes, max(_BLOCK_BYTES, _BLOCK_ROWS * row_bytes))
    for rows in chunk_slices(x.shape[0], row_bytes, block):
        part = x[rows] - center
        # Of two vectors or more, each has the same result whatever the others are.
        part = part.expand(2, -1) if len(part) == 1 else part
        scores = torch.ops.mkldnn._linear_pointwise(part, opposite, norms, "none", [], "")
        codes[rows] = _first_smallest(scores)[: rows.stop - rows.start]
    return codes


def _first_smallest(scores: Tensor) -> Tensor:
    """Index of the smallest of each row, the first of equal ones, shape (N,).

    Minima are found many times faster than their places, so only one part of a row is searched.
    """
    if scores.shape[1] % _ROW_PARTS:
        return scores.argmin(dim=1)
    parts = scores.unflatten(1, (_ROW_PARTS, -1))
    part = parts.amin(dim=2).argmin(dim=1)
    place = parts[torch.arange(len(parts)), part].argmin(dim=1)
    return part * parts.shape[2] + place


def draw_codes(
    x: Tensor,
    table: Tensor,
    tau: float | Tensor,
    generator: torch.Generator | None = None,
    *,
    max_bytes: int = DEFAULT_MAX_BYTES,
) -> Tensor:
    """Index of a codeword for each vector, drawn with probability softmax(−‖x − e‖² / tau).

    Args:
        x: Vectors, shape (N, dim).
        table: Codewords, shape (K, dim), same dtype.
        tau: Temperature in the units of a squared distance, above 0.
        generator: Source of the draws, on the device of x.
        max_bytes: Bound on the chunk of scores held at once.

    Returns:
        Codes, shape (N,), int64.

    References:
        Maddison, Tarlow & Minka, "A* Sampling", NeurIPS 2014 (the largest of logits with Gumbel
        noise is a draw from their softmax). https://arxiv.org/abs/1411.0030
    """
    codes = torch.empty(x.shape[0], dtype=torch.int64, device=x.device)
    for rows in chunk_slices(x.shape[0], 2 * table.shape[0] * x.element_size(), max_bytes):
        scores, _ = half_distances(x[rows], table)
        uniform = torch.rand(scores.shape, generator=generator, dtype=x.dtype, device=x.device)
        noise = uniform.clamp_min_(torch.finfo(x.dtype).tiny).log_().neg_().log_()  # −Gumbel
        codes[rows] = noise.add_(scores * (2 / tau)).argmin(dim=1)
    return codes


def greedy_codes(
    x: Tensor, tables: Sequence[Tensor], *, max_bytes: int = DEFAULT_MAX_BYTES
) -> Tensor:
    """Quantize what is left over, level after level (the paper's Eq. 2).

    Args:
        x: Vectors, shape (N, dim).
        tables: One (K_d, dim) tensor per level; sizes may differ.
        max_bytes: Bound on the chunk of scores held at once.

    Returns:
        Codes, shape (N, depth), int64.

    References:
        Lee et al., "Autoregressive Image Generation using Residual Quantization", CVPR 2022,
        section 3.1. https://arxiv.org/abs/2203.01941
    """
    codes = torch.empty(x.shape[0], len(tables), dtype=torch.int64, device=x.device)
    residual = x
    for level, table in enumerate(tables):
        codes[:, level] = nearest_codes(residual, table, max_bytes=max_bytes)
        if level + 1 < len(tables):
            residual = residual - table[codes[:, level]]
    return codes


def beam_codes(
    x: Tensor,
    tables: Sequence[Tensor],
    beam: int,
    *,
    penalties: Sequence[Tensor] | None = None,
    max_bytes: int = DEFAULT_MAX_BYTES,
) -> Tensor:
    """Quantize with the `beam` best prefixes kept at each level.

    Prefixes are ranked by the error that they leave, so at full depth the result is the best of
    the complete stacks reached. `beam=1` is `greedy_codes`. Costs `beam` times the arithmetic of
    the greedy rule from the second level on; `encoding.encode_vectors` has what is faster.

    Args:
        x: Vectors, shape (N, dim).
        tables: One (K_d, dim) tensor per level.
        beam: Prefixes kept per vector, at least 1.
        penalties: Added to the squared error where a codeword is used, one (K_d,) tensor per
            level; none when None.
        max_bytes: Bound on the chunk of scores held at once.

    Returns:
        Codes, shape (N, depth), int64. Of equal errors, the one that extends the better prefix
        wins, then the lower code.

    References:
        Babenko & Lempitsky, "Additive Quantization for Extreme Vector Compression", CVPR 2014,
        section 3. https://doi.org/10.1109/CVPR.2014.124
    """
    if beam == 1 and penalties is None:
        return greedy_codes(x, tables, max_bytes=max_bytes)
    widths = beam_widths([len(table) for table in tables], beam)[:-1] + [1] * bool(tables)
    return beam_prefixes(x, tables, widths, penalties=penalties, max_bytes=max_bytes)[:, 0]


def beam_widths(sizes: Sequence[int], beam: int) -> list[int]:
    """Prefixes that a beam keeps after each level: at most as many as there are."""
    return [min(beam, math.prod(sizes[: level + 1])) for level in range(len(sizes))]


def beam_prefixes(
    x: Tensor,
    tables: Sequence[Tensor],
    widths: Sequence[int],
    *,
    penalties: Sequence[Tensor] | None = None,
    max_bytes: int = DEFAULT_MAX_BYTES,
) -> Tensor:
    """Prefixes that a beam of the given width at each level ends with.

    Args:
        x: Vectors, shape (N, dim).
        tables: One (K_d, dim) tensor per level.
        widths: Prefixes kept after each level, at most as many as there are (`beam_widths`).
        penalties: As for `beam_codes`.
        max_bytes: Bound on the chunk of scores held at once.

    Returns:
        Codes, shape (N, widths[-1], depth), int64, best first.
    """
    if not tables:
        return torch.empty(x.shape[0], 1, 0, dtype=torch.int64, device=x.device)
    largest = max(table.shape[0] for table in tables)
    # a score, the key that it is sorted by and a temporary of that; residuals before and after
    bytes_per_candidate = x.element_size() + 2 * torch.int64.itemsize
    bytes_per_prefix = largest * bytes_per_candidate + 2 * x.shape[1] * x.element_size()
    codes = torch.empty(x.shape[0], widths[-1], len(tables), dtype=torch.int64, device=x.device)
    for rows in chunk_slices(x.shape[0], max(widths) * bytes_per_prefix, max_bytes):
        codes[rows] = _beam_chunk(x[rows], tables, widths, penalties)
    return codes


def _beam_chunk(
    x: Tensor,
    tables: Sequence[Tensor],
    widths: Sequence[int],
    penalties: Sequence[Tensor] | None,
) -> Tensor:
    residuals = x[:, None]
    codes = torch.empty(x.shape[0], 1, 0, dtype=torch.int64, device=x.device)
    spent = x.new_zeros(x.shape[0], 1)  # half the penalties of each prefix
    for level, table in enumerate(tables):
        scores, norms = half_distances(residuals.flatten(0, 1), table)
        errors = (scores + norms).unflatten(0, residuals.shape[:2])
        if penalties is not None:
            costs = spent[..., None] + penalties[level].to(x.dtype) / 2
            errors = errors + costs
        kept = smallest_first(errors.flatten(1), widths[level])
        parents, chosen = kept // table.shape[0], kept % table.shape[0]
        parent_codes = codes.gather(1, parents[..., None].expand(-1, -1, codes.shape[2]))
        codes = torch.cat([parent_codes, chosen[..., None]], dim=2)
        parent_residuals = residuals.gather(1, parents[..., None].expand(-1, -1, x.shape[1]))
        residuals = parent_residuals - table[chosen]
        if penalties is not None:
            spent = costs.flatten(1).gather(1, kept)
    return codes


def smallest_first(values: Tensor, count: int) -> Tensor:
    """Indices of the smallest values of each row, in order; equal ones by index.

    Args:
        values: Shape (N, n), float32 or float64.
        count: How many, at most n.

    Returns:
        Indices, shape (N, count), int64.
    """
    if _is_exporting():  # ONNX has no other, which puts equal ones in order, as its runtime does
        return values.topk(count, dim=1, largest=False).indices
    if values.dtype != torch.float32:
        return values.sort(dim=1, stable=True).indices[:, :count]
    # The bits of floats, all but the sign flipped where it is set, order as the floats do. With
    # the index below them no two keys are equal. Adding 0 turns -0.0 into 0.0.
    bits = (values + 0.0).view(torch.int32)
    keys = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).long() << 32
    keys |= torch.arange(values.shape[1], device=values.device)
    return keys.topk(count, dim=1, largest=False).values & 0xFFFFFFFF


def soft_assignment(x: Tensor, table: Tensor, tau: float) -> Tensor:
    """Probabilities softmax(−‖x − e‖² / tau) over the codewords of one level.

    Args:
        x: Vectors, shape (N, dim).
        table: Codewords, shape (K, dim).
        tau: Temperature in the units of a squared distance, above 0.

    Returns:
        Probabilities, shape (N, K). Not chunked: the result itself has that size.

    References:
        Lee et al., CVPR 2022, section 3.2.3 (soft labels).
    """
    scores, _ = half_distances(x, table)
    return scores.mul_(-2.0 / tau).softmax(dim=1)


def sum_codewords(codes: Tensor, tables: Sequence[Tensor]) -> Tensor:
    """Sum of the codewords that a stack of codes names: the decoder of any prefix.

    Args:
        codes: Shape (N, d) with d at most the number of tables.
        tables: One (K_d, dim) tensor per level.

    Returns:
        Vectors, shape (N, dim).
    """
    if not torch.compiler.is_compiling() and _pays_to_join(codes, tables):
        return _sum_in_bags(codes, torch.cat(list(tables[: codes.shape[1]])), tables)
    total = torch.zeros(
        codes.shape[0], tables[0].shape[1], dtype=tables[0].dtype, device=codes.device
    )
    for level in range(codes.shape[1]):
        total += tables[level][codes[:, level]]
    return total


def _pays_to_join(codes: Tensor, tables: Sequence[Tensor]) -> bool:
    """Whether to copy the tables into one: for more vectors than codewords, where it was timed."""
    if codes.device.type != "cpu" or tables[0].dtype != torch.float32:
        return False
    return len(codes) > sum(len(table) for table in tables[: codes.shape[1]]) > 0


def _sum_in_bags(codes: Tensor, joined: Tensor, tables: Sequence[Tensor]) -> Tensor:
    """Sum rows of the joined tables, which adds in the order of the levels as the loop does."""
    sizes = [len(table) for table in tables[: codes.shape[1] - 1]]
    firsts = torch.tensor([0, *sizes]).cumsum(0)
    step = max(1, _BAG_BYTES // joined[0].nbytes)
    if len(codes) <= step:
        return F.embedding_bag(codes + firsts, joined, mode="sum")
    # What numpy allocates comes in huge pages where the system has them: a third of the time.
    total = torch.from_numpy(np.empty((len(codes), joined.shape[1]), dtype=np.float32))
    for start in range(0, len(codes), step):
        rows = slice(start, start + step)
        total[rows] = F.embedding_bag(codes[rows] + firsts, joined, mode="sum")
    return total
