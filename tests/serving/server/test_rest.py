"""The server's REST API: answers equal the model's, errors are TensorFlow Serving's."""

import json

import numpy as np
import pytest

pytest.importorskip("aiohttp")

from served import get, http_call, images, metric, post

from defended.serving.server import running

PREDICT = "/v1/models/tiny:predict"


@pytest.fixture(scope="module")
def server(tiny_models):
    with running(tiny_models) as server:
        yield server


@pytest.fixture(scope="module")
def url(server):
    return server.rest_url


def error(url, document, path=PREDICT):
    status, answer = post(url, path, document)
    assert list(answer) == ["error"]
    return status, answer["error"]


class TestPredict:
    def test_rows_come_back_as_rows(self, url, tiny_artefact):
        x = images(5)
        status, answer = post(url, PREDICT, {"instances": x.tolist()})
        assert status == 200
        assert list(answer) == ["predictions"]
        expected = tiny_artefact(x)
        assert [row["label"] for row in answer["predictions"]] == expected["label"].tolist()
        assert [row["rejected"] for row in answer["predictions"]] == expected["rejected"].tolist()
        scores = np.array([row["scores"] for row in answer["predictions"]], "float32")
        np.testing.assert_allclose(scores, expected["scores"], rtol=1e-5)
        assert [set(row) for row in answer["predictions"]] == [{"label", "rejected", "scores"}] * 5

    def test_columns_come_back_as_columns(self, url, tiny_artefact):
        x = images(3)
        status, answer = post(url, PREDICT, {"inputs": x.tolist(), "signature_name": "audit"})
        assert status == 200
        assert list(answer) == ["outputs"]
        expected = tiny_artefact.audit(x)
        assert set(answer["outputs"]) == set(expected)
        for name, value in expected.items():
            np.testing.assert_allclose(np.array(answer["outputs"][name], value.dtype), value, rtol=1e-5, atol=1e-6)

    def test_named_inputs_are_the_same_in_both_formats(self, url):
        x = images(2).tolist()
        plain = [post(url, PREDICT, document) for document in ({"instances": x}, {"inputs": x})]
        named = [
            post(url, PREDICT, {"instances": [{"image": row} for row in x]}),
            post(url, PREDICT, {"inputs": {"image": x}}),
        ]
        assert named == plain
        assert named[0][0] == 200

    def test_numbers_come_back_to_the_last_bit(self, url, tiny_artefact):
        x = images(1)
        _, answer = post(url, PREDICT, {"inputs": x.tolist()})
        scores = np.array(answer["outputs"]["scores"], "float32")
        assert scores.tobytes() == tiny_artefact(x)["scores"].tobytes()

    @pytest.mark.parametrize("token", [b"NaN", b"Infinity", b"-Infinity", b"1e999", b"1e39"])
    def test_what_is_not_finite_is_read_and_rejected(self, url, token):
        body = json.dumps({"instances": images(2).tolist()}).encode()
        first = body[body.index(b"0.") : body.index(b"]")]
        before = metric(url, "defended_verdicts_total", verdict="rejected", reason="not finite")
        status, answer = post(url, PREDICT, body.replace(first, token, 1))
        assert status == 200
        assert answer["predictions"][0]["label"] == -1
        assert answer["predictions"][0]["rejected"] is True
        clean = post(url, PREDICT, body)[1]["predictions"]
        assert answer["predictions"][1] == clean[1]
        after = metric(url, "defended_verdicts_total", verdict="rejected", reason="not finite")
        assert after == before + 1

    def test_whole_numbers_are_numbers(self, url, tiny_artefact):
        x = np.ones((1, 4, 4, 1), "float32")
        status, answer = post(url, PREDICT, {"instances": x.astype(int).tolist()})
        assert status == 200
        assert answer["predictions"][0]["label"] == tiny_artefact(x)["label"][0]

    def test_an_explicit_version_and_case_are_read(self, url):
        document = {"instances": images(1).tolist()}
        assert post(url, "/v1/models/tiny/versions/1:predict", document)[0] == 200
        assert post(url, "/V1/Models/tiny:PREDICT", document)[0] == 200


class TestErrors:
    @pytest.mark.parametrize(
        ("document", "message"),
        [
            (b"", "JSON Parse error: The document is empty"),
            (b"instances = [1]", "JSON Parse error: Expecting value at offset: 0"),
            (b'{"instances": [1}', "JSON Parse error: "),
            (b"\xff\xfe{", "JSON Parse error: "),
            (b"[1]", "JSON Value: [1] Is not object"),
            ({}, "Missing 'inputs' or 'instances' key"),
            ({"instances": [], "x": 1}, "No values in 'instances' array"),
            ({"instances": 7}, "Expecting 'instances' to be an list/array"),
            ({"instances": [1], "inputs": [1]}, "expecting only one of 'inputs' or 'instances' keys to exist"),
            ({"instances": [1], "signature_name": 100}, "'signature_name' key must be a string value."),
            (
                {"instances": [1], "signature_name": "none"},
                'Serving signature name: "none" not found in signature def',
            ),
            ({"instances": ["x", "y"]}, 'JSON Value: "x" Type: String is not of expected type: float'),
            ({"instances": [True]}, "Type: Boolean is not of expected type: float"),
            ({"instances": [None]}, "Type: Null is not of expected type: float"),
            ({"instances": [{"b64": "AAAA"}]}, "Type: Object is not of expected type: float"),
            ({"inputs": {"b64": "AAAA"}}, "Type: Object is not of expected type: float"),
            ({"instances": [[[[1]], [[1], [2]]]]}, "Encountered list at unexpected size: 2 at level: 1"),
            ({"instances": [[1], 2]}, "Failed to process element: 1 of 'instances' list"),
            ({"instances": [[[1, 2]], [[1]]]}, "Expecting shape [1,2] but got: [1,1]"),
            ({"instances": [[[[[1]]]]]}, "Encountered list at unexpected level"),
            ({"instances": [1, {"image": 2}]}, "Expecting value/list but got object at item 1 of input list"),
            ({"instances": [{"image": 1}, 2]}, "Expecting object but got list at item 1 of input list"),
            ({"instances": [{"picture": 1}]}, "JSON object: does not have named input: picture"),
            ({"instances": [{}]}, "keys must be equal to: image"),
            ({"inputs": {"picture": 1}}, "Missing named input: image in 'inputs' object."),
            ({"instances": [[[1.0]]]}, "must have the shape [?,4,4,1], but has [1,1,1]"),
            ({"inputs": 3.5}, "must have the shape [?,4,4,1], but has []"),
        ],
    )
    def test_bad_bodies_are_400_with_the_reason(self, url, document, message):
        status, text = error(url, document)
        assert status == 400
        assert message in text

    def test_huge_integers_are_no_crash(self, url):
        for digits in (30, 400, 5000):
            status, _ = error(url, b'{"instances": [' + b"9" * digits + b"]}")
            assert status == 400

    @pytest.mark.parametrize("opening", [b"[", b'{"a":', b'{"instances":' + b"["])
    def test_deep_bodies_are_refused(self, url, opening):
        status, text = error(url, opening * 100_000)
        assert status == 400
        assert "JSON Parse error" in text
        status, text = error(url, b'{"instances":' + b"[" * 900 + b"1" + b"]" * 900 + b"}")
        assert status == 400
        assert "Encountered list at unexpected level" in text

    @pytest.mark.parametrize(
        ("path", "status", "message"),
        [
            ("/v1/models/none:predict", 404, "Servable not found for request: Latest(none)"),
            ("/v1/models/tiny/versions/7:predict", 404, "Servable not found for request: Specific(tiny, 7)"),
            ("/v1/models/tiny/labels/none:predict", 400, "Unrecognized servable version label: none"),
            (f"/v1/models/tiny/versions/{2**64}:predict", 400, "Failed to convert version"),
            ("/v1/models/tiny/versions/one:predict", 400, "Malformed request: POST"),
            ("/v1/models/tiny/version/1:predict", 400, "Malformed request: POST"),
            ("/v1/models/tiny/versions/1/labels/a:predict", 400, "Malformed request: POST"),
            ("/v1/models/tiny", 400, "Malformed request: POST"),
            ("/v1/models/tiny:explain", 400, "Malformed request: POST"),
            ("/v1/foo", 400, "Malformed request: POST"),
            ("/index.html", 404, "Not found"),
        ],
    )
    def test_wrong_paths(self, url, path, status, message):
        found, text = error(url, {"instances": [1]}, path)
        assert found == status
        assert message in text

    def test_other_methods_are_malformed_requests(self, url):
        for method in ("PUT", "DELETE", "PATCH"):
            status, headers, body = http_call(url, method, PREDICT, b"{}")
            assert status == 400
            assert headers["Content-Type"] == "application/json"
            assert json.loads(body)["error"].startswith(f"Malformed request: {method}")

    def test_a_predict_signature_is_none_of_classification(self, url):
        status, text = error(url, {"examples": [{"image": 1.0}]}, "/v1/models/tiny:regress")
        assert status == 400
        assert "Expected one output Tensor" in text


class TestStatusAndMetadata:
    def test_status_of_all_versions_and_of_one(self, url):
        expected = {
            "model_version_status": [
                {"version": "1", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
            ]
        }
        assert get(url, "/v1/models/tiny") == (200, expected)
        assert get(url, "/v1/models/tiny/versions/1") == (200, expected)

    @pytest.mark.parametrize(
        ("path", "status", "message"),
        [
            ("/v1/models", 400, "Missing model name in request."),
            ("/v1/models/none", 404, "Could not find any versions of model none"),
            ("/v1/models/tiny/versions/9", 404, "Could not find version 9 of model tiny"),
            ("/v1/models/none/metadata", 404, "Servable not found for request: Latest(none)"),
            ("/v1/models/tiny:predict", 400, "Malformed request: GET"),
            ("/v1/models/a/b", 400, "Malformed request: GET"),
        ],
    )
    def test_errors(self, url, path, status, message):
        found, answer = get(url, path)
        assert found == status
        assert message in answer["error"]

    def test_metadata_tells_the_signatures(self, url):
        status, answer = get(url, "/v1/models/tiny/metadata")
        assert status == 200
        assert answer["model_spec"] == {"name": "tiny", "signature_name": "", "version": "1"}
        signatures = answer["metadata"]["signature_def"]["signature_def"]
        image = signatures["serving_default"]["inputs"]["image"]
        assert image["dtype"] == "DT_FLOAT"
        assert [axis["size"] for axis in image["tensor_shape"]["dim"]] == ["-1", "4", "4", "1"]
        assert set(signatures["audit"]["outputs"]) >= {"label", "rejected", "certified_radius"}
        assert not [name for name in signatures if name.startswith("__")]


class TestMetrics:
    def test_count_requests_by_status_and_forget_made_up_names(self, url):
        def count(**labels):
            return metric(url, "defended_requests_total", protocol="REST", method="predict", **labels)

        ok, bad, none = (
            {"model": "tiny", "version": "1", "status": "OK"},
            {"model": "tiny", "version": "1", "status": "INVALID_ARGUMENT"},
            {"model": "", "version": "", "status": "NOT_FOUND"},
        )
        before = [count(**labels) for labels in (ok, bad, none)]
        post(url, PREDICT, {"instances": images(1).tolist()})
        post(url, PREDICT, {})
        post(url, "/v1/models/made-up:predict", {})
        post(url, "/v1/models/tiny/versions/99:predict", {})
        assert [count(**labels) for labels in (ok, bad, none)] == [before[0] + 1, before[1] + 1, before[2] + 1]
        page = http_call(url, "GET", "/metrics")[2].decode()
        assert "made-up" not in page
        assert 'version="99"' not in page

    def test_count_verdicts_and_time(self, url, tiny_artefact):
        x = images(20, seed=5)
        rejected = int(tiny_artefact(x)["rejected"].sum())
        assert 0 < rejected < 20

        def counts():
            return [
                metric(url, "defended_verdicts_total", model="tiny", version="1", verdict="answered", reason=""),
                metric(url, "defended_verdicts_total", verdict="rejected", reason="not certified"),
                metric(url, "defended_request_seconds_count", model="tiny", protocol="REST"),
                metric(url, "defended_batch_size_sum", model="tiny", signature="serving_default"),
            ]

        before = counts()
        post(url, PREDICT, {"instances": x.tolist()})
        assert np.subtract(counts(), before).tolist() == [20 - rejected, rejected, 1, 20]
        assert metric(url, "defended_queue_depth", model="tiny", version="1") == 0
        assert 0 < metric(url, "defended_rejection_rate", model="tiny", version="1") < 1
