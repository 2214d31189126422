"""Audits whose inputs are in other units than the training's, that saw everything rejected, or that judged nothing."""

import dataclasses
import json
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from served import export_tiny, images, tiny_model

from defended.serving import AuditReport, audit, load, verify
from defended.serving.auditing.conditions import suggest
from defended.serving.auditing.record import AuditRecord, read_record
from defended.statistics.intervals import Rate

X = images(40)
LOOSE = {"rejection_rate": {"max": 1.0}}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return export_tiny(tmp_path_factory.mktemp("models"), training_range=(0, 1))


@pytest.fixture(scope="module")
def artefact(path):
    with load(path) as artefact:
        yield artefact


@pytest.fixture(scope="module")
def fine(artefact) -> AuditReport:
    return audit(artefact, X, conditions=LOOSE)


@pytest.fixture(scope="module")
def bytes_(artefact) -> AuditReport:
    return audit(artefact, 255 * X, conditions=LOOSE)


def test_the_range_is_in_manifest_and_report(path, fine):
    assert str(verify(path).training_range.range()) == "0 to 1"
    record = fine.to_dict()
    assert record["subject"]["training_range"] == {"low": 0, "high": 1, "features": None}
    assert record["data"]["range"] == pytest.approx([float(X.min()), float(X.max())])
    assert ">0 to 1<" in fine.to_html()
    assert (fine.verdict, fine.warnings) == ("PASS", ())


def test_other_units_are_a_finding_everywhere(bytes_, tmp_path):
    (warning,) = bytes_.warnings
    assert "40 of 40 inputs" in warning
    assert "the model was trained on 0 to 1. Divide them by 255." in warning
    assert bytes_.verdict == "WARN"
    files = bytes_.write(tmp_path)
    assert json.loads(files["audit.json"].read_text())["warnings"] == [warning]
    assert warning in files["report.html"].read_text()
    tree = ET.fromstring(files["junit.xml"].read_text())  # noqa: S314
    assert tree.findtext(".//testcase[@name='warnings']/system-out") == f"WARN: {warning}"
    assert read_record(files["audit.json"]) == bytes_.record()


def test_an_endpoint_is_compared_with_its_manifest_or_the_model(path, artefact):
    class Endpoint:
        def predict(self, x, signature="serving_default"):
            return artefact.predict(x, signature)

    model = tiny_model()
    assert audit(Endpoint(), 255 * X, manifest=verify(path)).warnings
    assert not audit(Endpoint(), 255 * X).warnings
    model.training_range = (0, 1)
    assert audit(Endpoint(), 255 * X, model=model, attack=lambda model, x, y: x).warnings


def test_an_artefact_of_before_takes_the_range_from_the_model(tiny_artefact):
    model = tiny_model()
    assert "range not recorded" in audit(tiny_artefact, 255 * X).to_html()
    model.training_range = (0, 1)
    assert audit(tiny_artefact, 255 * X, model=model, attack=lambda model, x, y: x).warnings


def test_attacked_inputs_just_outside_are_no_finding(artefact):
    edge = np.zeros_like(X)
    edge[::2] = 1
    outwards = np.sign(edge - 0.5) * artefact.epsilon / 4  # 16 pixels
    assert not audit(artefact, (edge + outwards).astype("float32")).warnings


class TestEverythingRejected:
    def test_it_is_no_pass(self, artefact, monkeypatch):
        predict = type(artefact).predict

        def none_answered(self, x, signature="serving_default", batch_size=256):
            rejected = {"label": np.full(len(x), -1), "rejected": np.ones(len(x), bool)}
            radii = dict.fromkeys(("certified_radius", "availability_radius"), np.zeros(len(x), "float32"))
            return predict(self, x, signature, batch_size) | rejected | radii

        monkeypatch.setattr(type(artefact), "predict", none_answered)
        report = audit(artefact, X, np.zeros(len(X), int), conditions=LOOSE)
        assert report.verdict == "WARN"
        (warning,) = report.warnings
        assert warning.startswith("Everything was rejected, all 40 inputs")
        assert "epsilon too large" in warning
        assert warning in report.to_html()
        assert report.suggestion == "[conditions]\nrejection_rate = { max = 0.1 }"
        both = audit(artefact, 255 * X, conditions=LOOSE)
        assert len(both.warnings) == 2
        assert both.verdict == "WARN"
        assert audit(artefact, X, conditions={"rejection_rate": {"max": 0.5}}).verdict == "FAIL"

    def test_where_the_range_is_not_recorded_the_units_are_asked_after(self, tiny_artefact):
        report = dataclasses.replace(audit(tiny_artefact, X), rejection_rate=Rate(40, 40, 0.95))
        assert "range of inputs is not recorded" in report.warnings[0]


class TestNotJudged:
    def test_without_conditions_nothing_is_judged_and_conditions_are_suggested(self, artefact, tmp_path):
        report = audit(artefact, X, np.zeros(len(X), int))
        assert report.verdict == "NOT JUDGED"
        files = report.write(tmp_path)
        assert json.loads(files["audit.json"].read_text())["verdict"] == "NOT JUDGED"
        page = files["report.html"].read_text()
        assert "<strong>Not judged</strong>" in page
        assert "<title>Audit of tiny, version 1: not judged</title>" in page
        assert "[conditions]\nrejection_rate = { max = " in page
        suite = ET.fromstring(files["junit.xml"].read_text()).find("testsuite")  # noqa: S314
        assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("2", "0", "1")
        assert "not judged" in suite.find(".//skipped").get("message")

    def test_what_is_suggested_the_figures_keep(self):
        figures = {"rejection_rate": Rate(3, 100, 0.95), "vra": Rate(90, 100, 0.95), "fpr_upper": Rate(0, 0, 0.95)}
        assert suggest(figures) == "[conditions]\nrejection_rate = { max = 0.09 }\nvra = { min = 0.82 }"
        assert suggest({}) == "[conditions]\nrejection_rate = { max = 0.1 }"


def test_a_record_of_the_first_format_is_read_as_it_is(fine):
    old = json.loads(fine.to_json()) | {"format_version": 1}
    del old["warnings"], old["subject"]["training_range"], old["data"]["range"]
    record = AuditRecord.model_validate_json(json.dumps(old))
    assert (record.format_version, record.warnings) == (1, [])
