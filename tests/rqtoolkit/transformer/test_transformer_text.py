"""Text conditions: what they predict, what they cost, how they are dropped and checked."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from rqtoolkit.errors import ConfigError, DataError, ShapeError
from rqtoolkit.transformer import RQTransformer


def build(**settings):
    model = RQTransformer(
        (2, 2),
        depth=2,
        codebook_size=5,
        dim=16,
        body_layers=2,
        depth_layers=1,
        num_heads=2,
        text_length=4,
        text_vocab=7,
        **settings,
    ).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    return model.eval()


CODES = torch.randint(5, (3, 2, 2, 2), generator=torch.Generator().manual_seed(0))
TEXT = torch.tensor([[0, 1, 2, 3], [6, 5, 4, 3], [2, 2, 2, 2]])


def test_loss_by_hand():
    model = build(text_weight=0.3)
    logits, text_logits = model(CODES, TEXT)
    image = F.cross_entropy(logits.flatten(0, -2), CODES.flatten())
    text = F.cross_entropy(text_logits.flatten(0, 1), TEXT[:, 1:].flatten())
    terms = model.loss_terms(CODES, cond=TEXT)
    torch.testing.assert_close(terms.text, text)
    torch.testing.assert_close(terms.levels.mean(), image)
    torch.testing.assert_close(model.losses(CODES, cond=TEXT), terms.levels)
    torch.testing.assert_close(model.loss(CODES, cond=TEXT), 0.7 * image + 0.3 * text)


def test_the_paper_s_weight():
    terms = build().loss_terms(CODES, cond=TEXT)
    torch.testing.assert_close(terms.total, 0.9 * terms.levels.mean() + 0.1 * terms.text)


def test_every_token_reaches_the_codes_and_later_tokens_alone():
    model = build()
    logits, text_logits = model(CODES, TEXT)
    for token in range(4):
        changed = TEXT.clone()
        changed[:, token] = (changed[:, token] + 1) % 7
        other, other_text = model(CODES, changed)
        assert (other != logits).all()
        # Output i has read tokens 0 to i.
        same = [torch.equal(other_text[:, i], text_logits[:, i]) for i in range(3)]
        assert same == [i < token for i in range(3)]


def test_dropped_texts_are_neither_read_nor_predicted():
    model = build(label_dropout=0.999, dropout=0.0).train()
    codes, text = CODES[:1].expand(50, -1, -1, -1), torch.randint(7, (50, 4))
    torch.manual_seed(1)
    dropped = torch.rand(50, 1) < 0.999
    assert dropped.all()
    torch.manual_seed(1)
    logits, _ = model(codes, text)
    torch.testing.assert_close(logits, logits[:1].expand_as(logits))
    terms = model.loss_terms(codes, cond=text)
    assert terms.text == 0
    terms.total.backward()
    assert model.text_classifier.weight.grad.abs().sum() == 0


def test_some_texts_dropped():
    model = build(label_dropout=0.5, dropout=0.0).train()
    codes, text = CODES[:1].expand(20, -1, -1, -1), torch.randint(7, (20, 4))
    torch.manual_seed(1)
    kept = (torch.rand(20, 1) >= 0.5).squeeze(1)
    torch.manual_seed(1)
    terms = model.loss_terms(codes, cond=text)
    told = model.eval().loss_terms(codes[kept], cond=text[kept])
    torch.testing.assert_close(terms.text, told.text)


def test_guidance_compares_with_the_null_text():
    model = build(label_dropout=0.1)
    codes = model.generate(3, cond=TEXT, cfg_scale=3.0, top_k=1)
    told, _ = model(codes, TEXT)
    state = model.state_dict()
    state["condition.weight"] = state["condition.weight"].clone()
    state["condition.weight"][0] = state["condition.weight"][model.condition.null_row]
    model.load_state_dict(state)
    without, _ = model(codes, torch.zeros_like(TEXT))
    assert torch.equal((without + 3.0 * (told - without)).argmax(-1), codes)


def test_bad_texts_are_named():
    model = build()
    with pytest.raises(ConfigError, match=r"cond is missing.*text tokens of shape \(3, 4\)"):
        model(CODES)
    with pytest.raises(ShapeError, match=r"shape \(3, 4\); got shape \(3, 3\)"):
        model(CODES, TEXT[:, :3])
    with pytest.raises(ShapeError, match=r"shape \(3, 4\); got shape \(3,\)"):
        model.loss(CODES, cond=TEXT[:, 0])
    with pytest.raises(DataError, match="0 to 6; got 1 to 7"):
        model(CODES, TEXT + 1)
    with pytest.raises(DataError, match="integers"):
        model.generate(3, cond=TEXT.float())
