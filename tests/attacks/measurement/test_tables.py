"""Ensembles, comparisons, records and pictures."""

import csv
import io

import keras
import numpy as np
import pytest

import defended
from defended.attacks import (
    PGD,
    CertificateDescent,
    DegradationAttack,
    Ensemble,
    Records,
    compare,
    plot_fpr,
    plot_pairs,
    plot_vra,
    susceptibility,
)
from defended.attacks.core.attack import Attack
from defended.attacks.measurement.plots import fpr_upper_curve
from defended.statistics.intervals import Rate, clopper_pearson

EPSILON = 0.25
X = np.array([[0.1], [0.3], [0.45], [0.6], [-0.3], [-0.7], [-0.9], [-0.05]], "float32")
Y = np.array([0, 0, 0, 0, 0, 1, 0, 1])
QUICK = {"steps": 5, "batch_size": 16}


@pytest.fixture(scope="module")
def line():
    """Logits (x, -x): r(x) = |x|."""
    network = keras.Sequential([keras.Input((1,)), keras.layers.Dense(2)])
    network.set_weights([np.array([[1.0, -1.0]], "float32"), np.zeros(2, "float32")])
    model = defended.GloroNet(network, epsilon=EPSILON)
    model.finalize()
    return model


class Shift(Attack):
    """Moves every input by the same amount, and remembers whom it was asked to move."""

    def __init__(self, *, by, log=None, clip=None):
        self.by, self.clip, self.log = by, clip, log

    def _perturb(self, task):
        self.log.append((self.by, task.index.tolist(), None if task.labels is None else task.labels.tolist()))
        return task.x + self.by


def test_an_ensemble_spends_the_later_attacks_on_what_is_left(line):
    log = []
    first, second = Shift(by=-0.2, log=log), Shift(by=0.2, log=log)
    x = np.array([[0.3], [0.4], [-0.3], [-0.4], [0.9]], "float32")
    attacked = Ensemble([first, second])(line, x, [0, 0, 1, 1, 0])
    # 0.3 and 0.4 fall to |x| <= 0.25 at once; -0.3 and -0.4 are first moved away, then back; 0.9 stays out of reach.
    assert log == [(-0.2, [0, 1, 2, 3, 4], [0, 0, 1, 1, 0]), (0.2, [2, 3, 4], [1, 1, 0])]
    np.testing.assert_allclose(attacked[:, 0], [0.1, 0.2, -0.1, -0.2, 1.1], atol=1e-6)
    log.clear()
    Ensemble([first, second])(line, x[:2])
    assert len(log) == 1


def test_an_ensemble_finds_what_any_of_its_attacks_finds(line):
    both = Ensemble([PGD(**QUICK), CertificateDescent(**QUICK)])
    one, all_of_them = (susceptibility(line, X, Y, attack) for attack in (CertificateDescent(**QUICK), both))
    assert (all_of_them.records.degraded >= one.records.degraded).all()
    assert all_of_them.attack["attacks"][1]["attack"] == "CertificateDescent"
    assert "Ensemble, attacks=[(PGD, steps=5" in all_of_them.to_table()


@pytest.mark.parametrize(
    ("attacks", "error", "match"),
    [
        ([], ValueError, "at least one"),
        ([print], TypeError, "must hold attacks"),
        ([PGD(epsilon=0.1)], ValueError, "must be None"),
        ([PGD(norm="l2"), PGD(norm="linf")], ValueError, "one ball and one box"),
        ([PGD(clip=(0, 1)), PGD()], ValueError, "one ball and one box"),
    ],
)
def test_bad_ensembles(attacks, error, match):
    with pytest.raises(error, match=match):
        Ensemble(attacks)


@pytest.fixture(scope="module")
def results(line):
    attacks = {"descent": CertificateDescent(**QUICK), "algorithm 3.1": DegradationAttack(PGD(**QUICK))}
    return {name: susceptibility(line, X, Y, attack) for name, attack in attacks.items()}


def test_the_papers_table_by_hand(results):
    rows = list(csv.reader(io.StringIO(compare(results).to_table("paper", "csv"))))
    assert rows[0] == [
        "", "norm", "ε", "inputs", "VRA", "FPR, at least", "FPR, at most", "utility reduction", "VRA under attack",
    ]  # fmt: skip
    # Of 8 inputs 4 are certified and right; 2 of these have a radius of at most 0.5, and can be degraded.
    assert rows[1] == ["descent", "l2", "0.25", "8", "50.0", "50.0", "50.0", "25.0", "25.0"]
    assert [row[0] for row in rows[1:]] == ["descent", "algorithm 3.1"]


@pytest.mark.parametrize("layout", ["figures", "paper"])
def test_every_format_tells_the_same(results, layout):
    comparison = compare(results)
    cells = [cell for row in csv.reader(io.StringIO(comparison.to_table(layout, "csv"))) for cell in row]
    for form in ("text", "markdown"):
        table = comparison.to_table(layout, form)
        assert all(cell in table for cell in cells)
        assert len({len(line) for line in table.splitlines()}) == 1 or form == "text"
    assert str(comparison) == comparison.to_table()


def test_names_of_a_comparison(results):
    assert list(compare(results.values(), ["a", "b"]).results) == ["a", "b"]
    assert list(compare([results["descent"]]).results) == ["eps 0.25, CertificateDescent"]
    for names in (["a"], ["a", "a"]):
        with pytest.raises(ValueError, match="name"):
            compare(results.values(), names)
    with pytest.raises(ValueError, match="at least one"):
        compare([])
    with pytest.raises(ValueError, match="`layout`"):
        compare(results).to_table("html")


def test_one_result_has_the_papers_row_too(results):
    assert "50.0" in results["descent"].to_table("paper")


def test_records_go_to_parquet_and_back(results, tmp_path):
    result = results["descent"]
    path = result.records.to_parquet(tmp_path / "deep" / "records.parquet", result.summary())
    assert [file.name for file in path.parent.iterdir()] == ["records.parquet"]
    for before, after in zip(result.records, Records.from_parquet(path), strict=True):
        np.testing.assert_array_equal(before, after)
        assert before.dtype == after.dtype
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(path)
    assert b'"test_A": 3' in table.schema.metadata[b"defended"]
    assert table["index"].to_pylist() == list(range(8))
    parquet.write_table(table.select(["label"]), path)
    with pytest.raises(ValueError, match="does not hold records of a measurement"):
        Records.from_parquet(path)


def test_the_curve_of_the_upper_bound_by_hand():
    radius = np.array([0.0, 0.1, 0.2, 0.3, 0.4])
    curve = fpr_upper_curve(radius, np.array([0.0, 0.05, 0.1, 0.15, 0.2, 0.5]))
    np.testing.assert_allclose(curve, [0.0, 1 / 4, 1 / 3, 2 / 3, 1.0, np.nan])


def lines(figure):
    return {line.get_label(): line.get_xydata() for line in figure.axes[0].get_lines()}


def test_figures_two_and_three_draw_the_rates(results):
    drawn = lines(plot_vra(results, radii=[0.0, 0.25, 0.5, 1.0]))["descent"]
    # Right: 0.1, 0.3, 0.45, 0.6, 0.7, 0.05 of 8 inputs, by radius.
    np.testing.assert_allclose(drawn[:, 1], [75.0, 50.0, 25.0, 0.0])
    drawn = lines(plot_fpr(results, radii=[0.25, 0.4]))["descent"]
    np.testing.assert_allclose(drawn[:, 1], [50.0, 75.0])  # 6 and 4 certified, of which 3 and 1 at twice the radius
    marks = [
        line.get_xydata() for line in plot_fpr(results["descent"]).axes[0].get_lines() if len(line.get_xdata()) < 3
    ]
    assert marks[0].tolist() == [[0.25, 50.0], [0.25, 50.0]]


def test_pictures_of_pairs_and_files(results, tmp_path):
    result = results["descent"]
    figure = plot_pairs(X, result, count=3)
    assert len(figure.axes) == 9
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[:3] == ["answers 0", "answers 0", "answers 1"]
    assert titles[3:6] == ["rejects: ⊥"] * 3
    named = plot_pairs(X, result, count=3, class_names=["right of way at the next crossing"])
    titles = [axes.get_title() for axes in named.axes]
    assert titles[0] == "answers right of\nway at the next\ncrossing"
    assert titles[2] == "answers 1"  # which has no name
    for name, picture in {"pairs": figure, "vra": plot_vra(results), "fpr": plot_fpr(results)}.items():
        picture.savefig(tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").stat().st_size > 3000


def test_bad_pictures(line, results):
    nothing = susceptibility(line, X, Y, lambda model, x, y: x)
    with pytest.raises(ValueError, match="no degraded input"):
        plot_pairs(X, nothing)
    with pytest.raises(ValueError, match="empty"):
        plot_vra({})


def test_intervals_that_count_wrong_judgements():
    """Of 1000 trials, each wrong with probability 0.001, at most 3 are, with probability 0.981 (at most 2: 0.920)."""
    plain, doubtful = Rate(400, 1000), Rate(400, 1000, doubt=0.001)
    assert doubtful.interval[0] == clopper_pearson(397, 1000, 0.975)[0]
    assert doubtful.interval[1] == clopper_pearson(403, 1000, 0.975)[1]
    assert doubtful.interval[0] < plain.interval[0]
    assert plain.interval[1] < doubtful.interval[1]
    assert Rate(0, 0, doubt=0.1).interval == (0.0, 1.0)


@pytest.mark.parametrize("rate", [0.0, 0.02, 0.5])
def test_such_intervals_cover(rate):
    """Judgements are turned at random: the interval for the true share still covers it."""
    rng = np.random.default_rng(4)
    covered = []
    for _ in range(400):
        truth = rng.uniform(size=150) < rate
        seen = truth ^ (rng.uniform(size=150) < 0.01)
        low, high = Rate(int(seen.sum()), 150, doubt=0.01).interval
        covered.append(low <= rate <= high)
    assert np.mean(covered) >= 0.95
