"""RQTransformer against the paper's own code: logits, losses and seeded samples."""

import pytest
import torch
from reference_transformer import from_official
from safetensors.torch import load_file

from rqtoolkit.transformer import RQTransformer


@pytest.fixture(scope="module")
def expected(shared_data):
    return load_file(shared_data("parity/rqtransformer_expected.safetensors"))


@pytest.fixture(scope="module")
def model(shared_data):
    stage1 = torch.load(shared_data("parity/official/stage1/model.pt"), weights_only=True)
    stage2 = torch.load(shared_data("parity/official/stage2/model.pt"), weights_only=True)
    table = stage1["state_dict"]["quantizer.codebooks.0.weight"][:-1].unsqueeze(0)
    model = RQTransformer(
        (8, 8),
        depth=4,
        codebook_size=64,
        dim=64,
        body_layers=2,
        depth_layers=2,
        num_heads=4,
        codebooks=table,
        num_classes=10,
    )
    model.load_state_dict(from_official(stage2["state_dict"], table))
    return model.eval()


def assert_close(found, expected):
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_logits(model, expected):
    with torch.no_grad():
        assert_close(model(expected["codes"], expected["cond"]), expected["logits"])


def test_losses(model, expected):
    codes, cond = expected["codes"], expected["cond"]
    with torch.no_grad():
        assert_close(model.loss(codes, cond=cond), expected["loss_hard"])
        assert_close(model.losses(codes, cond=cond), expected["codebook_loss"])
        soft = model.loss(codes, cond=cond, targets=expected["soft"])
        assert_close(soft, expected["loss_soft"])


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("greedy", {"top_k": 1}),
        ("sample_seed3", {}),
        (
            "sample_seed3_topkp",
            {"top_k": [64, 32, 16, 8], "top_p": [0.95, 0.9, 0.9, 0.8], "temperature": 0.9},
        ),
    ],
)
def test_samples_are_exact(model, expected, name, settings):
    generator = torch.Generator().manual_seed(3)
    codes = model.generate(4, cond=expected["cond"], generator=generator, **settings)
    assert torch.equal(codes, expected[name])
