"""Samples and users' images on disk: what is written is what is read."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from imagegen.sample import Samples
from imagegen.sample_files import read_samples, write_samples
from imagegen.user_images import list_images, open_user_images, read_user_images
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
    plain, small = (
        open_user_images(tmp_path / f"{name}.npz").images for name in ("plain", "small")
    )
    assert isinstance(plain, np.memmap)
    np.testing.assert_array_equal(plain, images)
    np.testing.assert_array_equal(small, images)


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def join(path, *files):
    offsets = np.cumsum([0, *map(len, files)])
    buffer = np.frombuffer(b"".join(files), np.uint8)
    np.savez(path, jpeg_test=buffer, offsets_test=offsets, jpeg_train=buffer[:0])
    return path


@pytest.mark.parametrize("name", ["arr_0", "x_test", "images"])
@pytest.mark.parametrize("channels", [1, 3])
def test_users_archives_of_pixels(tmp_path, name, channels):
    images = drawn(channels).images
    np.savez(tmp_path / "a.npz", **{name: images.squeeze()}, x_train=np.zeros(1))
    found = read_user_images([tmp_path / "a.npz"], resolution=8, channels=channels)
    np.testing.assert_array_equal(found, images)
    smaller = read_user_images([tmp_path / "a.npz"], resolution=4, channels=channels)
    np.testing.assert_allclose(smaller.mean(), images.mean(), atol=2)


def test_users_archives_of_joined_files_are_as_the_files_in_a_folder(tmp_path):
    generator = np.random.default_rng(1)
    files = [png(generator.integers(0, 256, (h, w, 3), np.uint8)) for h, w in ((9, 7), (8, 20))]
    (tmp_path / "folder").mkdir()
    for number, file in enumerate(files):
        (tmp_path / "folder" / f"{number}.png").write_bytes(file)
    told = []
    sources = [join(tmp_path / "joined.npz", *files), tmp_path / "folder"]
    found = read_user_images(sources, resolution=8, channels=3, progress=lambda *x: told.append(x))
    assert found.shape == (4, 8, 8, 3)
    np.testing.assert_array_equal(found[:2], found[2:])
    assert told == [("reading images", done, 2) for done in (1, 2, 1, 2)]


def test_users_archives_that_cannot_be_read_are_refused(tmp_path):
    broken = join(tmp_path / "broken.npz", png(np.zeros((8, 8), np.uint8)), b"no picture")
    with pytest.raises(ArtifactError, match=r"broken\.npz:jpeg_test\[1\] .*Mend or leave it out"):
        read_user_images([broken], resolution=8, channels=1)
    np.savez(tmp_path / "odd.npz", jpeg_test=np.zeros(3, np.uint8), offsets_test=np.array([0, 5]))
    with pytest.raises(DataError, match="must rise from 0 to the length"):
        read_user_images([tmp_path / "odd.npz"], resolution=8, channels=1)
    np.savez(tmp_path / "half.npz", jpeg_test=np.zeros(3, np.uint8))
    with pytest.raises(DataError, match="nor jpeg_test and offsets_test; got jpeg_test"):
        read_user_images([tmp_path / "half.npz"], resolution=8, channels=1)
    np.savez(tmp_path / "none.npz", images=np.zeros((0, 8, 8), np.uint8))
    with pytest.raises(DataError, match="is empty"):
        read_user_images([tmp_path / "none.npz"], resolution=8, channels=1)
    np.save(tmp_path / "array.npy", np.zeros((1, 8, 8), np.uint8))
    (tmp_path / "array.npy").rename(tmp_path / "array.npz")
    with pytest.raises(ArtifactError, match="a single array"):
        read_user_images([tmp_path / "array.npz"], resolution=8, channels=1)


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
    with pytest.raises(DataError, match=r"b\.png must be of one size .*got \(9, 9, 1\)"):
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
