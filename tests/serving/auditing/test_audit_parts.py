"""Conditions, advice, strata, comparison and the written forms of an audit."""

import json
import xml.etree.ElementTree as ET  # of our own writing
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from plane import Plane, points
from scipy import stats

from defended.serving import BlackBox, ConditionsError, RecordError, audit, read_conditions, read_record
from defended.serving.auditing.advice import affordable, deployment
from defended.serving.auditing.baseline import holm
from defended.serving.auditing.conditions import Condition, decide, parse_conditions
from defended.serving.auditing.record import SCHEMA_FILE, schema
from defended.serving.auditing.sampling_cost import cost_ratio, draws
from defended.serving.auditing.strata import by_class, by_confidence, confidences, margins, worst_rejection
from defended.statistics.intervals import Rate, clopper_pearson
from defended.statistics.rates import InputFacts

ROOT = Path(__file__).resolve().parents[3]
X, Y = points(300)


def decided(metric, condition, value):
    (decision,) = decide({metric: Condition(**condition)}, {metric: value})
    return decision.status


class TestConditions:
    # 4 of 100: 0.0110 to 0.0993 at 95 %.
    RATE = Rate(4, 100)

    @pytest.mark.parametrize(
        ("limit", "sense", "status"),
        [
            (0.10, "proven", "PASS"),
            (0.09, "proven", "FAIL"),
            (0.04, "measured", "PASS"),
            (0.039, "measured", "FAIL"),
            (0.012, "refuted", "PASS"),
            (0.010, "refuted", "FAIL"),
        ],
    )
    def test_the_sense_says_which_end_is_compared(self, limit, sense, status):
        assert clopper_pearson(4, 100) == pytest.approx((0.0110, 0.0993), abs=1e-4)
        assert decided("rejection_rate", {"max": limit, "sense": sense}, self.RATE) == status
        # The mirror image: at least 1 - limit of the others.
        assert decided("vra", {"min": 1 - limit, "sense": sense}, Rate(96, 100)) == status

    def test_a_warning_lies_before_the_limit(self):
        assert decided("rejection_rate", {"max": 0.10, "warn": 0.05}, self.RATE) == "WARN"
        assert decided("rejection_rate", {"max": 0.10, "warn": 0.10}, self.RATE) == "PASS"

    def test_what_is_not_known_fails(self):
        assert decided("fpr_upper", {"max": 1.0}, None) == "FAIL"
        assert decided("fpr_upper", {"max": 1.0}, Rate(0, 0)) == "FAIL"

    def test_numbers_have_no_interval(self):
        assert decided("draws_ratio", {"max": 2.0}, 2.0) == "PASS"
        assert decided("epsilon", {"min": 0.3}, 0.29) == "FAIL"

    def test_a_file(self, tmp_path):
        path = tmp_path / "limits.toml"
        path.write_text('[conditions]\nvra = { min = 1, warn = 1 }\nfpr_upper = { max = 0.3, sense = "measured" }\n')
        assert read_conditions(path) == {
            "vra": Condition(min=1.0, warn=1.0),
            "fpr_upper": Condition(max=0.3, sense="measured"),
        }

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("vra = 0.9", "unknown keys: vra"),
            ("[conditions]", r"no table \[conditions\]"),
            ("[conditions]\nvra = 0.9", "vra: .*dictionary"),
            ("[conditions]\nvra = {}", "give one of `max` and `min`"),
            ("[conditions]\nvra = { min = 0.1, max = 0.2 }", "give one of"),
            ("[conditions]\nvrra = { min = 0.1 }", "vrra: no such figure. Known: rejection_rate"),
            ("[conditions]\nvra = { min = 90 }", r"between 0 and 1 \(5 % is 0.05\). Received: 90"),
            ("[conditions]\nvra = { min = nan }", "vra.min: .*finite"),
            ("[conditions]\nvra = { min = 'x' }", "vra.min: .*number. Received: 'x'"),
            ("[conditions]\nvra = { min = true }", "vra.min: .*Received: True"),
            ("[conditions]\nvra = { min = 0.9, warm = 0.95 }", "vra.warm: .*not permitted"),
            ("[conditions]\nvra = { min = 0.9, warn = 0.85 }", "`warn` must be stricter than `min` = 0.9"),
            ("[conditions]\nfpr_upper = { max = 0.2, warn = 0.3 }", "`warn` must be stricter than `max`"),
            ("[conditions]\nvra = { min = 0.9, sense = 'sure' }", "must be one of proven, measured, refuted"),
            ("[conditions\n", "is not TOML"),
        ],
    )
    def test_faults_are_named(self, tmp_path, text, message):
        path = tmp_path / "limits.toml"
        path.write_text(text)
        with pytest.raises(ConditionsError, match=message):
            read_conditions(path)

    def test_all_faults_at_once_and_files_that_are_not_there(self, tmp_path):
        with pytest.raises(ConditionsError, match=r"vrra.*fpr_upper"):
            parse_conditions({"vrra": {"max": 1.0}, "fpr_upper": {"max": 2}})
        with pytest.raises(ConditionsError, match="cannot be read"):
            read_conditions(tmp_path / "none.toml")

    def test_the_verdict_is_the_worst_outcome(self):
        def verdict(**conditions):
            return audit(Plane(), X, Y, conditions=conditions).verdict

        assert verdict() == "NOT JUDGED"
        assert verdict(vra={"min": 0.0}) == "PASS"
        assert verdict(vra={"min": 0.0, "warn": 1.0}) == "WARN"
        assert verdict(vra={"min": 0.0, "warn": 1.0}, fpr_lower={"max": 1.0}) == "FAIL"


class TestAdvice:
    RADIUS = np.arange(1, 101) / 100

    def test_deployments_by_hand(self):
        found = deployment("", 0.25, self.RADIUS, self.RADIUS > 0.1, 0.95)
        assert (found.rejection_rate.count, found.vra.count, found.vra_2eps.count) == (25, 75, 50)
        assert (found.fpr_upper.count, found.fpr_upper.total) == (25, 75)

    def test_the_affordable_epsilon_rejects_as_many_as_allowed_and_no_more(self):
        here, general = affordable(self.RADIUS, 0.05, 0.95)
        assert (here >= self.RADIUS).sum() == 5
        assert here == pytest.approx(0.06)
        # One of 100 rejected: the 95 % limit of the share is 4.7 %; two: 6.2 %.
        assert (general >= self.RADIUS).sum() == 1
        assert stats.beta.ppf(0.95, 2, 99) <= 0.05 < stats.beta.ppf(0.95, 3, 98)

    def test_too_few_data_promise_nothing_in_general(self):
        assert affordable(self.RADIUS[:20], 0.01, 0.95)[1] is None
        assert affordable(np.zeros(100), 0.5, 0.95) == (None, None)
        assert affordable(self.RADIUS, 1.0, 0.95) == (None, None)

    def test_the_general_promise_is_kept_as_often_as_stated(self):
        rng = np.random.default_rng(0)
        kept = [affordable(rng.random(200), 0.1, 0.9)[1] <= 0.1 for _ in range(400)]
        # Wilks's level is at least 0.9; the true share is within 0.03 of what 400 runs show.
        assert np.mean(kept) > 0.9 - 0.03


class TestStrata:
    def test_confidences_of_logits_and_of_shares(self):
        np.testing.assert_allclose(confidences(np.array([[0.0, np.log(3)], [1000.0, 0.0]])), [0.75, 1.0])
        np.testing.assert_allclose(confidences(np.array([[0.2, 0.8], [0.5, 0.5]])), [0.8, 0.5])
        assert confidences(np.array([[np.nan, 1.0]])) == 0
        np.testing.assert_allclose(margins(np.array([[1.0, 4.0, 2.0], [np.inf, 0, 0]])), [2, 0])

    def test_edges_belong_to_the_upper_stratum(self):
        found = by_confidence(InputFacts(np.array([True, False, True])), np.array([0.5, 0.95, 1.0]), 0.95)
        assert [s.name for s in found] == ["50 to 80 %", "95 to 99 %", "99.9 to 100 %"]

    def test_classes_are_called_by_their_names(self):
        facts, classes = InputFacts(np.array([True, False, True, False])), np.array([2, 0, -1, 1])
        found = by_class(facts, classes, 0.95, names=["stop", "1"])
        assert [(s.name, s.rejection_rate.count) for s in found] == [
            ("not finite", 1), ("class 0, stop", 0), ("class 1", 0), ("class 2", 1),
        ]  # fmt: skip

    def test_the_worst_of_many_pays_for_the_choice(self):
        report = audit(Plane(), X, Y)
        worst = worst_rejection(report.strata["class"], 0.95)
        assert worst == max(s.rejection_rate for s in report.strata["class"])
        assert worst.confidence == pytest.approx(0.975)
        assert sum(s.rejection_rate.total for s in report.strata["class"]) == 300


def test_draws_by_hand():
    clean, attacked = draws(np.array([100, 100, 200, 400]), 400), draws(np.full(4, 400), 400)
    assert (clean.mean, clean.at_the_cap, clean.quantiles[0.5]) == (200, 0.25, 100)
    assert cost_ratio(clean, attacked) == 2.0
    assert cost_ratio(None, attacked) is None


@pytest.fixture(scope="module")
def report():
    limits = {"rejection_rate": {"max": 0.9, "warn": 0.1}, "vra": {"min": 0.99}, "fpr_lower": {"max": 0.5}}
    return audit(Plane(), X, Y, norm="l2", black_box=BlackBox(500), conditions=limits, data_name="\x00<&>")


class TestWritten:
    def test_the_published_schema_is_the_shipped_one_and_the_models(self):
        assert (ROOT / "docs" / "schemas" / SCHEMA_FILE).read_text(encoding="utf-8") == schema()
        assert (ROOT / "serving" / "auditing" / "schemas" / SCHEMA_FILE).read_text(encoding="utf-8") == schema()

    @pytest.mark.parametrize(
        "endpoint", [Plane(), Plane(signatures=("serving_default",), told=("label",))], ids=["all", "little"]
    )
    def test_reports_fit_the_schema(self, endpoint):
        content = json.loads(audit(endpoint, X, Y).to_json())
        jsonschema.Draft202012Validator(json.loads(schema())).validate(content)
        content["rates"]["rejection_rate"]["value"] = 2
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.Draft202012Validator(json.loads(schema())).validate(content)

    def test_a_report_is_read_back(self, report, tmp_path):
        paths = report.write(tmp_path)
        assert read_record(paths["audit.json"]) == report.record()

    @pytest.mark.parametrize(("text", "message"), [("{}", "verdict: Field required"), ("[", "the file"), ("3", "file")])
    def test_other_files_are_refused(self, tmp_path, text, message):
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(RecordError, match=message):
            read_record(tmp_path / "a.json")

    def test_junit_has_a_test_for_each_condition(self, report):
        (suite,) = ET.fromstring(report.to_junit())  # noqa: S314
        assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("4", "2", "0")
        outcome = {case.get("name").split()[0]: [child.tag for child in case] for case in suite}
        assert outcome == {
            "the": [],
            "rejection_rate": ["system-out"],
            "vra": ["failure"],
            "fpr_lower": ["failure"],
        }
        assert suite.find("testcase/system-out").text.startswith("WARN: ")

    def test_strange_names_do_no_harm(self, report):
        assert "&lt;&amp;&gt;" in report.to_html()
        ET.fromstring(report.to_junit())  # noqa: S314


class TestComparison:
    def test_holm_by_hand(self):
        assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
        assert holm([0.9, 0.5]) == [1.0, 1.0]

    def test_equal_audits_have_not_changed_and_others_have(self):
        before = audit(Plane(), X, Y).record()
        same = audit(Plane(), X, Y, baseline=before).comparison
        assert {c.metric for c in same.rates} >= {"rejection_rate", "vra", "fpr_upper"}
        assert not any(c.changed for c in same.rates)
        other = audit(Plane(epsilon=1.0), X, Y, baseline=before).comparison
        changed = {c.metric: c for c in other.rates}
        assert changed["rejection_rate"].changed
        assert not changed["clean_accuracy"].changed
        assert "Beside the baseline" in audit(Plane(), X, Y, baseline=before).to_html()
