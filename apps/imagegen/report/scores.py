"""The section of scores with their protocols: one table for one protocol."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import yaml

from imagegen.evaluate import Scores
from imagegen.evaluate.protocol import Protocol, tables_of_one_protocol
from imagegen.report.page import details
from rqtoolkit.io.page import table

__all__ = ["scores_section"]

TITLES = {
    "reconstruction": "Reconstructions, image by image",
    "codes": "Codes of held-out images",
    "rFID": "Reconstructions as a set (rFID)",
    "gFID": "Samples as a set (gFID)",
}
FIGURES = {
    "relative_error": ("relative error", "{:.3%}"),
    "psnr": ("PSNR, dB", "{:.2f}"),
    "ssim": ("SSIM", "{:.4f}"),
    "lpips": ("LPIPS", "{:.4f}"),
    "bits_per_code": ("bits per code", "{:.2f}"),
    "bits_per_image": ("bits per image", "{:,.1f}"),
    "code_usage": ("entries used", "{:.1%}"),
    "code_perplexity": ("perplexity", "{:.1f}"),
    "frechet_distance": ("Fréchet distance", "{:.3f}"),
    "kernel_distance": ("kernel distance", "{:.5f}"),
    "kernel_distance_std": ("± (subsets)", "{:.5f}"),
    "inception_score": ("Inception score", "{:.2f}"),
    "inception_score_std": ("± (parts)", "{:.2f}"),
    "precision": ("precision", "{:.1%}"),
    "recall": ("recall", "{:.1%}"),
    "density": ("density", "{:.3f}"),
    "coverage": ("coverage", "{:.1%}"),
}


def scores_section(scores: Sequence[Scores]) -> str:
    """Return tables of scores, each under the protocol all its figures share.

    Args:
        scores: What was measured; none gives a sentence that says so.
    """
    if not scores:
        return "<p>No further scores were measured.</p>"
    text = (
        "<p>Every table has one protocol, opened by the line below it. Figures compare with those "
        "of another run or paper only where the protocols agree; rFID and gFID never do, since "
        "they have different references.</p>"
    )
    return text + "\n".join(_group(group) for group in tables_of_one_protocol(scores))


def _group(group: Sequence[Scores]) -> str:
    title = " · ".join(TITLES.get(score.name, score.name) for score in group)
    tables = "".join(_by_depth(score.values) + _single(score) for score in group)
    protocol = group[0].protocol
    text = yaml.safe_dump(protocol.to_json(), sort_keys=False, allow_unicode=True)
    return f"<h3>{escape(title)}</h3>" + tables + details(_summary(protocol), text)


def _by_depth(values: Any) -> str:
    """Return a table with a row a depth of the figures that have one a depth."""
    listed = {name: v for name, v in values.items() if isinstance(v, list | tuple)}
    if not listed:
        return ""
    depth = len(next(iter(listed.values())))
    rows = [
        (f"depth {d + 1}", *(FIGURES[name][1].format(v[d]) for name, v in listed.items()))
        for d in range(depth)
    ]
    heads = ["", *(FIGURES[name][0] for name in listed)]
    return table(heads, rows if depth > 1 else [("", *rows[0][1:])], label="Figures by depth")


def _single(score: Scores) -> str:
    """Return a table of one row of the figures that are one number."""
    single = {name: v for name, v in score.values.items() if not isinstance(v, list | tuple)}
    if not single:
        return ""
    row = (score.name, *(FIGURES[name][1].format(value) for name, value in single.items()))
    return table(["", *(FIGURES[name][0] for name in single)], [row], label=score.name)


def _summary(protocol: Protocol) -> str:
    """Return a protocol in a line."""
    seen = "" if protocol.extractor is None else f" through {protocol.extractor['name']}"
    size = "" if protocol.reference_images is None else f"{protocol.reference_images:,} "
    against = f" beside {size}{protocol.reference}" if protocol.reference else ""
    return f"Protocol: {protocol.images:,} {protocol.compared}{against}{seen}"
