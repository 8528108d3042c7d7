"""Self-contained HTML pages: no script, no request, light or dark as the reader likes."""

from collections.abc import Iterable, Sequence
from html import escape
from importlib import resources

__all__ = ["card", "cards", "figure", "render_page", "table"]


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
    style = resources.files("rqtoolkit.io").joinpath("page.css").read_text(encoding="utf-8")
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


def card(
    name: str, value: str, *, meaning: str, reference: str = "", share: float | None = None
) -> str:
    """Return one headline figure.

    Args:
        name: What it is, plain text.
        value: The figure, plain text.
        meaning: A sentence on how to read it, plain text.
        reference: What to compare it with, plain text.
        share: Of that reference: draws a bar, filled so far.
    """
    bar = ""
    if share is not None:
        width = 100 * min(max(share, 0.0), 1.0)
        bar = f'<div class="bar" aria-hidden="true"><i style="width:{width:.1f}%"></i></div>'
    beside = f'<p class="reference">{escape(reference)}</p>' if reference else ""
    return (
        f'<div class="card"><h3>{escape(name)}</h3><p class="value">{escape(value)}</p>{bar}'
        f"{beside}<p>{escape(meaning)}</p></div>"
    )


def cards(items: Iterable[str]) -> str:
    """Return headline figures side by side."""
    return '<div class="cards">\n' + "\n".join(items) + "\n</div>"


def figure(drawing: str, *, title: str = "", caption: str = "") -> str:
    """Return a drawing with its caption.

    Args:
        drawing: HTML of a picture, or SVG.
        title: First words of the caption, plain text.
        caption: Plain text.
    """
    head = f"<strong>{escape(title)}.</strong> " if title else ""
    text = f"<figcaption>{head}{escape(caption)}</figcaption>" if title or caption else ""
    return f"<figure>{drawing}{text}</figure>"


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
