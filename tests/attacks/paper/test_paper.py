"""The paper's tables and figures done again: against what it prints, and without what is missing."""

import csv
import functools
import io

import numpy as np
import pytest
from typer.testing import CliRunner

from defended import zoo
from defended.attacks import CertificateDescent, DegradationAttack, Rate
from defended.attacks.paper import EXPERIMENTS, Finding, Reproduction, Settings, lipschitz, reproduce
from defended.attacks.paper.settings import NotHereError
from defended_cli import app


@pytest.fixture(scope="module", autouse=True)
def every_net_is_loaded_once():
    """Tables that measure the same net of the zoo use the same graphs."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(zoo, "load", functools.cache(zoo.load))
        yield


@pytest.fixture
def nothing(monkeypatch, tmp_path):
    """No data and no reference files."""
    monkeypatch.setenv("DEFENDED_DATA", str(tmp_path))
    monkeypatch.delenv("DEFENDED_REFERENCE", raising=False)


def test_a_table_by_hand(tmp_path):
    result = Reproduction(
        "table0",
        "a title",
        (Finding("net", "VRA", Rate(9, 10), paper=0.95), Finding("net", "FPR, at least", 0.5, note="why")),
        ("cifar10: no data",),
    )
    rows = list(csv.DictReader(io.StringIO(result.to_csv())))
    assert rows[0]["ours"] == "90.00"
    assert rows[0]["paper"] == "95.00"
    assert rows[0]["difference"] == "-5.00"
    assert (rows[0]["count"], rows[0]["total"]) == ("9", "10")
    assert (rows[0]["low"], rows[0]["high"]) == ("55.50", "99.75")  # Clopper-Pearson, from tables
    assert rows[1]["paper"] == rows[1]["low"] == rows[1]["difference"] == ""
    assert rows[1]["note"] == "why"
    text = str(result)
    assert "[55.50, 99.75]" in text
    assert "not run: cifar10: no data" in text
    assert [path.name for path in result.write(tmp_path)] == ["table0.csv"]


def test_figure3_to_three_digits(reference_dir):
    result = reproduce("figure3", Settings(reference=reference_dir))
    assert len(result.findings) == 11
    assert not result.left_out
    assert result.picture.startswith(b"\x89PNG")
    for finding in result.findings:
        assert finding.ours == pytest.approx(finding.paper, abs=5.1e-4), finding
    assert len({len(values) for values in result.curves.values()}) == 1


@pytest.fixture(scope="module")
def few_points(data_dir, tmp_path_factory):
    """A folder with the first 20 test points of MNIST and of Fashion-MNIST, and with no other data."""
    folder = tmp_path_factory.mktemp("data")
    for name in ("mnist.npz", "fashion_mnist.npz"):
        with np.load(data_dir / name) as arrays:
            x, y = arrays["x_test"][:20], arrays["y_test"][:20]
        np.savez(folder / name, x_train=x, y_train=y, x_test=x, y_test=y)
    return folder


def test_figure2_from_the_published_radii(reference_dir, few_points, monkeypatch):
    monkeypatch.setattr(lipschitz, "CASES", lipschitz.CASES[:1])
    result = reproduce("figure2", Settings(reference=reference_dir, data={"mnist": few_points / "mnist.npz"}))
    values = {(finding.case, finding.figure): float(finding.ours) for finding in result.findings}
    doubled = "mnist 0.3, authors', at 2 eps"
    assert values[doubled, "VRA at 0.3"] == pytest.approx(0.9703, abs=5e-5)
    assert values[doubled, "VRA at 0.6"] == pytest.approx(0.9108, abs=5e-5)
    assert values[doubled, "FPR at 0.3, at most"] == pytest.approx(0.0629, abs=5e-5)
    ours = [finding for finding in result.findings if ", ours, " in finding.case and finding.figure == "VRA at 0.3"]
    assert [finding.ours.total for finding in ours] == [20, 20]


def test_what_is_missing_is_said(nothing):
    result = reproduce("figure3", Settings())
    assert not result.findings
    assert all("DEFENDED_REFERENCE" in reason for reason in result.left_out)
    with pytest.raises(NotHereError, match=r"cifar10\.npz .* DEFENDED_DATA"):
        Settings().test_points("cifar10", 10)
    with pytest.raises(NotHereError, match=r"--net cifar10-0\.141="):
        Settings().net("cifar10-0.141", "cifar10-liresnet-0.141", 0.141)
    with pytest.raises(NotHereError, match="is not there"):
        Settings(nets={"mnist-0.3": "absent.gloronet"}).net("mnist-0.3", None, 0.3)


def make_tables_small(patched, folder):
    """Of MNIST one net of the zoo, and the authors' net, which is not there; of CIFAR-10 no data."""
    first, *others = lipschitz.CASES
    cases = [first._replace(zoo=first.zoo[:1]), *(case._replace(zoo=()) for case in others)]
    patched.setattr(lipschitz, "CASES", cases)
    patched.setattr(lipschitz, "POINTS", 10)
    patched.setenv("DEFENDED_DATA", str(folder))
    patched.delenv("DEFENDED_REFERENCE", raising=False)


@pytest.fixture(scope="module")
def table1(few_points):
    with pytest.MonkeyPatch.context() as patched:
        make_tables_small(patched, few_points)
        return reproduce("table1")


def test_table1_on_a_few_points(table1):
    assert {finding.case for finding in table1.findings} == {"mnist-0.3, mnist-2c2f-0.3"}
    for finding in table1.findings:
        assert 0 <= finding.ours <= 1
        assert finding.ours.total <= 10
        assert finding.note == ("" if finding.paper is None else "the paper's value is another net's")
    assert any("DEFENDED_REFERENCE" in reason for reason in table1.left_out)
    assert any("cifar10" in reason for reason in table1.left_out)
    assert not any("fashion" in reason for reason in table1.left_out)


def test_a_table_that_is_stopped_goes_on_where_it_was(table1, few_points, tmp_path, monkeypatch):
    make_tables_small(monkeypatch, few_points)
    calls = []

    def watch(attack, stop=False):
        def call(self, *points, **options):
            calls.append(attack.__name__)
            if stop:
                raise KeyboardInterrupt
            return attack.__call__(self, *points, **options)

        return type(attack.__name__, (attack,), {"__call__": call})

    monkeypatch.setattr(lipschitz, "DegradationAttack", watch(DegradationAttack))
    monkeypatch.setattr(lipschitz, "CertificateDescent", watch(CertificateDescent, stop=True))
    command = ["reproduce", "table1", "--out", str(tmp_path)]
    first = CliRunner().invoke(app, command)
    assert first.exit_code != 0
    assert calls == ["DegradationAttack", "CertificateDescent"]
    assert [path.name for path in tmp_path.iterdir()] == ["unfinished"]

    monkeypatch.setattr(lipschitz, "CertificateDescent", watch(CertificateDescent))
    assert CliRunner().invoke(app, command).exit_code == 0
    assert calls[2:] == ["CertificateDescent"]
    assert [path.name for path in tmp_path.iterdir()] == ["table1.csv"]
    assert (tmp_path / "table1.csv").read_text() == table1.to_csv()


def test_what_tells_no_settings_is_measured_anew(line, tmp_path):
    x = np.array([[0.3], [0.6], [-0.4]], "float32")
    result = Settings(resume=tmp_path).measure("a net", line, x, [0, 0, 1], lambda *call: call[1])
    assert result.records.contested.any()
    assert not result.records.degraded.any()
    assert not list(tmp_path.iterdir())


def test_figure4_draws_what_is_here(few_points, monkeypatch):
    monkeypatch.setattr(lipschitz, "DRAWN", ("mnist-0.3", "cifar10-0.141"))
    monkeypatch.setenv("DEFENDED_DATA", str(few_points))
    result = reproduce("figure4")
    assert [finding.case for finding in result.findings] == ["mnist-0.3, mnist-2c2f-0.3"]
    assert result.findings[0].ours.total > 10
    assert any("cifar10.npz" in reason for reason in result.left_out)
    assert (result.picture is None) == any("no pair to draw" in reason for reason in result.left_out)


def test_unknown_experiments_are_refused():
    assert set(EXPERIMENTS) == {f"table{n}" for n in range(1, 6)} | {"figure2", "figure3", "figure4"}
    with pytest.raises(ValueError, match=r"table9.*table1"):
        reproduce("table9")
