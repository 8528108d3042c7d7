"""The reference names every public module, every command and every option."""

import re
from pathlib import Path

import pytest
import typer

from rqtoolkit.cli.app import app

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = ROOT / "docs" / "reference"
INTERNAL = {
    # Argument checks, inner loops, file layouts, drawing and commands, with no readers outside.
    "rqtoolkit.functional.kernels.compiled",
    "rqtoolkit.functional.kernels.cpu_beam",
    "rqtoolkit.functional.kernels.lanes",
    "rqtoolkit.functional.kernels.selection",
    "rqtoolkit.functional.kernels.cpu_refinement",
    "rqtoolkit.functional.kernels.neighbours",
    "rqtoolkit.functional.kernels.torch_beam",
    "rqtoolkit.functional.kernels.torch_refinement",
    "rqtoolkit.functional.kernels.triton_beam",
    "rqtoolkit.transformer.checks",
    "rqtoolkit.quantizers.checks",
    "rqtoolkit.quantizers.precision",
    "rqtoolkit.io.page",
    "rqtoolkit.io.parquet",
    "rqtoolkit.semantic_ids.code_checks",
    "rqtoolkit.semantic_ids.decoding.compiled_walk",
    "rqtoolkit.semantic_ids.decoding.tensor_walk",
    "rqtoolkit.semantic_ids.manifest",
    "rqtoolkit.semantic_ids.recommend.catalogue",
    "rqtoolkit.semantic_ids.recommend.lists",
    "rqtoolkit.semantic_ids.report_page",
    "rqtoolkit.semantic_ids.report_plots",
    "rqtoolkit.semantic_ids.report_tables",
    "imagegen.cli",
    "imagegen.pictures",
    "imagegen.report.page",
    "imagegen.report.sections",
    "imagegen.report.scores",
}


def _modules() -> list[str]:
    names = []
    for root in (ROOT, ROOT / "apps"):
        for package in ("rqtoolkit", "imagegen"):
            for path in sorted((root / package).rglob("*.py")):
                parts = path.relative_to(root).with_suffix("").parts
                if parts[-1] != "__init__" and "cli" not in parts[:-1]:
                    names.append(".".join(parts))
    return names


@pytest.mark.parametrize("module", [name for name in _modules() if name not in INTERNAL])
def test_module_is_in_the_reference(module):
    pages = "\n".join(page.read_text(encoding="utf-8") for page in REFERENCE.glob("*.md"))
    assert re.search(rf"^::: {re.escape(module)}$", pages, re.MULTILINE), f"add ::: {module}"


def _commands(command, path=("rqtool",)):
    names = command.list_commands(None) if hasattr(command, "list_commands") else []
    if not names:
        yield " ".join(path), command
    for name in names:
        yield from _commands(command.get_command(None, name), (*path, name))


COMMANDS = dict(_commands(typer.main.get_command(app)))


@pytest.mark.parametrize("name", COMMANDS)
def test_command_and_its_options_are_documented(name):
    page = (REFERENCE / "command-line.md").read_text(encoding="utf-8")
    assert f"\n## {name}\n" in page
    section = page.split(f"\n## {name}\n")[1].split("\n## ")[0]
    documented = set(re.findall(r"--[a-z][a-z-]*", section.split("| option |")[1]))
    options = [p for p in COMMANDS[name].params if p.param_type_name == "option"]
    accepted = {flag for option in options for flag in (*option.opts, *option.secondary_opts)}
    assert documented == accepted - {"--help", "--install-completion", "--show-completion"}
