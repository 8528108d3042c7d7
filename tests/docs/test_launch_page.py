"""Every command of "Launch a training" runs as it stands, cut to a few steps."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHORT = (
    "data.resolution=8 autoencoder.channels=4 autoencoder.multipliers=[1,2] "
    "autoencoder.latent_channels=8 autoencoder.code_dim=4 quantizer.depth=2 "
    "quantizer.codebook_size=8 transformer.dim=16 transformer.num_heads=2 "
    "transformer.body_layers=1 stage1.steps=3 stage1.batch_size=8 stage2.steps=3 "
    "stage2.batch_size=8 sampling.batch_size=40 stage1.warmup_steps=0 stage2.warmup_steps=0"
)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_command_of_the_page_trains(tmp_path):
    page = (ROOT / "docs" / "how-to" / "launch.md").read_text(encoding="utf-8")
    skip = r"(?<!<!-- not run: needs two machines -->\n\n)"
    blocks = re.findall(rf"{skip}```bash\n(.*?)```", page, re.DOTALL)
    commands = [line for block in blocks for line in block.splitlines()]
    assert len(commands) == 8
    programs = Path(sys.executable).parent
    for command in commands:
        words = shlex.split(command.replace("--nproc_per_node 8", "--nproc_per_node 2"))
        words = [str(programs / w) if w in ("rqtool", "torchrun") else w for w in words]
        extra = [word for setting in SHORT.split() for word in ("--set", setting)]
        place = words.index("digits") + 1
        # What the page sets comes last and counts, but for the number of steps.
        words = [*words[:place], *extra, *words[place:], "--set", "stage2.steps=3"]
        result = subprocess.run(
            words, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
        )
        assert result.returncode == 0, result.stderr[-3000:]
        assert result.stdout.startswith("Trained: runs/"), result.stdout
        assert ("by 2 processes" in result.stdout) == ("torchrun" in command)
    runs = {path.name for path in (tmp_path / "runs").iterdir()}
    assert runs == {
        "digits",
        "longer",
        "eight",
        "two",
        "divided",
        "from-digits",
        "watched",
        "queued",
    }
    assert list((tmp_path / "runs" / "watched" / "tensorboard").rglob("events*"))
