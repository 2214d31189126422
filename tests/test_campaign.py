"""The campaign against the certificates finds nothing, and finds what is planted."""

import importlib.util
from pathlib import Path

import keras
import pytest
from keras import layers

from defended.gate import Gate
from defended.gloro.lipschitz_certificate import LipschitzCertificate

spec = importlib.util.spec_from_file_location("soundness", Path(__file__).parents[1] / "benchmarks" / "soundness.py")
soundness = importlib.util.module_from_spec(spec)
spec.loader.exec_module(soundness)


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """A short campaign: its rows, and the file that it wrote."""
    out = tmp_path_factory.mktemp("campaign") / "rows.csv"
    return soundness.campaign(nets=7, attempts=60, seed=16, out=out, every=0), out


def test_a_short_campaign_finds_no_violation(short):
    rows, _ = short
    assert sum(row["violations"] for row in rows) == 0, [row for row in rows if row["violations"]]
    assert sum(row["attempts"] for row in rows) > 300
    assert {"GloroNet", "PolytopeNet"} == {row["defence"] for row in rows}
    table = soundness.summary(rows)
    assert "| all | 7 |" in table


def test_a_campaign_goes_on_where_it_was_stopped_and_the_same_numbers_make_the_same_row(short, tmp_path):
    rows, whole = short
    stopped = next(row["net"] for row in rows if row["net"] and row["attempts"])
    lines = whole.read_text().splitlines(keepends=True)
    out, before = tmp_path / "rows.csv", "".join(lines[: 1 + stopped])  # the header is a line, too
    out.write_text(before)
    resumed = soundness.campaign(nets=stopped + 1, attempts=60, seed=16, out=out, every=0)
    assert out.read_text().startswith(before)
    assert [int(row["net"]) for row in resumed] == list(range(stopped + 1))
    assert {**resumed[stopped], "seconds": 0} == {**rows[stopped], "seconds": 0}


def constants_of_a_third(monkeypatch):
    honest = LipschitzCertificate.prove

    def prove(self, claims):
        honest(self, claims)
        constants = self._constants.margin_lipschitz
        constants.assign(constants / 3)

    monkeypatch.setattr(LipschitzCertificate, "prove", prove)


def no_comparison(monkeypatch):
    monkeypatch.setattr(LipschitzCertificate, "check", lambda self, name, judge, thorough=True: None)


def the_first_proof_lasts(monkeypatch):
    honest = Gate.ensure_proven
    monkeypatch.setattr(Gate, "ensure_proven", lambda self: None if self._proof.is_sealed else honest(self))


def with_a_slope(rng, polytope):
    body = [layers.Dense(6), layers.LeakyReLU(0.1), layers.Dense(3)]
    return keras.Sequential([keras.Input((4,)), *body])


def settings_as_they_were(monkeypatch):
    no_comparison(monkeypatch)
    monkeypatch.setattr(LipschitzCertificate, "retrace", lambda self, network: None)
    monkeypatch.setattr(soundness, "build", with_a_slope)


def files_are_believed(monkeypatch):
    def ensure(self):
        if self._aside.claims:
            self._proof.assign(self._aside.claims)
            self._aside.claims = None
            self._proof.seal(self._proven_of())
            self._remember()
        elif not self._is_current():
            self.finalize()

    monkeypatch.setattr(Gate, "ensure_proven", ensure)


# The disturbance under which a fault shows, and the first of twelve networks to try, a small one that shows it.
PLANTED = {
    constants_of_a_third: ("none", 4),
    no_comparison: ("code", 4),
    the_first_proof_lasts: ("weights", 2),
    settings_as_they_were: ("settings", 0),
    files_are_believed: ("file", 2),
}


@pytest.mark.parametrize("fault", PLANTED, ids=lambda fault: fault.__name__)
def test_planted_faults_are_found(fault, monkeypatch):
    """Each within a few networks; without it, the network that showed it has no violation."""
    disturbance, first = PLANTED[fault]

    def violations(number):
        return soundness.attempt(number, 5, 60, defence="GloroNet", disturbance=disturbance)["violations"]

    with soundness.quiet():
        with monkeypatch.context() as patch:
            fault(patch)
            shown = next((number for number in (*range(first, 12), *range(first)) if violations(number)), None)
        assert shown is not None
        assert violations(shown) == 0
