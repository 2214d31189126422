"""Audit figures worked by hand, on a linear classifier of the plane, and the files of a report."""

import dataclasses
import hashlib
import json
import re
import shutil
from html.parser import HTMLParser

import keras
import numpy as np
import pytest
from nets import overclaiming

from defended import GloroNet
from defended._io import canonical_json
from defended.figure_style import to_png
from defended.provenance import data_digest
from defended.serving import AgreementError, ArtefactError, audit, export, load
from defended.serving.artefacts.manifest import Manifest
from defended.serving.auditing.pictures import draw_degraded_pairs
from defended.serving.auditing.report_page import percent
from defended.statistics.intervals import clopper_pearson

# Logits are the two coordinates, so the certified radius is |a - b| / sqrt 2. Epsilon is 0.5.
#                     r = 2.121   .7071      1.414      .3536       0: a tie    1.061
POINTS = np.array([[3, 0], [1, 0], [0, 2], [0, 0.5], [0, 0], [2, 0.5]], "float32")
LABELS = np.array([0, 0, 0, 1, 1, 0])  # the third and the fifth are wrong answers
DIAGONAL = np.array([1, -1]) / np.sqrt(2)


def plane(epsilon=0.5):
    network = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, use_bias=False)])
    network.layers[0].set_weights([np.eye(2, dtype="float32")])
    model = GloroNet(network, epsilon=epsilon)
    model.finalize()
    return model


def towards_the_boundary(distance):
    def attack(model, x, y):
        side = np.sign(x[:, :1] - x[:, 1:])
        return x - (distance * side * DIAGONAL).astype("float32")

    return attack


@pytest.fixture(scope="module")
def model():
    return plane()


@pytest.fixture(scope="module")
def path(model, tmp_path_factory):
    return export(model, tmp_path_factory.mktemp("models"), "plane", onnx=False)


@pytest.fixture(scope="module")
def artefact(path):
    with load(path) as artefact:
        yield artefact


@pytest.fixture(scope="module")
def alone(artefact):
    return audit(artefact, POINTS, LABELS)


@pytest.fixture(scope="module")
def attacked(artefact, model):
    return audit(artefact, POINTS, LABELS, model=model, attack=towards_the_boundary(0.5), data_name="<six> points")


@pytest.fixture(scope="module")
def html(attacked):
    return attacked.to_html()


@pytest.fixture(scope="module")
def trained(model, tmp_path_factory):
    """An artefact whose manifest lists two digests of training data; a test may put another in the second's place."""
    folder, digests = tmp_path_factory.mktemp("trained"), ["0" * 64, "1" * 64]
    return export(model, folder, "trained", onnx=False, warm_up=False, training_data=digests)


def counts(rate):
    return rate.count, rate.total


class TestFigures:
    def test_rates_by_hand(self, alone):
        assert counts(alone.clean_accuracy) == (4, 6)
        assert counts(alone.rejection_rate) == (2, 6)
        assert counts(alone.accuracy_on_answered) == (3, 4)
        assert counts(alone.vra) == (3, 6)
        assert counts(alone.vra_2eps) == (2, 6)
        assert counts(alone.always_answered) == (3, 6)
        assert counts(alone.fpr_upper) == (1, 4)
        assert counts(alone.fpr_upper_correct) == (1, 3)
        assert alone.fpr_upper == 0.25

    def test_what_is_printed_is_short(self, alone):
        assert "on 6 inputs at eps=0.5: rejected 33.3%, VRA 50.0%, FPR at most 25.0%>" in repr(alone)
        assert len(repr(alone)) < 150

    def test_without_a_model_there_is_no_lower_bound(self, alone):
        assert alone.attack is None
        assert alone.fpr_lower is None
        assert alone.vra_under_attack is None

    def test_intervals_are_clopper_pearson_at_the_confidence_asked_for(self, artefact, alone):
        assert alone.vra.interval == clopper_pearson(3, 6, 0.95)
        wide = audit(artefact, POINTS, LABELS, confidence=0.99)
        assert wide.vra.interval == clopper_pearson(3, 6, 0.99)

    def test_availability_quantiles_by_hand(self, alone):
        # max(r - 0.5, 0): 0, 0, .2071, .5607, .9142, 1.6213
        expected = {0: 0, 0.05: 0, 0.25: 0, 0.5: 0.2071, 0.75: 0.9142, 0.95: 1.6213, 1: 1.6213}
        assert alone.availability == pytest.approx(expected, abs=2e-4)

    def test_curves_by_hand(self, alone):
        curves = dict(zip(alone.curves.radius, zip(alone.curves.vra, alone.curves.fpr_upper, strict=True), strict=True))
        assert curves[0.0] == (4 / 6, 0)  # the tie is certified nowhere, and is wrong anyway
        assert curves[0.5] == (3 / 6, 1 / 4)
        assert curves[1.0] == (2 / 6, 2 / 3)  # of 2.121, 1.414, 1.061 only the first is above 2
        assert curves[1.5] == (1 / 6, 1)
        assert max(curves) == pytest.approx(0.5 * np.ceil(40 * 2.1213 / 0.5) / 40)

    def test_curves_are_undefined_where_nothing_is_answered(self, artefact):
        report = audit(artefact, POINTS[3:5], LABELS[3:5])
        assert counts(report.fpr_upper) == (0, 0)
        assert report.fpr_upper.interval == (0, 1)
        assert report.curves.fpr_upper[-1] is None
        assert "answered none" in report.to_html()
        json.loads(report.to_json())

    def test_the_curves_pass_through_the_rates(self, alone):
        index = alone.curves.radius.index(0.5)
        assert alone.curves.vra[index] == alone.vra
        assert alone.curves.fpr_upper[index] == alone.fpr_upper
        assert alone.curves.vra[2 * index] == alone.vra_2eps

    def test_batches_change_nothing(self, artefact, alone):
        assert audit(artefact, POINTS, LABELS, batch_size=4).rates() == alone.rates()

    def test_a_path_is_verified_and_loaded(self, path, alone, tmp_path):
        assert audit(path, POINTS, LABELS).rates() == alone.rates()
        with pytest.raises(ArtefactError):
            audit(tmp_path, POINTS, LABELS)

    def test_the_data_are_fingerprinted(self, alone, artefact):
        assert alone.data["points"] == 6
        assert audit(artefact, POINTS, LABELS.astype("uint8")).data == alone.data
        assert audit(artefact, POINTS[::-1].copy(), LABELS[::-1]).data["sha256"] != alone.data["sha256"]
        assert alone.data["sha256"] == data_digest(POINTS, LABELS) == data_digest(POINTS, LABELS.astype("int32"))
        assert alone.data["training_data"] is None  # the manifest lists none

    @pytest.mark.parametrize(
        ("recorded", "found"),
        [
            (data_digest(POINTS, LABELS), True),
            (data_digest(POINTS), True),
            (hashlib.sha256(  # as earlier versions recorded class numbers of one byte
                f"{POINTS.dtype.str}{POINTS.shape}".encode() + POINTS.tobytes()
                + b"|u1(6,)" + LABELS.astype("uint8").tobytes()
            ).hexdigest(), True),
            (data_digest(POINTS[:5], LABELS[:5]), False),
        ],
    )  # fmt: skip
    def test_training_data_are_named(self, trained, tmp_path, recorded, found):
        copy = shutil.copytree(trained, tmp_path / "copy")
        content = json.loads((copy / "manifest.json").read_text().replace("1" * 64, recorded)) | {"digest": ""}
        (copy / "manifest.json").write_text(Manifest.model_validate_json(json.dumps(content)).sealed().to_json())
        report = audit(copy, POINTS, LABELS)
        assert report.data["training_data"] is found
        assert any("training data" in sentence for sentence in report.unknown) is found
        assert ("which the manifest lists as training data" in report.to_html()) is found


class TestAttack:
    def test_bracket_by_hand(self, attacked):
        # Pushed by 0.5, the radius .7071 becomes .2071 and is rejected; 1.061 becomes .5607 and is not.
        assert counts(attacked.fpr_lower) == (1, 4)
        assert counts(attacked.vra_under_attack) == (2, 6)
        assert counts(attacked.attack.utility_reduction) == (1, 6)
        assert counts(attacked.attack.fpr_lower_correct) == (1, 3)
        assert attacked.fpr_lower <= attacked.fpr_upper
        assert attacked.attack.discarded == 0
        assert attacked.attack.name == "attack"
        assert attacked.alarms == ()

    def test_pairs_show_the_degraded(self, attacked):
        (pair,) = attacked.attack.pairs
        assert (pair.index, pair.label) == (1, 0)
        assert pair.size == pytest.approx(0.5)
        assert pair.size <= 0.5
        np.testing.assert_array_equal(pair.original, POINTS[1])
        np.testing.assert_allclose(pair.perturbed, POINTS[1] - 0.5 * DIAGONAL, atol=1e-6)

    def test_perturbations_outside_the_ball_are_not_used(self, artefact, model):
        report = audit(artefact, POINTS, LABELS, model=model, attack=towards_the_boundary(0.6))
        assert report.attack.discarded == 4
        assert report.fpr_lower == 0
        assert report.vra_under_attack == report.vra
        assert report.attack.pairs == ()

    def test_perturbations_that_are_not_finite_are_not_used(self, artefact, model):
        report = audit(artefact, POINTS, LABELS, model=model, attack=lambda model, x, y: np.full_like(x, np.nan))
        assert report.attack.discarded == 4
        assert report.fpr_lower == 0

    def test_only_answered_inputs_are_attacked(self, artefact, model):
        seen = []
        audit(artefact, POINTS, LABELS, model=model, attack=lambda model, x, y: seen.append((len(x), len(y))) or x)
        assert seen == [(4, 4)]

    def test_of_what_is_never_answered_nothing_is_attacked(self, artefact, model):
        report = audit(artefact, POINTS[3:5], LABELS[3:5], model=model)
        assert counts(report.fpr_lower) == (0, 0)
        assert not report.alarms

    def test_the_default_attack_finds_what_can_be_found(self, artefact, model):
        report = audit(artefact, POINTS, LABELS, model=model)
        assert counts(report.fpr_lower) == (1, 4)
        assert "CertificateDescent" in report.attack.name

    def test_a_broken_certificate_raises_an_alarm(self, tmp_path):
        model = overclaiming(plane())
        path = export(model, tmp_path, "broken", onnx=False)
        x = np.array([[0.4, 0], [0, 0.4], [0.7, 0]], "float32")  # true radii .28, .28 and .49
        report = audit(path, x, [0, 1, 0], model=model, attack=towards_the_boundary(0.45))
        assert report.rejection_rate == 0
        assert report.attack.broken_answers == 2
        assert report.attack.broken_availability == 1
        assert len(report.alarms) == 2
        assert "Do not deploy" in report.to_html()
        assert json.loads(report.to_json())["alarms"] == list(report.alarms)

    def test_another_radius_is_refused(self, artefact):
        with pytest.raises(AgreementError, match=r"l2 0\.6, the artefact l2 0\.5"):
            audit(artefact, POINTS, LABELS, model=plane(epsilon=0.6))

    def test_other_weights_are_refused(self, artefact):
        other = plane()
        other.network.layers[0].set_weights([np.array([[1, 0], [0.01, 1]], "float32")])
        with pytest.raises(AgreementError, match="same model"):
            audit(artefact, POINTS, LABELS, model=other)

    def test_another_shape_from_the_attack_is_refused(self, artefact, model):
        with pytest.raises(ValueError, match=r"`attack`.*\(4, 2\).*\(1, 2\)"):
            audit(artefact, POINTS, LABELS, model=model, attack=lambda model, x, y: x[:1])


class TestBadArguments:
    def test_an_attack_without_a_model(self, artefact):
        with pytest.raises(ValueError, match="`model` too"):
            audit(artefact, POINTS, LABELS, attack=towards_the_boundary(0.5))

    @pytest.mark.parametrize("y", [LABELS[:5], LABELS.astype(float), LABELS[:, None], np.eye(2)[LABELS]])
    def test_labels_of_another_form(self, artefact, y):
        with pytest.raises(ValueError, match="`y`"):
            audit(artefact, POINTS, y)

    @pytest.mark.parametrize("value", [-1, 2])
    def test_labels_out_of_range(self, artefact, value):
        with pytest.raises(ValueError, match="classes 0 to 1"):
            audit(artefact, POINTS, np.where(LABELS == 1, value, LABELS))

    def test_no_inputs(self, artefact):
        with pytest.raises(ValueError, match="positive length"):
            audit(artefact, POINTS[:0], LABELS[:0])

    def test_inputs_that_are_not_finite(self, artefact):
        x = POINTS.copy()
        x[2, 1] = np.inf
        with pytest.raises(ValueError, match=r"1 inputs.*first at 2"):
            audit(artefact, x, LABELS)

    def test_inputs_of_another_dtype(self, artefact):
        with pytest.raises(TypeError, match="float32"):
            audit(artefact, POINTS.astype("float64"), LABELS)

    @pytest.mark.parametrize("confidence", [0, 1, 95, float("nan")])
    def test_confidence(self, artefact, confidence):
        with pytest.raises(ValueError, match="`confidence`"):
            audit(artefact, POINTS, LABELS, confidence=confidence)


class TestJson:
    def test_is_canonical(self, attacked):
        text = attacked.to_json()
        content = json.loads(text)
        assert canonical_json(content) == text
        assert text == json.dumps(content, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def test_holds_the_figures(self, attacked):
        content = json.loads(attacked.to_json())
        assert content["rates"]["fpr_upper"]["value"] == 0.25
        assert (content["rates"]["fpr_lower"]["count"], content["rates"]["fpr_lower"]["total"]) == (1, 4)
        assert content["subject"]["digest"] == attacked.manifest.digest
        assert content["availability_radius"]["0.5"] == pytest.approx(0.2071, abs=1e-4)
        assert content["attack"]["discarded"] == 0

    def test_refuses_what_json_has_no_word_for(self):
        for value in (float("nan"), float("inf")):
            with pytest.raises(ValueError, match="JSON"):
                canonical_json({"a": value})


class Page(HTMLParser):
    """Collects what a browser would fetch, and what a reader without eyes would need."""

    def __init__(self, html):
        super().__init__()
        self.fetched, self.tags, self.ids, self.headings, self.figures = [], [], [], [], 0
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append(tag)
        for name in ("href", "src", "xlink:href", "srcset", "action", "data", "poster"):
            if name in attributes:
                self.fetched.append(attributes[name])
        if "id" in attributes:
            self.ids.append(attributes["id"])
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag == "svg" and attributes.get("aria-hidden") != "true":
            assert attributes["role"] == "img"
            self.figures += 1
        if tag == "img":
            assert attributes["alt"]


class TestPage:
    def test_asks_nobody_for_anything(self, html):
        page = Page(html)
        assert all(url.startswith(("data:image/png;base64,", "#")) for url in page.fetched)
        assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & set(page.tags)
        assert "@import" not in html
        assert all(target.startswith("#") for target in re.findall(r"url\(['\"]?([^)]*)", html))
        # Names of XML namespaces are not fetched.
        without_namespaces = re.sub(r'xmlns(:\w+)?="[^"]*"', "", html)
        assert "http:" not in without_namespaces
        assert "https:" not in without_namespaces

    def test_is_well_formed_for_every_reader(self, html):
        page = Page(html)
        assert html.startswith('<!DOCTYPE html>\n<html lang="en">')
        assert len(page.ids) == len(set(page.ids))
        assert page.headings[0] == 1
        assert set(page.headings[1:]) == {2, 3}
        assert page.figures == 2
        assert html.count("<desc>") == 2
        for wanted in ("prefers-color-scheme: dark", "@media print", "<caption>", 'scope="col"'):
            assert wanted in html
        assert set(re.findall(r"aria-labelledby=\"([\w-]+)\"", html)) <= set(page.ids)
        assert set(re.findall(r"url\(#([^)]*)\)", html)) <= set(page.ids)

    def test_names_are_escaped(self, html):
        assert "&lt;six&gt; points" in html
        assert "<six>" not in html

    def test_figures_follow_the_pages_colours(self, html):
        assert "var(--vra)" in html
        assert "var(--fpr)" in html

    def test_says_what_it_does_not_know(self, alone):
        html = alone.to_html()
        assert "none was run" in html
        assert "What the attacks did" not in html

    @pytest.mark.parametrize(
        ("share", "text"),
        [(0.0, "0.0 %"), (1.0, "100.0 %"), (0.25, "25.0 %"), (0.00021, "0.021 %"), (0.99996, "99.996 %"), (None, "–")],
    )
    def test_percentages_do_not_round_to_certainty(self, share, text):
        assert percent(share) == text


class TestFiles:
    def test_are_written_and_named(self, attacked, tmp_path):
        paths = attacked.write(tmp_path / "new" / "report")
        assert sorted(paths) == ["audit.json", "degraded_pairs.png", "junit.xml", "radius_curves.png", "report.html"]
        assert sorted(p.name for p in (tmp_path / "new" / "report").iterdir()) == sorted(paths)
        assert paths["audit.json"].read_text() == attacked.to_json()
        first = {name: path.read_bytes() for name, path in paths.items()}
        for name in ("radius_curves.png", "degraded_pairs.png"):
            assert first[name].startswith(b"\x89PNG")
        again = attacked.write(tmp_path / "again")
        assert {name: path.read_bytes() for name, path in again.items()} == first

    def test_an_earlier_reports_pairs_do_not_stay(self, alone, tmp_path):
        (tmp_path / "degraded_pairs.png").write_bytes(b"earlier")
        paths = alone.write(tmp_path)
        assert sorted(p.name for p in tmp_path.iterdir()) == sorted(paths)
        assert "degraded_pairs.png" not in paths

    @pytest.mark.parametrize("shape", [(5, 7), (5, 7, 1), (5, 7, 3), (13,), (4, 4, 2)])
    def test_inputs_of_any_shape_are_drawn(self, attacked, shape):
        rng = np.random.default_rng(0)
        pair = attacked.attack.pairs[0]
        pair = dataclasses.replace(pair, original=rng.uniform(size=shape), perturbed=rng.uniform(size=shape))
        report = dataclasses.replace(attacked, attack=dataclasses.replace(attacked.attack, pairs=(pair, pair)))
        figure = draw_degraded_pairs(report)
        assert len(figure.axes) == 6
        assert to_png(figure).startswith(b"\x89PNG")
