"""The three bottlenecks: the Gaussian's arithmetic, VQ-VAE's losses, and one model around each."""

import pytest
import torch
from tiny_runs import TINY_MODELS
from torch.distributions import Independent, Normal, kl_divergence

from imagegen.autoencoder import RQVAE
from imagegen.bottlenecks import GaussianBottleneck, build_bottleneck
from imagegen.config import load_config
from imagegen.jobs import train_run
from imagegen.reconstruct import reconstruct
from imagegen.runs import Run
from rqtoolkit.errors import ArtifactError, ConfigError
from rqtoolkit.io.artifact import read_artifact, write_artifact

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


def tiny(kind):
    depth = 1 if kind == "vq" else 2
    return RQVAE(build_bottleneck(kind, 4, depth=depth, codebook_size=8), **TINY)


def test_the_divergence_is_that_of_torch_distributions():
    x = torch.randn(3, 2, 5, 8)
    mean, log_variance = x[..., :4], x[..., 4:]
    posterior = Independent(Normal(mean, (log_variance / 2).exp()), 3)
    prior = Independent(Normal(torch.zeros(2, 5, 4), torch.ones(2, 5, 4)), 3)
    out = GaussianBottleneck(4)(x)
    torch.testing.assert_close(out.kl_loss, kl_divergence(posterior, prior).mean())


def test_draws_have_the_mean_and_variance_they_were_given():
    x = torch.tensor([0.5, -2.0, 0.0, 1.0]).expand(50_000, 4)  # means, then log-variances
    bottleneck = GaussianBottleneck(2)
    draws = bottleneck(x, generator=torch.Generator().manual_seed(3)).quantized
    assert draws.mean(0).tolist() == pytest.approx([0.5, -2.0], abs=0.03)
    assert draws.var(0).tolist() == pytest.approx([1.0, 2.718], rel=0.03)
    again = bottleneck(x, generator=torch.Generator().manual_seed(3)).quantized
    assert torch.equal(draws, again)
    assert torch.equal(bottleneck.eval()(x).quantized, x[:, :2])


def test_gradients_reparametrise():
    # d/d mean of E[z²] = 2 mean, d/d log-variance of it = variance
    x = torch.tensor([0.7, 0.4]).expand(200_000, 2).clone().requires_grad_()
    GaussianBottleneck(1)(x).quantized.square().sum().backward()
    slope = x.grad.mean(0)
    assert slope.tolist() == pytest.approx([1.4, torch.tensor(0.4).exp().item()], rel=0.03)


def test_extreme_log_variances_stay_finite():
    out = GaussianBottleneck(1)(torch.tensor([[0.0, 1e9], [0.0, -1e9]]))
    assert out.quantized.isfinite().all()
    assert out.kl_loss.isfinite()


def test_vq_has_the_three_losses_of_vq_vae():
    quantizer = build_bottleneck("vq", 3, codebook_size=5, kmeans_init=False)
    x = torch.randn(20, 3, requires_grad=True)
    table = quantizer.codebooks[0].clone()
    out = quantizer(x)
    nearest = torch.cdist(x, table).argmin(1)
    assert torch.equal(out.codes[:, 0], nearest)
    error = (x - table[nearest]).square().mean()
    torch.testing.assert_close(out.codebook_loss, error)
    torch.testing.assert_close(out.commitment_loss, error)
    # the codebook loss moves codewords alone, the commitment loss the encoder alone
    (parameter,) = quantizer.parameters()
    (pulled,) = torch.autograd.grad(out.codebook_loss, parameter, retain_graph=True)
    assert pulled.any()
    assert torch.autograd.grad(out.codebook_loss, x, allow_unused=True, retain_graph=True) == (
        None,
    )
    assert torch.autograd.grad(out.commitment_loss, parameter, allow_unused=True) == (None,)


@pytest.mark.parametrize("kind", ["rq", "vq", "kl"])
def test_one_model_stands_around_each(tmp_path, kind):
    model, images = tiny(kind), torch.randn(8, 1, 16, 16)
    out = model(images)
    names = {"kl"} if kind == "kl" else {"commitment", "codebook"}
    assert set(out.losses) == names
    assert model.quantizes == (kind != "kl") == (out.codes is not None)
    loss = (out.reconstruction - images).square().mean() + sum(out.losses.values())
    loss.backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []
    model.eval().save(tmp_path / "m.safetensors")
    again = RQVAE.load(tmp_path / "m.safetensors")
    assert type(again.quantizer) is type(model.quantizer)
    with torch.no_grad():
        assert torch.equal(again(images).reconstruction, model(images).reconstruction)
        assert model.latents(images).shape == (8, 8, 8, 4)
    pixels = images.movedim(1, -1).mul(64).add(128).clamp(0, 255).byte().numpy()
    depth = 2 if kind == "rq" else 1
    assert reconstruct(model, pixels, batch_size=3).shape == (depth, 8, 16, 16, 1)


def test_a_gaussian_reconstructs_through_its_mean():
    model, images = tiny("kl").eval(), torch.randn(4, 1, 16, 16)
    with torch.no_grad():
        through = model.decode_latents(model.latents(images))
        assert torch.equal(model(images).reconstruction, through)


def test_what_has_no_codes_refuses_them():
    model = tiny("kl")
    with pytest.raises(ConfigError, match=r"RQVAE.encode: bottleneck=kl has no codes"):
        model.encode(torch.zeros(1, 1, 16, 16))
    with pytest.raises(ConfigError, match=r"RQVAE.decode: bottleneck=kl has no codes"):
        model.decode(torch.zeros(1, 8, 8, 1, dtype=torch.long))
    with pytest.raises(ConfigError, match="Set fold to 1"):
        RQVAE(GaussianBottleneck(16), **TINY, fold=2)
    with pytest.raises(ConfigError, match=r"Set quantizer\.depth to 1"):
        build_bottleneck("vq", 4, depth=2, codebook_size=8)
    with pytest.raises(ConfigError, match="rq, vq, kl"):
        build_bottleneck("fsq", 4)


def test_a_file_with_an_unknown_bottleneck_is_refused(tmp_path):
    path = tmp_path / "m.safetensors"
    tiny("rq").save(path)
    arguments, tensors = read_artifact(path, class_name="RQVAE")
    arguments["bottleneck"]["class"] = "os.system"
    write_artifact(path, class_name="RQVAE", arguments=arguments, tensors=tensors)
    with pytest.raises(ArtifactError, match=r"unknown bottleneck; got 'os\.system'"):
        RQVAE.load(path)


def test_a_file_that_names_no_bottleneck_has_the_residual_quantizer(tmp_path):
    path, model = tmp_path / "m.safetensors", tiny("rq").eval()
    model.save(path)
    arguments, tensors = read_artifact(path, class_name="RQVAE")
    del arguments["bottleneck"]["class"]
    write_artifact(path, class_name="RQVAE", arguments=arguments, tensors=tensors)
    images = torch.rand(2, model.image_channels, model.resolution, model.resolution)
    loaded = RQVAE.load(path)
    assert torch.equal(loaded.encode(images), model.encode(images))


SMALL = {
    **TINY_MODELS,
    "quantizer.depth": 1,
    "stage1.steps": 4,
    "stage1.batch_size": 8,
    "stage1.log_every": 1,
    "stage1.sample_every": 4,
}


@pytest.mark.parametrize("kind", ["vq", "kl"])
def test_stage_1_trains_around_each(tmp_path, kind):
    config = load_config("digits", overrides={**SMALL, "autoencoder.bottleneck": kind})
    run = train_run(config, tmp_path / "run", stages=(1,))
    model = RQVAE.load(run.autoencoder_path)
    assert model.quantizes == (kind == "vq")
    lines = [m for m in Run.open(run.path).metrics() if "loss" in m]
    assert all(m["kl" if kind == "kl" else "codebook"] > 0 for m in lines)


def test_stage_2_refuses_a_model_without_codes(tmp_path):
    config = load_config("digits", overrides={**SMALL, "autoencoder.bottleneck": "kl"})
    with pytest.raises(ConfigError, match="has no codes for stage 2"):
        train_run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
