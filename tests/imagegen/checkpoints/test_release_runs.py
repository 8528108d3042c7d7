"""Releases as runs and runs as releases, by the commands."""

import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from reference_release import STAGE1, STAGE2, changed, stage1_state, stage2_state, write_release
from tiny_runs import TINY_MODELS

from imagegen import import_release
from imagegen.autoencoder import RQVAE
from imagegen.config import load_config
from imagegen.jobs import train_run
from imagegen.runs import Run
from imagegen.text import load_run_tokenizer
from rqtoolkit import RQTransformer
from rqtoolkit.cli.app import main

GRAY = changed(STAGE1, arch__ddconfig__in_channels=1, arch__ddconfig__out_ch=1)
DIGITS = changed(STAGE2, arch__vocab_size_cond=10)


def run_command(*arguments):
    assert main(["imagegen", *(str(argument) for argument in arguments)]) == 0


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("imported")
    write_release(folder / "tiny", GRAY, DIGITS)
    run_command("import", folder / "tiny", "--out", folder / "run")
    return folder / "tiny", folder / "run"


def test_a_release_becomes_a_run(imported):
    release, folder = imported
    run = Run.open(folder)
    assert run.config.name == "tiny"
    assert (run.config.data.source, run.config.data.path) == ("imagenet", None)
    assert (run.config.data.crop, run.config.data.flip) == ("random", True)
    assert run.config.autoencoder.fold == 2
    assert run.config.quantizer.depth == 3
    assert run.config.transformer.num_heads == 2
    assert run.config.sampling.top_k == (6, 5, 4)
    assert run.config.sampling.temperature == 0.9
    rqvae, prior = import_release(release)
    stored = RQVAE.load(run.autoencoder_path), RQTransformer.load(run.transformer_path)
    for model, other in zip((rqvae, prior), stored, strict=True):
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, other.state_dict()[name])


def test_provenance_has_the_checksums(imported):
    release, folder = imported
    provenance = json.loads((folder / "provenance.json").read_text())
    assert provenance["release"] == "tiny"
    assert provenance["weights"] == "state_dict"
    for stage in ("stage1", "stage2"):
        for name in ("model.pt", "config.yaml"):
            content = (release / stage / name).read_bytes()
            entry = provenance["files"][f"{stage}/{name}"]
            assert entry["bytes"] == len(content)
            assert entry["sha256"] == hashlib.sha256(content).hexdigest()


def test_an_imported_run_is_sampled(imported, tmp_path):
    out = tmp_path / "samples"
    run_command("sample", imported[1], "--num", "3", "--classes", "1", "--out", out, "--seed", "1")
    assert sorted(np.load(out / "labels.npy")) == [1, 1, 1]
    assert np.load(out / "codes.npy").shape == (3, 2, 2, 3)


def test_an_imported_run_reconstructs_images_of_mine(imported, tmp_path):
    (tmp_path / "mine").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "mine" / "one.png")
    run_command("reconstruct", imported[1], tmp_path / "mine", "--out", tmp_path / "out")
    assert (tmp_path / "out" / "grid.png").is_file()


def test_training_starts_from_an_imported_run(imported, tmp_path):
    changes = {"data.source": "digits", "data.crop": "center", "init_from": str(imported[1])}
    for stage in ("stage1", "stage2"):
        changes |= {f"{stage}.steps": 1, f"{stage}.batch_size": 4, f"{stage}.learning_rate": 1e-8}
    config = load_config(imported[1] / "config.yaml", overrides=changes)
    run = train_run(config, tmp_path / "run")
    for kind, path in ((RQVAE, "autoencoder_path"), (RQTransformer, "transformer_path")):
        before, after = (kind.load(getattr(r, path)) for r in (Run.open(imported[1]), run))
        parameters = dict(after.named_parameters())
        for name, parameter in before.named_parameters():
            torch.testing.assert_close(parameters[name], parameter, rtol=0, atol=1e-6)


def test_an_exported_run_is_the_release_again(imported, tmp_path):
    release, folder = imported
    run_command("export", folder, "--out", tmp_path / "back")
    for stage in ("stage1", "stage2"):
        before, after = (
            torch.load(root / stage / "model.pt", weights_only=True)["state_dict"]
            for root in (release, tmp_path / "back")
        )
        kept = [name for name in before if not name.endswith("embed_ema")]
        assert [name for name in kept if not torch.equal(before[name], after[name])] == []
    config = yaml.safe_load((tmp_path / "back/stage2/config.yaml").read_text())
    assert config["sampling"] == DIGITS["sampling"]
    assert config["dataset"]["type"] == "imagenet"


def test_sizes_per_level_are_in_the_configuration_of_the_run(tmp_path):
    sizes = {"arch__hparams__shared_codebook": False, "arch__hparams__n_embed": [6, 3, 5]}
    write_release(tmp_path / "release", changed(STAGE1, **sizes))
    run_command("import", tmp_path / "release", "--out", tmp_path / "run")
    assert Run.open(tmp_path / "run").config.quantizer.codebook_size == (6, 3, 5)


@pytest.mark.parametrize(
    ("dataset", "source", "crop", "flip"),
    [
        ({"type": "ffhq"}, "ffhq", "zoom", True),
        ({"type": "LSUN-cat"}, "lsun", "center", False),
        ({"dataset": "cc3m"}, "cc3m", "random", False),
        ({"type": "mine"}, "folder", "center", False),
    ],
)
def test_data_are_cropped_as_the_authors_did(tmp_path, dataset, source, crop, flip):
    write_release(tmp_path / "release", changed(STAGE1, dataset=dataset))
    run_command("import", tmp_path / "release", "--out", tmp_path / "run")
    data = Run.open(tmp_path / "run").config.data
    assert (data.source, data.crop, data.flip, data.resolution) == (source, crop, flip, 8)


def test_one_stage_by_itself(tmp_path):
    write_release(tmp_path / "release", STAGE1, STAGE2)
    assert import_release(tmp_path / "release/stage1")[1] is None
    assert import_release(tmp_path / "release/stage2")[1] is not None
    run_command("import", tmp_path / "release/stage1", "--out", tmp_path / "run")
    assert not Run.open(tmp_path / "run").transformer_path.exists()


def test_checkpoints_of_an_experiment(tmp_path, capsys):
    """Names of an epoch, the optimizer beside the tensors, sampling settings elsewhere."""
    state = stage1_state(STAGE1)
    write_release(tmp_path / "release", STAGE1, STAGE2, state1=state)
    folder = tmp_path / "release/stage1"
    (folder / "model.pt").unlink()
    more = {"optimizer": {"state": {}}, "scheduler": {}, "discriminator": {"x": torch.zeros(1)}}
    torch.save({"epoch": 3, "state_dict": state} | more, folder / "epoch3_model.pt")
    config = changed(STAGE2, sampling=None, arch__vocab_size=None)
    config |= {
        "dataset": {"type": "imagenet", "vocab_size": 6},
        "experiment": {"sample": {"top_k": 5, "top_p": 0.9}},
    }
    (tmp_path / "release/stage2/config.yaml").write_text(yaml.safe_dump(config))
    run_command("import", tmp_path / "release", "--out", tmp_path / "run")
    assert "ignored discriminator, optimizer, scheduler" in capsys.readouterr().err
    sampling = Run.open(tmp_path / "run").config.sampling
    assert (sampling.temperature, sampling.top_k, sampling.top_p) == (1.0, 5, 0.9)


@pytest.mark.parametrize(
    ("given", "used"), [(2.0, "1.0"), ([1.5, 0.9, 1.0], "[1.0, 0.9, 1.0]"), (0.9, None)]
)
def test_a_share_beyond_1_is_not_lowered_in_silence(tmp_path, capsys, given, used):
    write_release(tmp_path / "release", STAGE1, changed(STAGE2, sampling__top_p=given))
    run_command("import", tmp_path / "release", "--out", tmp_path / "run")
    notes = [line for line in capsys.readouterr().err.splitlines() if "top_p" in line]
    said = f"Note: sampling.top_p {given} goes beyond 1, where everything is kept: used {used}"
    assert notes == ([] if used is None else [said])
    kept = Run.open(tmp_path / "run").config.sampling.top_p
    assert str(list(kept) if isinstance(kept, tuple) else kept) == (used or "0.9")


def test_which_of_two_sets_of_weights(tmp_path, capsys):
    """As the authors sample: --ema takes the average of stage 2, and stage 1 as it was trained."""
    states = [make(c, seed) for make, c in ((stage1_state, STAGE1), (stage2_state, STAGE2))
              for seed in (0, 1)]  # fmt: skip
    write_release(tmp_path / "release", STAGE1, STAGE2)
    for stage, plain, average in (("stage1", *states[:2]), ("stage2", *states[2:])):
        content = {"state_dict": plain, "state_dict_ema": average}
        torch.save(content, tmp_path / "release" / stage / "model.pt")
    for ema, expected in ((False, states[2]), (True, states[3])):
        rqvae, prior = import_release(tmp_path / "release", ema=ema)
        assert torch.equal(prior.condition.weight, expected["cond_emb.weight"])
        assert torch.equal(rqvae.quant_conv.weight, states[0]["quant_conv.weight"])
    alone = import_release(tmp_path / "release/stage1", ema=True)[0]
    assert torch.equal(alone.quant_conv.weight, states[1]["quant_conv.weight"])
    run_command("import", tmp_path / "release", "--out", tmp_path / "run", "--ema")
    assert "took state_dict_ema, not state_dict" in capsys.readouterr().err
    assert json.loads((tmp_path / "run/provenance.json").read_text())["weights"] == "state_dict_ema"


def test_a_model_of_texts_is_told_with_the_tokenizer_given(tmp_path, capsys):
    text = changed(STAGE2, arch__vocab_size_cond=9, arch__block_size_cond=3)
    write_release(tmp_path / "release", STAGE1, text)
    run_command("import", tmp_path / "release", "--out", tmp_path / "mute")
    assert "texts need a tokenizer" in capsys.readouterr().err
    pytest.importorskip("tokenizers")
    folder = tmp_path / "words"
    folder.mkdir()
    names = ["[UNK]", "[PAD]", "a", "b", "c</w>", "ab", "abc</w>"]
    (folder / "bpe-vocab.json").write_text(json.dumps({n: i for i, n in enumerate(names)}))
    (folder / "bpe-merges.txt").write_text("a b\nab c</w>\n")
    run_command("import", tmp_path / "release", "--out", tmp_path / "run", "--tokenizer", folder)
    run = Run.open(tmp_path / "run")
    assert run.config.transformer.text_length == 3
    assert load_run_tokenizer(run).encode(["ABC"]).tolist() == [[6, 1, 1]]
    (folder / "bpe-vocab.json").write_text(
        json.dumps({n: i for i, n in enumerate([*names, *"xyz"])})
    )
    arguments = ["--out", str(tmp_path / "no"), "--tokenizer", str(folder)]
    assert main(["imagegen", "import", str(tmp_path / "release"), *arguments]) == 2
    assert "has 10 tokens; got a model of 9" in capsys.readouterr().err
    assert main(["imagegen", "import", str(tmp_path / "release/stage1"), *arguments]) == 2
    assert "has no use" in capsys.readouterr().err


def test_weights_of_half_precision_become_float32(tmp_path):
    state = {name: tensor.half() for name, tensor in stage1_state(STAGE1).items()}
    write_release(tmp_path, STAGE1, state1=state)
    rqvae, _ = import_release(tmp_path)
    assert torch.equal(rqvae.quant_conv.weight, state["quant_conv.weight"].float())


def test_an_average_that_is_not_there(tmp_path, capsys):
    write_release(tmp_path / "release", STAGE1)
    arguments = ["import", str(tmp_path / "release"), "--out", str(tmp_path / "run"), "--ema"]
    assert main(["imagegen", *arguments]) == 2
    assert "has no state_dict_ema; got epoch, state_dict" in capsys.readouterr().err


OWN = {
    **TINY_MODELS,
    "autoencoder.channels": 32,
    "autoencoder.middle": True,
    "autoencoder.norm_groups": 32,
    "transformer.label_dropout": 0.1,
    "stage1.steps": 3,
    "stage1.batch_size": 16,
    "stage2.steps": 2,
    "stage2.batch_size": 8,
}


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own") / "run"
    train_run(load_config("digits", overrides=OWN), folder)
    return folder


@torch.no_grad()
def test_a_run_of_mine_exports_and_comes_back(own, tmp_path, capsys):
    run_command("export", own, "--out", tmp_path / "official")
    notes = capsys.readouterr().err
    assert "moved images, 8 conditions of 9" in notes
    assert "null class" in notes
    run = Run.open(own)
    rqvae, prior = RQVAE.load(run.autoencoder_path), RQTransformer.load(run.transformer_path)
    again, prior_again = import_release(tmp_path / "official")
    images = torch.rand(2, 1, 8, 8) * 2 - 1
    assert torch.equal(again.encode(images), rqvae.encode(images))
    assert torch.equal(again(images).reconstruction, rqvae(images).reconstruction)
    labels, codes = torch.tensor([3, 7]), rqvae.encode(images)
    assert prior_again.num_classes == 10
    torch.testing.assert_close(prior_again(codes, labels), prior(codes, 9 * labels))
    counts = again.quantizer.state.counts
    assert torch.equal(counts, rqvae.quantizer.state.counts)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"autoencoder.middle": False}, "export: middle=False is unknown"),
        ({"autoencoder.norm_groups": 4}, "export: norm_groups=4 is unknown"),
        ({"autoencoder.channels": 16}, "export: channels=16 must divide by 32"),
        ({"autoencoder.bottleneck": "kl"}, "export: bottleneck=GaussianBottleneck is unknown"),
    ],
)
def test_runs_the_authors_code_cannot_build(tmp_path, capsys, changes, says):
    config = load_config("digits", overrides=OWN | changes | {"stage1.steps": 1})
    train_run(config, tmp_path / "run", stages=(1,))
    code = main(["imagegen", "export", str(tmp_path / "run"), "--out", str(tmp_path / "official")])
    assert code == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "official").exists()


def test_importing_the_package_loads_no_torch():
    code = "import imagegen, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
