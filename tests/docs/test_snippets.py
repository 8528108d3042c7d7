"""Every Python, shell and YAML block of README and documentation runs, in order, page by page.

A block is left out only where the page says why, in a comment before it: <!-- not run: reason -->.
"""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from imagegen.config import load_config
from rqtoolkit.cli.app import main

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(
    r"(?P<skip><!-- not run: [^>]+ -->\s*)?^```(?P<language>python|bash|yaml)\n(?P<text>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)


def _blocks(page: Path) -> list[tuple[str, str]]:
    found = BLOCK.finditer(page.read_text(encoding="utf-8"))
    return [(match["language"], match["text"]) for match in found if not match["skip"]]


PAGES = [page for page in [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))] if _blocks(page)]


def test_pages_with_blocks_are_found():
    names = {page.name for page in PAGES}
    assert {"README.md", "quantize-embeddings.md", "model-codes.md", "data-formats.md"} <= names


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_blocks_of_a_page_run(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    np.save("vectors.npy", rng.normal(size=(600, 8)).astype(np.float32))
    names: dict[str, object] = {"__name__": "snippet"}
    for language, text in _blocks(page):
        if language == "python":
            exec(compile(text, str(page), "exec"), names)
            continue
        if language == "yaml":  # a configuration of imagegen
            Path("photos.yaml").write_text(text, encoding="utf-8")
            load_config("photos.yaml")
            continue
        for line in text.splitlines():
            program, *arguments = shlex.split(line, comments=True)
            assert program == "rqtool", f"{page.name}: only rqtool is run here; got {line}"
            assert main(arguments) == 0, f"{line}: {capsys.readouterr().err}"
