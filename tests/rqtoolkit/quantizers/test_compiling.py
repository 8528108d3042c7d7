import copy
import shutil

import pytest
import torch

from rqtoolkit import ResidualQuantizer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings(
        "ignore:The .grad attribute of a Tensor:UserWarning"
    ),  # dynamo looks
]

DIM, DEPTH, SIZE = 8, 3, 16
# A decay and a threshold with which entries restart at every step
RESTARTING = {"decay": 0.5, "restart_threshold": 0.9}


@pytest.fixture(autouse=True)
def _nothing_compiled_before():
    torch.compiler.reset()


def started(**options):
    torch.manual_seed(0)
    defaults = {"codebook_size": SIZE, **RESTARTING}
    quantizer = ResidualQuantizer(DIM, DEPTH, **defaults | options)
    quantizer(torch.randn(64, DIM))
    assert quantizer.state.is_initialized == quantizer.kmeans_init
    return quantizer


def compiled(function, backend="aot_eager"):
    return torch.compile(function, fullgraph=True, backend=backend)


def step(call, x, mask=None):
    """Return the output of a training step with its gradient at x."""
    torch.manual_seed(1)
    x = x.clone().requires_grad_()
    out = call(x, mask)
    (out.quantized.square().sum() + out.commitment_loss + out.codebook_loss).backward()
    return out, x.grad


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"shared_codebook": True, "channels_first": True},
        {"update": "gradient"},
        {"similarity": "cosine", "estimator": "rotation"},
        {"codebook_dim": 4, "depth_dropout": 0.5},
        {"tau": 0.1},
        {"forward_beam": 3, "estimator": "rotation"},
        {"kmeans_init": False, "restart_threshold": 0.0},
    ],
    ids=str,
)
@pytest.mark.parametrize("masked", [False, True])
def test_a_compiled_training_step_equals_the_eager_one(options, masked):
    eager = started(**options)
    quantizer = copy.deepcopy(eager)
    call = compiled(quantizer)
    for number in range(3):
        x = torch.randn(4, 10, DIM)
        x = x.mT.contiguous() if options.get("channels_first") else x
        mask = torch.rand(4, 10) < 0.8 if masked else None
        # A graph with guards that fail would be compiled at every step
        with torch._dynamo.config.patch(error_on_recompile=number > 0):
            out, gradient = step(call, x, mask)
        expected, expected_gradient = step(eager, x, mask)
        assert torch.equal(out.codes, expected.codes)
        torch.testing.assert_close(out.quantized, expected.quantized)
        torch.testing.assert_close(out.commitment_loss, expected.commitment_loss)
        torch.testing.assert_close(gradient, expected_gradient)
        assert out.stats.dead == expected.stats.dead
        assert torch.equal(quantizer.encode(x, beam=2), copy.deepcopy(quantizer).encode(x, beam=2))
        for name, tensor in quantizer.state_dict().items():
            torch.testing.assert_close(tensor, eager.state_dict()[name], msg=name)
    if options.get("restart_threshold") != 0:
        assert sum(out.stats.dead) > 0


@pytest.mark.parametrize(
    "options",
    [{}, {"shared_codebook": True}, {"similarity": "cosine"}, {"codebook_dim": 4}],
    ids=str,
)
def test_compiled_encode_decode_and_evaluation_equal_the_eager_ones(options):
    quantizer = started(**options).eval()
    encode, decode, forward = (
        compiled(function) for function in (quantizer.encode, quantizer.decode, quantizer)
    )
    for rows in (50, 51, 3000):  # the second size makes a graph for all sizes
        with torch._dynamo.config.patch(error_on_recompile=rows == 3000):
            x = torch.randn(rows, DIM)
            codes = encode(x)
            assert torch.equal(codes, quantizer.encode(x))
            torch.testing.assert_close(decode(codes), quantizer.decode(codes))
            assert torch.equal(forward(x).codes, quantizer(x).codes)
    # With a beam, of levels that share a table, stacks in another order are as good
    beams = [compiled(lambda x: quantizer.encode(x, beam=4))(x), quantizer.encode(x, beam=4)]
    errors = [(x - quantizer.decode(codes)).square().sum(dim=1) for codes in beams]
    torch.testing.assert_close(*errors)


def test_refinement_breaks_the_graph_and_is_the_same():
    quantizer, x = started().eval(), torch.randn(50, DIM)
    encode = torch.compile(quantizer.encode, backend="eager")
    expected = quantizer.encode(x, beam=4, icm_rounds=2, perturbations=1)
    assert torch.equal(encode(x, beam=4, icm_rounds=2, perturbations=1), expected)


def test_the_start_is_no_part_of_a_graph():
    eager = ResidualQuantizer(DIM, DEPTH, SIZE, **RESTARTING)
    x = torch.randn(64, DIM)
    with pytest.raises(Exception, match="kmeans_started"):
        compiled(copy.deepcopy(eager))(x)
    quantizer = copy.deepcopy(eager)
    call = torch.compile(quantizer, backend="aot_eager")
    for number in range(4):
        with torch._dynamo.config.patch(error_on_recompile=number > 1):
            out, _ = step(call, x[:20])
        assert torch.equal(out.codes, step(eager, x[:20])[0].codes)
    assert quantizer.state.is_initialized


def test_the_update_of_the_paper_breaks_the_graph_and_is_the_same():
    eager, x = started(update="paper"), torch.randn(40, DIM)
    quantizer = copy.deepcopy(eager)
    call = torch.compile(quantizer, backend="eager")
    for _ in range(2):
        assert torch.equal(step(call, x)[0].codes, step(eager, x)[0].codes)
    torch.testing.assert_close(quantizer.codebooks, eager.codebooks)


@pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++", "cl"))),
    reason="the default compiler of torch needs one for C++",
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what the compiler imports
def test_the_default_compiler_trains_and_encodes():
    quantizer, x = started(codebook_size=4), torch.randn(200, DIM)
    call = compiled(quantizer, backend="inductor")
    quantizer.encode(x)
    for _ in range(5):
        out, _ = step(call, x)
    assert out.stats.usage == [1.0] * DEPTH
    assert quantizer.codebooks.isfinite().all()
    assert torch.equal(quantizer.encode(x), copy.deepcopy(quantizer).encode(x))
    encode = compiled(quantizer.eval().encode, backend="inductor")
    assert torch.equal(encode(x), quantizer.encode(x))
