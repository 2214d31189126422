"""The commands around an export: keys, signatures, verification, and runs in pieces."""

import json

import keras
import numpy as np
import pytest
from typer.testing import CliRunner

import defended
from defended_cli import app


def run(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    keras.utils.set_random_seed(4)
    network = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(10)])
    model = defended.GloroNet(network, epsilon=0.02)
    data = defended.datasets.load("digits")
    model.compile("adam", loss="crossentropy")
    model.fit(data.x_train, data.y_train, epochs=3, verbose=0)
    path = tmp_path_factory.mktemp("runs") / "model.keras"
    model.save(path)
    return path


@pytest.fixture(scope="module")
def exported(saved, tmp_path_factory):
    folder = tmp_path_factory.mktemp("deploy")
    assert run("keygen", folder / "key").exit_code == 0
    result = run(
        "export", saved, "--to", folder / "models", "--name", "small", "--data", "digits", "--limit", 20, "--no-onnx",
        "--class-names", "a, b, c, d, e, f, g, h, i, j", "--sign", folder / "key",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    return folder / "models" / "small" / "1"


def test_export_keeps_what_it_was_told(exported):
    manifest = json.loads((exported / "manifest.json").read_text())
    assert manifest["class_names"] == list("abcdefghij")
    assert manifest["onnx"] is None
    assert (manifest["check"]["samples"], manifest["check"]["given"]) == (20, True)
    data = defended.datasets.load("digits")
    digest = defended.provenance.data_digest(data.x_train, data.y_train)
    assert [record["sha256"] for record in manifest["training_data"]] == [digest]
    assert (exported.parents[1] / "models.config").is_file()


def test_verify_tells_whole_signed_and_tampered_apart(exported, tmp_path):
    key = exported.parents[2] / "key.pub"
    result = run("verify", exported, "--public-key", key)
    assert result.exit_code == 0
    assert "signed by that key" in result.stdout
    assert "signature not looked at" in run("verify", exported).stdout
    assert run("keygen", tmp_path / "other").exit_code == 0
    other = run("verify", exported, "--public-key", tmp_path / "other.pub")
    assert other.exit_code == 2
    assert "does not hold for this manifest and key" in other.stderr
    assert run("sign", exported, "--key", tmp_path / "other").exit_code == 0
    assert run("verify", exported, "--public-key", tmp_path / "other.pub").exit_code == 0
    assert run("verify", exported, "--digest", "0" * 64).exit_code == 2
    path = exported / "README.md"
    content = path.read_bytes()
    path.write_bytes(b"")
    try:
        for command in (("verify", exported), ("sign", exported, "--key", tmp_path / "other")):
            result = run(*command)
            assert result.exit_code == 2
            assert "changed: README.md" in result.stderr
    finally:
        path.write_bytes(content)


def test_keys_are_not_overwritten(tmp_path):
    assert run("keygen", tmp_path / "key").exit_code == 0
    before = (tmp_path / "key").read_bytes()
    result = run("keygen", tmp_path / "key")
    assert result.exit_code == 2
    assert "never overwritten" in result.stderr
    assert (tmp_path / "key").read_bytes() == before


def test_an_edited_serving_file_is_a_note(saved, exported, tmp_path):
    folder = exported.parents[1]
    path = folder / "compose.yaml"
    before = path.read_text()
    path.write_text("services: {}\n")
    try:
        result = run("export", saved, "--to", folder, "--name", "other", "--no-onnx", "--no-warm-up")
        assert result.exit_code == 0
        assert "compose.yaml was edited" in result.stderr
        assert path.read_text() == "services: {}\n"
    finally:
        path.write_text(before)


def test_certify_by_model_and_by_artefact(saved, exported, tmp_path):
    words = ("--data", "digits", "--limit", 70, "--batch-size", 16, "--shard-size", 32)
    for what, name in ((saved, "model"), (exported, "artefact")):
        result = run("certify", what, *words, "--out", tmp_path / name)
        assert result.exit_code == 0, result.output
        assert "rejection rate" in result.stdout
    figures = [json.loads((tmp_path / name / "manifest.json").read_text())["summary"] for name in ("model", "artefact")]
    assert figures[0] == figures[1]
    assert figures[0]["inputs"] == 70
    data = defended.datasets.load("digits")
    rejected = keras.models.load_model(saved).verdicts(data.x_test[:70]).rejected
    assert figures[0]["rejection_rate"]["count"] == int(np.sum(rejected))
    other = run("certify", saved, *words, "--out", tmp_path / "artefact")
    assert other.exit_code == 2
    assert "holds another measurement (model" in other.stderr


def test_attack_in_pieces(saved, tmp_path):
    words = ("attack", saved, "--data", "digits", "--limit", 60, "--steps", 3)
    missing = run(*words, "--engine", "local")
    assert missing.exit_code == 2
    assert "--resume DIR" in missing.stderr
    assert run(*words, "--out", tmp_path / "plain.json").exit_code == 0
    result = run(*words, "--engine", "local", "--resume", tmp_path / "run", "--out", tmp_path / "pieces.json")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "run" / "records.parquet").is_file()
    plain, pieces = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("plain", "pieces"))
    del plain["seconds_per_point"], pieces["seconds_per_point"]
    assert plain == pieces


def test_audit_in_pieces(saved, exported, tmp_path):
    words = ("audit", exported, "--data", "digits", "--limit", 40, "--model", saved)
    results = []
    for name, engine in (("plain", ()), ("pieces", ("--engine", "local")), ("pieces", ("--engine", "local"))):
        result = run(*words, "--out", tmp_path / name, *engine)
        assert result.exit_code == 0, result.output
        results.append([line for line in result.stdout.splitlines() if "interval" in line])
    assert results[0] == results[1] == results[2]
    assert any(line.startswith("fpr lower") for line in results[0])
    assert list((tmp_path / "pieces" / "pieces").glob("audit-*/*.parquet"))
    assert list((tmp_path / "pieces" / "pieces").glob("perturb-*/*.parquet"))
    result = run("audit", "http://localhost:1/v1/models/x", "--data", "digits", "--engine", "local")
    assert result.exit_code == 2


def test_options_of_an_engine_need_one(saved, tmp_path):
    result = run("attack", saved, "--data", "digits", "--workers", 2)
    assert result.exit_code == 2
    assert "name one with --engine" in result.stderr
