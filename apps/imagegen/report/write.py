"""Draw the pictures of a report and write them with the page."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from imagegen.evaluate import image_bound
from imagegen.images import ImageSet
from imagegen.pictures import (
    DARK,
    LIGHT,
    Theme,
    draw_grid,
    draw_losses,
    draw_rate_distortion,
    draw_usage,
)
from imagegen.report.content import ReportContent
from imagegen.report.sections import footer, lead, sections
from rqtoolkit.io.atomic import atomic_path
from rqtoolkit.io.page import render_page

__all__ = ["render_report", "write_report"]

CLASSES_SHOWN, IMAGES_SHOWN = 20, 10


def render_report(content: ReportContent) -> tuple[str, dict[str, bytes]]:
    """Return a self-contained page and the pictures it shows, by file name.

    The pictures are `samples.png`, `real_images.png`, `reconstructions.png`,
    `rate_distortion.png`, `code_usage.png` and `losses_1.png`, …; equal content gives equal bytes.
    The page asks for nothing over a network, follows the reader's light or dark setting and reads
    on a phone.

    Args:
        content: What to show.
    """
    light = _draw(content, LIGHT)
    html = render_page(
        title=content.title,
        lead=lead(content),
        sections=sections(content, light, _draw(content, DARK)),
        footer=footer(),
    )
    return html, {f"{name}.png": png for name, png in light.items()}


def write_report(path: str | Path, content: ReportContent) -> None:
    """Write what `render_report` returns: the page, and its pictures beside it.

    Args:
        path: The page, usually `report.html`.
        content: What to show.

    Raises:
        ArtifactError: If the folder is missing.
    """
    path = Path(path)
    html, pictures = render_report(content)
    for name, png in pictures.items():
        with atomic_path(path.with_name(name)) as temporary:
            temporary.write_bytes(png)
    with atomic_path(path) as temporary:
        temporary.write_text(html, encoding="utf-8")


def _draw(content: ReportContent, theme: Theme) -> dict[str, bytes]:
    depths = [f"depth {d}" for d in range(1, len(content.reconstructions) + 1)]
    pictures = {} if content.samples is None else {"samples": _by_class(content.samples)}
    pictures["real_images"] = _by_class(content.held_out)
    pictures["reconstructions"] = draw_grid(
        [content.originals[:IMAGES_SHOWN], *content.reconstructions[:, :IMAGES_SHOWN]],
        row_titles=["original", *(depths if content.bits_per_image else ["reconstruction"])],
    )
    if content.bits_per_image:
        rates = np.linspace(0, content.bits_per_image[-1], 60).tolist()
        pictures["rate_distortion"] = draw_rate_distortion(
            content.bits_per_image,
            content.relative_error,
            bound=(rates, image_bound(content.held_out.images, rates)),
            theme=theme,
        )
    if content.usage_counts:
        pictures["code_usage"] = draw_usage(content.usage_counts, theme=theme)
    for number, panels in enumerate(content.losses.values(), start=1):
        pictures[f"losses_{number}"] = draw_losses(panels, theme=theme)
    return pictures


def _by_class(images: ImageSet) -> bytes:
    labels = images.labels if images.labels is not None else np.zeros(len(images), np.int64)
    names = images.class_names or ("",)
    shown = [label for label in range(len(names)) if (labels == label).any()][:CLASSES_SHOWN]
    return draw_grid(
        [images.images[labels == label][:IMAGES_SHOWN] for label in shown],
        row_titles=[names[label] for label in shown],
    )
