"""`--config file.toml`: a file whose keys are the command's options; flags win."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any

import typer


def read_config(ctx: typer.Context, path: Path | None) -> Path | None:
    """Make the keys of a TOML file the defaults of the command that `ctx` belongs to.

    Keys are the long options without their dashes; `_` and `-` are the same (`batch_size`, `batch-size`).

    Raises:
        typer.BadParameter: the file cannot be read, is not TOML, or holds a key that the command does not know.
    """
    if path is None:
        return None
    try:
        settings = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise typer.BadParameter(f"{path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"{path} is not TOML: {error}") from error
    ctx.default_map = {**(ctx.default_map or {}), **known_settings(ctx, settings, path)}
    return path


def known_settings(ctx: typer.Context, settings: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return the settings under the names of the command's parameters, or refuse the unknown ones."""
    known = sorted(str(parameter.name) for parameter in ctx.command.params if parameter.name not in ("config", "help"))
    named = {key.replace("-", "_"): value for key, value in settings.items()}
    unknown = sorted(set(named) - set(known))
    if unknown:
        raise typer.BadParameter(f"{path} has unknown keys: {', '.join(unknown)}. Known keys: {', '.join(known)}.")
    return named


Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        callback=read_config,
        is_eager=True,
        metavar="FILE.toml",
        help="Settings from a TOML file: its keys are this command's options (epsilon = 0.25). Flags win.",
    ),
]
