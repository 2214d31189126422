"""The command's surface: help pages, versions, configuration files, and how errors look. Nothing here trains."""

import os
import re
import subprocess
import sys

import pytest
from typer.testing import CliRunner

import defended
from defended_cli import app

COMMANDS = ("demo", "diagnose", "train", "attack", "certify", "export", "serve", "audit", "monitor")


@pytest.fixture
def run(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TERM", "dumb")
    return lambda *words: CliRunner().invoke(app, [str(word) for word in words])


def plain(text: str) -> str:
    return " ".join(re.sub(r"\x1b\[[0-9;]*m", "", text).replace("│", " ").split())


@pytest.mark.parametrize("command", COMMANDS)
def test_help_says_what_it_does_and_shows_an_example(run, command):
    result = run(command, "--help")
    assert result.exit_code == 0
    text = plain(result.output)
    assert f"{command} [OPTIONS]" in text
    assert f" defended {command}" in text.partition("[OPTIONS]")[2], "no example"
    assert "--config" in text


def test_the_first_page_lists_every_command_and_the_exit_codes(run):
    text = plain(run("--help").output)
    for command in COMMANDS:
        assert f" {command} " in text
    assert "Exit codes: 0" in text


def test_every_option_but_the_obvious_ones_is_explained():
    import typer

    group = typer.main.get_command(app)
    silent = [
        f"{name} {parameter.opts[-1]}"
        for name, command in group.commands.items()
        for parameter in command.params
        if not getattr(parameter, "help", None) and parameter.opts[-1] not in ("--seed", "--epochs", "--batch-size")
    ]
    assert not silent


def test_help_does_not_load_tensorflow():
    code = (
        "import sys\nfrom defended_cli import main\nsys.argv = ['defended', 'train', '--help']\n"
        "try:\n    main()\nexcept SystemExit as leaving:\n    assert not leaving.code\n"
        "sys.exit(any(name in sys.modules for name in ('tensorflow', 'keras', 'numpy', 'defended')))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_version(run):
    assert run("--version").output.strip() == f"defended {defended.__version__}"


def test_the_command_is_not_importable_below_serving():
    with pytest.raises(ImportError, match="import defended_cli"):
        __import__("defended.serving.cli")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "--epsilon", "much"], "--epsilon"),
        (["train", "--net", "resnet"], "--net"),
        (["train", "--epochs", "0"], "--epochs"),
        (["audit"], "ARTEFACT"),
        (["conquer"], "conquer"),
    ],
)
def test_wrong_usage_is_one_line_that_names_it(run, words, message):
    result = run(*words)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert "--help" in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("epsilonn = 0.3\n", "unknown keys: epsilonn. Known keys: augment, balance, batch_size,"),
        ("epsilon = = 3\n", "is not TOML"),
        ("epsilon = 'much'\n", "--epsilon"),
        ("net = 'resnet'\n", "--net"),
        ("epochs = 0\n", "--epochs"),
    ],
)
def test_a_bad_configuration_file_is_one_line(run, tmp_path, content, message):
    path = tmp_path / "run.toml"
    path.write_text(content)
    result = run("train", "--config", path, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_missing_configuration_file(run, tmp_path):
    result = run("train", "--config", tmp_path / "none.toml")
    assert result.exit_code == 2
    assert "cannot be read" in result.stderr


def test_settings_come_from_the_file_and_flags_win(run, tmp_path, monkeypatch):
    from defended.training import training_run

    seen = []

    def stop(settings, directory, **more):
        seen.append((settings, directory))
        raise ValueError("enough")

    monkeypatch.setattr(training_run, "train", stop)
    path = tmp_path / "run.toml"
    path.write_text(
        "epsilon = 1\nbatch-size = 32\nlearning_rate = 0.5\ndoubling = false\nnet = 'dense'\nout = 'there'\n"
    )
    result = run("train", "--config", path, "--batch-size", 64, "--doubling")
    assert (result.exit_code, result.stderr) == (2, "error: enough\n")
    (settings, directory) = seen[0]
    assert (settings.epsilon, settings.batch_size, settings.learning_rate) == (1.0, 64, 0.5)
    assert (settings.doubling, settings.net, str(directory)) == (True, "dense", "there")
    assert settings.epochs == training_run.TrainingSettings().epochs


def test_the_defaults_of_the_command_are_the_librarys(run, monkeypatch, tmp_path):
    from defended.training import training_run

    seen = []
    monkeypatch.setattr(training_run, "train", lambda settings, directory, **more: seen.append(settings) or exit_with())
    assert run("train", "--out", tmp_path / "x").exit_code == 2
    assert seen == [training_run.TrainingSettings()]


def exit_with():
    raise ValueError("enough")


def test_debug_shows_the_traceback(run, tmp_path):
    result = run("--debug", "attack", tmp_path / "none.keras")
    assert isinstance(result.exception, FileNotFoundError)
    result = run("attack", tmp_path / "none.keras")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert "none.keras is not a file" in result.stderr


def test_an_error_of_many_lines_becomes_one(run, tmp_path):
    result = run("train", "--epsilon", -1, "--validation-split", 1, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "`epsilon`" in result.stderr
    assert "`validation_split`" in result.stderr
    assert "-1" in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_what_tensorflow_writes_on_its_start_is_held_back_unless_it_fails(tmp_path):
    code = (
        "import os\nfrom defended_cli.common import stderr_held_back\n"
        "with stderr_held_back():\n    os.write(2, b'noise\\n')\n"
        "os.write(2, b'after\\n')\n"
        "with stderr_held_back():\n    os.write(2, b'cause\\n')\n    raise SystemExit(3)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ})
    assert run.returncode == 3
    assert run.stderr == "after\ncause\n"
