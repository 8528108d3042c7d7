"""Commands `rqtool semantic-ids ...`: parse, call, show. Load torch only to work."""

import typer

from rqtoolkit.cli.semantic_ids.exchange import export_command, import_command
from rqtoolkit.cli.semantic_ids.growth import add, refit, remove
from rqtoolkit.cli.semantic_ids.lookup import lookup
from rqtoolkit.cli.semantic_ids.making import assign, fit
from rqtoolkit.cli.semantic_ids.recommend import evaluate, recommend, train
from rqtoolkit.cli.semantic_ids.report import report

__all__ = ["app"]

app = typer.Typer(
    help="Semantic IDs of catalogues, and recommenders that generate them.", no_args_is_help=True
)

for command in (fit, assign, add, remove, refit, report, lookup, train, recommend, evaluate):
    app.command()(command)
app.command("export")(export_command)
app.command("import")(import_command)
