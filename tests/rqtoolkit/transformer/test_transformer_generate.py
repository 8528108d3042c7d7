"""Generation: equal to a plain loop without a cache, prefixes, guidance, lengths, side effects."""

import pytest
import torch
from reference_transformer import Reference, keep_top
from scipy.stats import chisquare
from torch import nn

from rqtoolkit.errors import ConfigError, DataError, ShapeError
from rqtoolkit.transformer import RQTransformer


def build(positions=(2, 2), sizes=(5, 3), *, frozen=True, classes=3, **settings):
    tables = torch.randn(len(sizes), max(sizes), 6) if frozen else None
    model = RQTransformer(
        positions,
        depth=len(sizes),
        codebook_size=sizes,
        dim=16,
        body_layers=2,
        depth_layers=2,
        num_heads=2,
        codebooks=tables,
        num_classes=classes,
        **settings,
    ).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    return model


def seeded(seed=7):
    return torch.Generator().manual_seed(seed)


COND = torch.tensor([2, 0, 1, 1, 0])


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("sizes", [(5, 3), (4,), (3, 6, 4)])
@pytest.mark.parametrize(
    ("settings", "cfg_scale", "start"),
    [
        ({}, 1.0, 0),
        ({"temperature": 0.8, "top_k": 3, "top_p": 0.9}, 1.0, 0),
        ({}, 2.5, 0),
        ({"top_p": 0.7}, 0.0, 2),
        ({}, 1.0, 3),
    ],
)
def test_equals_the_plain_loop(frozen, sizes, settings, cfg_scale, start):
    model = build(sizes=sizes, frozen=frozen, label_dropout=0.1)
    prefix = torch.stack([torch.randint(0, size, (5, start)) for size in sizes], -1)
    found = model.generate(
        5, cond=COND, prefix=prefix, cfg_scale=cfg_scale, generator=seeded(), **settings
    )
    expected = Reference(model).generate(
        COND.tolist(),
        4,
        prefix=prefix,
        null_row=model.condition.null_row,
        cfg_scale=cfg_scale,
        choose=lambda logits: keep_top(logits, **settings),
        generator=seeded(),
    )
    assert found.shape == (5, 2, 2, len(sizes))
    assert found.dtype == torch.int64
    assert torch.equal(found.flatten(1, 2), expected)


def test_greedy_codes_maximise_the_teacher_forced_logits():
    model = build((3, 3), (6, 6, 6)).eval()
    codes = model.generate(5, cond=COND, top_k=1)
    assert torch.equal(model(codes, COND).argmax(-1), codes)


def test_guidance_formula():
    model = build(label_dropout=0.2).eval()
    codes = model.generate(5, cond=COND, cfg_scale=3.0, top_k=1)
    with_class = model(codes, COND)
    # The null class is the last row; make it class 0 of a copy to ask for it from outside.
    state = model.state_dict()
    state["condition.weight"] = state["condition.weight"].clone()
    state["condition.weight"][0] = state["condition.weight"][model.condition.null_row]
    model.load_state_dict(state)
    without = model(codes, torch.zeros_like(COND))
    guided = without + 3.0 * (with_class - without)
    assert torch.equal(guided.nan_to_num(-1e9, neginf=-1e9, posinf=-1e9).argmax(-1), codes)


def test_guidance_needs_a_null_class():
    with pytest.raises(ConfigError, match="train with label_dropout"):
        build().generate(5, cond=COND, cfg_scale=1.5)
    assert build().generate(5, cond=COND, cfg_scale=1.0).shape == (5, 2, 2, 2)


@pytest.mark.parametrize("cfg_scale", [1.0, 2.0])
def test_a_walk_that_repeats_codes_sees_the_same_logits(cfg_scale):
    model = build(label_dropout=0.1).float()
    seen, again = [], []

    def draw(position, level, logits):
        assert logits.dtype == torch.float32
        seen.append((position, level, logits))
        return torch.multinomial(logits.softmax(-1), 1, generator=generator).squeeze(-1)

    def repeat(position, level, logits):
        again.append((position, level, logits))
        return codes.flatten(1, 2)[:, position, level]

    generator = seeded()
    codes = model.walk(5, draw, cond=COND, cfg_scale=cfg_scale)
    assert torch.equal(codes, model.walk(5, repeat, cond=COND, cfg_scale=cfg_scale))
    drawn = model.generate(5, cond=COND, cfg_scale=cfg_scale, generator=seeded())
    assert torch.equal(codes, drawn)
    assert [call[:2] for call in seen] == [(t, d) for t in range(4) for d in range(2)]
    for (*_, first), (*_, second) in zip(seen, again, strict=True):
        assert torch.equal(first, second)


def test_a_walk_goes_on_from_its_prefix():
    model, calls = build(), []

    def choose(position, level, logits):
        calls.append((position, level))
        return logits.argmax(-1)

    prefix = torch.ones(5, 3, 2, dtype=torch.int64)
    model.walk(5, choose, cond=COND, prefix=prefix)
    assert calls == [(3, 0), (3, 1)]
    with pytest.raises(ConfigError, match=r"RQTransformer.walk: cond is missing"):
        model.walk(5, choose)


def test_samples_follow_the_model():
    """Chi-square of whole sequences against the product of their exact probabilities."""
    model = build((2,), (3, 2), classes=None).eval()
    count = 20_000
    codes = model.generate(count, generator=seeded()).flatten(1)
    every = torch.cartesian_prod(*(torch.arange(n) for n in (3, 2, 3, 2)))
    log_p = model(every.view(-1, 2, 2)).log_softmax(-1)
    expected = log_p.flatten(1, 2).gather(-1, every.unsqueeze(-1)).sum((1, 2)).exp().detach()
    radix = torch.tensor([12, 6, 2, 1])
    observed = torch.bincount((codes * radix).sum(-1), minlength=36)
    assert chisquare(observed, expected * count).pvalue > 0.01


def test_prefix_is_kept_and_equals_teacher_forcing():
    model = build((3, 2)).eval()
    whole = model.generate(5, cond=COND, top_k=1).flatten(1, 2)
    for start in range(7):
        done = model.generate(5, cond=COND, top_k=1, prefix=whole[:, :start].to(torch.int16))
        assert torch.equal(done.flatten(1, 2), whole)
    other = (whole[:, :3] + 1) % torch.tensor([5, 3])
    codes = model.generate(5, cond=COND, top_k=1, prefix=other)
    assert torch.equal(codes.flatten(1, 2)[:, :3], other)
    predicted = model(codes, COND).argmax(-1).flatten(1, 2)
    assert torch.equal(predicted[:, 3:], codes.flatten(1, 2)[:, 3:])


def test_padded_entries_are_never_sampled():
    model = build(sizes=(2, 7, 3), classes=None)
    with torch.no_grad():
        model.classifier.bias[2:] = 50.0
    codes = model.generate(50, generator=seeded())
    assert (codes.flatten(0, -2).amax(0) < torch.tensor([2, 7, 3])).all()


def test_shorter_sequences():
    model = build((6,), classes=None).eval()
    short = model.generate(4, length=3, generator=seeded())
    assert short.shape == (4, 3, 2)
    assert torch.equal(short, model.generate(4, generator=seeded())[:, :3])
    assert model.generate(4, length=3, prefix=short[:, :1]).shape == (4, 3, 2)


def test_a_seed_fixes_the_codes_and_the_global_generator_is_left_alone():
    model = build((3, 3))
    state = torch.get_rng_state()
    first, second = (model.generate(5, cond=COND, generator=seeded()) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(first, model.generate(5, cond=COND, generator=seeded(8)))


def test_modes_are_restored_and_dropout_is_off():
    model = build(dropout=0.9).train()
    model.body.eval()
    codes = model.generate(5, cond=COND, generator=seeded())
    assert model.training
    assert model.depth_transformer.training
    assert not model.body.training
    assert torch.equal(codes, model.eval().generate(5, cond=COND, generator=seeded()))
    assert not model.training


def test_modes_are_restored_after_an_interrupt():
    def stop(*_):
        raise KeyboardInterrupt

    model = build().train()
    with pytest.raises(KeyboardInterrupt):
        model.generate(5, cond=COND, progress=stop)
    assert all(module.training for module in model.modules())


def test_generated_codes_can_be_trained_on():
    model = build()
    model.loss(model.generate(5, cond=COND), cond=COND).backward()


def test_progress_counts_positions():
    seen = []
    prefix = torch.zeros(5, 1, 2, dtype=torch.int64)
    build().generate(5, cond=COND, prefix=prefix, progress=lambda *call: seen.append(call))
    assert seen == [("Sampling", done, 4) for done in (1, 2, 3, 4)]


def test_autocast():
    model = build().float()
    with torch.autocast("cpu", torch.bfloat16):
        assert model.generate(5, cond=COND).shape == (5, 2, 2, 2)


def test_bad_settings_are_named():
    model = build(label_dropout=0.1)
    with pytest.raises(ConfigError, match="num_samples=0"):
        model.generate(0)
    with pytest.raises(ConfigError, match="cond is missing"):
        model.generate(5)
    with pytest.raises(ConfigError, match="unconditional"):
        build(classes=None).generate(5, cond=COND)
    with pytest.raises(ShapeError, match=r"shape \(4,\) or \(4, 1\)"):
        model.generate(4, cond=COND)
    with pytest.raises(DataError, match="0 to 2"):
        model.generate(5, cond=COND + 1)
    with pytest.raises(ConfigError, match="finite"):
        model.generate(5, cond=COND, cfg_scale=float("nan"))
    with pytest.raises(ConfigError, match="one-dimensional"):
        model.generate(5, cond=COND, length=3)
    with pytest.raises(ConfigError, match="maximum"):
        build((4,), classes=None).generate(5, length=5)
    with pytest.raises(ShapeError, match=r"\(5, T0, 2\) with T0 at most 4"):
        model.generate(5, cond=COND, prefix=torch.zeros(5, 2, 2, 2, dtype=torch.int64))
    with pytest.raises(ShapeError, match="T0 at most 4"):
        model.generate(5, cond=COND, prefix=torch.zeros(5, 5, 2, dtype=torch.int64))
    with pytest.raises(DataError, match="level 1 must lie in 0 to 2; got 4"):
        model.generate(5, cond=COND, prefix=torch.full((5, 1, 2), 4))
    with pytest.raises(DataError, match="prefix must hold integers"):
        model.generate(5, cond=COND, prefix=torch.zeros(5, 1, 2))
