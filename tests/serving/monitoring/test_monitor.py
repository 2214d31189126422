"""The monitor: false alarms counted by simulation, rises found, states restored, evidence weighed."""

import json
import math
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest
from plane import Plane, points
from scipy import stats
from typer.testing import CliRunner

from defended.serving import RejectionMonitor, StateError, audit
from defended.serving.auditing.profile import near_answered
from defended.serving.monitoring.delay import alarms, detection_delay
from defended.serving.monitoring.sources import CounterPosition, SourceError, new_counts, scrape
from defended.serving.monitoring.test_martingale import RaisedRateProcess, bets, cash_after, share_of_round
from defended.statistics.intervals import Rate, clopper_pearson
from defended_cli import app

DIAGONAL = np.array([1, -1]) / np.sqrt(2)


class TestProcess:
    def test_bets_are_fair_at_the_limit_and_lose_below_it(self):
        for limit in (0.001, 0.04, 0.5, 0.9):
            up, down = bets(limit)
            np.testing.assert_allclose(limit * np.exp(up) + (1 - limit) * np.exp(down), 1, rtol=1e-12)
            assert (limit / 2 * np.exp(up) + (1 - limit / 2) * np.exp(down) < 1).all()

    def test_shares_and_cash_are_one_capital(self):
        shares = sum(share_of_round(r) for r in range(1, 1001))
        assert shares + cash_after(1000) == pytest.approx(1, abs=1e-12)
        assert share_of_round(1) == pytest.approx(1 - 1 / math.log2(3))
        assert share_of_round(10**12) > 0

    def test_the_capital_by_hand(self):
        process = RaisedRateProcess(0.2)
        up, down = (np.exp(value) for value in bets(0.2))
        process.observe(1, 3)
        first = share_of_round(1) * up * down**2 / len(up)
        assert process.log_value == pytest.approx(math.log(first.sum() + cash_after(1)))
        process.observe(0, 2)
        second = (first + share_of_round(2) / len(up)) * down**2
        assert process.log_value == pytest.approx(math.log(second.sum() + cash_after(2)))

    def test_every_path_of_few_verdicts_is_a_fair_game(self):
        # The mean over all 2^8 sequences at the limit is exactly the capital of 1.
        total = 0.0
        for number in range(256):
            process = RaisedRateProcess(0.3)
            verdicts = [number >> i & 1 for i in range(8)]
            for verdict in verdicts:
                process.observe(verdict, 1)
            total += 0.3 ** sum(verdicts) * 0.7 ** (8 - sum(verdicts)) * math.exp(process.log_value)
        assert total == pytest.approx(1, rel=1e-10)

    def test_where_the_evidence_begins(self):
        rng = np.random.default_rng(0)
        process = RaisedRateProcess(0.05)
        for verdict in np.r_[rng.random(2000) < 0.04, rng.random(400) < 0.3]:
            process.observe(int(verdict), 1)
        assert 1950 < process.start < 2050

    @pytest.mark.parametrize("limit", [0, 1, 0.96, -1, math.nan])
    def test_limits_that_cannot_be_tested(self, limit):
        with pytest.raises(ValueError, match="`limit`"):
            RaisedRateProcess(limit)

    def test_impossible_rounds(self):
        with pytest.raises(ValueError, match="3 of 2"):
            RaisedRateProcess(0.1).observe(3, 2)


class TestFalseAlarms:
    RUNS = 2000

    def test_at_the_limit_itself_they_are_as_rare_as_stated(self):
        # The worst case of the hypothesis, looked at after every one of 3000 verdicts.
        found = (alarms(0.05, 1 / 0.05, np.full(3000, 0.05), self.RUNS, seed=1) >= 0).sum()
        low, high = clopper_pearson(int(found), self.RUNS, 0.999)
        assert low <= 0.05
        assert high > 0.001  # and the test is not idle

    def test_with_an_audits_own_luck_they_are_as_rare_as_stated(self):
        # Each run has an audit of 500 inputs of its own; half of the 10 % pays for its uncertainty.
        counts = np.random.default_rng(2).binomial(500, 0.05, self.RUNS)
        monitors = {count: RejectionMonitor(Rate(count, 500), false_alarm=0.1) for count in np.unique(counts).tolist()}
        limits = np.array([monitors[count].limit for count in counts.tolist()])
        assert (limits < 0.05).mean() < 0.05
        found = (alarms(limits, monitors[25].threshold, np.full(1000, 0.05), self.RUNS, seed=3) >= 0).sum()
        assert clopper_pearson(int(found), self.RUNS, 0.999)[0] <= 0.1

    def test_the_simulation_is_the_process(self):
        rng = np.random.default_rng(5)
        (first,) = alarms(0.05, 20.0, np.full(600, 0.2), 1, seed=5)
        process, number = RaisedRateProcess(0.05), 0
        while process.log_value < math.log(20.0):
            number += 1
            process.observe(int(rng.binomial(1, 0.2, 1)[0]), 1)
        assert number == first


class TestDelay:
    def test_larger_rises_are_found_sooner_and_small_ones_at_all(self):
        delays = [detection_delay(0.05, 200, 0.04, rate, runs=60, horizon=20_000) for rate in (0.075, 0.15, 0.5)]
        assert all(delay.noticed == 1 for delay in delays)
        assert delays[0].median > 3 * delays[1].median > 3 * delays[2].median
        assert delays[2].median < 30
        # No test with this guarantee beats the logarithm of the threshold over what one verdict tells by far.
        for delay in delays:
            told = stats.entropy([delay.rate, 1 - delay.rate], [0.05, 0.95])
            assert delay.median > 0.5 * math.log(200) / told

    def test_an_old_monitor_is_not_much_slower(self):
        young, old = (detection_delay(0.05, 200, 0.04, 0.15, runs=40, after=n, horizon=3000) for n in (10, 2000))
        assert old.median < 2.5 * young.median
        assert old.early <= 0.05

    def test_what_is_not_raised_is_not_found(self):
        delay = detection_delay(0.05, 200, 0.04, 0.045, runs=40, horizon=3000)
        assert (delay.median, delay.noticed) == (None, 0)


X, Y = points(3000, seed=3)


@pytest.fixture(scope="module")
def record():
    return audit(Plane(), X, Y, norm="l2").record()


def answers(n, seed, change=lambda x: x):
    x = change(points(n, seed=seed)[0])
    return Plane().predict(x), x


def degraded(x):
    """Every contested answer pushed by 0.49 towards the boundary, a little more or less."""
    gap = (np.abs(x[:, 0] - x[:, 1]) / np.sqrt(2))[:, None]
    push = np.where((gap > 0.5) & (gap < 0.97), 0.49, 0.0)
    return (x - push * np.sign(x[:, :1] - x[:, 1:]) * DIAGONAL).astype("float32")


class TestMonitor:
    def test_the_limit_and_threshold_by_hand(self, record):
        monitor = RejectionMonitor(record, false_alarm=0.02, baseline_share=0.25)
        count, total = record.rates["rejection_rate"].count, record.rates["rejection_rate"].total
        assert stats.binom.cdf(count, total, monitor.limit) == pytest.approx(0.005)
        assert monitor.threshold == pytest.approx(1 / 0.015)

    def test_usual_traffic_is_quiet_and_a_rise_is_an_alarm_that_stays(self, record):
        monitor = RejectionMonitor(record)
        assert monitor.watch(answers(4000, 10)[0]) is None
        monitor.watch(answers(1500, 11, degraded)[0])
        alarm = monitor.alarm
        assert alarm.observed < 5500
        assert 3800 < alarm.since < 4400
        monitor.watch(answers(1000, 12)[0])
        assert monitor.alarm == alarm

    def test_counts_alone_do_as_well(self, record):
        monitor = RejectionMonitor(record)
        rate = record.rates["rejection_rate"].value
        for _ in range(100):
            monitor.count(100, round(100 * rate))
        assert monitor.alarm is None
        for _ in range(20):
            monitor.count(100, round(150 * rate))
        assert monitor.alarm is not None
        assert "cannot be told apart at all" in monitor.evidence().summary

    def test_cutting_the_stream_changes_nothing(self, record, tmp_path):
        outputs, _ = answers(900, 13, degraded)
        whole = RejectionMonitor(record)
        whole.watch(outputs)
        monitor = RejectionMonitor(record)
        for start in range(0, 900, 100):
            monitor.watch({name: value[start : start + 100] for name, value in outputs.items()})
            monitor.save(tmp_path / "state.json", {"at": start})
            monitor = RejectionMonitor(record)
            assert monitor.restore(tmp_path / "state.json") == {"at": start}
        assert monitor.status() == whole.status()

    def test_states_of_others_are_refused(self, record, tmp_path):
        path = RejectionMonitor(record).save(tmp_path / "state.json")
        with pytest.raises(StateError, match="another baseline or other settings"):
            RejectionMonitor(record, false_alarm=0.05).restore(path)
        path.write_text(path.read_text().replace('"observed": 0', '"observed": -1'))
        with pytest.raises(StateError, match="observed"):
            RejectionMonitor(record).restore(path)
        path.write_text("{")
        with pytest.raises(StateError, match="is not a monitor's state"):
            RejectionMonitor(record).restore(path)
        with pytest.raises(StateError, match="cannot be read"):
            RejectionMonitor(record).restore(tmp_path / "none")

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"false_alarm": 0}, "`false_alarm`"),
            ({"false_alarm": 0.6}, "`false_alarm`"),
            ({"baseline_share": 1}, "`baseline_share`"),
            ({"window": 0}, "`window`"),
            ({"baseline": Rate(0, 0)}, "at least one input"),
            ({"baseline": Rate(99, 100)}, "`limit`"),
            ({"baseline": "none.json"}, "cannot be read"),
        ],
    )
    def test_bad_arguments(self, options, message):
        with pytest.raises(ValueError, match=message):
            RejectionMonitor(**({"baseline": Rate(4, 100)} | options))


class TestEvidence:
    def findings(self, record, *batches):
        monitor = RejectionMonitor(record)
        for outputs, inputs in batches:
            monitor.watch(outputs, inputs)
        assert monitor.alarm is not None
        return monitor.evidence()

    def test_degraded_answers_point_to_an_attack(self, record):
        evidence = self.findings(record, answers(2000, 20, degraded))
        assert "points to a degradation attack" in evidence.summary
        missing = next(f for f in evidence.findings if "are missing" in f.statement)
        assert (missing.points_to, missing.grade) == ("attack", "strong")
        assert missing.p_value < 1e-4

    def test_an_attack_that_stops_when_it_succeeds_crowds_at_the_edge(self, record):
        def barely(x):
            gap = (np.abs(x[:, 0] - x[:, 1]) / np.sqrt(2))[:, None]
            push = np.where((gap > 0.5) & (gap < 0.97), gap - 0.49, 0.0)
            return (x - push * np.sign(x[:, :1] - x[:, 1:]) * DIAGONAL).astype("float32")

        evidence = self.findings(record, answers(2000, 25, barely))
        assert any("crowd" in f.statement and f.grade == "strong" for f in evidence.findings)

    def test_traffic_that_is_less_sure_points_to_a_drift(self, record):
        evidence = self.findings(record, answers(2000, 21, lambda x: (0.6 * x).astype("float32")))
        assert "points to a drift" in evidence.summary
        assert any("less sure" in f.statement and f.grade == "strong" for f in evidence.findings)

    def test_inputs_that_are_not_finite_point_to_broken_clients(self, record):
        def broken(x):
            x = x.copy()
            x[::4] = np.nan
            return x

        evidence = self.findings(record, answers(2000, 22, broken))
        assert "broken inputs" in evidence.summary

    def test_neighbours_of_answered_inputs_are_seen(self, record):
        # Spread far wider than epsilon, unperturbed inputs are nobody's neighbours; attacked ones are their originals'.
        sparse, _ = points(400, seed=23, spread=300.0)
        gap = np.abs(sparse[:, 0] - sparse[:, 1])[:, None] / np.sqrt(2)
        original = (sparse - (gap - 0.9) * np.sign(sparse[:, :1] - sparse[:, 1:]) * DIAGONAL).astype("float32")
        pushed = (original - 0.45 * np.sign(original[:, :1] - original[:, 1:]) * DIAGONAL).astype("float32")
        x = np.concatenate([original, pushed])
        evidence = self.findings(record, (Plane().predict(x), x))
        found = next(f for f in evidence.findings if "within epsilon" in f.statement)
        assert found.statement.startswith("400 of 400")

    def test_what_cannot_be_told_is_said(self, record):
        evidence = self.findings(record, answers(2000, 24, degraded))
        assert any("imitates a drift" in limit for limit in evidence.limits)
        json.dumps(evidence.to_dict())

    def test_without_a_change_the_findings_hold_their_level(self, record):
        # Rejection made more frequent by thinning the answers, and nothing else: there is nothing to find.
        wrong = 0
        for seed in range(20):
            x, _ = points(1500, seed=100 + seed)
            outputs = Plane().predict(x)
            keep = outputs["rejected"] | (np.random.default_rng(seed).random(1500) < 0.5)
            monitor = RejectionMonitor(record)
            monitor.watch({name: value[keep] for name, value in outputs.items()})
            wrong += any(f.grade != "none" for f in monitor.evidence().findings)
        assert stats.binom.sf(wrong - 1, 20, 0.01) > 1e-4

    @pytest.mark.parametrize("norm", ["l2", "linf"])
    def test_neighbours_by_hand(self, norm):
        rejected, answered = np.array([[0.0, 0], [5, 5], [np.nan, 0]]), np.array([[0.3, 0.3], [9, 9]])
        assert near_answered(rejected, answered, 0.43, norm) == (1, 2)
        assert near_answered(rejected, answered, 0.42, norm)[0] == (norm == "linf")
        assert near_answered(rejected, answered[:0], 1, norm) == (0, 2)


PAGE = """# TYPE defended_verdicts_total counter
defended_verdicts_total{model="plane",version="1",verdict="answered",reason=""} %d
defended_verdicts_total{model="plane",version="1",verdict="rejected",reason="not certified"} %d
defended_verdicts_total{model="plane",version="1",verdict="rejected",reason="not finite"} %d
"""


class TestCounters:
    def test_differences_resets_and_filters(self):
        position = CounterPosition()
        assert new_counts(PAGE % (100, 4, 1), position, None, None) == (0, 0)
        assert new_counts(PAGE % (190, 12, 3), position, "plane", 1) == (100, 10)
        assert new_counts(PAGE % (9, 1, 0), position, None, None) == (10, 1)
        assert new_counts("", position, None, None) == (0, 0)
        assert new_counts(PAGE % (1, 1, 1), CounterPosition(0, 0), "plane", 2) == (0, 0)

    def test_a_server_that_has_judged_nothing_yet_starts_at_zero(self):
        position = CounterPosition()
        assert new_counts("# nothing\n", position, None, None) == (0, 0)
        assert new_counts(PAGE % (8, 1, 1), position, None, None) == (10, 2)

    def test_pages_that_are_none(self):
        two = PAGE % (1, 1, 1) + 'defended_verdicts_total{model="b",version="1",verdict="answered",reason=""} 1\n'
        with pytest.raises(SourceError, match="several models: b, plane"):
            new_counts(two, CounterPosition(), None, None)
        for value in ("NaN", "+Inf", "-1"):
            page = f'defended_verdicts_total{{model="a",version="1",verdict="rejected",reason=""}} {value}\n'
            with pytest.raises(SourceError, match="finite and not negative"):
                new_counts(page, CounterPosition(), None, None)
        with pytest.raises(SourceError, match="text format"):
            new_counts("<html>{{{", CounterPosition(), None, None)
        with pytest.raises(SourceError, match="cannot be read"):
            scrape("http://127.0.0.1:1/metrics", timeout=2)
        with pytest.raises(SourceError, match="is not an address"):
            scrape("localhost:8501")


@pytest.fixture
def server():
    """Counters over HTTP that reject ever more: a page a look."""
    raised = (PAGE % (2000 + 100 * i, 80 + 900 * i, 0) for i in range(1, 9))
    pages = iter([PAGE % (1000, 40, 0), PAGE % (2000, 80, 0), *raised])

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            body = next(pages).encode()
            self.send_response(200 if self.path == "/metrics" else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()
        thread.join()


class TestCommand:
    def run(self, *words):
        return CliRunner().invoke(app, ["monitor", *(str(word) for word in words)])

    @pytest.fixture
    def baseline(self, record, tmp_path):
        path = tmp_path / "audit.json"
        path.write_text(record.model_dump_json())
        return path

    def test_counters_lead_to_an_alarm_and_one_line_a_look(self, baseline, server, tmp_path):
        words = [server, "--baseline", baseline, "--interval", 0.05, "--state", tmp_path / "state.json"]
        quiet = self.run(*words, "--looks", 2)
        assert quiet.exit_code == 0, quiet.output
        lines = [json.loads(line) for line in quiet.stdout.splitlines()]
        assert [line["observed"] for line in lines] == [0, 1040]
        assert all(line["alarm"] is None for line in lines)
        loud = self.run(*words)
        assert loud.exit_code == 1
        last = json.loads(loud.stdout.splitlines()[-1])
        assert last["observed"] == 2040  # from where it was
        assert last["e_value"] > last["threshold"]
        assert "cannot be told apart" in last["evidence"]["summary"]
        assert loud.stderr.startswith("ALARM")

    def test_a_log_is_followed_and_weighed(self, baseline, tmp_path):
        pytest.importorskip("tensorflow_serving")
        from defended.serving.clients.request_log import RequestLog

        words = [tmp_path / "log", "--baseline", baseline, "--state", tmp_path / "state.json", "--looks", 1]
        for number, change in enumerate((lambda x: x, degraded)):
            with RequestLog(tmp_path / "log") as log:
                for seed in range(6):
                    outputs, x = answers(250, 50 + 10 * number + seed, change)
                    log.add("plane", 1, "serving_default", {"image": x}, outputs)
            result = self.run(*words)
            assert result.exit_code == number, result.output
            (line,) = [json.loads(line) for line in result.stdout.splitlines()]
            assert line["observed"] == 1500 * (number + 1)
        assert "degradation attack" in line["evidence"]["summary"]

    def test_a_plan_shows_delays(self, baseline):
        result = self.run("http://nowhere", "--baseline", baseline, "--raised", 0.6)
        assert result.exit_code == 0, result.output
        assert "half of the monitors within" in result.stdout

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["nowhere"], "is not a request log"),
            (["http://127.0.0.1:1"], "cannot be read"),
        ],
    )
    def test_errors_are_one_line_and_2(self, baseline, words, message):
        result = self.run(*words, "--baseline", baseline)
        assert result.exit_code == 2
        assert message in result.stderr
        assert result.stderr.count("\n") == 1

    def test_a_state_of_another_monitor(self, baseline, tmp_path):
        (tmp_path / "state.json").write_text("{}")
        result = self.run("nowhere", "--baseline", baseline, "--state", tmp_path / "state.json")
        assert result.exit_code == 2
        assert "is not a monitor's state" in result.stderr
