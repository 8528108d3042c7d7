"""Every kind of model the authors' code can build, against plain loops on the authors' tensors."""

import pytest
import torch
import yaml
from reference_release import STAGE1, STAGE2, ReferencePrior, changed, quantize, write_release

from imagegen import export_release, import_release
from imagegen.checkpoints.official_config import OfficialConfig
from imagegen.checkpoints.stage1 import autoencoder_arguments
from imagegen.checkpoints.stage2 import transformer_arguments

UNSHARED = changed(STAGE1, arch__hparams__shared_codebook=False)
VARIED = changed(UNSHARED, arch__hparams__n_embed=[6, 3, 5])
PER_LEVEL = changed(STAGE2, arch__shared_cls_emb=False)
LEARNED = changed(STAGE2, arch__input_emb_vqvae=False, arch__head_emb_vqvae=False)
UNFOLDED = changed(STAGE1, arch__hparams__code_shape=[4, 4, 3])
VARIANTS = {
    "classes": (STAGE1, STAGE2),
    "unconditional": (
        STAGE1,
        changed(STAGE2, arch__vocab_size_cond=None, arch__block_size_cond=None),
    ),
    "text": (STAGE1, changed(STAGE2, arch__vocab_size_cond=9, arch__block_size_cond=3)),
    "no sums over depth": (STAGE1, changed(STAGE2, arch__cumsum_depth_ctx=False)),
    "unshared codebooks": (UNSHARED, STAGE2),
    "classifier per level": (UNSHARED, PER_LEVEL),
    "sizes per level": (
        VARIED,
        changed(PER_LEVEL, arch__vocab_size=[6, 3, 5], arch__shared_tok_emb=False),
    ),
    "learned embeddings": (STAGE1, LEARNED),
    "learned embeddings per level": (UNSHARED, changed(LEARNED, arch__shared_tok_emb=False)),
    "learned, sizes per level": (
        VARIED,
        changed(
            LEARNED,
            arch__shared_tok_emb=False,
            arch__shared_cls_emb=False,
            arch__vocab_size=[6, 3, 5],
        ),
    ),
    "text, learned, classifier per level": (
        STAGE1,
        changed(
            LEARNED,
            arch__vocab_size_cond=9,
            arch__block_size_cond=3,
            arch__shared_cls_emb=False,
        ),
    ),
}


@pytest.fixture(params=VARIANTS)
def variant(request, tmp_path):
    config1, config2 = VARIANTS[request.param]
    state1, state2 = write_release(tmp_path / "release", config1, config2)
    return tmp_path / "release", config1, config2, state1, state2


def _condition(arch, batch=2):
    rows, length = arch.get("vocab_size_cond", 1), arch.get("block_size_cond", 1)
    return None if rows == 1 else torch.randint(rows, (batch, length))


@torch.no_grad()
def test_logits_equal_the_equations(variant):
    folder, _, config2, state1, state2 = variant
    prior = import_release(folder)[1]
    reference = ReferencePrior(config2, state2, state1)
    height, width, depth = config2["arch"]["block_size"]
    sizes = prior.codebook_sizes
    codes = torch.stack([torch.randint(k, (2, height, width)) for k in sizes], -1)
    cond = _condition(config2["arch"])
    out = prior(codes, cond)
    logits, text = out if isinstance(out, tuple) else (out, None)
    assert (text is not None) == (config2["arch"].get("block_size_cond", 1) > 1)
    for b in range(2):
        told = [0] if cond is None else cond[b].tolist()
        expected, expected_text = reference.logits(told, codes[b].flatten(0, 1).tolist())
        for t, position in enumerate(expected):
            for level in range(depth):
                ours = logits[b].flatten(0, 1)[t, level]
                torch.testing.assert_close(ours[: sizes[level]], position[level])
                assert (ours[sizes[level] :] == -torch.inf).all()
        if text is not None:
            torch.testing.assert_close(text[b], expected_text)


@torch.no_grad()
def test_greedy_samples_equal_the_equations(variant):
    folder, _, config2, state1, state2 = variant
    prior = import_release(folder)[1]
    cond = _condition(config2["arch"], batch=1)
    told = [0] if cond is None else cond[0].tolist()
    expected = ReferencePrior(config2, state2, state1).greedy(told)
    codes = prior.generate(1, cond=cond, top_k=1)
    assert codes[0].flatten(0, 1).tolist() == expected


@pytest.mark.parametrize("config", [STAGE1, UNFOLDED, UNSHARED, VARIED])
@torch.no_grad()
def test_codes_equal_the_equations(config, tmp_path):
    (state,) = write_release(tmp_path, config)
    rqvae, prior = import_release(tmp_path)
    assert prior is None
    images = torch.rand(2, 3, 8, 8) * 2 - 1
    features = rqvae.quant_conv(rqvae.encoder(images)).movedim(1, -1)
    codes = rqvae.encode(images)
    for b in range(2):
        expected, quantized = quantize(features[b], state, config["arch"]["hparams"]["code_shape"])
        assert torch.equal(codes[b], expected)
        image = rqvae.decoder(rqvae.post_quant_conv(quantized.movedim(-1, 0).unsqueeze(0)))
        torch.testing.assert_close(rqvae.decode(codes[b : b + 1]), image)


def test_round_trip_keeps_every_tensor_and_the_meaning_of_the_configuration(variant, tmp_path):
    folder, config1, config2, *states = variant
    rqvae, prior = import_release(folder)
    export_release(rqvae, prior, tmp_path / "back", dataset="imagenet", sampling={})
    for stage, state in zip(("stage1", "stage2"), states, strict=True):
        back = torch.load(tmp_path / "back" / stage / "model.pt", weights_only=True)["state_dict"]
        assert back.keys() == state.keys()
        for name, tensor in state.items():
            assert back[name].dtype == tensor.dtype
            if name.endswith("embed_ema"):  # kept as counts and codewords, whose product it is
                torch.testing.assert_close(back[name], tensor, rtol=1e-6, atol=1e-6)
            else:
                assert torch.equal(back[name], tensor), name
    written = [
        yaml.safe_load((tmp_path / "back" / s / "config.yaml").read_text())
        for s in ("stage1", "stage2")
    ]
    for read, before, after in (
        (autoencoder_arguments, config1, written[0]),
        (lambda c: transformer_arguments(c).transformer, config2, written[1]),
    ):
        assert read(OfficialConfig(before, "")) == read(OfficialConfig(after, ""))


def test_import_draws_no_numbers_and_leaves_nothing_on_the_meta_device(variant):
    folder = variant[0]
    before = torch.get_rng_state()
    models = import_release(folder)
    assert torch.equal(torch.get_rng_state(), before)
    for model in models:
        assert not model.training
        for tensor in (*model.parameters(), *model.buffers()):
            assert not tensor.is_meta
            assert tensor.dtype == torch.float32 or not tensor.is_floating_point()
        assert all(parameter.requires_grad for parameter in model.parameters())


def test_the_copies_of_a_shared_codebook_are_written_once(tmp_path):
    write_release(tmp_path / "release", STAGE1)
    rqvae, _ = import_release(tmp_path / "release")
    export_release(rqvae, None, tmp_path / "back")
    state = torch.load(tmp_path / "back/stage1/model.pt", weights_only=True)["state_dict"]
    first, last = (state[f"quantizer.codebooks.{level}.weight"] for level in (0, 2))
    assert first.data_ptr() == last.data_ptr()
