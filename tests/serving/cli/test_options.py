"""Options made from a class of settings: what is declared there is what a command shows, takes and passes on."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pytest
import typer
from typer.testing import CliRunner

import defended_cli
from defended_cli.options import options_from
from defended_settings.fields import Count, NotNegative, Placeholder, Positive, settings_of
from defended_settings.server import ServerSettings
from defended_settings.training import TrainingSettings

COMMAND = {"train": TrainingSettings, "serve": ServerSettings}


@dataclass(frozen=True)
class Oven:
    """Settings of an oven."""

    dish: str = "bread"
    heat: Positive = 200.0
    """Degrees, at the
    middle."""
    trays: Count = 1
    rest: Annotated[NotNegative, Placeholder("MINUTES")] = 0.0
    mode: Literal["fan", "grill"] = "fan"
    seeds: tuple[Positive, ...] = ()
    door: str = "shut"
    light: bool = True


def options_of(command: str) -> dict[str, Any]:
    found = typer.main.get_command(defended_cli.app).commands[command].params
    return {parameter.name: parameter for parameter in found}


def bake(*words):
    """What a command over the oven's settings is called with, and its result."""
    seen = []
    app = typer.Typer()

    @app.command()
    @options_from(Oven, instead={"dish": "dish", "door": None})
    def command(
        settings: dict[str, Any], dish: Annotated[str, typer.Argument()], loud: Annotated[bool, typer.Option()] = False
    ) -> None:
        """Bake."""
        seen.append((settings, dish, loud))

    return CliRunner().invoke(app, [str(word) for word in words]), seen


def test_a_field_is_read_with_its_limits_and_the_line_below_it():
    fields = {setting.name: setting for setting in settings_of(Oven)}
    assert list(fields) == ["dish", "heat", "trays", "rest", "mode", "seeds", "door", "light"]
    heat, rest = fields["heat"], fields["rest"]
    assert (heat.type, heat.default, heat.above, heat.lowest, heat.text) == (
        float, 200.0, 0, None, "Degrees, at the middle.",
    )  # fmt: skip
    assert (rest.type, rest.lowest, rest.placeholder, rest.text) == (float, 0, "MINUTES", "")
    with pytest.raises(ValueError, match=r"`heat` must be above 0. Received: nan"):
        heat.check(float("nan"))
    with pytest.raises(ValueError, match=r"`rest` must be at least 0. Received: -1"):
        rest.check(-1)


def test_a_command_gets_values_by_field_and_its_own_parameters():
    result, seen = bake("cake", "--heat", 180, "--seeds", 1, "--seeds", 2, "--no-light", "--loud")
    assert result.exit_code == 0, result.output
    values = {"heat": 180.0, "trays": 1, "rest": 0.0, "mode": "fan", "seeds": (1.0, 2.0), "light": False}
    assert seen == [(values, "cake", True)]
    assert Oven(**values).heat == 180.0
    assert bake("cake")[1][0][0]["seeds"] == ()


@pytest.mark.parametrize("words", [["--trays", 0], ["--rest", -1], ["--mode", "steam"], ["--door", "open"]])
def test_limits_and_choices_are_those_declared(words):
    result, seen = bake("cake", *words)
    assert result.exit_code == 2
    assert words[0] in result.output
    assert not seen


@pytest.mark.parametrize("command", COMMAND)
def test_a_commands_options_are_the_settings_declared(command):
    options = options_of(command)
    own = {"directory", "rest_port", "grpc_port", "token", "audit_signature", "labels", "max_body", "max_body_total"}
    fields = [field for field in settings_of(COMMAND[command]) if command == "train" or field.name not in own]
    assert [name for name in options if name in {field.name for field in fields}] == [field.name for field in fields]
    for field in fields:
        option = options[field.name]
        assert (option.default or ()) == (field.default or ())
        assert (option.help or "") == field.text
        if field.placeholder:
            assert option.metavar == field.placeholder


def test_what_serve_declares_itself_has_the_settings_defaults():
    options = options_of("serve")
    assert (options["rest_port"].default, options["grpc_port"].default) == (8501, 8500)
    assert options["max_megabytes"].default * 2**20 == ServerSettings.max_body


def test_limits_of_a_server_are_checked_where_it_is_made(tmp_path):
    for name, value in {"max_batch": 0, "timeout": 0.0, "max_latency": -1.0, "max_body_total": float("nan")}.items():
        with pytest.raises(ValueError, match=f"`{name}` must be"):
            ServerSettings(tmp_path, **{name: value})
