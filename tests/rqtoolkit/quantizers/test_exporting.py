import pytest
import torch
from torch import nn

from rqtoolkit import GroupedResidualQuantizer, ResidualQuantizer

pytestmark = pytest.mark.slow

DIM = 8
BATCH = {0: torch.export.Dim("batch")}


class Encoder(nn.Module):
    """What exports a method: a module that calls it."""

    def __init__(self, quantizer, **options):
        super().__init__()
        self.quantizer, self.options = quantizer, options

    def forward(self, x):
        return self.quantizer.encode(x, **self.options)


class Decoder(nn.Module):
    def __init__(self, quantizer):
        super().__init__()
        self.quantizer = quantizer

    def forward(self, codes):
        return self.quantizer.decode(codes)


class Network(nn.Module):
    def __init__(self, quantizer):
        super().__init__()
        self.linear, self.quantizer = nn.Linear(DIM, DIM), quantizer

    def forward(self, x):
        return self.quantizer(self.linear(x)).quantized


def fitted(**options):
    torch.manual_seed(0)
    kind = GroupedResidualQuantizer if "groups" in options else ResidualQuantizer
    quantizer = kind(DIM, 3, 16, **options)
    quantizer(torch.randn(64, DIM))
    return quantizer.eval()


KINDS = pytest.mark.parametrize(
    "options",
    [
        {},
        {"shared_codebook": True},
        {"similarity": "cosine"},
        {"codebook_dim": 4},
        {"groups": 2, "rotation": "random"},
    ],
    ids=str,
)


@KINDS
def test_exported_programs_equal_their_methods_for_any_number_of_rows(options):
    quantizer = fitted(**options)
    x = torch.randn(40, 5, DIM)
    codes = quantizer.encode(x)
    modules = {Encoder(quantizer): x, Decoder(quantizer): codes, Network(quantizer): x}
    programs = [
        torch.export.export(module, (given,), dynamic_shapes=(BATCH,)).module()
        for module, given in modules.items()
    ]
    for rows in (2, 40, 3000):
        x = torch.randn(rows, 5, DIM)
        for module, program in zip(modules, programs, strict=True):
            given = quantizer.encode(x) if isinstance(module, Decoder) else x
            torch.testing.assert_close(program(given), module(given))


@pytest.mark.parametrize(
    ("options", "beam"),
    [({}, 1), ({}, 4), ({"similarity": "cosine"}, 1), ({"codebook_dim": 4}, 1), ({"groups": 2}, 1)],
)
@pytest.mark.filterwarnings("ignore")  # of the exporter and what it imports
def test_onnx_programs_equal_their_methods(tmp_path, options, beam):
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package, reason=f"torch.onnx.export needs {package}")
    onnxruntime = pytest.importorskip("onnxruntime")

    def exported(module, given):
        program = torch.onnx.export(
            module, (given,), dynamo=True, dynamic_shapes=(BATCH,), verbose=False
        )
        program.save(tmp_path / "program.onnx")
        session = onnxruntime.InferenceSession(tmp_path / "program.onnx")
        name = session.get_inputs()[0].name
        return lambda tensor: torch.from_numpy(session.run(None, {name: tensor.numpy()})[0])

    quantizer = fitted(**options)
    x = torch.randn(40, DIM)
    encode = exported(Encoder(quantizer, beam=beam), x)
    decode = exported(Decoder(quantizer), quantizer.encode(x))
    for rows in (1, 40, 2000):
        x = torch.randn(rows, DIM)
        codes = quantizer.encode(x, beam=beam)
        assert torch.equal(encode(x), codes)
        torch.testing.assert_close(decode(codes), quantizer.decode(codes))
