"""Quantizers without tables on the command line."""

import numpy as np
import pytest
import torch

from rqtoolkit import ResidualBinaryQuantizer, ResidualScalarQuantizer
from rqtoolkit.cli.app import main


def run(*words):
    return main(["quantize", *map(str, words)])


@pytest.mark.parametrize("kind", ["scalar", "binary"])
def test_files_are_encoded_and_decoded(kind, tmp_path, capsys):
    if kind == "scalar":
        quantizer = ResidualScalarQuantizer(4, 2, (4, 3))
    else:
        quantizer = ResidualBinaryQuantizer(4, 2, 5)
    x = np.random.default_rng(0).normal(size=(100, 4)).astype(np.float32)
    model, data, codes = tmp_path / "m.safetensors", tmp_path / "x.npy", tmp_path / "codes.npy"
    quantizer.save(model)
    np.save(data, x)
    assert run("encode", model, data, "--out", codes) == 0
    expected = quantizer.encode(torch.from_numpy(x))
    assert np.array_equal(np.load(codes), expected.numpy())
    assert run("decode", model, codes, "--out", tmp_path / "back.npy") == 0
    np.testing.assert_allclose(np.load(tmp_path / "back.npy"), quantizer.decode(expected))
    assert run("evaluate", model, data) == 0
    assert "100 vectors of dimension 4" in capsys.readouterr().out


def test_codebooks_too_large_to_count_are_refused(tmp_path, capsys):
    ResidualBinaryQuantizer(4, 2, 40).save(tmp_path / "m.safetensors")
    np.save(tmp_path / "x.npy", np.zeros((9, 4), np.float32))
    assert run("evaluate", tmp_path / "m.safetensors", tmp_path / "x.npy") == 2
    assert "more than the 16777216 that rqtool counts" in capsys.readouterr().err
