"""Variants of the model: each equals the plain loop, with its cache, its file and its gradients."""

import pytest
import torch
from reference_transformer import Reference, keep_top
from torch import nn

from rqtoolkit.errors import ConfigError
from rqtoolkit.transformer import RQTransformer
from rqtoolkit.transformer.rotary import body_coordinates, rotary_table, rotate
from rqtoolkit.transformer.stack import Block

EVERYTHING = {"rotary": True, "qk_norm": True, "adaln": True, "swiglu": True}
TEXT = {"text_length": 3, "text_vocab": 6}
VARIANTS = {
    "rotary": {"rotary": True},
    "rotary, a sequence": {"rotary": True, "positions": 4},
    "rotary, three axes": {"rotary": True, "positions": (2, 1, 2), "dim": 20},
    "rotary, text": {"rotary": True} | TEXT,
    "qk_norm": {"qk_norm": True},
    "swiglu": {"swiglu": True},
    "adaln": {"adaln": True, "num_classes": 3},
    "everything": EVERYTHING | {"num_classes": 3},
    "text": TEXT,
    "classifier per level": {"classifier_per_level": True},
    "learned tables": {"frozen": False},
    "one learned table": {"frozen": False, "shared_embeddings": True, "codebook_size": (4, 4)},
    "last codeword": {"partial_sums": False, "codebook_size": (4, 5, 3)},
    "last learned codeword": {"frozen": False, "partial_sums": False, "codebook_size": (4, 5, 3)},
}


def build(*, frozen=True, **settings):
    """Build a small float64 model whose weights are large enough to matter."""
    small = {"positions": (2, 2), "codebook_size": (5, 3), "dim": 16, "num_heads": 2}
    settings = small | {"body_layers": 2, "depth_layers": 2} | settings
    sizes = settings["codebook_size"]
    if frozen:
        settings["codebooks"] = torch.randn(len(sizes), max(sizes), 6)
    if "num_classes" in settings or "text_length" in settings:
        settings.setdefault("label_dropout", 0.2)
    model = RQTransformer(depth=len(sizes), **settings).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    return model.eval()


def draw_codes(model, batch):
    shape = (batch, *model.positions)
    return torch.stack([torch.randint(0, size, shape) for size in model.codebook_sizes], -1)


def draw_condition(model, batch):
    if not model.condition.conditional:
        return None
    return torch.randint(model.condition.choices, (batch, model.condition_length))


def rows_of(cond, batch):
    return [[0]] * batch if cond is None else cond.tolist()


@pytest.fixture(params=VARIANTS)
def model(request):
    return build(**VARIANTS[request.param])


def test_logits_equal_the_plain_loop(model):
    codes, cond = draw_codes(model, 2), draw_condition(model, 2)
    logits = model(codes, cond)
    reference = Reference(model)
    if model.text_length is not None:
        logits, text_logits = logits
        assert text_logits.shape == (2, 2, 6)
        for found, tokens in zip(text_logits, cond.tolist(), strict=True):
            torch.testing.assert_close(found, reference.text_logits(tokens))
    for b, rows in enumerate(rows_of(cond, 2)):
        expected = reference.teacher_forced(codes[b].flatten(0, -2), rows)
        for found, wanted in zip(logits[b].flatten(0, -3), expected, strict=True):
            for level, values in enumerate(wanted):
                torch.testing.assert_close(found[level, : len(values)], values)


@pytest.mark.parametrize("start", [0, 2])
def test_generation_equals_the_plain_loop(model, start):
    cond = draw_condition(model, 3)
    cfg_scale = 1.0 if cond is None else 2.0
    prefix = draw_codes(model, 3).flatten(1, -2)[:, :start]
    settings = {"prefix": prefix, "cfg_scale": cfg_scale}
    found = model.generate(
        3, cond=cond, top_k=3, generator=torch.Generator().manual_seed(5), **settings
    )
    null = model.condition.null_row
    expected = Reference(model).generate(
        rows_of(cond, 3),
        4,
        null_row=null if null is None else [null] * model.condition_length,
        choose=lambda logits: keep_top(logits, top_k=3),
        generator=torch.Generator().manual_seed(5),
        **settings,
    )
    assert torch.equal(found.flatten(1, -2), expected)


def test_the_file_brings_everything_back(model, tmp_path):
    codes, cond = draw_codes(model, 2), draw_condition(model, 2)
    model.save(tmp_path / "model.safetensors")
    loaded = RQTransformer.load(tmp_path / "model.safetensors")
    assert torch.equal(loaded.loss(codes, cond=cond), model.loss(codes, cond=cond))
    again = RQTransformer.load(tmp_path / "model.safetensors")
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_gradient_reaches_every_parameter(model):
    codes, cond = draw_codes(model, 40), draw_condition(model, 40)
    model.train().loss(codes, cond=cond).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("settings", [EVERYTHING | {"num_classes": 3}, {"rotary": True} | TEXT])
def test_lengths_equal_removing_the_padding(settings):
    model = build(positions=5, label_dropout=0.0, **settings)
    codes, cond, lengths = draw_codes(model, 3), draw_condition(model, 3), torch.tensor([5, 1, 3])
    total = torch.zeros(2, dtype=torch.float64)
    for b, length in enumerate(lengths.tolist()):
        part = codes[b : b + 1, :length]
        total += length * model.losses(part, cond=cond[b : b + 1])
        codes[b, length:] = -7
    found = model.losses(codes, cond=cond, lengths=lengths)
    torch.testing.assert_close(found, total / lengths.sum())


@pytest.mark.parametrize("settings", [{}, EVERYTHING | {"num_classes": 3}, TEXT])
def test_checkpointing_changes_no_gradient(settings):
    model = build(dropout=0.3, **settings).train()
    codes, cond = draw_codes(model, 6), draw_condition(model, 6)
    runs = []
    calls = []
    model.body.blocks[0].register_forward_pre_hook(lambda *_: calls.append(1))
    for checkpointing in (False, True):
        model.checkpointing = checkpointing
        assert model.checkpointing is checkpointing
        model.zero_grad()
        torch.manual_seed(3)
        loss = model.loss(codes, cond=cond)
        loss.backward()
        runs.append([loss.detach(), *(p.grad.clone() for p in model.parameters())])
    for plain, again in zip(*runs, strict=True):
        torch.testing.assert_close(again, plain, rtol=0, atol=0)
    assert len(calls) == 3  # once, and then once more for the backward pass
    assert torch.isfinite(model.generate(6, cond=cond).float()).all()


@pytest.mark.parametrize("name", ["everything", "rotary, text", "classifier per level"])
def test_bfloat16_trains_and_samples(name):
    model = build(dropout=0.0, **VARIANTS[name], label_dropout=0.0).float()
    codes, cond = draw_codes(model, 16), draw_condition(model, 16)
    model.zero_grad()
    exact = model.loss(codes, cond=cond)
    exact.backward()
    wanted = torch.cat([p.grad.flatten() for p in model.parameters()])
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.loss(codes, cond=cond)
        drawn = model.generate(16, cond=cond)
    loss.backward()
    found = torch.cat([p.grad.flatten() for p in model.parameters()])
    assert loss.dtype == torch.float32
    assert abs(loss - exact) < 0.03 * exact
    assert (found - wanted).norm() < 0.1 * wanted.norm()
    assert all(p.grad.dtype == torch.float32 for p in model.parameters())
    assert drawn.shape == codes.shape


def test_a_few_steps_in_bfloat16_lower_the_loss():
    model = RQTransformer((2, 2), 2, 8, dim=32, body_layers=2, depth_layers=1, num_heads=2,
                          num_classes=4, dropout=0.0, rotary=True, qk_norm=True, adaln=True,
                          swiglu=True)  # fmt: skip
    cond = torch.arange(4).repeat(8)
    codes = cond[:, None, None, None].expand(32, 2, 2, 2)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    losses = []
    for _ in range(30):
        with torch.autocast("cpu", torch.bfloat16):
            loss = model.loss(codes, cond=cond)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.1 * losses[0]
    assert torch.equal(model.generate(32, cond=cond, top_k=1), codes)


def test_adaptive_norms_start_as_the_identity():
    block, x = Block(16, 2, adaln=True), torch.randn(3, 4, 16)
    nn.init.zeros_(block.modulation.linear.weight)
    nn.init.zeros_(block.modulation.linear.bias)
    assert torch.equal(block(x, cond=torch.randn(3, 16)), x)
    model = RQTransformer((2, 2), 2, 4, dim=16, body_layers=2, depth_layers=1, num_heads=2,
                          num_classes=3, adaln=True)  # fmt: skip
    assert torch.equal(model.body(x, cond=torch.randn(3, 16)), x)


def test_a_swiglu_perceptron_is_as_large_as_a_gelu_one():
    for dim in (256, 512, 1536):
        sizes = [
            sum(p.numel() for p in Block(dim, 8, swiglu=swiglu).parameters())
            for swiglu in (False, True)
        ]
        assert abs(sizes[1] / sizes[0] - 1) < 0.01


def test_normalised_queries_do_not_grow():
    block, x = Block(16, 2, qk_norm=True).double(), torch.randn(1, 5, 16, dtype=torch.float64)
    before = block(x)
    with torch.no_grad():
        block.attention.query_key_value.weight[:32] *= 100  # queries and keys
        block.attention.query_key_value.bias[:32] *= 100
    torch.testing.assert_close(block(x), before, rtol=1e-3, atol=1e-3)


def test_rotary_scores_depend_on_distances_alone():
    query, key = torch.randn(2, 8, dtype=torch.float64)
    at = torch.tensor([[0, 0], [2, 1], [5, 3], [7, 4]])  # the second pair is the first, moved
    table = rotary_table(at, 8, torch.float64)
    queries, keys = rotate(query.expand(4, 8), table), rotate(key.expand(4, 8), table)
    torch.testing.assert_close(queries[1] @ keys[0], queries[3] @ keys[2])
    assert not torch.allclose(queries[1] @ keys[0], queries[2] @ keys[0])
    torch.testing.assert_close(queries.norm(dim=1), query.norm().expand(4))


def test_rotary_by_hand():
    table = rotary_table(torch.tensor([[3]]), 4, torch.float64)
    torch.testing.assert_close(table[0], torch.tensor([[3.0, 0.03]], dtype=torch.float64).cos())
    x = torch.tensor([[1.0, 0.0, 0.0, 1.0]], dtype=torch.float64)
    angles = torch.tensor([3.0, 0.03], dtype=torch.float64)
    (cos, cos2), (sin, sin2) = angles.cos(), angles.sin()
    torch.testing.assert_close(rotate(x, table), torch.stack([cos, sin, -sin2, cos2])[None])


def test_coordinates_by_hand():
    assert body_coordinates((2, 2), 2).tolist() == [
        [-2, -2], [-1, -1], [0, 0], [0, 1], [1, 0], [1, 1]
    ]  # fmt: skip
    assert body_coordinates((3,), 1).tolist() == [[-1], [0], [1], [2]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"adaln": True}, "adaln=True modulates by the class; got num_classes=None"),
        ({"adaln": True} | TEXT, "adaln=True modulates by the class"),
        ({"rotary": True, "dim": 6, "num_heads": 2}, "dim / num_heads = 3"),
        ({"rotary": True, "positions": (2, 2, 2), "dim": 8}, "at least 6"),
        ({"shared_embeddings": True}, "got codebooks. Leave it False"),
        ({"shared_embeddings": True, "frozen": False}, r"got codebook_size=\[5, 3\]"),
        ({"num_classes": 2} | TEXT, "exclude each other"),
        ({"text_length": 3}, "text_length=3 and text_vocab=None go together"),
        ({"text_vocab": 3}, "go together"),
        ({"text_length": 1, "text_vocab": 3}, "Pass a single token as a class"),
        ({"text_length": 2.5, "text_vocab": 3}, "text_length=2.5 must be an integer"),
        ({"text_weight": 1.0} | TEXT, "text_weight=1.0"),
    ],
)
def test_arguments_that_do_not_go_together(settings, message):
    with pytest.raises(ConfigError, match=message):
        build(**settings)
