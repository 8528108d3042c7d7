"""The classifier: recipe, determinism, files."""

import numpy as np
import pytest
import torch

from imagegen.data import open_images
from imagegen.evaluate import Classifier, classifier, train_classifier
from imagegen.images import ImageSet, to_float
from rqtoolkit.errors import ArtifactError, DataError, ShapeError


def stripes(count=128, seed=0, side=8):
    """Two classes a child can tell apart: upright and level stripes in noise."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    grid = np.indices((side, side))[labels] % 4 // 2 * 160
    noise = generator.integers(0, 60, grid.shape)
    return ImageSet((grid + noise).astype(np.uint8)[..., None], labels, ("level", "upright"))


@pytest.fixture
def brief(monkeypatch):
    """Shorten the recipe: what is tested here does not need the whole of it."""
    monkeypatch.setattr(classifier, "LEAST_IMAGES", 1_500)


@pytest.mark.usefixtures("brief")
def test_learns_and_names_itself():
    steps = []
    trained = train_classifier(
        stripes(), name="stripes-cnn-v1", progress=lambda *step: steps.append(step)
    )
    held_out = stripes(seed=1)
    features = trained.features(held_out.images)
    assert features.shape == (128, 64)
    assert features.dtype == np.float32
    assert (features >= 0).all()
    assert (trained.classify(features) == held_out.labels).mean() > 0.98
    assert trained.name == "stripes-cnn-v1"
    assert steps[-1] == ("training the classifier", 23, 23)


@pytest.mark.usefixtures("brief")
def test_features_are_one_linear_layer_before_the_logits():
    trained = train_classifier(stripes())
    images = stripes(seed=2).images
    with torch.no_grad():
        logits = trained(to_float(images))
    expected = trained.head(torch.from_numpy(trained.features(images))).detach()
    torch.testing.assert_close(logits, expected)


@pytest.mark.usefixtures("brief")
def test_seed_fixes_weights_and_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    first, again = train_classifier(stripes(), seed=3), train_classifier(stripes(), seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert first.sha256 == again.sha256
    assert first.sha256 != train_classifier(stripes(), seed=4).sha256


@pytest.mark.usefixtures("brief")
def test_file_round_trip(tmp_path):
    trained = train_classifier(stripes(), name="stripes-cnn-v1")
    trained.save(tmp_path / "classifier.safetensors")
    loaded = Classifier.load(tmp_path / "classifier.safetensors")
    assert (loaded.sha256, loaded.name) == (trained.sha256, trained.name)
    images = stripes(seed=5).images
    np.testing.assert_array_equal(loaded.features(images), trained.features(images))
    whole = (tmp_path / "classifier.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:-100])
    with pytest.raises(ArtifactError, match="truncated"):
        Classifier.load(tmp_path / "cut.safetensors")


@pytest.mark.parametrize("resolution", [4, 7, 16, 28, 64])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_resolution(resolution, channels):
    net = Classifier(channels=channels, resolution=resolution, num_classes=5).eval()
    images = np.zeros((3, resolution, resolution, channels), np.uint8)
    assert net.classify(net.features(images)).shape == (3,)
    assert net.features(images[:0]).shape == (0, 64)


def test_every_parameter_learns():
    net = Classifier(channels=1, resolution=8, num_classes=2)
    net(to_float(stripes().images)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def test_refusals():
    images = stripes()
    with pytest.raises(DataError, match="must have classes"):
        train_classifier(ImageSet(images.images))
    with pytest.raises(DataError, match="at least two classes"):
        train_classifier(images.subset(images.labels == 0))
    with pytest.raises(DataError, match="got 2 classes and 10 images"):
        train_classifier(images.subset(slice(10)))
    with pytest.raises(ShapeError, match="square; got 8x4"):
        train_classifier(ImageSet(images.images[:, :, :4], images.labels, images.class_names))
    net = Classifier(channels=1, resolution=16, num_classes=2).eval()
    with pytest.raises(ShapeError, match=r"must be \(N, 16, 16, 1\); got shape \(128, 8, 8, 1\)"):
        net.features(images.images)


@pytest.mark.slow
def test_the_recipe_reads_digits():
    train, held_out = open_images(source="digits", resolution=16)
    trained = train_classifier(train, name="digits-cnn-v1")
    predicted = trained.classify(trained.features(held_out.images))
    assert (predicted == held_out.labels).mean() >= 0.985
