"""What the tests of server and client share: a small exported model, and plain HTTP."""

import http.client
import json
from urllib.parse import urlsplit

import keras
import numpy as np

from defended import GloroNet, layers
from defended.serving import export

SHAPE = (4, 4, 1)


def tiny_model(seed=3, epsilon=0.02):
    keras.utils.set_random_seed(seed)
    image = keras.Input(SHAPE)
    hidden = layers.MinMax()(keras.layers.Conv2D(4, 3, strides=2, padding="same")(image))
    model = GloroNet(keras.Model(image, keras.layers.Dense(3)(keras.layers.Flatten()(hidden))), epsilon=epsilon)
    model.finalize()
    return model


def export_tiny(folder, name="tiny", version=1, seed=3, training_range=None):
    model = tiny_model(seed)
    model.training_range = training_range
    return export(model, folder, name, version, onnx=False, warm_up=False, serving_files=False)


def images(n, seed=0):
    return np.random.default_rng(seed).uniform(size=(n, *SHAPE)).astype("float32")


def http_call(base, method, path, body=None, headers=None, timeout=20):
    """Return status, headers and body of one request."""
    parts = urlsplit(base)
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=timeout)
    try:
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        connection.close()


def post(base, path, document, headers=None):
    """Return status and parsed answer of a POST of JSON, or of bytes as they are."""
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    status, _, answer = http_call(base, "POST", path, body, headers)
    return status, json.loads(answer)


def get(base, path, headers=None):
    status, _, answer = http_call(base, "GET", path, None, headers)
    return status, json.loads(answer)


def metric(base, name, **labels):
    """Return the value of one series of `/metrics`, 0 where it is not there yet."""
    from prometheus_client.parser import text_string_to_metric_families

    _, _, page = http_call(base, "GET", "/metrics")
    for family in text_string_to_metric_families(page.decode()):
        for sample in family.samples:
            if sample.name == name and labels.items() <= sample.labels.items():
                return sample.value
    return 0.0
