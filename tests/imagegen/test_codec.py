import zlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from imagegen.codec import cheapest_conditions, compress_codes, decompress_codes
from rqtoolkit.errors import ArtifactError, ConfigError, DataError
from rqtoolkit.transformer import RQTransformer

HEADER = 11  # bytes, for up to 127 images


def make(sharpness=6.0, **changes):
    """A transformer with peaked probabilities, as trained ones have."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes = {"positions": (3, 3), "depth": 3, "codebook_size": 20, "dim": 32, "num_heads": 2}
        model = RQTransformer(**{**sizes, "body_layers": 2, "depth_layers": 1, **changes}).eval()
        for parameter in model.parameters():
            parameter.data.mul_(sharpness if parameter.ndim > 1 else 1)
    return model


def draw(model, number, cond=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return model.generate(number, cond=cond, generator=generator)


@torch.no_grad()
def teacher_forced_bits(model, codes, cond=None):
    odds = model(codes, cond).double().log_softmax(-1).gather(-1, codes[..., None])
    return -float(odds.sum()) / torch.log(torch.tensor(2.0)).item()


@pytest.mark.parametrize("batch_size", [1, 4, 7, 32])
@pytest.mark.parametrize("num_classes", [None, 5])
def test_round_trip_is_exact_at_the_models_cost(batch_size, num_classes):
    model = make(num_classes=num_classes)
    cond = None if num_classes is None else torch.arange(7) % 5
    codes = draw(model, 7, cond)
    packed = compress_codes(model, codes, cond, batch_size=batch_size)
    again, told = decompress_codes(model, packed.data)
    assert torch.equal(again, codes)
    assert (told is None) if cond is None else torch.equal(told, cond)
    expected = teacher_forced_bits(model, codes, cond)
    if cond is not None:
        expected += 7 * torch.log2(torch.tensor(5.0)).item()
    assert packed.bits == pytest.approx(expected, rel=1e-4)
    assert len(packed.data) <= 1.02 * packed.bits / 8 + 16


@settings(deadline=None, max_examples=15)
@given(number=st.integers(1, 9), batch_size=st.integers(1, 10), seed=st.integers(0, 2**31))
def test_any_codes_come_back(number, batch_size, seed):
    model = make(codebook_size=[20, 7, 12], positions=(2, 2))
    generator = torch.Generator().manual_seed(seed)
    codes = torch.stack(
        [torch.randint(size, (number, 2, 2), generator=generator) for size in (20, 7, 12)], -1
    )
    packed = compress_codes(model, codes, batch_size=batch_size)
    assert torch.equal(decompress_codes(model, packed.data)[0], codes)
    assert len(packed.data) <= 1.02 * packed.bits / 8 + 16


def test_many_images_share_one_stream():
    model = make()
    codes = draw(model, 150)
    packed = compress_codes(model, codes)
    apart = sum(len(compress_codes(model, image[None]).data) for image in codes[:20]) / 20
    assert len(packed.data) / 150 < apart - HEADER
    assert len(packed.data) <= 1.02 * packed.bits / 8 + 16
    assert torch.equal(decompress_codes(model, packed.data)[0], codes)


def test_text_conditions_go_into_the_stream():
    model = make(text_length=4, text_vocab=11)
    cond = torch.randint(11, (3, 4), generator=torch.Generator().manual_seed(0))
    codes = draw(model, 3, cond)
    again, told = decompress_codes(model, compress_codes(model, codes, cond).data)
    assert torch.equal(again, codes)
    assert torch.equal(told, cond)
    with pytest.raises(ConfigError, match="--text"):
        cheapest_conditions(model, codes)


def test_the_class_that_costs_least_is_chosen():
    model = make(num_classes=4)
    codes = draw(model, 5, torch.tensor([0, 1, 2, 3, 1]))
    chosen = cheapest_conditions(model, codes, batch_size=2)
    for image, label in zip(codes, chosen, strict=True):
        costs = [teacher_forced_bits(model, image[None], torch.tensor([c])) for c in range(4)]
        assert costs[label] == min(costs)
    assert cheapest_conditions(make(), codes) is None


def test_threads_of_the_encoder_are_used_again():
    model, before = make(), torch.get_num_threads()
    packed = compress_codes(model, draw(model, 2))
    assert packed.data[10] == before
    torch.set_num_threads(before + 1)
    try:
        decompress_codes(model, packed.data)
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


def test_another_model_is_noticed():
    model, other = make(), make(sharpness=5.9)
    packed = compress_codes(model, draw(model, 3))
    with pytest.raises(ArtifactError, match="another model"):
        decompress_codes(other, packed.data)
    # even where the codes come out right: a classifier bias that changes no probability
    with torch.no_grad():
        model.condition_positions.add_(1e-12)
        model.classifier.bias.add_(1.0)
    with pytest.raises(ArtifactError, match="another model"):
        decompress_codes(model, packed.data)


def test_damage_is_noticed_before_anything_is_believed():
    model = make()
    data = compress_codes(model, draw(model, 3)).data
    for place in range(len(data)):
        damaged = bytearray(data)
        damaged[place] ^= 0x41
        with pytest.raises(ArtifactError, match=r"decompress: the (file|codes)"):
            decompress_codes(model, bytes(damaged))
    for cut in (data[:0], data[:2], data[:5], data[:9], data[:-1], data + b"abc"):
        with pytest.raises(ArtifactError, match="decompress: the file"):
            decompress_codes(model, cut)


def forge(data, images, batch_size, threads, keep=HEADER):
    """A file whose header says something else and whose checksum agrees."""
    numbers = b""
    for number in (images, batch_size, threads):
        while number > 127:
            numbers, number = numbers + bytes([128 | number & 127]), number >> 7
        numbers += bytes([number])
    body = numbers + data[keep:]
    return data[:3] + zlib.crc32(body).to_bytes(4, "big")[:2] + data[5:8] + body


@pytest.mark.parametrize(
    ("images", "batch_size", "threads"),
    [(2**34, 2**34, 1), (5, 5, 2**34), (5, 5, 100_000), (5, 0, 1), (5, 6, 1), (5, 5, 0), (0, 0, 1)],
)
def test_a_header_of_absurd_numbers_is_refused(images, batch_size, threads):
    model = make()
    data = compress_codes(model, draw(model, 1)).data
    assert forge(data, 1, 1, torch.get_num_threads()) == data
    with pytest.raises(ArtifactError, match="the file is cut off or damaged"):
        decompress_codes(model, forge(data, images, batch_size, threads))


def test_a_header_that_promises_too_much_ends_soon():
    model = make()
    data = compress_codes(model, draw(model, 1)).data
    with pytest.raises(ArtifactError, match="the codes cannot be had back"):
        decompress_codes(model, forge(data, 2**28, 1, torch.get_num_threads()))


def test_nothing_and_missing_conditions_are_refused():
    model = make(num_classes=4)
    with pytest.raises(DataError, match="no image"):
        compress_codes(model, torch.empty(0, 3, 3, 3, dtype=torch.int64))
    with pytest.raises(ConfigError, match="cond is missing"):
        compress_codes(model, torch.zeros(1, 3, 3, 3, dtype=torch.int64))
