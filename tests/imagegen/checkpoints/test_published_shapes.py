"""The published models can be built, with the numbers of parameters the paper gives."""

import pytest
import torch

from imagegen.autoencoder import RQVAE
from rqtoolkit import ResidualQuantizer, RQTransformer

# dim, heads, body and depth layers, codebook size, condition; millions of parameters. The numbers
# count everything that is trained in stage 2, input projections included; codewords are stage 1's.
CLASSES, TEXT = {"num_classes": 1000}, {"text_length": 32, "text_vocab": 16384}
SHAPES = {
    "ffhq": (1024, 16, 24, 4, 2048, {}, 355.39),
    "church": (1024, 16, 24, 4, 16384, {}, 370.09),
    "cat": (1280, 20, 26, 4, 16384, {}, 612.06),
    "bedroom": (1280, 20, 26, 4, 16384, {}, 612.06),
    "imagenet 480M": (1536, 24, 12, 4, 16384, CLASSES, 480.92),
    "imagenet 821M": (1536, 24, 24, 4, 16384, CLASSES, 820.90),
    "imagenet 1.4B": (1536, 24, 42, 6, 16384, CLASSES, 1387.53),
    "imagenet 3.8B": (2560, 40, 42, 6, 16384, CLASSES, 3822.49),
    "cc3m": (1280, 20, 26, 4, 16384, TEXT, 654.06),
}


def _millions(module):
    return sum(parameter.numel() for parameter in module.parameters()) / 1e6


@pytest.mark.parametrize("name", SHAPES)
def test_transformer_has_the_published_parameters(name):
    dim, heads, body, depth, size, condition, published = SHAPES[name]
    with torch.device("meta"):
        model = RQTransformer(
            (8, 8),
            4,
            size,
            dim=dim,
            num_heads=heads,
            body_layers=body,
            depth_layers=depth,
            codebooks=torch.empty(1, size, 256),
            **condition,
        )
    assert round(_millions(model), 2) == published


@pytest.mark.parametrize(("size", "attention", "codebook"), [(16384, 8, 4.2), (2048, 16, 0.5)])
def test_autoencoder_has_the_published_parameters(size, attention, codebook):
    with torch.device("meta"):
        quantizer = ResidualQuantizer(256, 4, size, shared_codebook=True)
        model = RQVAE(quantizer, resolution=256, attention=[attention])
    assert round(_millions(model.encoder), 1) == 41.1
    assert round(_millions(model.decoder), 1) == 59.0
    assert round(quantizer.codebooks.numel() / 1e6, 1) == codebook
    assert model.grid == (8, 8)
