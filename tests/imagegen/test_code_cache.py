"""The code cache: what it holds, beside encoding by hand; builds that stop, go stale or break."""

import json
import shutil
from collections import namedtuple

import numpy as np
import pytest
import torch

from imagegen.autoencoder import RQVAE
from imagegen.code_cache import CodeCache
from imagegen.data import ImageSet, Tasks, batches, to_float
from imagegen.encoding import encode_batches
from imagegen.shifts import count_shifts, shift_images
from rqtoolkit import ResidualQuantizer
from rqtoolkit.errors import ArtifactError, DataError

IMAGES = 23


def autoencoder(*, codebook_size=32, seed=0):
    torch.manual_seed(seed)
    quantizer = ResidualQuantizer(6, 3, codebook_size, kmeans_init=False)
    model = RQVAE(
        quantizer,
        resolution=8,
        image_channels=1,
        channels=4,
        multipliers=(1, 2),
        blocks=1,
        attention=(),
        latent_channels=8,
        code_dim=6,
        norm_groups=2,
    )
    return model.eval().requires_grad_(False)


def image_set(*, flip=False, seed=0):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (IMAGES, 8, 8, 1), dtype=np.uint8)
    return ImageSet(images, np.arange(IMAGES) % 5, tuple("abcde"), flip=flip)


def cache_in(folder, model=None, data=None, **more):
    arguments = {"kind": "latents", "copies": 1, "seed": 7, "shard_images": 5, **more}
    return CodeCache(folder, model or autoencoder(), data or image_set(), **arguments)


def shards(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.npy"))}


def everything(cache, copies=0):
    return cache.read(np.arange(IMAGES), np.full(IMAGES, copies))


@pytest.mark.parametrize("kind", ["codes", "latents"])
def test_a_cache_holds_what_encoding_gives(tmp_path, kind):
    model, data = autoencoder(), image_set()
    cache = cache_in(tmp_path / "cache", model, data, kind=kind)
    cache.build()
    records = everything(cache)
    with torch.no_grad():
        x = to_float(data.images)
        expected = model.encode(x) if kind == "codes" else model.latents(x)
    values = torch.from_numpy(records["values"].astype(np.float32))
    if kind == "codes":
        assert records["values"].dtype == np.uint8
        assert torch.equal(values, expected.float())
    else:
        assert records["values"].dtype == np.float16
        # rounding to nearest is off by at most half of 2⁻¹⁰ of a value
        torch.testing.assert_close(values, expected, rtol=2**-11, atol=1e-6)
    assert records["row"].tolist() == list(range(IMAGES))
    assert not records["shift"].any()
    files = sum(path.stat().st_size - 256 for path in (tmp_path / "cache").glob("*.npy"))
    assert abs(files - cache.bytes) <= 256 * 5  # but for the heads of 5 files


@pytest.mark.parametrize("kind", ["codes", "latents"])
def test_cached_batches_are_those_of_encoding_at_every_step(tmp_path, kind):
    model, data = autoencoder(), image_set()
    cache = cache_in(tmp_path / "cache", model, data, kind=kind, copies=2)
    cache.build()
    for rank in range(2):
        shares = {"accumulate": 2, "rank": rank, "ranks": 2}
        cached = list(cache.batches(Tasks(IMAGES, 16, range(2, 9), 3, **shares)))
        images = batches(data, batch_size=16, start_step=2, steps=9, seed=3, **shares)
        live = list(
            encode_batches(
                model, images, kind=kind, reach=0, unmoved=0.0, seed=3, start_step=2, accumulate=2
            )
        )
        assert len(cached) == len(live) == 14
        for one, other in zip(cached, live, strict=True):
            assert torch.equal(one.cond, other.cond)
            if kind == "codes":
                assert torch.equal(one.values, other.values)
            torch.testing.assert_close(one.values, other.values, rtol=2**-11, atol=1e-6)
            assert one.values.dtype == other.values.dtype


def test_copies_differ_by_shift_and_flip_and_say_so(tmp_path):
    model, data = autoencoder(), image_set(flip=True)
    cache = cache_in(tmp_path / "cache", model, data, copies=3, reach=1, unmoved=0.3)
    cache.build()
    both = torch.stack([to_float(data.images), to_float(data.images).flip(-1)])
    shifted, turned = set(), set()
    for copy in range(3):
        records = everything(cache, copy)
        shift = torch.from_numpy(records["shift"].astype(np.int64))
        assert 0 <= shift.min() <= shift.max() < count_shifts(1)
        with torch.no_grad():
            plain, mirrored = (model.latents(shift_images(x, shift, 1)) for x in both)
        found = torch.from_numpy(records["values"].astype(np.float32))
        near = [(found - x).abs().amax((1, 2, 3)) < 0.002 for x in (plain, mirrored)]
        assert (near[0] | near[1]).all()
        assert near[0].any()
        assert near[1].any()
        shifted.add(tuple(shift.tolist()))
        turned.add(tuple(near[1].tolist()))
    assert len(shifted) == len(turned) == 3


def test_a_pass_reads_one_copy_and_the_next_another(tmp_path):
    data = image_set()
    cache = cache_in(tmp_path / "cache", data=data, copies=2, reach=2, kind="codes")
    cache.build()
    told = torch.cat([b.cond for b in cache.batches(Tasks(IMAGES, 8, range(9), 0))])
    rows = torch.cat([b.rows for b in batches(data, batch_size=8, steps=9, seed=0)])
    assert torch.equal(told // 25, torch.from_numpy(data.labels)[rows])
    for start, copy in ((0, 0), (IMAGES, 1), (2 * IMAGES, 0)):
        part = slice(start, start + IMAGES)
        expected = everything(cache, copy)["shift"][rows[part].numpy()]
        assert (told[part] % 25).tolist() == expected.tolist()


def test_a_build_that_was_killed_goes_on(tmp_path):
    whole = cache_in(tmp_path / "whole", reach=1, copies=2)
    whole.build()

    class KilledError(Exception):
        pass

    def killed_at(number):
        def progress(_description, done, _total):
            if done == number:
                raise KilledError

        return progress

    folder = tmp_path / "cache"
    for number, finished in ((2, 2), (7, 7)):
        with pytest.raises(KilledError):
            cache_in(folder, reach=1, copies=2).build(progress=killed_at(number))
        assert len(shards(folder)) == finished
    (folder / ".00-00000.beef.partial.npy").write_bytes(b"half")
    times = {path: path.stat().st_mtime_ns for path in folder.glob("0*.npy")}
    cache_in(folder, reach=1, copies=2).build()
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())
    assert shards(folder) == shards(tmp_path / "whole")


def test_the_size_is_told_before_anything_is_built(tmp_path):
    told = []
    cache = cache_in(tmp_path / "cache", copies=2)
    cache.build(progress=lambda *step: told.append((*step, len(shards(tmp_path / "cache")))))
    description, done, total, built = told[0]
    assert (done, total, built) == (0, 10, 0)
    assert cache.bytes == 2 * IMAGES * (8 + 2 + 4 * 4 * 6 * 2)
    assert description == "Encoding 23 images × 2 as latents, 0.0 MB"
    assert told[-1][1:] == (10, 10, 10)


@pytest.mark.parametrize(
    "change",
    [
        {"model": {"seed": 1}},
        {"data": {"seed": 1}},
        {"kind": "codes"},
        {"copies": 2},
        {"seed": 8},
        {"reach": 1},
        {"unmoved": 0.5},
        {"reading": {"crop": "random"}},
        {"shard_images": 4},
    ],
    ids=str,
)
def test_a_stale_cache_is_made_again(tmp_path, change):
    folder = tmp_path / "cache"
    cache_in(folder).build()
    (folder / "00-00000.npy").write_bytes(b"of another time")
    change = dict(change)
    model, data = autoencoder(**change.pop("model", {})), image_set(**change.pop("data", {}))
    cache = cache_in(folder, model, data, **change)
    cache.build()
    fresh = cache_in(tmp_path / "fresh", model, data, **change)
    fresh.build()
    assert shards(folder) == shards(tmp_path / "fresh")
    assert json.loads((folder / "cache.json").read_text())["kind"] == cache.kind


def test_a_damaged_shard_is_named(tmp_path):
    folder = tmp_path / "cache"
    cache_in(folder).build()
    path = folder / "00-00001.npy"
    for content in (path.read_bytes()[:-5], b"", (folder / "00-00004.npy").read_bytes()):
        path.write_bytes(content)
        cache = cache_in(folder)
        cache.build()
        with pytest.raises(ArtifactError, match=r"00-00001\.npy .*Remove it"):
            everything(cache)
    path.unlink()
    cache_in(folder).build()
    everything(cache_in(folder))


def test_a_full_disk_is_seen_before_the_build(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage(10, 5, 5))
    with pytest.raises(ArtifactError, match=r"needs 0\.0 GB for 23 images.*Lower stage2\.cache"):
        cache_in(tmp_path / "cache").build()


def test_latents_beyond_float16_are_refused(tmp_path):
    model = autoencoder()
    with torch.no_grad():
        model.quant_conv.weight.mul_(1e7)
    with pytest.raises(DataError, match="range of float16"):
        cache_in(tmp_path / "cache", model).build()
    cache_in(tmp_path / "cache", model, kind="codes").build()


def test_an_unreadable_image_is_stood_in_for_with_its_label(tmp_path):
    from imagegen.images import UnreadableImageError

    class Holed:
        """A set whose image 3 is broken."""

        flip, skippable, resolution, channels = False, 1, (8, 8), 1

        def __init__(self):
            self.inner = image_set()
            self.labels, self.texts = self.inner.labels, None

        def __len__(self):
            return IMAGES

        def fingerprint(self):
            return "holed"

        def read(self, row, *, generator=None):
            if row == 3:
                raise UnreadableImageError("3.png: truncated")
            return self.inner.read(row, generator=generator)

    cache = cache_in(tmp_path / "cache", data=Holed())
    cache.build()
    records = everything(cache)
    assert records["row"].tolist() == [0, 1, 2, 4, *range(4, IMAGES)]
    assert (records["values"][3] == records["values"][4]).all()
    first = next(cache.batches(Tasks(IMAGES, IMAGES, range(1), 0)))
    assert sorted(first.cond.tolist()) == sorted(image_set().labels[records["row"]].tolist())
