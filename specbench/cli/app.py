"""The program itself: how it fails, and its own flags."""

from __future__ import annotations

import os
import signal
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from specbench import __version__
from specbench.cli.streams import StdoutError
from specbench.errors import SpecbenchError


class Group(TyperGroup):
    """Prints specbench's own errors as one line on stderr; a traceback is a bug of ours."""

    def invoke(self, ctx: Any) -> Any:
        try:
            if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # specbench/__main__.py; from here on it is caught
                signal.signal(signal.SIGINT, signal.default_int_handler)
            return super().invoke(ctx)
        except SpecbenchError as error:
            typer.echo(f"specbench: {error.line()}", err=True)
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            typer.echo(
                "specbench: interrupted. Run the same command again: a run continues where it stopped.", err=True
            )
            raise typer.Exit(130) from None
        except StdoutError:
            raise
        except Exception as error:
            # click's own errors know their exit code; anything else is a bug of ours
            if hasattr(error, "exit_code") or isinstance(error, typer.Abort) or os.environ.get("SPECBENCH_DEBUG"):
                raise
            last = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{type(error).__name__} in {Path(last.filename).name}:{last.lineno}"
            hint = "What was finished is kept. SPECBENCH_DEBUG=1 shows the traceback; please report it."
            typer.echo(f"specbench: a bug of specbench or of a library: {place}. {hint}", err=True)
            raise typer.Exit(1) from None


app = typer.Typer(
    cls=Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    help="Should we turn speculative decoding on, on our traffic, with this draft? Measures, with intervals.",
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"specbench {__version__}")
        raise typer.Exit


@app.callback()
def top(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass
