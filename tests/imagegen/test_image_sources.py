"""Where images come from: the digits, npz files, folders; sizes, splits and refusals."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from imagegen.data import ImageSet, open_images
from imagegen.data.classes import stratified_rows
from rqtoolkit.errors import ArtifactError, ConfigError, DataError, ShapeError


@pytest.fixture
def npz(tmp_path):
    """Write an npz of 20 + 10 images 4x4 in two classes, any array replaced or left out (None)."""

    def write(**changes):
        generator = np.random.default_rng(0)
        arrays = {
            "x_train": generator.integers(0, 256, (20, 4, 4), np.uint8),
            "y_train": np.arange(20, dtype=np.uint8) % 2,
            "x_test": generator.integers(0, 256, (10, 4, 4), np.uint8),
            "y_test": np.arange(10, dtype=np.uint8) % 2,
            "class_names": np.array(["cat", "dog"]),
            **changes,
        }
        path = tmp_path / "images.npz"
        np.savez(path, **{name: a for name, a in arrays.items() if a is not None})
        return path

    return write


def write_images(folder, count, size=(6, 8), mode="RGB"):
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(len(str(folder)))
    shape = (*size, 3) if mode == "RGB" else size
    for number in range(count):
        pixels = generator.integers(0, 256, shape, np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")


def test_digits_hold_out_a_stratified_fifth():
    train, held_out = open_images(source="digits", resolution=16)
    assert train.images.shape == (1437, 16, 16, 1)
    assert held_out.images.shape == (360, 16, 16, 1)
    shares = np.bincount(held_out.labels) / np.bincount(
        np.concatenate([train.labels, held_out.labels])
    )
    assert np.abs(shares - 0.2).max() < 1 / 174  # the rarest digit has 174 images
    assert train.class_names == tuple("0123456789")
    assert held_out.images.min() == 0
    assert held_out.images.max() == 255


def test_digits_keep_their_own_pixels_at_their_own_size():
    from sklearn.datasets import load_digits

    train, held_out = open_images(source="digits", resolution=8)
    ours = np.concatenate([train.images, held_out.images])[..., 0]
    raw = load_digits().images
    expected = np.rint(raw * 255 / 16).astype(np.uint8)
    assert sorted(i.tobytes() for i in ours) == sorted(i.tobytes() for i in expected)


def test_split_follows_the_seed():
    first, again, other = (
        open_images(source="digits", resolution=8, split_seed=s)[1] for s in (1, 1, 2)
    )
    np.testing.assert_array_equal(first.images, again.images)
    assert (first.images != other.images).any()


@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=60),
    st.integers(0, 9),
    st.data(),
)
def test_stratified_rows_have_the_classes_shares(labels, seed, data):
    labels = np.array(labels, np.int64)
    total = data.draw(st.integers(1, len(labels)))
    images = ImageSet(np.zeros((len(labels), 1, 1, 1), np.uint8), labels, tuple("abcde"))
    rows = stratified_rows(images, total, seed)
    assert len(rows) == total == len(set(rows.tolist()))
    quotas = np.bincount(labels, minlength=5) * total / len(labels)
    assert np.abs(np.bincount(labels[rows], minlength=5) - quotas).max() < 1


def test_resizing_keeps_flat_images_flat_and_shrinks_by_averaging(npz):
    flat = np.full((20, 4, 4), 77, np.uint8)
    train, _ = open_images(source="npz", path=npz(x_train=flat), resolution=9)
    assert (train.images == 77).all()
    checks = np.indices((4, 4)).sum(0) % 2 * 255
    path = npz(x_train=np.tile(checks.astype(np.uint8), (20, 1, 1)))
    train, _ = open_images(source="npz", path=path, resolution=1)
    assert abs(int(train.images[0, 0, 0, 0]) - 127.5) <= 1


def test_padding_leaves_pixels_and_centres_them(npz):
    raw = np.load(npz())["x_test"]
    _, held_out = open_images(source="npz", path=npz(), resolution=8, fit="pad")
    np.testing.assert_array_equal(held_out.images[:, 2:6, 2:6, 0], raw)
    assert held_out.images.astype(int).sum() == raw.astype(int).sum()  # nothing but black around
    with pytest.raises(DataError, match="cannot make an image smaller"):
        open_images(source="npz", path=npz(), resolution=3, fit="pad")


def test_npz_keeps_its_own_test_images_or_some_of_them(npz):
    train, held_out = open_images(source="npz", path=npz(), resolution=4)
    assert (len(train), len(held_out)) == (20, 10)
    assert train.class_names == ("cat", "dog")
    for number in (4, 4.0, 0.4):
        _, some = open_images(source="npz", path=npz(), resolution=4, held_out=number)
        assert np.bincount(some.labels).tolist() == [2, 2]


def test_npz_in_colour_and_without_classes(npz):
    colour = npz(
        x_train=np.zeros((5, 4, 4, 3), np.uint8),
        x_test=np.zeros((2, 4, 4, 3), np.uint8),
        y_train=None,
        y_test=None,
        class_names=None,
    )
    train, held_out = open_images(source="npz", path=colour, resolution=4)
    assert (train.channels, train.labels, held_out.class_names) == (3, None, None)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"x_test": None}, DataError, "lacks x_test"),
        ({"y_test": None}, DataError, "lacks y_test"),
        ({"x_train": np.zeros((20, 4, 4))}, DataError, "must be uint8 .* got float64"),
        ({"x_train": np.zeros((20, 4), np.uint8)}, DataError, "got uint8 \\(20, 4\\)"),
        ({"x_test": np.zeros((0, 4, 4), np.uint8)}, DataError, "not empty"),
        ({"x_test": np.zeros((10, 4, 4, 2), np.uint8)}, ShapeError, "x_test of .* 1 or 3 channels"),
        ({"y_train": np.zeros(20)}, DataError, "integers from 0; got float64"),
        ({"y_train": np.zeros(19, np.int64)}, ShapeError, "one for each of 20 images"),
        ({"y_train": np.full(20, -1)}, DataError, "integers from 0"),
        ({"y_train": np.full(20, 2**62)}, DataError, "integers from 0 to 99999; got 46116"),
        ({"y_train": np.full(20, 2**64 - 1, np.uint64)}, DataError, "integers from 0 to 99999"),
        ({"class_names": np.array(["cat"])}, DataError, "does not name every label"),
    ],
)
def test_npz_with_wrong_arrays(npz, changes, error, message):
    with pytest.raises(error, match=message):
        open_images(source="npz", path=npz(**changes), resolution=4)


def test_unreadable_npz_files(npz, tmp_path):
    def refuse(path, message):
        with pytest.raises(ArtifactError, match=message):
            open_images(source="npz", path=path, resolution=4)

    refuse(tmp_path / "none.npz", "is not a file")
    refuse(tmp_path, "is not a file")
    whole = npz().read_bytes()
    for length in (0, 10, len(whole) // 2, len(whole) - 30):
        (tmp_path / "cut.npz").write_bytes(whole[:length])
        refuse(tmp_path / "cut.npz", "cannot be read as an .npz archive")
    damaged = bytearray(whole)
    damaged[len(whole) // 3] ^= 0xFF
    (tmp_path / "damaged.npz").write_bytes(damaged)
    refuse(tmp_path / "damaged.npz", "cannot be read")
    (tmp_path / "text.npz").write_text("hello")
    refuse(tmp_path / "text.npz", "cannot be read")
    np.save(tmp_path / "array.npy", np.zeros(3))
    refuse(tmp_path / "array.npy", "a single array")
    np.savez(tmp_path / "pickle.npz", x_train=np.array([{}], dtype=object))
    refuse(tmp_path / "pickle.npz", "without pickles")


def test_folder_of_classes(tmp_path):
    write_images(tmp_path / "dog", 10)
    write_images(tmp_path / "cat", 5, size=(9, 5))
    (tmp_path / "cat" / "notes.txt").write_text("not an image, and not called one")
    (tmp_path / ".cache").mkdir()
    seen = []
    train, held_out = open_images(
        source="folder", path=tmp_path, resolution=4, progress=lambda *step: seen.append(step)
    )
    assert train.class_names == ("cat", "dog")
    assert np.bincount(train.labels).tolist() == [4, 8]
    assert np.bincount(held_out.labels).tolist() == [1, 2]
    assert train.images.shape == (12, 4, 4, 3)
    assert seen[-1] == ("reading images", 15, 15)


def test_folder_crops_the_central_square(tmp_path):
    pixels = np.zeros((4, 8), np.uint8)
    pixels[:, 2:6] = 200
    for name in ("a.png", "b.png"):
        Image.fromarray(pixels).save(tmp_path / name)
    train, _ = open_images(source="folder", path=tmp_path, resolution=4, held_out=1)
    assert (train.images == 200).all()
    assert train.channels == 1
    assert train.labels is None


def test_folder_with_one_colour_image_is_in_colour(tmp_path):
    write_images(tmp_path, 3, mode="L")
    Image.new("RGB", (6, 6), (255, 0, 0)).save(tmp_path / "red.png")
    train, held_out = open_images(source="folder", path=tmp_path, resolution=6)
    assert {train.channels, held_out.channels} == {3}


def test_folder_refusals(tmp_path):
    def refuse(error, message, **options):
        with pytest.raises(error, match=message):
            open_images(**{"source": "folder", "path": tmp_path, "resolution": 4, **options})

    refuse(ArtifactError, "is not a folder", path=tmp_path / "none")
    refuse(DataError, "holds no images")
    write_images(tmp_path / "cat", 2)
    (tmp_path / "dog").mkdir()
    refuse(DataError, "class folders without images: dog")
    write_images(tmp_path / "dog", 2)
    write_images(tmp_path, 1)
    refuse(DataError, "beside class folders")


def test_broken_images_are_named(tmp_path):
    write_images(tmp_path, 4)
    whole = (tmp_path / "0.png").read_bytes()
    (tmp_path / "1.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "2.png").write_text("not a picture")
    with pytest.raises(ArtifactError, match=r"1\.png .*2\.png .* got 2 broken of 4"):
        open_images(source="folder", path=tmp_path, resolution=4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "zip"}, "source='zip' is not known"),
        ({"source": "npz"}, "needs a path"),
        ({"path": "here"}, "takes no path"),
        ({"fit": "stretch"}, "fit='stretch' is not known"),
        ({"resolution": 0}, "resolution=0 must be at least 1"),
        ({"held_out": 0}, "held_out=0 must be"),
        ({"held_out": -0.5}, "held_out=-0.5 must be"),
        ({"held_out": 1.5}, "held_out=1.5 must be"),
        ({"held_out": 5000}, "held_out=5000 must be"),
        ({"held_out": 1797}, "leaves no training images"),
    ],
)
def test_options_that_make_no_sense(options, message):
    with pytest.raises(ConfigError, match=message):
        open_images(**{"source": "digits", "resolution": 8, **options})


def test_fashion_mnist_pads_to_32(shared_data):
    path = shared_data("data/images/fashion_mnist_20k.npz")
    train, held_out = open_images(source="npz", path=path, resolution=32, fit="pad", held_out=1000)
    assert train.images.shape == (20000, 32, 32, 1)
    assert np.bincount(held_out.labels).tolist() == [100] * 10
    assert train.class_names[0] == "t-shirt/top"


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_are_scaled_to_eight(tmp_path, suffix):
    levels = np.array([[0, 255, 257], [32896, 65000, 65535]], np.uint16)
    for number in range(2):
        Image.fromarray(levels).save(tmp_path / f"{number}.{suffix}")
    train, _ = open_images(source="folder", path=tmp_path, resolution=4, fit="pad", held_out=1)
    expected = [[0, 1, 1], [128, 253, 255]]  # round(level / 257)
    assert train.images[0, 1:3, :3, 0].tolist() == expected


def test_floating_point_pixels_are_refused(tmp_path):
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "one.tif")
    with pytest.raises(ArtifactError, match="floating-point pixels, whose range is not known"):
        open_images(source="folder", path=tmp_path, resolution=4)
