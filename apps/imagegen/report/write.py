"""Draw the pictures of a report and write them with the page."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from imagegen.evaluate import image_bound
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
from imagegen.report.page import render_page
from imagegen.report.sections import footer, lead, sections
from rqtoolkit.io.atomic import atomic_path

__all__ = ["write_report"]

CLASSES_SHOWN, IMAGES_SHOWN = 20, 10


def write_report(path: str | Path, content: ReportContent) -> None:
    """Write a self-contained page, and beside it the pictures it shows as PNG files.

    The pictures are `samples.png`, `reconstructions.png`, `rate_distortion.png`, `code_usage.png`
    and `losses_1.png`, …; equal content gives equal bytes. The page asks for nothing over a
    network, follows the reader's light or dark setting and reads on a phone.

    Args:
        path: The page, usually `report.html`.
        content: What to show.

    Raises:
        ArtifactError: If the folder is missing.
    """
    path = Path(path)
    light = _draw(content, LIGHT)
    html = render_page(
        title=content.title,
        lead=lead(content),
        sections=sections(content, light, _draw(content, DARK)),
        footer=footer(),
    )
    for name, png in light.items():
        with atomic_path(path.with_name(f"{name}.png")) as temporary:
            temporary.write_bytes(png)
    with atomic_path(path) as temporary:
        temporary.write_text(html, encoding="utf-8")


def _draw(content: ReportContent, theme: Theme) -> dict[str, bytes]:
    samples = content.samples
    labels = samples.labels if samples.labels is not None else np.zeros(len(samples), np.int64)
    names = samples.class_names or ("",)
    shown = [label for label in range(len(names)) if (labels == label).any()][:CLASSES_SHOWN]
    depth = len(content.reconstructions)
    rates = np.linspace(0, content.bits_per_image[-1], 60).tolist()
    pictures = {
        "samples": draw_grid(
            [samples.images[labels == label][:IMAGES_SHOWN] for label in shown],
            row_titles=[names[label] for label in shown],
        ),
        "reconstructions": draw_grid(
            [content.originals[:IMAGES_SHOWN], *content.reconstructions[:, :IMAGES_SHOWN]],
            row_titles=["original", *(f"depth {d}" for d in range(1, depth + 1))],
        ),
        "rate_distortion": draw_rate_distortion(
            content.bits_per_image,
            content.relative_error,
            bound=(rates, image_bound(content.held_out.images, rates)),
            theme=theme,
        ),
        "code_usage": draw_usage(content.usage_counts, theme=theme),
    }
    for number, curves in enumerate(content.losses.values(), start=1):
        pictures[f"losses_{number}"] = draw_losses(curves, theme=theme)
    return pictures
