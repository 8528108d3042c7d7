"""RQTransformer's predictions and losses: against plain loops, causality, padding, artifacts."""

import copy
import math

import pytest
import torch
from reference_transformer import Reference
from torch import nn

from rqtoolkit.errors import ArtifactError, ConfigError, DataError, ShapeError
from rqtoolkit.transformer import RQTransformer

SIZES = (5, 3, 7)


def build(positions=(2, 3), sizes=SIZES, *, frozen=True, shared=False, classes=4, **settings):
    """Build a small float64 model whose weights are large enough to matter."""
    width = {"dim": 16, "body_layers": 2, "depth_layers": 2, "num_heads": 2} | settings
    tables = torch.randn(1 if shared else len(sizes), max(sizes), 6) if frozen else None
    model = RQTransformer(
        positions,
        depth=len(sizes),
        codebook_size=sizes,
        codebooks=tables,
        num_classes=classes,
        **width,
    ).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    return model.eval()


def draw_codes(batch, positions=(2, 3), sizes=SIZES):
    return torch.stack([torch.randint(0, size, (batch, *positions)) for size in sizes], -1)


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("sizes", [SIZES, (4, 4), (6,)])
def test_logits_equal_the_plain_loop(frozen, sizes):
    model, codes = build(sizes=sizes, frozen=frozen), draw_codes(2, sizes=sizes)
    logits = model(codes, torch.tensor([1, 3]))
    assert logits.shape == (*codes.shape, max(sizes))
    reference = Reference(model)
    for b, row in enumerate([1, 3]):
        expected = reference.teacher_forced(codes[b].flatten(0, 1), row)
        for t, position in enumerate(expected):
            for level, wanted in enumerate(position):
                found = logits[b].flatten(0, 1)[t, level]
                torch.testing.assert_close(found[: sizes[level]], wanted)
                assert (found[sizes[level] :] == -math.inf).all()


def test_a_shared_table_equals_its_copies():
    shared, codes = build(sizes=(5, 5), shared=True), draw_codes(2, sizes=(5, 5))
    state = shared.state_dict()
    state["embedding.codebooks"] = state["embedding.codebooks"].repeat(2, 1, 1)
    own = build(sizes=(5, 5))
    own.load_state_dict(state)
    cond = torch.tensor([0, 1])
    assert torch.equal(shared(codes, cond), own(codes, cond))


@pytest.mark.parametrize("positions", [(2, 3), (5,), (2, 1, 2)])
def test_causality(positions):
    model = build(positions, classes=None)
    codes = draw_codes(1, positions)
    before = model(codes).flatten(1, -3)
    total = math.prod(positions)
    for t in range(total):
        for level, size in enumerate(SIZES):
            changed = codes.clone()
            changed.view(1, total, -1)[0, t, level] += 1
            changed.view(1, total, -1)[0, t, level] %= size
            after = model(changed).flatten(1, -3)
            same = [torch.equal(a, b) for a, b in zip(before[0, t], after[0, t], strict=True)]
            # A code is predicted before it is seen; every later level of its position sees it.
            assert same == [d <= level for d in range(len(SIZES))]
            assert torch.equal(before[0, :t], after[0, :t])
            for later in range(t + 1, total):
                assert not torch.equal(before[0, later, 0], after[0, later, 0])


def test_condition_reaches_every_logit():
    model, codes = build(), draw_codes(1)
    first, second = model(codes, torch.tensor([0])), model(codes, torch.tensor([[1]]))
    assert (first != second)[first.isfinite()].all()


def test_batch_permutes_with_its_rows():
    model, codes, cond = build(), draw_codes(4), torch.tensor([0, 1, 2, 3])
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(model(codes, cond)[order], model(codes[order], cond[order]))


def test_losses_by_hand():
    model, codes, cond = build(), draw_codes(3), torch.tensor([0, 1, 2])
    chosen = model(codes, cond).log_softmax(-1).gather(-1, codes.unsqueeze(-1)).squeeze(-1)
    by_level = -chosen.mean((0, 1, 2))
    torch.testing.assert_close(model.losses(codes, cond=cond), by_level)
    torch.testing.assert_close(model.loss(codes, cond=cond), by_level.mean())


def test_soft_targets():
    model, codes, cond = build(), draw_codes(3), torch.tensor([0, 1, 2])
    one_hot = nn.functional.one_hot(codes, max(SIZES)).double()
    hard = model.losses(codes, cond=cond)
    torch.testing.assert_close(model.losses(codes, cond=cond, targets=one_hot), hard)
    other = nn.functional.one_hot(draw_codes(3), max(SIZES)).double()
    mixed = model.losses(codes, cond=cond, targets=0.3 * one_hot + 0.7 * other)
    rest = model.losses(codes, cond=cond, targets=other)
    torch.testing.assert_close(mixed, 0.3 * hard + 0.7 * rest)


@pytest.mark.parametrize("soft", [False, True])
def test_lengths_equal_removing_the_padding(soft):
    model, codes = build((6,)), draw_codes(3, (6,))
    cond, lengths = torch.tensor([3, 1, 2]), torch.tensor([6, 1, 4])
    targets = torch.rand(*codes.shape, max(SIZES), dtype=torch.float64).softmax(-1)
    for b, length in enumerate(lengths):
        codes[b, length:] = -100
    logits = model(codes, cond, lengths=lengths)
    total = torch.zeros(len(SIZES), dtype=torch.float64)
    for b, length in enumerate(lengths.tolist()):
        part, row = codes[b : b + 1, :length], cond[b : b + 1]
        torch.testing.assert_close(logits[b : b + 1, :length], model(part, row))
        target = targets[b : b + 1, :length] if soft else None
        total += length * model.losses(part, cond=row, targets=target)
    found = model.losses(codes, cond=cond, lengths=lengths, targets=targets if soft else None)
    torch.testing.assert_close(found, total / lengths.sum())


@pytest.mark.parametrize("frozen", [True, False])
def test_gradient_reaches_every_parameter(frozen):
    model = build(frozen=frozen, classes=3, label_dropout=0.5, dropout=0.1).train()
    model.loss(draw_codes(8), cond=torch.randint(0, 3, (8,))).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_a_step_against_the_gradient_lowers_the_loss():
    model, codes = build(classes=None), draw_codes(4)
    loss = model.loss(codes)
    loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 1e-3 * parameter.grad
        assert model.loss(codes) < loss


def test_label_dropout_uses_the_null_class_in_training_only():
    model = build(classes=2, label_dropout=0.5, dropout=0.0)
    codes, cond = draw_codes(400), torch.zeros(400, dtype=torch.int64)
    codes = codes[:1].expand_as(codes)
    kept = model(codes, cond)
    assert torch.equal(kept, kept[:1].expand_as(kept))
    dropped = model.train()(codes, cond)
    share = (dropped[:, 0, 0, 0, 0] != kept[:, 0, 0, 0, 0]).double().mean()
    assert 0.4 < share < 0.6
    assert len(dropped.unique(dim=0)) <= 3  # rounding may differ between rows, not between many


def test_one_position_and_one_level_work():
    model = build((1,), (4,), classes=None)
    assert model(draw_codes(2, (1,), (4,))).shape == (2, 1, 1, 4)
    model.loss(draw_codes(2, (1,), (4,))).backward()


def test_codes_of_any_integer_type():
    model, codes, cond = build(), draw_codes(2), torch.tensor([0, 1], dtype=torch.uint8)
    for dtype in (torch.uint8, torch.int16, torch.int32):
        assert torch.equal(model(codes.to(dtype), cond), model(codes, cond.long()))


def test_codebooks_are_a_frozen_copy_and_stay_float32():
    tables = torch.randn(3, 7, 6, requires_grad=True)
    model = RQTransformer(
        (2, 3), 3, SIZES, dim=16, body_layers=1, depth_layers=1, num_heads=2, codebooks=tables
    )
    assert not model.embedding.codebooks.requires_grad
    with torch.no_grad():
        tables.zero_()
    assert model.embedding.codebooks.abs().sum() > 0
    before = model.embedding.codebooks.clone()
    for dtype in (torch.bfloat16, torch.float16, torch.float64, torch.float32):
        parent = nn.Sequential(model).to(dtype)
        assert torch.equal(parent[0].embedding.codebooks, before)
        assert parent[0].classifier.weight.dtype == dtype


def test_reduced_precision_and_autocast():
    model, codes = build(classes=None), draw_codes(4)
    exact = model.loss(codes)
    with torch.autocast("cpu", torch.bfloat16):
        half = model.float().loss(codes)
    assert half.dtype == torch.float32
    assert abs(half - exact) < 0.05
    low = model.to(torch.bfloat16).loss(codes)
    assert low.dtype == torch.float32
    assert abs(low - exact) < 0.05
    assert model.generate(2).shape == (2, 2, 3, 3)


def test_default_dtype_is_honoured():
    torch.set_default_dtype(torch.float64)
    try:
        model = RQTransformer((2,), 2, 4, dim=8, body_layers=1, depth_layers=1, num_heads=2)
    finally:
        torch.set_default_dtype(torch.float32)
    assert {p.dtype for p in model.parameters()} == {torch.float64}


@pytest.mark.parametrize("frozen", [True, False])
def test_deepcopy_state_dict_and_artifact(frozen, tmp_path):
    model, codes, cond = (
        build(frozen=frozen, label_dropout=0.1),
        draw_codes(2),
        torch.tensor([0, 1]),
    )
    expected = model(codes, cond)
    assert torch.equal(copy.deepcopy(model)(codes, cond), expected)
    other = build(frozen=frozen, label_dropout=0.1)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(codes, cond), expected)
    path = tmp_path / "model.safetensors"
    model.save(path)
    loaded = RQTransformer.load(path)
    assert torch.equal(loaded(codes, cond), expected)
    assert not loaded.training
    loaded.train().loss(codes, cond=cond).backward()
    assert all(parameter.grad is not None for parameter in loaded.parameters())
    again = tmp_path / "again.safetensors"
    loaded.save(again)
    assert again.read_bytes() == path.read_bytes()


def test_artifacts_of_something_else_are_refused(tmp_path):
    from rqtoolkit.io.artifact import read_artifact, write_artifact

    path = tmp_path / "model.safetensors"
    build().save(path)
    arguments, tensors = read_artifact(path, class_name="RQTransformer")
    del tensors["classifier.bias"]
    write_artifact(path, class_name="RQTransformer", arguments=arguments, tensors=tensors)
    with pytest.raises(ArtifactError, match=r"missing classifier\.bias"):
        RQTransformer.load(path)
    for wrong in ({"num_heads": 5}, {"wings": 2}):
        write_artifact(
            path, class_name="RQTransformer", arguments=arguments | wrong, tensors=tensors
        )
        with pytest.raises(ArtifactError, match="make no object"):
            RQTransformer.load(path)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"positions": ()}, ConfigError, "no axis"),
        ({"positions": (8, 0)}, ConfigError, "positions=0"),
        ({"depth": 0}, ConfigError, "depth=0"),
        ({"codebook_size": (4, 4)}, ConfigError, "got 2 for depth=3"),
        ({"codebook_size": 2.5}, ConfigError, "integer"),
        ({"num_heads": 3}, ConfigError, "must divide dim; got dim=16"),
        ({"dropout": 1.0}, ConfigError, "under 1"),
        ({"label_dropout": 0.1}, ConfigError, "needs classes"),
        ({"num_classes": 0}, ConfigError, "num_classes=0"),
        ({"codebooks": torch.zeros(2, 4, 6)}, ShapeError, r"got shape \(2, 4, 6\)"),
        ({"codebooks": torch.zeros(3, 5, 6)}, ShapeError, r"\(3 or 1, 4, dim\)"),
        ({"codebooks": torch.zeros(4, 6)}, ShapeError, r"got shape \(4, 6\)"),
    ],
)
def test_bad_arguments_are_named(settings, error, message):
    small = {"dim": 16, "body_layers": 1, "depth_layers": 1, "num_heads": 2}
    with pytest.raises(error, match=message):
        RQTransformer(**({"positions": (2, 3), "depth": 3, "codebook_size": 4} | small | settings))


def test_bad_inputs_are_named():
    model, codes, cond = build(), draw_codes(2), torch.tensor([0, 1])
    with pytest.raises(ShapeError, match=r"\(B, 2, 3, 3\).*got shape \(2, 3, 3\)"):
        model(codes[:, 0], cond)
    with pytest.raises(ShapeError, match="depth"):
        model(codes[..., :2], cond)
    with pytest.raises(ShapeError, match="no sequence"):
        model(codes[:0], cond[:0])
    with pytest.raises(DataError, match=r"float32"):
        model(codes.float(), cond)
    with pytest.raises(DataError, match="ndarray"):
        model(codes.numpy(), cond)
    over = codes.clone()
    over[1, 1, 0, 1] = 3
    with pytest.raises(DataError, match="level 1 must lie in 0 to 2; got 3"):
        model(over, cond)
    with pytest.raises(ConfigError, match="cond is missing"):
        model(codes)
    with pytest.raises(ConfigError, match="unconditional"):
        build(classes=None)(codes, cond)
    with pytest.raises(ShapeError, match=r"got shape \(3,\)"):
        model(codes, torch.tensor([0, 1, 2]))
    with pytest.raises(DataError, match="0 to 3; got 0 to 4"):
        model(codes, torch.tensor([0, 4]))
    with pytest.raises(DataError, match="cond must hold integers"):
        model(codes, torch.tensor([0.0, 1.0]))
    with pytest.raises(ShapeError, match="targets must have shape"):
        model.loss(codes, cond=cond, targets=torch.zeros(2, 2, 3, 3, 5))
    with pytest.raises(DataError, match="floating-point"):
        model.loss(codes, cond=cond, targets=torch.zeros(2, 2, 3, 3, 7, dtype=torch.int64))
    with pytest.raises(ShapeError, match="one-dimensional"):
        model(codes, cond, lengths=torch.tensor([1, 2]))
    line, sequence = build((5,)), draw_codes(2, (4,))
    with pytest.raises(DataError, match="1 to 4, the positions in codes; got 0 to 5"):
        line(sequence, cond, lengths=torch.tensor([0, 5]))
    with pytest.raises(ShapeError, match=r"shape \(2,\)"):
        line(sequence, cond, lengths=torch.tensor([1]))
    with pytest.raises(ShapeError, match="at most"):
        line(draw_codes(2, (6,)), cond)


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:.*should not be instantiated:DeprecationWarning"
)  # Dynamo's own
def test_the_loss_traces_as_one_graph():
    model, codes, cond = build(), draw_codes(3), torch.tensor([0, 1, 2])
    traced = torch.compile(lambda: model.loss(codes, cond=cond), backend="eager", fullgraph=True)
    torch.testing.assert_close(traced(), model.loss(codes, cond=cond))
