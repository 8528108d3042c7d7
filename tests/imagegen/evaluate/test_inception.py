"""FID's network: its resize against a loop, its blocks against a second description of them."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from imagegen.evaluate import Inception, resize_bilinear
from rqtoolkit.errors import ArtifactError, ShapeError

# The architecture as a table, written apart from the modules: block, then branches; a branch is a
# list of (name, kernel height, kernel width, stride). "mean", "max" and "half" pool first.
SAME = ("branch1x1", 1, 1, 1)
POOL = ("branch_pool", 1, 1, 1)
A = [
    ("", [SAME]),
    ("", [("branch5x5_1", 1, 1, 1), ("branch5x5_2", 5, 5, 1)]),
    ("", [(f"branch3x3dbl_{i}", k, k, 1) for i, k in ((1, 1), (2, 3), (3, 3))]),
    ("mean", [POOL]),
]
B = [
    ("", [("branch3x3", 3, 3, 2)]),
    ("", [("branch3x3dbl_1", 1, 1, 1), ("branch3x3dbl_2", 3, 3, 1), ("branch3x3dbl_3", 3, 3, 2)]),
    ("half", []),
]
C = [
    ("", [SAME]),
    ("", [("branch7x7_1", 1, 1, 1), ("branch7x7_2", 1, 7, 1), ("branch7x7_3", 7, 1, 1)]),
    (
        "",
        [("branch7x7dbl_1", 1, 1, 1)]
        + [(f"branch7x7dbl_{i}", *((7, 1) if i % 2 == 0 else (1, 7)), 1) for i in range(2, 6)],
    ),
    ("mean", [POOL]),
]
D = [
    ("", [("branch3x3_1", 1, 1, 1), ("branch3x3_2", 3, 3, 2)]),
    (
        "",
        [
            ("branch7x7x3_1", 1, 1, 1),
            ("branch7x7x3_2", 1, 7, 1),
            ("branch7x7x3_3", 7, 1, 1),
            ("branch7x7x3_4", 3, 3, 2),
        ],
    ),
    ("half", []),
]
DOUBLE = [("branch3x3dbl_1", 1, 1, 1), ("branch3x3dbl_2", 3, 3, 1)]


def block_e(pool):
    return [
        ("", [SAME]),
        ("", [("branch3x3_1", 1, 1, 1), ("branch3x3_2a", 1, 3, 1)]),
        ("", [("branch3x3_1", 1, 1, 1), ("branch3x3_2b", 3, 1, 1)]),
        ("", [*DOUBLE, ("branch3x3dbl_3a", 1, 3, 1)]),
        ("", [*DOUBLE, ("branch3x3dbl_3b", 3, 1, 1)]),
        (pool, [POOL]),
    ]


BLOCKS = {
    **{f"Mixed_5{x}": A for x in "bcd"},
    "Mixed_6a": B,
    **{f"Mixed_6{x}": C for x in "bcde"},
    "Mixed_7a": D,
    "Mixed_7b": block_e("mean"),
    "Mixed_7c": block_e("max"),
}
# Side and channels of a 299x299 image after each part, from the published table.
SHAPES = {
    "Conv2d_1a_3x3": (149, 32),
    "Conv2d_2a_3x3": (147, 32),
    "Conv2d_2b_3x3": (147, 64),
    "Conv2d_3b_1x1": (73, 80),
    "Conv2d_4a_3x3": (71, 192),
    "Mixed_5b": (35, 256),
    "Mixed_5c": (35, 288),
    "Mixed_5d": (35, 288),
    "Mixed_6a": (17, 768),
    "Mixed_6e": (17, 768),
    "Mixed_7a": (8, 1280),
    "Mixed_7b": (8, 2048),
    "Mixed_7c": (8, 2048),
}


@pytest.fixture(scope="module")
def net():
    """A network whose every weight and statistic is drawn, so that none can be left out."""
    torch.manual_seed(0)
    net = Inception().eval()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.1)
    return net.requires_grad_(False)


def convolve(weights, name, x, stride=1, pad=(0, 0)):
    x = F.conv2d(x, weights[f"{name}.conv.weight"], stride=stride, padding=pad)
    mean, variance, gain, bias = (
        weights[f"{name}.bn.{part}"].view(-1, 1, 1)
        for part in ("running_mean", "running_var", "weight", "bias")
    )
    return ((x - mean) / torch.sqrt(variance + 0.001) * gain + bias).clamp(min=0)


def mean_pool(x):
    """3x3 mean over the places that exist, as sums over their number."""
    ones = torch.ones_like(x)
    weights = torch.ones(1, 1, 3, 3, dtype=x.dtype)
    total, places = (
        F.conv2d(m.flatten(0, 1).unsqueeze(1), weights, padding=1).view_as(x) for m in (x, ones)
    )
    return total / places


def max_pool(x):
    padded = F.pad(x, (1, 1, 1, 1), value=-math.inf)
    height, width = x.shape[2:]
    return torch.stack(
        [padded[:, :, i : i + height, j : j + width] for i in range(3) for j in range(3)]
    ).amax(0)


def naive(weights, x):
    """The features from the state dict and the table above alone."""
    x = convolve(weights, "Conv2d_1a_3x3", x, stride=2)
    x = convolve(weights, "Conv2d_2b_3x3", convolve(weights, "Conv2d_2a_3x3", x), pad=(1, 1))
    x = convolve(weights, "Conv2d_3b_1x1", F.max_pool2d(x, 3, 2))
    x = F.max_pool2d(convolve(weights, "Conv2d_4a_3x3", x), 3, 2)
    for block, branches in BLOCKS.items():
        outputs = []
        for pool, layers in branches:
            y = {"": lambda t: t, "mean": mean_pool, "max": max_pool}.get(
                pool, lambda t: F.max_pool2d(t, 3, 2)
            )(x)
            for name, height, width, stride in layers:
                pad = (height // 2, width // 2) if stride == 1 else (0, 0)
                y = convolve(weights, f"{block}.{name}", y, stride, pad)
            outputs.append(y)
        x = torch.cat(outputs, 1)
    return x.flatten(2).mean(2)


def loop_resize(image, height, width):
    """Sample by sample, as the kernel of TensorFlow 1 is written."""
    found = np.empty((height, width))
    rows, columns = image.shape
    for i in range(height):
        for j in range(width):
            y, x = (
                np.float32(i) * np.float32(rows / height),
                np.float32(j) * np.float32(columns / width),
            )
            top, left = min(int(y), rows - 1), min(int(x), columns - 1)
            bottom, right = min(top + 1, rows - 1), min(left + 1, columns - 1)
            dy, dx = y - top, x - left
            above = image[top, left] + (image[top, right] - image[top, left]) * dx
            below = image[bottom, left] + (image[bottom, right] - image[bottom, left]) * dx
            found[i, j] = above + (below - above) * dy
    return found


@given(st.tuples(*[st.integers(1, 9)] * 4), st.integers(0, 99))
def test_resize_equals_the_loop(sizes, seed):
    image = np.random.default_rng(seed).uniform(0, 255, sizes[:2])
    found = resize_bilinear(torch.from_numpy(image)[None, None], *sizes[2:])[0, 0].numpy()
    np.testing.assert_allclose(found, loop_resize(image, *sizes[2:]), atol=1e-9)


def test_resize_by_hand_is_neither_of_torchs_rules():
    row = torch.tensor([0.0, 10.0, 20.0, 30.0]).view(1, 1, 1, 4)
    assert resize_bilinear(row, 1, 2).flatten().tolist() == [0, 20]
    assert resize_bilinear(row, 1, 8).flatten().tolist() == [0, 5, 10, 15, 20, 25, 30, 30]
    for corners in (True, False):
        other = F.interpolate(row, (1, 8), mode="bilinear", align_corners=corners)
        assert not torch.allclose(other, resize_bilinear(row, 1, 8))
    with pytest.raises(ShapeError, match="must be"):
        resize_bilinear(row[0], 2, 2)


def test_network_equals_the_table(net):
    weights = {name: tensor.double() for name, tensor in net.state_dict().items()}
    x = torch.randn(2, 3, 91, 107)
    expected = naive(weights, x.double())
    assert expected.shape == (2, 2048)
    assert (net(x) - expected).abs().max() < 1e-5 * expected.abs().max()


def test_every_block_has_the_published_shape(net):
    found, hooks = {}, []
    for name in SHAPES:

        def keep(_, __, out, name=name):
            found[name] = (out.shape[2], out.shape[1])

        hooks.append(getattr(net, name).register_forward_hook(keep))
    net(torch.zeros(1, 3, 299, 299))
    for hook in hooks:
        hook.remove()
    assert found == SHAPES


def test_parameters_are_as_many_as_published(net):
    # Inception-v3 of 1,000 classes has 23,834,568 without its side branch, here are 1,008.
    assert sum(p.numel() for p in net.parameters()) == 23_834_568 + 8 * 2049


def test_features_resize_scale_and_split_into_batches(net, monkeypatch):
    images = np.random.default_rng(0).integers(0, 256, (3, 9, 7, 3), np.uint8)
    seen = []
    monkeypatch.setattr(
        net, "forward", lambda x: seen.append(x) or x.flatten(1)[:, :2048], raising=True
    )
    monkeypatch.setattr("imagegen.evaluate.inception.BATCH", 2)
    features = net.features(images)
    assert [len(x) for x in seen] == [2, 1]
    for number, channel in ((0, 0), (2, 1)):
        expected = (loop_resize(images[number, ..., channel].astype(float), 299, 299) - 128) / 128
        got = torch.cat(seen)[number, channel].numpy()
        np.testing.assert_allclose(got, expected, atol=2e-6)
    assert features.shape == (3, 2048)
    net.features(images[..., :1])
    assert torch.equal(seen[-1][:, 0], seen[-1][:, 2])  # grey is three equal channels
    with pytest.raises(ShapeError, match="1 or 3"):
        net.features(images[..., :2])


def test_probabilities_leave_the_bias_out(net):
    features = np.random.default_rng(0).normal(size=(4, 2048)).astype(np.float32)
    logits = features.astype(np.float64) @ net.fc.weight.double().numpy().T
    expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(net.probabilities(features), expected, rtol=1e-5)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_load_reads_either_kind_of_file(net, tmp_path, monkeypatch, suffix):
    path = tmp_path / f"weights{suffix}"
    tensors = {k: v for k, v in net.state_dict().items() if "num_batches" not in k}
    torch.save(tensors, path) if suffix == ".pth" else save_file(tensors, path)
    loaded = Inception.load(path)
    x = torch.randn(1, 3, 80, 80)
    assert torch.equal(loaded(x), net(x))
    assert len(loaded.sha256) == 64
    assert loaded.name == "inception-2015-12-05, not the public file"
    monkeypatch.setattr("imagegen.evaluate.inception.KNOWN_SHA256", loaded.sha256[:8])
    assert Inception.load(path).name == "inception-2015-12-05"
    assert not loaded.training


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("fc.bias"), "no fc.bias"),
        (lambda t: t.update(extra=torch.zeros(1)), "unknown extra"),
        (
            lambda t: t.update({"fc.weight": torch.zeros(1000, 2048)}),
            r"fc.weight of shape \(1000, 2048\) in place of \(1008, 2048\)",
        ),
        (lambda t: t.update({"epoch": 3}), "must hold tensors by name"),
    ],
)
def test_load_names_what_is_wrong(net, tmp_path, change, message):
    tensors = dict(net.state_dict())
    change(tensors)
    torch.save(tensors, tmp_path / "weights.pth")
    with pytest.raises(ArtifactError, match=message):
        Inception.load(tmp_path / "weights.pth")


def test_load_refuses_pickles_and_missing_files(tmp_path):
    with pytest.raises(ArtifactError, match="is no file"):
        Inception.load(tmp_path / "none.pth")
    torch.save({"model": Inception}, tmp_path / "code.pth")
    (tmp_path / "torn.pth").write_bytes(b"PK\x03\x04 half a file")
    (tmp_path / "torn.safetensors").write_bytes(b"{}")
    (tmp_path / "text.pth").write_bytes(b"not a pickle\n")
    (tmp_path / "page.pth").write_bytes(b"<!DOCTYPE html>")
    (tmp_path / "empty.pth").write_bytes(b"")
    names = ("code.pth", "torn.pth", "torn.safetensors", "text.pth", "page.pth", "empty.pth")
    for name in names:
        with pytest.raises(ArtifactError, match=r"got no file of plain tensors \(\w+\)"):
            Inception.load(tmp_path / name)
