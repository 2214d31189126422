"""Logs of CERTIFY: what is read, refused and counted, and the published figures from the published files."""

import math

import keras
import numpy as np
import pytest

from defended.figure_style import to_png
from defended.smoothing import (
    CertificationLog,
    SmoothedNet,
    certify,
    draw_certification,
    radius_ceiling,
    read_log,
    write_log,
)
from defended.smoothing.figures import Panel

HEADER = "idx\tlabel\tpredict\tradius\tcorrect\ttime\n"
ROWS = (
    "0\t3\t3\t0.5\t1\t0:00:13.5\n"
    "20\t7\t7\t1.0\t1\t15.4\n"
    "40\t4\t5\t2.0\t0\t1 day, 2:00:01\n"
    "60\t1\t-1\t0.0\t0\t0:00:00\n"
    "80\t2\t2\t0.25\t1\t0:01:00.25\n"
)  # fmt: skip


def written(tmp_path, text, encoding="utf-8"):
    path = tmp_path / "log.tsv"
    path.write_bytes(text.encode(encoding))
    return path


@pytest.fixture
def log(tmp_path):
    return read_log(written(tmp_path, HEADER + ROWS))


def test_what_is_read(log):
    assert len(log) == 5
    np.testing.assert_array_equal(log.index, [0, 20, 40, 60, 80])
    np.testing.assert_array_equal(log.label, [3, 7, 4, 1, 2])
    np.testing.assert_array_equal(log.predicted, [3, 7, 5, -1, 2])
    np.testing.assert_array_equal(log.radius, [0.5, 1.0, 2.0, 0.0, 0.25])
    np.testing.assert_array_equal(log.correct, [True, True, False, False, True])
    np.testing.assert_array_equal(log.seconds, [13.5, 15.4, 93601.0, 0.0, 60.25])
    assert log.radius.dtype == np.float64
    assert log.label.dtype == np.int64
    with pytest.raises(ValueError, match="read-only"):
        log.radius[0] = 9.0


def test_rates_by_hand_in_both_conventions(log):
    # Radii 0.5, 1.0, 2.0 (wrong), 0 (abstained), 0.25.
    assert log.accuracy == 3 / 5
    assert log.average_certified_radius == pytest.approx((0.5 + 1.0 + 0.25) / 5)
    assert log.vra(0.5) == 1 / 5
    assert log.vra(0.5, strict=False) == 2 / 5
    assert log.vra_2eps(0.5) == 0.0
    assert log.vra_2eps(0.5, strict=False) == 1 / 5
    assert log.rejection_rate(0.5) == 3 / 5
    assert log.rejection_rate(0.5, strict=False) == 2 / 5
    # Answered at 0.5: 1.0 and 2.0; beyond 1.0: 2.0 alone, which is wrong.
    assert log.fpr_upper(0.5) == 1 / 2
    assert log.fpr_upper(0.5, strict=False) == pytest.approx(1 / 3)
    assert log.fpr_upper_correct(0.5) == 1.0
    assert log.fpr_upper_correct(0.5, strict=False) == 1 / 2
    assert log.fpr_upper(1.5) == 1.0
    assert math.isnan(log.fpr_upper(2.0))
    assert log.fpr_upper(2.0, strict=False) == 1.0


def test_radii_are_compared_as_the_deployed_check_does():
    """0.1 as float32 is larger than 0.1: a radius that equals the deployed epsilon does not exceed it."""
    log = CertificationLog(*np.array([[0], [1], [1]]), np.float32([0.1]))
    assert log.radius[0] > 0.1
    assert log.vra(0.1) == 0.0
    assert log.vra(0.1, strict=False) == 1.0


@pytest.mark.parametrize("epsilon", [0.0, -1.0, math.nan, math.inf])
def test_a_radius_must_be_a_positive_number(log, epsilon):
    with pytest.raises(ValueError, match="`epsilon` must be a positive finite number"):
        log.vra(epsilon)


def test_a_log_without_rows(tmp_path):
    log = read_log(written(tmp_path, HEADER))
    assert len(log) == 0
    assert math.isnan(log.vra(0.5))
    assert math.isnan(log.fpr_upper(0.5))


def test_writing_and_reading_give_the_same_numbers(tmp_path, log):
    rng = np.random.default_rng(0)
    n = 50
    predicted = rng.integers(-1, 10, n)
    radius = np.where(predicted < 0, 0.0, rng.gamma(1.0, size=n).astype(np.float32))
    own = CertificationLog(np.arange(n) * 7, rng.integers(0, 10, n), predicted, radius, rng.gamma(2.0, 1e5, n))
    for original in (log, own):
        path = write_log(tmp_path / "new" / "log.tsv", original)
        again = read_log(path)
        for name in ("index", "label", "predicted", "radius", "correct"):
            np.testing.assert_array_equal(getattr(again, name), getattr(original, name), err_msg=name)
        np.testing.assert_allclose(again.seconds, original.seconds, atol=1e-6)
    header, first = path.read_text().splitlines()[:2]
    assert header + "\n" == HEADER
    assert first.split("\t")[5].count(":") == 2


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_line_ends_and_blank_lines_do_not_matter(tmp_path, newline):
    assert len(read_log(written(tmp_path, (HEADER + ROWS + "\n").replace("\n", newline)))) == 5
    assert len(read_log(written(tmp_path, (HEADER + ROWS).rstrip().replace("\n", newline)))) == 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "its first line must be .* Found: an empty file"),
        ("idx,label,predict\n", "its first line must be .* Found: 'idx,label,predict'"),
        (HEADER + "0\t3\t3\t0.5\t1\n", r"line 2: expected 6 tab-separated columns .* Found 5: .*cut off"),
        (HEADER + ROWS + "100\t3\t3\t0.", "line 7: expected 6"),
        (HEADER + "x\t3\t3\t0.5\t1\t1\n", "line 2: `idx` must be a whole number. Found: 'x'"),
        (HEADER + "0\t3.5\t3\t0.5\t1\t1\n", "line 2: `label` must be a whole number. Found: '3.5'"),
        (HEADER + "0\t3\t3\tbig\t1\t1\n", "line 2: `radius` must be a number. Found: 'big'"),
        (HEADER + "0\t3\t3\tnan\t1\t1\n", "`radius` must be finite and not negative. Received: nan in row 0"),
        (HEADER + "0\t3\t3\tinf\t1\t1\n", "`radius` must be finite"),
        (HEADER + "0\t3\t3\t-0.5\t1\t1\n", "`radius` must be finite and not negative. Received: -0.5"),
        (HEADER + "0\t3\t-1\t0.5\t0\t1\n", "`radius` must be 0 where `predicted` is -1"),
        (HEADER + "0\t3\t-2\t0.5\t0\t1\n", "`predicted` must be a class, or -1"),
        (HEADER + "0\t3\t3\t0.5\t0\t1\n", "line 2: `correct` must be 1 where label and predict agree"),
        (HEADER + "0\t3\t4\t0.5\t1\t1\n", "line 2: `correct` must be 1 where label and predict agree"),
        (HEADER + "0\t3\t3\t0.5\tyes\t1\n", "correct 'yes'"),
        (HEADER + "0\t3\t3\t0.5\t1\tsoon\n", "line 2: `time` must be seconds, or h:mm:ss .* Found: 'soon'"),
        (HEADER + "0\t3\t3\t0.5\t1\t0:61:00\n", "`time` must be seconds"),
        (HEADER + "0\t3\t3\t0.5\t1\tnan\n", "`time` must be seconds"),
    ],
)
def test_a_malformed_file_is_refused_by_line_and_column(tmp_path, text, message):
    path = written(tmp_path, text)
    with pytest.raises(ValueError, match=message) as error:
        read_log(path)
    assert str(path) in str(error.value)


def test_a_file_that_is_not_text_is_refused(tmp_path):
    (tmp_path / "log.tsv").write_bytes(b"\x89PNG\r\n\x1a\n\xff\xfe")
    with pytest.raises(ValueError, match="not text in UTF-8"):
        read_log(tmp_path / "log.tsv")
    with pytest.raises(FileNotFoundError):
        read_log(tmp_path / "none.tsv")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (([0, 1], [0, 1], [0, 1], [0.5]), r"`radius` must have shape \[2\], as `index` has. Received: shape \(1,\)"),
        (([0], [0.5], [0], [0.5]), "`label` must hold whole numbers"),
        (([0], [math.nan], [0], [0.5]), "`label` must hold whole numbers"),
        (([0], [-1], [0], [0.5]), "`label` must not be negative"),
        (([-1], [0], [0], [0.5]), "`index` must not be negative"),
        (([0], [0], [0], [0.5], [math.inf]), "`seconds` must be finite"),
    ],
)
def test_columns_that_do_not_fit_are_refused(columns, message):
    with pytest.raises(ValueError, match=message):
        CertificationLog(*(np.array(column) for column in columns))


def test_a_figure_has_a_panel_a_log_and_the_same_bytes_every_time(log):
    panels = {"one": Panel(log, ceiling=1.5, marks=(0.2,), found={0.4: 0.1}), "two": Panel(log), "three": Panel(log)}
    figure = draw_certification(panels)
    titles = [axes.get_title(loc="left") for axes in figure.axes if axes.axison]
    assert titles == ["one", "two", "three"]
    assert to_png(figure) == to_png(draw_certification(panels))
    with pytest.raises(ValueError, match="at least one log"):
        draw_certification({})


def test_a_drawn_curve_holds_the_logs_rates(log):
    (axes,) = draw_certification({"one": Panel(log)}, strict=False).axes
    vra, fpr = (line.get_data() for line in axes.lines)
    for radii, values, rate in ((*vra, log.vra), (*fpr, log.fpr_upper)):
        for at in (40, 200, 399):
            np.testing.assert_allclose(values[at], 100 * rate(radii[at], strict=False))


# The upper bounds on the false positive rate in Figure 3 of Leino et al. 2022, for all inputs, `r >= eps`.
FIGURE_3 = [
    ("cifar10", 0.25, 0.125, 0.162), ("cifar10", 0.25, 0.25, 0.310),
    ("cifar10", 0.5, 0.25, 0.291), ("cifar10", 0.5, 0.5, 0.474), ("cifar10", 0.5, 0.75, 0.725),
    ("cifar10", 1.0, 0.25, 0.190), ("cifar10", 1.0, 0.5, 0.434), ("cifar10", 1.0, 1.0, 0.586),
    ("imagenet", 0.5, 0.25, 0.187), ("imagenet", 0.5, 0.5, 0.247), ("imagenet", 0.5, 0.75, 0.409),
]  # fmt: skip


@pytest.mark.parametrize(("data", "sigma", "epsilon", "published"), FIGURE_3)
def test_figure_3_to_three_digits(reference_dir, data, sigma, epsilon, published):
    log = read_log(reference_dir / "smoothing" / f"{data}_sigma_{sigma:.2f}.tsv")
    assert len(log) == 500
    assert round(log.fpr_upper(epsilon, strict=False), 3) == published


def test_the_published_files_are_written_as_they_were_read(reference_dir, tmp_path):
    paths = sorted((reference_dir / "smoothing").glob("*.tsv"))
    assert len(paths) == 7
    for path in paths:
        log = read_log(path)
        again = read_log(write_log(tmp_path / path.name, log))
        for name in ("index", "label", "predicted", "radius"):
            np.testing.assert_array_equal(getattr(again, name), getattr(log, name))


@pytest.mark.parametrize(
    ("name", "sigma", "alpha"),
    [("cifar10_sigma_0.12", 0.12, 0.001), ("cifar10_sigma_0.25", 0.25, 0.01), ("imagenet_sigma_1.00", 1.0, 0.01)],
)
def test_the_published_files_reach_the_ceiling_of_their_alpha(reference_dir, name, sigma, alpha):
    """A unanimous vote of 100,000; what figures draw as the ceiling. Only the files at 0.12 were made with 0.001."""
    log = read_log(reference_dir / "smoothing" / f"{name}.tsv")
    assert log.radius.max() == float(f"{radius_ceiling(sigma, 100_000, alpha):.3g}")


def test_certify_keeps_every_class_and_radius_of_the_model():
    """A linear classifier of two classes: the vote for class 1 at x has share Phi(x / sigma), the radius is |x|."""
    network = keras.Sequential([keras.Input((1,)), keras.layers.Dense(2)])
    network.set_weights([np.float32([[-1.0, 1.0]]), np.zeros(2, "float32")])
    x = np.float32([[-0.5], [0.0], [0.2], [5.0]])
    model = SmoothedNet(network, epsilon=0.3, sigma=0.5, samples=5000, seed=1, mode="fixed")
    log = certify(model, x, [0, 0, 0, 1], index=[3, 5, 7, 9], batch_size=3)
    np.testing.assert_array_equal(log.index, [3, 5, 7, 9])
    np.testing.assert_array_equal(log.predicted, [0, -1, 1, 1])
    np.testing.assert_array_equal(log.correct, [True, False, False, True])
    np.testing.assert_allclose(log.radius[[0, 2]], [0.5, 0.2], atol=0.06)
    assert (log.radius[[0, 2]] < [0.5, 0.2]).all()
    assert log.radius[1] == 0
    assert log.radius[3] == np.float32(model.radius_ceiling)
    assert (log.seconds > 0).all()
    np.testing.assert_array_equal(log.radius, certify(model, x, [0, 0, 0, 1], batch_size=3).radius)
    verdicts = model.verdicts(x[:3])
    np.testing.assert_array_equal(verdicts.label, np.where(log.radius > 0.3, log.predicted, -1)[:3])


def test_certify_refuses_what_stops_early_and_what_does_not_fit():
    network = keras.Sequential([keras.Input((1,)), keras.layers.Dense(2)])
    sequential = SmoothedNet(network, epsilon=0.3, sigma=0.5, samples=100)
    with pytest.raises(ValueError, match="mode 'fixed'"):
        certify(sequential, np.zeros((1, 1)), [0])
    model = SmoothedNet(network, epsilon=0.3, sigma=0.5, samples=100, mode="fixed")
    with pytest.raises(ValueError, match=r"`x` must have shape \[n, 1\]"):
        certify(model, np.zeros((1, 2)), [0])
    assert len(certify(model, np.zeros((0, 1)), [])) == 0
    with pytest.raises(ValueError, match="`label` must have shape"):
        certify(model, np.zeros((1, 1)), [0, 1])
