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


def test_a_short_campaign_finds_no_violation():
    rows = soundness.campaign(nets=14, attempts=60, seed=7, out=None, every=0)
    assert sum(row["violations"] for row in rows) == 0, [row for row in rows if row["violations"]]
    assert sum(row["attempts"] for row in rows) > 300
    assert {"GloroNet", "PolytopeNet"} == {row["defence"] for row in rows}
    table = soundness.summary(rows)
    assert "| all | 14 |" in table


def test_the_same_numbers_make_the_same_row():
    with soundness.quiet():
        first, again = (soundness.attempt(3, 0, 40) for _ in range(2))
    assert {**first, "seconds": 0} == {**again, "seconds": 0}


def test_a_campaign_goes_on_where_it_was_stopped(tmp_path):
    out = tmp_path / "rows.csv"
    soundness.campaign(nets=2, attempts=20, seed=0, out=out, every=0)
    before = out.read_text()
    rows = soundness.campaign(nets=3, attempts=20, seed=0, out=out, every=0)
    assert out.read_text().startswith(before)
    assert [int(row["net"]) for row in rows] == [0, 1, 2]


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


PLANTED = {
    constants_of_a_third: "none",
    no_comparison: "code",
    the_first_proof_lasts: "weights",
    settings_as_they_were: "settings",
    files_are_believed: "file",
}


@pytest.mark.parametrize("fault", PLANTED, ids=lambda fault: fault.__name__)
def test_planted_faults_are_found(fault, monkeypatch):
    """Each within a few networks; without it, the same networks have no violation."""
    found = []
    for planted in (False, True):
        with monkeypatch.context() as patch, soundness.quiet():
            if planted:
                fault(patch)
            rows = []
            for number in range(12):
                rows.append(soundness.attempt(number, 5, 60, defence="GloroNet", disturbance=PLANTED[fault]))
                if rows[-1]["violations"] or (not planted and number == 1):
                    break
        found.append(sum(row["violations"] for row in rows))
    assert found[0] == 0
    assert found[1] > 0
