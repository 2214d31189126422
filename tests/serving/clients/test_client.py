"""The client: both protocols give the artefact's answers, and failures end in time with the server's words."""

import http.server
import json
import threading
import time

import numpy as np
import pytest

pytest.importorskip("tensorflow_serving")

from served import images

from defended.serving import Client, ClientError
from defended.serving.server import running


@pytest.fixture(scope="module")
def server(tiny_models):
    with running(tiny_models) as server:
        yield server


@pytest.fixture(params=["rest", "grpc"])
def url(server, request):
    return server.rest_url if request.param == "rest" else server.grpc_url


@pytest.fixture
def client(url):
    with Client(url, model="tiny", batch_size=7) as client:
        yield client


class TestAnswers:
    def test_come_in_order_over_many_requests(self, client, tiny_artefact):
        x = images(50)
        x[11, 0, 0, 0] = np.nan
        outputs, expected = client.predict(x), tiny_artefact(x)
        assert set(outputs) == set(expected)
        for name, value in expected.items():
            assert outputs[name].dtype == value.dtype
            np.testing.assert_allclose(outputs[name], value, rtol=1e-5, atol=1e-6)
        assert outputs["label"][11] == -1
        assert client.requests_sent == 8

    def test_verdicts_are_the_artefacts(self, client, tiny_artefact):
        x = images(20)
        found, expected = client.verdicts(x), tiny_artefact.verdicts(x)
        np.testing.assert_array_equal(found.label, expected.label)
        np.testing.assert_array_equal(found.rejected, expected.rejected)
        np.testing.assert_allclose(found.radius, expected.radius, rtol=1e-4, atol=1e-6)

    def test_status_and_signatures(self, client, tiny_artefact):
        assert client.status() == {1: "AVAILABLE"}
        signatures = client.metadata()
        assert signatures["audit"] == tiny_artefact.manifest.signatures["audit"]
        assert client.requests_sent == 0

    def test_no_inputs_have_no_answers(self, client):
        assert client.predict(images(0))["label"].shape == (0,)

    def test_a_url_may_name_model_and_version(self, server):
        for url in (f"{server.rest_url}/v1/models/tiny/versions/1", f"{server.grpc_url}/tiny/1"):
            with Client(url) as client:
                assert client.predict(images(1))["label"].shape == (1,)

    def test_radii_that_are_kept_back_are_zero(self, tiny_models, tiny_artefact):
        with running(tiny_models, audit_signature=False, grpc_port=None) as server:
            client = Client(server.rest_url, model="tiny")
            assert "audit" not in client.metadata()
            found = client.verdicts(images(9))
            with pytest.raises(ValueError, match="offers no signature 'audit'"):
                client.predict(images(1), "audit")
            client.close()
        np.testing.assert_array_equal(found.label, tiny_artefact.verdicts(images(9)).label)
        assert found.radius.tolist() == [0.0] * 9


class TestRefusals:
    def test_wrong_inputs_do_not_leave(self, client):
        with pytest.raises(TypeError, match="must be a NumPy array of float32"):
            client.predict(images(1).astype("float64"))
        with pytest.raises(ValueError, match="batch axis"):
            client.predict(np.ones((), "float32"))
        assert client.requests_sent == 0

    def test_the_servers_words_are_the_errors(self, client):
        with pytest.raises(ClientError, match="must have the shape") as caught:
            client.predict(images(1)[:, :2])
        assert caught.value.code == "INVALID_ARGUMENT"
        assert client.requests_sent == 1

    def test_an_unknown_model(self, url):
        with Client(url, model="none") as client, pytest.raises(ClientError) as caught:
            client.predict(images(1))
        assert caught.value.code == "NOT_FOUND"

    @pytest.mark.parametrize(
        ("url", "options", "message"),
        [
            ("ftp://127.0.0.1", {}, "`url` must be http"),
            ("http://127.0.0.1/v2/models/a", {}, "`url` must be http"),
            ("http://127.0.0.1", {}, "Which model"),
            ("grpc://127.0.0.1/a", {"model": "b"}, "`model` is 'b', but the URL says 'a'"),
            ("http://127.0.0.1/v1/models/a/versions/1", {"label": "x"}, "give one of them"),
            ("http://192.0.2.1/v1/models/a", {"token": "x" * 20}, "unencrypted"),
            ("grpc://192.0.2.1/a", {"token": "x" * 20}, "unencrypted"),
            ("http://127.0.0.1/v1/models/a", {"timeout": 0}, "`timeout` must be positive"),
            ("http://127.0.0.1/v1/models/a", {"retries": -1}, "`retries` must be"),
        ],
    )
    def test_wrong_arguments(self, url, options, message):
        with pytest.raises(ValueError, match=message):
            Client(url, **options)


class Scripted(http.server.BaseHTTPRequestHandler):
    """Answers metadata, and each POST with the next of `script`: a status, "drop", or "hang"."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        tensor = {"dtype": "DT_FLOAT", "tensor_shape": {"dim": [{"size": "-1"}]}}
        signatures = {"serving_default": {"inputs": {"image": tensor}, "outputs": {"y": tensor}}}
        self.answer(200, {"metadata": {"signature_def": {"signature_def": signatures}}})

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        action = self.server.script.pop(0) if self.server.script else 200
        if action == "drop":
            self.connection.close()
            self.close_connection = True
        elif action == "hang":
            self.server.released.wait(10)
        else:
            self.answer(action, {"outputs": [2.5]} if action == 200 else {"error": "busy"})

    def answer(self, status, document):
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def scripted():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Scripted)
    server.daemon_threads = True
    server.handle_error = lambda *_: None
    server.script, server.released = [], threading.Event()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield server
    server.released.set()
    server.shutdown()
    thread.join()
    server.server_close()


def scripted_client(scripted, **options):
    return Client(f"http://127.0.0.1:{scripted.server_address[1]}", model="m", **options)


class TestRetries:
    def test_a_busy_or_lost_server_is_asked_again(self, scripted):
        scripted.script = [503, 429, "drop"]
        with scripted_client(scripted, timeout=20) as client:
            outputs = client.predict(np.ones((1, 3), "float32"))
            assert client.requests_sent == 4
        assert {name: value.tolist() for name, value in outputs.items()} == {"y": [2.5]}  # a single output has no name

    def test_an_error_of_ones_own_is_not_sent_again(self, scripted):
        scripted.script = [400, 200]
        with scripted_client(scripted) as client:
            with pytest.raises(ClientError, match="INVALID_ARGUMENT: busy"):
                client.predict(np.ones((1, 3), "float32"))
            assert client.requests_sent == 1

    def test_retries_are_bounded(self, scripted):
        scripted.script = [503] * 10
        with scripted_client(scripted, retries=2) as client:
            with pytest.raises(ClientError, match="UNAVAILABLE"):
                client.predict(np.ones((1, 3), "float32"))
            assert client.requests_sent == 3

    def test_all_attempts_together_end_within_the_timeout(self, scripted):
        for script in (["hang"], [503] * 1000):
            scripted.script = list(script)
            with scripted_client(scripted, retries=10**6, timeout=0.8) as client:
                client.metadata()
                start = time.monotonic()
                with pytest.raises(ClientError):
                    client.predict(np.ones((1, 3), "float32"))
                assert time.monotonic() - start < 5

    def test_nobody_there(self):
        for url in ("http://127.0.0.1:9", "grpc://127.0.0.1:9"):
            with Client(url, model="m", retries=1, timeout=5) as client, pytest.raises(ClientError) as caught:
                client.status()
            assert caught.value.code == "UNAVAILABLE"
