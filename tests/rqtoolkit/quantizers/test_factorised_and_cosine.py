"""Quantizers that choose by direction, or in spaces of few dimensions of each level's own."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from rqtoolkit import ResidualQuantizer
from rqtoolkit.errors import ConfigError, ShapeError
from rqtoolkit.functional.kmeans import kmeans

KINDS = {
    "cosine": {"similarity": "cosine"},
    "factorised": {"codebook_dim": 3},
    "as in DAC": {"codebook_dim": 3, "similarity": "cosine"},
}
every_kind = pytest.mark.parametrize("options", KINDS.values(), ids=KINDS.keys())


def trained(options, sizes=(8, 5, 6), **others):
    shared = others.get("shared_codebook", False)
    quantizer = ResidualQuantizer(6, 3, 8 if shared else sizes, **options, **others)
    for _ in range(3):
        quantizer(torch.randn(80, 6))
    return quantizer.eval()


def codes_by_hand(quantizer, x):
    """One vector, one level, one codeword at a time, in float64."""
    codes = []
    for row in x.double():
        left, stack = row, []
        for level, table in enumerate(quantizer.state.levels(3)):
            table, z = table.detach().double(), left
            if quantizer.projections is not None:
                down, up = quantizer.projections.down[level], quantizer.projections.up[level]
                z = down.weight.double() @ left + down.bias.double()
            scores = [
                -F.cosine_similarity(z, codeword, dim=0)
                if quantizer.similarity == "cosine"
                else (z - codeword).square().sum()
                for codeword in table
            ]
            stack.append(int(torch.stack(scores).argmin()))
            codeword = table[stack[-1]]
            if quantizer.projections is not None:
                codeword = up.weight.double() @ codeword + up.bias.double()
            left = left - codeword
        codes.append(stack)
    return torch.tensor(codes)


@every_kind
@pytest.mark.parametrize("shared", [True, False])
def test_forward_encode_and_decode_agree_with_the_rule_by_hand(options, shared):
    quantizer = trained(options, shared_codebook=shared)
    x = torch.randn(50, 6)
    out = quantizer(x)
    assert torch.equal(out.codes, codes_by_hand(quantizer, x))
    assert torch.equal(quantizer.encode(x), out.codes)
    assert torch.equal(quantizer.encode(x, depth=2), out.codes[:, :2])
    assert torch.equal(quantizer.encode(x, max_bytes=1), out.codes)  # a vector at a time
    torch.testing.assert_close(quantizer.decode(out.codes), out.quantized)
    torch.testing.assert_close(quantizer.partial_sums(out.codes)[:, -1], out.quantized)
    table = quantizer.codebooks
    levels = [table[min(level, len(table) - 1), out.codes[:, level]] for level in range(3)]
    torch.testing.assert_close(torch.stack(levels).sum(0), out.quantized)


@every_kind
def test_a_wider_beam_searches_for_the_least_error(options):
    quantizer = trained(options)
    x = torch.randn(200, 6)
    errors = [
        (x - quantizer.decode(quantizer.encode(x, beam=beam))).square().sum() for beam in (1, 8)
    ]
    assert errors[1] < errors[0]


@every_kind
def test_k_means_starts_each_level_in_its_own_space(options):
    torch.manual_seed(3)
    quantizer = ResidualQuantizer(6, 2, 8, **options)
    x = torch.randn(64, 6)
    generator = torch.Generator().manual_seed(5)
    twin = copy.deepcopy(generator)
    quantizer.state.start(x, 2, generator, quantizer.projections)
    seed = int(torch.randint(2**31, (1,), generator=twin))
    left = x
    for level in range(2):
        inside = left
        if quantizer.projections is not None:
            inside = quantizer.projections.into(left, level).detach()
        expected = kmeans(inside, 8, seed=(seed * 1009 + level) % 2**63)
        torch.testing.assert_close(quantizer.state.tables[level], expected)
        chosen = expected[torch.cdist(inside, expected).argmin(1)]
        if quantizer.projections is not None:
            chosen = quantizer.projections.back(chosen, level).detach()
        left = left - chosen


@every_kind
def test_moving_averages_follow_what_each_level_looked_for(options):
    quantizer = trained(options, decay=0.0, restart_threshold=0).train()
    x = torch.randn(100, 6)
    tables = copy.deepcopy(quantizer.state.tables)
    codes = quantizer(x).codes
    left = x
    for level, size in enumerate(quantizer.codebook_sizes):
        projections = quantizer.projections
        inside = left if projections is None else projections.into(left, level).detach()
        for entry in range(size):
            own = inside[codes[:, level] == entry]
            expected = own.mean(0) if len(own) else tables[level, entry]
            torch.testing.assert_close(quantizer.state.tables[level, entry], expected)
        chosen = tables[level][codes[:, level]]
        left = left - (chosen if projections is None else projections.back(chosen, level).detach())


@every_kind
@pytest.mark.parametrize("update", ["ema", "gradient"])
def test_files_states_and_copies(tmp_path, options, update):
    quantizer = trained(options, update=update)
    x = torch.randn(40, 6)
    path = tmp_path / "rq.safetensors"
    quantizer.save(path)
    loaded = ResidualQuantizer.load(path)
    other = ResidualQuantizer(6, 3, [8, 5, 6], update=update, **options)
    other.load_state_dict(quantizer.state_dict())
    for twin in (loaded, other.eval(), copy.deepcopy(quantizer)):
        assert str(twin) == str(quantizer)
        assert torch.equal(twin.encode(x), quantizer.encode(x))
        assert torch.equal(twin(x).quantized, quantizer(x).quantized)
        assert torch.equal(twin.codebooks, quantizer.codebooks)


@every_kind
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_inside_a_parent_of_half_precision(tmp_path, options, dtype):
    quantizer = trained(options)
    tables = quantizer.state.tables.clone()
    parent = nn.Sequential(quantizer).to(dtype)
    assert torch.equal(quantizer.state.tables, tables)
    x = torch.randn(40, 6).to(dtype).requires_grad_()
    out = parent(x)
    assert out.quantized.dtype == dtype
    assert out.commitment_loss.dtype == torch.float32
    assert torch.equal(out.codes, quantizer.encode(x))
    (out.quantized.float().sum() + out.commitment_loss).backward()
    assert x.grad.isfinite().all()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(quantizer(x).codes, out.codes)
    quantizer.save(tmp_path / "rq.safetensors")
    loaded = ResidualQuantizer.load(tmp_path / "rq.safetensors")
    assert torch.equal(loaded.encode(x), out.codes)
    parent.train()(x)
    assert quantizer.codebooks.isfinite().all()


def test_directions_decide_whatever_the_lengths():
    quantizer = ResidualQuantizer(2, 1, 2, similarity="cosine").eval()
    quantizer.set_codebooks(torch.tensor([[[10.0, 0.0], [0.0, 0.1]]]))
    x = torch.tensor([[0.2, 0.1], [50.0, 60.0], [1e-3, 0.0], [0.0, 1e6]])
    assert quantizer(x).codes.flatten().tolist() == [0, 1, 0, 1]
    assert quantizer(x).quantized[1].tolist() == pytest.approx([0, 0.1])  # as it is


def test_codebooks_are_given_in_the_space_of_the_codes():
    quantizer = ResidualQuantizer(6, 2, 4, codebook_dim=3)
    tables = torch.randn(2, 4, 3)
    assert torch.equal(quantizer.set_codebooks(tables).state.tables, tables)
    expected = quantizer.projections.up[1](tables[1]).detach()
    torch.testing.assert_close(quantizer.codebooks[1], expected)
    with pytest.raises(ShapeError, match=r"\(2, 4, 3\); got \(2, 4, 6\)"):
        quantizer.set_codebooks(torch.randn(2, 4, 6))


@every_kind
def test_what_goes_by_distances_refuses_them(options):
    quantizer, x = trained(options), torch.randn(300, 6)
    for call in (
        lambda: quantizer.fit(x),
        lambda: quantizer.soft_codes(x, 0.5),
        lambda: quantizer.soft_targets(x, 0.5),
    ):
        with pytest.raises(ConfigError, match=r"ResidualQuantizer\.\w+: goes by distances.* got"):
            call()


@every_kind
def test_a_faiss_index_decodes_their_codes(options):
    pytest.importorskip("faiss")
    quantizer, x = trained(options, sizes=(8, 4, 4)), torch.randn(30, 6)
    index = quantizer.to_faiss(x)
    stored = torch.from_numpy(index.reconstruct_n(0, len(x)))
    torch.testing.assert_close(stored, quantizer.decode(quantizer.encode(x)))
    back = ResidualQuantizer.from_faiss(index)
    torch.testing.assert_close(back.codebooks, quantizer.codebooks)
