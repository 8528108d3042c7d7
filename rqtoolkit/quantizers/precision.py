"""Values that follow their module to another device, never to another precision."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

from torch import Tensor, nn

__all__ = ["exact_values"]


@contextmanager
def exact_values(module: nn.Module) -> Iterator[None]:
    """Undo for a module's tensors what `half()` and the like do inside this context.

    They go back to what they were before, so that no digit is lost on the way.
    """
    exact = {name: tensor.detach() for name, tensor in _tensors(module)}
    yield
    for name, tensor in _tensors(module):
        if tensor.dtype != exact[name].dtype and not tensor.is_meta:
            tensor.data = exact[name].to(tensor.device)


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return chain(module.named_parameters(), module.named_buffers())
