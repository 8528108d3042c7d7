"""The loss of stage 2 against the plain computation, its memory, and what decays."""

import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from imagegen.encoding import EncodedBatch
from imagegen.stage2_step import parameter_groups, transformer_loss
from rqtoolkit import ResidualQuantizer, RQTransformer

DEPTH, CODE_DIM = 3, 5


def models(codebook_size=16, *, shared=True, **more):
    torch.manual_seed(0)
    quantizer = ResidualQuantizer(
        CODE_DIM, DEPTH, codebook_size, shared_codebook=shared, kmeans_init=False
    ).eval()
    sizes = {"dim": 16, "body_layers": 1, "depth_layers": 1, "num_heads": 2, "dropout": 0.0}
    model = RQTransformer(
        (2, 3),
        DEPTH,
        codebook_size,
        codebooks=quantizer.codebooks,
        **{"num_classes": 4, **sizes, **more},
    )
    with torch.no_grad():  # far from the flat start
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return quantizer, model


def batch_of(number=5):
    latents = torch.randn(number, 2, 3, CODE_DIM)
    return EncodedBatch(latents, torch.arange(number) % 4)


def plain_loss(model, quantizer, batch, *, tau, relative, soft, stochastic):
    """The definition: dense targets, dense logits, minus the mean of Σ p log q."""
    found = quantizer.soft_codes(batch.values, tau, relative=relative, stochastic=stochastic)
    log_q = model(found.codes, cond=batch.cond).log_softmax(-1)
    target = found.probabilities
    if not soft:
        target = F.one_hot(found.codes, log_q.shape[-1]).float()
    return -torch.where(target > 0, target * log_q, 0).sum(-1).mean()


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize(("soft", "stochastic"), [(True, True), (True, False), (False, True)])
def test_loss_and_gradients_are_those_of_the_definition(shared, relative, soft, stochastic):
    quantizer, model = models(16 if shared else [16, 9, 12], shared=shared)
    batch = batch_of()
    torch.manual_seed(3)
    expected = plain_loss(
        model, quantizer, batch, tau=0.4, relative=relative, soft=soft, stochastic=stochastic
    )
    wanted = torch.autograd.grad(expected, list(model.parameters()), allow_unused=True)
    torch.manual_seed(3)
    loss = transformer_loss(
        model.loss,
        quantizer,
        batch,
        tau=0.4,
        relative_tau=relative,
        soft_targets=soft,
        stochastic_codes=stochastic,
    )
    found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    for (name, _), one, other in zip(model.named_parameters(), found, wanted, strict=True):
        assert (one is None) == (other is None), name
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6, msg=name)


def test_batches_of_codes_have_hard_targets():
    quantizer, model = models()
    codes = torch.randint(16, (5, 2, 3, DEPTH))
    rules = {"tau": 0.4, "relative_tau": False, "soft_targets": True, "stochastic_codes": True}
    cond = torch.arange(5) % 4
    loss = transformer_loss(model.loss, quantizer, EncodedBatch(codes, cond), **rules)
    expected = F.cross_entropy(model(codes, cond=cond).flatten(0, -2), codes.flatten())
    torch.testing.assert_close(loss, expected)


def test_soft_targets_go_to_hard_ones_as_tau_goes_to_zero():
    quantizer, model = models()
    rules = {"tau": 1e-6, "relative_tau": False, "stochastic_codes": False}
    batch = batch_of()
    soft, hard = (
        transformer_loss(model.loss, quantizer, batch, soft_targets=soft, **rules)
        for soft in (True, False)
    )
    torch.testing.assert_close(soft, hard, rtol=1e-4, atol=1e-4)


def test_dropped_labels_teach_the_null_class():
    quantizer, model = models(label_dropout=0.5)
    rules = {"tau": 0.4, "relative_tau": False, "soft_targets": True, "stochastic_codes": True}
    batch = EncodedBatch(torch.randn(400, 2, 3, CODE_DIM), torch.zeros(400, dtype=torch.int64))
    transformer_loss(model.train().loss, quantizer, batch, **rules).backward()
    taught = model.condition.weight.grad.abs().sum(1) > 0
    assert taught.tolist() == [True, False, False, False, True]  # class 0 and the null class


class LiveStorages(TorchDispatchMode):
    """Follows the storages that operations make: the largest, and the most alive at a time."""

    def __init__(self):
        super().__init__()
        self.alive, self.largest, self.peak = {}, 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.alive[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
                self.largest = max(self.largest, storage.nbytes())
        self.alive = {key: kept for key, kept in self.alive.items() if not kept[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.alive.values()))
        return out


def test_a_step_holds_the_probabilities_of_one_level_at_most():
    quantizer, model = models(512, num_classes=None)
    latents = torch.randn(32, 2, 3, CODE_DIM)
    whole = 32 * 6 * DEPTH * 512 * 4
    rules = {"tau": 0.4, "relative_tau": False, "soft_targets": True, "stochastic_codes": True}
    with LiveStorages() as seen:
        transformer_loss(model.loss, quantizer, EncodedBatch(latents, None), **rules).backward()
    assert seen.largest == whole // DEPTH


@pytest.mark.slow
def test_a_step_never_holds_the_probabilities_of_all_codes():
    """At the paper's codebook size, with more positions than a chunk of 64 MB has."""
    torch.manual_seed(0)
    quantizer = ResidualQuantizer(4, 4, 16384, shared_codebook=True, kmeans_init=False).eval()
    sizes = {"dim": 8, "body_layers": 1, "depth_layers": 1, "num_heads": 1}
    model = RQTransformer((8, 8), 4, 16384, codebooks=quantizer.codebooks, **sizes)
    latents = torch.randn(40, 8, 8, 4)
    whole = 40 * 64 * 4 * 16384 * 4  # bytes of (B, T, D, K) in float32: 671 MB
    rules = {"tau": 0.5, "relative_tau": False, "soft_targets": True, "stochastic_codes": True}
    with LiveStorages() as seen:
        transformer_loss(model.loss, quantizer, EncodedBatch(latents, None), **rules).backward()
    assert seen.largest <= 64 * 2**20
    assert seen.peak < whole  # not once, and all tensors together


def test_the_plain_way_is_seen_to_hold_them():
    """The measure above can fail."""
    quantizer, model = models(512, num_classes=None)
    latents = torch.randn(32, 2, 3, CODE_DIM)
    whole = 32 * 6 * DEPTH * 512 * 4
    rules = {"tau": 0.4, "relative": False, "soft": True, "stochastic": True}
    with LiveStorages() as seen:
        plain_loss(model, quantizer, EncodedBatch(latents, None), **rules).backward()
    assert seen.largest >= whole
    assert seen.peak > 3 * whole


@pytest.mark.parametrize(
    "more", [{}, {"classifier_per_level": True}, {"adaln": True, "swiglu": True}]
)
def test_every_parameter_is_in_one_group_and_matrices_alone_decay(more):
    _, model = models(**more)
    decayed, kept = parameter_groups(model, 0.1)
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.1, 0.0)
    numbers = [id(p) for group in (decayed, kept) for p in group["params"]]
    assert sorted(numbers) == sorted(id(p) for p in model.parameters())
    names = {id(p): name for name, p in model.named_parameters()}
    left = {names[id(p)] for p in kept["params"]}
    assert all(name.endswith(".weight") for name in {names[id(p)] for p in decayed["params"]})
    assert {"condition.weight", "condition_positions", "embedding.positions"} <= left
    assert not any(
        name in left for name in ("classifier.weight", "embedding.body_projection.weight")
    )
    norms = [n for n, m in model.named_modules() if isinstance(m, nn.LayerNorm)]
    assert {f"{n}.weight" for n in norms if f"{n}.weight" in names.values()} <= left


def test_decay_pulls_matrices_to_zero_and_leaves_the_rest():
    _, model = models()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.5), lr=0.1)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        linear = isinstance(model.get_submodule(name.rpartition(".")[0]), nn.Linear)
        share = 1 - 0.1 * 0.5 if linear and name.endswith("weight") else 1
        torch.testing.assert_close(parameter.detach(), share * before[name], msg=name)
