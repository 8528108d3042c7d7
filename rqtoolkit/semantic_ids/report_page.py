"""A report as one self-contained page."""

from html import escape
from typing import TYPE_CHECKING

import rqtoolkit
from rqtoolkit.io import page
from rqtoolkit.semantic_ids import report_plots as plots
from rqtoolkit.semantic_ids.report_tables import number, report_tables, share

if TYPE_CHECKING:
    from rqtoolkit.semantic_ids.report import Report

__all__ = ["render_page"]


def render_page(report: "Report", *, title: str) -> str:
    """Return the page of a report as HTML.

    Args:
        report: What to show.
        title: Heading, plain text.
    """
    drawn = '<div class="plots">\n' + "\n".join(_figures(report)) + "\n</div>"
    sections = [
        ("at-a-glance", "At a glance", page.cards(_cards(report))),
        ("plots", "Plots", drawn),
    ]
    for shown in report_tables(report):
        html = page.table(shown.columns, shown.rows, label=shown.title)
        sections.append((shown.title.lower().replace(" ", "-"), shown.title, html))
    return page.render_page(
        title=title,
        lead=_lead(report),
        sections=sections,
        footer=f"rqtoolkit {rqtoolkit.__version__}. This page is one file: it loads nothing and "
        "can be sent on.",
    )


def _lead(report: "Report") -> str:
    sizes = " × ".join(map(str, report.codebook_sizes))
    return f"{report.items:,} items, codes {sizes}; version {report.number}, {report.version}."


def _cards(report: "Report") -> list[str]:
    """Return the headline figures."""
    first = report.levels[0]
    cards = [
        page.card(
            "Duplicate rate",
            share(report.duplicate_rate),
            meaning="1 − distinct IDs / items: items too many for one an ID.",
        ),
        page.card(
            "Shared rate",
            share(report.shared_rate),
            meaning="Items whose ID is not theirs alone. "
            f"The largest bucket has {report.largest_bucket}.",
        ),
        page.card(
            "First-level perplexity",
            f"{first.perplexity:.1f}",
            meaning=f"Codes in effective use, of {first.codebook_size}; {first.dead} are dead.",
        ),
    ]
    found, groups, drift = report.embeddings, report.groups, report.drift
    if found is not None and found.mse:
        cards.append(
            page.card(
                "Relative error",
                share(found.relative_error[-1]),
                meaning="Of what the mean embedding leaves; "
                f"mse {number(found.mse[-1])} in input units.",
            )
        )
    if found is not None and found.cohesion[0] is not None:
        cards.append(
            page.card(
                "Cohesion, first code",
                f"{found.cohesion[0]:.3f}",
                meaning="Mean cosine of items that share it; "
                f"{number(found.random_cosine)} at random.",
            )
        )
    if groups is not None:
        cards.append(
            page.card(
                "Purity, first code",
                share(groups.purity[0]),
                meaning="Items in the commonest group of their code; "
                f"{share(groups.shuffled[0])} with groups shuffled.",
            )
        )
    if drift is not None and drift.kept:
        cards.append(
            page.card(
                "First codes kept",
                share(drift.kept[0]),
                meaning="Since the other version; "
                f"{share(drift.kept_relabelled)} after the best renaming.",
            )
        )
    return cards


def _figures(report: "Report") -> list[str]:
    """Return each plot there are figures for."""
    found = report.embeddings
    drawn = [
        _figure(
            "Use of the codes",
            plots.draw_usage(report.levels),
            "Items of each code of a level, the fullest first. Flat is even; what touches zero is "
            "dead.",
        ),
        _figure(
            "Bucket sizes",
            plots.draw_buckets(report.prefixes),
            "How many items share their first codes. Whole IDs want buckets of one.",
        ),
    ]
    if found is not None and found.mse:
        drawn.append(
            _figure(
                "Distortion",
                plots.draw_distortion(found),
                "Squared error after each code. A code that takes little away says little.",
            )
        )
    if found is not None and any(value is not None for value in found.cohesion):
        drawn.append(
            _figure(
                "Cohesion",
                plots.draw_cohesion(found),
                "Mean cosine of items with the same first codes. At the line, codes mean nothing.",
            )
        )
    if report.groups is not None:
        drawn.append(
            _figure(
                "Purity",
                plots.draw_purity(report.groups),
                "Items in the commonest group of their prefix. Small buckets are pure by chance, "
                "as the shuffled groups show.",
            )
        )
    if report.drift is not None and report.drift.kept:
        drawn.append(
            _figure(
                "Drift",
                plots.draw_drift(report.drift),
                "Items of both versions that kept their codes; last, first codes after the best "
                "renaming.",
            )
        )
    return drawn


def _figure(name: str, svg: str, caption: str) -> str:
    labelled = svg.replace("<svg", f'<svg role="img" aria-label="{escape(name)}"', 1)
    return page.figure(labelled, title=name, caption=caption)
