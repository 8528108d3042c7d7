"""Where the script `rqtool` starts: Ctrl-C is one line from here on, imports included."""

import sys

__all__ = ["main"]


def main() -> int:
    """Import and run `rqtool`; the exit codes are those of `rqtoolkit.cli.app.main`."""
    try:
        from rqtoolkit.cli.app import main as run

        return run()
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 130
