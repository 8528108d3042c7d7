"""Statistics of several processes that train together: each call is a no-op where there is one.

Whether there are several is asked at each call, so that a module may be built before the process
group is.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["Draws", "broadcast_from_first", "draw_rows", "gather_rows", "sum_over_ranks"]


def sum_over_ranks(*tensors: Tensor) -> None:
    """Replace tensors by their sums over all processes, in one exchange."""
    if not _several():
        return
    joined = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(joined)
    sizes = [tensor.numel() for tensor in tensors]
    for tensor, total in zip(tensors, joined.split(sizes), strict=True):
        tensor.copy_(total.view_as(tensor))


def broadcast_from_first(tensor: Tensor) -> None:
    """Overwrite a tensor with that of the first process."""
    if _several():
        dist.broadcast(tensor, src=0)


def gather_rows(x: Tensor) -> Tensor:
    """Concatenate the rows of all processes, in their order; their numbers may differ."""
    if not _several():
        return x
    lengths = [int(n) for n in _gather(torch.tensor([len(x)], device=x.device))]
    padded = x.new_zeros(max(lengths), x.shape[1])
    padded[: len(x)] = x
    parts = _gather(padded)
    return torch.cat([part[:length] for part, length in zip(parts, lengths, strict=True)])


@dataclass(frozen=True)
class Draws:
    """Which rows of matrices were drawn for each pool, evenly and with replacement.

    Args:
        matrices: Which matrix each row is of, shape (pools, count).
        rows: Its place there, shape (pools, count).
        own: Whether this process holds it, shape (pools, count).
        total: Rows that could be drawn, of all processes, scalar.
    """

    matrices: Tensor
    rows: Tensor
    own: Tensor
    total: Tensor

    def collect(self, into: Tensor, pool: int, matrix: int, values: Tensor) -> None:
        """Write the rows of one matrix (N, dim) that a pool draws to their places (count, dim)."""
        if not len(values):
            return
        wanted = self.own[pool] & (self.matrices[pool] == matrix)
        into.copy_(torch.where(wanted[:, None], values[self.rows[pool]], into))


def draw_rows(
    weights: Tensor, pools: int, matrices: int, count: int, generator: torch.Generator | None
) -> Draws:
    """Draw rows of weight 1 from those of all processes.

    Which rows are drawn depends on the first process's chance alone, and not on how rows are
    spread over processes that hold them in the same order.

    Args:
        weights: Shape (N,): 1 for rows that may be drawn, 0 for others; the same for all matrices.
        pools: Draws to make.
        matrices: Matrices (N, dim) that each of them is from.
        count: Rows to draw for each pool.
        generator: Source of chance, on the device of the weights.
    """
    if not len(weights):  # none of its own to give, though others may have
        weights = weights.new_zeros(1)
    places = weights.long().cumsum(dim=0)  # of each row among those that count, from 1
    uniform = torch.rand(pools, count, generator=generator, device=weights.device)
    shares, uniform = _agree(places[-1], uniform)
    first, total = shares[: _rank()].sum(), shares.sum()
    rows_in_all = matrices * total  # matrix after matrix; products may round up to this
    ranked = torch.minimum((uniform * rows_in_all).long(), (rows_in_all - 1).clamp_min(0))
    matrix, place = ranked // total.clamp_min(1), ranked % total.clamp_min(1) - first
    own = (place >= 0) & (place < places[-1])
    rows = torch.searchsorted(places, place, right=True).clamp(max=len(places) - 1)
    return Draws(matrix.clamp(max=matrices - 1), rows, own, total)


def _agree(own: Tensor, chance: Tensor) -> tuple[Tensor, Tensor]:
    """Return a whole number of each process, and what the first process drew, in one exchange.

    Args:
        own: This process's number, scalar, at most 2^24, which float32 holds.
        chance: What this process drew, float32.

    Returns:
        Numbers, shape (processes,), int64, and the first process's draws.
    """
    if not _several():
        return own[None], chance
    numbers = chance.new_zeros(dist.get_world_size())
    numbers[_rank()] = own
    draws = chance if _rank() == 0 else torch.zeros_like(chance)
    sum_over_ranks(numbers, draws)
    return numbers.long(), draws


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _rank() -> int:
    return dist.get_rank() if _several() else 0


def _gather(tensor: Tensor) -> list[Tensor]:
    parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, tensor.contiguous())
    return parts
