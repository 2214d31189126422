"""Smoothed models beyond Keras: the exported graph in the C++ loader, its audit, and ONNX files of both kinds."""

import json
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from defended import GloroNet, SmoothedNet
from defended.attacks import susceptibility
from defended.layers import MinMax
from defended.serving import (
    AgreementError,
    ArtefactError,
    ForbiddenOpError,
    audit,
    export,
    export_onnx,
    load,
    load_onnx,
)
from defended.serving.artefacts.allowed_ops import SAMPLING_OPS, check_ops
from defended.serving.artefacts.manifest import Manifest
from defended.serving.auditing.figures import _explained

EPSILON, SIGMA = 0.3, 0.5


def network(seed=0, scale=8.0):
    """Two classes: the sign of the mean pixel's distance from 1/2, through a convolution and batch normalisation."""
    keras.utils.set_random_seed(seed)
    net = keras.Sequential(
        [
            keras.Input((4, 4, 1)), layers.Conv2D(2, 3, padding="same"), layers.BatchNormalization(), layers.ReLU(),
            layers.Flatten(), layers.Dense(2),
        ]
    )  # fmt: skip
    kernel = np.zeros((3, 3, 1, 2), "float32")
    kernel[1, 1, 0] = [1, -1]
    net.layers[0].set_weights([kernel, np.array([-0.5, 0.5], "float32")])
    rows = np.tile(np.array([[scale, 0], [0, scale]], "float32"), (16, 1))
    net.layers[-1].set_weights([rows / 16, np.zeros(2, "float32")])
    return net


def smoothed(mode="sequential", **options):
    options = {"epsilon": EPSILON, "sigma": SIGMA, "samples": 2000, "mode": mode, **options}
    return SmoothedNet(network(), options.pop("epsilon"), options.pop("sigma"), **options)


def points(levels):
    return np.broadcast_to(np.asarray(levels, "float32")[:, None, None, None], (len(levels), 4, 4, 1)).copy()


# Distance from the boundary: 4 * |level - 1/2|.
X = points([0.1, 0.25, 0.45, 0.5, 0.62, 0.8, 0.95])
Y = np.array([1, 1, 1, 0, 0, 0, 0])


@pytest.fixture(scope="module", params=["fixed", "sequential"])
def exported(request, tmp_path_factory):
    # A seed, and a global one: neither may reach the artefact.
    model = smoothed(request.param, seed=1)
    keras.utils.set_random_seed(7)
    folder = tmp_path_factory.mktemp("models")
    return model, export(model, folder, "smooth", 1, sample=X, warm_up=False, serving_files=False)


@pytest.fixture(scope="module")
def artefact(exported):
    with load(exported[1]) as opened:
        yield opened


@pytest.fixture(scope="module")
def onnx(exported, artefact):
    """The file that an export holds beside the graph."""
    return load_onnx(exported[1] / artefact.manifest.onnx.file, max_batch=64)


class TestArtefact:
    def test_answers_as_the_model_where_it_is_clear(self, exported, artefact):
        model, _ = exported
        for size in (1, 7):
            verdicts = artefact.verdicts(X, batch_size=size)
            assert verdicts.label[[0, 1, 5, 6]].tolist() == [1, 1, 0, 0]
            assert verdicts.rejected[[2, 3]].all()
            assert (verdicts.radius[~verdicts.rejected] > np.float32(EPSILON)).all()
        outputs = artefact.audit(X)
        assert set(outputs) >= {"samples_used", "logits", "certified_radius"}
        np.testing.assert_allclose(outputs["logits"], np.asarray(model.network(X)), rtol=1e-5, atol=1e-5)
        assert set(outputs["samples_used"] - 100) <= set(model.gate.checkpoints)
        assert set(artefact(X)) == {"label", "rejected", "scores"}

    def test_what_is_not_finite_takes_no_draw(self, artefact):
        x = X[[0, 0, 6]].copy()
        x[1, 2, 3, 0] = np.nan
        outputs = artefact.audit(x)
        assert outputs["label"].tolist() == [1, -1, 0]
        assert outputs["samples_used"][1] == 0
        assert all(np.isfinite(value).all() for value in outputs.values())

    def test_noise_is_fresh_in_every_run_and_every_process_that_opens_it(self, exported, artefact):
        x = points([0.42])
        with load(exported[1]) as other:
            scores = [session.audit(x)["scores"][0, 0] for session in [artefact, other] * 3]
        assert len(set(scores)) > 2

    def test_the_manifest_says_how_verdicts_are_drawn(self, exported, artefact):
        model, manifest = exported[0], artefact.manifest
        assert manifest.sampling.model_dump() == dict(model.sampling)
        assert (manifest.sampling.alpha, manifest.sampling.samples) == (0.001, 2000)
        assert "NonDeterministicInts" in manifest.ops
        assert not {"RandomStandardNormal", "RandomUniformInt", "StatefulUniformFullInt", "Erfinv", "Ndtri"} & set(
            manifest.ops
        )

    def test_random_operations_need_a_manifest_that_says_so(self, exported, tmp_path):
        _, path = exported
        content = json.loads((path / "manifest.json").read_text()) | {"sampling": None, "digest": ""}
        copy = tmp_path / "copy"
        tf.io.gfile.makedirs(str(copy))
        for file in path.rglob("*"):
            if file.is_file():
                (copy / file.relative_to(path)).parent.mkdir(parents=True, exist_ok=True)
                (copy / file.relative_to(path)).write_bytes(file.read_bytes())
        manifest = Manifest.model_validate_json(json.dumps(content)).sealed()
        (copy / "manifest.json").write_text(manifest.to_json())
        with pytest.raises(ArtefactError, match="NonDeterministicInts"):
            load(copy)
        with pytest.raises(ForbiddenOpError, match="RandomStandardNormal"):
            check_ops(("RandomStandardNormal", *SAMPLING_OPS), sampled=True)

    def test_the_draws_of_contested_inputs_are_in_the_audit(self, exported, artefact, tmp_path):
        model, _ = exported
        report = audit(artefact, X, Y, model=model)
        if model.mode == "sequential":
            assert report.draws.quantiles[0.0] == 100 + model.gate.checkpoints[0]
            assert report.draws.quantiles[0.0] < report.draws.quantiles[1.0] <= 2100
            assert report.draws_ratio == report.attack.draws.mean / report.draws.mean
            assert report.draws.quantiles[0.0] <= report.attack.draws.quantiles[1.0] <= 2100
        else:
            assert set(report.draws.quantiles.values()) == set(report.attack.draws.quantiles.values()) == {2100}
            assert (report.draws.at_the_cap, report.draws_ratio) == (1.0, 1.0)
        assert report.alarms == ()
        assert report.attack.broken_availability == 0
        assert 0 < report.fpr_lower <= report.fpr_upper
        content = json.loads(report.write(tmp_path)["audit.json"].read_text())
        assert content["cost"]["clean"]["quantiles"]["1"] == report.draws.quantiles[1.0]
        html = (tmp_path / "report.html").read_text()
        assert "What sampling costs" in html
        assert ("mode fixed" in html.replace("\n", " ")) or model.mode == "fixed"

    def test_an_audit_says_what_a_gate_that_stops_early_cannot_tell(self, exported, artefact):
        model, report = exported[0], audit(artefact, X, Y)
        told = [sentence for sentence in report.unknown if "mode “fixed”" in sentence]
        if model.mode == "fixed":
            assert not told
            assert None not in (report.vra_2eps, report.curves, report.advice, report.availability)
        else:
            assert len(told) == 1
            assert told[0].startswith("VRA at 2ε, availability, and what other radii would give")
            assert 'SmoothedNet(model.network, ..., mode="fixed")' in told[0]
            assert told[0].replace('"', "&#34;")[:200] in report.to_html()
            assert report.vra_2eps is report.curves is report.advice is report.availability is None
            assert None not in (report.vra, report.rejection_rate, report.fpr_upper)

    def test_a_measurement_and_an_audit_count_the_same_and_have_the_same_intervals(self, exported, artefact):
        model, _ = exported
        x, y = np.concatenate([X[[0, 6]]] * 8), np.array([1, 0] * 8)  # far from epsilon: every draw says the same
        measured, audited = susceptibility(model, x, y, lambda model, x, y: x), audit(artefact, x, y)
        for name in ("vra", "rejection_rate", "clean_accuracy"):
            one, other = getattr(measured, name), getattr(audited, name)
            assert (one.count, one.total, one.doubt, one.interval) == (
                other.count, other.total, other.doubt, other.interval,
            )  # fmt: skip
        assert measured.vra.doubt == 0.001
        assert audited.fpr_upper.doubt == measured.fpr_upper.doubt == 0.001
        assert audited.record().rates["vra"].rate().interval == audited.vra.interval
        assert any("noise of its own" in sentence for sentence in audited.assumptions)

    def test_verdicts_of_a_batch_are_independent_draws(self, artefact, onnx):
        """Copies of an input that is answered in some draws only: in a batch neither all are answered nor none."""
        edge = points([0.5825] * 128)  # 0.33 from the boundary, epsilon being 0.3
        assert len(np.unique(artefact.audit(edge)["scores"][:, 0])) > 20
        assert len(np.unique(onnx.run(edge[:16])["scores"][:, 0])) > 4

    def test_artefacts_whose_batches_share_their_noise_are_asked_one_input_at_a_time(self, artefact, monkeypatch):
        assert artefact.manifest.noise_per_input
        sizes, answer = [], artefact.audit
        monkeypatch.setattr(artefact, "audit", lambda x, batch_size: sizes.append(batch_size) or answer(x, batch_size))
        audit(artefact, X[:2])
        monkeypatch.setattr(artefact, "manifest", artefact.manifest.model_copy(update={"noise_per_input": False}))
        assert any("asked alone" in sentence for sentence in audit(artefact, X[:2]).assumptions)
        assert sizes == [256, 1]

    def test_broken_answers_are_an_alarm_when_chance_does_not_explain_them(self):
        assert _explained(0, 1000, 0.002)
        assert _explained(5, 1000, 0.002)
        assert not _explained(20, 1000, 0.002)
        assert not _explained(6, 6, 0.002)


def test_layers_that_augment_and_resize_act_as_at_inference_everywhere(tmp_path):
    """Inside the network they change nothing at random: in Keras, and in the graph that is exported."""
    inputs = keras.Input((6, 6, 1))
    hidden = layers.Rescaling(2.0, -1.0)(inputs)
    hidden = layers.Normalization(mean=0.1, variance=0.8)(hidden)
    for layer in (
        layers.RandomFlip(), layers.RandomRotation(0.3), layers.RandomZoom(0.3), layers.RandomTranslation(0.3, 0.3),
        layers.RandomContrast(0.5), layers.RandomBrightness(0.5, value_range=(-1, 1)), layers.GaussianNoise(1.0),
        layers.RandomCrop(5, 5), layers.Resizing(8, 8), layers.CenterCrop(4, 4), layers.Dropout(0.5),
    ):  # fmt: skip
        hidden = layer(hidden)
    net = keras.Model(inputs, layers.Dense(2)(layers.Flatten()(hidden)))
    weights = np.float32([[-8, 8]]) / 16
    net.layers[-1].set_weights([np.tile(weights, (16, 1)), np.zeros(2, "float32")])
    model = SmoothedNet(net, 0.1, 0.25, samples=300)
    x = np.broadcast_to(np.float32([0.1, 0.9])[:, None, None, None], (2, 6, 6, 1)).copy()
    assert model.verdicts(x).label.tolist() == [0, 1]
    path = export(model, tmp_path, "augmented", 1, sample=x, onnx=False, warm_up=False, serving_files=False)
    with load(path) as opened:
        once, again = opened.audit(x), opened.audit(x)
    assert once["label"].tolist() == [0, 1]
    np.testing.assert_array_equal(once["logits"], again["logits"])
    np.testing.assert_allclose(once["logits"], np.asarray(net(x, training=False)), rtol=1e-5, atol=1e-5)


class TestAgreement:
    def test_other_weights_are_refused_by_the_logits(self, exported, artefact):
        other = smoothed(exported[0].mode)
        other.network.layers[-1].kernel.assign(1.01 * other.network.layers[-1].kernel)
        with pytest.raises(AgreementError, match="same model"):
            audit(artefact, X, Y, model=other)

    def test_other_noise_is_found_in_the_votes(self, exported, artefact):
        model, x = exported[0], np.concatenate([X] * 5)
        outputs = artefact.audit(x)
        assert not len(model.disagreements(x, outputs))
        if model.mode == "fixed":
            assert len(smoothed("fixed", sigma=1.5, samples=20_000).disagreements(x, outputs))

    def test_an_answer_without_a_radius_disagrees(self, exported, artefact):
        model, _ = exported
        outputs = artefact.audit(X)
        outputs["certified_radius"] = np.where(np.arange(7) == 6, 0, outputs["certified_radius"]).astype("float32")
        assert model.disagreements(X, outputs).tolist() == [6]

    def test_a_graph_with_a_generator_of_its_own_is_refused(self, tmp_path, monkeypatch):
        model = smoothed("fixed", samples=200)
        module = sys.modules["defended.smoothing.sampler"]
        monkeypatch.setattr(module, "fresh_seed", lambda: tf.random.uniform([2], 0, 2**30, tf.int32))
        with pytest.raises(ForbiddenOpError, match="RandomUniformInt"):
            export(model, tmp_path)
        assert not list(tmp_path.iterdir())


def gloro():
    keras.utils.set_random_seed(0)
    net = keras.Sequential(
        [keras.Input((6, 6, 1)), layers.Conv2D(4, 3, strides=2), MinMax(), layers.Flatten(), layers.Dense(3)]
    )
    return GloroNet(net, epsilon=0.02)


@pytest.fixture(scope="module")
def default(tmp_path_factory):
    """A GloRo Net, and the file that it is written to by default."""
    model = gloro()
    return model, export_onnx(model, tmp_path_factory.mktemp("onnx") / "gloro.onnx")


class TestOnnx:
    def test_a_gloro_net_answers_as_in_keras_nan_included(self, default, tmp_path):
        model, _ = default
        path = export_onnx(model, tmp_path / "gloro.onnx", audit=True)
        assert model.is_final
        x = np.random.default_rng(0).uniform(size=(40, 6, 6, 1)).astype("float32")
        x[3, 0, 0, 0], x[7, 5, 5, 0] = np.nan, -np.inf
        ours, theirs = model.verdicts(x), load_onnx(path).verdicts(x, batch_size=7)
        assert 0 < ours.rejected.sum() < 40
        np.testing.assert_array_equal(theirs.label, ours.label)
        np.testing.assert_array_equal(theirs.rejected, ours.rejected)
        np.testing.assert_allclose(theirs.radius, ours.radius, rtol=1e-4, atol=1e-6)
        assert theirs.label[[3, 7]].tolist() == [-1, -1]
        assert theirs.radius[[3, 7]].tolist() == [0, 0]

    def test_the_default_keeps_the_radii_back_and_the_file_says_what_it_is(self, default):
        import onnx

        model, path = default
        opened = load_onnx(path)
        assert set(opened.run(np.zeros((2, 6, 6, 1), "float32"))) == {"label", "rejected", "scores"}
        assert opened.epsilon == float(np.float32(0.02))
        assert opened.metadata["norm"] == "l2"
        assert opened.metadata["certificate_assumptions"]
        with pytest.raises(ValueError, match="audit=True"):
            opened.verdicts(np.zeros((1, 6, 6, 1), "float32"))
        with pytest.raises(FileExistsError, match="never overwritten"):
            export_onnx(model, path)
        graph = onnx.load(path).graph
        assert [value.name for value in graph.input] == ["image"]
        assert graph.input[0].type.tensor_type.shape.dim[0].dim_param, "the batch may have any length"

    def test_a_smoothed_net_votes_and_decides_as_in_keras(self, exported, onnx):
        model, _ = exported
        x = X[[0, 0, 1, 2, 3, 5, 6]].copy()
        x[1, 0, 0, 0] = np.nan
        outputs = onnx.run(x)
        assert outputs["label"][[0, 1, 2, 5, 6]].tolist() == [1, -1, 1, 0, 0]
        assert outputs["label"][[3, 4]].tolist() == [-1, -1]
        assert outputs["samples_used"][1] == 0
        assert set(outputs["samples_used"][outputs["samples_used"] > 0] - 100) <= set(model.gate.checkpoints)
        rows = [0, 2, 3, 4, 5, 6]
        assert not len(model.disagreements(x[rows], {name: value[rows] for name, value in outputs.items()}))
        again = onnx.run(x)
        assert (again["scores"] != outputs["scores"]).any(), "every call draws other noise"

    def test_the_step_by_hand(self, tmp_path):
        """Noise of 0: every draw votes for the network's own class."""
        model = smoothed("fixed", samples=50, epsilon=0.1)
        opened = load_onnx(export_onnx(model, tmp_path / "smooth.onnx"))
        fed = {
            "image": X[[0, 6]], "noise": np.zeros((10, 4, 4, 1), "float32"), "counts": np.array([[0, 40], [1, 39]]),
            "candidate": np.array([1, 0]), "drawn": np.array(40),
        }  # fmt: skip
        outputs = opened.step(fed)
        assert outputs["new_counts"].tolist() == [[0, 50], [11, 39]]
        assert outputs["decided"].tolist() == [True, True]
        assert outputs["label"].tolist() == [1, -1]
        np.testing.assert_array_equal(outputs["certified_radius"], model.gate.radius[[50, 11]])
        undecided = opened.step({**fed, "drawn": np.array(30)})
        assert undecided["decided"].tolist() == [False, False]
        assert undecided["rejected"].all()

    def test_a_wrong_conversion_is_not_kept(self, default, tmp_path, monkeypatch):
        """tf2onnx's own selection lets NaN through."""
        module = sys.modules["defended.serving.exporting.onnx_conversion"]
        original = module._where

        def multiply(context, node, name, arguments):
            if node.name == "never":
                return original(context, node, name, arguments)
            from tf2onnx.onnx_opset.controlflow import Select

            return Select.version_7(context, node)

        for operation in ("Select", "SelectV2"):
            monkeypatch.setitem(module.HANDLERS, operation, (multiply, []))
        with pytest.raises(AgreementError, match="must reject NaN"):
            export_onnx(default[0], tmp_path / "gloro.onnx", audit=True)
        assert not list(tmp_path.iterdir())

    def test_an_operation_that_onnx_lacks_is_named(self, tmp_path):
        inputs = keras.Input((3,))
        hidden = layers.Lambda(lambda x: tf.math.lgamma(tf.abs(x) + 1))(inputs)
        model = SmoothedNet(keras.Model(inputs, layers.Dense(2)(hidden)), 0.1, 0.5, samples=100, mode="fixed")
        with pytest.raises(ValueError, match=r"cannot be written as ONNX.*Lgamma"):
            export_onnx(model, tmp_path / "model.onnx")
        assert not list(tmp_path.iterdir())

    def test_bad_files_and_inputs(self, default, tmp_path):
        import onnx

        with pytest.raises(TypeError, match="defended model"):
            export_onnx(network(), tmp_path / "x.onnx")
        (tmp_path / "bad.onnx").write_bytes(b"no model")
        with pytest.raises(ValueError, match="does not load"):
            load_onnx(tmp_path / "bad.onnx")
        _, path = default
        opened = load_onnx(path)
        with pytest.raises(TypeError, match="float32"):
            opened.run(np.zeros((1, 6, 6, 1)))
        with pytest.raises(ValueError, match=r"\[batch, 6, 6, 1\]"):
            opened.run(np.zeros((1, 6, 6, 3), "float32"))
        with pytest.raises(ValueError, match="max_batch"):
            load_onnx(path, max_batch=0)
        stranger = onnx.load(path)
        del stranger.metadata_props[:]
        onnx.save(stranger, tmp_path / "stranger.onnx")
        with pytest.raises(ValueError, match="not written by `export_onnx`"):
            load_onnx(tmp_path / "stranger.onnx")
