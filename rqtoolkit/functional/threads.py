"""Use fewer threads for a while."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from threadpoolctl import threadpool_limits

from rqtoolkit.functional.arguments import check_count

__all__ = ["limited_threads"]


@contextmanager
def limited_threads(threads: int | None) -> Iterator[None]:
    """Bound the threads of torch, faiss and BLAS within the block.

    Args:
        threads: At most so many, at least 1, and no more than there are cores; None leaves
            everything as it is.

    Raises:
        ConfigError: If threads is no integer of at least 1.
    """
    if threads is None:
        yield
        return
    threads = min(check_count("limited_threads", "threads", threads), os.cpu_count() or 1)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with threadpool_limits(limits=threads):
            yield
    finally:
        torch.set_num_threads(before)
