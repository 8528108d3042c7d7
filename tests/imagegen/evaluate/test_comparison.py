"""The comparison table as a whole, on real digits and a classifier of a few seconds."""

import json

import numpy as np
import pytest

from imagegen.data import open_images
from imagegen.evaluate import classifier, evaluate_samples, train_classifier
from imagegen.evaluate.comparison import class_means, matching_subset
from imagegen.images import ImageSet
from rqtoolkit.errors import DataError, ShapeError


@pytest.fixture(scope="module")
def digits():
    """Training and held-out digits, and a classifier by a shortened recipe."""
    train, held_out = open_images(source="digits", resolution=8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classifier, "LEAST_IMAGES", 8_000)
        patch.setattr(classifier, "PASSES", 1)
        return train_classifier(train, name="digits-cnn-v1"), train, held_out


def evaluate(digits, images, labels=None, **options):
    net, train, held_out = digits
    labels = held_out.labels if labels is None else labels
    samples = ImageSet(images, labels, held_out.class_names)
    return evaluate_samples(net, train, held_out, samples, **options)


def test_matching_subset_has_the_numbers_asked_for(digits):
    _, train, held_out = digits
    subset = matching_subset(train, held_out.labels, seed=0)
    assert np.bincount(subset.labels).tolist() == np.bincount(held_out.labels).tolist()
    again, other = (matching_subset(train, held_out.labels, seed=s) for s in (0, 1))
    np.testing.assert_array_equal(subset.images, again.images)
    assert (subset.images != other.images).any()
    with pytest.raises(DataError, match="class 3 needs 999 images"):
        matching_subset(train, np.full(999, 3), seed=0)


def test_class_means_are_means():
    images = np.array([10, 20, 7, 8], np.uint8).reshape(4, 1, 1, 1)
    train = ImageSet(images, np.array([0, 0, 1, 1], np.int64), ("a", "b"))
    # 15, and 7.5 rounded to even
    assert class_means(train, np.array([1, 0, 1])).ravel().tolist() == [8, 15, 8]


def test_other_real_images_as_samples_reach_the_floor(digits):
    _, train, held_out = digits
    real = matching_subset(train, held_out.labels, seed=9)
    result = evaluate(digits, real.images, real.labels, reconstructions=held_out.images)
    names = [row["set"] for row in result.table]
    assert names == ["real", "reconstruction", "class mean", "samples"]
    metrics = result.metrics
    assert metrics["class_accuracy_ceiling"] > 0.9
    assert metrics["class_accuracy"] > 0.9
    for name in ("coverage", "recall", "precision"):
        assert metrics[name] == pytest.approx(metrics[f"{name}_floor"], abs=0.06)
    assert metrics["near_copies"] == 1  # and it says where they come from
    assert metrics["near_copies_held_out"] == pytest.approx(0.01, abs=0.005)
    assert metrics["nearest_training_distance"] == 0
    assert metrics["nearest_training_distance_held_out"] > 10


def test_noised_copies_of_training_images_are_told_from_other_real_images(digits):
    _, train, held_out = digits
    copied = matching_subset(train, held_out.labels, seed=9)
    noise = np.random.default_rng(0).normal(0, 3, copied.images.shape)
    noised = np.clip(copied.images + noise, 0, 255).round().astype(np.uint8)
    metrics = evaluate(digits, noised, copied.labels).metrics
    assert not (noised == copied.images).all((1, 2, 3)).any()  # none is equal to the bit
    assert metrics["near_copies"] > 0.95
    half = np.where(np.arange(len(noised))[:, None, None, None] % 2, noised, held_out.images)
    assert evaluate(digits, half).metrics["near_copies"] == pytest.approx(0.505, abs=0.03)


def test_perfect_reconstructions_score_perfectly(digits):
    _, _, held_out = digits
    row = evaluate(digits, held_out.images, reconstructions=held_out.images).row("reconstruction")
    assert (row["precision"], row["recall"], row["coverage"]) == (1, 1, 1)
    assert row["frechet_distance"] == pytest.approx(0, abs=1e-6)


def test_class_means_look_right_to_the_classifier_and_to_nothing_else(digits):
    row = evaluate(digits, digits[2].images).row("class mean")
    assert row["class_accuracy"] > 0.9
    assert row["coverage"] < 0.4
    assert row["recall"] == 0
    assert row["duplicates"] == pytest.approx(350 / 360)


def test_a_missing_class_costs_coverage_and_accuracy_its_share(digits):
    _, train, held_out = digits
    real = matching_subset(train, held_out.labels, seed=9)
    full = evaluate(digits, real.images, real.labels).metrics
    # sevens in place of the zeros that were asked for
    images = real.images.copy()
    sevens = train.images[train.labels == 7]
    images[real.labels == 0] = sevens[: (real.labels == 0).sum()]
    metrics = evaluate(digits, images, real.labels).metrics
    assert full["coverage"] - metrics["coverage"] == pytest.approx(0.1, abs=0.04)
    assert metrics["class_accuracy"] < full["class_accuracy"] - 0.08


def test_wrong_labels_cost_class_accuracy_alone(digits):
    _, train, held_out = digits
    real = matching_subset(train, held_out.labels, seed=9)
    right = evaluate(digits, real.images, real.labels).metrics
    wrong = evaluate(digits, real.images, (real.labels + 1) % 10).metrics
    assert wrong["class_accuracy"] < 0.1
    right.pop("class_accuracy")
    wrong.pop("class_accuracy")
    assert wrong == right


def test_collapse_is_seen(digits):
    _, _, held_out = digits
    few = held_out.images[np.arange(len(held_out)) % 20]
    metrics = evaluate(digits, few).metrics
    assert metrics["precision"] == 1
    assert metrics["coverage"] < 0.5
    assert metrics["duplicates"] == pytest.approx(340 / 360)


def test_result_says_what_it_compares_and_repeats_to_the_bit(digits):
    net, _, held_out = digits
    noisy = held_out.images // 2
    seen = []
    result = evaluate(digits, noisy, seed=3, progress=lambda *step: seen.append(step))
    text = json.dumps(result.to_json(), allow_nan=False)
    assert text == json.dumps(evaluate(digits, noisy, seed=3).to_json())
    facts = json.loads(text)
    assert facts["extractor"] == {"name": "digits-cnn-v1", "sha256": net.sha256}
    assert (facts["images"], facts["k"], facts["resolution"]) == (360, 5, [8, 8])
    assert [row["set"] for row in result.table] == ["real", "class mean", "samples"]
    assert [row["set"] for row in facts["references"]] == ["class mean"]
    assert seen[-1] == ("evaluating", 3, 3)


def test_refusals(digits):
    net, train, held_out = digits
    with pytest.raises(ShapeError, match="samples must be as many"):
        evaluate_samples(net, train, held_out, held_out.subset(slice(9)))
    with pytest.raises(ShapeError, match="reconstructions must be as many"):
        evaluate(digits, held_out.images, reconstructions=held_out.images[:9])
    with pytest.raises(DataError, match="must have labels"):
        evaluate_samples(net, train, held_out, ImageSet(held_out.images))
    with pytest.raises(DataError, match="k=400"):
        evaluate(digits, held_out.images, k=400)
