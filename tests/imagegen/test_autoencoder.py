"""The autoencoder against the paper's original code, and its own contracts."""

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from imagegen.autoencoder import RQVAE, fold_patches, unfold_patches
from rqtoolkit import ResidualQuantizer
from rqtoolkit.errors import ArtifactError, ConfigError, ShapeError

TINY = {
    "resolution": 16,
    "image_channels": 1,
    "channels": 8,
    "multipliers": (1, 2),
    "blocks": 1,
    "attention": (),
    "latent_channels": 8,
    "code_dim": 4,
}


class Table(nn.Module):
    """The plainest residual quantizer: one shared table, greedy, written as a loop."""

    def __init__(self, table: Tensor, depth: int) -> None:
        super().__init__()
        self.table, self.depth, self.dim = table, depth, table.shape[1]

    def encode(self, x: Tensor) -> Tensor:
        codes = []
        for _ in range(self.depth):
            codes.append(((x[..., None, :] - self.table) ** 2).sum(-1).argmin(-1))
            x = x - self.table[codes[-1]]
        return torch.stack(codes, -1)

    def decode(self, codes: Tensor) -> Tensor:
        return self.table[codes].sum(-2)

    def forward(self, x: Tensor, generator: None = None) -> SimpleNamespace:  # noqa: ARG002
        codes = self.encode(x)
        zero = torch.zeros(())
        return SimpleNamespace(
            quantized=self.decode(codes),
            codes=codes,
            commitment_loss=zero,
            codebook_loss=zero,
            stats=SimpleNamespace(usage=torch.ones(self.depth)),
        )


def assert_parity(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.fixture(scope="module")
def original(shared_data):
    """Our model with the weights of the original's, and what the original computed."""
    state = torch.load(shared_data("parity/official/stage1/model.pt"), weights_only=True)
    state = state["state_dict"]
    table = state["quantizer.codebooks.0.weight"][:-1]  # the last row is an unused pad
    model = RQVAE(
        Table(table, 4),
        resolution=32,
        channels=32,
        multipliers=(1, 2, 2),
        blocks=1,
        attention=(8,),
        latent_channels=32,
        code_dim=16,
    )
    weights = {k: v for k, v in state.items() if not k.startswith("quantizer.")}
    model.load_state_dict(weights)  # strict: every other key maps to itself
    return model.eval(), load_file(shared_data("parity/rqvae_expected.safetensors"))


def test_encoder_equals_the_original(original):
    model, expected = original
    with torch.no_grad():
        assert_parity(model.latents(expected["xs"]), expected["z_e"])
    assert torch.equal(model.encode(expected["xs"]), expected["code"])


def test_decoder_equals_the_original(original):
    model, expected = original
    with torch.no_grad():
        out = model(expected["xs"])
    assert_parity(out.reconstruction, expected["recon"])
    assert_parity(model.decode(expected["code"]), expected["decode_code"])


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_prefixes_decode_as_the_original(original, depth):
    model, expected = original
    found = model.decode(expected["code"][..., :depth])
    assert_parity(found, expected[f"partial.{depth - 1}_add"])


def test_folding_follows_the_papers_order():
    # a 2 × 2 map of one channel: row by row into channels
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).reshape(1, 2, 2, 1)
    assert fold_patches(x, 2).tolist() == [[[[1.0, 2.0, 3.0, 4.0]]]]
    # (B, h, rH, w, rW, C) -> (B, h, w, rH·rW·C), element by element
    x = torch.randn(2, 6, 6, 5)
    folded = fold_patches(x, 3)
    for i in range(6):
        for j in range(6):
            start = ((i % 3) * 3 + j % 3) * 5
            assert torch.equal(folded[:, i // 3, j // 3, start : start + 5], x[:, i, j])
    assert torch.equal(unfold_patches(folded, 3), x)


@pytest.mark.parametrize("fold", [1, 2])
@pytest.mark.parametrize("middle", [True, False])
def test_gradients_reach_every_parameter(fold, middle):
    model = RQVAE(
        ResidualQuantizer(4 * fold**2, 2, 8),
        fold=fold,
        middle=middle,
        **{**TINY, "attention": (8,)},
    )
    images = torch.randn(4, 1, 16, 16)
    out = model(images)
    assert out.reconstruction.shape == images.shape
    assert out.codes.shape == (4, *model.grid, 2)
    ((out.reconstruction - images) ** 2).mean().backward()
    silent = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    # the bias before a softmax over places cancels out of it
    assert [n for n in silent if not n.endswith(".k.bias")] == []


def test_save_and_load_give_the_same_model(tmp_path):
    model = RQVAE(ResidualQuantizer(4, 3, 8), **TINY)
    images = torch.randn(8, 1, 16, 16)
    model(images)
    model.eval().save(tmp_path / "m.safetensors")
    again = RQVAE.load(tmp_path / "m.safetensors")
    codes = model.encode(images)
    assert torch.equal(again.encode(images), codes)
    assert torch.equal(again.decode(codes[..., :2]), model.decode(codes[..., :2]))
    with pytest.raises(ArtifactError, match="RQVAE"):
        ResidualQuantizer.load(tmp_path / "m.safetensors")


def test_a_model_whose_codebook_still_waits_for_vectors_is_saved_and_loaded(tmp_path):
    model = RQVAE(ResidualQuantizer(4, 2, 4096), **TINY)
    images = torch.randn(8, 1, 16, 16)
    model(images)  # far fewer vectors than k-means asks for
    assert len(model.quantizer.state.gathered)
    model.eval().save(tmp_path / "m.safetensors")
    again = RQVAE.load(tmp_path / "m.safetensors")
    assert torch.equal(again.encode(images), model.encode(images))


def test_bad_input_is_refused():
    quantizer = ResidualQuantizer(4, 2, 8)
    model = RQVAE(quantizer, **TINY)
    with pytest.raises(ShapeError, match=r"\(B, 1, 16, 16\); got \(2, 3, 16, 16\)"):
        model.encode(torch.zeros(2, 3, 16, 16))
    with pytest.raises(ConfigError, match="multiple of 2"):
        RQVAE(quantizer, **{**TINY, "resolution": 15})
    with pytest.raises(ConfigError, match="dim=16"):
        RQVAE(quantizer, **TINY, fold=2)
