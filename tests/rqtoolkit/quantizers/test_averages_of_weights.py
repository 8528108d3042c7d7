"""What people do to modules beside training them: averages of weights, settings changed midway."""

import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from rqtoolkit import GroupedResidualQuantizer, ResidualQuantizer
from rqtoolkit.errors import ConfigError


def vectors(rows=256, seed=0):
    return torch.randn(rows, 8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("use_buffers", [False, True])
@pytest.mark.parametrize("ema", [False, True])
def test_weights_average_from_before_the_start_on(use_buffers, ema):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), ResidualQuantizer(8, 2, 64, beam=7))
    function = get_ema_multi_avg_fn(0.9) if ema else None
    average = AveragedModel(model, multi_avg_fn=function, use_buffers=use_buffers)
    for step in range(60):
        model(vectors(32, step))  # 128 are needed for the start
        average.update_parameters(model)
    assert model[1].state.is_initialized
    restored = ResidualQuantizer(8, 2, 64)
    restored.load_state_dict(average.module[1].state_dict())
    assert restored.beam == 7
    if not use_buffers:
        assert torch.equal(restored.codebooks, model[1].codebooks)


@pytest.mark.parametrize("update", ["ema", "gradient"])
def test_encode_sees_tables_written_past_autograd(update):
    quantizer = ResidualQuantizer(8, 2, 64, update=update).fit(vectors(), beam=1)
    quantizer.encode(vectors())
    quantizer.state.tables.data.copy_(torch.randn(2, 64, 8))
    quantizer.eval()
    assert torch.equal(quantizer.encode(vectors()), quantizer(vectors()).codes)


def test_decay_and_threshold_may_change_midway():
    quantizer = ResidualQuantizer(8, 1, 64)
    for step in range(5):
        quantizer(vectors(seed=step))
    quantizer.restart_threshold, quantizer.decay = 0.0, 0.0
    before = quantizer.codebooks.clone()
    out = quantizer(vectors()[:1].expand(256, 8))
    moved = (quantizer.codebooks != before).any(-1)
    assert moved.sum() == 1  # the one that was chosen: no entry restarts
    torch.testing.assert_close(quantizer.codebooks[0, out.codes[0, 0]], vectors()[0])
    assert "restart_threshold=0.0" in repr(quantizer)
    quantizer.beam = 5
    assert quantizer.state_dict()["state.stored_beam"] == 5
    with pytest.raises(ConfigError, match="decay"):
        quantizer.decay = 1.5
    with pytest.raises(ConfigError, match="restart_threshold"):
        quantizer.restart_threshold = 2.0


def test_states_of_other_sizes_are_refused_and_do_no_harm():
    fitted = ResidualQuantizer(8, 2, [16, 8]).fit(vectors())
    other = ResidualQuantizer(8, 2, 16)
    with pytest.raises(RuntimeError, match="codebook sizes"):
        other.load_state_dict(fitted.state_dict())
    gathering = ResidualQuantizer(8, 2, 64)
    gathering(vectors(10))
    smaller = ResidualQuantizer(6, 2, 64)
    with pytest.raises(RuntimeError, match="size mismatch"):
        smaller.load_state_dict(gathering.state_dict())
    smaller(torch.randn(20, 6))
    assert smaller.state.gathered.shape == (20, 6)


@pytest.mark.parametrize(
    "make", [ResidualQuantizer, lambda *a, **k: GroupedResidualQuantizer(*a, groups=2, **k)]
)
def test_unfreezing_lets_everything_learn_again(make):
    quantizer = make(8, 2, 16, update="gradient").fit(vectors())
    quantizer.freeze().unfreeze()
    twin = copy.deepcopy(quantizer).train()
    twin(vectors(seed=3)).codebook_loss.backward()
    assert all(p.requires_grad and p.grad is not None for p in twin.parameters())
    assert not any(m.frozen for m in quantizer.modules() if hasattr(m, "frozen"))
    quantizer.fit(vectors())


def test_one_depth_for_each_sample_and_what_is_beyond():
    quantizer = ResidualQuantizer(8, 3, 16).fit(vectors(), beam=1)
    quantizer.eval()
    x = vectors(12).reshape(4, 3, 8)
    out = quantizer(x, depth=torch.tensor([1, 2, 3, 99]))
    assert out.depths.tolist() == [[1] * 3, [2] * 3, [3] * 3, [3] * 3]
    for sample, depth in enumerate((1, 2, 3, 3)):
        prefix = quantizer.decode(out.codes[sample, :, :depth])
        torch.testing.assert_close(out.quantized[sample], prefix)
