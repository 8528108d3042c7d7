"""Shifts of images, against slicing by hand."""

import pytest
import torch

from imagegen.shifts import conditions, count_shifts, draw_shifts, shift_images


def test_shift_zero_leaves_images_in_place():
    images = torch.randn(3, 2, 5, 5)
    assert torch.equal(shift_images(images, torch.zeros(3, dtype=torch.int64), 2), images)
    assert torch.equal(shift_images(images, torch.zeros(3, dtype=torch.int64), 0), images)


@pytest.mark.parametrize("reach", [1, 2])
def test_every_shift_moves_by_whole_pixels_and_repeats_the_border(reach):
    image = torch.randn(1, 1, 6, 6)
    found = set()
    for number in range(count_shifts(reach)):
        moved = shift_images(image, torch.tensor([number]), reach)
        for dy in range(-reach, reach + 1):
            for dx in range(-reach, reach + 1):
                rows = [min(max(i + dy, 0), 5) for i in range(6)]
                columns = [min(max(j + dx, 0), 5) for j in range(6)]
                if torch.equal(moved, image[:, :, rows][:, :, :, columns]):
                    found.add((dy, dx))
    assert len(found) == count_shifts(reach) == (2 * reach + 1) ** 2


def test_drawn_shifts_keep_the_share_that_stays():
    shifts = draw_shifts(torch.arange(20_000), 1, unmoved=0.5, seed=0)
    assert shifts.unique().tolist() == list(range(9))
    expected = 0.5 + 0.5 / 9
    deviation = (expected * (1 - expected) / 20_000) ** 0.5
    assert abs((shifts == 0).double().mean() - expected) < 4 * deviation
    moved = shifts[shifts > 0].bincount()[1:].double()  # the eight others alike: chi-square, 7
    assert ((moved - moved.mean()).square() / moved.mean()).sum() < 24.3  # the 99.9% quantile


def test_a_shift_is_a_function_of_seed_and_row():
    whole = draw_shifts(torch.arange(64), 2, unmoved=0.1, seed=5)
    parts = [draw_shifts(rows, 2, unmoved=0.1, seed=5) for rows in torch.arange(64).split(7)]
    assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(draw_shifts(torch.arange(64), 2, unmoved=0.1, seed=6), whole)
    assert draw_shifts(torch.arange(3), 0, unmoved=0.0, seed=5).tolist() == [0, 0, 0]


def test_conditions_tell_classes_and_shifts_apart():
    labels = torch.arange(4).repeat_interleave(9)
    shifts = torch.arange(9).repeat(4)
    assert conditions(labels, shifts, reach=1).tolist() == list(range(36))
    assert conditions(None, shifts, reach=1) is shifts
    assert conditions(None, shifts * 0, reach=0) is None
    assert conditions(labels, shifts * 0, reach=0).tolist() == labels.tolist()
