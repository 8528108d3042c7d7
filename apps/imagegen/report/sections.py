"""The sections of a report, from its content and its pictures to HTML."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

import numpy as np
import yaml

from imagegen.evaluate import image_bound
from imagegen.report.content import ReportContent
from imagegen.report.page import details, figure
from imagegen.report.scores import scores_section
from rqtoolkit import __version__
from rqtoolkit.io.page import card, cards, table

__all__ = ["footer", "lead", "sections"]

COLUMNS = {
    "frechet_distance": "FD",
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
    "class_accuracy": "class accuracy",
    "duplicates": "duplicates",
    "near_copies": "near copies",
    "nearest_training_distance": "nearest training image",
}
MEANINGS = {
    "FD": "Fréchet distance of the features from those of the held-out images, each set taken as a "
    "Gaussian. Lower is better; it falls with the number of images, so only rows of this table "
    "compare, and never with distances on other features.",
    "precision": "Share of images that lie among real ones. Falls for broken images.",
    "recall": "Share of held-out images that lie among these. Falls where variety is missing.",
    "density": "How many real neighbourhoods an image lies in, over k. About 1 for real images.",
    "coverage": "Share of held-out images with one of these nearby. Falls for missing kinds.",
    "class accuracy": "Share in which the classifier sees the class that was asked for. For real "
    "images this is its accuracy on held-out ones: the ceiling.",
    "duplicates": "Share that equals an earlier image of the set to the bit.",
    "near copies": "Share that comes at least as near to a training image as the nearest 1% of the "
    "held-out images do. About 1% is what chance gives; far more means learning by heart.",
    "nearest training image": "Median distance to the nearest training image, in grey levels (0 to "
    "255, root mean square over pixels). The first row is that of held-out images.",
}
ROW_NAMES = {
    "real": "real images",
    "reconstruction": "reconstructions",
    "class mean": "class mean",
    "samples": "samples",
}

Pictures = Mapping[str, bytes]


def lead(content: ReportContent) -> str:
    """Return the paragraph under the heading."""
    height, width = content.held_out.resolution
    classes = content.held_out.num_classes
    kind = "greyscale" if content.held_out.channels == 1 else "colour"
    return (
        f"A residual-quantized autoencoder and a transformer over its codes, trained on "
        f"{len(content.train):,} {kind} images of {height}x{width} pixels"
        + (f" in {classes} classes" if classes else "")
        + f" and measured on {len(content.held_out):,} that neither has seen."
    )


def footer() -> str:
    """Return the last line of the page."""
    return f"rqtoolkit {__version__}. This page is one file: it loads nothing and can be sent on."


def sections(content: ReportContent, light: Pictures, dark: Pictures) -> list[tuple[str, str, str]]:
    """Return (anchor, title, HTML) of every section, in reading order.

    Args:
        content: The figures.
        light: Pictures by name, as shown on a light page.
        dark: The same for a dark one.
    """
    codes, coded = bool(content.bits_per_image), bool(content.bits_per_code)
    everything = [
        (True, "headline", "At a glance", lambda: _headline(content)),
        (content.samples is not None, "samples", "Samples", lambda: _samples(content, light)),
        (True, "reconstructions", "Reconstructions", lambda: _reconstructions(light, codes)),
        (
            codes,
            "rate-distortion",
            "Rate and distortion",
            lambda: _rate_distortion(content, light, dark),
        ),
        (bool(content.usage_counts), "code-usage", "Code usage", lambda: _code_usage(light, dark)),
        (coded, "bits", "Bits per code", lambda: _bits(content)),
        (True, "losses", "Loss curves", lambda: _losses(content, light, dark)),
        (content.samples is not None, "evaluation", "Evaluation", lambda: _evaluation(content)),
        (True, "scores", "Scores and protocols", lambda: scores_section(content.scores)),
        (True, "configuration", "Configuration", lambda: _configuration(content)),
        (True, "reproduce", "How to reproduce", lambda: _reproduce(content)),
    ]
    return [(anchor, title, draw()) for there, anchor, title, draw in everything if there]


def _headline(content: ReportContent) -> str:
    bits, unigram = sum(content.bits_per_code), sum(content.unigram_bits_per_code)
    first = content.relative_error[0]
    items = [
        card(
            "Reconstruction error",
            f"{content.relative_error[-1]:.2%}",
            reference=f"With the first code only: {first:.1%}" if content.bits_per_image else "",
            meaning="Squared error of held-out images over their variance"
            + (", all codes used." if content.bits_per_image else "."),
        )
    ]
    if content.bits_per_code:
        bits_card = card(
            "Bits per position",
            f"{bits:.2f}",
            reference=f"Knowing frequencies only: {unigram:.2f}",
            meaning="What the transformer pays for the codes of held-out images. Less is better: "
            "it knows what follows what.",
        )
        items.append(bits_card)
    if content.evaluation is None:
        return cards(items)
    metrics = content.evaluation.metrics

    def against_real(name: str, key: str, reference: str, meaning: str) -> str:
        value, best = metrics[name], metrics[key]
        return card(
            name.replace("_", " ").capitalize(),
            f"{value:.1%}",
            reference=f"{reference}: {best:.1%}",
            meaning=meaning,
            share=value / best if best else None,
        )

    return cards(
        [
            against_real(
                "class_accuracy",
                "class_accuracy_ceiling",
                "Classifier on held-out images",
                "Samples in which a classifier sees the class that was asked for.",
            ),
            against_real(
                "coverage",
                "coverage_floor",
                "Training images",
                "Held-out images with a sample close by. Falls where kinds are missing.",
            ),
            against_real(
                "recall",
                "recall_floor",
                "Training images",
                "Held-out images that lie among the samples. Falls where variety is lost.",
            ),
            *items,
            card(
                "Near copies of training images",
                f"{metrics['near_copies']:.1%}",
                reference=f"Held-out images: {metrics['near_copies_held_out']:.1%}, by definition",
                meaning="Samples at least as near to a training image as the nearest 1% of "
                "held-out images are. Far over 1% would mean learning by heart.",
            ),
        ]
    )


def _samples(content: ReportContent, light: Pictures) -> str:
    classes = bool(content.held_out.num_classes)
    order = "the first ten of each class" if classes else "the first ten"
    settings = ", ".join(f"{name} {value}" for name, value in content.sampling.items())
    drawn = f" Drawn with {settings}." if settings else ""
    generated = figure(
        light["samples"],
        alt="Grid of generated images, a row for each class.",
        caption=f"Generated: {order} as they came, none picked."
        + (" Each row was asked for the class on its left." if classes else "")
        + drawn,
    )
    real = figure(
        light["real_images"],
        alt="Grid of real held-out images in the same layout.",
        caption=f"Real: {order} of the held-out images, for comparison.",
    )
    return f'<div class="pair">{generated}{real}</div>'


def _reconstructions(light: Pictures, codes: bool) -> str:
    if not codes:
        return figure(
            light["reconstructions"],
            alt="Held-out images above their reconstructions.",
            caption="Held-out images, and below them what the decoder makes of their latents.",
        )
    return figure(
        light["reconstructions"],
        alt="Held-out images above their reconstructions from more and more codes.",
        caption="Held-out images, and below them what the decoder makes of the first code of each "
        "position, the first two, and so on: every code adds what the ones before it left over.",
    )


def _rate_distortion(content: ReportContent, light: Pictures, dark: Pictures) -> str:
    bound = image_bound(content.held_out.images, content.bits_per_image)
    rows = [
        (f"depth {depth}", f"{bits:,.0f}", f"{100 * error:.3g}%", f"{100 * least:.3g}%")
        for depth, (bits, error, least) in enumerate(
            zip(content.bits_per_image, content.relative_error, bound, strict=True), start=1
        )
    ]
    return figure(
        light["rate_distortion"],
        dark=dark["rate_distortion"],
        alt="Relative error of held-out images falling as depth adds bits, beside the Gaussian "
        "bound. The table below has the values.",
        caption="Error over rate on held-out images. The dashed line is the least error any code "
        "of that rate could have if pixels were Gaussian with the covariance of these images."
        + (f" {content.rate_note}" if content.rate_note else ""),
    ) + table(
        ["", "bits per image", "relative error", "Gaussian bound"],
        rows,
        label="Rate and distortion by depth",
    )


def _code_usage(light: Pictures, dark: Pictures) -> str:
    return figure(
        light["code_usage"],
        dark=dark["code_usage"],
        alt="Bar charts, one a depth: how often each codebook entry is chosen.",
        caption="How often each codebook entry is chosen for held-out images. The dashed line is "
        "equal use; entries at zero are not chosen by any held-out image.",
    )


def _bits(content: ReportContent) -> str:
    pairs = list(zip(content.bits_per_code, content.unigram_bits_per_code, strict=True))
    rows = [
        (f"depth {depth}", f"{bits:.2f}", f"{unigram:.2f}", _saved(bits, unigram))
        for depth, (bits, unigram) in enumerate(pairs, start=1)
    ]
    bits, unigram = np.sum(pairs, axis=0)
    rows.append(("all depths", f"{bits:.2f}", f"{unigram:.2f}", _saved(bits, unigram)))
    text = (
        "<p>Bits the transformer needs for each code of a held-out image, given all codes before "
        "it and the class. The unigram column is the entropy of those codes: what a model pays "
        "that knows only how frequent each is.</p>"
    )
    return text + table(
        ["", "transformer", "unigram", "saved"],
        rows,
        label="Bits per code by depth",
        strong="all depths",
    )


def _saved(bits: float, unigram: float) -> str:
    return f"{1 - bits / unigram:.0%}" if unigram else ""


def _losses(content: ReportContent, light: Pictures, dark: Pictures) -> str:
    text = (
        "<p>Each panel has a unit of its own. The training loss of stage 2 is in nats (1 nat is "
        "1.44 bits) and, with soft targets, cannot fall under their entropy; held-out bits are of "
        "hard codes. Compare a curve with itself, not with its neighbour.</p>"
    )
    return text + "\n".join(
        f"<h3>{escape(stage)}</h3>"
        + figure(
            light[f"losses_{number}"],
            dark=dark[f"losses_{number}"],
            alt=f"{stage}: {', '.join(panels)} over training steps.",
        )
        for number, (stage, panels) in enumerate(content.losses.items(), start=1)
    )


def _evaluation(content: ReportContent) -> str:
    result = content.evaluation
    if result is None:
        return (
            "<p>Images or samples are not of several known classes, so there is no classifier to "
            "look through: class accuracy, coverage, recall and the rest are left out.</p>"
        )
    heads = {**COLUMNS, "frechet_distance": f"FD ({result.extractor})"}
    rows = []
    for row in result.table:
        shares = {
            key: f"{row[key]:.3f}" if key == "density" else f"{row[key]:.1%}"
            for key in COLUMNS
            if not key.endswith("distance")
        }
        shares["frechet_distance"] = f"{row['frechet_distance']:.2f}"
        shares["nearest_training_distance"] = f"{row['nearest_training_distance']:.1f}"
        rows.append((ROW_NAMES[row["set"]], *(shares[key] for key in COLUMNS)))
    height, width = result.resolution
    note = f"<p>{escape(content.evaluation_note)}</p>" if content.evaluation_note else ""
    meanings = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in MEANINGS.items()
    )
    return (
        f"<p>Every row has {result.images:,} images of {height}x{width} pixels and is compared "
        f"with the {result.images:,} held-out images, on the features of a classifier trained on "
        f"the real training images; neighbourhoods reach {result.k} neighbours. The first row is "
        "what as many real training images score: read every figure against it.</p>"
        + table(
            ["", *(heads[key] for key in COLUMNS)],
            rows,
            label="Evaluation of samples and reference sets",
            strong=ROW_NAMES["samples"],
        )
        + note
        + f"<dl>{meanings}</dl>"
        "<p>Real images: training images, with the held-out images' numbers per class; their last "
        "four columns are those of the held-out images, as the classifier has seen the training "
        "ones. Reconstructions are of the very images they are compared with, so they may beat "
        "the first row. Class mean: for each held-out image the average training image of its "
        f"class.</p><p>Extractor <code>{escape(result.extractor)}</code>, weights "
        f"<code>sha256 {escape(result.sha256)}</code>.</p>"
    )


def _configuration(content: ReportContent) -> str:
    text = yaml.safe_dump(dict(content.config), sort_keys=False, allow_unicode=True)
    return details("Every setting of this run", text)


def _reproduce(content: ReportContent) -> str:
    commands = escape("\n".join(content.commands))
    text = (
        f"<pre>{commands}</pre><p>NEW stands for a new folder, RUN for the one that holds this "
        "report. On one machine, with one number of threads, a seed fixes codes, checkpoints, "
        "pictures and figures to the bit; elsewhere figures may move a per cent or two.</p>"
    )
    if not content.seconds:
        return text
    rows = [(name, f"{seconds:,.0f} s") for name, seconds in content.seconds.items()]
    rows.append(("together", f"{sum(content.seconds.values()):,.0f} s"))
    return text + table(["", "time"], rows, label="Time by part", strong="together")
