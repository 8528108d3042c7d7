import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from rqtoolkit.errors import ArtifactError, ConfigError, DataError, ShapeError
from rqtoolkit.semantic_ids.ids import SemanticIDs
from rqtoolkit.semantic_ids.report import Report, make_report

SETTINGS = {"depth": 2, "codebook_size": 8, "seed": 0}


@pytest.fixture(scope="module")
def embeddings():
    rng = np.random.default_rng(0)
    x = 3 * rng.normal(size=(8, 6))[rng.integers(8, size=240)] + rng.normal(size=(240, 6))
    return x.astype(np.float32)


@pytest.fixture(scope="module")
def ids(embeddings):
    ids = SemanticIDs.fit(embeddings[:200], np.arange(200), collisions="token", **SETTINGS)
    ids.add(embeddings[200:], np.arange(200, 240))
    return ids


@pytest.fixture(scope="module")
def full(ids, embeddings):
    older = SemanticIDs.fit(embeddings[:150], np.arange(150), collisions="token", **SETTINGS)
    groups = [f"<group {code}>" for code in ids.codes[:, 0]]
    return make_report(ids, embeddings, groups=groups, against=older)


def test_the_figures_are_those_of_the_ids(ids, embeddings, full):
    assert (full.items, full.depth, full.number) == (240, 2, 1)
    assert full.version == ids.version
    assert full.codebook_sizes == tuple(ids.codebook_sizes)
    assert full.duplicate_rate == full.shared_rate == full.gini == 0
    assert full.largest_bucket == 1
    before = full.prefixes[1]  # without the counter
    assert before.distinct == len(np.unique(ids.codes[:, :2], axis=0))
    assert full.embeddings.mse[-1] == pytest.approx(
        np.square(embeddings - ids.decode(ids.codes)).sum(axis=1).mean(), rel=1e-5
    )
    assert full.embeddings.mse[0] > full.embeddings.mse[1]
    assert full.embeddings.mse_fitted < full.embeddings.mse_added
    assert full.embeddings.cohesion[0] > full.embeddings.random_cosine + 0.3
    assert full.groups.purity == (1.0, 1.0, 1.0)
    assert full.drift.common == 150
    assert full.drift.added == 90


def test_method_and_function_agree(ids, embeddings, full):
    assert ids.report(embeddings).embeddings == full.embeddings
    assert ids.report() == Report(ids.version, 1, 240, 2, "token", full.levels, full.prefixes)


def test_rows_with_ids_come_in_any_order_with_others_among_them(ids, embeddings, full):
    pandas = pytest.importorskip("pandas")
    order = np.random.default_rng(1).permutation(240)
    frame = pandas.DataFrame(
        np.vstack([embeddings[order], embeddings[:1]]), index=[*order.tolist(), 9999]
    )
    found = make_report(ids, frame).embeddings
    assert found.cohesion == pytest.approx(full.embeddings.cohesion)
    assert found.mse == pytest.approx(full.embeddings.mse)
    with pytest.raises(DataError, match="none for 1 of 240"):
        make_report(ids, frame.drop(index=[17]))


def test_embeddings_with_ids_apart(ids, embeddings, full):
    order = np.random.default_rng(1).permutation(240)
    found = ids.report(embeddings[order], order).embeddings
    assert found.mse == pytest.approx(full.embeddings.mse)
    with pytest.raises(ConfigError, match="item_ids are of embeddings; got None"):
        ids.report(item_ids=order)


def test_groups_by_item_id_come_in_any_order():
    pandas = pytest.importorskip("pandas")
    names = [f"n{i}" for i in range(240)]
    named = SemanticIDs.from_codes(np.indices((16, 15)).reshape(2, -1).T, names)
    labels = [f"group {i % 7}" if i % 5 else None for i in range(240)]
    expected = named.report(groups=labels).groups
    assert (expected.items, expected.groups) == (192, 7)
    series = pandas.Series(labels, index=names)
    shuffled = series.sample(frac=1, random_state=0)
    for groups in (series, shuffled, shuffled.dropna(), shuffled.to_dict(), pandas.Series(labels)):
        assert named.report(groups=groups).groups == expected
    with pytest.raises(DataError, match="groups: item_ids have to be strings"):
        named.report(groups=dict(enumerate(labels)))
    with pytest.raises(DataError, match="groups: item_ids have to be distinct"):
        named.report(groups=pandas.concat([series, series]))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"against": "L"}, "against has to be semantic IDs; got str"), ({"seed": "a"}, "seed='a'")],
)
def test_arguments_of_the_wrong_kind_are_named(ids, options, message):
    with pytest.raises(ConfigError, match=message):
        ids.report(**options)


def test_ids_of_other_tools_have_all_but_distortion(embeddings, tmp_path):
    codes = np.random.default_rng(0).integers(0, 4, (240, 3))
    report = SemanticIDs.from_codes(codes, collisions="allow").report(embeddings)
    assert report.embeddings.mse == ()
    assert report.embeddings.cohesion[0] == pytest.approx(report.embeddings.random_cosine, abs=0.1)
    assert report.duplicate_rate == pytest.approx(1 - len(np.unique(codes, axis=0)) / 240)
    report.to_html(tmp_path / "report.html")


@pytest.mark.parametrize(
    ("rows", "dim", "message"), [(239, 6, "239 rows for 240 items"), (240, 5, "dimension 5")]
)
def test_embeddings_of_something_else_are_refused(ids, rows, dim, message):
    with pytest.raises(ShapeError, match=message):
        ids.report(np.ones((rows, dim), np.float32))


def test_json_holds_every_figure(full):
    found = json.loads(full.to_json())
    assert found["duplicate_rate"] == 0
    assert found["levels"][0]["used"] == full.levels[0].used
    assert "counts" not in found["levels"][0]
    assert found["prefixes"][0]["buckets"][0]["items"] == full.prefixes[0].buckets[0].items
    assert found["drift"]["kept"] == list(full.drift.kept)
    assert found["groups"]["shuffled"] == list(full.groups.shuffled)
    assert json.loads(SemanticIDs.from_codes([[0], [1]]).report().to_json())["embeddings"] is None


def test_undefined_numbers_become_null():
    ids = SemanticIDs.fit(np.ones((4, 3), np.float32), depth=1, codebook_size=1, collisions="allow")
    found = json.loads(ids.report(np.full((4, 3), 2, np.float32)).to_json())
    assert found["embeddings"]["relative_error"] == [None]


def test_text_shows_whole_tables(full):
    text = str(full)
    for line in ("Levels", "Prefixes", "Drift", "counter", "shuffled", "duplicate rate", "90"):
        assert line in text
    assert full.drift.against in text
    assert "…" not in text
    lines = {len(line.split()) for line in re.findall(r"^\d .*$", text, re.MULTILINE)}
    assert lines <= {8, 9}


class Page(HTMLParser):
    VOID = frozenset({"meta", "link", "br", "use"})

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.links = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_the_page_is_whole_and_loads_nothing(full, tmp_path):
    path = tmp_path / "report.html"
    full.to_html(path, title="Shop <1>")
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert not page.open
    assert page.tags.count("svg") == 6
    assert "script" not in page.tags
    assert all(link.startswith(("#", "data:")) for link in page.links)
    assert "Shop &lt;1&gt;" in text
    assert "prefers-color-scheme: dark" in text
    assert "width=device-width" in text
    full.to_html(tmp_path / "again.html", title="Shop <1>")
    assert (tmp_path / "again.html").read_bytes() == path.read_bytes()


def test_plots_take_their_colours_from_the_page(full, tmp_path):
    full.to_html(tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    drawn = "".join(re.findall(r"<svg.*?</svg>", text, re.DOTALL))
    named = set(re.findall(r"var\((--[a-z0-9-]+)\)", drawn))
    assert {"--soft", "--line", "--series-0", "--series-1"} <= named
    assert all(f"{name}:" in text for name in named)
    assert not re.findall(r"(?:fill|stroke): ?#", drawn)


def test_a_page_of_codes_alone(tmp_path):
    SemanticIDs.from_codes([[0, 1], [1, 0], [1, 0]]).report().to_html(tmp_path / "report.html")
    assert Page((tmp_path / "report.html").read_text("utf-8")).tags.count("svg") == 2
    with pytest.raises(ArtifactError, match="no folder"):
        SemanticIDs.from_codes([[0], [1]]).report().to_html(tmp_path / "none" / "report.html")


def test_beauty_titles_cohere(shared_data):
    x = np.load(shared_data("data/recsys/beauty/item_embeddings.npy")).astype(np.float32)[:3000]
    found = SemanticIDs.fit(x, depth=2, codebook_size=32, collisions="allow").report(x).embeddings
    assert found.cohesion[0] > found.random_cosine + 0.1
    assert found.duplicates == 3000 - len(np.unique(x, axis=0))
