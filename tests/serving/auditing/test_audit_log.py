"""Audits of a request log: verdicts without labels, by version and by time."""

import numpy as np
import pytest
from plane import Plane, points

pytest.importorskip("tensorflow_serving")

from defended.serving import audit
from defended.serving.clients.request_log import RequestLog, RequestLogError

X, _ = points(200)


def write(folder, name="plane", version=1, epsilon=0.5, x=X, told=("label", "rejected", "scores", "reason")):
    with RequestLog(folder) as log:
        for start in range(0, len(x), 50):
            batch = x[start : start + 50]
            log.add(name, version, "serving_default", {"image": batch}, Plane(epsilon, told=told).predict(batch))


@pytest.fixture
def folder(tmp_path):
    write(tmp_path, version=1, epsilon=0.5)
    write(tmp_path, version=2, epsilon=1.0)
    return tmp_path


def test_rejection_by_version_time_class_and_confidence(folder):
    report = audit(folder)
    radius = np.abs(X[:, 0] - X[:, 1]) / np.sqrt(2)
    by_version = {s.name: s.rejection_rate.count for s in report.strata["version"]}
    assert by_version == {"version 1": (radius <= 0.5).sum(), "version 2": (radius <= 1).sum()}
    assert report.rejection_rate.count == sum(by_version.values())
    assert report.rejection_rate.total == 400
    assert [s.rejection_rate.count for s in report.strata["time"]] == list(by_version.values())
    assert report.strata["time"][0].name.endswith("UTC")
    assert set(report.strata) == {"class", "confidence", "version", "time"}
    assert (report.subject.kind, report.subject.name, report.subject.version) == ("log", "plane", None)
    assert report.vra is report.fpr_upper is None
    assert any("who was rejected, not why" in sentence for sentence in report.unknown)
    assert "Rejection by version" in report.to_html()


def test_conditions_and_baseline(folder):
    before = audit(Plane(), X, X.argmax(1)).record()
    report = audit(folder, baseline=before, conditions={"rejection_rate": {"max": 0.2}})
    assert report.verdict == "FAIL"
    (compared,) = report.comparison.rates
    assert (compared.metric, compared.changed) == ("rejection_rate", True)


def test_inputs_that_are_not_finite_are_a_stratum(tmp_path):
    x = X[:50].copy()
    x[:5] = np.nan
    write(tmp_path, x=x)
    report = audit(tmp_path)
    assert {s.name: s.rejection_rate.count for s in report.strata["class"]}["not finite"] == 5
    assert report.profile.not_finite == 5


def test_one_model_of_several_is_chosen_by_name(folder):
    write(folder, name="other")
    with pytest.raises(ValueError, match=r"other, plane\. Say which by `name`"):
        audit(folder)
    assert audit(folder, name="other").rejection_rate.total == 200
    with pytest.raises(ValueError, match="no answers of 'third'; it has: other, plane"):
        audit(folder, name="third")


def test_a_damaged_log_a_foreign_one_and_data_beside_it(folder, tmp_path):
    with pytest.raises(ValueError, match="its own inputs"):
        audit(folder, X)
    file = sorted(folder.glob("*.tfrecord"))[0]
    content = bytearray(file.read_bytes())
    content[40] ^= 1
    file.write_bytes(content)
    with pytest.raises(RequestLogError, match="damaged"):
        audit(folder)


def test_answers_of_other_models_are_no_verdicts(tmp_path):
    with RequestLog(tmp_path) as log:
        log.add("plain", 1, "serving_default", {"x": X}, {"probabilities": X})
    with pytest.raises(ValueError, match=r"without `label`"):
        audit(tmp_path)
