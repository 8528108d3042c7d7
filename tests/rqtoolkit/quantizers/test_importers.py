"""State dicts of other packages against those packages themselves."""

import pickle
import warnings
from importlib.metadata import version

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from rqtoolkit import ResidualBinaryQuantizer, ResidualQuantizer, ResidualScalarQuantizer
from rqtoolkit.errors import ArtifactError
from rqtoolkit.quantizers import (
    from_dac,
    from_encodec,
    from_vector_quantize_pytorch,
    split_projections,
)


@pytest.fixture(scope="module")
def vqp():
    return pytest.importorskip("vector_quantize_pytorch")


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers")


def trained(module, x, steps=3):
    """Give codebooks and counts values of their own, and return the module in eval mode."""
    module.train()
    for _ in range(steps):
        module(x + 0.01 * torch.randn_like(x))
    return module.eval()


def scrambled(module):
    """Fill all tensors with chance, as a trained network would have them."""
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) + 0.1 if tensor.ndim < 2 else 0.5 * torch.randn(1))
            tensor.add_(0.3 * torch.randn_like(tensor))
    return module.eval()


def assert_same(ours, x, quantized, codes):
    with torch.no_grad():
        out = ours(x)
    assert not ours.training
    assert torch.equal(out.codes, codes)
    torch.testing.assert_close(out.quantized, quantized, atol=1e-5, rtol=1e-5)
    assert torch.equal(ours.encode(x), codes)
    torch.testing.assert_close(ours.decode(codes), quantized, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("theirs", "settings"),
    [
        ({"codebook_size": 32}, {}),
        ({"codebook_size": (32, 16, 8)}, {}),
        ({"codebook_size": 32, "shared_codebook": True}, {}),
        ({"codebook_size": 32, "use_cosine_sim": True}, {"similarity": "cosine"}),
        (
            {"codebook_size": 32, "learnable_codebook": True, "ema_update": False},
            {"update": "gradient"},
        ),
        ({"codebook_size": 32, "kmeans_init": True, "decay": 0.9}, {"decay": 0.9}),
    ],
)
def test_residual_vq(vqp, theirs, settings):
    x = torch.randn(2, 200, 8)
    module = trained(vqp.ResidualVQ(dim=8, num_quantizers=3, **theirs), x)
    ours = from_vector_quantize_pytorch(module.state_dict(), **settings)
    with torch.no_grad():
        quantized, codes, _ = module(x)
    assert_same(ours, x, quantized, codes)
    assert ours.shared_codebook == theirs.get("shared_codebook", False)


def test_moving_counts_come_along(vqp):
    x = torch.randn(1, 300, 4)
    for shared in (False, True):
        module = vqp.ResidualVQ(
            dim=4, num_quantizers=2, codebook_size=16, shared_codebook=shared, kmeans_init=True
        )
        state = trained(module, x).state_dict()
        ours = from_vector_quantize_pytorch(state, decay=0.8)
        counts = state["layers.0._codebook.cluster_size"][0]
        torch.testing.assert_close(ours.state.counts[0], counts * (2 if shared else 1))
        before = ours.codebooks.clone()
        ours.train()(x)
        moved = (ours.codebooks - before).norm(dim=2).max()
        assert 0 < float(moved) < 0.5 * float(before.norm(dim=2).mean())


def test_projections_around_all_levels_are_split_off(vqp):
    module = trained(
        vqp.ResidualVQ(dim=10, num_quantizers=2, codebook_size=16, codebook_dim=4),
        torch.randn(1, 200, 10),
    )
    state = {f"vq.{name}": tensor for name, tensor in module.state_dict().items()}
    with pytest.raises(ArtifactError, match="split_projections"):
        from_vector_quantize_pytorch(state)
    project_in, project_out, rest = split_projections(state, prefix="vq.")
    ours = from_vector_quantize_pytorch(rest)
    x = torch.randn(1, 50, 10)
    with torch.no_grad():
        quantized, codes, _ = module(x)
        out = ours(project_in(x))
        torch.testing.assert_close(project_out(out.quantized), quantized, atol=1e-5, rtol=1e-5)
    assert torch.equal(out.codes, codes)
    with pytest.raises(ArtifactError, match="no project_in"):
        split_projections(rest)


def test_vector_quantize_is_one_level(vqp):
    x = torch.randn(1, 100, 4)
    module = trained(vqp.VectorQuantize(dim=4, codebook_size=16), x)
    with torch.no_grad():
        quantized, codes, _ = module(x)
    assert_same(from_vector_quantize_pytorch(module.state_dict()), x, quantized, codes[..., None])


def test_grouped_residual_vq(vqp):
    x = torch.randn(1, 200, 12)
    module = trained(vqp.GroupedResidualVQ(dim=12, groups=3, num_quantizers=2, codebook_size=16), x)
    with torch.no_grad():
        quantized, codes, _ = module(x)
    ours = from_vector_quantize_pytorch(module.state_dict())
    assert_same(ours, x, quantized, codes.permute(1, 2, 3, 0).flatten(2))  # level after level


def test_images_are_channels_first(vqp):
    x = torch.randn(2, 6, 5, 5)
    module = trained(vqp.VectorQuantize(dim=6, codebook_size=16, accept_image_fmap=True), x)
    with torch.no_grad():
        quantized, codes, _ = module(x)
    ours = from_vector_quantize_pytorch(module.state_dict(), channels_first=True)
    assert_same(ours, x, quantized, codes[..., None])


@pytest.mark.parametrize("dim", [3, 9])
def test_residual_fsq(vqp, dim):
    if tuple(map(int, version("vector-quantize-pytorch").split(".")[:2])) < (1, 26):
        pytest.skip("vector-quantize-pytorch had other grids before 1.26")
    levels = [8, 5, 4]
    module = vqp.ResidualFSQ(dim=dim, levels=levels, num_quantizers=3).eval()
    ours = from_vector_quantize_pytorch(module.state_dict(), levels=levels, depth=3)
    assert isinstance(ours, ResidualScalarQuantizer)
    x = 2 * torch.randn(2, 100, dim)
    with torch.no_grad():
        quantized, codes = module(x)
    assert_same(ours, x, quantized, codes.long())


@pytest.mark.parametrize("dim", [6, 9])
@pytest.mark.parametrize("spherical", [False, True])
def test_residual_lfq(vqp, dim, spherical):
    # Without its own normalisation of the whole, theirs agrees at the first level alone.
    depth = 1 if spherical else 3
    module = vqp.ResidualLFQ(dim=dim, codebook_size=64, num_quantizers=depth, spherical=spherical)
    ours = from_vector_quantize_pytorch(module.eval().state_dict(), spherical=spherical)
    assert isinstance(ours, ResidualBinaryQuantizer)
    x = torch.randn(2, 100, dim)
    with torch.no_grad():
        quantized, codes, _ = module(x)
    assert_same(ours, x, quantized, codes.long())


def test_entropy_of_single_vectors_is_that_of_lfq(vqp):
    module = vqp.LFQ(dim=6, codebook_size=64, diversity_gamma=0.5)
    ours = ResidualBinaryQuantizer(6, 1, 6, temperature=0.01, diversity=0.5)
    x = 0.02 * torch.randn(1, 1, 6)
    _, breakdown = module(x, return_loss_breakdown=True)
    expected = breakdown.per_sample_entropy - 0.5 * breakdown.batch_entropy
    # Theirs cuts probabilities off at 1e-5.
    torch.testing.assert_close(ours(x).entropy_loss, expected, atol=2e-3, rtol=1e-3)
    many = 0.02 * torch.randn(1, 500, 6)
    _, breakdown = module(many, return_loss_breakdown=True)
    free = ResidualBinaryQuantizer(6, 1, 6, temperature=0.01, diversity=0.0)
    torch.testing.assert_close(
        free(many).entropy_loss, breakdown.per_sample_entropy, atol=2e-3, rtol=1e-3
    )
    spread = free(many).entropy_loss - 2 * ours(many).entropy_loss + free(many).entropy_loss
    assert spread >= breakdown.batch_entropy - 1e-3  # the sum over bits bounds the joint entropy


def test_encodec():
    encodec = pytest.importorskip("encodec.quantization", exc_type=ImportError)
    module = encodec.ResidualVectorQuantizer(dimension=8, n_q=4, bins=32).train()
    x = torch.randn(3, 8, 60)
    module.vq(x)
    module.eval()
    with torch.no_grad():
        codes = module.vq.encode(x)
        quantized = module.vq.decode(codes)
    assert_same(from_encodec(module.state_dict()), x, quantized, codes.permute(1, 2, 0))


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_dac():
    dac = pytest.importorskip("dac.nn.quantize", exc_type=ImportError)
    module = dac.ResidualVectorQuantize(32, n_codebooks=5, codebook_size=64).eval()
    x = torch.randn(3, 32, 50)
    with torch.no_grad():
        quantized, codes, *_ = module(x)
    assert_same(from_dac(module.state_dict()), x, quantized, codes.movedim(1, -1))


@pytest.mark.slow
def test_encodec_of_transformers(transformers):
    config = transformers.EncodecConfig(
        num_filters=4, hidden_size=8, codebook_size=16, codebook_dim=8, target_bandwidths=[1.5]
    )
    model = transformers.EncodecModel(config)
    quantizer = scrambled(model.quantizer)
    for layer in quantizer.layers:
        layer.codebook.inited.fill_(1)
    ours = from_encodec(model.state_dict())
    assert ours.channels_first
    x = torch.randn(2, 8, 30)
    with torch.no_grad():
        codes = quantizer.encode(x, bandwidth=None)
        quantized = quantizer.decode(codes)
    assert_same(ours, x, quantized, codes.permute(1, 2, 0))
    torch.testing.assert_close(ours.state.counts[0], quantizer.layers[0].codebook.cluster_size)


def encodec_state(depth=3, dim=6, codebook_size=8, codebook_dim=None):
    """Make a state as encodec and audiocraft lay it out, by hand."""
    state = {}
    for level in range(depth):
        own = f"quantizer.vq.layers.{level}."
        state[own + "_codebook.inited"] = torch.ones(1)
        state[own + "_codebook.cluster_size"] = torch.rand(codebook_size) + 1
        state[own + "_codebook.embed"] = torch.randn(codebook_size, codebook_dim or dim)
        state[own + "_codebook.embed_avg"] = torch.randn(codebook_size, codebook_dim or dim)
        if codebook_dim:
            state[own + "project_in.weight"] = torch.randn(codebook_dim, dim)
            state[own + "project_in.bias"] = torch.randn(codebook_dim)
            state[own + "project_out.weight"] = torch.randn(dim, codebook_dim)
            state[own + "project_out.bias"] = torch.randn(dim)
    return state | {"encoder.model.0.conv.weight": torch.randn(3, 3)}


@pytest.mark.parametrize("codebook_dim", [None, 2])
def test_encodec_written_out(codebook_dim):
    state = encodec_state(codebook_dim=codebook_dim)
    ours = from_encodec(state, channels_first=False)
    x = torch.randn(40, 6)
    left, quantized, codes = x, torch.zeros_like(x), []
    for level in range(3):
        own = f"quantizer.vq.layers.{level}."
        table, z = state[own + "_codebook.embed"], left
        if codebook_dim:
            z = z @ state[own + "project_in.weight"].T + state[own + "project_in.bias"]
        codes.append(torch.cdist(z, table).argmin(dim=1))
        point = table[codes[-1]]
        if codebook_dim:
            point = point @ state[own + "project_out.weight"].T + state[own + "project_out.bias"]
        left, quantized = left - point, quantized + point
    assert_same(ours, x, quantized, torch.stack(codes, dim=1))


@pytest.mark.slow
@pytest.mark.parametrize("norm", [None, "old", "new"])
def test_dac_of_transformers(transformers, norm):
    config = transformers.DacConfig(
        encoder_hidden_size=4,
        downsampling_ratios=[2, 2],
        decoder_hidden_size=16,
        n_codebooks=3,
        codebook_size=16,
        codebook_dim=4,
        hidden_size=12,
        upsampling_ratios=[2, 2],
    )
    model = transformers.DacModel(config)
    with torch.no_grad():
        for parameter in model.quantizer.parameters():
            parameter.normal_()
    for level in model.quantizer.quantizers if norm else ():
        for layer in (level.in_proj, level.out_proj):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the older way is deprecated, its files are not
                old, new = nn.utils.weight_norm, nn.utils.parametrizations.weight_norm
                (old if norm == "old" else new)(layer)
    model.eval()
    ours = from_dac({"state_dict": model.state_dict(), "metadata": {"kwargs": 1}})
    assert (ours.similarity, ours.update, ours.codebook_dim) == ("cosine", "gradient", 4)
    x = torch.randn(2, 12, 25)
    with torch.no_grad():
        quantized, codes, *_ = model.quantizer(x)
    assert_same(ours, x, quantized, codes.movedim(1, -1))


def test_dac_written_out():
    state = dac_state()
    ours = from_dac(state)
    x = torch.randn(2, 6, 30)
    left, quantized, codes = x, torch.zeros_like(x), []
    for level in range(2):
        own = f"quantizer.quantizers.{level}."

        def project(vectors, name, own=own):
            v, g = state[f"{own}{name}.weight_v"], state[f"{own}{name}.weight_g"]
            weight = torch._weight_norm(v, g, 0)
            return torch.conv1d(vectors, weight, state[f"{own}{name}.bias"])

        table = state[own + "codebook.weight"]
        directions = nn.functional.normalize(project(left, "in_proj"), dim=1).movedim(1, -1)
        codes.append((directions @ nn.functional.normalize(table, dim=1).T).argmax(dim=-1))
        point = project(table[codes[-1]].movedim(-1, 1), "out_proj")
        left, quantized = left - point, quantized + point
    assert_same(ours, x, quantized, torch.stack(codes, dim=-1))


def test_imports_go_on_training():
    ours = from_dac(dac_state(), depth_dropout=0.5).train()
    x = torch.randn(3, 6, 20, requires_grad=True)
    out = ours(x)
    (out.quantized.square().mean() + out.commitment_loss + out.codebook_loss).backward()
    assert all(p.grad is not None for p in ours.parameters())
    assert ours.depth_dropout == 0.5


def dac_state(depth=2, dim=6, codebook_dim=(3, 3)):
    state = {}
    for level, size in zip(range(depth), codebook_dim, strict=True):
        own = f"quantizer.quantizers.{level}."
        for name, shape in {"in_proj": (size, dim, 1), "out_proj": (dim, size, 1)}.items():
            state[f"{own}{name}.weight_g"] = torch.rand(shape[0], 1, 1) + 0.5
            state[f"{own}{name}.weight_v"] = torch.randn(shape)
            state[f"{own}{name}.bias"] = torch.randn(shape[0])
        state[f"{own}codebook.weight"] = torch.randn(16, size)
    return state


def test_files(tmp_path):
    state = encodec_state()
    torch.save({"best_state": state, "xp.cfg": "text"}, tmp_path / "state.th")
    save_file(state, tmp_path / "state.safetensors")
    x = torch.randn(2, 6, 9)
    expected = from_encodec(state).encode(x)
    for name in ("state.th", "state.safetensors"):
        assert torch.equal(from_encodec(tmp_path / name).encode(x), expected)
    (tmp_path / "code.th").write_bytes(pickle.dumps(print, protocol=2))
    with pytest.raises(ArtifactError, match="tensors alone"):
        from_encodec(tmp_path / "code.th")
    with pytest.raises(ArtifactError, match="does not exist"):
        from_dac(tmp_path / "nowhere.th")


def test_what_cannot_be_imported_is_named(vqp):
    base = {"dim": 4, "num_quantizers": 2, "codebook_size": 8}

    def refused(match, module, call=from_vector_quantize_pytorch, **settings):
        state = module if isinstance(module, dict) else module.state_dict()
        with pytest.raises(ArtifactError, match=match):
            call(state, **settings)

    refused("mlps", vqp.ResidualVQ(**base, implicit_neural_codebook=True))
    refused("codebook_mean", vqp.ResidualVQ(**base, affine_param=True))
    refused("k-means has not run", vqp.ResidualVQ(**base, kmeans_init=True))
    heads = vqp.VectorQuantize(dim=8, codebook_size=8, heads=2, separate_codebook_per_head=True)
    refused("heads", {n: t for n, t in heads.state_dict().items() if "project" not in n})
    refused("no ResidualVQ", nn.Linear(2, 2))
    refused("levels and depth", vqp.ResidualFSQ(dim=4, levels=[3, 3], num_quantizers=2))
    two = {
        f"{side}.{n}": t for side in "ab" for n, t in vqp.ResidualVQ(**base).state_dict().items()
    }
    refused("several quantizers", two)
    assert isinstance(from_vector_quantize_pytorch(two, prefix="b."), ResidualQuantizer)
    refused("no layers.0", nn.Linear(2, 2), from_encodec)
    refused("no quantizers.0", nn.Linear(2, 2), from_dac)
    refused("different sizes", dac_state(codebook_dim=(3, 2)), from_dac)
