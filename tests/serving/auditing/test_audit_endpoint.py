"""Audits of a served model that tells little or much, and attacks that only ask."""

import json

import numpy as np
import pytest
from plane import ROOT, Plane, points

from defended.attacks import ScoreDescent
from defended.attacks.black_box.score_descent import Asked, smooth_directions
from defended.serving import Attacked, BlackBox, EndpointError, audit
from defended.serving.auditing.targets import Endpoint

X, Y = points(400)
RADIUS = np.abs(X[:, 0] - X[:, 1]) / ROOT
REJECTED = {"label": -1, "rejected": True, "reason": 1, "availability_radius": 0}
DIAGONAL = np.array([1, -1]) / ROOT


def pushed(x, distance):
    return (x - distance * np.sign(x[:, :1] - x[:, 1:]) * DIAGONAL).astype("float32")


class TestWhatIsTold:
    def test_the_stand_in_is_an_endpoint(self):
        assert isinstance(Plane(), Endpoint)

    def test_with_radii_all_rates_are_those_of_the_radii(self):
        report = audit(Plane(), X, Y)
        assert report.subject.epsilon == pytest.approx(0.5, rel=1e-5)
        assert report.subject.epsilon_from == "radii"
        assert report.rejection_rate.count == (RADIUS <= 0.5).sum()
        assert report.vra.count == ((RADIUS > 0.5) & (X.argmax(1) == Y)).sum()
        assert report.always_answered.count == (RADIUS > 1).sum()
        assert report.fpr_upper.count == ((RADIUS > 0.5) & (RADIUS <= 1)).sum()
        assert any("read off" in sentence for sentence in report.assumptions)
        assert report.subject.version == 3

    def test_without_radii_the_bracket_is_open_above_and_the_report_says_so(self):
        report = audit(Plane(signatures=("serving_default",)), X, Y, epsilon=0.5, norm="l2")
        assert report.rejection_rate.count == (RADIUS <= 0.5).sum()
        assert report.fpr_upper is report.vra_2eps is report.curves is report.advice is None
        assert "100 %" in report.unknown[0]
        html = report.to_html()
        assert "this audit cannot tell" in html
        assert "VRA at 2ε</span>" not in html

    def test_without_labels_and_scores_only_verdicts_are_counted(self):
        report = audit(Plane(signatures=("serving_default",), told=("label",)), X)
        assert report.rejection_rate.count == (RADIUS <= 0.5).sum()
        assert report.vra is None
        assert report.strata == {}
        assert len(report.unknown) == 4
        report.to_json()

    def test_every_input_is_asked_once_by_the_richest_signature(self):
        endpoint = Plane()
        assert audit(endpoint, X, Y, batch_size=150).queries == 400
        assert endpoint.seen == [("audit", 150), ("audit", 150), ("audit", 100)]

    def test_a_version_that_changes_meanwhile_is_an_error(self):
        endpoint = Plane()
        predict = endpoint.predict

        def reload(x, signature):
            endpoint.version = 4
            return predict(x, signature)

        endpoint.predict = reload
        with pytest.raises(EndpointError, match="from version 3 to 4"):
            audit(endpoint, X, Y)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"label": None}, "must give `label`"),
            ({"label": np.zeros(3, np.int64)}, "400 whole numbers"),
            ({"label": np.zeros(400)}, "whole numbers"),
            ({"rejected": np.ones(400, bool)}, "contradicts itself"),
            ({"scores": np.zeros((400, 1), "float32")}, "m >= 2"),
            ({"label": np.full(400, 7), "rejected": np.zeros(400, bool)}, "names class 7"),
            ({"certified_radius": np.full(400, np.nan)}, "finite numbers"),
            ({"certified_radius": np.full(400, -1.0)}, "at least 0"),
        ],
    )
    def test_nonsense_is_refused_by_name(self, change, message):
        endpoint = Plane()
        predict = endpoint.predict
        endpoint.predict = lambda x, signature: {
            name: value for name, value in (predict(x, signature) | change).items() if value is not None
        }
        with pytest.raises(EndpointError, match=message):
            audit(endpoint, X, Y, batch_size=400)

    @pytest.mark.parametrize(
        ("name", "count", "change"),
        [
            ("answer-without-certificate", 1, {"certified_radius": 0.3, "availability_radius": 0.0}),
            ("answer-without-certificate", 1, {"certified_radius": 0.5, "availability_radius": 0.0}),
            ("availability-above-certificate", 1, {"availability_radius": 1.0}),
            ("label-is-not-largest-score", 1, {"label": 1}),
            ("answer-with-broken-scores", 1, {"scores": np.nan}),
            ("answer-with-broken-scores", 1, {"scores": np.inf}),
            ("label-out-of-range", 1, {**REJECTED, "label": -2, "certified_radius": 0}),
            ("reason-against-verdict", 1, {"reason": 1}),
            ("rejection-with-certificate", 1, REJECTED),
        ],
    )  # fmt: skip
    @pytest.mark.parametrize("given", [True, False])
    def test_answers_that_contradict_themselves_are_an_alarm_by_name(self, name, count, change, given):
        """One answer of class 0 with the radius 0.9, of 400, is changed: whatever the conditions, that is no PASS."""
        x = X.copy()
        x[7] = [0.9 * ROOT, 0]
        endpoint = Plane()
        predict = endpoint.predict

        def lie(batch, signature):
            outputs = {key: value.copy() for key, value in predict(batch, signature).items()}
            for key, value in change.items():
                outputs[key][7] = value
            return outputs

        endpoint.predict = lie
        if not given and change.get("certified_radius") == 0.5:
            return  # an epsilon that was read off radii is not known so well
        known = {"epsilon": 0.5, "norm": "l2"} if given else {}
        report = audit(endpoint, x, Y, batch_size=400, conditions={"rejection_rate": {"max": 1.0}}, **known)
        assert report.contradictions == {name: count}
        assert f"Answers contradict themselves ({name}): 1 of 400" in report.alarms[0]
        assert report.verdict == "FAIL"
        assert json.loads(report.to_json())["contradictions"] == {name: count}
        assert "alarm" in report.to_junit()
        if given:  # the page tells of alarms alike, however epsilon became known
            assert "contradict themselves" in report.to_html()

    def test_a_radius_of_nothing_beside_every_answer_is_no_vra(self):
        endpoint = Plane()
        predict = endpoint.predict
        nothing = {name: np.zeros(400, "float32") for name in ("certified_radius", "availability_radius")}
        endpoint.predict = lambda x, signature: predict(x, signature) | nothing
        report = audit(endpoint, X, Y, epsilon=0.5, norm="l2", batch_size=400, conditions={"vra": {"min": 0.1}})
        assert report.vra == report.vra_2eps == report.always_answered == 0
        assert report.fpr_upper == 1
        assert report.contradictions["answer-without-certificate"] == (RADIUS > 0.5).sum()
        assert report.decisions[0].status == "FAIL"

    def test_attacked_inputs_that_are_answered_with_contradictions_count_too(self):
        endpoint = Plane()
        predict = endpoint.predict

        def lie(x, signature):
            outputs = predict(x, signature)
            asked_again = len(endpoint.seen) > 1
            return outputs | ({"certified_radius": np.zeros(len(x), "float32")} if asked_again else {})

        endpoint.predict = lie
        report = audit(endpoint, X, Y, epsilon=0.5, norm="l2", batch_size=400, attacked=Attacked(np.arange(400), X))
        assert report.contradictions["answer-without-certificate"] == (RADIUS > 0.5).sum()
        assert report.verdict == "FAIL"

    def test_an_epsilon_that_was_typed_with_six_digits_contradicts_nothing(self):
        endpoint = Plane(epsilon=np.float32(0.1414213))
        report = audit(endpoint, X, Y, epsilon=0.141421, norm="l2")
        assert report.contradictions == {}
        assert report.verdict == "NOT JUDGED"
        assert report.rejection_rate.count == (np.float32(RADIUS) <= np.float32(0.1414213)).sum()

    def test_draws_without_an_alpha_are_a_gap_that_the_report_names(self):
        endpoint = Plane()
        predict = endpoint.predict
        endpoint.predict = lambda x, signature: predict(x, signature) | {"samples_used": np.full(len(x), 100)}
        assert any("alpha" in sentence for sentence in audit(endpoint, X, Y).unknown)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"black_box": BlackBox(10)}, "`norm` must be given"),
            ({"attacked": Attacked(np.zeros(1, int), X[:1]), "epsilon": 0.5}, "`norm` must be given"),
            ({"attack": lambda *a: X}, "`model` too"),
            ({"batch_size": 0}, "`batch_size`"),
            ({"baseline": "none.json"}, "none.json cannot be read"),
        ],
    )
    def test_what_an_attack_needs_must_be_known(self, options, message):
        with pytest.raises(ValueError, match=message):
            audit(Plane(), X, Y, **options)

    def test_a_target_of_another_kind(self):
        with pytest.raises(TypeError, match="`target`"):
            audit(3, X, Y)


class TestReplay:
    def test_given_inputs_are_replayed(self, tmp_path):
        # Pushed by 0.5: what had a radius of at most 1 is rejected.
        np.savez(tmp_path / "pushed.npz", inputs=pushed(X, 0.4999))
        report = audit(Plane(), X, Y, norm="l2", attacked=tmp_path / "pushed.npz")
        expected = ((RADIUS > 0.5) & (RADIUS - 0.4999 <= 0.5)).sum()
        assert report.fpr_lower.count == expected
        assert report.fpr_lower <= report.fpr_upper
        assert report.attack.attacked == (RADIUS > 0.5).sum()
        assert "pushed.npz" in report.attack.name
        assert report.alarms == ()

    def test_a_part_by_index_and_what_leaves_the_ball_is_not_used(self):
        rows = np.flatnonzero(RADIUS > 0.5)[:40]
        found = pushed(X[rows], 0.4999)
        found[:10] = pushed(X[rows[:10]], 0.6)
        report = audit(Plane(), X, Y, norm="l2", attacked=Attacked(rows, found))
        assert report.attack.discarded == 10
        assert report.fpr_lower.count == (RADIUS[rows[10:]] <= 0.9999).sum()

    def test_without_radii_another_answer_within_epsilon_breaks_the_certificate(self):
        endpoint = Plane(signatures=("serving_default",))
        predict = endpoint.predict

        def liar(x, signature):  # answers everything
            outputs = dict(predict(x, signature))
            return outputs | {"label": outputs["scores"].argmax(1), "rejected": np.zeros(len(x), bool)}

        endpoint.predict = liar
        close = RADIUS < 0.4
        report = audit(endpoint, X, Y, epsilon=0.5, norm="l2", attacked=Attacked(np.arange(400), pushed(X, 0.49)))
        assert report.attack.broken_answers >= close.sum() > 0
        assert report.verdict == "FAIL"
        assert "Do not deploy" in report.to_html()

    @pytest.mark.parametrize(
        ("attacked", "message"),
        [
            (Attacked(np.array([0, 0]), X[:2]), "at most once"),
            (Attacked(np.array([400]), X[:1]), "at most once"),
            (Attacked(np.array([0]), X[:2]), "index of shape"),
            (Attacked(np.array([0]), X[:1].astype("float64")), "float32"),
        ],
    )
    def test_bad_attacked_inputs(self, attacked, message):
        with pytest.raises(ValueError, match=message):
            audit(Plane(), X, Y, norm="l2", attacked=attacked)

    def test_a_file_without_inputs(self, tmp_path):
        np.savez(tmp_path / "other.npz", x=X)
        with pytest.raises(ValueError, match="it holds x"):
            audit(Plane(), X, Y, norm="l2", attacked=tmp_path / "other.npz")


class TestBlackBox:
    def test_scores_alone_find_all_that_can_be_found(self):
        endpoint = Plane(signatures=("serving_default",))
        report = audit(endpoint, X, Y, epsilon=0.5, norm="l2", black_box=BlackBox(20_000))
        degradable = ((RADIUS > 0.5) & (RADIUS <= 0.99999)).sum()
        assert report.black_box.fpr_lower.count == degradable
        assert report.best_fpr_lower == report.black_box.fpr_lower
        assert report.black_box.queries <= 20_000
        assert report.queries == 400 + report.black_box.queries

    def test_the_default_answer_is_all_it_uses(self):
        endpoint = Plane()
        report = audit(endpoint, X, Y, norm="l2", black_box=BlackBox(300))
        asked = sum(n for signature, n in endpoint.seen if signature == "serving_default")
        assert asked == report.black_box.queries <= 300
        assert report.black_box.degraded > 0

    def test_labels_alone_do_as_well(self):
        endpoint = Plane(signatures=("serving_default",), told=("label", "rejected"))
        report = audit(endpoint, X[:60], Y[:60], epsilon=0.5, norm="l2", black_box=BlackBox(6000, queries=200))
        assert "DecisionAttack" in report.black_box.name
        assert report.black_box.queries <= 6000
        assert 0 < report.black_box.degraded <= ((RADIUS[:60] > 0.5) & (RADIUS[:60] <= 1)).sum()

    @pytest.mark.parametrize("budget", [1, 7, 100])
    def test_the_budget_is_never_exceeded(self, budget):
        report = audit(Plane(), X, Y, norm="l2", black_box=BlackBox(budget, queries=50))
        assert report.black_box.queries <= budget

    def test_no_budget_is_refused(self):
        with pytest.raises(ValueError, match="`budget`"):
            BlackBox(0)

    def test_linf(self):
        # Moved by 0.25 in each coordinate, the difference falls by 0.5.
        endpoint = Plane(signatures=("serving_default",))
        report = audit(endpoint, X, Y, epsilon=0.25, norm="linf", black_box=BlackBox(20_000))
        gap = RADIUS * ROOT
        assert report.black_box.degraded == ((RADIUS > 0.5) & (gap - 0.49999 <= 0.5 * ROOT)).sum()


class TestScoreDescent:
    def test_directions_are_orthonormal_and_the_smoothest_come_first(self):
        directions = smooth_directions((8, 6, 3), 144, 0)
        np.testing.assert_allclose(directions @ directions.T, np.eye(144), atol=1e-12)
        roughness = np.abs(np.diff(directions.reshape(144, 8, 6, 3), axis=1)).sum((1, 2, 3))
        assert roughness[:3].max() < 1e-9
        assert roughness[-10:].mean() > roughness[3:13].mean()
        plain = smooth_directions((50,), 20, 1)
        np.testing.assert_allclose(plain @ plain.T, np.eye(20), atol=1e-12)

    @pytest.mark.parametrize("clip", [None, (0.0, 1.0)])
    def test_a_linear_margin_is_descended_to_the_optimum(self, clip):
        rng = np.random.default_rng(0)
        w = rng.standard_normal((36, 3))
        x = rng.uniform(0.3, 0.7, (5, 6, 6)).astype("float32")
        seen = []

        def query(points):
            seen.append(points)
            scores = points.reshape(len(points), -1) @ w
            return Asked(scores, np.zeros(len(points), bool))  # never rejects

        found = ScoreDescent(queries=60, block=12, clip=clip).run(query, x, radius=0.2, norm="l2")
        assert not found.found.any()
        assert found.queries.tolist() == [60] * 5
        assert sum(len(points) for points in seen) == 300
        if clip:
            assert min(points.min() for points in seen) >= 0
            assert max(points.max() for points in seen) <= 1
        before, after = ((points.reshape(5, -1) @ w) for points in (x, found.inputs))
        for i in range(5):
            j, k = np.argsort(before[i])[::-1][:2]
            fall = (before[i, j] - before[i, k]) - np.max(after[i, j] - np.delete(after[i], j))
            margin = min(after[i, j] - after[i, c] for c in range(3) if c != j)
            best = min(
                before[i, j] - before[i, c] - 0.2 * np.linalg.norm(w[:, j] - w[:, c]) for c in range(3) if c != j
            )
            assert margin <= best + 0.1 * abs(fall) + 1e-6
            assert np.linalg.norm(found.inputs[i] - x[i]) <= 0.2

    def test_queries_that_answer_something_else(self):
        with pytest.raises(ValueError, match="`query` must return"):
            ScoreDescent().run(lambda p: (np.zeros(3), np.zeros(3)), np.zeros((2, 4)), radius=1, norm="l2")
