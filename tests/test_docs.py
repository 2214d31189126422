"""The documentation's code runs, with trainings cut short, and says what the README says."""

import re
from pathlib import Path

import keras
import numpy as np
import pytest

import defended

ROOT = Path(__file__).resolve().parents[1]


def blocks(path: str, language: str = "python") -> list[str]:
    return re.findall(
        rf"^```{language}\n(.*?)^```$", (ROOT / path).read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )


def run(code: str, **names: object) -> dict[str, object]:
    """Run code with one epoch for many and few draws of noise, so that the test costs its compilations only."""
    quick = re.sub(r"epochs=\d+", "epochs=1", code).replace("samples=10_000", "samples=500")
    exec(compile(quick, "documentation", "exec"), names)  # noqa: S102  (the project's own text)
    return names


@pytest.fixture
def few_test_digits(monkeypatch):
    data = defended.datasets.load("digits")
    few = data._replace(x_test=data.x_test[:64], y_test=data.y_test[:64])
    monkeypatch.setattr(defended.datasets, "load", lambda name, *scale: few)


@pytest.mark.usefixtures("few_test_digits")
def test_the_readmes_lines_go_the_whole_path(tmp_path, monkeypatch, capsys):
    """Without the ONNX file, which the tutorial's export of the same kind of net writes too."""
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("README.md")
    assert "version=1)" in code
    run(code.replace("version=1)", "version=1, onnx=False)"))
    assert "fpr_upper" in capsys.readouterr().out
    assert (tmp_path / "models" / "digits" / "1" / "manifest.json").is_file()
    assert (tmp_path / "audit" / "report.html").is_file()
    assert len([line for line in code.splitlines() if line and "import" not in line]) <= 10


def test_the_home_page_shows_the_readmes_lines():
    assert blocks("docs/index.md") == blocks("README.md")


@pytest.mark.usefixtures("few_test_digits")
def test_the_tutorial_runs_from_top_to_bottom(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = run("\n".join(blocks("docs/tutorial.md")))
    assert "final: bounds proven" in capsys.readouterr().out
    assert names["path"] == Path("models/digits/1")
    assert (tmp_path / "audit" / "audit.json").is_file()


def test_the_page_on_layer_rules_runs(monkeypatch, capsys):
    from defended.gloro import rules

    monkeypatch.setattr(rules, "_RULES", dict(rules._RULES))
    names = run("\n".join(blocks("docs/how-to/layer-rules.md")))
    assert names["model"].certificate_report().layers[0].bound == pytest.approx(2.0)
    assert "Gate" in capsys.readouterr().out


def test_the_page_on_measuring_runs(tmp_path, monkeypatch, capsys):
    pytest.importorskip("pyarrow")
    monkeypatch.chdir(tmp_path)
    data = defended.datasets.load("digits")
    x_test, y_test = data.x_test[:60], data.y_test[:60]
    np.save("x_test.npy", x_test)
    network = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(10)])
    model = defended.GloroNet(network, epsilon=0.15)
    model.compile("adam", loss="crossentropy")
    model.fit(data.x_train, data.y_train, epochs=15, verbose=0)
    names = {"model": model, "x_test": x_test, "y_test": y_test, "x_train": data.x_train, "y_train": data.y_train}
    first, classes, large, several, training = blocks("docs/how-to/measure.md")
    one = run(first, **names)["result"]
    run(classes, **names, result=one)
    assert (tmp_path / "classes.csv").read_text().count("\n") == 11
    assert run(large, **names)["result"].fpr_lower <= one.fpr_upper
    run(several, **names, one=one, other=one)
    assert {path.name for path in tmp_path.glob("*.p*")} == {"vra.png", "fpr.png", "pairs.png", "records.parquet"}
    run(training.replace("every=5", "every=1"), **names, x_val=x_test, y_val=y_test)
    assert list((tmp_path / "logs").iterdir())


@pytest.mark.usefixtures("few_test_digits")
def test_the_page_on_training_under_noise_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run("\n".join(blocks("docs/how-to/train-under-noise.md")))
    assert (tmp_path / "digits.png").is_file()


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_links_into_the_repository_exist(page):
    targets = re.findall(r"\]\((?!https?://)([^)#]+)", (ROOT / page).read_text(encoding="utf-8"))
    assert [target for target in targets if not (ROOT / target).exists()] == []
