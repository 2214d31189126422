"""Audits and monitors of a running server: over REST and gRPC the same figures as of the artefact itself."""

import json

import numpy as np
import pytest
from served import images
from typer.testing import CliRunner

pytest.importorskip("aiohttp")
pytest.importorskip("grpc")

from defended.serving import BlackBox, Client, RejectionMonitor, RequestLog, audit
from defended.serving.monitoring.sources import CounterPosition, new_counts, scrape
from defended.serving.server.app import running
from defended_cli import app

X = images(120, seed=5)
Y = np.arange(120) % 3


@pytest.fixture(scope="module")
def server(tiny_models):
    with running(tiny_models) as server:
        yield server


@pytest.fixture(scope="module")
def local(tiny_artefact):
    return audit(tiny_artefact, X, Y, black_box=BlackBox(600))


def test_over_rest_and_grpc_the_figures_are_the_artefacts(server, local):
    for url in (f"{server.rest_url}/v1/models/tiny", f"{server.grpc_url}/tiny"):
        report = audit(url, X, Y, black_box=BlackBox(600), norm="l2")
        assert report.rates() == local.rates()
        assert (report.subject.kind, report.subject.name, report.subject.version) == ("endpoint", "tiny", 1)
        assert report.subject.epsilon == pytest.approx(local.subject.epsilon, rel=1e-4)
        assert report.advice.affordable == local.advice.affordable
        assert report.black_box.queries == local.black_box.queries


def test_the_manifest_tells_an_endpoints_epsilon_and_certificate(server, tiny_artefact):
    with Client(server.rest_url, model="tiny") as client:
        report = audit(client, X, Y, manifest=tiny_artefact.manifest)
    assert report.subject.epsilon_from == "manifest"
    assert report.record().subject.certificate_method == tiny_artefact.manifest.certificate_method


def test_a_server_that_keeps_radii_back(tiny_models, local, tiny_artefact):
    with running(tiny_models, audit_signature=False) as server:
        report = audit(f"{server.rest_url}/v1/models/tiny", X, Y, manifest=tiny_artefact.manifest)
    assert report.rejection_rate == local.rejection_rate
    assert report.vra == local.vra
    assert report.fpr_upper is None


def test_the_command_audits_and_monitors_a_server(server, tmp_path, tiny_models):
    np.savez(tmp_path / "data.npz", x_train=X, y_train=Y, x_test=X, y_test=Y)
    words = ["audit", f"{server.rest_url}/v1/models/tiny", "--data", tmp_path / "data.npz", "--out", tmp_path / "audit"]
    more = ["--artefact", tiny_models / "tiny" / "1", "--black-box", 200]
    result = CliRunner().invoke(app, [str(word) for word in [*words, *more]])
    assert result.exit_code == 0, result.output
    assert "queries of black box" in result.stdout
    baseline = tmp_path / "audit" / "audit.json"
    assert json.loads(baseline.read_text())["subject"]["kind"] == "endpoint"
    words = ["monitor", server.rest_url, "--baseline", baseline, "--looks", 1, "--name", "tiny"]
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, result.output


def test_nobody_at_home_is_one_line(tmp_path):
    words = ["audit", "http://127.0.0.1:1/v1/models/tiny", "--data", "digits", "--out", str(tmp_path / "audit")]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "audit").exists()


def test_counters_and_log_of_a_server_tell_the_monitor_the_same(tiny_models, tiny_artefact, tmp_path):
    with RequestLog(tmp_path / "log") as log, running(tiny_models, log=log) as server:
        position = CounterPosition(0, 0)
        with Client(server.rest_url, model="tiny") as client:
            outputs = client.predict(X)
        total, rejected = new_counts(scrape(server.rest_url), position, "tiny", 1)
    assert (total, rejected) == (120, outputs["rejected"].sum())
    seen = audit(tmp_path / "log").rejection_rate
    assert (seen.count, seen.total) == (rejected, total)
    monitor = RejectionMonitor(audit(tiny_artefact, X, Y).record())
    assert monitor.watch(outputs, X) is None


def test_an_engine_computes_the_same_audit_and_serves_no_server(server, tiny_models, tmp_path):
    np.savez(tmp_path / "data.npz", x_train=X, y_train=Y, x_test=X, y_test=Y)
    rates = []
    for more in ([], ["--engine", "local"]):
        out = tmp_path / f"audit{len(rates)}"
        words = ["audit", tiny_models / "tiny" / "1", "--data", tmp_path / "data.npz", "--out", out, *more]
        result = CliRunner().invoke(app, [str(word) for word in words])
        assert result.exit_code == 0, result.output
        rates.append(json.loads((out / "audit.json").read_text())["rates"])
    assert rates[0] == rates[1]
    result = CliRunner().invoke(app, ["audit", f"{server.rest_url}/v1/models/tiny", "--engine", "local"])
    assert result.exit_code == 2
    assert "answer for themselves" in result.stderr
