"""The command's frame: global options, exit codes, and errors as one line."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

EXIT_ALARM = 1
EXIT_ERROR = 2
EXIT_INTERRUPTED = 130  # what shells report for a program that Ctrl-C ended


class Commands(TyperGroup):
    """A group of commands whose errors are one line on stderr and exit code 2; `--debug` shows the traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort):
            raise
        except typer.TyperException as error:
            typer.echo(f"error: {error.format_message()} ({help_hint(error)})", err=True)
            raise typer.Exit(EXIT_ERROR) from error
        except Exception as error:
            if ctx.params.get("debug"):
                raise
            typer.echo(f"error: {one_line(error)}", err=True)
            raise typer.Exit(EXIT_ERROR) from error


def help_hint(error: typer.TyperException) -> str:
    """Return which command explains the usage that an error is about."""
    context = getattr(error, "ctx", None)
    return f"see {context.command_path if context else 'defended'} --help"


def one_line(error: Exception) -> str:
    """Return an error's message in one line, with its type where the message alone may not tell what happened."""
    details = getattr(error, "errors", None)
    if callable(details):  # pydantic's, which its text spreads over many lines
        message = "; ".join(
            f"`{'.'.join(map(str, item['loc']))}`: {item['msg']}. Received: {item['input']!r}" for item in details()
        )
    elif isinstance(error, OSError) and error.strerror:
        message = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    else:
        message = " ".join(str(error).split())
    if not message or not isinstance(error, ValueError | OSError | ImportError | RuntimeError):
        message = f"{type(error).__name__}: {message} (defended --debug ... shows where)"
    return message


def show_version(wanted: bool) -> None:
    """Print the version and leave."""
    if wanted:
        from importlib.metadata import version

        typer.echo(f"defended {version('keras-defended')}")
        raise typer.Exit


app = typer.Typer(
    cls=Commands,
    rich_markup_mode="markdown",
    no_args_is_help=True,
    add_completion=False,
    epilog="Exit codes: 0 done, every limit holds; 1 an audit found a limit broken, a monitor a raised rate; "
    "2 an error, reported in one line.",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """From a Keras classifier to an audited deployment that rejects what it cannot prove.

    Start with **defended demo**: it trains, attacks, exports and audits a small model offline, in about three minutes.

    The whole path, command by command:

    ```
    defended train --data digits --epsilon 0.25 --out runs/digits
    defended attack runs/digits/model.keras --data digits
    defended export runs/digits/model.keras --to models --name digits
    defended audit models/digits/1 --data digits --model runs/digits/model.keras
    ```
    """
