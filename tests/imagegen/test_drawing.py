"""Drawing in parts: the same samples whoever draws them, and however often the job is killed."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from imagegen import drawing
from imagegen.distributed import Ranks
from imagegen.drawing import draw_in_folder, draw_in_memory
from imagegen.evaluate import Classifier
from imagegen.jobs import load_models
from imagegen.sample_jobs import draw_from_run, plan_drawing, sample_to_folder
from imagegen.training import step_seed
from rqtoolkit.errors import ArtifactError, ConfigError

NUMBER = 23


@pytest.fixture(scope="module")
def run(untrained_run, tmp_path_factory):
    return untrained_run(tmp_path_factory.mktemp("drawing") / "run")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """Weights of a classifier of three classes that no image was ever shown to."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("classifier") / "classifier.safetensors"
    Classifier(channels=1, resolution=8, num_classes=3).eval().save(path)
    return path


def planned(run, **asked):
    return plan_drawing(run, NUMBER, seed=3, batch_size=5, **asked)


def same(one, two):
    for name in ("images", "codes", "labels"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))


def test_a_folder_gives_what_memory_gives(run, tmp_path):
    expected = draw_in_memory(planned(run))
    found, statistics = draw_in_folder(planned(run), tmp_path / "parts")
    same(found, expected)
    assert statistics == {}
    assert expected.labels.tolist() == sorted(i % 3 for i in range(NUMBER))


def test_parts_are_a_plain_loop_over_batches(run):
    autoencoder, transformer = load_models(run)
    plan = planned(run)
    found = draw_in_memory(plan)
    codes = []
    for part, start in enumerate(range(0, NUMBER, 5)):
        cond = torch.from_numpy(found.labels[start : start + 5])
        seed = step_seed(plan.sampler.seed, part)
        generator = torch.Generator().manual_seed(seed)
        settings = {"temperature": 0.8, "top_p": 0.95}  # of the configuration
        codes.append(
            transformer.generate(len(cond), cond=cond, generator=generator, **settings).numpy()
        )
    np.testing.assert_array_equal(found.codes, np.concatenate(codes))
    decoded = autoencoder.decode(torch.from_numpy(found.codes.astype(np.int64)))
    levels = decoded.clamp(-1, 1).add(1).mul(127.5).round().permute(0, 2, 3, 1).numpy()
    np.testing.assert_array_equal(found.images, levels)


@pytest.mark.parametrize("kill_at", ["draw", "decode"])
@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_killed_job_goes_on_to_the_same_samples(run, tmp_path, monkeypatch, kill_at, after):
    expected = draw_in_memory(planned(run))
    folder, calls = tmp_path / "parts", []
    whole = getattr(drawing.Sampler, kill_at)

    def count(self, *args, **kwargs):
        calls.append(args)
        if len(calls) == after + 1:
            raise KeyboardInterrupt
        return whole(self, *args, **kwargs)

    monkeypatch.setattr(drawing.Sampler, kill_at, count)
    with pytest.raises(KeyboardInterrupt):
        draw_in_folder(planned(run), folder)
    calls.clear()
    after = 99
    found, _ = draw_in_folder(planned(run), folder)
    same(found, expected)


def test_what_was_drawn_is_not_drawn_again(run, tmp_path, monkeypatch):
    expected, _ = draw_in_folder(planned(run), tmp_path / "parts")
    monkeypatch.setattr(drawing.Sampler, "draw", None)
    monkeypatch.setattr(drawing.Sampler, "decode", None)
    same(draw_in_folder(planned(run), tmp_path / "parts")[0], expected)


def test_ranks_share_the_parts_and_change_nothing(run, tmp_path, monkeypatch):
    expected = draw_in_memory(planned(run))
    barrier, drawn = threading.Barrier(2, timeout=60), {}
    whole = drawing.Sampler.draw

    def count(self, number, *, part, **kwargs):
        drawn[part] = threading.current_thread().name
        return whole(self, number, part=part, **kwargs)

    monkeypatch.setattr(drawing.Sampler, "draw", count)
    monkeypatch.setattr(drawing.Ranks, "wait", lambda _: barrier.wait())
    plans = [planned(run), planned(run)]

    def work(rank):
        threading.current_thread().name = f"rank {rank}"
        return draw_in_folder(plans[rank], tmp_path / "parts", ranks=Ranks(rank, rank, 2))

    with ThreadPoolExecutor(2) as pool:
        (found, _), _ = pool.map(work, range(2))
    assert drawn == {part: f"rank {part % 2}" for part in range(5)}
    same(found, expected)


def test_an_unfinished_job_with_other_settings_is_refused(run, tmp_path):
    draw_in_folder(planned(run), tmp_path / "parts")
    for asked, name in (({"top_k": 3}, "top_k"), ({"classes": [1]}, "classes, labels_sha256")):
        with pytest.raises(ConfigError, match=f"got another {name}"):
            draw_in_folder(planned(run, **asked), tmp_path / "parts")


@pytest.mark.parametrize("writing", ["np.savez", "os.posix_fallocate"])
def test_a_full_disk_is_told_and_the_job_goes_on(run, tmp_path, monkeypatch, writing):
    def full(*_args, **_kwargs):
        raise OSError("256000 requested and 114560 written")  # numpy's own, without a number

    out, says = tmp_path / "out", "out cannot be written; got 256000 .* Make room; the same"
    with monkeypatch.context() as patch:
        patch.setattr(f"imagegen.drawing.{writing}", full, raising=False)
        with pytest.raises(ArtifactError, match=says):
            sample_to_folder(run, out, 4, seed=1)
    sample_to_folder(run, out, 4, seed=1)
    expected = draw_from_run(run, 4, seed=1).codes
    assert np.array_equal(np.load(out / "codes.npy"), expected)


def test_a_damaged_part_is_named(run, tmp_path):
    draw_in_folder(planned(run), tmp_path / "parts")
    (tmp_path / "parts" / "codes-000002.npz").write_bytes(b"PK")
    with pytest.raises(ArtifactError, match=r"codes-000002\.npz cannot be read"):
        draw_in_folder(planned(run), tmp_path / "parts")


def test_rejection_keeps_the_best_of_all_candidates(run, classifier, tmp_path):
    found, statistics = draw_in_folder(
        planned(run, accept=0.2, classifier=classifier), tmp_path / "parts"
    )
    same(found, draw_in_memory(planned(run, accept=0.2, classifier=classifier)))
    # all candidates, drawn as samples of their own
    counts = 5 * np.bincount(found.labels)
    labels = np.repeat(np.arange(3), counts)
    candidates = plan_drawing(run, len(labels), labels=labels, seed=3, batch_size=5)
    everything = draw_in_memory(candidates)
    net = Classifier.load(classifier)
    scores = net.probabilities(net.features(everything.images))[np.arange(len(labels)), labels]
    for label in range(3):
        rows = np.flatnonzero(labels == label)
        best = np.sort(rows[np.argsort(-scores[rows], kind="stable")[: counts[label] // 5]])
        np.testing.assert_array_equal(everything.images[best], found.images[found.labels == label])
        least = statistics["acceptance"]["thresholds"][str(label)]
        assert least == pytest.approx(scores[best].min())
    assert statistics["acceptance"]["drawn"] == 5 * NUMBER


def test_a_prefix_is_kept_and_the_rest_differs(run):
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 1), np.uint8)
    plan = planned(run, prefix=(image, 2))
    autoencoder = load_models(run)[0]
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None] / 127.5 - 1
    expected = autoencoder.encode(pixels.float())[0].numpy()
    found = draw_in_memory(plan).codes
    assert (found[:, :2] == expected[:2]).all()
    assert len(np.unique(found[:, 2:].reshape(NUMBER, -1), axis=0)) > 1
    for rows in (0, 4):
        with pytest.raises(ConfigError, match="Choose 1 to 3"):
            planned(run, prefix=(image, rows))


def test_unconditional_runs_and_half_precision(untrained_run, tmp_path):
    run = untrained_run(tmp_path / "run", classes=None)
    drawn = draw_from_run(run, 4, seed=1, dtype="bfloat16")
    assert drawn.labels is None
    assert drawn.images.shape == (4, 8, 8, 1)
    with pytest.raises(ConfigError, match=r"accept=0\.5 needs a model with classes"):
        draw_from_run(run, 4, accept=0.5)
    with pytest.raises(ConfigError, match="needs a model of text"):
        draw_from_run(run, 4, texts=["a dog"])
    with pytest.raises(ConfigError, match="dtype=float16 is not known"):
        draw_from_run(run, 4, dtype="float16")


def test_texts_are_told_as_the_runs_own_tokenizer_has_them(untrained_run, tmp_path):
    pytest.importorskip("tokenizers")
    from imagegen.text import train_tokenizer

    tokenizer = train_tokenizer(["a red bus", "two dogs"], vocabulary=260, length=6)
    run = untrained_run(
        tmp_path / "run",
        classes=None,
        tokenizer=tokenizer,
        **{"transformer.text_length": 6, "data.tokenizer": str(tmp_path / "t.json")},
    )
    tokenizer.save(run.path / "tokenizer.json")
    found = draw_from_run(run, 5, seed=1, texts=["two dogs", "a red bus"])
    assert found.captions == ("two dogs",) * 3 + ("a red bus",) * 2
    tokens = tokenizer.encode(["two dogs"]).expand(3, -1)
    plan = plan_drawing(run, 5, seed=1, texts=["two dogs", "a red bus"])
    assert np.array_equal(plan.text[:3], tokens.numpy())
    other = draw_from_run(run, 5, seed=1, texts=["two dogs", "two dogs"])
    assert not np.array_equal(other.codes[3:], found.codes[3:])
    with pytest.raises(ConfigError, match="needs a text; got none"):
        draw_from_run(run, 5)
