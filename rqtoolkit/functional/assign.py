"""Assign vectors to codewords: nearest, greedy over depth, beam over depth, soft.

A level's table is a plain tensor (K, dim); a list of tables, one per level, is a residual
quantizer. Every function walks its input in chunks, so that no more than `max_bytes` of scores
exist at a time.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

__all__ = [
    "DEFAULT_MAX_BYTES",
    "beam_codes",
    "chunk_slices",
    "greedy_codes",
    "level_tables",
    "nearest_codes",
    "soft_assignment",
    "sum_codewords",
]

DEFAULT_MAX_BYTES = 64 * 2**20


def chunk_slices(rows: int, bytes_per_row: int, max_bytes: int) -> Iterator[slice]:
    """Yield slices that cover `rows`, each of at most `max_bytes` (and at least one row)."""
    step = max(1, max_bytes // max(1, bytes_per_row))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


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


def _half_distances(x: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """Return ½‖x − e‖² − ½‖x‖² (N, K), and ½‖x‖² (N, 1), both about the table's mean.

    Distances do not change when both sides move; moving the table's mean to the origin keeps the
    expanded square from cancelling where data lie far from it.
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
    codes = torch.empty(x.shape[0], dtype=torch.int64, device=x.device)
    for rows in chunk_slices(x.shape[0], table.shape[0] * x.element_size(), max_bytes):
        codes[rows] = _half_distances(x[rows], table)[0].argmin(dim=1)
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
    x: Tensor, tables: Sequence[Tensor], beam: int, *, max_bytes: int = DEFAULT_MAX_BYTES
) -> Tensor:
    """Quantize with the `beam` best prefixes kept at each level.

    Prefixes are ranked by the error that they leave, so at full depth the result is the best of
    the complete stacks reached. `beam=1` is `greedy_codes`. Costs `beam` times the arithmetic of
    the greedy rule from the second level on.

    Args:
        x: Vectors, shape (N, dim).
        tables: One (K_d, dim) tensor per level.
        beam: Prefixes kept per vector, at least 1.
        max_bytes: Bound on the chunk of scores held at once.

    Returns:
        Codes, shape (N, depth), int64.

    References:
        Babenko & Lempitsky, "Additive Quantization for Extreme Vector Compression", CVPR 2014,
        section 3. https://doi.org/10.1109/CVPR.2014.124
    """
    if beam == 1:
        return greedy_codes(x, tables, max_bytes=max_bytes)
    largest = max(table.shape[0] for table in tables)
    bytes_per_row = beam * (largest + 2 * x.shape[1]) * x.element_size()
    codes = torch.empty(x.shape[0], len(tables), dtype=torch.int64, device=x.device)
    for rows in chunk_slices(x.shape[0], bytes_per_row, max_bytes):
        codes[rows] = _beam_chunk(x[rows], tables, beam)
    return codes


def _beam_chunk(x: Tensor, tables: Sequence[Tensor], beam: int) -> Tensor:
    residuals = x[:, None]
    codes = torch.empty(x.shape[0], 1, 0, dtype=torch.int64, device=x.device)
    for table in tables:
        scores, norms = _half_distances(residuals.flatten(0, 1), table)
        errors = (scores + norms).unflatten(0, residuals.shape[:2]).flatten(1)
        kept = errors.topk(min(beam, errors.shape[1]), dim=1, largest=False).indices
        parents, chosen = kept // table.shape[0], kept % table.shape[0]
        parent_codes = codes.gather(1, parents[..., None].expand(-1, -1, codes.shape[2]))
        codes = torch.cat([parent_codes, chosen[..., None]], dim=2)
        parent_residuals = residuals.gather(1, parents[..., None].expand(-1, -1, x.shape[1]))
        residuals = parent_residuals - table[chosen]
    return codes[:, 0] if len(tables) else codes.squeeze(1)


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
    scores, _ = _half_distances(x, table)
    return scores.mul_(-2.0 / tau).softmax(dim=1)


def sum_codewords(codes: Tensor, tables: Sequence[Tensor]) -> Tensor:
    """Sum of the codewords that a stack of codes names: the decoder of any prefix.

    Args:
        codes: Shape (N, d) with d at most the number of tables.
        tables: One (K_d, dim) tensor per level.

    Returns:
        Vectors, shape (N, dim).
    """
    total = torch.zeros(
        codes.shape[0], tables[0].shape[1], dtype=tables[0].dtype, device=codes.device
    )
    for level in range(codes.shape[1]):
        total += tables[level][codes[:, level]]
    return total
