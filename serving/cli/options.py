"""Options of a command, made from the class of settings that they set."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any, get_args, get_origin

import typer

from defended_settings.fields import Setting, settings_of

Command = Callable[..., None]


def options_from(cls: type, instead: Mapping[str, str | None] | None = None) -> Callable[[Command], Command]:
    """Return a decorator that gives a command an option for each field of a class of settings.

    The command's first parameter takes their values, by field. A field in `instead` has no such option: the command's
    own parameter of that name stands in its place, or none.
    """
    own_names = instead or {}

    def decorate(command: Command) -> Command:
        _, *own = inspect.signature(command, eval_str=True).parameters.values()
        named = {parameter.name: parameter for parameter in own}
        fields = {setting.name: setting for setting in settings_of(cls) if setting.name not in own_names}
        parameters = []
        for setting in settings_of(cls):
            if setting.name in fields:
                parameters.append(_parameter(setting))
            elif (name := own_names[setting.name]) is not None:
                parameters.append(named.pop(name))

        @functools.wraps(command)
        def with_settings(**given: Any) -> None:
            values = {name: given.pop(name) for name in fields}
            tuples = {name: tuple(values[name] or ()) for name, field in fields.items() if _is_tuple(field.type)}
            command(values | tuples, **given)

        del with_settings.__wrapped__
        with_settings.__signature__ = inspect.Signature([*parameters, *named.values()])  # type: ignore[attr-defined]
        with_settings.__annotations__ = {}
        return with_settings

    return decorate


def said(settings: Mapping[str, Any], context: typer.Context) -> dict[str, Any]:
    """Return those settings of a command that were given, as an option or in a file."""
    sources = {name: context.get_parameter_source(name) for name in settings}
    return {name: settings[name] for name, source in sources.items() if getattr(source, "name", "") != "DEFAULT"}


def option_for(cls: type, name: str) -> Any:
    """Return the type of the option for one field of a class of settings."""
    return _parameter(next(setting for setting in settings_of(cls) if setting.name == name)).annotation


def _parameter(setting: Setting) -> inspect.Parameter:
    kind, default = setting.type, setting.default
    if _is_tuple(kind):  # given once for each of its values
        kind, default = list[_plain(get_args(kind)[0])] | None, None  # type: ignore[misc]
    option = typer.Option(help=setting.text or None, min=setting.lowest, metavar=setting.placeholder)
    return inspect.Parameter(
        setting.name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default, annotation=Annotated[kind, option]
    )


def _is_tuple(kind: Any) -> bool:
    return get_origin(kind) is tuple


def _plain(kind: Any) -> Any:
    return get_args(kind)[0] if get_origin(kind) is Annotated else kind
