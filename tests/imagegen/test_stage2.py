"""Stage 2 as a run: cached as on-line, text, label dropout, half precision, several processes."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_runs import TINY_MODELS

from imagegen.autoencoder import RQVAE
from imagegen.checks import check_settings, check_training
from imagegen.config import load_config
from imagegen.data import ImageSet, to_float
from imagegen.jobs import train_run
from imagegen.runs import Run
from imagegen.stage1 import build_autoencoder
from imagegen.stage2 import build_transformer, held_out_text_bits, train_stage2
from imagegen.text import load_run_tokenizer, load_tokenizer, train_tokenizer
from imagegen.training import step_seed
from rqtoolkit.errors import ConfigError
from rqtoolkit.transformer import RQTransformer

SMALL = {
    **TINY_MODELS,
    "transformer.dropout": 0.0,
    "stage2.steps": 6,
    "stage2.batch_size": 16,
    "stage2.warmup_steps": 2,
    "stage2.log_every": 1,
    "stage2.checkpoint_every": 6,
    "stage2.sample_every": 6,
    "sampling.batch_size": 40,
}
HARD = {"stage2.soft_targets": False, "stage2.stochastic_codes": False}
PLACES = ("northwest", "northeast", "southwest", "southeast")


def small(**more):
    return load_config("digits", overrides={**SMALL, **more})


def quarters(number=30, *, texts=False):
    """Images with one bright quarter, which is their class, or what their text says."""
    rng = np.random.default_rng(0)
    labels = np.arange(number) % 4
    images = rng.integers(0, 60, (number, 8, 8, 1), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        down, right = divmod(int(label), 2)
        image[4 * down : 4 * down + 4, 4 * right : 4 * right + 4] += 180
    said = tuple(f"a light at {PLACES[label]}" for label in labels) if texts else None
    return ImageSet(images, labels.astype(np.int64), PLACES, said)


def unlabelled(images):
    return dataclasses.replace(images, labels=None, class_names=None)


def run_in(folder, config, train):
    """Train stage 2 on an RQ-VAE whose convolutions are random, but not its codebook."""
    run = Run.create(folder, config)
    torch.manual_seed(0)
    autoencoder = build_autoencoder(config, image_channels=1).eval()
    with torch.no_grad():
        latents = autoencoder.latents(to_float(train.images))
    autoencoder.quantizer.fit(latents.flatten(0, -2), beam=1)
    autoencoder.save(run.autoencoder_path)
    return run, train_stage2(run, RQVAE.load(run.autoencoder_path), train, train)


def metrics(run):
    return [{k: v for k, v in m.items() if k != "seconds"} for m in run.metrics()]


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_a_cached_run_with_hard_codes_is_the_on_line_run(tmp_path):
    more = {**HARD, "stage2.shift": 0}
    online, one = run_in(tmp_path / "online", small(**more), quarters())
    cached, other = run_in(tmp_path / "cached", small(**more, **{"stage2.cache": 1}), quarters())
    assert metrics(online) == metrics(cached)
    assert torch.equal(weights(one), weights(other))
    assert (cached.cache / "cache.json").exists()
    assert not online.cache.exists()


def test_a_cached_run_with_soft_targets_is_the_on_line_run_to_rounding(tmp_path):
    more = {"stage2.stochastic_codes": False, "stage2.tau": 0.5, "stage2.relative_tau": False}
    more["stage2.shift"] = 0
    online, one = run_in(tmp_path / "online", small(**more), quarters())
    cached, other = run_in(tmp_path / "cached", small(**more, **{"stage2.cache": 1}), quarters())
    for a, b in zip(metrics(online), metrics(cached), strict=True):
        assert a.keys() == b.keys()
        assert a.get("loss", 0.0) == pytest.approx(b.get("loss", 0.0), rel=1e-3)
    torch.testing.assert_close(weights(one), weights(other), rtol=0, atol=1e-3)
    assert not torch.equal(weights(one), weights(other))  # float16 is seen


def test_copies_that_would_be_equal_are_refused():
    config = small(**{"stage2.cache": 3, "stage2.shift": 0})
    with pytest.raises(ConfigError, match=r"stage2\.cache=3 keeps copies that nothing would tell"):
        check_settings(config)
    check_settings(small(**{"stage2.cache": 3, "stage2.shift": 1}))


@pytest.mark.parametrize("cache", [0, 2])
def test_passes_of_a_step_add_up_to_the_whole(tmp_path, cache):
    more = {**HARD, "stage2.shift": 1, "stage2.cache": cache}
    whole = run_in(tmp_path / "whole", small(**more), quarters())[1]
    parts = run_in(tmp_path / "parts", small(**more, **{"stage2.accumulate": 4}), quarters())[1]
    torch.testing.assert_close(weights(whole), weights(parts), rtol=0, atol=2e-5)


def test_recomputing_activations_changes_nothing(tmp_path):
    plain = run_in(tmp_path / "plain", small(), quarters())[1]
    saving = run_in(tmp_path / "saving", small(**{"stage2.checkpointing": True}), quarters())[1]
    assert torch.equal(weights(plain), weights(saving))


def test_half_precision_trains_to_nearly_the_same(tmp_path):
    full = run_in(tmp_path / "full", small(**HARD), quarters())[0]
    half = run_in(tmp_path / "half", small(**HARD, dtype="bfloat16"), quarters())[0]
    one, other = (
        np.array([m["loss"] for m in metrics(run) if "loss" in m]) for run in (full, half)
    )
    assert np.abs(one - other).max() < 0.02 * one.max()
    assert not np.array_equal(one, other)


def test_unconditional_images_train_and_count_bits_per_image(tmp_path):
    config = small(**{"stage2.shift": 0})
    run, model = run_in(tmp_path / "run", config, unlabelled(quarters()))
    assert model.num_classes is None
    last = metrics(run)[-1]
    per_code = last["held_out_bits_per_code"]
    assert len(per_code) == 2
    assert last["held_out_bits_per_image"] == pytest.approx(16 * sum(per_code))
    assert "held_out_bits_per_text_token" not in last


def test_label_dropout_trains_what_guidance_needs(tmp_path):
    more = {"transformer.label_dropout": 0.3, "sampling.cfg_scale": 2.0, "stage2.shift": 0}
    run, model = run_in(tmp_path / "run", small(**more), quarters())
    torch.manual_seed(step_seed(0, 2))
    start = build_transformer(run.config, RQVAE.load(run.autoencoder_path), 4)
    change = (model.condition.weight - start.condition.weight).abs().amax(1)
    assert model.condition.weight.shape[0] == 5
    assert (change > 1e-4).all()  # the null class with the others
    assert (run.samples / "samples-0000006.png").exists()


@pytest.fixture
def text_run(tmp_path):
    """A run on captions, long enough to learn where the light is."""
    train = quarters(64, texts=True)
    train_tokenizer(train.texts, vocabulary=300, length=6).save(tmp_path / "tokenizer.json")
    more = {
        "data.tokenizer": str(tmp_path / "tokenizer.json"),
        "stage2.shift": 0,
        "stage2.steps": 120,
        "stage2.sample_every": 120,
        "stage2.checkpoint_every": 120,
        "stage2.learning_rate": 1e-2,
        "stage2.cache": 1,
        "transformer.label_dropout": 0.1,
        "sampling.cfg_scale": 1.5,
    }
    config = small(**more)
    tokenizer = load_tokenizer(tmp_path / "tokenizer.json")
    check_training(config, unlabelled(train), unlabelled(train), tokenizer=tokenizer)
    return run_in(tmp_path / "run", config, unlabelled(train))


def test_a_text_tells_the_transformer_what_to_draw(text_run):
    run, model = text_run
    autoencoder = RQVAE.load(run.autoencoder_path)
    images = quarters(64, texts=True)
    tokens = load_run_tokenizer(run).encode(images.texts)
    assert tokens.shape == (64, model.text_length) == (64, 6)
    with torch.no_grad():
        codes = autoencoder.encode(to_float(images.images))
        right, wrong = (
            float(model.losses(codes, cond=cond).mean()) for cond in (tokens, tokens.roll(1, 0))
        )
    assert right < 0.8 * wrong
    last = metrics(run)[-1]
    # Four texts that differ in one word, and label dropout: two bits a text of five predictions.
    assert last["held_out_bits_per_text_token"] < 0.7
    assert held_out_text_bits(model, codes, tokens, batch_size=10) == pytest.approx(
        held_out_text_bits(model, codes, tokens), rel=1e-4
    )
    assert RQTransformer.load(run.transformer_path).text_length == 6


def test_a_tokenizer_needs_texts_and_no_shift(tmp_path):
    train = quarters(texts=True)
    tokenizer = train_tokenizer(train.texts, vocabulary=300, length=6)
    named = {"data.tokenizer": str(tmp_path / "tokenizer.json")}
    shifted, still = (small(**named, **{"stage2.shift": reach}) for reach in (1, 0))
    with pytest.raises(ConfigError, match=r"stage2\.shift=1 cannot be told beside a text"):
        check_training(shifted, train, train, tokenizer=tokenizer)
    with pytest.raises(ConfigError, match="needs images with texts"):
        check_training(still, quarters(), quarters(), tokenizer=tokenizer)


TWO = """
import sys
from imagegen.config import load_config
from imagegen.jobs import train_run
import torch.distributed as dist
from imagegen.distributed import join

with join() as ranks:
    assert ranks.size == 2, ranks
    train_run(load_config(sys.argv[1]), sys.argv[2], stages=(2,), resume=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("cache", [0, 2])
def test_two_processes_train_what_one_does(tmp_path, cache):
    more = {**HARD, "stage2.shift": 1, "stage2.cache": cache, "stage1.steps": 2}
    more |= {"stage1.sample_every": 2, "stage1.checkpoint_every": 2, "stage2.weight_average": 0.0}
    config = small(**more)
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        train_run(config, folder, stages=(1,))
    train_run(config, one, stages=(2,), resume=True)
    script = tmp_path / "two.py"
    script.write_text(TWO)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*command, script, two / "config.yaml", two], capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    models = [RQTransformer.load(Run.open(folder).transformer_path) for folder in (one, two)]
    torch.testing.assert_close(weights(models[0]), weights(models[1]), rtol=0, atol=2e-5)
    caches = [{p.name: p.read_bytes() for p in Path(f, "cache").glob("*")} for f in (one, two)]
    assert caches[0] == caches[1]
    assert len(caches[0]) == (1 + cache if cache else 0)
