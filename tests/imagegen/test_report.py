"""The report: self-contained, complete, escaped, equal for equal content."""

import base64
import dataclasses
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from imagegen.evaluate import EvaluationResult
from imagegen.images import ImageSet
from imagegen.report import ReportContent, write_report
from rqtoolkit.errors import ArtifactError, ShapeError

SECTIONS = (
    "At a glance",
    "Samples",
    "Reconstructions",
    "Rate and distortion",
    "Code usage",
    "Bits per code",
    "Loss curves",
    "Evaluation",
    "Scores and protocols",
    "Configuration",
    "How to reproduce",
)
PICTURES = {
    "samples.png",
    "real_images.png",
    "reconstructions.png",
    "rate_distortion.png",
    "code_usage.png",
    "losses_1.png",
    "losses_2.png",
}
VOID = {"meta", "link", "img", "source", "br"}


def make_content(**changes):
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (24, 8, 8, 1), np.uint8)
    labels = np.arange(24, dtype=np.int64) % 2
    held_out = ImageSet(images, labels, ("cat", "dog <b>"))
    row = {
        "frechet_distance": 15.163,
        "precision": 0.936,
        "recall": 0.871,
        "density": 0.893,
        "coverage": 0.917,
        "class_accuracy": 0.978,
        "duplicates": 0.0,
        "near_copies": 0.014,
        "nearest_training_distance": 25.5,
    }
    names = ("real", "reconstruction", "class mean", "samples")
    evaluation = EvaluationResult(
        extractor="pets-cnn-v1",
        sha256="ab" * 32,
        images=24,
        k=5,
        resolution=(8, 8),
        channels=1,
        seed=0,
        table=tuple({"set": name, **row} for name in names),
    )
    curve = {
        "nats a code": {"training": ([0, 10, 20], [3.0, 1.0, 0.1])},
        "bits a code": {"held out": ([0, 20], [3.0, 0.2])},
    }
    fields = {
        "title": "Pets & <friends>",
        "train": held_out,
        "held_out": held_out,
        "samples": held_out,
        "originals": images[:4],
        "reconstructions": np.stack([images[:4]] * 3),
        "relative_error": [0.2, 0.05, 0.0123],
        "bits_per_image": [32, 64, 96],
        "usage_counts": [generator.integers(0, 9, 16) for _ in range(3)],
        "losses": {"Stage 1: RQ-VAE": curve, "Stage 2: RQ-Transformer": curve},
        "evaluation": evaluation,
        "bits_per_code": [2.5, 3.5, 3.0],
        "unigram_bits_per_code": [4.0, 4.0, 4.0],
        "config": {"data": {"source": "npz", "fit": "<pad>"}, "seed": 7},
        "commands": ["rqtool imagegen train --config pets", "echo '<done>'"],
        "sampling": {"temperature": "0.95", "top-k": "off"},
        "rate_note": "Raw: <262> bits.",
        "evaluation_note": "Chosen <while> looking.",
        "seconds": {"stage 1": 100.4, "stage 2": 20.0},
        **changes,
    }
    return ReportContent(**fields)


class Reader(HTMLParser):
    """Collects tags, attributes and text, and refuses tags that do not close in order."""

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.text = [], [], ""
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text += data

    def all(self, name):
        return [attributes for tag, attributes in self.tags if tag == name]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    write_report(folder / "report.html", make_content())
    return folder


@pytest.fixture(scope="module")
def html(folder):
    return (folder / "report.html").read_text(encoding="utf-8")


def test_every_section_is_there_and_linked(html):
    reader = Reader(html)
    headings = re.findall(r"<h2>(.*?)</h2>", html)
    assert headings == list(SECTIONS)
    anchors = {attributes["id"] for attributes in reader.all("section")}
    assert {link["href"] for link in reader.all("a")} == {f"#{anchor}" for anchor in anchors}


def test_nothing_is_asked_for_over_a_network(html):
    reader = Reader(html)
    assert "//" not in re.sub(r"base64,[\w+/=]+", "", html)  # no scheme, no protocol-relative URL
    for attributes in (a for _, a in reader.tags):
        for name in ("src", "srcset", "href"):
            assert attributes.get(name, "#").startswith(("#", "data:"))
    assert not reader.all("script")
    assert "@import" not in html
    assert "url(" not in html


def test_pictures_are_inside_and_beside(folder, html):
    assert {p.name for p in folder.iterdir()} == PICTURES | {"report.html"}
    for name in PICTURES:
        png = (folder / name).read_bytes()
        assert png.startswith(b"\x89PNG")
        assert base64.b64encode(png).decode() in html


def test_every_picture_has_words_for_it_and_charts_have_a_dark_twin(html):
    reader = Reader(html)
    assert len(reader.all("img")) == len(PICTURES)
    assert all(len(image["alt"]) > 20 for image in reader.all("img"))
    dark = [s for s in reader.all("source") if s["media"] == "(prefers-color-scheme: dark)"]
    assert len(dark) == 4


def test_figures_stand_in_the_text(html):
    text = " ".join(Reader(html).text.split())
    for figure in (
        "97.8%",  # class accuracy
        "91.7%",  # coverage
        "87.1%",  # recall
        "1.4%",  # near copies
        "Drawn with temperature 0.95, top-k off.",
        "Raw: <262> bits.",
        "Chosen <while> looking.",
        "not chosen by any held-out image",
        "1.23%",  # reconstruction error at full depth
        "9.00",  # bits per position, 2.5 + 3.5 + 3
        "12.00",
        "15.16",  # Fréchet distance
        "FD (pets-cnn-v1)",
        "ab" * 32,
        "100 s",
        "120 s",
        "rqtool imagegen train --config pets",
        "seed: 7",
    ):
        assert figure in text, figure
    assert "FID" not in text


def test_text_is_escaped(html):
    assert "<title>Pets &amp; &lt;friends&gt;</title>" in html
    assert "&lt;pad&gt;" in html
    assert "&lt;done&gt;" in html
    assert "<friends>" not in html


def test_equal_content_gives_equal_files(folder, tmp_path):
    write_report(tmp_path / "report.html", make_content())
    for path in folder.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name


def test_runs_without_classes_reconstructions_or_times(tmp_path):
    content = make_content(seconds={})
    plain = ImageSet(content.samples.images)
    rows = tuple(row for row in content.evaluation.table if row["set"] != "reconstruction")
    evaluation = dataclasses.replace(content.evaluation, table=rows)
    content = dataclasses.replace(content, samples=plain, held_out=plain, evaluation=evaluation)
    write_report(tmp_path / "report.html", content)
    assert "reconstructions</th>" not in (tmp_path / "report.html").read_text()


def test_images_without_classes_leave_out_the_classifiers_figures(tmp_path):
    plain = ImageSet(make_content().samples.images)
    write_report(
        tmp_path / "report.html", make_content(samples=plain, held_out=plain, evaluation=None)
    )
    reader = Reader((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "Reconstruction error" in reader.text
    assert "no classifier" in reader.text
    assert "Coverage" not in reader.text


def test_lists_by_depth_must_agree():
    with pytest.raises(ShapeError, match=r"one length; got .*'relative_error': 2"):
        make_content(relative_error=[0.1, 0.2])


def test_missing_folder(tmp_path):
    with pytest.raises(ArtifactError, match="no folder"):
        write_report(tmp_path / "none" / "report.html", make_content())
