"""Plots of a report as SVG whose colours the page decides, so that one drawing fits light and dark.

Matplotlib draws in stand-in colours, which become names of the page's style sheet.
"""

import io
import re
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.rcsetup import cycler
from matplotlib.ticker import FuncFormatter, MaxNLocator

from rqtoolkit.semantic_ids.drift import Drift
from rqtoolkit.semantic_ids.embedding_figures import EmbeddingFigures
from rqtoolkit.semantic_ids.figures import LevelFigures, PrefixFigures
from rqtoolkit.semantic_ids.purity import GroupFigures

__all__ = [
    "draw_buckets",
    "draw_cohesion",
    "draw_distortion",
    "draw_drift",
    "draw_purity",
    "draw_usage",
]

_TEXT, _FAINT = "#010203", "#010204"
_SERIES = ("#010211", "#010212", "#010213", "#010214")
_NAMES = {_TEXT: "var(--soft)", _FAINT: "var(--line)"} | {
    color: f"var(--series-{place})" for place, color in enumerate(_SERIES)
}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text, in the page's font
    "svg.hashsalt": "rqtoolkit",  # equal figures give equal bytes
    "font.size": 9,
    "text.color": _TEXT,
    "axes.edgecolor": _FAINT,
    "axes.labelcolor": _TEXT,
    "xtick.color": _TEXT,
    "ytick.color": _TEXT,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "grid.color": _FAINT,
    "axes.prop_cycle": cycler(color=_SERIES),
    "legend.frameon": False,
}
_SIZE = 4.6, 2.8  # inches at 72 dots: the width of a phone, so that letters keep their size


def draw_usage(levels: tuple[LevelFigures, ...]) -> str:
    """Return the items of each code, the fullest first, a line a level."""

    def plot(axes: Axes) -> None:
        for place, level in enumerate(levels):
            counts = np.sort(level.counts)[::-1]
            ranks = np.arange(1, len(counts) + 1) / len(counts)
            axes.plot(ranks, counts, label=f"level {place}", drawstyle="steps-post")
        axes.set(xlabel="codes, the fullest first", ylabel="items of the code")
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
        _legend(axes)

    return _svg(plot)


def draw_buckets(prefixes: tuple[PrefixFigures, ...]) -> str:
    """Return the share of items in buckets of 1, 2, 3–4, … items, a set of bars a prefix length."""
    ranges = sorted({(part.smallest, part.largest) for one in prefixes for part in one.buckets})

    def plot(axes: Axes) -> None:
        width = 0.8 / len(prefixes)
        for place, prefix in enumerate(prefixes):
            items = {part.smallest: part.items for part in prefix.buckets}
            total = sum(items.values())
            heights = [items.get(smallest, 0) / total for smallest, _ in ranges]
            middles = np.arange(len(ranges)) - 0.4 + (place + 0.5) * width
            axes.bar(middles, heights, width, label=_first(prefix.length), color=_color(place))
        axes.set_xticks(range(len(ranges)), [_range(*one) for one in ranges], rotation=35)
        axes.set(xlabel="items that share the codes", ylabel="share of items")
        _percent(axes)
        _legend(axes)

    return _svg(plot)


def draw_distortion(embeddings: EmbeddingFigures) -> str:
    """Return the squared error that is left after 1, 2, … codes."""

    def plot(axes: Axes) -> None:
        _bars(axes, embeddings.mse, [str(depth + 1) for depth in range(len(embeddings.mse))])
        axes.set(xlabel="codes", ylabel="mse")

    return _svg(plot)


def draw_cohesion(embeddings: EmbeddingFigures) -> str:
    """Return the mean cosine within prefixes beside that of items at random."""
    found = [one for one in enumerate(embeddings.cohesion, start=1) if one[1] is not None]

    def plot(axes: Axes) -> None:
        _bars(axes, [value or 0.0 for _, value in found], [_first(length) for length, _ in found])
        if embeddings.random_cosine is not None:
            axes.axhline(
                embeddings.random_cosine, color=_color(1), linestyle="--", label="items at random"
            )
            _legend(axes)
        axes.set(xlabel="items that share their", ylabel="mean cosine")

    return _svg(plot)


def draw_purity(groups: GroupFigures) -> str:
    """Return the purity of prefixes beside that of shuffled groups."""

    def plot(axes: Axes) -> None:
        places = np.arange(len(groups.purity))
        for shift, values, label in (
            (-0.2, groups.purity, "as they are"),
            (0.2, groups.shuffled, "groups shuffled"),
        ):
            axes.bar(places + shift, values, 0.38, label=label, color=_color(int(shift > 0)))
        axes.set_xticks(places, [_first(length + 1) for length in range(len(places))])
        axes.set(xlabel="items that share their", ylabel="share in the commonest group")
        axes.set_ylim(0, 1)
        _percent(axes)
        _legend(axes)

    return _svg(plot)


def draw_drift(drift: Drift) -> str:
    """Return the share of common items that keep their codes."""
    kept = [*drift.kept, drift.kept_relabelled or 0.0]
    names = [*(_first(length + 1) for length in range(len(drift.kept))), "code 1,\nrenamed"]

    def plot(axes: Axes) -> None:
        _bars(axes, kept, names)
        axes.set(ylabel="items that keep their")
        axes.set_ylim(0, 1)
        _percent(axes)

    return _svg(plot)


def _svg(plot: Callable[[Axes], None]) -> str:
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=_SIZE, layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.subplots()
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.grid(axis="y", linewidth=0.8)
        axes.set_axisbelow(True)
        plot(axes)
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"font: (\S+) [^;\"]*", r"font-size: \1; font-family: inherit", svg)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # names would repeat from plot to plot
    for color, name in _NAMES.items():
        svg = svg.replace(color, name)
    return svg


def _bars(axes: Axes, values: Sequence[float], names: Sequence[str]) -> None:
    bars = axes.bar(range(len(values)), values, 0.6, color=_color(0))
    axes.bar_label(bars, [f"{value:.3g}" for value in values], padding=2)
    axes.set_xticks(range(len(values)), names)
    axes.margins(y=0.15)


def _legend(axes: Axes) -> None:
    """Name the series above the plot, where they hide nothing."""
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=len(_SERIES), columnspacing=1.2)


def _percent(axes: Axes) -> None:
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))


def _color(place: int) -> str:
    return _SERIES[place % len(_SERIES)]


def _first(length: int) -> str:
    return "first code" if length == 1 else f"first {length} codes"


def _range(smallest: int, largest: int) -> str:
    return str(smallest) if smallest == largest else f"{smallest}–{largest}"
