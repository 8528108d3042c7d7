"""Pieces of a self-contained HTML page: no script, no request, every image inside."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape
from importlib import resources

__all__ = ["card", "cards", "details", "figure", "render_page", "table"]


def render_page(
    *, title: str, lead: str, sections: Sequence[tuple[str, str, str]], footer: str
) -> str:
    """Return a whole page.

    Args:
        title: Heading and window title, plain text.
        lead: Paragraph under the heading, plain text.
        sections: (anchor, title, HTML) of each.
        footer: Last line, plain text.
    """
    style = resources.files("imagegen.report").joinpath("report.css").read_text(encoding="utf-8")
    links = "".join(f'<a href="#{anchor}">{escape(name)}</a>' for anchor, name, _ in sections)
    body = "\n".join(
        f'<section id="{anchor}">\n<h2>{escape(name)}</h2>\n{html}\n</section>'
        for anchor, name, html in sections
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<link rel="icon" href="data:,">
<title>{escape(title)}</title>
<style>
{style}</style>
</head>
<body>
<header>
<h1>{escape(title)}</h1>
<p class="lead">{escape(lead)}</p>
<nav aria-label="Sections">{links}</nav>
</header>
<main>
{body}
</main>
<footer>{escape(footer)}</footer>
</body>
</html>
"""


def card(name: str, value: str, *, meaning: str, reference: str, share: float | None = None) -> str:
    """Return one headline figure, with a bar filled to its share of the reference if given."""
    bar = ""
    if share is not None:
        width = 100 * min(max(share, 0.0), 1.0)
        bar = f'<div class="bar" aria-hidden="true"><i style="width:{width:.1f}%"></i></div>'
    return (
        f'<div class="card"><h3>{escape(name)}</h3><p class="value">{escape(value)}</p>{bar}'
        f'<p class="reference">{escape(reference)}</p><p>{escape(meaning)}</p></div>'
    )


def cards(items: Iterable[str]) -> str:
    """Return headline figures side by side."""
    return '<div class="cards">' + "\n".join(items) + "</div>"


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
    note = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return (
        f"<figure><picture>{source}"
        f'<img src="{_data(png)}" width="{width}" height="{height}" alt="{escape(alt)}">'
        f"</picture>{note}</figure>"
    )


def table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, label: str, strong: str | None = None
) -> str:
    """Return a table that scrolls by itself on a narrow screen.

    Args:
        columns: Heads, plain text.
        rows: Cells, plain text; the first of a row is its head.
        label: What the table holds, for screen readers.
        strong: Head of the row to stress.
    """
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    body = []
    for first, *cells in rows:
        kind = ' class="strong"' if first == strong else ""
        line = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        body.append(f'<tr{kind}><th scope="row">{escape(first)}</th>{line}</tr>')
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(label)}"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def details(summary: str, text: str) -> str:
    """Return preformatted text behind a heading that opens it."""
    return f"<details><summary>{escape(summary)}</summary><pre>{escape(text)}</pre></details>"


def _data(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
