"""Models of the gloro library: its files in both formats, and its live models."""

import csv
import functools
import io
import itertools
import json
import os
import subprocess
import tarfile
from pathlib import Path
from types import SimpleNamespace

import h5py
import keras
import numpy as np
import pytest
from keras import ops

from defended import GloroNet, load_gloronet
from defended.gloro.legacy import network as legacy_network
from defended.gloro.legacy.archive import read_archive
from defended.layers import InvertibleDownsampling, MinMax

DATA = Path(__file__).parents[3] / "data"
FORMATS = ["gloro_1_1_1", "gloro_later"]
OTHERS = ~np.eye(4, dtype=bool)


def recorded(name):
    """What gloro itself computed."""
    with np.load(DATA / f"{name}.npz") as arrays:
        return dict(arrays)


@functools.cache
def loaded(name):
    """The model of a file; no test changes it."""
    return load_gloronet(DATA / f"{name}.gloronet")


def logits(model, x):
    return ops.convert_to_numpy(model.network(x))


# The formats.


@pytest.mark.parametrize(("name", "epsilon"), [("gloro_1_1_1", 0.25), ("gloro_later", 0.5)])
def test_both_formats_give_gloros_logits_and_constants(name, epsilon):
    model, gloro = loaded(name), recorded(name)
    assert model.is_final
    assert float(model.epsilon.numpy()) == epsilon
    np.testing.assert_allclose(logits(model, gloro["x"]), gloro["logits"], rtol=0, atol=1e-5)
    ours = model.margin_lipschitz[OTHERS].astype(np.float64)
    np.testing.assert_allclose(ours, gloro["K"][OTHERS], rtol=0.01)
    assert np.all(ours >= gloro["K_exact"][OTHERS])
    np.testing.assert_allclose(ours, gloro["K_exact"][OTHERS], rtol=1e-5)


def test_nested_and_shared_networks_and_every_activation():
    model, gloro = loaded("gloro_later_nested"), recorded("gloro_later_nested")
    np.testing.assert_allclose(logits(model, gloro["x"]), gloro["logits"], rtol=0, atol=1e-5)
    assert model.is_final


@pytest.mark.parametrize("name", FORMATS)
def test_gloros_own_layers_are_ours_also_behind_convolutions(name):
    gloro = recorded(name)
    x = gloro["values"]
    np.testing.assert_array_equal(MinMax()(x), gloro["minmax"])
    np.testing.assert_array_equal(MinMax()(x.reshape(len(x), -1)), gloro["minmax_flat"])
    np.testing.assert_array_equal(InvertibleDownsampling((2, 3))(x), gloro["downsampled"])


def test_the_files_layer_names_are_kept():
    names = [layer.name for layer in loaded("gloro_1_1_1").network.layers]
    assert "ResnetBlock0_conv_skip" in names


def test_another_radius_can_be_named():
    assert float(load_gloronet(DATA / "gloro_later.gloronet", epsilon=0.125).epsilon.numpy()) == 0.125
    with pytest.raises(ValueError, match="positive"):
        load_gloronet(DATA / "gloro_later.gloronet", epsilon=-1.0)


def test_what_is_loaded_can_be_saved_and_trained(tmp_path):
    model = load_gloronet(str(DATA / "gloro_later.gloronet"))
    x = recorded("gloro_later")["x"]
    model.save(tmp_path / "ours.keras")
    again = keras.models.load_model(tmp_path / "ours.keras")
    np.testing.assert_array_equal(logits(again, x), logits(model, x))
    before = logits(model, x)
    model.compile("adam")
    model.fit(x, np.arange(len(x)) % 4, verbose=0)
    assert np.max(np.abs(logits(model, x) - before)) > 0


# The authors' own model.


def test_the_reference_file_has_its_figures(reference_dir, mnist):
    model = load_gloronet(reference_dir / "gloro" / "mnist_0.3_N.gloronet")
    assert float(model.epsilon.numpy()) == np.float32(0.3)
    found = model.audit(mnist.x_test, batch_size=1000)
    radius = np.sort(found["certified_radius"])
    assert 0.932 <= np.mean(found["label"] == mnist.y_test) <= 0.9355
    with open(reference_dir / "gloro" / "radii" / "mnist_0.3_N.csv") as file:
        published = np.sort([float(row["radius"]) for row in csv.DictReader(file)])
    assert np.all(radius <= published)
    # With the exact norms of the hidden layers, from a decomposition made elsewhere.
    scores = found["scores"].astype(np.float64)
    kernel = ops.convert_to_numpy(model.network.layers[-1].kernel).astype(np.float64)
    columns = np.linalg.norm(kernel[:, :, None] - kernel[:, None, :], axis=0) * 40.52478637
    top = scores.argmax(axis=1)
    np.fill_diagonal(columns, np.inf)
    margins = scores.max(axis=1, keepdims=True) - scores
    margins[np.arange(len(top)), top] = np.inf
    with np.errstate(invalid="ignore"):
        exact = np.nanmin(margins / columns[top], axis=1)
    assert np.all(radius <= np.sort(exact) * (1 + 1e-7))


# Live models.


class FakeLayer:
    """What `from_gloro` sees of a layer of legacy Keras."""

    def __init__(self, config, weights):
        self._config = config
        self.name = config["name"]
        self.weights = [SimpleNamespace(name="/".join(parts)) for parts in weights]
        self._values = list(weights.values())
        self._inbound_nodes = []

    def get_config(self):
        return self._config

    def get_weights(self):
        return self._values

    def __call__(self, inputs):
        self._inbound_nodes.append(SimpleNamespace(keras_inputs=inputs, call_kwargs={"training": None}))
        return SimpleNamespace(_keras_history=(self, len(self._inbound_nodes) - 1, 0))


def fake_class(name, module="tf_keras.src.layers"):
    return type(name, (FakeLayer,), {"__module__": module})


def fake_network(description, weights):
    """A live legacy network of a file's description and weights."""
    config = description["config"]
    layers, tensors = {}, {}
    for entry in config["layers"]:
        name = entry["name"]
        nested = entry["class_name"] in ("Functional", "Sequential")
        if nested:
            layer = fake_network(chained(entry), {})
            layer._inbound_nodes = [None]  # its making
            layer.weights = [SimpleNamespace(name="/".join(parts)) for parts in weights[name]]
            layer._values = list(weights[name].values())
        else:
            layer = fake_class(entry["class_name"])(entry["config"], weights.get(name, {}))
        layers[name] = layer
        if not entry["inbound_nodes"]:
            tensors[name, 0] = layer([])
        for number, call in enumerate(entry["inbound_nodes"]):
            tensors[name, number + nested] = layer([tensors[source[0], source[1]] for source in call])
    network = fake_class("Functional")({"name": config["name"]}, {})
    network.layers = list(layers.values())
    network.inputs = [tensors[tuple(config["input_layers"][0][:2])]]
    network.outputs = [tensors[tuple(config["output_layers"][0][:2])]]
    return network


def chained(entry):
    """The description of a Sequential in the form of a functional network's."""
    if entry["class_name"] == "Functional":
        return entry
    layers = [{**layer, "name": layer["config"]["name"], "inbound_nodes": []} for layer in entry["config"]["layers"]]
    for before, layer in itertools.pairwise(layers):
        layer["inbound_nodes"] = [[[before["name"], 0, 0, {}]]]
    ends = {"input_layers": [[layers[0]["name"], 0, 0]], "output_layers": [[layers[-1]["name"], 0, 0]]}
    return {"config": {"name": entry["config"]["name"], "layers": layers, **ends}}


def fake_gloro(name, **further):
    archive = read_archive(DATA / f"{name}.gloronet")
    network = fake_network(chained(json.loads(archive.architecture)), archive.weights)
    return SimpleNamespace(f=network, epsilon=np.float32(archive.config["epsilon"]), **further)


@pytest.mark.parametrize("name", ["gloro_1_1_1", "gloro_later_nested"])
def test_a_live_model_gives_what_its_file_gives(name):
    live, x = fake_gloro(name), recorded(name)["x"]
    model, of_file = GloroNet.from_gloro(live), loaded(name)
    assert model.is_final
    assert float(model.epsilon.numpy()) == float(of_file.epsilon.numpy())
    np.testing.assert_array_equal(logits(model, x), logits(of_file, x))
    np.testing.assert_array_equal(model.margin_lipschitz, of_file.margin_lipschitz)


def test_a_live_liresnet_block_which_gloro_cannot_save():
    gloro = recorded("liresnet")
    names = json.loads(str(gloro["names"]))
    values = {name: gloro[f"weight_{number}"] for number, name in enumerate(names)}

    def layer(class_name, name, config, weights=()):
        stored = {tuple(key.split("/")): values[key] for key in names if key in weights}
        return fake_class(class_name, "gloro.layers.blocks")({"name": name, "dtype": "float32", **config}, stored)

    block = {"kernel_size": (3, 3), "use_bias": True, "use_affine": True, "residual_scale": 0.5, "lc_strategy": object}
    chain = [
        layer("InputLayer", "input", {"batch_input_shape": (None, 5, 5, 4)}),
        layer("LiResNetBlock", "block", block, names[:4]),
        layer("MinMax", "min_max", {}),
        layer("Flatten", "flatten", {"data_format": "channels_last"}),
        layer("Dense", "dense", {"units": 4, "activation": "linear", "use_bias": True}, names[4:]),
    ]
    tensors = [chain[0]([])]
    for one in chain[1:]:
        tensors.append(one(tensors[-1:]))
    network = fake_class("Functional")({"name": "live"}, {})
    network.layers, network.inputs, network.outputs = chain, tensors[:1], tensors[-1:]
    assert float(values["scale:0"]) == 0.375  # not what its config says
    model = GloroNet.from_gloro(SimpleNamespace(f=network, epsilon=0.5), epsilon=0.25)
    np.testing.assert_allclose(logits(model, gloro["x"]), gloro["logits"], rtol=0, atol=1e-5)
    ours = model.margin_lipschitz[OTHERS].astype(np.float64)
    assert np.all(ours >= gloro["K_exact"][OTHERS])
    np.testing.assert_allclose(ours, gloro["K_exact"][OTHERS], rtol=1e-5)
    assert float(model.epsilon.numpy()) == 0.25


def test_live_models_that_are_refused():
    with pytest.raises(TypeError, match=r"gloro.GloroNet.*Received: str"):
        GloroNet.from_gloro("model.gloronet")
    with pytest.raises(TypeError, match="Keras 3"):
        GloroNet.from_gloro(loaded("gloro_later"))
    with pytest.raises(ValueError, match="'k' is set"):
        GloroNet.from_gloro(fake_gloro("gloro_1_1_1", k=3))
    live = fake_gloro("gloro_1_1_1")
    live.epsilon = 0.0
    with pytest.raises(ValueError, match="positive"):
        GloroNet.from_gloro(live)
    live = fake_gloro("gloro_1_1_1")
    type(live.f.layers[1]).__module__ = "mine"
    with pytest.raises(ValueError, match=r"'Conv2D' of 'mine'.*neither Keras's nor gloro's"):
        GloroNet.from_gloro(live)
    live = fake_gloro("gloro_1_1_1")
    live.f.layers[1]._values[0] = live.f.layers[1]._values[0].astype("float64")
    with pytest.raises(ValueError, match="float32"):
        GloroNet.from_gloro(live)
    live = fake_gloro("gloro_1_1_1")
    live.f.layers[1]._inbound_nodes[0].call_kwargs["training"] = True
    with pytest.raises(ValueError, match="further arguments"):
        GloroNet.from_gloro(live)
    type(live.f).__module__ = "mine"
    with pytest.raises(ValueError, match="Sequential or functional"):
        GloroNet.from_gloro(live)


def test_live_models_of_the_library_itself():
    python = os.environ.get("DEFENDED_GLORO_PYTHON")
    if not python:
        pytest.skip("DEFENDED_GLORO_PYTHON is not set: the interpreter of an environment with gloro and tf_keras")
    script = DATA / "check_live_gloro.py"
    environment = {**os.environ, "PYTHONPATH": f"{DATA.parents[1]}:{os.environ.get('PYTHONPATH', '')}"}
    run = subprocess.run([python, script], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    assert "the same" in run.stdout


@pytest.mark.parametrize("name", [*FORMATS, "gloro_later_nested"])
def test_texts_and_weights_are_those_that_h5py_reads_here(name):
    found = read_archive(DATA / f"{name}.gloronet")
    with tarfile.open(DATA / f"{name}.gloronet") as archive:
        content = archive.extractfile(f"{found.folder}/f.h5").read()
    theirs = {}
    with h5py.File(io.BytesIO(content)) as file:
        assert file.attrs["model_config"] == found.architecture
        file["model_weights"].visititems(theirs.__setitem__)
        theirs = {path: value[()] for path, value in theirs.items() if isinstance(value, h5py.Dataset)}
    ours = {
        "/".join((layer, *parts)): value for layer, below in found.weights.items() for parts, value in below.items()
    }
    assert set(ours) == set(theirs)
    for path, value in ours.items():
        np.testing.assert_array_equal(value, theirs[path])


def test_every_known_class_is_documented():
    text = (DATA.parents[1] / "docs" / "how-to" / "import-gloro.md").read_text(encoding="utf-8")
    assert [name for name in legacy_network.known_classes() if f"`{name}`" not in text] == []
