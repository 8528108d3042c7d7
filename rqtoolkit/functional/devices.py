"""Whether this machine can compute where it is asked to."""

import torch

from rqtoolkit.errors import ConfigError
from rqtoolkit.functional.arguments import shown

__all__ = ["check_device"]


def check_device(where: str, device: str | torch.device) -> None:
    """Refuse a device that torch does not know, or that this machine does not have.

    Raises:
        ConfigError: If it is one.
    """
    try:
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError, TypeError) as error:
        raise ConfigError(
            f"{where}: device={shown(device)} cannot be used here; torch says: "
            f"{str(error).splitlines()[0]} Name another, such as 'cpu'."
        ) from error
