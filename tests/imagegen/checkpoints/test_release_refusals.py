"""What may be wrong with a release: each a sentence that names the file and the thing."""

import os
import pickle

import pytest
import torch
import yaml
from reference_release import STAGE1, STAGE2, changed, stage1_state, stage2_state, write_release

from imagegen import import_release
from imagegen.checkpoints.official_config import OfficialConfig
from imagegen.checkpoints.release import Release
from imagegen.checkpoints.stage1 import autoencoder_arguments
from rqtoolkit.cli.app import main
from rqtoolkit.errors import ArtifactError, ConfigError


class _Runs:
    """Pickled, an instruction to make a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture
def release(tmp_path):
    write_release(tmp_path / "release", STAGE1, STAGE2)
    return tmp_path / "release"


def _refused(capsys, release, tmp_path):
    """Import on the command line; return its one line."""
    assert main(["imagegen", "import", str(release), "--out", str(tmp_path / "run")]) == 2
    assert not (tmp_path / "run").exists()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("Error: import: ")
    return line


@pytest.mark.parametrize("protocol", ["zip", 2, 4])
def test_code_in_a_checkpoint_is_refused_and_not_run(release, tmp_path, capsys, protocol):
    content = {"state_dict": stage2_state(STAGE2), "extra": _Runs(tmp_path / "ran")}
    path = release / "stage2" / "model.pt"
    if protocol == "zip":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content, protocol))
    line = _refused(capsys, release, tmp_path)
    assert "stage2/model.pt" in line
    assert "Nothing in it was run" in line
    assert not (tmp_path / "ran").exists()


def test_code_in_a_configuration_is_refused_and_not_run(release, tmp_path, capsys):
    path = release / "stage1" / "config.yaml"
    path.write_text(f"arch: !!python/object/apply:os.mkdir ['{tmp_path / 'ran'}']\n")
    assert "not plain YAML" in _refused(capsys, release, tmp_path)
    assert not (tmp_path / "ran").exists()


def test_configurations_dumped_from_an_easydict_are_read_as_data(release):
    """What yaml.dump makes of one: every section twice, as items and as attributes."""

    def dumped(value, indent):
        if not isinstance(value, dict):
            return f" {value!r}".lower() if isinstance(value, bool) else f" {value!r}"
        pad = "\n" + "  " * indent
        items = "".join(f"{pad}  {key}:{dumped(v, indent + 2)}" for key, v in value.items())
        return f" !!python/object/new:easydict.EasyDict{pad}dictitems:{items}{pad}state: {{}}"

    text = dumped(STAGE1, 0).replace("[4, 4, 4]", "!!python/tuple [4, 4, 4]")
    (release / "stage1/config.yaml").write_text(text.lstrip())
    assert Release.open(release).autoencoder == autoencoder_arguments(OfficialConfig(STAGE1, ""))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_truncated_checkpoint(release, tmp_path, capsys, share):
    path = release / "stage1" / "model.pt"
    kept = int(share * path.stat().st_size)
    path.write_bytes(path.read_bytes()[:kept])
    says = f"model.pt is cut off or damaged; got {kept:,} bytes without the end of the archive"
    assert (says if kept else "no readable checkpoint") in _refused(capsys, release, tmp_path)


def test_checkpoint_damaged_within(release, tmp_path, capsys):
    path = release / "stage1" / "model.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : -2000] = bytes(len(content) - len(content) // 2 - 2000)
    path.write_bytes(content)
    assert "stage1/model.pt" in _refused(capsys, release, tmp_path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"model": {}}, "has no state_dict; got model"),
        ([1, 2], "has no state_dict; got no dictionary"),
        ({"state_dict": {}}, "has no state_dict"),
        ({"state_dict": {"encoder.conv_in.weight": 3}}, "encoder.conv_in.weight must be a dense"),
    ],
)
def test_checkpoints_of_other_content(release, content, says):
    torch.save(content, release / "stage1" / "model.pt")
    with pytest.raises(ArtifactError, match=says):
        import_release(release)


def test_tensors_missing_left_over_and_misshaped_are_named(release, tmp_path, capsys):
    state = stage1_state(STAGE1)
    del state["encoder.mid.attn_1.q.bias"]
    state["loss.logvar"] = torch.zeros(1)
    state["quantizer.codebooks.1.weight"] = torch.zeros(6, 16)
    torch.save({"state_dict": state}, release / "stage1" / "model.pt")
    line = _refused(capsys, release, tmp_path)
    assert "missing encoder.mid.attn_1.q.bias" in line
    assert "unexpected loss.logvar" in line
    assert "quantizer.codebooks.1.weight of shape (6, 16) in place of (7, 16)" in line


def test_unequal_copies_of_a_shared_codebook(release):
    state = stage1_state(STAGE1)
    state["quantizer.codebooks.2.weight"] = state["quantizer.codebooks.2.weight"] + 1
    torch.save({"state_dict": state}, release / "stage1" / "model.pt")
    with pytest.raises(ArtifactError, match=r"codebooks\.2\.weight differs from .*codebooks\.0"):
        import_release(release)


def test_prefix_of_a_wrapped_model_is_taken_off_where_all_tensors_have_it(release):
    state = stage1_state(STAGE1)
    wrapped = {f"module.{name}": tensor for name, tensor in state.items()}
    torch.save({"state_dict": wrapped}, release / "stage1" / "model.pt")
    rqvae, _ = import_release(release)
    assert torch.equal(rqvae.quant_conv.weight, state["quant_conv.weight"])
    wrapped["quant_conv.weight"] = wrapped.pop("module.quant_conv.weight")
    torch.save({"state_dict": wrapped}, release / "stage1" / "model.pt")
    with pytest.raises(ArtifactError, match="unexpected module"):
        import_release(release)


def _rewrite(release, stage, **changes):
    config = changed({"stage1": STAGE1, "stage2": STAGE2}[stage], **changes)
    (release / stage / "config.yaml").write_text(yaml.safe_dump(config))


@pytest.mark.parametrize(
    ("stage", "changes", "says"),
    [
        ("stage1", {"arch__ddconfig__ch": None}, "arch.ddconfig.ch is missing"),
        ("stage1", {"arch__hparams__code_shape": None}, "code_shape is missing"),
        ("stage1", {"arch__ddconfig__ch": "32"}, "arch.ddconfig.ch='32' must be an integer"),
        ("stage1", {"arch__ddconfig__ch": True}, "arch.ddconfig.ch=True must be an integer"),
        ("stage1", {"arch__ddconfig__ch": 10**12}, "must be an integer from 1"),
        ("stage1", {"arch__ddconfig__ch_mult": 2}, "ch_mult=2 must be a list"),
        ("stage1", {"arch__ddconfig__ch": 48}, "must divide by 32"),
        ("stage1", {"arch__hparams__n_embed": [6, 6]}, "n_embed=.* must hold 3"),
        ("stage1", {"arch__hparams__n_embed": [6, 5, 6]}, "must be one integer where shared"),
        ("stage1", {"arch__hparams__latent_shape": [8, 8, 4]}, "latent_shape=.* must be"),
        ("stage1", {"arch__hparams__embed_dim": 7}, "embed_dim=7 must be the last of latent_sh"),
        ("stage1", {"arch__hparams__code_shape": [3, 3, 3]}, "code_shape=.* must be square"),
        ("stage1", {"arch__hparams__decay": "fast"}, "decay='fast' must be a number"),
        ("stage2", {"arch__embed_dim": None}, "arch.embed_dim is missing"),
        ("stage2", {"arch__block_size": [4, 3]}, "block_size=.* must hold 3"),
        ("stage2", {"arch__block_size": [4, 4, 3]}, r"block_size=\[4, 4\] does not fit stage 1"),
        ("stage2", {"arch__vocab_size": 7}, "vocab_size=7 does not fit stage 1; got 6"),
        ("stage2", {"arch__input_embed_dim": 4}, "input_embed_dim=4 does not fit stage 1"),
        ("stage2", {"arch__shared_cls_emb": "yes"}, "shared_cls_emb='yes' must be true or false"),
        ("stage2", {"sampling__top_k": [6, 5]}, "sampling.top_k=.* must be a number, or 3"),
        ("stage2", {"sampling__temp": "${warm}"}, "sampling.temp=.* must be a number"),
    ],
)
def test_damaged_configurations(release, stage, changes, says):
    _rewrite(release, stage, **changes)
    with pytest.raises(ArtifactError, match=says) as error:
        Release.open(release)
    assert f"{stage}/config.yaml" in str(error.value)


@pytest.mark.parametrize(
    ("stage", "changes", "says"),
    [
        ("stage1", {"arch__type": "vq-vae"}, "arch.type='vq-vae' has no counterpart"),
        ("stage1", {"arch__hparams__bottleneck_type": "vq"}, "bottleneck_type"),
        ("stage1", {"arch__ddconfig__double_z": None}, "double_z=True"),  # their default
        ("stage1", {"arch__ddconfig__resamp_with_conv": False}, "resamp_with_conv"),
        ("stage1", {"arch__ddconfig__out_ch": 6}, "out_ch=6"),
        ("stage1", {"arch__hparams__decay": [0.9, 0.99, 0.99]}, "decay"),
        ("stage2", {"arch__head_emb_vqvae": False}, "head_emb_vqvae"),
        ("stage2", {"arch__head__block__n_head": 4}, "head.block.n_head=4"),
        ("stage2", {"arch__body__block__gelu": "v2"}, "gelu='v2'"),
        ("stage2", {"arch__head__block__attn_bias": False}, "attn_bias"),
    ],
)
def test_architectures_without_counterpart_are_named(release, stage, changes, says):
    _rewrite(release, stage, **changes)
    with pytest.raises(ConfigError, match=says):
        Release.open(release)


def test_offsets_of_learned_embeddings_have_to_fit_the_sizes(tmp_path):
    learned = {"input_emb_vqvae": False, "head_emb_vqvae": False, "shared_tok_emb": False}
    config = changed(STAGE2, **{f"arch__{name}": value for name, value in learned.items()})
    state = stage2_state(config)
    state["tok_emb.offsets"] += 1
    write_release(tmp_path / "release", STAGE1, config, state2=state)
    with pytest.raises(ArtifactError, match=r"tok_emb\.offsets=\[1, 7, 13\] must be"):
        import_release(tmp_path / "release")


def test_folders_that_are_no_release(tmp_path):
    with pytest.raises(ArtifactError, match="is no folder"):
        import_release(tmp_path / "nowhere")
    with pytest.raises(ArtifactError, match="is no release"):
        import_release(tmp_path)
    write_release(tmp_path / "whole", STAGE1, STAGE2)
    (tmp_path / "whole/stage2").rename(tmp_path / "alone")
    with pytest.raises(ArtifactError, match="needs its RQ-VAE"):
        import_release(tmp_path / "alone")
    (tmp_path / "whole/stage1/model.pt").unlink()
    with pytest.raises(ArtifactError, match=r"must hold model\.pt.* got none"):
        import_release(tmp_path / "whole")
    for name in ("epoch1_model.pt", "epoch2_model.pt"):
        (tmp_path / "whole/stage1" / name).write_bytes(b"")
    with pytest.raises(ArtifactError, match=r"got epoch1_model\.pt, epoch2_model\.pt"):
        import_release(tmp_path / "whole")
