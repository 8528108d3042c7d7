"""Walking down a prefix table on the CPU: the inner loops, compiled.

Every function visits only the children that exist, so that its time goes with the prefixes that
continue, not with beams times codebook size. States are the numbers of nodes, -1 for none; the
caller has checked that they are nodes of the table.
"""

import numpy as np
from numpy.typing import NDArray

from rqtoolkit.functional.kernels.compiled import compiled

__all__ = ["extend_beams", "fill_mask", "find_children"]


@compiled
def fill_mask(
    states: NDArray[np.int64],
    offsets: NDArray[np.int64],
    node_codes: NDArray[np.int64],
    out: NDArray[np.bool_],
) -> None:
    """Set out (B, K) to whether each state (B,) has a child of each code."""
    for i in range(len(states)):
        out[i, :] = False
        state = states[i]
        if state >= 0:
            for child in range(offsets[state], offsets[state + 1]):
                out[i, node_codes[child]] = True


@compiled
def find_children(
    states: NDArray[np.int64],
    codes: NDArray[np.int64],
    offsets: NDArray[np.int64],
    node_codes: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Return the child (B,) of each state by its code, -1 where there is none: bisection."""
    found = np.full(len(states), -1)
    for i in range(len(states)):
        state, code = states[i], codes[i]
        if state < 0:
            continue
        end = offsets[state + 1]
        low, high = offsets[state], end
        while low < high:
            middle = (low + high) // 2
            if node_codes[middle] < code:
                low = middle + 1
            else:
                high = middle
        if low < end and node_codes[low] == code:
            found[i] = low
    return found


@compiled
def _worse(scores, states, first, second):  # type: ignore[no-untyped-def]
    """Whether entry `first` of a heap ranks behind `second`: lower score, then larger state."""
    if scores[first] != scores[second]:
        return scores[first] < scores[second]
    return states[first] > states[second]


@compiled
def _exchange(scores, states, origins, first, second):  # type: ignore[no-untyped-def]
    scores[first], scores[second] = scores[second], scores[first]
    states[first], states[second] = states[second], states[first]
    origins[first], origins[second] = origins[second], origins[first]


@compiled
def _sink(scores, states, origins, size):  # type: ignore[no-untyped-def]
    """Restore the heap of `size` entries, the worst one on top, after its top has changed."""
    place = 0
    while True:
        worst = 2 * place + 1
        if worst >= size:
            return
        if worst + 1 < size and _worse(scores, states, worst + 1, worst):
            worst += 1
        if not _worse(scores, states, worst, place):
            return
        _exchange(scores, states, origins, place, worst)
        place = worst


@compiled
def _rise(scores, states, origins, place):  # type: ignore[no-untyped-def]
    """Restore the heap after an entry was put at its end."""
    while place > 0 and _worse(scores, states, place, (place - 1) // 2):
        _exchange(scores, states, origins, place, (place - 1) // 2)
        place = (place - 1) // 2


@compiled
def extend_beams(scores, states, steps, offsets, node_codes, width):  # type: ignore[no-untyped-def]
    """Keep the best continuations of every user's beams.

    Args:
        scores: Scores of the beams, shape (B, P), float32 or float64.
        states: Their states, shape (B, P), int64, -1 for none.
        steps: What each code adds, shape (B, P, K), or (B, 1, K) for all beams alike; same dtype.
        offsets: First child of every node, and the end of the last's.
        node_codes: Code of every node.
        width: Beams to keep, W.

    Returns:
        Scores (B, W), states (B, W) and the beams they extend (B, W), best first, equal scores by
        the number of the node; -inf, -1 and 0 beyond the continuations of finite score. Last,
        whether a score was NaN.
    """
    users = len(states)
    kept_scores = np.full((users, width), -np.inf, scores.dtype)
    kept_states = np.full((users, width), -1)
    kept_origins = np.zeros((users, width), np.int64)
    undefined = False
    for user in range(users):
        heap, nodes, origins = kept_scores[user], kept_states[user], kept_origins[user]
        size = 0
        for beam in range(states.shape[1]):
            state = states[user, beam]
            if state < 0:
                continue
            added = steps[user, beam if steps.shape[1] > 1 else 0]
            for child in range(offsets[state], offsets[state + 1]):
                score = scores[user, beam] + added[node_codes[child]]
                if score != score:
                    undefined = True
                elif score == -np.inf:
                    continue
                elif size < width:
                    heap[size], nodes[size], origins[size] = score, child, beam
                    _rise(heap, nodes, origins, size)
                    size += 1
                elif score > heap[0] or (score == heap[0] and child < nodes[0]):
                    heap[0], nodes[0], origins[0] = score, child, beam
                    _sink(heap, nodes, origins, size)
        for end in range(size - 1, 0, -1):  # the worst entry goes last, and so on
            _exchange(heap, nodes, origins, 0, end)
            _sink(heap, nodes, origins, end)
    return kept_scores, kept_states, kept_origins, undefined
