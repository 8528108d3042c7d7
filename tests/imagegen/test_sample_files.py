"""Samples and users' images on disk: what is written is what is read."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from imagegen.sample import Samples
from imagegen.sample_files import read_samples, write_samples
from imagegen.user_images import list_images, read_npz_images, read_user_images
from rqtoolkit.errors import ArtifactError, ConfigError, DataError

NAMES = ("a", "b", "c")


def drawn(channels=1, number=7):
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (number, 8, 8, channels), np.uint8)
    codes = generator.integers(0, 9, (number, 2, 2, 3)).astype(np.uint8)
    return Samples(images, codes, np.arange(number) % 3)


def read(path, channels=1, names=NAMES):
    return read_samples(path, resolution=8, channels=channels, class_names=names)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("formats", [("png",), ("npz",), ("png", "npz")])
def test_samples_come_back_from_either_format(tmp_path, channels, formats):
    samples = drawn(channels)
    write_samples(samples, tmp_path / "out", formats=formats, record={"seed": 3})
    found = read(tmp_path / "out", channels)
    np.testing.assert_array_equal(found.images, samples.images)
    np.testing.assert_array_equal(found.labels, samples.labels)
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "codes.npy"), samples.codes)
    assert json.loads((tmp_path / "out" / "sampling.json").read_text()) == {"seed": 3}
    there = {path.name for path in (tmp_path / "out").iterdir()}
    assert ("samples.npz" in there) == ("npz" in formats)
    assert ("00006-class-0.png" in there) == ("png" in formats)


def test_the_archive_has_the_layout_of_the_evaluation_suite(tmp_path):
    write_samples(drawn(), tmp_path / "out", formats=["npz"])
    with np.load(tmp_path / "out" / "samples.npz", allow_pickle=False) as file:
        assert file.files == ["arr_0", "arr_1"]
        assert (file["arr_0"].shape, file["arr_0"].dtype) == ((7, 8, 8, 3), np.uint8)
        assert (file["arr_1"].shape, file["arr_1"].dtype) == ((7,), np.int64)


def test_captions_are_kept(tmp_path):
    samples = drawn()
    write_samples(Samples(samples.images, samples.codes, None, ("löwe",) * 7), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "captions.json").read_text(encoding="utf-8"))[0] == "löwe"


def test_unknown_formats_are_refused(tmp_path):
    for formats in (["jpg"], []):
        with pytest.raises(ConfigError, match="Use any of png, npz"):
            write_samples(drawn(), tmp_path / "out", formats=formats)


def test_large_archives_are_mapped_and_compressed_ones_read(tmp_path):
    images = drawn(3).images
    np.savez(tmp_path / "plain.npz", arr_1=np.arange(7), arr_0=images)
    np.savez_compressed(tmp_path / "small.npz", arr_0=images)
    plain = read_npz_images(tmp_path / "plain.npz")
    assert isinstance(plain, np.memmap)
    np.testing.assert_array_equal(plain, images)
    np.testing.assert_array_equal(read_npz_images(tmp_path / "small.npz"), images)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"arr_0": np.zeros((3, 9, 9, 3), np.uint8)}, "must be 8x8 as the run's; got 9x9"),
        (
            {"arr_0": np.zeros((3, 8, 8, 3), np.uint8), "arr_1": np.zeros(2, int)},
            "one integer for each of 3 images",
        ),
        ({"arr_0": np.zeros((3, 8, 8, 3))}, "must be uint8"),
        ({"pictures": np.zeros((3, 8, 8, 3), np.uint8)}, "none of the arrays arr_0"),
    ],
)
def test_samples_that_do_not_fit_are_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "samples.npz", **arrays)
    with pytest.raises(DataError, match=message):
        read(tmp_path / "samples.npz")


def test_folders_of_several_sizes_and_broken_files_are_refused(tmp_path):
    for name, side in (("a.png", 8), ("b.png", 9)):
        Image.fromarray(np.zeros((side, side), np.uint8)).save(tmp_path / name)
    with pytest.raises(DataError, match=r"one size; got b\.png"):
        read(tmp_path)
    (tmp_path / "b.png").write_bytes(b"no picture")
    with pytest.raises(ArtifactError, match=r"b\.png .*cannot be read as an image"):
        read(tmp_path)
    (tmp_path / "broken.npz").write_bytes(b"PK")
    with pytest.raises(ArtifactError, match=r"cannot be read as an \.npz"):
        read(tmp_path / "broken.npz")


def test_users_images_of_any_size_and_colour_become_those_of_the_run(tmp_path):
    grey = np.full((20, 10), 90, np.uint8)
    red = np.zeros((6, 12, 3), np.uint8)
    red[..., 0] = 255
    (tmp_path / "folder").mkdir()
    Image.fromarray(grey).save(tmp_path / "folder" / "grey.png")
    Image.fromarray(red).save(tmp_path / "red.png")
    sources = [tmp_path / "folder", tmp_path / "red.png"]
    found = read_user_images(sources, resolution=8, channels=1)
    assert found.shape == (2, 8, 8, 1)
    luma = np.asarray(Image.new("RGB", (1, 1), (255, 0, 0)).convert("L"))[0, 0]
    assert (found[0] == 90).all()
    assert (found[1] == luma).all()
    colour = read_user_images(sources, resolution=8, channels=3)
    assert (colour[1] == [255, 0, 0]).all()


@pytest.mark.parametrize("beside", ["codes.npy", "sampling.json", "errors.json"])
def test_the_grid_beside_what_we_wrote_is_no_image(tmp_path, beside):
    write_samples(drawn(number=3), tmp_path / "out", record={})
    for name in {"codes.npy", "sampling.json"} - {beside}:
        (tmp_path / "out" / name).unlink()
    (tmp_path / "out" / beside).touch()
    found = read_user_images([tmp_path / "out"], resolution=8, channels=1)
    np.testing.assert_array_equal(found, drawn(number=3).images)
    (tmp_path / "out" / beside).unlink()  # a user's own picture may be called so
    assert len(read_user_images([tmp_path / "out"], resolution=8, channels=1)) == 4


def test_photos_beside_a_subfolder_are_all_read(tmp_path):
    for level, name in enumerate(("a.png", "trip/b.png", "trip/day/c.png", ".cache/d.png")):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((8, 8), level, np.uint8)).save(path)
    (tmp_path / "none yet").mkdir()
    found = read_user_images([tmp_path], resolution=8, channels=1)
    assert found[:, 0, 0, 0].tolist() == [0, 1, 2]
    (tmp_path / "trip" / "b.png").write_bytes(b"no picture")
    with pytest.raises(ArtifactError, match=r"images: .*b\.png .*Mend or leave it out") as refusal:
        read_user_images([tmp_path], resolution=8, channels=1)
    assert "data." not in str(refusal.value)


def test_images_in_folders_are_listed_in_order(tmp_path):
    file = io.BytesIO()
    Image.fromarray(np.zeros((2, 2), np.uint8)).save(file, "PNG")
    for name in ("b/2.png", "a/1.PNG", "c.jpg", ".hidden.png", "notes.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(file.getvalue())
    assert [p.name for p in list_images(tmp_path)] == ["1.PNG", "2.png", "c.jpg"]
    with pytest.raises(ArtifactError, match="neither a file nor a folder"):
        list_images(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no images"):
        list_images(tmp_path / "empty")
