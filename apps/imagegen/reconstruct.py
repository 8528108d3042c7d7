"""Images there and back through the RQ-VAE, at every depth."""

import numpy as np
import torch

from imagegen.autoencoder import RQVAE
from imagegen.data import to_float, to_uint8
from rqtoolkit.functional.rate_distortion import relative_error

__all__ = ["decode_codes", "encode_images", "reconstruct", "reconstruction_errors"]


def encode_images(model: RQVAE, images: np.ndarray, *, batch_size: int = 256) -> torch.Tensor:
    """Encode uint8 images (N, H, W, C) as codes (N, h, w, depth), int64, on the CPU."""
    device = next(model.parameters()).device
    starts = range(0, len(images), batch_size)
    batches = (to_float(images[start : start + batch_size]).to(device) for start in starts)
    return torch.cat([model.encode(batch).cpu() for batch in batches])


def decode_codes(model: RQVAE, codes: torch.Tensor, *, batch_size: int = 256) -> np.ndarray:
    """Decode codes (N, h, w, d), all levels or the first, as uint8 images (N, H, W, C)."""
    device = next(model.parameters()).device
    parts = codes.split(batch_size)
    return np.concatenate([to_uint8(model.decode(part.to(device))) for part in parts])


def reconstruct(model: RQVAE, images: np.ndarray, *, batch_size: int = 256) -> np.ndarray:
    """Reconstruct images from the first 1, 2, ... levels of their codes.

    Args:
        model: A trained autoencoder, in eval mode.
        images: Images, shape (N, H, W, C), uint8.
        batch_size: Images at a time.

    Returns:
        Reconstructions, shape (depth, N, H, W, C), uint8; depth is 1 for a model without codes,
        whose latents stand at their mean.
    """
    if not model.quantizes:
        device = next(model.parameters()).device
        starts = range(0, len(images), batch_size)
        with torch.no_grad():
            batches = (to_float(images[i : i + batch_size]).to(device) for i in starts)
            decoded = [to_uint8(model.decode_latents(model.latents(batch))) for batch in batches]
        return np.concatenate(decoded)[None]
    codes = encode_images(model, images, batch_size=batch_size)
    depths = range(1, codes.shape[-1] + 1)
    return np.stack([decode_codes(model, codes[..., :d], batch_size=batch_size) for d in depths])


def reconstruction_errors(images: np.ndarray, reconstructions: np.ndarray) -> list[float]:
    """Return the relative error at every depth, over pixels of uint8 images.

    Args:
        images: Images, shape (N, H, W, C), uint8.
        reconstructions: What `reconstruct` made of them, shape (depth, N, H, W, C).
    """
    flat = images.reshape(len(images), -1).astype(np.float64)
    return [relative_error(flat, r.reshape(flat.shape).astype(np.float64)) for r in reconstructions]
