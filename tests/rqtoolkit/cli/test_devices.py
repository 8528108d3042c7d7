"""`--device`: where the commands compute."""

import numpy as np
import pytest
import torch

from rqtoolkit.cli.quantize import streams

SHAPE = ["--depth", 2, "--codebook-size", 8, "--lsq-rounds", 1, "--starts", 1]


@pytest.mark.parametrize("device", ["nowhere", "meta!", "cuda:63"])
def test_a_device_that_is_not_there_is_refused_before_the_work(made, tmp_path, refused, device):
    out, place = tmp_path / "out.npy", f"--device={device} cannot be used here"
    model, x, codes = made / "model.safetensors", made / "x.npy", made / "codes.npy"
    fitted = out.with_suffix(".safetensors")
    refused(["fit", x, *SHAPE, "--device", device, "--out", fitted], place)
    refused(["encode", model, x, "--device", device, "--out", out], place)
    refused(["decode", model, codes, "--device", device, "--out", out], place)
    refused(["evaluate", model, x, "--device", device], place)


def test_quantizers_are_loaded_where_the_option_says(made, tmp_path, run, monkeypatch):
    places = []
    load = streams.load_any

    def spy(path, device):
        places.append(torch.device(device))
        return load(path, device=device)

    monkeypatch.setattr(streams, "load_any", spy)
    model, x, out = made / "model.safetensors", made / "x.npy", tmp_path / "out.npy"
    run("encode", model, x, "--device", "cpu", "--out", out)
    np.testing.assert_array_equal(np.load(out), np.load(made / "codes.npy"))
    run("decode", model, out, "--device", "cpu", "--out", tmp_path / "decoded.npy")
    run("evaluate", model, x, "--device", "cpu")
    assert places == [torch.device("cpu")] * 3
