"""LPIPS with random weights of the public shapes, against a slow implementation of its own."""

import hashlib

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from imagegen.perceptual import WeightsFile, load_perceptual
from rqtoolkit.errors import ArtifactError, ShapeError

# torchvision's numbers of the convolutions, where the pools are, and the widths
CONVOLUTIONS = {0: (3, 64), 2: (64, 64), 5: (64, 128), 7: (128, 128), 10: (128, 256)}
CONVOLUTIONS |= {12: (256, 256), 14: (256, 256), 17: (256, 512)}
CONVOLUTIONS |= dict.fromkeys((19, 21, 24, 26, 28), (512, 512))
STAGES = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))


@pytest.fixture(scope="module")
def weights():
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    vgg = {}
    for number, (inputs, outputs) in CONVOLUTIONS.items():
        vgg[f"features.{number}.weight"] = draw(outputs, inputs, 3, 3) * (2 / (9 * inputs)) ** 0.5
        vgg[f"features.{number}.bias"] = draw(outputs) * 0.1
    vgg["classifier.6.bias"] = draw(1000)  # not needed, not looked at
    widths = (64, 128, 256, 512, 512)
    heads = {f"lin{i}.model.1.weight": draw(1, n, 1, 1).abs() for i, n in enumerate(widths)}
    return vgg, heads


@pytest.fixture(scope="module")
def files(weights, tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    torch.save(weights[0], folder / "vgg16.pth")
    save_file(weights[1], folder / "lin.safetensors")
    return folder / "vgg16.pth", folder / "lin.safetensors"


@pytest.fixture(scope="module")
def perceptual(files):
    return load_perceptual(*files)


def slow_distance(vgg, heads, x, y):
    """LPIPS of one pair of images (3, H, W), place by place, in float64."""
    total = 0.0
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    a, b = (((z.movedim(0, -1) - shift) / scale).movedim(-1, 0).double() for z in (x, y))
    for stage, numbers in enumerate(STAGES):
        if stage:
            a, b = (z.unfold(1, 2, 2).unfold(2, 2, 2).amax((-1, -2)) for z in (a, b))
        for number in numbers:
            weight = vgg[f"features.{number}.weight"].double()
            bias = vgg[f"features.{number}.bias"].double()
            a, b = (F.conv2d(z[None], weight, bias, padding=1)[0].clamp(min=0) for z in (a, b))
        head = heads[f"lin{stage}.model.1.weight"].double().flatten()
        errors = []
        for i in range(a.shape[1]):
            for j in range(a.shape[2]):
                u, v = a[:, i, j], b[:, i, j]
                u = u / ((u**2).sum().sqrt() + 1e-10)
                v = v / ((v**2).sum().sqrt() + 1e-10)
                errors.append((head * (u - v) ** 2).sum())
        total += sum(errors) / len(errors)
    return total.item()


def test_it_equals_the_slow_implementation(perceptual, weights):
    x, y = (torch.rand(2, 3, 18, 34) * 2 - 1 for _ in range(2))  # odd sides after two pools
    expected = [slow_distance(*weights, a, b) for a, b in zip(x, y, strict=True)]
    assert perceptual(x, y).tolist() == pytest.approx(expected, rel=1e-4)
    assert perceptual(x, x).tolist() == [0.0, 0.0]
    torch.testing.assert_close(perceptual(x, y), perceptual(y, x))


def test_its_gradient_is_that_of_finite_differences(perceptual):
    x, y = (torch.rand(1, 3, 16, 16) * 2 - 1 for _ in range(2))
    x.requires_grad_()
    (slope,) = torch.autograd.grad(perceptual(x, y).sum(), x)
    direction = slope.sign()
    with torch.no_grad():
        ahead, behind = (perceptual(x + s * 1e-3 * direction, y) for s in (1, -1))
    assert ((ahead - behind) / 2e-3).item() == pytest.approx(slope.abs().sum().item(), rel=0.03)
    assert all(p.grad is None for p in perceptual.parameters())


def test_features_that_vanish_have_no_gradient_and_no_nan(files):
    perceptual = load_perceptual(*files)
    for layer in perceptual.features:
        if hasattr(layer, "bias"):
            layer.bias.fill_(-100.0)
    x = torch.zeros(1, 3, 16, 16, requires_grad=True)
    distance = perceptual(x, torch.ones(1, 3, 16, 16))
    distance.sum().backward()
    assert distance.item() == 0
    assert not x.grad.any()


def test_grey_images_are_repeated(perceptual):
    x, y = (torch.rand(2, 1, 16, 16) * 2 - 1 for _ in range(2))
    expected = perceptual(x.repeat(1, 3, 1, 1), y.repeat(1, 3, 1, 1))
    torch.testing.assert_close(perceptual(x, y), expected)


def test_half_precision_comes_close(files, perceptual):
    half = load_perceptual(*files, dtype=torch.bfloat16)
    assert {p.dtype for p in half.features.parameters()} == {torch.bfloat16}
    x, y = (torch.rand(2, 3, 32, 32) * 2 - 1 for _ in range(2))
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(half(x, y), perceptual(x, y), rtol=0.05, atol=0.0)
        assert perceptual(x, y).dtype == torch.float32


def test_files_are_named_with_their_checksums(files, perceptual):
    for path, file in zip(files, perceptual.files, strict=True):
        assert file.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
        assert file.path == str(path)
        assert "not a file we know" in str(file)
    public = WeightsFile("vgg16.pth", "397923af" + "0" * 56)
    assert "torchvision's public vgg16-397923af.pth" in str(public)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda vgg: vgg.pop("features.14.bias"), r"no features\.14\.bias"),
        (
            lambda vgg: vgg.update({"features.5.weight": torch.zeros(128, 3, 3, 3)}),
            r"features\.5\.weight of shape \(128, 3, 3, 3\) in place of \(128, 64, 3, 3\)",
        ),
        (lambda vgg: vgg.clear(), r"no features\.0\.weight.*and 21 more"),
    ],
)
def test_weights_that_do_not_fit_are_refused(files, weights, tmp_path, change, message):
    vgg = dict(weights[0])
    change(vgg)
    torch.save(vgg, tmp_path / "vgg16.pth")
    with pytest.raises(ArtifactError, match=message):
        load_perceptual(tmp_path / "vgg16.pth", files[1])


def test_files_that_are_none_are_refused(files, tmp_path):
    with pytest.raises(ArtifactError, match="is no file"):
        load_perceptual(tmp_path / "absent.pth", files[1])
    for name in ("broken.pth", "broken.safetensors"):
        for content in (b"what is this", b"{}\n", b"<!DOCTYPE html>", b"", b"\x80\x02cx\ny\n."):
            (tmp_path / name).write_bytes(content)
            with pytest.raises(ArtifactError, match=r"cannot be read .* no file of plain tensors"):
                load_perceptual(tmp_path / name, files[1])
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ArtifactError, match=r"VGG16.* must hold tensors by name; got list"):
        load_perceptual(tmp_path / "list.pth", files[1])
    with pytest.raises(ArtifactError, match=r"no lin0\.model\.1\.weight"):
        load_perceptual(files[0], files[0])


def test_images_that_do_not_fit_are_refused(perceptual):
    with pytest.raises(ShapeError, match=r"got \(1, 3, 8, 8\) and \(1, 3, 8, 8\)"):
        perceptual(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8))
    with pytest.raises(ShapeError, match="one shape"):
        perceptual(torch.zeros(1, 3, 16, 16), torch.zeros(2, 3, 16, 16))
