import copy
import io
import pickle

import pytest
import torch
from torch import multiprocessing, nn

from rqtoolkit import GroupedResidualQuantizer, ResidualQuantizer

DIM = 4
MODES = pytest.mark.parametrize(
    "options",
    [
        {},
        {"shared_codebook": True},
        {"update": "gradient"},
        {"update": "paper"},
        {"codebook_dim": 2, "estimator": "rotation"},
        {"similarity": "cosine", "depth_dropout": 0.5},
        {"tau": 0.2, "codebook_size": [16, 8]},
        {"forward_beam": 2, "kmeans_init": False},
    ],
    ids=str,
)


def make(**options):
    defaults = {"codebook_size": 16, "decay": 0.6, "restart_threshold": 0.8}
    return ResidualQuantizer(DIM, 2, **defaults | options)


def train(quantizer, steps, context=None):
    """Train for the given steps, whose data and chance follow from their numbers."""
    context = context or torch.autocast("cpu", enabled=False)
    codes = []
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(4, 5, DIM, generator=generator).requires_grad_()
        mask = torch.rand(4, 5, generator=generator) < 0.8
        with context:
            out = quantizer(x, mask, generator=generator)
        (out.quantized.sum() + out.commitment_loss + out.codebook_loss).backward()
        with torch.no_grad():
            for parameter in quantizer.parameters():
                if parameter.grad is not None:
                    parameter -= 0.05 * parameter.grad
                    parameter.grad = None
        codes.append(out.codes)
    return codes


def assert_equal_states(quantizer, expected):
    state = quantizer.state_dict()
    assert state.keys() == expected.state_dict().keys()
    for name, tensor in expected.state_dict().items():
        assert torch.equal(state[name], tensor), name
        assert state[name].dtype == tensor.dtype


def loaded(quantizer, options):
    other = make(**options)
    other.load_state_dict(quantizer.state_dict())
    return other


def assigned(quantizer, options):
    other = make(**options)
    other.load_state_dict(copy.deepcopy(quantizer.state_dict()), assign=True)
    return other


def through_meta(quantizer, options):
    with torch.device("meta"):
        other = make(**options)
    other.load_state_dict(copy.deepcopy(quantizer.state_dict()), assign=True)
    return other


def through_empty_meta(quantizer, options):
    with torch.device("meta"):
        other = make(**options)
    other.to_empty(device="cpu").load_state_dict(quantizer.state_dict())
    return other


def through_file(quantizer, options):
    file = io.BytesIO()
    torch.save(quantizer.state_dict(), file)
    file.seek(0)
    other = make(**options)
    other.load_state_dict(torch.load(file, weights_only=True))
    return other


WAYS = {
    "state_dict": loaded,
    "assign": assigned,
    "meta": through_meta,
    "to_empty": through_empty_meta,
    "torch.save": through_file,
    "deepcopy": lambda quantizer, _: copy.deepcopy(quantizer),
    "pickle": lambda quantizer, _: pickle.loads(pickle.dumps(quantizer)),
    "share_memory": lambda quantizer, _: copy.deepcopy(quantizer).share_memory(),
    "half and back": lambda quantizer, _: nn.Sequential(copy.deepcopy(quantizer)).half().float()[0],
}


@MODES
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("steps", [1, 6])  # still gathering, and started
def test_copies_continue_to_the_bit(options, way, steps):
    if way == "half and back" and "codebook_dim" in options:
        pytest.skip("projections are a network's weights, and rounded with them")
    quantizer = make(**options)
    train(quantizer, range(steps))
    assert quantizer.state.is_initialized == (steps == 6 and quantizer.kmeans_init)
    twin = WAYS[way](quantizer, options)
    assert_equal_states(twin, quantizer)
    codes, expected = train(twin, range(steps, 10)), train(quantizer, range(steps, 10))
    assert all(map(torch.equal, codes, expected))
    assert_equal_states(twin, quantizer)


@MODES
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_changes_no_code_and_no_statistic(options, dtype):
    torch.manual_seed(0)
    quantizer = make(**options)
    under = copy.deepcopy(quantizer)
    expected = train(quantizer, range(8))
    codes = train(under, range(8), torch.autocast("cpu", dtype))
    assert all(map(torch.equal, codes, expected))
    assert_equal_states(under, quantizer)
    x = torch.randn(50, DIM)
    with torch.autocast("cpu", dtype):
        assert torch.equal(under.encode(x), quantizer.encode(x))
        assert torch.equal(under.decode(under.encode(x)), quantizer.decode(quantizer.encode(x)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("update", ["ema", "gradient", "paper"])
def test_a_parent_of_any_precision_trains_the_same_tables(dtype, update):
    quantizer = make(update=update)
    parent = nn.Sequential(copy.deepcopy(quantizer)).to(dtype)
    for step in range(8):
        x = torch.randn(20, DIM).to(dtype)
        torch.manual_seed(step)
        out = parent(x)
        assert out.quantized.dtype == dtype
        torch.manual_seed(step)
        assert torch.equal(out.codes, quantizer(x.float()).codes)
    assert_equal_states(parent[0], quantizer)
    assert parent[0].codebooks.dtype == parent[0].state.counts.dtype == torch.float32


@MODES
def test_evaluation_amid_training_leaves_no_trace(options):
    quantizer = make(**options)
    twin = copy.deepcopy(quantizer)
    x = torch.randn(30, DIM)
    for step in range(8):
        train(quantizer, [step])
        train(twin, [step])
        twin.eval()(x)
        codes = twin.encode(x, beam=2)
        assert torch.equal(codes, copy.deepcopy(twin).encode(x, beam=2))  # of the tables of today
        twin.decode(codes)
        twin.train()
    assert_equal_states(twin, quantizer)


def test_encoding_sees_tables_that_change_behind_torch_s_back():
    quantizer = make(update="gradient", kmeans_init=False)
    x = torch.randn(30, DIM)
    quantizer.encode(x, beam=2)
    quantizer.state.tables.data.copy_(torch.randn(2, 16, DIM))  # as averages of weights do
    assert torch.equal(quantizer.encode(x, beam=2), copy.deepcopy(quantizer).encode(x, beam=2))


@pytest.mark.parametrize("started", [False, True])
@MODES
def test_a_frozen_quantizer_rests_in_a_parent_that_trains(options, started):
    quantizer = make(**options)
    if started:
        train(quantizer, range(6))
    parent = nn.ModuleDict({"quantizer": quantizer.freeze()})
    state = copy.deepcopy(quantizer)
    parent.train()
    for twin in (quantizer, copy.deepcopy(quantizer)):
        twin(torch.randn(40, DIM))
        assert_equal_states(twin, state)
        assert not any(parameter.requires_grad for parameter in twin.parameters())


def test_a_frozen_grouped_quantizer_rests():
    quantizer = GroupedResidualQuantizer(2 * DIM, 2, 8, groups=2)
    quantizer(torch.randn(40, 2 * DIM))
    state = copy.deepcopy(quantizer.state_dict())
    nn.Sequential(quantizer.freeze()).train()(torch.randn(40, 2 * DIM))
    for name, tensor in quantizer.state_dict().items():
        assert torch.equal(tensor, state[name]), name


def test_the_beam_is_part_of_the_state():
    fitted = make(codebook_size=4).fit(torch.randn(100, DIM), beam=3)
    other = make(codebook_size=4)
    other.load_state_dict(fitted.state_dict())
    assert other.beam == 3
    state = fitted.state_dict()
    del state["state.stored_beam"]  # as tables that were taken from elsewhere
    other = make(codebook_size=4, beam=2)
    other.load_state_dict(state)
    assert other.beam == 2
    assert "state.stored_beam" not in state


def _encode_into(queue, quantizer, x):
    torch.set_num_threads(1)
    queue.put(quantizer.encode(x).numpy())


@pytest.mark.slow
def test_another_process_encodes_with_a_shared_quantizer():
    quantizer, x = make(), torch.randn(50, DIM)
    train(quantizer, range(6))
    context = multiprocessing.get_context("forkserver")
    queue = context.SimpleQueue()
    process = context.Process(target=_encode_into, args=(queue, quantizer.share_memory(), x))
    process.start()
    codes = torch.from_numpy(queue.get())
    process.join()
    assert torch.equal(codes, quantizer.encode(x))
