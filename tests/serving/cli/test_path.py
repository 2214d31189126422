"""The commands' whole path on the digits, with trainings too short to be good."""

import csv
import functools
import json
import tomllib

import keras
import numpy as np
import pytest
from typer.testing import CliRunner

from defended import datasets
from defended.attacks import CertificateDescent
from defended.training import training_run
from defended_cli import app

QUICK = ["--data", "digits", "--net", "dense", "--epsilon", "0.1", "--epochs", "2", "--batch-size", "256"]


def run(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def linear(input_shape=(8, 8, 1), num_classes=10, **options):
    head = keras.layers.Dense(num_classes, **options)
    return keras.Sequential([keras.Input(input_shape), keras.layers.Flatten(), head])


@pytest.fixture(scope="module", autouse=True)
def small_net():
    """The net `dense` is a linear one here: what is tested are the commands."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(training_run.NETWORKS, "dense", linear)
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "digits"
    result = run("train", *QUICK, "--out", folder)
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    result = run("export", trained / "model.keras", "--to", folder, "--name", "small", "--no-warm-up")
    assert result.exit_code == 0, result.output
    return folder / "small" / "1"


def test_train_leaves_a_final_model_a_history_and_its_settings(trained):
    assert sorted(path.name for path in trained.iterdir()) == ["history.csv", "model.keras", "settings.toml"]
    model = keras.saving.load_model(trained / "model.keras")
    assert model.is_final
    assert float(model.epsilon) == pytest.approx(0.1)
    with (trained / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["0", "1"]
    assert {"val_vra", "val_vra_2eps", "val_rejection_rate", "val_fpr_upper"} <= set(rows[0])
    settings = tomllib.loads((trained / "settings.toml").read_text())
    assert (settings["epsilon"], settings["epochs"], settings["doubling"]) == (0.1, 2, True)


def test_the_same_command_again_finds_the_finished_run(trained):
    before = (trained / "model.keras").stat().st_mtime_ns
    result = run("train", "--config", trained / "settings.toml", "--out", trained)
    assert result.exit_code == 0
    assert "was finished already" in result.output
    assert (trained / "model.keras").stat().st_mtime_ns == before


def test_other_settings_in_the_same_folder_are_refused(trained):
    before = (trained / "settings.toml").read_text()
    result = run("train", *QUICK, "--epsilon", 0.2, "--out", trained)
    assert result.exit_code == 2
    assert "other settings: epsilon = 0.1" in result.stderr
    assert (trained / "settings.toml").read_text() == before


def test_a_killed_training_continues_after_its_last_epoch(tmp_path):
    class Kill(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    class Watch(keras.callbacks.Callback):
        def __init__(self):
            super().__init__()
            self.epochs, self.start = [], None

        def on_epoch_begin(self, epoch, logs=None):
            self.epochs.append(epoch)
            self.start = self.start or int(self.model.optimizer.iterations)

    settings = training_run.TrainingSettings(net="dense", epsilon=0.1, epochs=4, batch_size=256)
    with pytest.raises(KeyboardInterrupt):
        training_run.train(settings, tmp_path, extra_callbacks=[Kill()], verbose=0)
    assert not (tmp_path / "model.keras").exists()
    watch = Watch()
    run = training_run.train(settings, tmp_path, extra_callbacks=[watch], verbose=0)
    assert watch.epochs == [2, 3]
    assert watch.start == 2 * 6  # 1293 examples in batches of 256: the optimizer goes on, and with it the learning rate
    assert run.model.is_final
    with (tmp_path / "history.csv").open() as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["0", "1", "2", "3"]
    assert not (tmp_path / "unfinished").exists()


def test_training_starts_from_a_network_of_ones_own_and_without_doubling(tmp_path):
    linear(name="mine").save(tmp_path / "mine.keras")
    words = ["--network", tmp_path / "mine.keras", "--epochs", 1, "--no-doubling", "--loss", "crossentropy"]
    result = run("train", *QUICK, *words, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert keras.saving.load_model(tmp_path / "run" / "model.keras").network.layers[-1].name == "mine"
    assert "val_vra_2eps" not in (tmp_path / "run" / "history.csv").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data", "nothing"], "Unknown data set 'nothing'"),
        (["--data", "nothing.npz"], "No data at nothing.npz"),
        (["--network", "nothing.keras"], "nothing.keras is not a file"),
        (["--loss", "trades_kl.x"], "trades_kl.1.5"),
    ],
)
def test_a_mistake_leaves_no_folder(tmp_path, words, message):
    result = run("train", *QUICK, *words, "--out", tmp_path / "run")
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_an_undefended_model_is_told_from_a_defended_one(tmp_path, trained):
    linear().save(tmp_path / "plain.keras")
    result = run("attack", tmp_path / "plain.keras")
    assert result.exit_code == 2
    assert "Defend it first" in result.stderr
    result = run("train", *QUICK, "--network", trained / "model.keras", "--out", tmp_path / "run")
    assert result.exit_code == 2
    assert "is a GloroNet already" in result.stderr


@pytest.mark.parametrize(
    "name", ["certificate-descent", "degradation", "epsilon-pgd", "carlini-wagner", "square", "decision"]
)
def test_attack_prints_the_bracket_and_writes_the_figures(trained, tmp_path, name):
    out = tmp_path / "figures.json"
    effort = ["--steps", 3, "--queries", 50]
    more = ["--out", out, "--by-class", tmp_path / "classes.csv"]
    result = run("attack", trained / "model.keras", "--attack", name, *effort, "--limit", 40, *more)
    assert result.exit_code == 0, result.output
    assert "fpr_lower" in result.output
    rows = list(csv.DictReader((tmp_path / "classes.csv").read_text().splitlines()))
    assert sum(int(row["inputs"]) for row in rows) == 40
    figures = json.loads(out.read_text())
    assert figures["inputs"] == 40
    assert figures["fpr_lower"]["value"] <= figures["fpr_upper"]["value"]
    assert sum(int(row["fpr_lower_count"]) for row in rows) == figures["fpr_lower"]["count"]


def test_export_takes_the_next_free_version_and_overwrites_nothing(trained, exported, tmp_path):
    models = exported.parent.parent
    before = (exported / "manifest.json").read_bytes()
    result = run("export", trained / "model.keras", "--to", models, "--name", "small", "--version", 1)
    assert result.exit_code == 2
    assert "never overwritten" in result.stderr
    more = ["--no-onnx", "--no-warm-up"]
    assert run("export", trained / "model.keras", "--to", models, "--name", "small", *more).exit_code == 0
    assert (exported.parent / "2" / "manifest.json").is_file()
    assert (exported / "manifest.json").read_bytes() == before


def test_audit_with_limits(trained, exported, tmp_path):
    words = ["audit", exported, "--data", "digits", "--limit", 60]
    result = run(*words, "--model", trained / "model.keras", "--out", tmp_path / "audit")
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "audit" / "audit.json").read_text())
    assert report["data"]["points"] == 60
    assert report["rates"]["fpr_lower"] is not None
    assert (tmp_path / "audit" / "report.html").is_file()

    rejection = report["rates"]["rejection_rate"]["value"]
    assert run(*words, "--max-rejection-rate", rejection, "--out", tmp_path / "fits").exit_code == 0
    alarm = run(*words, "--min-vra", 1, "--out", tmp_path / "alarm")
    assert alarm.exit_code == 1
    assert "ALARM: --min-vra is 100.00%" in alarm.stderr
    assert (tmp_path / "alarm" / "report.html").is_file()


def test_audit_of_something_else(tmp_path):
    result = run("audit", tmp_path, "--data", "digits", "--out", tmp_path / "audit")
    assert result.exit_code == 2
    assert "is not an artefact" in result.stderr
    assert not (tmp_path / "audit").exists()


def test_data_of_another_shape(exported, tmp_path):
    x = np.zeros((20, 5, 5, 1), np.float32)
    y = np.arange(20) % 10
    np.savez(tmp_path / "other.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    result = run("audit", exported, "--data", tmp_path / "other.npz", "--out", tmp_path / "audit")
    assert result.exit_code == 2
    assert "[batch, 8, 8, 1]" in result.stderr


@pytest.fixture(scope="module")
def pixels(tmp_path_factory):
    """The digits as bytes, in classes that a linear net tells apart after two epochs or never."""
    digits, folder = datasets.load("digits", "none"), tmp_path_factory.mktemp("pixels")
    arrays = {name: np.rint(255 / 16 * getattr(digits, name)).astype("uint8") for name in ("x_train", "x_test")}
    np.savez(folder / "pixels.npz", **arrays, y_train=digits.y_train, y_test=digits.y_test)
    return folder / "pixels.npz"


class TestUnits:
    def test_what_was_divided_is_said_and_the_artefact_knows_the_range(self, pixels, tmp_path):
        words = ["--data", pixels, "--scale", "none", "--epsilon", 20, "--net", "dense", "--epochs", 1]
        trained = run("train", *words, "--no-doubling", "--loss", "crossentropy", "--out", tmp_path / "run")
        assert trained.exit_code == 0, trained.output
        assert "Data of pixels: images of uint8: taken as they are." in trained.stdout
        model = tmp_path / "run" / "model.keras"
        options = ["--to", tmp_path / "models", "--no-onnx", "--no-warm-up"]
        assert run("export", model, *options).exit_code == 0
        (artefact,) = (tmp_path / "models").glob("gloro_net*/1")  # by default the model's own name
        record = json.loads((artefact / "manifest.json").read_text())["training_range"]
        assert (record["low"], record["high"]) == (0, 255)
        assert "| range of training inputs | 0 to 255 |" in (artefact / "README.md").read_text()

        audit = ["audit", artefact, "--data", pixels, "--out", tmp_path / "audit", "--max-rejection-rate", 1]
        divided = run(*audit)
        assert divided.exit_code == 0, divided.output
        assert "Data of pixels: images of uint8: divided by 255." in divided.stdout
        assert "they reach 0 to 1, the model was trained on 0 to 255. Multiply them by 255." in divided.stderr
        assert "WARNING: Everything was rejected, all 360 inputs" in divided.stderr
        assert "Verdict: WARN" in divided.stdout
        as_trained = run(*audit, "--scale", "none")
        assert "WARNING" not in as_trained.stderr
        attacked = run("attack", model, "--data", pixels, "--limit", 12, "--steps", 1, "--out", tmp_path / "f.json")
        assert "Multiply them by 255" in attacked.stderr

    def test_tables_go_the_whole_path_as_they_are(self, tmp_path):
        rng = np.random.default_rng(0)
        y = np.arange(400) % 2
        x = rng.normal(size=(400, 5)) + 4 * y[:, None]
        parts = {"x_train": x[:300], "y_train": y[:300], "x_test": x[300:], "y_test": y[300:]}
        np.savez(tmp_path / "table.npz", **parts)
        words = ["--data", tmp_path / "table.npz", "--net", "dense", "--epsilon", 0.3, "--epochs", 3]
        trained = run("train", *words, "--out", tmp_path / "run")
        assert trained.exit_code == 0, trained.output
        assert "Data of" not in trained.stdout
        model = tmp_path / "run" / "model.keras"
        options = ["--to", tmp_path, "--name", "table", "--no-onnx", "--no-warm-up"]
        assert run("export", model, *options, "--data", tmp_path / "table.npz").exit_code == 0
        audited = run("audit", tmp_path / "table" / "1", "--data", tmp_path / "table.npz", "--out", tmp_path / "audit")
        assert audited.exit_code == 0
        assert audited.stderr == ""
        assert "Verdict: NOT JUDGED" in audited.stdout
        limits = audited.stdout.partition("[conditions]")[2].partition("Report:")[0]
        (tmp_path / "limits.toml").write_text(f"[conditions]{limits}")
        again = [*("audit", tmp_path / "table" / "1", "--data", tmp_path / "table.npz", "--out", tmp_path / "audit")]
        judged = run(*again, "--conditions", tmp_path / "limits.toml")
        assert "Verdict: PASS" in judged.stdout  # limits that are suggested are kept by the figures they come from


def test_the_demo_goes_the_whole_path_and_a_second_run_exports_the_next_version(tmp_path, monkeypatch):
    from rich.console import Console

    from defended.serving import demo

    digits = datasets.load("digits")
    few = digits._replace(x_test=digits.x_test[:64], y_test=digits.y_test[:64])
    monkeypatch.setattr(datasets, "load", lambda name, *scale: few)
    monkeypatch.setattr(demo, "CertificateDescent", lambda steps, seed: CertificateDescent(steps=5, seed=seed))
    with (tmp_path / "console.txt").open("w") as file:
        console = Console(file=file, width=100)
        shown = [demo.demonstrate(tmp_path / "demo", epochs=2, console=console)]
        comparison = json.loads((tmp_path / "demo" / "comparison.json").read_text())
        monkeypatch.setattr(demo, "SETTINGS", {"plain": False})
        monkeypatch.setattr(demo, "susceptibility", lambda *arguments, **options: shown[0].figures["plain"])
        monkeypatch.setattr(demo, "export", functools.partial(demo.export, onnx=False, warm_up=False))
        shown.append(demo.demonstrate(tmp_path / "demo", epochs=2, console=console))
    assert [result.artefact.name for result in shown] == ["1", "2"]
    text = (tmp_path / "console.txt").read_text()
    for word in ("VRA at 2ε", "FPR, at least", "FPR, at most", "rejection rate", str(shown[0].artefact), "report.html"):
        assert word in text
    assert "found it trained" in text
    values = {name: figures["vra_2eps"]["value"] for name, figures in comparison["nets"].items()}
    assert comparison["better"] == shown[0].better
    assert values[comparison["better"]] == max(values.values())
    assert (tmp_path / "demo" / "audit" / "2" / "report.html").is_file()
