"""`out.stats`: its figures against brute force, and what they cost."""

import copy
import math
from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from rqtoolkit import ResidualQuantizer

SIZES = (8, 3, 5)
WAITS = ("_local_scalar_dense", "item", "nonzero", "masked_select", "is_nonzero", "equal", "unique")
COPIES = ("lift_fresh",)  # of numbers to a device, for which the host waits, too


def trained(sizes=SIZES, dim=4, **options):
    quantizer = ResidualQuantizer(dim, 3, sizes, **options)
    quantizer(torch.randn(64, dim))
    return quantizer


def figures_by_hand(codes, size):
    counts = Counter(codes.tolist())
    total = sum(counts.values())
    bits = -sum(n / total * math.log2(n / total) for n in counts.values())
    return len(counts) / size, 2**bits


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("dropout", [0.0, 1.0])
def test_usage_perplexity_and_distortion(training, masked, dropout):
    quantizer = trained(depth_dropout=dropout).train(training)
    x = torch.randn(6, 9, 4)
    real = torch.rand(6, 9) < 0.6 if masked else torch.ones(6, 9, dtype=torch.bool)
    before = copy.deepcopy(quantizer).eval()
    out = quantizer(x, real if masked else None)
    codes, vectors = out.codes[real], x[real]
    expected = [figures_by_hand(codes[:, level], size) for level, size in enumerate(SIZES)]
    assert out.stats.usage == pytest.approx([usage for usage, _ in expected])
    assert out.stats.perplexity == pytest.approx([value for _, value in expected], rel=1e-4)
    squares = (vectors[:, None] - before.partial_sums(codes)).square().sum(-1)
    depths = torch.full((len(codes),), 3) if out.depths is None else out.depths[real]
    distortion = [squares[depths > level, level].mean().item() for level in range(3)]
    assert out.stats.distortion == pytest.approx(distortion, rel=1e-4)


@pytest.mark.parametrize("update", ["ema", "gradient"])
def test_dead_entries_are_those_that_the_step_restarts(update):
    quantizer = trained(update=update)
    with torch.no_grad():
        quantizer.state.counts[0, [1, 4, 6]] = 0
        quantizer.state.counts[2, 3] = 0
        quantizer.state.tables[0, [1, 4, 6]] = 1e4  # where nothing chooses them
        quantizer.state.tables[2, 3] = 1e4
    x = torch.randn(64, 4)
    assert copy.deepcopy(quantizer).eval()(x).stats.dead == [3, 0, 1]
    assert quantizer(x).stats.dead == [3, 0, 1]
    assert quantizer.codebooks.abs().max() < 100
    assert quantizer(x).stats.dead == [0, 0, 0]


def test_dead_entries_of_a_shared_table_and_of_none():
    shared = trained(8, shared_codebook=True)
    with torch.no_grad():
        shared.state.counts[0, 2] = 0
        shared.state.tables[0, 2] = 1e4
    assert shared(torch.randn(64, 4)).stats.dead == [1]
    assert trained(restart_threshold=0)(torch.randn(9, 4)).stats.dead == []
    assert trained(update="paper")(torch.randn(9, 4)).stats.dead == []


def test_what_is_dead_is_relative_to_the_batch():
    """A quarter of the mean count, and of 1 where there are more vectors than entries."""
    for vectors, dead_under in ((16, 0.5), (800, 1.0)):
        quantizer = ResidualQuantizer(1, 1, 8, restart_threshold=0.25).eval()
        quantizer.state.set_tables(torch.randn(1, 8, 1), vectors=vectors)
        quantizer.state.counts[0, 0] = dead_under * 0.99
        quantizer.state.counts[0, 1] += vectors / 8 - dead_under * 0.99  # the mean as it was
        assert quantizer(torch.randn(3, 1)).stats.dead == [1]
        quantizer.state.counts[0, 0] = dead_under * 1.01
        assert quantizer(torch.randn(3, 1)).stats.dead == [0]


class Waits(TorchDispatchMode):
    """Count operations for which the host would wait for a device."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        indices = args[1] if name in ("index", "index_put_", "index_put") else ()
        by_mask = any(i is not None and i.dtype == torch.bool for i in indices)
        if name in WAITS + COPIES or by_mask:
            self.found.append(name)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"shared_codebook": True, "codebook_size": 8},
        {"update": "gradient", "estimator": "rotation"},
        {"kmeans_init": False},
        {"codebook_dim": 2, "similarity": "cosine"},
        {"tau": 0.5, "depth_dropout": 0.5},
    ],
)
@pytest.mark.parametrize("training", [True, False])
def test_nothing_waits_for_a_device_before_a_figure_is_read(options, training):
    quantizer = ResidualQuantizer(**{"dim": 4, "depth": 3, "codebook_size": SIZES, **options})
    quantizer(torch.randn(64, 4))
    quantizer.train(training)
    x, mask = torch.randn(64, 4, requires_grad=True), torch.rand(64) < 0.5
    with Waits() as waits:
        out = quantizer(x, mask)
        (out.quantized.sum() + out.commitment_loss + out.codebook_loss).backward()
    assert waits.found == []
    with Waits() as waits:
        assert out.stats.usage
    assert waits.found  # the mode sees what it is there for
