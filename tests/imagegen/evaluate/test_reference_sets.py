"""Statistics of sets, the files that keep them, and what scores say of how they were measured."""

import json

import numpy as np
import pytest

from imagegen.evaluate import (
    Protocol,
    Reference,
    Scores,
    frechet_distance,
    gather_statistics,
    gaussian_distance,
    load_reference,
    read_suite,
    save_reference,
)
from imagegen.evaluate.protocol import tables_of_one_protocol
from rqtoolkit.errors import ArtifactError, DataError, ShapeError


class Pixels:
    """An extractor whose features are the first pixels: results can be worked out."""

    name, dim, resize = "pixels", 3, "none"

    def __init__(self, sha256="ab" * 32):
        self.sha256 = sha256

    def features(self, images):
        return images.reshape(len(images), -1)[:, :3].astype(np.float32)

    def probabilities(self, features):
        shifted = features + 1.0
        return shifted / shifted.sum(1, keepdims=True)


IMAGES = np.random.default_rng(0).integers(0, 256, (40, 4, 4, 1), np.uint8)


def batches(images, size):
    return (images[start : start + size] for start in range(0, len(images), size))


@pytest.mark.parametrize("size", [1, 7, 40])
def test_statistics_are_those_of_numpy_whatever_the_batches(size):
    found = gather_statistics(Pixels(), batches(IMAGES, size), total=40)
    features = Pixels().features(IMAGES).astype(np.float64)
    np.testing.assert_allclose(found.mean, features.mean(0))
    np.testing.assert_allclose(found.covariance, np.cov(features, rowvar=False))
    np.testing.assert_array_equal(found.features, features)


def test_kept_features_are_bounded_and_spread_over_the_set():
    found = gather_statistics(Pixels(), batches(IMAGES, 7), total=40, most_features=4)
    np.testing.assert_array_equal(found.features, Pixels().features(IMAGES[[0, 13, 26, 39]]))
    assert found.images == 40


def test_statistics_keep_digits_far_from_zero():
    class Far(Pixels):
        def features(self, images):
            return super().features(images) / 255 + 10_000

    found = gather_statistics(Far(), batches(IMAGES, 7), total=40)
    expected = np.cov(Far().features(IMAGES).astype(np.float64), rowvar=False)
    np.testing.assert_allclose(found.covariance, expected, rtol=1e-9)


def test_a_wrong_total_is_refused():
    with pytest.raises(DataError, match="at most total=39; got 40"):
        gather_statistics(Pixels(), batches(IMAGES, 7), total=39)
    with pytest.raises(DataError, match=r"at least 2 images .* got 1"):
        gather_statistics(Pixels(), batches(IMAGES[:1], 7), total=5)


def test_distance_of_statistics_is_that_of_features():
    a, b = IMAGES[:25], IMAGES[25:]
    one, two = (gather_statistics(Pixels(), [x], total=len(x)) for x in (a, b))
    distance = gaussian_distance(one.mean, one.covariance, two.mean, two.covariance)
    assert distance == pytest.approx(frechet_distance(Pixels().features(a), Pixels().features(b)))
    with pytest.raises(ShapeError, match="one extractor"):
        gaussian_distance(one.mean, one.covariance, two.mean[:2], two.covariance)


def test_a_reference_file_gives_back_what_was_written(tmp_path):
    statistics = gather_statistics(Pixels(), [IMAGES], total=40, most_features=5)
    written = Reference("my photographs", "cd" * 32, 40, statistics)
    save_reference(tmp_path / "reference.safetensors", written, Pixels())
    found = load_reference(tmp_path / "reference.safetensors", Pixels())
    assert (found.name, found.fingerprint, found.images) == ("my photographs", "cd" * 32, 40)
    for name in ("mean", "covariance", "features"):
        np.testing.assert_array_equal(getattr(found.statistics, name), getattr(statistics, name))
    with pytest.raises(ArtifactError, match="another extractor"):
        load_reference(tmp_path / "reference.safetensors", Pixels("ef" * 32))


def test_suite_statistics_go_before_its_images(tmp_path):
    path = tmp_path / "batch.npz"
    np.savez(path, mu=np.ones(3), sigma=np.eye(3), mu_s=np.ones(9), arr_0=IMAGES)
    found = read_suite(path, Pixels())
    assert found.images is None
    assert found.statistics.mean.tolist() == [1, 1, 1]
    np.testing.assert_array_equal(found.statistics.features, Pixels().features(IMAGES))
    np.savez(path, arr_0=IMAGES)
    found = read_suite(path, Pixels())
    assert found.images == 40
    np.testing.assert_allclose(found.statistics.mean, Pixels().features(IMAGES).mean(0))
    np.savez(path, mu=np.ones(3), sigma=np.eye(3))
    assert read_suite(path, Pixels()).statistics.features is None


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"mu": np.ones(3)}, "neither mu and sigma nor images"),
        ({"mu": np.ones(4), "sigma": np.eye(4)}, r"mean of 3 features.* got shapes \[\(4,\)"),
    ],
)
def test_suites_of_another_kind_are_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "batch.npz", **arrays)
    with pytest.raises(DataError, match=message):
        read_suite(tmp_path / "batch.npz", Pixels())


def test_unreadable_suites_are_refused(tmp_path):
    (tmp_path / "batch.npz").write_bytes(b"PK\x03\x04")
    np.savez(tmp_path / "pickle.npz", arr_0=np.array([{}], dtype=object))
    for name in ("batch.npz", "pickle.npz", "none.npz"):
        with pytest.raises(ArtifactError, match="cannot be read"):
            read_suite(tmp_path / name, Pixels())


def protocol(**changes):
    given = {
        "compared": "samples",
        "images": 50_000,
        "resolution": (256, 256),
        "extractor": {"name": "pixels", "sha256": "ab"},
        "sampler": {"top_k": [4, 2]},
        **changes,
    }
    return Protocol(**given)


def test_a_protocol_survives_json():
    one = protocol()
    again = Protocol.from_json(json.loads(json.dumps(one.to_json())))
    assert one.differences(again) == []


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({}, []),
        ({"versions": {"torch": "1.0"}}, []),
        ({"images": 10_000}, ["images"]),
        ({"reference": "val", "resize": "bicubic"}, ["reference", "resize"]),
    ],
)
def test_differences_are_named_and_versions_are_none(changes, names):
    assert sorted(protocol().differences(protocol(**changes))) == names


def test_scores_share_a_table_only_under_one_protocol():
    fid, kid, small = (
        Scores(name, {name: 1.0}, protocol(images=n))
        for name, n in (("fid", 50_000), ("kid", 50_000), ("fid", 10_000))
    )
    assert tables_of_one_protocol([fid, small, kid]) == [[fid, kid], [small]]
    assert fid.to_json()["fid"] == 1.0
    assert fid.to_json()["protocol"]["images"] == 50_000
