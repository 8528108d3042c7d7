"""From the bytes of an image file to a square of pixels."""

import io

import numpy as np
from PIL import Image, UnidentifiedImageError

from imagegen.images import UnreadableImageError
from rqtoolkit.errors import DataError

__all__ = ["choose_square", "decode_image", "fit_pixels", "is_grey", "set_channels"]

_16_BITS = ("I", "I;16", "I;16L", "I;16B", "I;16N")
_GREY = ("1", "L", *_16_BITS)


def decode_image(file: bytes, name: str) -> np.ndarray:
    """Return the pixels of an image file, shape (H, W, 1) or (H, W, 3), uint8.

    16 bits are scaled to 8, palettes and CMYK become RGB, transparency is dropped, and of several
    frames the first counts. The picture is not turned as its EXIF data may ask, as in the loaders
    of the field.

    Args:
        file: The whole file.
        name: What to call it in errors.

    Raises:
        UnreadableImageError: If the file is no image, damaged, or holds floating-point pixels.
    """
    try:
        with Image.open(io.BytesIO(file)) as image:
            return _pixels(image)
    except UnidentifiedImageError:  # its own message holds an address in memory
        raise UnreadableImageError(f"{name} (no image that Pillow knows)") from None
    except Exception as error:  # decoders raise anything on damaged bytes, down to struct.error
        reason = " ".join(str(error).split())
        raise UnreadableImageError(f"{name} ({type(error).__name__}: {reason:.120})") from None


def _pixels(image: Image.Image) -> np.ndarray:
    if image.mode in _16_BITS:  # Pillow would clip all that is over 255 to white
        levels = np.asarray(image)
        if levels.min() < 0 or levels.max() > 65535:
            raise ValueError(f"levels from {levels.min()} to {levels.max()}, not 0 to 65535")
        return np.rint(levels / 257).astype(np.uint8)[..., None]
    if image.mode == "F":
        raise ValueError("floating-point pixels, whose range is not known")
    if image.mode in _GREY:
        return np.asarray(image.convert("L"))[..., None]
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # straight to RGB, Pillow warns
    return np.asarray(image.convert("RGB"))


def is_grey(file: bytes) -> bool | None:
    """Say whether an image file is greyscale by its header; None if it cannot be read."""
    try:
        with Image.open(io.BytesIO(file)) as image:
            return image.mode in _GREY
    except Exception:  # as in decode_image, which will name it
        return None


def set_channels(pixels: np.ndarray, channels: int) -> np.ndarray:
    """Return pixels (H, W, 1 or 3) with the channels asked for; colour becomes grey by luma."""
    if pixels.shape[2] == channels:
        return pixels
    if channels == 3:
        return np.broadcast_to(pixels, (*pixels.shape[:2], 3))
    return np.asarray(Image.fromarray(pixels).convert("L"))[..., None]


def choose_square(
    height: int, width: int, *, crop: str, resolution: int, generator: np.random.Generator | None
) -> tuple[int, int, int]:
    """Choose the square of an image that training sees, as the paper's loaders do.

    - "center": the largest square in the middle.
    - "random": the largest square anywhere along the longer side (ImageNet).
    - "zoom": a square anywhere with 75% to 100% of the area of the largest (FFHQ).
    - "dalle": the largest square within an eighth of the middle, and of that one a square anywhere
      with 8/9 to all of its side, not so small that it would be enlarged (CC-3M).

    Args:
        height: Height of the image.
        width: Width of the image.
        crop: One of the above.
        resolution: Side that the square is resized to.
        generator: Draws the square; None takes the central one.

    Returns:
        Top, left and side of the square, in pixels.

    References:
        Ramesh et al., "Zero-Shot Text-to-Image Generation", ICML 2021, appendix A.1 ("dalle").
        Szegedy et al., "Going Deeper with Convolutions", CVPR 2015, section 6 ("zoom", there with
        8% to 100% of the area).
    """
    side = min(height, width)
    down, right = height - side, width - side
    if generator is None or crop == "center":
        return down // 2, right // 2, side
    if crop == "dalle":
        top, left = (
            int(generator.integers(3 * free // 8, max(3 * free // 8 + 1, 5 * free // 8)))
            for free in (down, right)
        )
        largest = max(min(side, round(9 / 8 * resolution)), resolution)
        smaller = round(side * resolution / int(generator.integers(resolution, largest + 1)))
        down = right = side - smaller
        side = smaller
    else:
        top = left = 0
        if crop == "zoom":
            smaller = max(1, round(side * np.sqrt(generator.uniform(0.75, 1.0))))
            down, right, side = height - smaller, width - smaller, smaller
    top += int(generator.integers(down + 1))
    left += int(generator.integers(right + 1))
    return top, left, side


def fit_pixels(
    pixels: np.ndarray, resolution: int, *, fit: str, square: tuple[int, int, int], name: str
) -> np.ndarray:
    """Bring an image (H, W, C), uint8, to (resolution, resolution, C).

    Args:
        pixels: The image.
        resolution: Height and width to reach.
        fit: "resize" cuts out `square` and resizes it with Pillow's bicubic filter, which averages
            when it makes images smaller; "pad" leaves the pixels and puts black around them.
        square: Top, left and side, of `choose_square`.
        name: What to call the image in errors.

    Raises:
        DataError: If padding would have to make the image smaller.
    """
    height, width, channels = pixels.shape
    if fit == "pad":
        if max(height, width) > resolution:
            raise DataError(
                f"data: fit='pad' cannot make an image smaller; {name} is {height}x{width}, "
                f"resolution={resolution}. Use fit='resize' or a larger resolution."
            )
        out = np.zeros((resolution, resolution, channels), np.uint8)
        top, left = (resolution - height) // 2, (resolution - width) // 2
        out[top : top + height, left : left + width] = pixels
        return out
    top, left, side = square
    cut = pixels[top : top + side, left : left + side]
    if side == resolution:
        return cut
    # Each channel in floating point: Pillow's 8-bit path rounds between its two passes.
    planes = np.moveaxis(cut, -1, 0).astype(np.float32, order="C")
    size = (resolution, resolution)
    resized = [
        np.asarray(Image.fromarray(plane).resize(size, Image.Resampling.BICUBIC))
        for plane in planes
    ]
    return np.rint(np.clip(np.stack(resized, axis=-1), 0, 255)).astype(np.uint8)
