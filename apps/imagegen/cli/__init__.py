"""Commands `rqtool imagegen ...` and `rqtool demo`: parse, call, show. Load torch only to work."""

import typer

from imagegen.cli.codec import compress, decompress
from imagegen.cli.demo import demo
from imagegen.cli.evaluate import evaluate, reconstruct
from imagegen.cli.release import export_command, import_command
from imagegen.cli.sample import sample
from imagegen.cli.tokenizer import tokenizer
from imagegen.cli.train import train

__all__ = ["app", "demo"]

app = typer.Typer(
    help="Generate images: train an RQ-VAE and an RQ-Transformer, sample, evaluate.",
    no_args_is_help=True,
)

for command in (train, sample, evaluate, reconstruct, compress, decompress, tokenizer):
    app.command()(command)
app.command("import")(import_command)
app.command("export")(export_command)
