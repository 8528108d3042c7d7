"""Every source gives the same images, classes and texts, in files as in memory."""

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from imagegen.data import ImageSet, batches, open_images
from imagegen.data.stored import StoredImages

SIDE = 6
CLASSES = ("cat", "dog", "owl")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("RQTOOLKIT_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def _small_memory(monkeypatch):
    """Open images as if they were too many for the memory."""
    monkeypatch.setattr("imagegen.data.opening.MEMORY", SIDE * SIDE * 3 * 4)


def pixels(number):
    return np.random.default_rng(number).integers(0, 256, (SIDE, SIDE, 3), np.uint8)


def png(number):
    file = io.BytesIO()
    Image.fromarray(pixels(number)).save(file, "PNG")
    return file.getvalue()


def write(path, number):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(number))


def write_tar(path, members):
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


# Each writer lays out images 0 … 8 for training and, where the layout says so, 9 … 11 as held out;
# image i is of class i % 3 and says "text i". It returns the arguments, and whether there are
# classes, texts, and held-out images of its own.


def write_npz(folder):
    path = folder / "images.npz"
    np.savez(
        path,
        x_train=np.stack([pixels(i) for i in range(9)]),
        y_train=np.arange(9) % 3,
        x_test=np.stack([pixels(i) for i in range(9, 12)]),
        y_test=np.arange(9, 12) % 3,
        class_names=np.array(CLASSES),
    )
    return {"source": "npz", "path": path}, True, False, True


def write_joined_npz(folder):
    arrays = {"class_names": np.array(CLASSES)}
    for part, rows in (("train", range(9)), ("test", range(9, 12))):
        files = [png(i) for i in rows]
        arrays[f"jpeg_{part}"] = np.frombuffer(b"".join(files), np.uint8)
        arrays[f"offsets_{part}"] = np.cumsum([0, *map(len, files)])
        arrays[f"y_{part}"] = np.array(rows) % 3
    np.savez(folder / "images.npz", **arrays)
    return {"source": "npz", "path": folder / "images.npz"}, True, False, True


def write_folder(folder):
    for i in range(9):
        write(folder / CLASSES[i % 3] / f"part{i // 6}" / f"{i}.png", i)
    return {"source": "folder", "path": folder}, True, False, False


def write_two_folders(folder):
    for i in range(12):
        write(folder / ("a" if i < 9 else "b") / CLASSES[i % 3] / f"{i:02d}.png", i)
    paths = {"path": folder / "a", "held_out_path": folder / "b"}
    return {"source": "folder", **paths}, True, False, True


def write_list(folder):
    lines = []
    for i in range(9):
        write(folder / "all" / f"{i}.png", i)
        lines.append(f"all/{i}.png\t{i % 3}\n")
    (folder / "list.tsv").write_text("".join(lines))
    return {"source": "list", "path": folder / "list.tsv"}, True, False, False


def write_csv(folder):
    lines = ["caption,file,class\n"]
    for i in range(9):
        write(folder / f"{i}.png", i)
        lines.append(f'"text {i}",{i}.png,{CLASSES[i % 3]}\n')
    (folder / "list.csv").write_text("".join(lines))
    return {"source": "list", "path": folder / "list.csv"}, True, True, False


def write_cc3m(folder):
    for part, rows in (("train", range(9)), ("val", range(9, 12))):
        lines = []
        for i in rows:
            write(folder / part / f"hash{i:02d}", i)
            lines.append(f"./{part}/hash{i:02d}\ttext {i}\n")
        (folder / f"{part}_list.txt").write_text("".join(lines))
    return {"source": "cc3m", "path": folder}, False, True, True


def write_shards(folder):
    for shard in range(3):
        members = []
        for i in range(3 * shard, 3 * shard + 3):
            members += [
                (f"./{i:03d}.json", json.dumps({"caption": f"text {i}", "width": 6}).encode()),
                (f"./{i:03d}.png", png(i)),
                (f"./{i:03d}.cls", str(i % 3).encode()),
            ]
        write_tar(folder / f"set-{shard:04d}.tar", members)
    path = folder / "set-{0000..0002}.tar"
    return {"source": "webdataset", "path": path}, True, True, False


def write_imagenet(folder):
    for i in range(12):
        part = "train" if i < 9 else "val"
        write(folder / part / f"n0{i % 3}" / f"ILSVRC_{i:03d}.JPEG", i)
    return {"source": "imagenet", "path": folder}, True, False, True


def write_ffhq(folder):
    for i in range(12):
        number = i if i < 9 else 60_000 + i
        write(folder / f"{number // 1000 * 1000:05d}" / f"{number:05d}.png", i)
    return {"source": "ffhq", "path": folder}, False, False, True


def write_listed_ffhq(folder):
    for i in range(12):
        write(folder / f"{i:05d}.png", i)
    (folder / "ffhqtrain.txt").write_text("".join(f"{i:05d}.png\n" for i in range(9)))
    (folder / "ffhqvalidation.txt").write_text("".join(f"{i:05d}.png\n" for i in range(9, 12)))
    return {"source": "ffhq", "path": folder}, False, False, True


def write_lsun(folder):
    lmdb = pytest.importorskip("lmdb")
    for part, rows in (("train", range(9)), ("val", range(9, 12))):
        path = folder / f"church_outdoor_{part}_lmdb"
        with (
            lmdb.open(str(path), map_size=2**20) as environment,
            environment.begin(write=True) as transaction,
        ):
            for i in rows:
                transaction.put(f"{i:040x}".encode(), png(i))
    return {"source": "lsun", "path": folder}, False, False, True


def write_huggingface(folder):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=list(CLASSES)),
            "text": datasets.Value("string"),
        }
    )
    parts = {
        name: datasets.Dataset.from_dict(
            {
                "image": [{"bytes": png(i), "path": None} for i in rows],
                "label": [i % 3 for i in rows],
                "text": [f"text {i}" for i in rows],
            },
            features=features,
        )
        for name, rows in (("train", range(9)), ("test", range(9, 12)))
    }
    datasets.DatasetDict(parts).save_to_disk(str(folder / "set"))
    return {"source": "huggingface", "path": folder / "set"}, True, True, True


WRITERS = [
    write_npz,
    write_joined_npz,
    write_folder,
    write_two_folders,
    write_list,
    write_csv,
    write_cc3m,
    write_shards,
    write_imagenet,
    write_ffhq,
    write_listed_ffhq,
    write_lsun,
    write_huggingface,
]


def numbers(images):
    """Return which image stands in each row."""
    known = {pixels(i).tobytes(): i for i in range(12)}
    return [known[image.tobytes()] for image in images]


@pytest.mark.parametrize("writer", WRITERS)
def test_each_layout_in_memory(tmp_path, writer):
    arguments, has_classes, has_texts, has_held_out = writer(tmp_path)
    train, held_out = open_images(resolution=SIDE, **arguments)
    assert isinstance(train, ImageSet)
    assert isinstance(held_out, ImageSet)
    together = sorted(numbers(train.images) + numbers(held_out.images))
    assert together == list(range(12 if has_held_out else 9))
    if has_held_out:
        assert sorted(numbers(held_out.images)) == [9, 10, 11]
    for part in (train, held_out):
        rows = np.array(numbers(part.images))
        assert part.labels is None or part.labels.tolist() == (rows % 3).tolist()
        assert (part.labels is None) != has_classes
        assert part.texts == (tuple(f"text {i}" for i in rows) if has_texts else None)
        assert part.num_classes == (3 if has_classes else None)


@pytest.mark.usefixtures("_small_memory")
@pytest.mark.parametrize("writer", WRITERS[1:])
def test_each_layout_read_when_needed(tmp_path, writer):
    arguments, _, has_texts, has_held_out = writer(tmp_path)
    train, held_out = open_images(resolution=SIDE, crop="random", flip=True, **arguments)
    assert isinstance(train, StoredImages)
    assert len(held_out) == (3 if has_held_out else 2)  # a fifth of 9, rounded up
    rows = numbers([train.read(row) for row in range(len(train))])
    kept = range(9) if has_held_out else sorted({*range(9)} - {*numbers(held_out.images)})
    assert sorted(rows) == list(kept)
    assert train.labels is None or train.labels.tolist() == [i % 3 for i in rows]
    if has_texts:
        assert list(train.texts) == [f"text {i}" for i in rows]
    memory = train.to_memory()
    assert numbers(memory.images) == rows
    options = {"batch_size": 4, "steps": 5, "seed": 1}
    for batch in batches(train, **options):
        for row, image in zip(batch.rows, batch.images.numpy(), strict=True):
            plain = pixels(rows[row])
            assert np.array_equal(image, plain) or np.array_equal(image, plain[:, ::-1])
    again, _ = open_images(resolution=SIDE, crop="random", flip=True, **arguments)
    assert again.fingerprint() == train.fingerprint()
    assert train.subset(np.arange(3)).fingerprint() != train.fingerprint()


@pytest.mark.usefixtures("_small_memory")
@pytest.mark.parametrize("writer", [write_folder, write_shards, write_lsun, write_huggingface])
def test_workers_read_every_kind_of_source(tmp_path, writer):
    arguments, *_ = writer(tmp_path)
    train, _ = open_images(resolution=4, crop="zoom", flip=True, **arguments)
    options = {"batch_size": 4, "steps": 2, "seed": 1}
    pairs = zip(batches(train, **options), batches(train, workers=1, **options), strict=True)
    for alone, ahead in pairs:
        assert np.array_equal(alone.images, ahead.images)
        assert np.array_equal(alone.rows, ahead.rows)
