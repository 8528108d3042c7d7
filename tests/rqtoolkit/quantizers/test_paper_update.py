"""`update="paper"`: the step of the paper's own code, to rounding."""

import pytest
import torch
from safetensors.torch import load_file

from rqtoolkit import ResidualQuantizer


def relative_difference(found, expected):
    scale = expected.abs().max().clamp_min(1e-9)
    return ((found - expected).abs().max() / scale).item()


@pytest.mark.parametrize("shared", [True, False])
def test_three_steps_are_those_of_the_paper_s_code(shared_data, shared):
    name = "shared" if shared else "unshared"
    recorded = load_file(shared_data(f"parity/quantizer_training_{name}.safetensors"))
    quantizer = ResidualQuantizer(
        16, 4, 64, shared_codebook=shared, update="paper", kmeans_init=False
    )
    state, parts = quantizer.state, range(1 if shared else 4)

    def theirs(prefix, table):
        own = f"{prefix}codebooks.{table}."
        names = ("weight", "cluster_size_ema", "embed_ema")
        weight, counts, sums = (recorded[own + name] for name in names)
        return weight[:-1], counts, sums  # the last row is padding

    with torch.no_grad():
        for table in parts:
            own = (state.tables[table], state.counts[table], state.sums[table])
            for mine, other in zip(own, theirs("initial.", table), strict=True):
                mine.copy_(other)
    for step in range(3):
        x = recorded[f"step{step}.z"].clone().requires_grad_()
        out = quantizer(x, generator=torch.Generator().manual_seed(100 + step))
        assert torch.equal(out.codes, recorded[f"step{step}.code"])
        assert relative_difference(out.quantized, recorded[f"step{step}.z_q"]) < 1e-5
        assert relative_difference(out.commitment_loss, recorded[f"step{step}.commit"]) < 1e-5
        for table in parts:
            own = (state.tables[table], state.counts[table], state.sums[table])
            expected = theirs(f"step{step}.state.", table)
            for mine, other in zip(own, expected, strict=True):
                assert relative_difference(mine, other) < 1e-5
    assert torch.autograd.grad(out.quantized.sum(), x)[0].eq(1).all()


def by_hand(depth=1, **options):
    """Entries 0 and 10 in one dimension, each with a count of 2."""
    quantizer = ResidualQuantizer(1, depth, 2, update="paper", decay=0.5, **options)
    tables = torch.tensor([[0.0], [10.0]]).expand(len(quantizer.state.tables), 2, 1)
    quantizer.state.set_tables(tables, vectors=4)
    return quantizer


def test_a_step_by_hand():
    quantizer = by_hand(restart_threshold=0)
    quantizer(torch.tensor([[1.0], [3.0], [8.0]]))
    # Entry 0: count .5·2 + .5·2 = 2, sum .5·0 + .5·4 = 2; entry 1: count 1.5, sum 10 + 4 = 14
    counts, sums = torch.tensor([2.0, 1.5]), torch.tensor([2.0, 14.0])
    assert torch.equal(quantizer.state.counts[0], counts)
    assert torch.equal(quantizer.state.sums[0, :, 0], sums)
    smoothed = 3.5 * (counts + 1e-5) / (3.5 + 2e-5)
    torch.testing.assert_close(quantizer.codebooks[0, :, 0], sums / smoothed)


def test_an_entry_restarts_below_a_count_of_one():
    quantizer = by_hand()
    quantizer(torch.tensor([[1.0], [3.0]]))  # entry 1 keeps .5 · 2 = 1: it lives
    assert quantizer.state.counts[0].tolist() == [2.0, 1.0]
    quantizer(torch.tensor([[1.0], [3.0]]))
    # Now .5: a vector takes its place, with a count of 1, in the sum as well as in the table
    assert quantizer.state.counts[0].tolist() == [2.0, 1.0]
    assert quantizer.state.sums[0, 1, 0].item() in (1.0, 3.0)
    assert quantizer.codebooks[0, 1, 0].item() == pytest.approx(
        quantizer.state.sums[0, 1, 0].item(), rel=1e-4
    )


def test_a_shared_table_is_written_at_every_level_and_seen_by_the_next():
    quantizer = by_hand(depth=2, shared_codebook=True, restart_threshold=0)
    out = quantizer(torch.tensor([[15.5], [15.5]]))
    # Level 1 takes 10: counts 2, 2 become 1, 2 and sums 0, 20 become 0, 10 + 15.5, so that entry 1
    # stands at 12.75 when level 2 looks for 5.5: nearer to 0, though not with 10.
    assert out.codes.tolist() == [[1, 0], [1, 0]]
    assert out.quantized.flatten().tolist() == [10.0, 10.0]  # as it was when it was chosen
    # Level 2: counts .5 + 1 and 1, sums (5.5 + 5.5) / 2 and 12.75
    torch.testing.assert_close(quantizer.state.counts[0], torch.tensor([1.5, 1.0]))
    torch.testing.assert_close(quantizer.state.sums[0, :, 0], torch.tensor([5.5, 12.75]))


def test_masks_equal_removal_and_garbage_teaches_nothing():
    x = torch.randn(40, 3)
    mask = torch.rand(40) < 0.5
    states = []
    for batch, real in ((x[mask], None), (x.masked_fill(~mask[:, None], torch.nan), mask)):
        torch.manual_seed(1)
        quantizer = ResidualQuantizer(3, 2, [8, 5], update="paper")
        for step in range(4):
            quantizer(batch, real, generator=torch.Generator().manual_seed(step))
        states.append(quantizer.state_dict())
    for name, tensor in states[0].items():
        torch.testing.assert_close(tensor, states[1][name], msg=name)


@pytest.mark.parametrize("shared", [True, False])
def test_it_trains_from_k_means_on_sizes_per_level(shared):
    x = torch.randn(600, 4)
    sizes = 16 if shared else [16, 8]
    quantizer = ResidualQuantizer(4, 2, sizes, update="paper", shared_codebook=shared)
    errors = [quantizer(x).stats.distortion[-1] for _ in range(30)]
    assert errors[-1] < 1.05 * errors[0] < 0.5 * 4
    sums = quantizer.state.tables * quantizer.state.counts[..., None]
    torch.testing.assert_close(quantizer.state.sums, sums, rtol=1e-3, atol=1e-3)
