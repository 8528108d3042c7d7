"""Walking down a prefix table on an accelerator: the same functions as tensor operations.

Shapes are known beforehand and nothing is read back, so that the host never waits.
"""

import torch
from torch import Tensor

__all__ = ["extend_beams", "fill_mask", "find_children"]


def fill_mask(
    states: Tensor, offsets: Tensor, node_codes: Tensor, out: Tensor, fanout: int
) -> None:
    """Set out (B, K) to whether each state (B,) has a child of each code.

    Args:
        states: Nodes, shape (B,), -1 for none.
        offsets: First child of every node, and the end of the last's.
        node_codes: Code of every node.
        out: Shape (B, K), bool.
        fanout: Children that a node has at most.
    """
    nodes = states.clamp(min=0)
    first, end = offsets[nodes], offsets[nodes + 1]
    children = first[:, None] + torch.arange(fanout, device=states.device)
    exists = (children < end[:, None]) & (states >= 0)[:, None]
    size = out.shape[1]  # a column beyond the codes takes what does not exist
    codes = torch.where(exists, node_codes[children.clamp(max=len(node_codes) - 1)], size)
    padded = torch.zeros(len(states), size + 1, dtype=torch.bool, device=states.device)
    out.copy_(padded.scatter_(1, codes, True)[:, :size])


def find_children(states: Tensor, codes: Tensor, keys: Tensor, size: int) -> Tensor:
    """Return the child (B,) of each state by its code, -1 where there is none.

    Args:
        states: Nodes, shape (B,), -1 for none.
        codes: Shape (B,), int64.
        keys: `parent * size + code` of every node, ascending, the root's below all others.
        size: At least the size of every codebook.
    """
    wanted = states * size + codes
    places = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
    found = (keys[places] == wanted) & (states >= 0) & (codes >= 0) & (codes < size)
    return torch.where(found, places, -1)


def extend_beams(
    scores: Tensor, states: Tensor, steps: Tensor, mask: Tensor, keys: Tensor, size: int, width: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Keep the best continuations of every user's beams.

    Args:
        scores: Scores of the beams, shape (B, P).
        states: Their states, shape (B, P), int64, -1 for none.
        steps: What each code adds, shape (B, P, K) or (B, 1, K).
        mask: Which codes continue a beam, shape (B, P, K), bool.
        keys: As `find_children` takes them, and `size` too.
        size: At least the size of every codebook.
        width: Beams to keep, W, at most P * K.

    Returns:
        Scores (B, W), states (B, W) and the beams they extend (B, W), best first, equal scores by
        the number of the node; -inf, -1 and 0 beyond the continuations of finite score. Last,
        whether a score was NaN, shape ().
    """
    order = states.argsort(1)  # beams by number: places in a row are then in order of their nodes
    rows = torch.arange(len(states), device=states.device)[:, None]
    total = (scores[:, :, None] + steps).masked_fill(~mask, -torch.inf)[rows, order]
    undefined = total.isnan().any()
    best, places = total.flatten(1).sort(dim=1, descending=True, stable=True)
    best, places = best[:, :width], places[:, :width]
    origins = order.gather(1, places // mask.shape[2])
    codes = places % mask.shape[2]
    found = find_children(states.gather(1, origins).flatten(), codes.flatten(), keys, size)
    alive = best > -torch.inf
    return (
        best,
        torch.where(alive, found.view_as(best), -1),
        torch.where(alive, origins, 0),
        undefined,
    )
