"""A report as one self-contained page: no script, no request, light or dark as the reader likes."""

from html import escape
from importlib import resources
from typing import TYPE_CHECKING

import rqtoolkit
from rqtoolkit.semantic_ids import report_plots as plots
from rqtoolkit.semantic_ids.report_tables import FigureTable, number, report_tables, share

if TYPE_CHECKING:
    from rqtoolkit.semantic_ids.report import Report

__all__ = ["render_page"]


def render_page(report: "Report", *, title: str) -> str:
    """Return the page of a report as HTML.

    Args:
        report: What to show.
        title: Heading, plain text.
    """
    style = resources.files("rqtoolkit.semantic_ids").joinpath("report.css").read_text("utf-8")
    figures = "\n".join(_figure(*one) for one in _figures(report))
    tables = "\n".join(_table(table) for table in report_tables(report))
    cards = "\n".join(_card(*one) for one in _cards(report))
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
<p class="lead">{escape(_lead(report))}</p>
</header>
<main>
<div class="cards">
{cards}
</div>
<section>
<h2>Plots</h2>
<div class="plots">
{figures}
</div>
</section>
<section>
{tables}
</section>
</main>
<footer>rqtoolkit {escape(rqtoolkit.__version__)}. This page is one file: it loads nothing and can
be sent on.</footer>
</body>
</html>
"""


def _lead(report: "Report") -> str:
    sizes = " × ".join(map(str, report.codebook_sizes))
    return f"{report.items:,} items, codes {sizes}; version {report.number}, {report.version}."


def _cards(report: "Report") -> list[tuple[str, str, str]]:
    """Return name, value and meaning of the headline figures."""
    first = report.levels[0]
    cards = [
        (
            "Duplicate rate",
            share(report.duplicate_rate),
            "1 − distinct IDs / items: items too many for one an ID.",
        ),
        (
            "Shared rate",
            share(report.shared_rate),
            f"Items whose ID is not theirs alone. The largest bucket has {report.largest_bucket}.",
        ),
        (
            "First-level perplexity",
            f"{first.perplexity:.1f}",
            f"Codes in effective use, of {first.codebook_size}; {first.dead} are dead.",
        ),
    ]
    found, groups, drift = report.embeddings, report.groups, report.drift
    if found is not None and found.mse:
        cards.append(
            (
                "Relative error",
                share(found.relative_error[-1]),
                f"Of what the mean embedding leaves; mse {number(found.mse[-1])} in input units.",
            )
        )
    if found is not None and found.cohesion[0] is not None:
        cards.append(
            (
                "Cohesion, first code",
                f"{found.cohesion[0]:.3f}",
                f"Mean cosine of items that share it; {number(found.random_cosine)} at random.",
            )
        )
    if groups is not None:
        cards.append(
            (
                "Purity, first code",
                share(groups.purity[0]),
                f"Items in the commonest group of their code; {share(groups.shuffled[0])} with "
                "groups shuffled.",
            )
        )
    if drift is not None and drift.kept:
        cards.append(
            (
                "First codes kept",
                share(drift.kept[0]),
                f"Since the other version; {share(drift.kept_relabelled)} after the best renaming.",
            )
        )
    return cards


def _figures(report: "Report") -> list[tuple[str, str, str]]:
    """Return name, drawing and caption of each plot there are figures for."""
    found = report.embeddings
    drawn = [
        (
            "Use of the codes",
            plots.draw_usage(report.levels),
            "Items of each code of a level, the fullest first. Flat is even; what touches zero is "
            "dead.",
        ),
        (
            "Bucket sizes",
            plots.draw_buckets(report.prefixes),
            "How many items share their first codes. Whole IDs want buckets of one.",
        ),
    ]
    if found is not None and found.mse:
        drawn.append(
            (
                "Distortion",
                plots.draw_distortion(found),
                "Squared error after each code. A code that takes little away says little.",
            )
        )
    if found is not None and any(value is not None for value in found.cohesion):
        drawn.append(
            (
                "Cohesion",
                plots.draw_cohesion(found),
                "Mean cosine of items with the same first codes. At the line, codes mean nothing.",
            )
        )
    if report.groups is not None:
        drawn.append(
            (
                "Purity",
                plots.draw_purity(report.groups),
                "Items in the commonest group of their prefix. Small buckets are pure by chance, "
                "as the shuffled groups show.",
            )
        )
    if report.drift is not None and report.drift.kept:
        drawn.append(
            (
                "Drift",
                plots.draw_drift(report.drift),
                "Items of both versions that kept their codes; last, first codes after the best "
                "renaming.",
            )
        )
    return drawn


def _card(name: str, value: str, meaning: str) -> str:
    return (
        f'<div class="card"><h3>{escape(name)}</h3><p class="value">{escape(value)}</p>'
        f"<p>{escape(meaning)}</p></div>"
    )


def _figure(name: str, svg: str, caption: str) -> str:
    labelled = svg.replace("<svg", f'<svg role="img" aria-label="{escape(name)}"', 1)
    return (
        f"<figure>{labelled}<figcaption><strong>{escape(name)}.</strong> {escape(caption)}"
        "</figcaption></figure>"
    )


def _table(table: FigureTable) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in table.columns)
    body = "".join(
        f'<tr><th scope="row">{escape(first)}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        + "</tr>"
        for first, *cells in table.rows
    )
    return (
        f"<h2>{escape(table.title)}</h2>"
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(table.title)}"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )
