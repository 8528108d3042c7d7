import re
from html.parser import HTMLParser

from rqtoolkit.io import page


class Reader(HTMLParser):
    """Collects attributes by tag, and refuses tags that do not close in order."""

    def __init__(self, html):
        super().__init__()
        self.open, self.found = [], []
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag not in {"meta", "link", "br"}:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def whole(html):
    return page.render_page(
        title="A & B", lead="<lead>", sections=[("one", "One", html)], footer=""
    )


def test_a_page_links_its_sections_escapes_words_and_loads_nothing():
    html = whole("<p>text</p>")
    reader = Reader(html)
    links = [attributes["href"] for tag, attributes in reader.found if tag in {"a", "link"}]
    assert sorted(links) == ["#one", "data:,"]
    assert {"section"} == {tag for tag, attributes in reader.found if attributes.get("id") == "one"}
    assert "<title>A &amp; B</title>" in html
    assert "&lt;lead&gt;" in html
    assert not re.search(r"url\(|@import|//|<script", html)


def test_every_colour_is_defined_for_light_and_dark():
    style = whole("").split("<style>")[1].split("</style>")[0]
    used = set(re.findall(r"var\((--[\w-]+)\)", style))
    light, dark = (set(re.findall(r"(--[\w-]+):", block)) for block in style.split("@media")[:2])
    assert used <= light
    assert light == dark


def test_pieces_are_well_formed_and_escaped():
    html = whole(
        page.cards(
            [
                page.card("a<b", "1%", meaning="m&n", reference="r", share=2.0),
                page.card("plain", "2", meaning="no reference"),
            ]
        )
        + page.figure("<svg></svg>", title="T>", caption="c")
        + page.figure("<svg></svg>")
        + page.table(["", "x"], [("a", "<1>"), ("b", "2")], label='"quoted"', strong="b")
    )
    found = Reader(html).found
    assert [attributes["style"] for tag, attributes in found if tag == "i"] == ["width:100.0%"]
    assert sum(attributes.get("class") == "reference" for _, attributes in found) == 1
    assert sum(tag == "figcaption" for tag, _ in found) == 1
    assert [attributes for tag, attributes in found if tag == "tr"][1:] == [{}, {"class": "strong"}]
    assert "&lt;1&gt;" in html
    assert "a&lt;b" in html
