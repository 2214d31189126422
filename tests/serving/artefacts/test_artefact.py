"""Export and loading: what is answered, what is refused, what is left behind."""

import json
import shutil
import subprocess
import sys
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf

from defended import GloroNet, layers
from defended.serving import (
    AgreementError,
    ArtefactError,
    CppLoaderError,
    ForbiddenOpError,
    export,
    load,
    next_version,
)
from defended.serving.artefacts.allowed_ops import check_ops, list_ops
from defended.serving.artefacts.cpp_loader import CppSession
from defended.serving.artefacts.manifest import Manifest
from defended.serving.exporting.agreement import require_agreement, require_rejection
from defended.serving.exporting.arguments import check_name, own_name

GRAPHS = sys.modules["defended.serving.exporting.graphs"]


def make_model(epsilon=0.02):
    image = keras.Input((6, 6, 1))
    hidden = keras.layers.Conv2D(4, 3, strides=2, padding="same")(image)
    hidden = keras.layers.Flatten()(layers.MinMax()(hidden))
    return GloroNet(keras.Model(image, keras.layers.Dense(3)(hidden)), epsilon=epsilon)


def inputs(n, seed=0):
    return np.random.default_rng(seed).uniform(size=(n, 6, 6, 1)).astype("float32")


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(3)
    model = make_model()
    model.finalize()
    return model


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    described = {"susceptibility": {"fpr_lower": 0.25}, "metadata": {"run": "a"}}
    return export(model, folder, "tiny", 7, sample=inputs(40), onnx=False, **described)


@pytest.fixture(scope="module")
def artefact(exported):
    with load(exported) as artefact:
        yield artefact


@pytest.fixture(scope="module")
def judged(artefact):
    x = inputs(50, seed=1)
    return x, artefact.audit(x)


@pytest.fixture
def copy(exported, tmp_path):
    return shutil.copytree(exported, tmp_path / "copy")


def edit_manifest(path, **changes):
    content = json.loads((path / "manifest.json").read_text())
    content.update(changes)
    (path / "manifest.json").write_text(json.dumps(content))


def reseal(path, **changes):
    """What somebody who rewrites an artefact would do."""
    content = json.loads((path / "manifest.json").read_text()) | changes | {"digest": ""}
    manifest = Manifest.model_validate_json(json.dumps(content))
    (path / "manifest.json").write_text(manifest.sealed().to_json())


class TestAnswers:
    def test_equal_the_models_in_batches_of_any_size(self, model, artefact):
        x = inputs(50, seed=1)
        expected = model.verdicts(x)
        assert 0 < expected.rejected.sum() < 50
        for size in (1, 7, 50, 256):
            verdicts = artefact.verdicts(x, batch_size=size)
            np.testing.assert_array_equal(verdicts.label, expected.label)
            np.testing.assert_array_equal(verdicts.rejected, expected.rejected)
            np.testing.assert_allclose(verdicts.radius, expected.radius, rtol=1e-4, atol=1e-6)
            assert [part.dtype for part in verdicts] == [np.int64, np.bool_, np.float32]

    def test_default_signature_keeps_the_radii_back(self, artefact):
        outputs = artefact(inputs(2))
        assert {name: value.shape for name, value in outputs.items()} == {
            "label": (2,),
            "rejected": (2,),
            "scores": (2, 3),
        }

    def test_audit_signature_adds_them(self, model, artefact):
        x = inputs(5)
        outputs = artefact.audit(x)
        assert set(outputs) == {
            "label", "rejected", "scores", "certified_radius", "availability_radius", "epsilon", "scores_with_bottom",
        }  # fmt: skip
        np.testing.assert_array_equal(outputs["epsilon"], np.full(5, artefact.epsilon, "float32"))
        np.testing.assert_allclose(outputs["scores_with_bottom"], np.asarray(model(x)), rtol=1e-4, atol=1e-5)
        radius = outputs["certified_radius"]
        left = np.maximum(radius - artefact.epsilon, 0)
        np.testing.assert_allclose(outputs["availability_radius"], left, atol=1e-4)
        assert (outputs["availability_radius"] <= left).all()

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_one_value_that_is_not_finite_rejects_its_row_only(self, artefact, value):
        clean = inputs(64, seed=2)
        label = artefact(clean)["label"]
        answered = np.flatnonzero(label >= 0)[:3]
        assert len(answered) == 3
        x = clean[answered]
        x[1, 5, 5, 0] = value
        for outputs in (artefact(x), artefact.audit(x)):
            assert outputs["label"].tolist() == [label[answered[0]], -1, label[answered[2]]]
            assert outputs["rejected"].tolist() == [False, True, False]
            assert np.isfinite(outputs["scores"]).all()
        radius = artefact.verdicts(x).radius
        assert radius[1] == 0
        assert np.isfinite(radius).all()

    def test_an_empty_batch_has_empty_answers(self, artefact):
        verdicts = artefact.verdicts(inputs(0))
        assert [len(part) for part in verdicts] == [0, 0, 0]

    def test_python_loads_it_too(self, exported, artefact):
        x = inputs(4)
        outputs = tf.saved_model.load(str(exported)).signatures["serving_default"](image=tf.constant(x))
        np.testing.assert_array_equal(outputs["label"].numpy(), artefact(x)["label"])

    @pytest.mark.parametrize("dtype", ["float64", "uint8", "int64"])
    def test_another_dtype_is_refused(self, artefact, dtype):
        with pytest.raises(TypeError, match=f"float32.*Received: {dtype}"):
            artefact(np.zeros((1, 6, 6, 1), dtype))

    def test_a_list_is_refused(self, artefact):
        with pytest.raises(TypeError, match="Received: list"):
            artefact([[0.0]])

    def test_another_shape_is_refused(self, artefact):
        with pytest.raises(ValueError, match=r"\[batch, 6, 6, 1\].*\[2, 6, 6, 3\]"):
            artefact.audit(np.zeros((2, 6, 6, 3), "float32"))

    def test_a_missing_batch_axis_is_named(self, artefact):
        with pytest.raises(ValueError, match=r"x\[None\]"):
            artefact.verdicts(inputs(1)[0])

    @pytest.mark.parametrize("size", [0, -1])
    def test_a_batch_size_below_one_is_refused(self, artefact, size):
        with pytest.raises(ValueError, match="batch_size"):
            artefact.verdicts(inputs(1), batch_size=size)

    def test_a_closed_artefact_says_so(self, exported):
        with load(exported) as artefact:
            pass
        artefact.close()
        with pytest.raises(CppLoaderError, match="closed"):
            artefact(inputs(1))


class TestManifest:
    def test_says_what_was_exported(self, model, artefact, exported):
        manifest = artefact.manifest
        assert (manifest.name, manifest.version, manifest.defence) == ("tiny", 7, "GloroNet")
        assert (manifest.norm, manifest.num_classes) == ("l2", 3)
        assert manifest.epsilon == float(np.float32(0.02))
        assert manifest.certificate_method == model.certificate_method
        assert manifest.certificate_assumptions == tuple(model.certificate_assumptions)
        assert manifest.susceptibility == {"fpr_lower": 0.25}
        assert manifest.metadata == {"run": "a"}
        assert manifest.check.samples == 40
        assert 0 <= manifest.check.score_drift <= manifest.check.score_drift_bound
        assert {"MatMul", "Conv2D", "TopKV2"} <= set(manifest.ops)
        assert manifest.packages["tensorflow"] == tf.__version__
        assert manifest.created.tzinfo is not None
        assert manifest.signatures["serving_default"].inputs["image"].shape == (None, 6, 6, 1)
        for signature in manifest.signatures.values():
            for tensor in (*signature.inputs.values(), *signature.outputs.values()):
                assert tensor.shape[0] is None
        on_disk = {p.relative_to(exported).as_posix() for p in exported.rglob("*") if p.is_file()}
        assert set(manifest.files) == on_disk - {"manifest.json"}

    def test_holds_no_variable_that_answering_does_not_read(self, model, exported):
        kept = tf.train.list_variables(str(exported / "variables" / "variables"))
        numbers = sum(int(np.prod(shape)) for name, shape in kept if "OBJECT_GRAPH" not in name)
        # The network, K [3, 3], the rounding budget, epsilon, TensorFlow's save counter; no iterates.
        assert numbers <= model.network.count_params() + 9 + 4 + 2

    def test_is_canonical(self, exported):
        text = (exported / "manifest.json").read_text()
        assert text == Manifest.model_validate_json(text).to_json()


class TestTampering:
    def test_an_intact_copy_loads(self, copy, artefact):
        with load(copy, digest=artefact.manifest.digest) as other:
            assert other.manifest == artefact.manifest

    def test_one_changed_byte(self, copy):
        path = copy / "variables" / "variables.data-00000-of-00001"
        content = bytearray(path.read_bytes())
        content[10] ^= 1
        path.write_bytes(content)
        with pytest.raises(ArtefactError, match=r"changed: variables/variables\.data-00000-of-00001"):
            load(copy)

    def test_every_problem_is_named_at_once(self, copy):
        (copy / "fingerprint.pb").unlink()
        (copy / "saved_model.pb").write_bytes(b"")
        (copy / "assets").mkdir(exist_ok=True)
        (copy / "assets" / "extra.txt").write_text("")
        with pytest.raises(
            ArtefactError, match=r"missing: fingerprint\.pb; changed: saved_model\.pb; extra: assets/extra\.txt"
        ):
            load(copy)

    def test_a_link_to_the_same_content_is_a_change(self, copy, tmp_path):
        moved = (copy / "saved_model.pb").rename(tmp_path / "elsewhere.pb")
        (copy / "saved_model.pb").symlink_to(moved)
        with pytest.raises(ArtefactError, match=r"changed: saved_model\.pb"):
            load(copy)

    def test_tensorflow_reads_nothing_before_the_hashes_hold(self, copy, monkeypatch):
        def opened(directory):
            raise AssertionError("opened before it was verified")

        module = sys.modules["defended.serving.artefacts.artefact"]
        monkeypatch.setattr(module, "list_ops", opened)
        monkeypatch.setattr(module, "CppSession", opened)
        (copy / "saved_model.pb").write_bytes(b"x")
        with pytest.raises(ArtefactError, match="changed"):
            load(copy)

    def test_an_edited_manifest(self, copy):
        edit_manifest(copy, epsilon=5.0)
        with pytest.raises(ArtefactError, match="edited"):
            load(copy)

    def test_a_rewritten_manifest_fails_the_digest_kept_elsewhere(self, copy, artefact):
        reseal(copy, epsilon=5.0)
        with pytest.raises(ArtefactError, match="somebody rewrote it"):
            load(copy, digest=artefact.manifest.digest)

    @pytest.mark.parametrize(
        ("changes", "named"),
        [
            ({"format_version": 4}, "format_version: this version of defended reads formats 1 to 3"),
            ({"epsilon": -1.0}, "epsilon"),
            ({"norm": "l1"}, "norm"),
            ({"surprise": 1}, "surprise"),
            ({"files": {"../outside": {"sha256": "0" * 64, "size": 1}}}, "files"),
            ({"files": {"saved_model.pb": {"sha256": "short", "size": 1}}}, "files"),
        ],
    )
    def test_a_manifest_outside_the_schema(self, copy, changes, named):
        edit_manifest(copy, **changes)
        with pytest.raises(ArtefactError, match=f"not a valid manifest: {named}"):
            load(copy)

    def test_a_manifest_that_is_no_json(self, copy):
        (copy / "manifest.json").write_bytes(b"\xff{")
        with pytest.raises(ArtefactError, match="not a valid manifest"):
            load(copy)

    def test_no_manifest(self, copy, tmp_path):
        (copy / "manifest.json").unlink()
        for path in (copy, tmp_path / "nowhere"):
            with pytest.raises(ArtefactError, match=r"is not an artefact.*name/version"):
                load(path)

    def test_a_manifest_that_is_a_link(self, copy, tmp_path):
        moved = (copy / "manifest.json").rename(tmp_path / "elsewhere.json")
        (copy / "manifest.json").symlink_to(moved)
        with pytest.raises(ArtefactError, match="not a regular file"):
            load(copy)

    def test_other_operations_than_listed(self, copy):
        reseal(copy, ops=["MatMul"])
        with pytest.raises(ArtefactError, match="other operations"):
            load(copy)


class TestBadArguments:
    @pytest.mark.parametrize("name", ["", ".hidden", "a/b", "a\\b", "..", "a b", "é", "-x", "x" * 129, "x\n", 3])
    def test_names(self, model, tmp_path, name):
        with pytest.raises(ValueError, match="`name`"):
            export(model, tmp_path, name)
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("version", [0, -1, 1.0, "1", True, None, 2**63])
    def test_versions(self, model, tmp_path, version):
        with pytest.raises(ValueError, match="`version`"):
            export(model, tmp_path, "tiny", version)
        assert not list(tmp_path.iterdir())

    def test_an_undefended_model(self, model, tmp_path):
        with pytest.raises(TypeError, match="GloroNet"):
            export(model.network, tmp_path)

    @pytest.mark.parametrize(
        "sample",
        [inputs(2).astype("float64"), inputs(2)[..., 0], inputs(0), np.full((1, 6, 6, 1), np.nan, "float32")],
        ids=["float64", "shape", "empty", "nan"],
    )
    def test_samples(self, model, tmp_path, sample):
        with pytest.raises(ValueError, match="`sample`"):
            export(model, tmp_path, sample=sample)
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("value", [float("nan"), np.float32(1), object()])
    def test_metadata_outside_json(self, model, tmp_path, value):
        with pytest.raises(ValueError, match="`metadata`"):
            export(model, tmp_path, metadata={"a": value})
        with pytest.raises(ValueError, match="`susceptibility`"):
            export(model, tmp_path, susceptibility={"a": value})

    def test_an_existing_version_is_kept_and_the_next_named(self, model, exported):
        before = (exported / "manifest.json").read_bytes()
        with pytest.raises(FileExistsError, match="export version 8 instead"):
            export(model, exported.parents[1], "tiny", 7)
        assert (exported / "manifest.json").read_bytes() == before
        assert [path.name for path in exported.parent.iterdir()] == ["7"]

    def test_next_version_passes_over_what_is_no_version(self, tmp_path):
        assert next_version(tmp_path, "tiny") == 1
        for name in ("2", "10", "x", ".partial-1"):
            (tmp_path / "tiny" / name).mkdir(parents=True)
        assert next_version(tmp_path, "tiny") == 11

    def test_a_directory_that_is_a_file(self, model, tmp_path):
        (tmp_path / "file").write_text("theirs")
        with pytest.raises(NotADirectoryError, match="`directory`"):
            export(model, tmp_path / "file")
        with pytest.raises(NotADirectoryError, match="`directory`"):
            export(model, tmp_path, "file")
        assert (tmp_path / "file").read_text() == "theirs"

    def test_a_directory_that_cannot_be_written(self, model):
        with pytest.raises(OSError, match="proc"):
            export(model, "/proc/defended")


class TestExport:
    def test_finalizes_and_exports_without_samples(self, tmp_path):
        model = make_model()
        assert not model.is_final
        path = export(model, tmp_path / "new" / "folder", "digits", version=np.int64(3), onnx=False)
        assert path == tmp_path / "new" / "folder" / "digits" / "3"
        assert model.is_final
        with load(path) as artefact:
            x = inputs(20)
            np.testing.assert_array_equal(artefact.verdicts(x).label, model.verdicts(x).label)

    def test_a_target_that_appears_meanwhile_is_kept(self, model, tmp_path, monkeypatch):
        target = tmp_path / "digits" / "1"
        original = GRAPHS.require_rejection

        def slow(*arguments):
            original(*arguments)
            target.mkdir()
            (target / "theirs").write_text("theirs")

        monkeypatch.setattr(GRAPHS, "require_rejection", slow)
        with pytest.raises(FileExistsError, match=r"appeared during the export.*version 2"):
            export(model, tmp_path, "digits", onnx=False)
        assert [path.name for path in target.iterdir()] == ["theirs"]
        assert [path.name for path in target.parent.iterdir()] == ["1"]

    def test_a_graph_that_disagrees_is_not_kept(self, model, tmp_path, monkeypatch):
        original = type(model).deployed

        def drifting(self, x):
            outputs = original(self, x)
            return outputs | {"scores": outputs["scores"] + 0.01}

        monkeypatch.setattr(type(model), "deployed", drifting)
        with pytest.raises(AgreementError, match=r"scores are 0\.0"):
            export(model, tmp_path / "models", onnx=False)
        assert not list(tmp_path.iterdir())

    def test_a_graph_that_runs_python_is_refused(self, model, tmp_path, monkeypatch):
        original = type(model).deployed

        def python(self, x):
            return original(self, tf.ensure_shape(tf.numpy_function(lambda v: v, [x], tf.float32), x.shape))

        monkeypatch.setattr(type(model), "deployed", python)
        with pytest.raises(ForbiddenOpError, match="PyFunc"):
            export(model, tmp_path)
        assert not list(tmp_path.iterdir())

    def test_killed_half_way_leaves_no_target_and_the_next_export_cleans_up(self, model, tmp_path):
        kept = tmp_path / "digits" / "1"
        kept.mkdir(parents=True)
        (kept / "theirs").write_text("theirs")
        model.save(tmp_path / "model.keras")
        script = (
            "import os, signal, sys\n"
            "import keras\n"
            "from defended.serving import export\n"
            "def die(*arguments): os.kill(os.getpid(), signal.SIGKILL)\n"
            "sys.modules['defended.serving.exporting.graphs'].require_rejection = die\n"
            "model = keras.models.load_model(sys.argv[1] + '/model.keras')\n"
            "export(model, sys.argv[1], 'digits', version=2, onnx=False)\n"
        )
        run = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, check=False)
        assert run.returncode == -9, run.stderr
        names = sorted(path.name for path in kept.parent.iterdir())
        assert len(names) == 2
        assert names[0].startswith(".partial-")
        assert (kept.parent / names[0] / "content" / "saved_model.pb").exists()
        assert not (kept.parent / names[0] / "content" / "manifest.json").exists()

        path = export(model, tmp_path, "digits", version=2, onnx=False)
        assert sorted(path.name for path in kept.parent.iterdir()) == ["1", "2"]
        assert (kept / "theirs").read_text() == "theirs"
        load(path).close()


@pytest.mark.parametrize(
    ("own", "exported"),
    [("gloro_net_3", "gloro_net_3"), ("Ampeln & Schilder/2", "Ampeln-Schilder-2"), ("__", "model"), ("交通", "model")],
)
def test_the_default_name_is_the_models_own_as_a_folder_may_be_called(model, own, exported):
    assert check_name(model, None) == model.name
    assert own_name(SimpleNamespace(name=own)) == check_name(model, exported) == exported


class TestAgreement:
    def test_of_the_exported_graph(self, model, judged):
        x, outputs = judged
        assert 0 <= require_agreement(model, x, outputs, batch_size=50) < 1e-5

    def test_drift_is_relative_to_the_largest_score_above_one(self, model, judged):
        x, outputs = judged
        largest = np.abs(outputs["scores"]).max()
        shift = np.float32(0.5e-4 * max(1.0, largest))
        drift = require_agreement(model, x, outputs | {"scores": outputs["scores"] + shift}, batch_size=50)
        assert drift == pytest.approx(0.5e-4, rel=0.05)
        for wrong in (outputs["scores"] + 3 * shift, outputs["scores"] * np.nan):
            with pytest.raises(AgreementError, match="could be rounding"):
                require_agreement(model, x, outputs | {"scores": wrong}, batch_size=50)

    def test_one_other_verdict_is_named(self, model, judged):
        x, outputs = judged
        label = outputs["label"].copy()
        label[31] = 2 if label[31] != 2 else 1
        with pytest.raises(AgreementError, match=r"on 1 of 50 inputs; on input 31"):
            require_agreement(model, x, outputs | {"label": label}, batch_size=50)

    @pytest.mark.parametrize(
        "answers", [[1, 1, -1, -1], [1, -1, -1, 0], [-1, -1, -1, -1]], ids=["nan", "-inf", "takes the clean one along"]
    )
    def test_what_is_not_finite_must_be_rejected_alone(self, answers):
        class Session:
            signatures = ("serving_default",)

            def run(self, signature, fed):
                label = np.array(answers) if not np.isfinite(fed["image"]).all() else np.ones(4, int)
                return {"label": label, "rejected": label < 0}

        with pytest.raises(AgreementError, match="must reject NaN"):
            require_rejection(Session(), np.zeros((1, 2, 2, 1), "float32"))


class TestCppLoader:
    def test_signatures_and_errors_of_a_run(self, exported):
        with CppSession(exported) as session:
            assert sorted(session.signatures) == ["audit", "classify", "serving_default"]
            assert session.signatures["audit"].outputs["certified_radius"].shape == (None,)
            with pytest.raises(CppLoaderError, match=r"No signature 'predict'.*serving_default"):
                session.run("predict", {"image": inputs(1)})
            with pytest.raises(CppLoaderError, match=r"takes the inputs \['image'\]"):
                session.run("audit", {"x": inputs(1)})
            with pytest.raises(CppLoaderError, match="float64"):
                session.run("audit", {"image": inputs(1).astype("float64")})
            with pytest.raises(CppLoaderError, match=r"\(6, 6, 1\)"):
                session.run("audit", {"image": inputs(1)[0]})
            # Column-major memory is fed in the right order.
            x = inputs(3)
            np.testing.assert_array_equal(
                session.run("audit", {"image": np.asfortranarray(x)})["scores"],
                session.run("audit", {"image": x})["scores"],
            )

    def test_a_directory_without_a_model(self, tmp_path):
        with pytest.raises(CppLoaderError, match="does not load"):
            CppSession(tmp_path)

    def test_a_missing_library_is_named(self, exported, monkeypatch):
        sys.modules["defended.serving.artefacts.cpp_library"].load_library.cache_clear()
        monkeypatch.setattr(tf, "__file__", "/nowhere/tensorflow/__init__.py")
        with pytest.raises(CppLoaderError, match=r"libtensorflow_cc.*/nowhere/tensorflow"):
            CppSession(exported)
        monkeypatch.undo()
        with CppSession(exported):
            pass

    def test_ops_of_functions_are_listed(self, exported):
        ops = list_ops(exported)
        assert ops == tuple(sorted(set(ops)))
        assert "IsFinite" in ops
        check_ops(ops, parsing=True)
        with pytest.raises(ForbiddenOpError, match=r"\['PyFunc', 'ReadFile'\]"):
            check_ops((*ops, "ReadFile", "PyFunc"), parsing=True)

    def test_a_file_that_is_no_saved_model(self, tmp_path):
        (tmp_path / "saved_model.pb").write_bytes(b"\xff\xff\xff")
        with pytest.raises(ValueError, match="is not a SavedModel"):
            list_ops(tmp_path)
