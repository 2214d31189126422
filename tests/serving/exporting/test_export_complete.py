"""What an export writes beside the graph, what it makes of evaluators that differ, and what survives an accident."""

import json
import os
import resource
import shutil
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import keras
import numpy as np
import pytest
import tensorflow as tf
import yaml
from google.protobuf import text_format

from defended import GloroNet, layers
from defended.defended_model import Verdicts
from defended.provenance import data_digest
from defended.serving import (
    AgreementError,
    ArtefactError,
    Client,
    EditedFileWarning,
    ForbiddenOpError,
    SignatureError,
    audit,
    export,
    export_onnx,
    generate_key,
    load,
    load_onnx,
    sign,
    verify,
    write_serving_files,
)
from defended.serving.artefacts import allowed_ops as graph_ops
from defended.serving.artefacts.cpp_loader import CppSession
from defended.serving.artefacts.manifest import DriftRecord, Manifest
from defended.serving.artefacts.tf_example import serialized_examples
from defended.serving.exporting import deployment_files as serving_files
from defended.serving.exporting import drift
from defended.serving.exporting.model_card import model_card
from defended.serving.exporting.onnx_export import convert
from defended.serving.exporting.warm_up import WARM_UP
from defended.serving.server import running

CLASSES = ("round", 'square "2"', "Δ|*")


def make_model(epsilon=0.02, **options):
    image = keras.Input((6, 6, 1))
    hidden = keras.layers.Conv2D(4, 3, strides=2, padding="same")(image)
    hidden = keras.layers.Flatten()(layers.MinMax()(hidden))
    return GloroNet(keras.Model(image, keras.layers.Dense(3)(hidden)), epsilon=epsilon, **options)


def inputs(n, seed=0):
    return np.random.default_rng(seed).uniform(size=(n, 6, 6, 1)).astype("float32")


def finalized(**options):
    keras.utils.set_random_seed(3)
    model = make_model(**options)
    model.finalize()
    return model


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys")
    return [generate_key(folder / name) for name in ("one", "two")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def model():
    return finalized()


@pytest.fixture(scope="module")
def exported(model, folder, keys):
    figures = {
        "attack": {"attack": "PGD"},
        "vra": {"value": 0.5, "interval": [0.25, 0.75], "confidence": 0.95},
        "fpr_lower": 0.125,
    }
    return export(
        model, folder, "tiny", 7, sample=inputs(40), onnx="require", warm_up="require", class_names=CLASSES,
        susceptibility=figures, training_data={"sha256": "ab" * 32, "points": 12, "name": "drawings"},
        signing_key=keys[0][0],
    )  # fmt: skip


@pytest.fixture(scope="module")
def manifest(exported):
    return verify(exported)


class TestEvaluators:
    def test_all_three_answer_alike(self, model, exported):
        x = inputs(200, seed=1)
        expected = model.verdicts(x)
        assert 0 < expected.rejected.sum() < 200
        with load(exported) as artefact:
            np.testing.assert_array_equal(artefact.verdicts(x).label, expected.label)
        found = load_onnx(exported / "assets.extra" / "model.onnx").run(x)
        np.testing.assert_array_equal(found["label"], expected.label)
        assert set(found) == {"label", "rejected", "scores"}

    def test_whatever_runs_it_is_asked_alike(self, model, exported, tmp_path):
        """The same call, the same names, dtypes and shapes from an artefact, an ONNX file and a server."""
        x, onnx = inputs(70, seed=2), load_onnx(export_onnx(model, tmp_path / "whole.onnx", audit=True))
        with (
            load(exported) as artefact,
            running(exported.parents[1]) as server,
            Client(server.rest_url, model="tiny") as client,
        ):
            for signature in ("serving_default", "audit"):
                found = [served.predict(x, signature=signature) for served in (artefact, onnx, client)]
                described = [{k: (v.dtype, v.shape) for k, v in outputs.items()} for outputs in found]
                assert described[0] == described[1] == described[2]
                assert all(np.array_equal(outputs["label"], found[0]["label"]) for outputs in found)
            for served in (artefact, client, onnx):
                with pytest.raises(TypeError, match="float32"):
                    served.predict(x.astype("float64"))
                for signature in ("nothing", "classify"):
                    with pytest.raises(ValueError, match=r"[Ss]ignature"):
                        served.predict(x, signature)
        default = load_onnx(exported / "assets.extra" / "model.onnx")
        assert set(default.predict(x)) == {"label", "rejected", "scores"}
        with pytest.raises(ValueError, match="no radii"):
            default.predict(x, "audit")

    def test_the_manifest_says_what_was_compared(self, model, exported, manifest):
        x = inputs(40)
        with CppSession(exported) as session:
            served = session.run("serving_default", {"image": x})
        converted = load_onnx(exported / "assets.extra" / "model.onnx").run(x)
        ours = drift.keras_outputs(model, x)
        record = drift.measure_drift(model, x, {"keras": ours, "tensorflow": served, "onnxruntime": converted})
        assert manifest.check.given
        assert manifest.check.drift == record
        assert record.largest < 1e-5
        assert record.share_of_covered < 1
        assert record.folded == 0
        assert manifest.onnx.file == "assets.extra/model.onnx"

    def test_what_is_covered_is_twice_the_budget_of_one_evaluation(self, model):
        x = inputs(3)
        t0, t1, *_ = model.certificate_report().budget
        norm = np.linalg.norm(x.reshape(3, -1).astype("float64"), axis=1)
        label = np.asarray(model(x))[:, :3].argmax(axis=1)
        expected = 2 * model.margin_lipschitz[label] * (t0 + t1 * norm)[:, None]
        np.testing.assert_allclose(model.covered_drift(x), expected, rtol=1e-5)

    def test_a_drift_outside_the_budget_is_refused(self, model):
        x = inputs(8)
        ours = drift.keras_outputs(model, x)
        allowed = model.covered_drift(x)
        label = ours["scores"].argmax(axis=1)
        shift = np.zeros_like(ours["scores"], dtype="float64")
        rival = (label[0] + 1) % 3
        shift[0, rival] = 0.9 * allowed[0, rival]
        other = {name: value.astype("float64") for name, value in ours.items()}
        record = drift.measure_drift(model, x, {"a": ours, "b": other | {"scores": other["scores"] + shift}})
        assert record.share_of_covered == pytest.approx(0.9, rel=1e-3)
        for wrong in (shift * 1.2, shift * np.nan):
            with pytest.raises(AgreementError, match=r"a and b differ.*rounding budget"):
                drift.measure_drift(model, x, {"a": ours, "b": other | {"scores": other["scores"] + wrong}})

    def test_margins_and_not_logits_are_compared(self):
        logits = np.array([[1.0, 3.0, 2.0]], "float32")
        np.testing.assert_array_equal(drift.margin_differences(logits, logits + 5), np.zeros((1, 3)))
        moved = logits + np.array([[0, 0.5, -0.25]], "float32")
        np.testing.assert_array_equal(drift.margin_differences(logits, moved), [[0.5, 0, 0.75]])


class Folded(NamedTuple):
    """A model whose export folded a drift, and what it answered before."""

    model: GloroNet
    x: np.ndarray
    before: Verdicts
    slack: np.ndarray
    path: Path


@pytest.fixture(scope="module")
def folded_export(tmp_path_factory):
    """TensorFlow's loader answers a little off: on some machines all evaluations of a small net agree to the bit."""

    def measured(model, x, evaluations):
        served = evaluations["tensorflow"]
        off = served["scores"] + np.array([2.0**-20, 0, 0], "float32")
        return drift.measure_drift(model, x, {**evaluations, "tensorflow": {**served, "scores": off}})

    model, x = finalized(rounding=False), inputs(64)
    before, slack = model.verdicts(x), drift._slack(drift.keras_outputs(model, x))
    assert model.covered_drift(x) is None
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys.modules["defended.serving.exporting.graphs"], "measure_drift", measured)
        path = export(model, tmp_path_factory.mktemp("folded"), sample=x)
    return Folded(model, x, before, slack, path)


class TestFolding:
    """A certificate of real arithmetic pays for no rounding: the measured drift is taken off its margins."""

    def test_margins_shrink_in_all_three(self, folded_export):
        model, x, before, slack, path = folded_export
        manifest = verify(path)
        record = manifest.check.drift
        assert record.share_of_covered is None
        assert record.folded == model.evaluation_drift
        assert 2 * record.largest <= record.folded <= 8 * record.largest
        assert any(
            f"at most {record.folded / 2:.3g} in a difference" in line for line in manifest.certificate_assumptions
        )
        after = model.verdicts(x)
        told = slack > record.folded
        fallen = slack - drift._slack(drift.keras_outputs(model, x))
        np.testing.assert_allclose(fallen[told], record.folded, atol=4e-6)
        assert (after.radius[told] < before.radius[told]).all()
        with load(path) as artefact:
            verdicts = artefact.verdicts(x)
        np.testing.assert_array_equal(verdicts.label, after.label)
        np.testing.assert_allclose(verdicts.radius, after.radius, atol=1e-6)

    def test_an_audit_attacks_the_model_that_pays_as_the_artefact_does(self, folded_export):
        model, path = folded_export.model, folded_export.path
        folded, model.evaluation_drift = model.evaluation_drift, 0.0
        seen = []

        def attack(model, x, label):
            seen.append(model.evaluation_drift)
            return x

        try:
            audit(path, inputs(32), model=model, attack=attack)
        finally:
            model.evaluation_drift = folded
        assert seen == [folded]
        assert folded > 0

    def test_a_large_drift_turns_what_is_close_into_rejections_and_never_into_another_class(self):
        model = finalized(rounding=False)
        x = inputs(200, seed=1)
        before = model.verdicts(x).label
        model.evaluation_drift = 0.2
        after = model.verdicts(x).label
        assert ((after == before) | (after == -1)).all()
        assert (after == -1).sum() > (before == -1).sum()
        model.evaluation_drift = 1e9
        assert (model.verdicts(x).label == -1).all()
        assert (model.verdicts(x).radius == 0).all()

    def test_a_kind_that_takes_no_notice_is_refused(self, monkeypatch):
        model = finalized(rounding=True)
        monkeypatch.setattr(GloroNet, "covered_drift", lambda self, x: None)
        measured = DriftRecord(evaluators=("a", "b"), largest=1e-3, share_of_covered=None, folded=0.0)
        with pytest.raises(AgreementError, match="GloroNet neither pays"):
            drift.fold(model, inputs(64), measured)
        assert model.evaluation_drift == 0, "an export that fails leaves the model as it was"

    def test_a_drift_that_grows_is_refused_and_leaves_the_model_as_it_was(self, monkeypatch):
        from defended.serving.exporting import graphs

        model = finalized(rounding=False)
        growing = (
            DriftRecord(evaluators=("a", "b"), largest=largest, share_of_covered=None, folded=0.0)
            for largest in (1e-3, 1e-1)
        )
        monkeypatch.setattr(graphs, "_write", lambda *_: SimpleNamespace(drift=next(growing)))
        with pytest.raises(AgreementError, match=r"drift grows .* 0\.1 now"):
            graphs.build_graphs(model, Path("unused"), None, inputs(64), False)
        assert model.evaluation_drift == 0

    def test_what_the_budget_covers_folds_nothing(self, model):
        measured = DriftRecord(evaluators=("a", "b"), largest=1.0, share_of_covered=0.5, folded=0.0)
        assert not drift.fold(model, inputs(4), measured)
        assert model.evaluation_drift == 0

    @pytest.mark.parametrize("value", [-1e-9, float("nan"), float("inf")])
    def test_no_other_drift_than_a_finite_one(self, model, value):
        with pytest.raises(ValueError, match="evaluation_drift"):
            model.evaluation_drift = value


class TestClassify:
    def test_names_the_answer_and_nothing_else(self, exported):
        x = inputs(60, seed=2)
        x[3, 0, 0, 0] = np.nan
        with CppSession(exported) as session:
            plain = session.run("serving_default", {"image": x})
            found = session.run("classify", {"inputs": serialized_examples(x)})
        expected = [[CLASSES[label] if label >= 0 else "⊥"] for label in plain["label"]]
        assert [[text.decode() for text in row] for row in found["classes"]] == expected
        assert {"⊥"} < {row[0] for row in expected}
        np.testing.assert_allclose(found["scores"][:, 0], plain["scores"].max(axis=1), rtol=1e-6)

    def test_long_and_empty_records(self, exported):
        """Texts above 22 bytes lie elsewhere in memory; what is no example is the server's error, not a crash."""
        with CppSession(exported) as session:
            for record in (b"", b"\x00" * 5, b"\xff" * 200):
                with pytest.raises(RuntimeError, match="classify"):
                    session.run("classify", {"inputs": np.array([record], object)})
            with pytest.raises(RuntimeError, match=r"takes string.*Received: object"):
                session.run("classify", {"inputs": np.array(["text"], object)})
            empty = session.run("classify", {"inputs": np.empty(0, object)})
        assert empty["classes"].shape == (0, 1)

    def test_method_name_is_the_one_that_tensorflow_serving_takes(self, exported):
        (graph,) = graph_ops.read_saved_model(exported).meta_graphs
        names = {name: item.method_name for name, item in graph.signature_def.items()}
        assert names["classify"] == "tensorflow/serving/classify"
        assert names["serving_default"] == names["audit"] == "tensorflow/serving/predict"

    def test_only_classify_parses(self, exported, tmp_path):
        graph_ops.check_parsing(exported)
        proto = graph_ops.read_saved_model(exported)
        signatures = proto.meta_graphs[0].signature_def
        signatures["serving_default"].outputs["scores"].name = signatures["classify"].outputs["scores"].name
        (tmp_path / "saved_model.pb").write_bytes(proto.SerializeToString())
        with pytest.raises(ForbiddenOpError, match="outside of its signature 'classify'"):
            graph_ops.check_parsing(tmp_path)
        del signatures["classify"]
        (tmp_path / "saved_model.pb").write_bytes(proto.SerializeToString())
        with pytest.raises(ForbiddenOpError, match="outside of its signature"):
            graph_ops.check_parsing(tmp_path)
        with pytest.raises(ForbiddenOpError, match="ParseExampleV2"):
            graph_ops.check_ops(graph_ops.list_ops(tmp_path))

    @pytest.mark.parametrize("names", [("a", "b"), ("a", "a", "b"), ("a", "b", "⊥"), ("a", "b", " "), "abc", (1, 2, 3)])
    def test_class_names_that_say_nothing_clear(self, model, tmp_path, names):
        with pytest.raises(ValueError, match="`class_names` must be 3 different texts"):
            export(model, tmp_path, class_names=names)
        assert not list(tmp_path.iterdir())

    def test_a_mapping_of_names_is_taken_by_number(self, model, tmp_path):
        options = {"onnx": False, "warm_up": False, "serving_files": False}
        path = export(model, tmp_path, "tiny", class_names={"cat": 2, "dog": 0, "emu": 1}, **options)
        assert verify(path).class_names == ("dog", "emu", "cat")


class TestWarmUp:
    def test_the_records_are_requests_that_the_graph_answers(self, exported, manifest):
        from tensorflow_serving.apis import prediction_log_pb2

        records = list(tf.data.TFRecordDataset(str(exported / WARM_UP)).as_numpy_iterator())
        assert manifest.warm_up.requests == len(records) == 6
        sizes = []
        with CppSession(exported) as session:
            for record in records:
                log = prediction_log_pb2.PredictionLog.FromString(record)
                kind = log.WhichOneof("log_type")
                request = getattr(log, kind).request
                assert request.model_spec.name == "tiny"
                if kind == "predict_log":
                    fed = {"image": tf.make_ndarray(request.inputs["image"])}
                else:
                    examples = request.input.example_list.examples
                    fed = {"inputs": np.array([example.SerializeToString() for example in examples], object)}
                outputs = session.run(request.model_spec.signature_name, fed)
                sizes.append(len(next(iter(outputs.values()))))
        assert sizes == [1, 1, 8, 8, 32, 32]

    def test_what_is_missing_is_said_or_refused(self, model, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "tensorflow_serving.apis", None)
        monkeypatch.setitem(sys.modules, "tf2onnx", None)
        with pytest.raises(ImportError, match=r"keras-defended\[serving\]"):
            export(model, tmp_path, warm_up="require", onnx=False)
        assert not list(tmp_path.iterdir())
        manifest = verify(export(model, tmp_path, "digits"))
        assert "keras-defended[serving]" in manifest.warm_up.omitted
        assert "tf2onnx" in manifest.onnx.omitted
        assert manifest.check.drift.evaluators == ("keras", "tensorflow")
        assert "There is no ONNX file" in (tmp_path / "digits" / "1" / "README.md").read_text()

    @pytest.mark.parametrize("argument", ["onnx", "warm_up"])
    def test_no_other_modes(self, model, tmp_path, argument):
        with pytest.raises(ValueError, match=f"`{argument}`"):
            export(model, tmp_path, **{argument: "yes"})


class TestProvenance:
    def test_fit_records_what_it_saw_and_the_file_keeps_it(self, tmp_path):
        model = make_model()
        x, y = inputs(20), np.arange(20) % 3
        model.compile("sgd")
        assert model.training_data == ()
        model.fit(x, y, batch_size=10, verbose=0)
        model.fit(x, y, batch_size=10, verbose=0)
        expected = {"sha256": data_digest(x, y), "points": 20}
        assert model.training_data == (expected,)
        model.fit(x[:10], y[:10], batch_size=10, verbose=0)
        assert len(model.training_data) == 2
        model.save(tmp_path / "model.keras")
        again = keras.models.load_model(tmp_path / "model.keras")
        assert again.training_data == model.training_data

    def test_a_digest_tells_values_types_and_shapes_apart(self):
        x = inputs(5)
        others = [data_digest(-x), data_digest(x.reshape(5, 36)), data_digest(x.astype("float64"))]
        digests = {data_digest(x), data_digest(x, np.zeros(5)), *others}
        assert len(digests) == 5
        assert data_digest(np.asfortranarray(x)) == data_digest(x)

    @pytest.mark.parametrize("data", ["short", {"points": 3}, {"sha256": "0" * 64, "more": 1}, [3], 5])
    def test_what_is_no_digest(self, model, tmp_path, data):
        with pytest.raises(ValueError, match="`training_data`"):
            export(model, tmp_path, training_data=data)

    def test_the_manifest_holds_it(self, manifest):
        (record,) = manifest.training_data
        assert (record.sha256, record.points, record.name) == ("ab" * 32, 12, "drawings")
        assert {"tensorflow", "onnx", "onnxruntime", "tf2onnx"} <= set(manifest.packages)
        assert any("attack PGD found" in line for line in manifest.susceptibility_assumptions)

    def test_the_card_is_yaml_and_text(self, exported):
        _, head, text = (exported / "README.md").read_text().split("---\n", 2)
        card = yaml.safe_load(head)
        assert card["tags"][-1] == "GloroNet"
        (result,) = card["model-index"][0]["results"]
        assert [metric["value"] for metric in result["metrics"]] == [0.5, 0.125]
        assert "50.00 % (25.00 to 75.00, 95%)" in text
        assert 'round, square "2", Δ\\|\\*' in text  # no column and no emphasis of the table's
        assert "drawings, 12 points" in text

    def test_a_card_without_figures(self, manifest):
        bare = manifest.model_copy(update={"susceptibility": None, "training_data": ()})
        head = yaml.safe_load(model_card(bare).split("---\n", 2)[1])
        assert head["model-index"][0]["results"] == []

    def test_a_manifest_of_the_first_format_is_read_as_it_is(self, exported, manifest, tmp_path):
        copy = shutil.copytree(exported, tmp_path / "copy")
        old = json.loads(manifest.to_json())
        for name in ("onnx", "warm_up", "class_names", "training_data", "susceptibility_assumptions"):
            del old[name]
        for name in ("given", "drift"):
            del old["check"][name]
        written = Manifest.model_validate_json(json.dumps(old | {"format_version": 1, "digest": ""}))
        text = written.model_copy(update={"digest": written.content_digest()}).to_json()
        assert "class_names" not in text
        (copy / "manifest.json").write_text(text)
        with load(copy) as artefact:
            assert artefact.manifest.format_version == 1
            assert artefact.manifest.labels == ("0", "1", "2")
        (copy / "manifest.json").write_text(text.replace('"name": "tiny"', '"name": "other"'))
        with pytest.raises(ArtefactError, match="edited"):
            load(copy)


class TestSignatures:
    def test_the_right_key_opens(self, exported, keys):
        load(exported, public_key=keys[0][1]).close()
        assert keys[0][0].stat().st_mode & 0o777 == 0o600

    def test_another_key_does_not(self, exported, keys):
        with pytest.raises(SignatureError, match=r"names the key \w{32}, you gave"):
            verify(exported, public_key=keys[1][1])

    def test_a_rewritten_manifest_does_not(self, exported, keys, tmp_path):
        copy = shutil.copytree(exported, tmp_path / "copy")
        content = json.loads((copy / "manifest.json").read_text()) | {"epsilon": 5.0, "digest": ""}
        (copy / "manifest.json").write_text(Manifest.model_validate_json(json.dumps(content)).sealed().to_json())
        verify(copy)  # whole in itself
        with pytest.raises(SignatureError, match="changed afterwards"):
            verify(copy, public_key=keys[0][1])
        sign(copy, keys[1][0])
        verify(copy, public_key=keys[1][1])

    @pytest.mark.parametrize("content", [None, "", "{}", '{"key": "a", "signature": "?"}', "x" * 20_000, "link"])
    def test_what_is_no_signature(self, exported, keys, tmp_path, content):
        copy = shutil.copytree(exported, tmp_path / "copy")
        path = copy / "manifest.json.sig"
        if content == "link":
            path.rename(tmp_path / "elsewhere")
            path.symlink_to(tmp_path / "elsewhere")
        elif content is None:
            path.unlink()
        else:
            path.write_text(content)
        with pytest.raises(SignatureError, match="not signed" if content is None else "is not a signature"):
            verify(copy, public_key=keys[0][1])

    def test_keys_that_are_none(self, model, exported, keys, tmp_path):
        other = tmp_path / "other"
        other.write_text("no key")
        for path in (other, keys[0][1]):
            with pytest.raises(ValueError, match="`signing_key`"):
                export(model, tmp_path, signing_key=path)
        with pytest.raises(ValueError, match="`public_key`"):
            verify(exported, public_key=keys[0][0])
        with pytest.raises(FileExistsError):
            generate_key(keys[0][0])
        assert [path.name for path in tmp_path.iterdir()] == ["other"]

    def test_a_passphrase(self, exported, tmp_path, monkeypatch):
        private, public = generate_key(tmp_path / "key", "open sesame")
        copy = shutil.copytree(exported, tmp_path / "copy")
        with pytest.raises(ValueError, match="DEFENDED_SIGNING_PASSPHRASE"):
            sign(copy, private)
        monkeypatch.setenv("DEFENDED_SIGNING_PASSPHRASE", "open sesame")
        sign(copy, private)
        verify(copy, public_key=public)


def fake_version(folder, name, version):
    path = folder / name / str(version)
    path.mkdir(parents=True)
    (path / "manifest.json").write_text("{}")


class TestServingFiles:
    def test_the_config_lists_all_models_and_parses(self, tmp_path):
        from tensorflow_serving.config import model_server_config_pb2

        for name, version in (("b", 2), ("a.1_x", 1), ("b", 10)):
            fake_version(tmp_path, name, version)
        (tmp_path / "empty").mkdir()
        (tmp_path / "half" / "1").mkdir(parents=True)
        (tmp_path / "link").symlink_to(tmp_path / "b")
        assert serving_files.served_models(tmp_path) == (("a.1_x", (1,)), ("b", (2, 10)))
        files = write_serving_files(tmp_path)
        config = text_format.Parse(files["models.config"].read_text(), model_server_config_pb2.ModelServerConfig())
        found = [(item.name, item.base_path, item.model_platform) for item in config.model_config_list.config]
        assert found == [("a.1_x", "/models/a.1_x", "tensorflow"), ("b", "/models/b", "tensorflow")]
        compose = yaml.safe_load(files["compose.yaml"].read_text())
        assert set(compose["services"]) == {"serving", "prometheus"}
        assert all(port.startswith("127.0.0.1:") for port in compose["services"]["serving"]["ports"])
        named = [
            part.split("=/models/")[1] for part in compose["services"]["serving"]["command"] if "=/models/" in part
        ]
        assert all((tmp_path / name).is_file() for name in named)
        target = compose["services"]["serving"]["volumes"]
        assert target == [".:/models:ro"]
        service = yaml.safe_load(files["kserve/a.1_x.yaml"].read_text())
        assert service["spec"]["predictor"]["model"]["storageUri"] == "pvc://models/a.1_x"
        assert yaml.safe_load(files["prometheus.yml"].read_text())["scrape_configs"]

    def test_an_edit_stays_and_the_new_file_lies_beside_it(self, tmp_path):
        fake_version(tmp_path, "a", 1)
        write_serving_files(tmp_path)
        path = tmp_path / "models.config"
        edited = path.read_text().replace('"/models/a"', '"/elsewhere/a"')
        path.write_text(edited)
        fake_version(tmp_path, "b", 1)
        with pytest.warns(EditedFileWarning, match=r"models\.config was edited.*models\.config\.new"):
            files = write_serving_files(tmp_path)
        assert path.read_text() == edited
        assert files["models.config"] == tmp_path / "models.config.new"
        assert '"/models/b"' in files["models.config"].read_text()
        write_serving_files(tmp_path)  # said once
        path.unlink()
        assert '"/models/b"' in write_serving_files(tmp_path)["models.config"].read_text()

    def test_what_is_not_ours_is_not_touched(self, tmp_path):
        fake_version(tmp_path, "a", 1)
        (tmp_path / "models.config").write_bytes(b"\xff\xfe")
        (tmp_path / "compose.yaml").mkdir()
        (tmp_path / "batching.config").symlink_to(tmp_path / "nowhere")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", EditedFileWarning)
            write_serving_files(tmp_path)
        assert (tmp_path / "models.config").read_bytes() == b"\xff\xfe"
        assert (tmp_path / "compose.yaml").is_dir()
        assert not (tmp_path / "nowhere").exists()

    @pytest.mark.parametrize("name", ["A", "a", "a.b", "a_b", "9", "x" * 128, "-".join("ab" * 40)])
    def test_kubernetes_takes_the_resources_name(self, name):
        import re

        resource = serving_files.ServedModel(name, (1,)).resource
        assert re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", resource)

    def test_different_models_have_different_resources(self):
        names = ["a.b", "a_b", "a-b", "A-b", "a--b"]
        assert len({serving_files.ServedModel(name, (1,)).resource for name in names}) == len(names)

    def test_exports_at_once_leave_a_list_of_all(self, tmp_path):
        """The lock is one of files, so threads stand in for processes."""

        def export_some(letter):
            for number in range(5):
                fake_version(tmp_path, f"{letter}{number}", 1)
                write_serving_files(tmp_path)

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(export_some, "abcd"))
        text = (tmp_path / "models.config").read_text()
        assert serving_files.is_generated(text)
        assert text.count("base_path:") == 20


class TestFullDisk:
    """No file may grow: what a full disk does to whoever writes, in a process that goes on."""

    @pytest.fixture
    def full(self):
        import signal

        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

        def limit(size):
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))

        yield limit
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)

    @pytest.mark.parametrize("size", [0, 2_000, 20_000])
    def test_an_export_leaves_nothing(self, model, tmp_path, full, size):
        full(size)
        with pytest.raises(OSError, match=r"File too large|cannot write there"):
            export(model, tmp_path / "models", onnx=False)
        full(resource.RLIM_INFINITY)
        assert not list(tmp_path.iterdir())

    def test_the_serving_files_stay_whole(self, tmp_path, full):
        fake_version(tmp_path, "a", 1)
        before = {name: path.read_text() for name, path in write_serving_files(tmp_path).items()}
        fake_version(tmp_path, "b", 1)
        full(100)
        with pytest.raises(OSError, match="File too large"):
            write_serving_files(tmp_path)
        full(resource.RLIM_INFINITY)
        assert {name: (tmp_path / name).read_text() for name in before} == before
        assert not list(tmp_path.glob(".models*"))

    def test_an_artefact_whose_serving_files_fail_is_whole_and_said_to_be(self, model, tmp_path, monkeypatch):
        module = sys.modules["defended.serving.exporting.export"]

        def fail(directory):
            raise OSError(28, "No space left on device", str(directory))

        monkeypatch.setattr(module, "write_serving_files", fail)
        with pytest.raises(OSError, match=r"digits/1 is whole.*No space left.*write_serving_files"):
            export(model, tmp_path, "digits", onnx=False, warm_up=False)
        verify(tmp_path / "digits" / "1")


def test_the_onnx_files_of_both_signatures(model):
    converted = convert(model, inputs(8))
    from defended.serving.artefacts.onnx_model import OnnxModel

    assert set(OnnxModel(converted.whole).run(inputs(2))) >= {"certified_radius", "scores_with_bottom"}
    assert set(OnnxModel(converted.content).run(inputs(2))) == {"label", "rejected", "scores"}


def test_ready_made_tools_find_what_they_look_for(exported):
    """TensorFlow Serving's names of files, and the folder that it passes over."""
    names = {path.name for path in (exported / "assets.extra").iterdir()}
    assert names == {"tf_serving_warmup_requests", "model.onnx"}
    assert os.path.exists(exported.parents[1] / "models.config")
