"""Runs in pieces: the same files by every engine, and whole after any death."""

import json
import os
import signal
import sys
from types import SimpleNamespace

import keras
import numpy as np
import pytest

from defended import GloroNet, layers
from defended.attacks import CertificateDescent, CertificateViolation, susceptibility
from defended.attacks.measurement.engine import Job, Settings
from defended.serving import audit, export, load
from defended.serving.cluster import (
    DistributedArtefact,
    LocalEngine,
    ParquetStore,
    RemoteAttack,
    WorkerLostError,
    certify,
    engines,
    measure,
    open_engine,
    read_shards,
    verify_run,
)
from defended.serving.cluster.shards import piece_bytes, read_piece
from defended.serving.cluster.source import Source, model_digest
from defended.serving.cluster.worker import threads_in_use, use_threads

SIZES = {"batch_size": 16, "shard_size": 32}


def make_model(epsilon=0.05):
    keras.utils.set_random_seed(3)
    image = keras.Input((6, 6, 1))
    hidden = keras.layers.Conv2D(4, 3, strides=2, padding="same")(image)
    hidden = keras.layers.Flatten()(layers.MinMax()(hidden))
    model = GloroNet(keras.Model(image, keras.layers.Dense(3)(hidden)), epsilon=epsilon)
    model.finalize()
    return model


def inputs(n=150, seed=0):
    rng = np.random.default_rng(seed)
    return rng.uniform(size=(n, 6, 6, 1)).astype("float32"), rng.integers(0, 3, n)


def attack():
    return CertificateDescent(steps=4, seed=5, restarts=2, batch_size=16)


def kept(engine):
    """What an engine tells, with nobody who works."""

    def run(jobs, model, settings):
        assert not list(jobs)
        return iter(())

    return {"source": engine.source, "fingerprint": engine.fingerprint, "run": run}


def files(folder):
    """What a run leaves, times apart."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".seconds"
    }


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture(scope="module")
def engine(model):
    with open_engine("local", model) as engine:
        yield engine


@pytest.fixture(scope="module")
def artefact(model, tmp_path_factory):
    return export(model, tmp_path_factory.mktemp("models"), "tiny", onnx=False)


@pytest.fixture(scope="module")
def certified(engine, tmp_path_factory):
    folder = tmp_path_factory.mktemp("certified") / "run"
    return certify(engine, *inputs(), out=folder, **SIZES)


@pytest.fixture(scope="module")
def measured(engine, model, tmp_path_factory):
    """The folder of an attack's measurement, and its result."""
    folder = tmp_path_factory.mktemp("measured") / "run"
    return folder, measure(engine, model, *inputs(100), attack(), out=folder, batch_size=20)


class TestCertify:
    def test_columns_are_the_models_verdicts(self, model, certified):
        x, y = inputs()
        expected = model.verdicts(x, batch_size=16)
        assert 0 < expected.rejected.sum() < len(x)
        for name in ("label", "rejected", "radius"):
            np.testing.assert_array_equal(certified.columns[name], getattr(expected, name))
        np.testing.assert_array_equal(certified.columns["index"], np.arange(150))
        np.testing.assert_array_equal(certified.columns["target"], y)
        available = model.audit(x, batch_size=16)["availability_radius"]
        np.testing.assert_array_equal(certified.columns["availability_radius"], available)

    def test_the_manifest_lists_every_file_and_the_rates(self, certified):
        content = verify_run(certified.directory)
        assert sorted(content["files"]) == [f"shards/certified_{first:012d}.parquet" for first in range(0, 150, 32)]
        figures, columns = content["summary"], certified.columns
        twice = columns["radius"] > 2 * np.float32(0.05)
        assert figures["rejection_rate"]["count"] == columns["rejected"].sum()
        assert figures["fpr_upper"]["count"] == (~columns["rejected"] & ~twice).sum()
        assert figures["vra_2eps"]["count"] == (twice & (columns["label"] == columns["target"])).sum()
        path = certified.directory / "shards" / "certified_000000000032.parquet"
        before = path.read_bytes()
        path.write_bytes(before[:-1])
        try:
            with pytest.raises(ValueError, match=r"missing or changed: shards/certified_000000000032"):
                verify_run(certified.directory)
        finally:
            path.write_bytes(before)

    def test_a_run_goes_on_with_the_files_that_are_missing(self, model, engine, certified, tmp_path, monkeypatch):
        x, y = inputs()
        done, original = [], engine._worker.run

        def dies_at_the_third(job, settings):
            if len(done) == 2:
                raise KeyboardInterrupt
            done.append(job.name)
            return original(job, settings)

        monkeypatch.setattr(engine._worker, "run", dies_at_the_third)
        with pytest.raises(KeyboardInterrupt):
            certify(engine, x, y, out=tmp_path, **SIZES)
        assert not (tmp_path / "manifest.json").exists()
        with pytest.raises(ValueError, match="no finished run"):
            verify_run(tmp_path)
        monkeypatch.setattr(
            engine._worker, "run", lambda job, settings: done.append(job.name) or original(job, settings)
        )
        certify(engine, x, y, out=tmp_path, **SIZES)
        assert len(done) == len(set(done)) == 5
        assert files(tmp_path) == files(certified.directory)

    def test_another_run_is_refused_and_the_difference_named(self, engine, certified):
        x, y = inputs(seed=1)
        with pytest.raises(ValueError, match=r"another measurement \(data"):
            certify(engine, x, y, out=certified.directory, **SIZES)
        with pytest.raises(ValueError, match="batch_size: 16 there, 8 now"):
            certify(engine, *inputs(), out=certified.directory, batch_size=8, shard_size=32)

    def test_what_is_not_finite_is_rejected_in_its_row(self, engine, tmp_path):
        x, _ = inputs(40)
        clean = certify(engine, x, out=tmp_path / "clean", **SIZES).columns["label"]
        x[7, 0, 0, 0] = np.nan
        columns = certify(engine, x, out=tmp_path / "nan", **SIZES).columns
        assert columns["label"][7] == -1
        assert columns["radius"][7] == 0
        np.testing.assert_array_equal(np.delete(columns["label"], 7), np.delete(clean, 7))
        assert "target" not in columns

    @pytest.mark.parametrize(
        ("arguments", "named"),
        [
            ({"shard_size": 40}, "multiple of `batch_size`"),
            ({"batch_size": 0}, "`batch_size`"),
            ({"x": np.zeros((2, 6, 6), "float32")}, r"\[n, 6, 6, 1\]"),
            ({"x": np.zeros((2, 6, 6, 1))}, "Received: float64"),
            ({"x": np.zeros((0, 6, 6, 1), "float32")}, "n at least 1"),
            ({"y": np.full(150, 3)}, "`y`"),
        ],
    )
    def test_arguments(self, engine, tmp_path, arguments, named):
        x, y = inputs()
        given = {"x": x, "y": y, **SIZES, **arguments}
        with pytest.raises((ValueError, TypeError), match=named):
            certify(engine, given.pop("x"), given.pop("y"), out=tmp_path / "run", **given)
        assert not (tmp_path / "run").exists()


class TestArtefacts:
    def test_an_artefacts_run_is_its_audit_signature(self, artefact, tmp_path):
        x, _ = inputs()
        with open_engine("local", artefact) as engine, load(artefact) as opened:
            columns = certify(engine, x, out=tmp_path / "run", **SIZES).columns
            expected = opened.audit(x, batch_size=16)
            np.testing.assert_array_equal(columns["label"], expected["label"])
            np.testing.assert_allclose(columns["radius"], expected["certified_radius"], rtol=1e-5)
            distributed = DistributedArtefact(engine, artefact)
            found = distributed.audit(x, batch_size=16)
            assert set(found) == set(expected)
            np.testing.assert_array_equal(found["label"], expected["label"])
            assert set(distributed(x[:3])) == {"label", "rejected", "scores"}
            with pytest.raises(ValueError, match=r"x\[None\]"):
                distributed.audit(x[0])
            with pytest.raises(ValueError, match="Keras model"):
                RemoteAttack(engine, attack())

    def test_the_audit_takes_them_for_its_own(self, model, engine, artefact, tmp_path):
        x, y = inputs(60)
        plain = audit(artefact, x, y, model=model, attack=attack())
        with open_engine("local", artefact) as other:
            distributed = DistributedArtefact(other, artefact)
            report = audit(distributed, x, y, model=model, attack=RemoteAttack(engine, attack(), piece=16))
            # Kept pieces are not computed again: an engine that computes nothing gives the same.
            for computing in (True, False):
                work = [engine, other] if computing else [SimpleNamespace(**kept(one)) for one in (engine, other)]
                again = audit(
                    DistributedArtefact(work[1], artefact, keep=tmp_path), x, y, model=model,
                    attack=RemoteAttack(work[0], attack(), piece=16, keep=tmp_path),
                )  # fmt: skip
                assert again.rates() == report.rates()
            assert len(list(tmp_path.glob("perturb-*/perturb_*.parquet"))) >= 2
        assert report.fpr_lower == plain.fpr_lower
        assert report.rates() == plain.rates()
        with pytest.raises(ValueError, match="opened with an artefact"):
            DistributedArtefact(engine, artefact)

    def test_a_tampered_artefact_is_not_sent(self, artefact, tmp_path):
        import shutil

        copy = shutil.copytree(artefact, tmp_path / "copy")
        (copy / "README.md").write_text("other")
        with pytest.raises(ValueError, match=r"changed: README\.md"):
            Source.of(copy)


class TestMeasure:
    def test_is_susceptibility_in_files(self, model, engine, measured):
        x, y = inputs(100)
        folder, result = measured
        plain = susceptibility(model, x, y, attack(), batch_size=20)
        for one, other in zip(result.records, plain.records, strict=True):
            np.testing.assert_array_equal(one, other)
        np.testing.assert_array_equal(result.adversarial.inputs, plain.adversarial.inputs)
        assert 0 < result.test_A < result.test_R
        content = verify_run(folder)
        assert content["settings"]["attack"]["seed"] == 5
        assert content["settings"]["threads"] == engine.threads
        assert "records.parquet" in content["files"]
        pieces = [read_piece(path) for path in sorted(folder.glob("shards/attacked_*.parquet"))]
        np.testing.assert_array_equal(np.concatenate([piece["inputs"] for piece in pieces]), result.adversarial.inputs)
        before = files(folder)
        again = measure(engine, model, x, y, attack(), out=folder, batch_size=20)
        assert files(folder) == before
        assert again.summary() == result.summary()

    def test_the_engine_holds_the_same_model(self, engine, tmp_path):
        other = make_model(epsilon=0.04)
        with pytest.raises(ValueError, match="another model"):
            measure(engine, other, *inputs(), out=tmp_path / "run")

    def test_a_violation_arrives_from_another_process_as_it_was(self):
        import pickle

        error = CertificateViolation("broken", np.array([3]), np.ones((1, 2), "float32"))
        again = pickle.loads(pickle.dumps(error))
        assert str(again) == "broken"
        assert again.index.tolist() == [3]
        assert again.inputs.shape == (1, 2)


class TestShards:
    def test_arrays_come_back_as_they_were(self, tmp_path):
        rng = np.random.default_rng(0)
        degraded = np.array([True, False, True, False])
        arrays = {
            "degraded": degraded,
            "distance": rng.normal(size=4),
            "inputs": rng.normal(size=(2, 3, 2)).astype("float32"),
            "label": np.array([1, -1, 2, 0]),
            "scores": rng.normal(size=(4, 5)).astype("float32"),
            "redrawn": np.int64(7),
        }
        store = ParquetStore(tmp_path, {"a": 1})
        store.put("piece", **arrays, seconds=np.float64(1.5))
        found = store.get("piece")
        assert found.pop("seconds") == 1.5
        assert set(found) == set(arrays)
        for name, value in arrays.items():
            np.testing.assert_array_equal(found[name], value)
            assert found[name].dtype == np.asarray(value).dtype
        assert store.get("other") is None
        assert piece_bytes(arrays) == (tmp_path / "piece.parquet").read_bytes()

    @pytest.mark.parametrize("degraded", [[False, False], [True, True]])
    def test_none_and_all_degraded(self, tmp_path, degraded):
        mask = np.array(degraded)
        inputs = np.ones((mask.sum(), 2), "float32")
        (tmp_path / "a.parquet").write_bytes(piece_bytes({"degraded": mask, "inputs": inputs}))
        np.testing.assert_array_equal(read_piece(tmp_path / "a.parquet")["inputs"], inputs)

    @pytest.mark.parametrize("content", [b"", b"PAR1", b"x" * 100])
    def test_a_broken_file_is_named(self, tmp_path, content):
        store = ParquetStore(tmp_path, {})
        (tmp_path / "piece.parquet").write_bytes(content)
        with pytest.raises(ValueError, match=r"piece\.parquet cannot be read.*Remove that file"):
            store.get("piece")

    def test_no_pieces_no_columns(self, tmp_path):
        with pytest.raises(ValueError, match="holds no pieces"):
            read_shards(tmp_path)


class TestEngines:
    def test_a_model_arrives_whole(self, model):
        x, _ = inputs(20)
        model.evaluation_drift = 0.0
        other = Source.of_model(model).open()
        np.testing.assert_array_equal(other.verdicts(x).radius, model.verdicts(x).radius)
        assert model_digest(other) == model_digest(model)
        changed = make_model()
        changed.evaluation_drift = 0.5
        source = Source.of_model(changed)
        assert source.digest != model_digest(model)
        assert source.open().evaluation_drift == 0.5

    def test_an_undefended_model_is_refused(self, model, tmp_path):
        model.network.save(tmp_path / "plain.keras")
        with pytest.raises(ValueError, match="undefended"):
            Source.of(tmp_path / "plain.keras")

    @pytest.mark.parametrize("options", [{"name": "spark"}, {"workers": 0}, {"threads": 0}])
    def test_arguments(self, model, options):
        with pytest.raises(ValueError, match="Received"), open_engine(**{"name": "local", "what": model, **options}):
            pass

    def test_threads_are_what_tensorflow_runs_with(self):
        use_threads(threads_in_use())
        with pytest.raises(RuntimeError, match="runs already with"):
            use_threads(threads_in_use() + 1)

    def test_missing_ray_is_named(self, model, monkeypatch):
        monkeypatch.setitem(sys.modules, "ray", None)
        with pytest.raises(ImportError, match=r"keras-defended\[ray\]"), open_engine("ray", model):
            pass

    def test_unknown_work_is_not_taken_for_an_attack(self, engine):
        assert isinstance(engine, LocalEngine)
        with pytest.raises(ValueError, match="kind"):
            next(engine.run(iter([Job("a", "dance", {"x": inputs(1)[0]})]), None, Settings(None, 0.1, 1)))


def fatal(make, folder):
    """Makes workers of which one dies at the first piece of certification, and one as the driver of another run."""

    def make_worker():
        worker = make()
        run = worker.run

        def dies(job, settings):
            if job.kind == "certify" and not (folder / "a worker died").exists():
                (folder / "a worker died").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            if job.kind == "drive":
                if (folder / "driven").exists():  # tried again
                    os.kill(os.getpid(), signal.SIGKILL)
                put, done = ParquetStore.put, []

                def last(self, name, **arrays):
                    put(self, name, **arrays)
                    done.append(name)
                    if len(done) == 3:
                        os.kill(os.getpid(), signal.SIGKILL)

                ParquetStore.put = last
                with open_engine("local", worker.model) as local:
                    certify(local, job.arrays["x"], job.arrays["labels"], out=folder / "driven", **SIZES)
            return run(job, settings)

        worker.run = dies
        return worker

    return make_worker


def test_a_dead_worker_and_a_dead_driver_change_nothing(model, engine, measured, certified, tmp_path, monkeypatch):
    pytest.importorskip("ray")
    x, y = inputs()
    settings = Settings(None, 0.05, 16)
    monkeypatch.setitem(engines.ClusterEngine.__init__.__kwdefaults__, "restarts", 1)
    with engines.connected("local", num_cpus=2), open_engine("ray", model, workers=2) as actors:
        actors._make = fatal(actors._make, tmp_path)
        measure(actors, model, *inputs(100), attack(), out=tmp_path / "attack", batch_size=20)
        with pytest.raises(ValueError, match="kind"):
            list(actors.run(iter([Job("any", "dance", {"x": x[:1]})]), None, settings))
        certify(actors, x, y, out=tmp_path / "run", **SIZES)
        assert (tmp_path / "a worker died").exists()
        with pytest.raises(WorkerLostError, match="The worker of the piece driver died 2 times"):
            list(actors.run(iter([Job("driver", "drive", {"x": x, "labels": y})]), None, settings))
    # Actors leave what the local engine leaves.
    assert files(tmp_path / "attack") == files(measured[0])
    assert files(tmp_path / "run") == files(certified.directory)

    driven = tmp_path / "driven"
    assert len(list(driven.glob("shards/certified_*.parquet"))) == 3
    assert not (driven / "manifest.json").exists()
    certify(engine, x, y, out=driven, **SIZES)
    assert files(driven) == files(certified.directory)
    assert json.loads((driven / "manifest.json").read_text())["summary"]["inputs"] == 150
