"""Train all codebooks together: encode a batch, solve joint least squares, forget a little.

The sums of the normal equations go on from batch to batch, what is old counting less and less: a
pass over the data then moves the tables as far as several rounds that each encode all vectors.
"""

from collections.abc import Sequence
from time import monotonic

import torch
from torch import Tensor

from rqtoolkit.functional.assign import DEFAULT_MAX_BYTES, chunk_slices, level_tables, sum_codewords
from rqtoolkit.functional.encoding import encode_prefixes, encode_vectors
from rqtoolkit.functional.least_squares import NormalEquations
from rqtoolkit.functional.progress import Progress, report

__all__ = ["joint_pass", "mean_error", "refine_tables", "scaled_levels"]

_BATCHES = 8  # steps of least squares in a pass
_LEAST_ROWS_PER_CODE = 8  # in a batch
_FORGET = 0.125
_STRENGTH = 3.0
_EVIDENCE = 64.0  # vectors per codeword
_STACK_WEIGHTS = (3.0, 1.0, 1.0, 1.0, 1.0)
_STRONGER = 16.0  # after a round that did not help
_SCALINGS = 2
_LEAST_GAIN = 5e-4  # relative, below which training ends


def joint_pass(
    x: Tensor,
    tables: Tensor,
    codebook_sizes: Sequence[int],
    depth: int,
    equations: NormalEquations,
    generator: torch.Generator,
    *,
    beam: int,
    strength: float = _STRENGTH,
    prefix_weight: float = 0.0,
) -> Tensor:
    """Go once through x in batches, each of which moves the tables.

    Not only a vector's best stack of codes pulls on its codewords, but the others that the beam
    ends with as well, at a third of the weight. This works as if there were more vectors, so that
    codewords which few of them choose fit new ones better, and it keeps the alternation of encoding
    and least squares out of local minima.

    Args:
        x: Vectors, shape (N, dim), float32.
        tables: Shape (T, K, dim).
        codebook_sizes: Entries of each table.
        depth: Levels.
        equations: What batches so far have shown.
        generator: Shuffles the rows.
        beam: Prefixes kept per vector.
        strength: Weight of staying near the current tables, in vectors per codeword.
        prefix_weight: Weight of the error after each shorter code beside that of the whole.

    Returns:
        Tables, shape (T, K, dim).
    """
    batches = max(1, min(_BATCHES, len(x) // _least_rows(codebook_sizes, x.shape[1])))
    order = torch.randperm(len(x), generator=generator).to(x.device)
    for rows in order.tensor_split(batches):
        batch, levels = x[rows], level_tables(tables, codebook_sizes, depth)
        codes = encode_prefixes(batch, levels, beam=beam)
        equations.forget(_FORGET)
        equations.add(batch, codes[:, : len(_STACK_WEIGHTS)], _STACK_WEIGHTS)
        # Codewords of which little has been seen yet stay near where they are.
        missing = max(0.0, _EVIDENCE - equations.vectors / max(codebook_sizes))
        tables = equations.solve(tables, strength=strength + missing, prefix_weight=prefix_weight)
    return tables


def _least_rows(codebook_sizes: Sequence[int], dim: int) -> int:
    """Rows of a batch with which encoding takes longer than solving for the tables."""
    return max(_LEAST_ROWS_PER_CODE * max(codebook_sizes), sum(codebook_sizes) ** 2 // (8 * dim))


def mean_error(
    x: Tensor,
    tables: Tensor,
    codebook_sizes: Sequence[int],
    depth: int,
    *,
    beam: int,
    prefix_weight: float = 0.0,
) -> float:
    """Mean squared error of encoding x, that of each shorter code added with its weight."""
    levels = level_tables(tables, codebook_sizes, depth)
    codes = encode_vectors(x, levels, beam=beam)
    lengths = range(1 if prefix_weight else depth, depth + 1)
    squared = {
        d: float((x - sum_codewords(codes[:, :d], levels)).square().sum(dtype=torch.float64))
        for d in lengths
    }
    return (squared.pop(depth) + prefix_weight * sum(squared.values())) / max(1, len(x))


def scaled_levels(
    x: Tensor,
    tables: Tensor,
    *,
    codebook_sizes: Sequence[int],
    beam: int,
    prefix_weight: float = 0.0,
) -> Tensor:
    """Scale each level's codewords by the factor that suits vectors which did not make them.

    Codewords of few vectors follow the noise of these, and lie too far out for others. One factor
    a level, a handful of numbers for the whole data, sets that right on average.

    Args:
        x: Vectors held out, shape (N, dim), float32.
        tables: Shape (depth, K, dim), of a mean of about zero.
        codebook_sizes: Entries of each level.
        beam: Prefixes kept per vector.
        prefix_weight: Weight of the error after each shorter code beside that of the whole.

    Returns:
        Tables, shape (depth, K, dim).
    """
    depth = len(tables)
    levels = level_tables(tables, codebook_sizes, depth)
    codes = encode_vectors(x, levels, beam=beam)
    normal, right = torch.zeros(depth, depth).double(), torch.zeros(depth).double()
    for rows in chunk_slices(len(x), 8 * (depth + 1) * x.shape[1], DEFAULT_MAX_BYTES):
        chosen = [table[codes[rows, level]] for level, table in enumerate(levels)]
        words = torch.stack(chosen, dim=1).double().cpu()
        normal += torch.einsum("nid,njd->ij", words, words)
        right += torch.einsum("nid,nd->i", words, x[rows].double().cpu())
    gain = 1 + prefix_weight * torch.arange(depth - 1, -1, -1).double()
    normal, right = normal * torch.minimum(gain, gain[:, None]), right * gain
    scales = torch.linalg.lstsq(normal, right[:, None]).solution.to(tables)
    return tables * scales[:, None]


def refine_tables(
    x: Tensor,
    tables: Tensor,
    codebook_sizes: Sequence[int],
    depth: int,
    *,
    rounds: int,
    beam: int = 1,
    prefix_weight: float = 0.0,
    held_out: Tensor | None = None,
    deadline: float | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Tensor:
    """Train all tables together, and return the best met, the start included.

    Args:
        x: Vectors, shape (N, dim), float32.
        tables: Shape (T, K, dim).
        codebook_sizes: Entries of each table.
        depth: Levels.
        rounds: Passes over x at most; training ends early when it no longer helps.
        beam: Prefixes kept per vector.
        prefix_weight: Weight of the error after each shorter code beside that of the whole.
        held_out: Vectors that judge, shape (M, dim); x itself when None.
        deadline: Time by `time.monotonic` after which no further round begins.
        seed: Fixes the result.
        progress: Told of each round.

    Returns:
        Tables, shape (T, K, dim).
    """
    judges = x if held_out is None else held_out

    def error(tables: Tensor) -> float:
        return mean_error(
            judges, tables, codebook_sizes, depth, beam=beam, prefix_weight=prefix_weight
        )

    generator = torch.Generator().manual_seed(seed % 2**63)
    equations = NormalEquations(codebook_sizes, depth, x.shape[1])
    best, least = tables, error(tables) if rounds else 0.0
    strength = _STRENGTH
    for step in range(rounds):
        if deadline is not None and monotonic() > deadline:
            break
        tables = joint_pass(
            x,
            tables,
            codebook_sizes,
            depth,
            equations,
            generator,
            beam=beam,
            strength=strength,
            prefix_weight=prefix_weight,
        )
        now = error(tables)
        report(progress, "joint least squares", step + 1, rounds)
        gain = 1 - now / least if least else 0.0
        if gain > 0:
            best, least = tables, now
        else:
            tables, strength = best, strength * _STRONGER
        if abs(gain) < _LEAST_GAIN:
            break
    report(progress, "joint least squares", rounds, rounds)
    if rounds and held_out is not None and len(codebook_sizes) == depth:
        for _ in range(_SCALINGS):
            scaled = scaled_levels(
                held_out,
                best,
                codebook_sizes=codebook_sizes,
                beam=beam,
                prefix_weight=prefix_weight,
            )
            now = error(scaled)
            if now < least:
                best, least = scaled, now
    return best
