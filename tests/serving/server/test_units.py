"""Inputs in other units than the training's: counted and logged by default, refused on request."""

import logging

import numpy as np
import pytest

pytest.importorskip("tensorflow_serving")

from served import export_tiny, images, metric, post

from defended.serving import Client, ClientError, verify
from defended.serving.artefacts.tf_example import inputs_of, serialized_examples
from defended.serving.server import running, units

PREDICT, CLASSIFY = "/v1/models/tiny:predict", "/v1/models/tiny:classify"
EPSILON = 0.02


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranged")
    export_tiny(folder, training_range=(0, 1))
    return folder


def counted(server):
    return metric(server.rest_url, "defended_out_of_range_total", model="tiny", version="1")


def test_they_are_answered_counted_and_said_once_a_minute(models, caplog, monkeypatch):
    x = images(6)
    clock = iter([0.0, 59.0, 61.0])
    monkeypatch.setattr(units, "time", type("Clock", (), {"monotonic": lambda: next(clock)}))
    with caplog.at_level(logging.WARNING), running(models) as server, Client(server.grpc_url, model="tiny") as client:
        client.predict(x)
        assert counted(server) == 0
        bytes_ = np.concatenate([255 * x, x])
        assert client.predict(bytes_)["label"].shape == (12,)
        assert counted(server) == 6
        client.predict(bytes_, "audit")
        records = [{"image": row.reshape(-1).tolist()} for row in bytes_.astype(float)]
        assert post(server.rest_url, CLASSIFY, {"signature_name": "classify", "examples": records})[0] == 200
        assert counted(server) == 18
    said = [record.getMessage() for record in caplog.records if "range of training" in record.getMessage()]
    assert len(said) == 2
    assert said[0].startswith("tiny, version 1: 6 of 12 inputs lie outside")
    assert "trained on 0 to 1. Divide them by 255. (6 since" in said[0]
    assert "(12 since the last such line)" in said[1]


def test_no_attack_within_epsilon_counts_and_what_is_not_finite_has_its_own_verdict(models):
    corner = np.zeros((3, 4, 4, 1), "float32")
    corner[:] = -EPSILON / 4  # norm epsilon
    corner[1] = np.nan
    corner[2, 0, 0] = 1 + EPSILON
    corner[2, 1:] = corner[2, 0, 1:] = 0
    with running(models, reject_out_of_range=True) as server, Client(server.rest_url, model="tiny") as client:
        assert client.predict(corner[:1] * np.float32(0.999999))["label"].shape == (1,)
        assert client.predict(corner)["rejected"][1]
        assert counted(server) == 0


def test_they_are_refused_on_request(models):
    x = 255 * images(3)
    with running(models, reject_out_of_range=True) as server:
        for url in (server.rest_url, server.grpc_url):
            with Client(url, model="tiny") as client:
                for signature in ("serving_default", "audit"):
                    with pytest.raises(ClientError, match=r"3 of 3 inputs.*Divide them by 255.*refuses") as raised:
                        client.predict(x, signature)
                    assert raised.value.code == "INVALID_ARGUMENT"
                assert client.predict(x / 255)["label"].shape == (3,)
        record = {"image": x[0].reshape(-1).tolist()}
        assert post(server.rest_url, CLASSIFY, {"signature_name": "classify", "examples": [record]})[0] == 400
        assert counted(server) == 13


def test_a_model_whose_range_is_not_recorded_is_served_as_before(tiny_models):
    assert verify(tiny_models / "tiny" / "1").training_range is None
    with running(tiny_models, reject_out_of_range=True) as server, Client(server.rest_url, model="tiny") as client:
        assert client.predict(255 * images(2))["label"].shape == (2,)
        assert counted(server) == 0


def test_records_are_read_where_they_hold_an_input():
    x = images(3)
    records = np.array([*serialized_examples(x), b"\xff", b"", serialized_examples(x[:, :2])[0]], object)
    np.testing.assert_array_equal(inputs_of(records, (4, 4, 1)), x)
    assert inputs_of(records[3:], (4, 4, 1)).shape == (0, 4, 4, 1)
