"""Offline training of residual codebooks: standardise, fit level by level, train all together."""

from collections.abc import Sequence
from math import log2
from time import monotonic
from typing import Any

import torch
from torch import Tensor

from rqtoolkit.functional.assign import level_tables, sum_codewords
from rqtoolkit.functional.encoding import encode_prefixes
from rqtoolkit.functional.kmeans import kmeans
from rqtoolkit.functional.least_squares import NormalEquations
from rqtoolkit.functional.progress import Progress, report
from rqtoolkit.functional.threads import limited_threads
from rqtoolkit.quantizers.fitting import kmeans_tables
from rqtoolkit.quantizers.joint import joint_pass, mean_error, refine_tables
from rqtoolkit.quantizers.splitting import split_entries

__all__ = ["beam_tables", "fit_tables"]

_HELD_OUT_SHARE, _LEAST_HELD_OUT, _MOST_HELD_OUT = 1 / 16, 256, 2**13
_FEW_ROWS = 2**13  # where a second way of fitting costs little
_POINTS_PER_CODE = 256  # residuals that k-means takes
_ROWS_PER_CODE = 192  # vectors that they come from
_JOINT_ROWS_PER_CODE = 128  # vectors that train the levels so far together


def fit_tables(
    x: Tensor,
    codebook_sizes: Sequence[int],
    depth: int,
    *,
    iterations: int = 40,
    starts: int = 1,
    rounds: int = 4,
    beam: int = 5,
    prefix_weight: float = 0.0,
    start: Tensor | None = None,
    rate_weight: float | None = None,
    target_bits: float | None = None,
    time_budget: float | None = None,
    threads: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Codebooks of low squared error for vectors like those of x, encoded by a beam.

    Where there are enough vectors, a sixteenth of them is held out: it decides how far the joint
    training goes, and fits nothing. In the end entries that no vector chooses are put to use, but
    those of a shared codebook.

    Args:
        x: Vectors, shape (N, dim), float32, N at least the largest codebook size.
        codebook_sizes: Entries of each table: one number for a shared codebook, else one a level.
        depth: Levels.
        iterations: Lloyd iterations a level.
        starts: Short k-means++ starts a level, of which the best goes on.
        rounds: Passes of joint least squares over all levels, at most; 0 leaves it to k-means.
        beam: Prefixes kept per vector.
        prefix_weight: Weight of the error after each shorter code beside that of the whole.
        start: Tables to go on from, shape (T, K, dim), in place of a fit level by level.
        rate_weight: Squared error that one bit of entropy-coded code may cost.
        target_bits: Bits per vector to reach, entropy-coded, in place of rate_weight.
        time_budget: Seconds after which no further round begins.
        threads: Threads to use; as many as torch does when None.
        seed: Fixes the result.
        progress: Told of each level and round.

    Returns:
        Tables, shape (T, K, dim), T as many as codebook_sizes, padded with zeros; and with a rate
        asked for the penalties of their entries, shape (depth, K), else None.
    """
    deadline = None if time_budget is None else monotonic() + time_budget
    offset, scale = _standard_units(x, shared=len(codebook_sizes) == 1)
    with limited_threads(threads):
        standard = (x - offset) / scale
        standard, held_out = _split(standard, max(codebook_sizes), seed)
        judge: dict[str, Any] = {"beam": beam, "prefix_weight": prefix_weight}
        joint = judge | {"held_out": held_out, "deadline": deadline}
        joint |= {"seed": seed, "progress": progress}
        if start is not None:
            tables = _moved(start, codebook_sizes, -offset) / scale
        else:
            lloyd: dict[str, Any] = {"iterations": iterations, "starts": starts}
            ways = []
            if rounds and len(codebook_sizes) > 1:
                ways.append(beam_tables(standard, codebook_sizes, **lloyd, **joint))
            if not ways or len(standard) <= _FEW_ROWS:
                lloyd |= {"seed": seed, "progress": progress}
                ways.append(kmeans_tables(standard, codebook_sizes, depth, **lloyd))
            judges = standard if held_out is None else held_out
            errors = [mean_error(judges, way, codebook_sizes, depth, **judge) for way in ways]
            tables = ways[errors.index(min(errors))]
        tables = refine_tables(standard, tables, codebook_sizes, depth, rounds=rounds, **joint)
        if len(codebook_sizes) == depth:
            generator = torch.Generator().manual_seed(seed % 2**63)
            rows = _some_rows(len(x), _JOINT_ROWS_PER_CODE * max(codebook_sizes), generator)
            some = (x[rows.to(x.device)] - offset) / scale
            tables = split_entries(some, tables, codebook_sizes, **judge)
        tables = _moved(tables * scale, codebook_sizes, offset)
        if rate_weight is None and target_bits is None:
            return tables, None
        from rqtoolkit.quantizers.rate_fitting import fit_with_rate

        tables, penalties, _ = fit_with_rate(
            x,
            tables,
            codebook_sizes,
            depth,
            rate_weight=rate_weight,
            target_bits=target_bits,
            beam=beam,
            rounds=rounds,
            seed=seed,
            progress=progress,
        )
        return tables, penalties


def _standard_units(x: Tensor, *, shared: bool) -> tuple[Tensor, float]:
    """Offset (dim,) and scale with which all data look alike to the training.

    The scale is a power of two, so that no rounding depends on it. A shared codebook keeps its
    offset: no table of its own could take it back.
    """
    offset = torch.zeros_like(x[0]) if shared else x.mean(dim=0)
    spread = float((x - offset).square().mean(dtype=torch.float64).sqrt())
    return offset, 2.0 ** round(log2(spread)) if spread > 0 else 1.0


def _moved(tables: Tensor, codebook_sizes: Sequence[int], offset: Tensor) -> Tensor:
    """Add an offset to the codewords of the first level, whose padding stays zero."""
    moved = tables.clone()
    moved[0, : codebook_sizes[0]] += offset
    return moved


def _split(x: Tensor, codebook_size: int, seed: int) -> tuple[Tensor, Tensor | None]:
    """Rows to train on, and rows held out where there are enough to tell anything."""
    count = min(int(len(x) * _HELD_OUT_SHARE), _MOST_HELD_OUT)
    if count < _LEAST_HELD_OUT or len(x) - count < codebook_size:
        return x, None
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed)).to(x.device)
    return x[order[count:]], x[order[:count]]


def beam_tables(
    x: Tensor,
    codebook_sizes: Sequence[int],
    *,
    iterations: int = 40,
    starts: int = 1,
    beam: int = 5,
    prefix_weight: float = 0.0,
    held_out: Tensor | None = None,
    deadline: float | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Tensor:
    """Codebooks level by level, each for what is left by every prefix that a beam keeps.

    After each level, all levels so far are trained together on some of the vectors: the next one
    then mends what they cannot do, not what they only have not learnt yet. Each level has a seed of
    its own.

    Args:
        x: Vectors, shape (N, dim), float32, N at least the largest codebook size.
        codebook_sizes: Entries of each level.
        iterations: Lloyd iterations a level.
        starts: Short k-means++ starts a level, of which the best goes on.
        beam: Prefixes kept per vector.
        prefix_weight: Weight of the error after each shorter code beside that of the whole.
        held_out: Vectors that judge whether the joint training of a level helps; x when None.
        deadline: Time by `time.monotonic` after which levels are no longer trained together.
        seed: Fixes the result.
        progress: Told of each level.

    Returns:
        Tables, shape (depth, K, dim), padded with zeros.
    """
    depth = len(codebook_sizes)
    generator = torch.Generator().manual_seed(seed % 2**63)
    tables = x.new_zeros(depth, max(codebook_sizes), x.shape[1])
    judges = x if held_out is None else held_out
    joint: dict[str, Any] = {"beam": beam, "prefix_weight": prefix_weight}
    for level, size in enumerate(codebook_sizes):
        done, sizes = level + 1, codebook_sizes[: level + 1]
        residuals = _beam_residuals(x, tables[:level], sizes[:level], size, beam, generator)
        tables[level, :size] = kmeans(
            residuals,
            size,
            iterations=iterations,
            starts=starts,
            seed=(seed * 1009 + level) % 2**63,
        )
        if level and (deadline is None or monotonic() < deadline):
            rows = _some_rows(len(x), _JOINT_ROWS_PER_CODE * max(sizes), generator).to(x.device)
            equations = NormalEquations(sizes, done, x.shape[1])
            trained = joint_pass(x[rows], tables[:done], sizes, done, equations, generator, **joint)
            errors = [mean_error(judges, t, sizes, done, **joint) for t in (tables[:done], trained)]
            if errors[1] < errors[0]:
                tables[:done] = trained
        report(progress, "levels", done, depth)
    return tables


def _beam_residuals(
    x: Tensor,
    tables: Tensor,
    codebook_sizes: Sequence[int],
    codebook_size: int,
    beam: int,
    generator: torch.Generator,
) -> Tensor:
    """What the prefixes of a beam leave of some vectors, drawn at random, as k-means takes them."""
    points = _POINTS_PER_CODE * codebook_size
    if not len(tables):
        return x[_some_rows(len(x), points, generator).to(x.device)]
    x = x[_some_rows(len(x), _ROWS_PER_CODE * codebook_size, generator).to(x.device)]
    levels = level_tables(tables, codebook_sizes, len(tables))
    codes = encode_prefixes(x, levels, beam=beam)
    prefixes = codes.shape[1]
    kept = _some_rows(len(x) * prefixes, points, generator).sort().values.to(x.device)
    return x[kept // prefixes] - sum_codewords(codes.flatten(0, 1)[kept], levels)


def _some_rows(rows: int, count: int, generator: torch.Generator) -> Tensor:
    """Draw at most `count` rows, in random order."""
    return torch.randperm(rows, generator=generator)[:count]
