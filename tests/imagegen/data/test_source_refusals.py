"""What each source refuses, broken images among many, indexes, and patterns of shards."""

import io
import logging
import tarfile

import numpy as np
import pytest
from PIL import Image

from imagegen.data import open_images
from imagegen.data.index import cached_index
from imagegen.data.shards import find_shards
from imagegen.data.strings import Strings
from rqtoolkit.errors import ArtifactError, ConfigError, DataError, MissingDependencyError


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("RQTOOLKIT_CACHE", str(folder))
    return folder


def png(level=0):
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (level, 0, 0)).save(file, "PNG")
    return file.getvalue()


def write(path, content=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png() if content is None else content)


def write_tar(path, members, mode="w"):
    with tarfile.open(path, mode) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def refuse(error, message, **arguments):
    with pytest.raises(error, match=message) as caught:
        open_images(**{"resolution": 4, **arguments})
    assert "\n" not in str(caught.value)


def test_archives_and_folders_are_told_apart(tmp_path):
    refuse(ArtifactError, "set data.source: folder", source="npz", path=tmp_path)
    (tmp_path / "images.npz").write_bytes(b"")
    path = tmp_path / "images.npz"
    refuse(ArtifactError, "Set data.source: npz", source="folder", path=path)


def test_a_missing_caption_is_the_empty_text(tmp_path):
    datasets = pytest.importorskip("datasets")
    cells = [{"bytes": png(), "path": None}] * 4
    rows = {"image": cells, "text": ["a", None, "None", ""]}
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    parts = {
        name: datasets.Dataset.from_dict(rows, features=features) for name in ("train", "test")
    }
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "set"))
    train, _ = open_images(source="huggingface", path=tmp_path / "set", resolution=4)
    assert list(train.texts) == ["a", "", "None", ""]


def test_lists(tmp_path):
    path = tmp_path / "list.tsv"

    def check(text, error, message, **options):
        path.write_text(text, encoding="utf-8")
        refuse(error, message, source="list", path=path, **options)

    refuse(ArtifactError, "is not a file", source="list", path=path)
    check("\n\n", DataError, "got an empty file")
    check("path\tlabel\n", DataError, "got a header alone")
    check("a.png\t1\nb.png\n", DataError, "line 2 .* must have 2 columns .* got 1")
    check("a.png\t1\tx\n", DataError, "3 columns and no header")
    check("a\tb\nx\ty\n", DataError, "no column 'kind'", label_column="kind")
    check("a\tb\nx\ty\n", DataError, "no column of paths; got a, b", label_column="b")
    check("none.png\n", ArtifactError, r"none\.png \(No such file")
    path.write_bytes(b"\xff\xfe\x00")
    refuse(ArtifactError, "is not a list in UTF-8", source="list", path=path)


def test_cc3m(tmp_path):
    refuse(ArtifactError, r"train_list\.txt is not a file", source="cc3m", path=tmp_path)
    (tmp_path / "train_list.txt").write_text("a\t1\n")
    refuse(DataError, "must have a caption on each line", source="cc3m", path=tmp_path)


def test_held_out_images_elsewhere_must_have_the_same_kind_of_classes(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / f"{name}.png")
    (tmp_path / "train.tsv").write_text("a.png\t0\nb.png\t1\n")
    (tmp_path / "plain.tsv").write_text("a.png\n")
    arguments = {"source": "list", "path": tmp_path / "train.tsv"}
    refuse(DataError, "must both have classes", held_out_path=tmp_path / "plain.tsv", **arguments)
    (tmp_path / "words.csv").write_text("path,class\na.png,cat\nb.png,owl\n")
    (tmp_path / "other.csv").write_text("path,class\nb.png,owl\n")
    _, held_out = open_images(
        source="list",
        path=tmp_path / "words.csv",
        held_out_path=tmp_path / "other.csv",
        resolution=4,
    )
    assert held_out.class_names == ("cat", "owl")
    assert held_out.labels.tolist() == [1]


def test_imagenet(tmp_path):
    refuse(ArtifactError, "train is not a folder", source="imagenet", path=tmp_path)
    write(tmp_path / "train" / "n01" / "a.JPEG")
    refuse(ArtifactError, "val is not a folder", source="imagenet", path=tmp_path)
    write(tmp_path / "val" / "b.JPEG")
    refuse(DataError, "must hold a folder for each class", source="imagenet", path=tmp_path)
    (tmp_path / "val" / "b.JPEG").unlink()
    write(tmp_path / "val" / "n02" / "b.JPEG")
    refuse(DataError, "classes that train/ has not; got n02", source="imagenet", path=tmp_path)


def test_ffhq(tmp_path):
    refuse(DataError, "holds no images", source="ffhq", path=tmp_path)
    write(tmp_path / "face.png")
    refuse(DataError, r"named by number; got face\.png", source="ffhq", path=tmp_path)
    for name in ("ffhqtrain.txt", "ffhqvalidation.txt"):
        (tmp_path / name).write_text("00001.png\n")
    refuse(ArtifactError, r"00001\.png is listed and missing", source="ffhq", path=tmp_path)


def test_shards(tmp_path):
    def check(members, error, message, mode="w", **options):
        write_tar(tmp_path / "a.tar", members, mode)
        refuse(error, message, source="webdataset", path=tmp_path / "a.tar", **options)

    refuse(ArtifactError, r"must name \.tar files; got none", source="webdataset", path=tmp_path)
    missing = tmp_path / "{0..1}.tar"
    refuse(ArtifactError, r"got .*0\.tar", source="webdataset", path=missing)
    check([("1.txt", b"text")], DataError, "holds no images; got 1 shards without")
    check([("1.png", png())], ArtifactError, "Write it anew, without compression", "w:gz")
    check(
        [("1.png", png()), ("1.cls", b"0"), ("2.png", png())],
        DataError,
        r"1 of 2 samples have no label; got none for .*a\.tar:2\.png",
    )
    check([("1.png", png())], DataError, "1 of 1 samples have no text", text_column="caption")
    check([("1.png", png()), ("1.json", b"{")], ArtifactError, "JSONDecodeError")
    write_tar(tmp_path / "a.tar", [("1.png", png()), ("2.png", bytes(20_000))])
    whole = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(whole[:15_000])
    refuse(ArtifactError, "ReadError: unexpected end", source="webdataset", path=tmp_path / "a.tar")


def test_databases(tmp_path, monkeypatch):
    refuse(ArtifactError, "must be an LMDB or hold one", source="lsun", path=tmp_path)
    pytest.importorskip("lmdb")
    pytest.importorskip("datasets")
    (tmp_path / "x_train_lmdb").mkdir()
    (tmp_path / "x_train_lmdb" / "data.mdb").write_bytes(b"no database" * 1000)
    refuse(ArtifactError, "cannot be read as an LMDB", source="lsun", path=tmp_path)
    refuse(ArtifactError, "is no data set of Hugging Face", source="huggingface", path=tmp_path)
    for module, source in (("lmdb", "lsun"), ("datasets", "huggingface")):
        monkeypatch.setitem(__import__("sys").modules, module, None)
        refuse(
            MissingDependencyError,
            r"pip install 'rqtoolkit\[data\]'",
            source=source,
            path=tmp_path,
        )


def test_a_data_set_without_images_or_training_part(tmp_path):
    datasets = pytest.importorskip("datasets")
    plain = datasets.Dataset.from_dict({"number": [1, 2]})
    plain.save_to_disk(str(tmp_path / "plain"))
    arguments = {"source": "huggingface", "path": tmp_path / "plain"}
    refuse(DataError, "no column of images; got number", **arguments)
    refuse(DataError, "no column 'picture'", image_column="picture", **arguments)
    datasets.DatasetDict({"dev": plain}).save_to_disk(str(tmp_path / "dev"))
    refuse(DataError, "split 'train'; got dev", source="huggingface", path=tmp_path / "dev")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop": "middle"}, "crop='middle' is not known"),
        ({"fit": "pad", "crop": "zoom"}, "fit='pad' keeps them whole"),
        ({"held_out_path": "there"}, "says itself what is held out"),
        ({"text_column": "caption"}, "has no columns; got text_column=caption"),
    ],
)
def test_options_that_do_not_go_together(options, message):
    refuse(ConfigError, message, source="digits", **options)


@pytest.mark.parametrize("crop", ["center", "random"])
def test_broken_images_up_to_a_share_are_skipped(tmp_path, crop, caplog):
    for number in range(40):
        write(tmp_path / f"{number:02d}.png", png(number))
    for number, content in ((3, b""), (17, b"<html>")):
        write(tmp_path / f"{number:02d}.png", content)
    arguments = {"source": "folder", "path": tmp_path, "resolution": 4, "crop": crop}
    with caplog.at_level(logging.WARNING, logger="imagegen.data"):
        train, held_out = open_images(corrupt=0.13, held_out=8, **arguments)
    if crop == "center":  # all were read
        assert len(train) + len(held_out) == 38
        assert len(caplog.records) == 2
        refuse(ArtifactError, r"03\.png .*17\.png .* got 2 broken of 40", **arguments)
    else:
        assert len(train) == 32
        assert train.skippable == 4
    assert {int(level) for level in held_out.images[:, 0, 0, 0]}.isdisjoint({3, 17})


def test_indexes_follow_their_file(tmp_path, cache):
    file, built = tmp_path / "file", []

    def build(path):
        built.append(path)
        return {"size": np.array(path.stat().st_size)}

    file.write_bytes(b"one")
    assert [int(cached_index(file, "k", build)["size"]) for _ in range(2)] == [3, 3]
    assert len(built) == 1
    cached_index(file, "other", build)
    file.write_bytes(b"longer")
    assert int(cached_index(file, "k", build)["size"]) == 6
    assert len(built) == 3
    for index in cache.iterdir():
        index.write_bytes(index.read_bytes()[:20])
    assert int(cached_index(file, "k", build)["size"]) == 6  # damaged: built again
    assert len(built) == 4


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, monkeypatch):
    (tmp_path / "taken").write_text("a file, not a folder")
    monkeypatch.setenv("RQTOOLKIT_CACHE", str(tmp_path / "taken"))
    (tmp_path / "file").write_text("x")
    assert cached_index(tmp_path / "file", "k", lambda _: {"a": np.ones(2)})["a"].sum() == 2


def test_patterns_of_shards(tmp_path):
    for name in ("a-008", "a-009", "a-010", "b-1"):
        write_tar(tmp_path / f"{name}.tar", [("1.png", png())])

    def names(pattern):
        return [path.stem for path in find_shards(tmp_path / pattern)]

    assert names("a-{008..010}.tar") == ["a-008", "a-009", "a-010"]
    assert names("{b-1,a-008}.tar") == ["b-1", "a-008"]
    assert names("a-*.tar") == ["a-008", "a-009", "a-010"]
    assert names("{a-00[89],b-*}.tar") == ["a-008", "a-009", "b-1"]
    assert names("") == ["a-008", "a-009", "a-010", "b-1"]


def test_strings_are_what_was_packed():
    words = ["", "one", "zwölf", "斑馬", "\udcff"]
    packed = Strings.pack(words)
    assert list(packed) == words
    assert list(packed.take(np.array([3, 1]))) == ["斑馬", "one"]
    assert list(packed[1:3]) == ["one", "zwölf"]
    assert packed[-2] == "斑馬"
    assert len(Strings.pack([])) == 0
