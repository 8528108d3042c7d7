"""What a page about images has beside the pieces of every page: pictures and folded text."""

from __future__ import annotations

import base64
from html import escape

from rqtoolkit.io import page

__all__ = ["details", "figure"]


def figure(png: bytes, *, alt: str, caption: str = "", dark: bytes | None = None) -> str:
    """Return an image with its caption.

    Args:
        png: The image.
        alt: What it shows, for those who do not see it.
        caption: Plain text under it.
        dark: The image for readers who prefer a dark page.
    """
    source = f'<source media="(prefers-color-scheme: dark)" srcset="{_data(dark)}">' if dark else ""
    width, height = (int.from_bytes(png[at : at + 4], "big") for at in (16, 20))  # PNG's header
    image = f'<img src="{_data(png)}" width="{width}" height="{height}" alt="{escape(alt)}">'
    return page.figure(f"<picture>{source}{image}</picture>", caption=caption)


def details(summary: str, text: str) -> str:
    """Return preformatted text behind a heading that opens it."""
    return f"<details><summary>{escape(summary)}</summary><pre>{escape(text)}</pre></details>"


def _data(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
