"""Fixtures shared by all tests: seeds, and real data where environment variables say that it is at hand."""

import gc
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("MPLBACKEND", "agg")
# Workers side by side share the cores: the threads of one would wait for the other's, many times longer than they work.
os.environ.update(
    {
        name: str(max((os.cpu_count() or 1) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")), 1))
        for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS")
        if name not in os.environ
    }
)

import keras
import pytest
from tensorflow.python.eager import context

from defended import datasets


@pytest.fixture(autouse=True)
def seeds(monkeypatch):
    """Every test starts from the same random state, alone or in company.

    Setting TensorFlow's seed also drops all compiled kernels, which is left out: graphs that tests share would be
    optimised again for each of them. What is traced from now on starts from the seed.
    """
    with monkeypatch.context() as patched:
        patched.setattr(context.pywrap_tfe, "TFE_ContextClearCaches", lambda handle: None)
        keras.utils.set_random_seed(20221)


@pytest.fixture
def eagerly():
    """Polytope nets trace no graphs, and their evaluations are not compared with what was proven."""
    import polytopes

    with polytopes.eagerly():
        yield


def pytest_collection_modifyitems(items):
    """The campaign takes minutes, so a worker begins with it."""
    items.sort(key=lambda item: "test_campaign" not in item.nodeid)


def pytest_collection_finish(session):
    """Graphs are traced into millions of small objects, few of them garbage: look for it a hundredth as often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 100)


def folder_from(variable: str) -> Path:
    """Return the folder that an environment variable names, or skip the test."""
    value = os.environ.get(variable)
    if not value:
        pytest.skip(f"{variable} is not set: it names a folder of data that a clone does not have")
    folder = Path(value).resolve()
    if not folder.is_dir():
        pytest.fail(f"{variable}={value} is not a directory")
    return folder


@pytest.fixture(scope="session")
def data_dir() -> Path:
    return folder_from("DEFENDED_DATA")


@pytest.fixture(scope="session")
def reference_dir() -> Path:
    """Models and results made by other people's code."""
    return folder_from("DEFENDED_REFERENCE")


@pytest.fixture(scope="session")
def real_data(data_dir):
    """Loads a data set of the folder by name; skips the test where the folder does not hold it."""

    def load(name: str) -> datasets.Dataset:
        if not (data_dir / f"{name}.npz").exists():
            pytest.skip(f"{data_dir} holds no {name}.npz")
        return datasets.load(str(data_dir / f"{name}.npz"))

    return load


@pytest.fixture(scope="session")
def mnist(data_dir):
    return datasets.load(str(data_dir / "mnist.npz"))


@pytest.fixture(scope="session")
def fashion_mnist(data_dir):
    return datasets.load(str(data_dir / "fashion_mnist.npz"))


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory):
    """A folder with one small exported model, `tiny`, version 1; not to be written."""
    from served import export_tiny

    folder = tmp_path_factory.mktemp("models")
    export_tiny(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_artefact(tiny_models):
    from defended.serving import load

    with load(tiny_models / "tiny" / "1") as artefact:
        yield artefact
