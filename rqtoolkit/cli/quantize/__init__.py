"""Commands `rqtool quantize ...`: parse, call, show. Load torch only to work."""

import typer

from rqtoolkit.cli.quantize.codes import decode, encode
from rqtoolkit.cli.quantize.compress import compress, decompress
from rqtoolkit.cli.quantize.evaluate import evaluate
from rqtoolkit.cli.quantize.fit import fit
from rqtoolkit.cli.quantize.indexes import export_command, import_command
from rqtoolkit.cli.quantize.sweep import sweep

__all__ = ["app"]

app = typer.Typer(help="Quantize files of vectors.", no_args_is_help=True)

for command in (fit, encode, decode, evaluate, sweep, compress, decompress):
    app.command()(command)
app.command("export")(export_command)
app.command("import")(import_command)
