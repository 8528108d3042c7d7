"""The command `rqtool`: finds command groups, and turns errors into one line and an exit code.

Importing this module loads neither torch nor faiss; commands import what they need when they run.
"""

import os
import signal
import sys
import traceback
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from rqtoolkit import __version__
from rqtoolkit.cli import quantize, semantic_ids
from rqtoolkit.errors import MissingDependencyError, RQToolkitError

__all__ = ["app", "main"]

_ENTRY_POINTS = "rqtoolkit.commands"
_PHRASES = {
    "Value error, ": "",
    "Input should be a valid": "it has to be a valid",
    "Input should be": "it has to be",
    ", unable to parse string as an integer": "",
    ", unable to parse string as a number": "",
}


class _Commands(TyperGroup):
    """The core's own commands, then those of installed packages, each loaded when named."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:  # newer typers leave the words to pydantic
            for phrase, plain in _PHRASES.items():
                error.message = error.message.replace(phrase, plain)
            raise

    def list_commands(self, ctx: Any) -> list[str]:
        own = super().list_commands(ctx)
        return own + sorted(name for name in _installed() if name not in own)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        own = super().get_command(ctx, cmd_name)
        if own is not None or cmd_name not in _installed():
            return own
        return _load(_installed()[cmd_name])


app = typer.Typer(
    cls=_Commands,
    help="Residual quantization of vectors of any modality, and transformers over the codes.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(quantize.app, name="quantize")
app.add_typer(semantic_ids.app, name="semantic-ids")


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"rqtool {__version__}")
        raise typer.Exit


# main() takes --debug out of the arguments, so that it may stand anywhere; here it is for --help.
@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    pass


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `rqtool` and return its exit code.

    Args:
        arguments: Words after the program's name; those of the process when None.

    Returns:
        0; 2 for anything the user can mend; 130 after Ctrl-C; 143 when terminated; 1 for a bug.
    """
    if arguments is None:
        arguments = sys.argv[1:]
        # Unwind as for Ctrl-C, so that temporary files go.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    debug = "--debug" in arguments
    try:
        typer.main.get_command(app).main(
            [word for word in arguments if word != "--debug"], prog_name="rqtool"
        )
    except SystemExit as leave:
        if isinstance(leave.__context__, BrokenPipeError):  # typer and rich leave with 1
            return _reader_gone()
        if leave.code == 130:  # typer's own answer to Ctrl-C, which says nothing
            print("Interrupted.", file=sys.stderr)
        return leave.code if isinstance(leave.code, int) else int(leave.code is not None)
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return _reader_gone()
    except (RQToolkitError, OSError) as error:
        if debug:
            traceback.print_exc()
        print(f"Error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except Exception:
        traceback.print_exc()
        print("This is a bug in rqtool: please report it with the lines above.", file=sys.stderr)
        return 1
    return 0


def _reader_gone() -> int:
    """Let nobody try to print again: whoever read has gone, as in `rqtool … | head`."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _installed() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=_ENTRY_POINTS)}


def _load(point: EntryPoint) -> Any:
    """Return the command behind an entry point: a typer app, or a function that becomes one."""
    try:
        target = point.load()
        wrapper = typer.Typer(add_completion=False)
        if isinstance(target, typer.Typer):
            wrapper.add_typer(target, name=point.name)
            return typer.main.get_group(wrapper).commands[point.name]
        wrapper.command(point.name)(target)
        return typer.main.get_command(wrapper)
    except Exception as error:
        return _broken(point, error)


def _broken(point: EntryPoint, error: Exception) -> Any:
    """Return a command that says why it is not there: another's fault must not stop rqtool."""
    reason = f"{point.value} cannot be loaded: {type(error).__name__}: {error}"
    wrapper = typer.Typer(add_completion=False)

    @wrapper.command(
        point.name,
        help=f"Not available: {reason}",
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    )
    def _complain() -> None:
        raise MissingDependencyError(
            f"rqtool {point.name}: {reason}. Repair or uninstall the package that offers it."
        ) from error

    return typer.main.get_command(wrapper)
