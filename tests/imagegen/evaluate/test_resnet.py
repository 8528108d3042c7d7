"""ResNets: the published sizes, and the forward pass written out from the state dict alone."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from imagegen.evaluate import Inception
from imagegen.evaluate.resnet import ResNet
from rqtoolkit.errors import ArtifactError, ShapeError

# Parameters of torchvision's models with 1,000 classes.
PUBLISHED = {
    18: ((2, 2, 2, 2), False, 11_689_512),
    34: ((3, 4, 6, 3), False, 21_797_672),
    50: ((3, 4, 6, 3), True, 25_557_032),
    101: ((3, 4, 23, 3), True, 44_549_160),
    152: ((3, 8, 36, 3), True, 60_192_808),
}


@pytest.mark.parametrize("depth", PUBLISHED)
def test_parameters_are_as_many_as_published(depth):
    blocks, bottleneck, parameters = PUBLISHED[depth]
    with torch.device("meta"):
        net = ResNet(blocks, bottleneck=bottleneck, num_classes=1000)
    assert sum(p.numel() for p in net.parameters()) == parameters
    assert net.name == f"resnet-{depth}"


def random_net(blocks, bottleneck):
    torch.manual_seed(0)
    net = ResNet(blocks, bottleneck=bottleneck, num_classes=7).eval().requires_grad_(False)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
            module.weight.uniform_(0.5, 1.5)
            module.bias.normal_(0, 0.1)
    return net


def naive(weights, x):
    """The features, from the tensors' names."""

    def step(x, conv, norm, stride=1):
        kernel = weights[f"{conv}.weight"]
        x = F.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2)
        mean, variance, gain, bias = (
            weights[f"{norm}.{part}"].view(-1, 1, 1)
            for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / torch.sqrt(variance + 1e-5) * gain + bias

    x = F.max_pool2d(F.pad(step(x, "conv1", "bn1", 2).relu(), (1,) * 4), 3, 2)  # after ReLU 0 pads
    for layer in range(1, 5):
        place = 0
        while f"layer{layer}.{place}.conv1.weight" in weights:
            name = f"layer{layer}.{place}"
            deep = f"{name}.conv3.weight" in weights
            stride = 2 if place == 0 and layer > 1 else 1
            y = step(x, f"{name}.conv1", f"{name}.bn1", 1 if deep else stride).relu()
            y = step(y, f"{name}.conv2", f"{name}.bn2", stride if deep else 1)
            if deep:
                y = step(y.relu(), f"{name}.conv3", f"{name}.bn3")
            if f"{name}.downsample.0.weight" in weights:
                x = step(x, f"{name}.downsample.0", f"{name}.downsample.1", stride)
            x = (x + y).relu()
            place += 1
    return x.flatten(2).mean(2)


@pytest.mark.parametrize("bottleneck", [False, True])
def test_features_equal_the_forward_pass_written_out(bottleneck, tmp_path):
    net = random_net((1, 2, 1, 1), bottleneck)
    torch.save(net.state_dict(), tmp_path / "net.pth")
    loaded = ResNet.load(tmp_path / "net.pth")
    images = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), np.uint8)
    mean, spread = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    x = torch.from_numpy((images / 255 - mean) / spread).permute(0, 3, 1, 2)
    expected = naive({k: v.double() for k, v in net.state_dict().items()}, x)
    found = loaded.features(images)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-4 * float(expected.abs().max()))
    logits = loaded.fc(torch.from_numpy(found)).double().softmax(1)
    np.testing.assert_allclose(loaded.probabilities(found), logits.numpy(), atol=1e-6)
    small = loaded.features(images[:1, ::4, ::4, :1])
    assert small.shape == (1, loaded.dim)
    with pytest.raises(ShapeError, match="1 or 3"):
        loaded.features(images[..., :2])


def test_other_files_are_refused(tmp_path):
    torch.save(Inception().state_dict(), tmp_path / "inception.pth")
    with pytest.raises(ArtifactError, match="holds no ResNet"):
        ResNet.load(tmp_path / "inception.pth")
    tensors = random_net((1, 1, 1, 1), False).state_dict()
    del tensors["layer2.0.bn1.weight"]
    torch.save(tensors, tmp_path / "torn.pth")
    with pytest.raises(ArtifactError, match=r"no layer2\.0\.bn1\.weight"):
        ResNet.load(tmp_path / "torn.pth")
