"""Differentiable augmentation against plain loops, and its gradients."""

import pytest
import torch

from imagegen.augment import POLICIES, draw_augmentation
from rqtoolkit.errors import ConfigError

ALL = tuple(POLICIES)


def seeded(policies, shape, seed=3):
    return draw_augmentation(policies, shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("policies", [(), *((name,) for name in ALL), ALL])
def test_a_generator_fixes_it_and_one_draw_serves_all(policies):
    images = torch.randn(5, 3, 16, 24)
    augmentation = seeded(policies, images.shape)
    first = augmentation(images)
    assert first.shape == images.shape
    assert torch.equal(augmentation(images), first)
    assert torch.equal(seeded(policies, images.shape)(images), first)
    if policies:
        assert not torch.equal(seeded(policies, images.shape, seed=4)(images), first)
    else:
        assert torch.equal(first, images)


@pytest.mark.parametrize("policies", [*((name,) for name in ALL), ALL])
def test_gradients_are_exact(policies):
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    augmentation = seeded(policies, images.shape)
    assert torch.autograd.gradcheck(augmentation, images)
    assert torch.autograd.grad(augmentation(images).sum(), images)[0].any()


def test_translations_are_moves_that_fill_with_grey():
    images = torch.rand(64, 2, 16, 24) + 1  # nothing is 0
    found = seeded(("translation",), images.shape)(images)
    moves = set()
    for image, moved in zip(images, found, strict=True):
        # which of all moves by up to an eighth gives this picture?
        fits = []
        for down in range(-2, 3):
            for right in range(-3, 4):
                framed = torch.nn.functional.pad(image, (3, 3, 2, 2))
                expected = framed[:, 2 + down : 18 + down, 3 + right : 27 + right]
                if torch.equal(expected, moved):
                    fits.append((down, right))
        assert len(fits) == 1
        moves.add(fits[0])
    assert {down for down, _ in moves} == {-2, -1, 0, 1, 2}
    assert {right for _, right in moves} == {-3, -2, -1, 0, 1, 2, 3}


def test_cutouts_are_squares_of_half_the_side():
    images = torch.ones(300, 1, 16, 12)
    found = seeded(("cutout",), images.shape)(images)[:, 0]
    for cut in found:
        rows, columns = (cut == 0).any(1), (cut == 0).any(0)
        assert torch.equal(cut == 0, rows[:, None] & columns[None, :])  # a rectangle
        assert rows.sum() <= 8
        assert columns.sum() <= 6
    assert (found == 0).flatten(1).sum(1).max() == 48
    assert (found == 0).any(0).all()  # every place is cut at times


def test_colors_change_as_drawn():
    images = torch.randn(2, 3, 4, 5)
    draws = torch.rand(6, generator=torch.Generator().manual_seed(3)).reshape(3, 2)
    found = seeded(("color",), images.shape)(images)
    for image, shown, (brightness, saturation, contrast) in zip(
        images, found, draws.T, strict=True
    ):
        expected = image + brightness - 0.5
        grey = (expected[0] + expected[1] + expected[2]) / 3
        expected = torch.stack([grey + 2 * saturation * (c - grey) for c in expected])
        middle = expected.mean()
        torch.testing.assert_close(shown, middle + (contrast + 0.5) * (expected - middle))


def test_unknown_policies_are_refused():
    with pytest.raises(ConfigError, match="got 'rotation'"):
        draw_augmentation(["color", "rotation"], (1, 3, 8, 8))
