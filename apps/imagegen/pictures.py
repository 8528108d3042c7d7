"""Grids of images and the charts of a report, as PNG bytes that are equal for equal input."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from PIL import Image, ImageDraw, ImageFont

from rqtoolkit.errors import ShapeError
from rqtoolkit.io.atomic import atomic_path

__all__ = [
    "DARK",
    "LIGHT",
    "Theme",
    "draw_grid",
    "draw_losses",
    "draw_rate_distortion",
    "draw_usage",
    "save_grid",
]

TILE = 80  # pixels an image is enlarged to, about
GREY = (128, 134, 145, 255)  # titles of grids: legible on white and on black


@dataclass(frozen=True)
class Theme:
    """Colours of a chart: its ground, text, faint lines, and three series."""

    ground: str
    text: str
    faint: str
    series: tuple[str, str, str]


LIGHT = Theme("#ffffff", "#3d4450", "#e4e7ec", ("#2563eb", "#d9600a", "#0f8a6d"))
DARK = Theme("#171b22", "#b9c0cc", "#2b313b", ("#6ea8fe", "#f5a35c", "#4fd1ad"))


def draw_grid(
    rows: Sequence[np.ndarray] | np.ndarray,
    *,
    row_titles: Sequence[str] = (),
    column_titles: Sequence[str] = (),
    scale: int | None = None,
) -> bytes:
    """Draw rows of images on a transparent ground, each pixel enlarged to a sharp square.

    Args:
        rows: One array (n, H, W, C) of uint8 a row, or one array (R, n, H, W, C); rows may be of
            different length.
        row_titles: Written to the left of each row.
        column_titles: Written above each column.
        scale: Enlargement; None makes images about 80 pixels wide, and never smaller.

    Returns:
        A PNG file.

    Raises:
        ShapeError: If there is no image, or sizes differ.
    """
    sizes = {np.shape(row)[1:] for row in rows}
    columns = max((len(row) for row in rows), default=0)
    if not columns or len(sizes) != 1 or len(next(iter(sizes))) != 3:
        raise ShapeError(
            "draw_grid: rows must be arrays (n, H, W, C) of images of one size; "
            f"got shapes {[np.shape(row) for row in rows][:5]}. Resize them first."
        )
    height, width, _ = next(iter(sizes))
    scale = scale or max(1, round(TILE / width))
    gap = max(2, round(0.06 * scale * width))
    font = _font(max(11, round(0.26 * scale * width)))
    left = max((math.ceil(font.getlength(title)) + 2 * gap for title in row_titles), default=0)
    top = sum(font.getmetrics()) + gap if column_titles else 0
    step_x, step_y = scale * width + gap, scale * height + gap
    sheet = Image.new("RGBA", (left + columns * step_x - gap, top + len(rows) * step_y - gap))
    draw = ImageDraw.Draw(sheet)
    for number, row in enumerate(rows):
        for column, image in enumerate(row):
            pixels = np.kron(image, np.ones((scale, scale, 1), np.uint8))
            tile = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
            sheet.paste(tile.convert("RGBA"), (left + column * step_x, top + number * step_y))
    for number, title in enumerate(row_titles):
        middle = top + number * step_y + scale * height // 2
        draw.text((left - 2 * gap, middle), title, GREY, font, anchor="rm")
    for number, title in enumerate(column_titles):
        middle = left + number * step_x + scale * width // 2
        draw.text((middle, top - gap), title, GREY, font, anchor="md")
    file = io.BytesIO()
    sheet.save(file, "PNG")
    return file.getvalue()


def save_grid(
    path: str | Path,
    rows: Sequence[np.ndarray] | np.ndarray,
    *,
    row_titles: Sequence[str] = (),
    column_titles: Sequence[str] = (),
    scale: int | None = None,
) -> None:
    """Write `draw_grid` to a file, atomically.

    Raises:
        ShapeError: If there is no image, or sizes differ.
        ArtifactError: If the folder is missing.
    """
    png = draw_grid(rows, row_titles=row_titles, column_titles=column_titles, scale=scale)
    with atomic_path(path) as temporary:
        temporary.write_bytes(png)


def draw_rate_distortion(
    bits: Sequence[float],
    errors: Sequence[float],
    *,
    bound: tuple[Sequence[float], Sequence[float]] | None = None,
    theme: Theme = LIGHT,
) -> bytes:
    """Draw relative error over rate, one point a depth, on a logarithmic error axis.

    Args:
        bits: Bits per image with codes of depth 1, 2, …
        errors: Relative errors at those rates.
        bound: Rates and relative errors of the Gaussian bound, drawn as a dashed line.
        theme: LIGHT or DARK.

    Returns:
        A PNG file.
    """
    figure, axes = _chart(theme)
    blue, orange, _ = theme.series
    if bound is not None:
        axes.plot(
            bound[0], bound[1], color=orange, linewidth=1.6, dashes=(5, 3), label="Gaussian bound"
        )
    axes.plot(bits, errors, color=blue, linewidth=2, marker="o", markersize=7, label="this model")
    for depth, (rate, error) in enumerate(zip(bits, errors, strict=True), start=1):
        axes.annotate(
            f"depth {depth}\n{100 * error:.3g}%",
            (rate, error),
            xytext=(0, 11),
            textcoords="offset points",
            color=theme.text,
            ha="center",
            fontsize=9,
        )
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}%"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylim(top=max(errors) * 4)
    axes.margins(x=0.08)
    axes.set_xlabel("rate, bits per image")
    axes.set_ylabel("relative error, held-out images")
    _legend(axes, theme)
    return _png(figure)


def draw_usage(counts: Sequence[np.ndarray], *, theme: Theme = LIGHT) -> bytes:
    """Draw how often each entry of each level was chosen, most frequent first, a panel a level.

    Args:
        counts: One array (K,) a level.
        theme: LIGHT or DARK.

    Returns:
        A PNG file.
    """
    figure = Figure(
        figsize=(7.2, 2 * math.ceil(len(counts) / 2) + 0.3), dpi=160, layout="constrained"
    )
    shape = (math.ceil(len(counts) / 2), min(2, len(counts)))
    panels = figure.subplots(*shape, squeeze=False).flat
    for depth, (axes, level) in enumerate(zip(panels, counts, strict=False), start=1):
        _style(axes, theme)
        shares = np.sort(np.asarray(level, np.float64))[::-1] / max(1, np.sum(level))
        axes.bar(np.arange(len(shares)), shares, width=1.0, color=theme.series[0], linewidth=0)
        axes.axhline(1 / len(shares), color=theme.series[1], linewidth=1.2, dashes=(5, 3))
        used = np.count_nonzero(level) / len(shares)
        axes.set_title(f"depth {depth}: {used:.0%} of {len(shares)} entries used", fontsize=10)
        axes.title.set_color(theme.text)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}%"))
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.margins(x=0.01)
    for axes in list(panels)[len(counts) :]:
        axes.remove()
    figure.supxlabel("entries, the most frequent first", fontsize=10, color=theme.text)
    figure.patch.set_facecolor(theme.ground)
    return _png(figure)


def draw_losses(
    panels: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]],
    *,
    theme: Theme = LIGHT,
) -> bytes:
    """Draw curves over training steps, a panel a unit, side by side.

    A panel is logarithmic where its values span more than one decade.

    Args:
        panels: By unit, which is written at the axis, curves: by name, steps and values; up to
            three. Values that are not finite leave a gap.
        theme: LIGHT or DARK.

    Returns:
        A PNG file.
    """
    width = 7.2 if len(panels) == 1 else 4.7 * len(panels)
    figure = Figure(figsize=(width, 4), dpi=160, layout="constrained")
    figure.patch.set_facecolor(theme.ground)
    grid = figure.subplots(1, len(panels), sharex=True, squeeze=False)
    for axes, (unit, curves) in zip(grid.flat, panels.items(), strict=True):
        _style(axes, theme)
        _draw_curves(axes, curves, theme)
        axes.set_xlabel("training step")
        axes.set_ylabel(unit)
        _legend(axes, theme, loc="best")
    return _png(figure)


def _draw_curves(
    axes: Any, curves: Mapping[str, tuple[Sequence[float], Sequence[float]]], theme: Theme
) -> None:
    for (name, (steps, losses)), colour in zip(curves.items(), theme.series, strict=False):
        marker = "o" if len(steps) < 40 else None  # few points: measured now and then
        axes.plot(steps, losses, color=colour, linewidth=1.6, marker=marker, ms=4, label=name)
    values = np.concatenate([np.asarray(losses, np.float64) for _, losses in curves.values()])
    values = values[np.isfinite(values)]
    if len(values) and values.min() > 0 and values.max() > 10 * values.min():
        axes.set_yscale("log")
        # At most three decades leave room for 1, 2, 5, 10, …
        subs = (1.0, 2.0, 5.0) if values.max() < 1000 * values.min() else (1.0,)
        axes.yaxis.set_major_locator(LogLocator(subs=subs))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_locator(NullLocator())


def _chart(theme: Theme) -> tuple[Figure, Any]:
    # A Figure of its own, not pyplot's: no global state, no window, safe in a server.
    figure = Figure(figsize=(7.2, 4), dpi=160, layout="constrained")
    figure.patch.set_facecolor(theme.ground)
    axes = figure.subplots()
    _style(axes, theme)
    return figure, axes


def _style(axes: Any, theme: Theme) -> None:
    axes.set_facecolor(theme.ground)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(theme.text)
    axes.grid(axis="y", color=theme.faint, linewidth=1)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", colors=theme.text, labelsize=9, left=False)
    axes.xaxis.label.set_color(theme.text)
    axes.yaxis.label.set_color(theme.text)


def _legend(axes: Any, theme: Theme, *, loc: str = "upper right") -> None:
    axes.legend(frameon=False, labelcolor=theme.text, fontsize=9, loc=loc)


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    # Without the Software entry the bytes depend on what is drawn alone.
    FigureCanvasAgg(figure).print_png(file, metadata={"Software": None})
    return file.getvalue()


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    # DejaVu as matplotlib carries it: the same glyphs on every machine.
    return ImageFont.truetype(
        str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"), size
    )
