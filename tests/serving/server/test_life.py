"""The server's life: versions that come and go, limits, who may ask, and how it ends."""

import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

pytest.importorskip("tensorflow_serving")

from served import export_tiny, get, http_call, images, metric, post

from defended.serving import Client, ClientError, RequestLog, load, read_request_log
from defended.serving.server import ServerSettings, running

PREDICT = "/v1/models/tiny:predict"


def until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.05)


@pytest.fixture
def models(tiny_models, tmp_path):
    return shutil.copytree(tiny_models, tmp_path / "models")


@pytest.fixture(scope="module")
def other_version(tmp_path_factory):
    return export_tiny(tmp_path_factory.mktemp("other"), version=2, seed=4)


def states(url):
    return {int(entry["version"]): entry["state"] for entry in get(url, "/v1/models/tiny")[1]["model_version_status"]}


class TestVersions:
    def test_a_new_one_takes_over_and_the_old_one_is_freed(self, models, other_version):
        x = images(4)
        with running(models, poll_seconds=0.1, grpc_port=None) as server:
            first = post(server.rest_url, PREDICT, {"inputs": x.tolist()})[1]
            shutil.copytree(other_version, models / "hidden")
            (models / "hidden").rename(models / "tiny" / "2")
            until(lambda: states(server.rest_url) == {1: "END", 2: "AVAILABLE"})
            second = post(server.rest_url, PREDICT, {"inputs": x.tolist()})[1]
            assert second != first
            assert post(server.rest_url, "/v1/models/tiny/versions/1:predict", {})[0] == 404
            with load(other_version) as artefact:
                np.testing.assert_allclose(second["outputs"]["scores"], artefact(x)["scores"], rtol=1e-5)
            shutil.rmtree(models / "tiny" / "2")
            until(lambda: states(server.rest_url).get(1) == "AVAILABLE")
            assert post(server.rest_url, PREDICT, {"inputs": x.tolist()})[1] == first

    def test_half_written_and_tampered_ones_are_refused_until_they_are_whole(self, models, other_version, caplog):
        target = models / "tiny" / "2"
        with running(models, poll_seconds=0.1, grpc_port=None) as server:
            target.mkdir()
            shutil.copy(other_version / "saved_model.pb", target)
            until(lambda: states(server.rest_url).get(2) == "END")
            _, answer = get(server.rest_url, "/v1/models/tiny/versions/2")
            error = answer["model_version_status"][0]["status"]
            assert error["error_code"] == "FAILED_PRECONDITION"
            assert str(models) not in error["error_message"]
            assert "version 2 is refused" in caplog.text
            assert post(server.rest_url, PREDICT, {"inputs": images(1).tolist()})[0] == 200
            shutil.copytree(other_version, target, dirs_exist_ok=True)
            with open(target / "saved_model.pb", "ab") as stream:
                stream.write(b"x")
            until(lambda: "changed: saved_model.pb" in caplog.text)
            assert states(server.rest_url)[1] == "AVAILABLE"
            shutil.copy(other_version / "saved_model.pb", target)
            until(lambda: states(server.rest_url) == {1: "END", 2: "AVAILABLE"})

    def test_several_with_labels(self, models, other_version):
        shutil.copytree(other_version, models / "tiny" / "2")
        labels = {"tiny": {"stable": 1, "canary": 2}}
        with running(models, versions=2, labels=labels, grpc_port=None) as server:
            body = {"inputs": images(3).tolist()}
            answers = {n: post(server.rest_url, f"/v1/models/tiny/versions/{n}:predict", body) for n in (1, 2)}
            assert post(server.rest_url, PREDICT, body) == answers[2]
            assert post(server.rest_url, "/v1/models/tiny/labels/stable:predict", body) == answers[1]
            assert post(server.rest_url, "/v1/models/tiny/labels/canary:predict", body) == answers[2]
            assert states(server.rest_url) == {1: "AVAILABLE", 2: "AVAILABLE"}

    def test_one_models_folder_is_served_under_its_name(self, models):
        with running(models / "tiny", grpc_port=None) as server:
            assert get(server.rest_url, "/v1/models/tiny")[0] == 200

    def test_a_folder_without_models_is_an_error(self, tmp_path):
        with pytest.raises(ValueError, match="holds no model that loads"), running(tmp_path):
            pass


@pytest.fixture(scope="module")
def url(tiny_models):
    with running(tiny_models, max_body=20_000, max_rows=8, read_timeout=0.5, grpc_port=None) as server:
        yield server.rest_url


class TestLimits:
    def test_large_bodies_and_batches(self, url):
        status, answer = post(url, PREDICT, b" " * 20_001)
        assert status == 413
        assert "larger than 20000 bytes" in answer["error"]
        status, answer = post(url, PREDICT, {"inputs": images(9).tolist()})
        assert status == 400
        assert "Task size 9 is larger than maximum input batch size 8" in answer["error"]

    @pytest.mark.parametrize(
        "head",
        [b"POST ", b"POST /v1/models/tiny:predict HTTP/1.1\r\nHost: x\r\n"],
    )
    def test_a_client_that_sends_its_head_slowly_is_cut_off(self, url, head):
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=10) as connection:
            connection.sendall(head)
            assert connection.recv(1000) == b""

    def test_a_client_that_sends_its_body_slowly_is_cut_off(self, url):
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=10) as connection:
            connection.sendall(b"POST /v1/models/tiny:predict HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n[")
            answer = connection.recv(1000)
            assert b" 408 " in answer.splitlines()[0]
            assert b'{"error":' in answer

    def test_a_full_queue_is_429_and_nothing_is_lost(self, tiny_models, monkeypatch):
        from defended.serving.artefacts.artefact import Artefact

        slow = Artefact.run
        monkeypatch.setattr(Artefact, "run", lambda *a: time.sleep(0.4) or slow(*a))
        with running(tiny_models, max_queued_rows=2, max_latency=10, threads=1, grpc_port=None) as server:
            found = []

            def ask():
                found.append(post(server.rest_url, PREDICT, {"inputs": images(2).tolist()}))

            threads = [threading.Thread(target=ask) for _ in range(6)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            statuses = sorted(status for status, _ in found)
            assert set(statuses) == {200, 429}
            assert statuses.count(200) >= 2
            assert {answer["error"][:26] for status, answer in found if status == 429} == {"The batch scheduling queue"}

    def test_time_that_runs_out_is_504(self, tiny_models, monkeypatch):
        from defended.serving.artefacts.artefact import Artefact

        slow = Artefact.run
        monkeypatch.setattr(Artefact, "run", lambda *a: time.sleep(0.6) or slow(*a))
        with running(tiny_models, timeout=0.2) as server:
            status, answer = post(server.rest_url, PREDICT, {"inputs": images(1).tolist()})
            assert status == 504
            assert "No answer within 0.2 seconds" in answer["error"]
            with Client(server.grpc_url, model="tiny") as client, pytest.raises(ClientError) as caught:
                client.predict(images(1))
            assert caught.value.code == "DEADLINE_EXCEEDED"


def test_requests_merged_in_a_batch_have_the_answers_that_they_have_alone(tiny_models, tiny_artefact, monkeypatch):
    from defended.serving.artefacts.artefact import Artefact

    slow = Artefact.run
    monkeypatch.setattr(Artefact, "run", lambda *a: time.sleep(0.05) or slow(*a))
    with running(tiny_models, threads=1, rest_port=0) as server, Client(server.grpc_url, model="tiny") as client:
        client.metadata()
        inputs = [images(1 + seed % 3, seed) for seed in range(24)]
        inputs[5][0, 0, 0, 0] = np.nan
        found = [None] * 24

        def ask(number):
            found[number] = client.predict(inputs[number])

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(24)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        runs = metric(server.rest_url, "defended_batch_size_count", model="tiny", signature="serving_default")
        assert runs < 24
        for x, outputs in zip(inputs, found, strict=True):
            expected = slow(tiny_artefact, "serving_default", {"image": x})
            np.testing.assert_array_equal(outputs["label"], expected["label"])
            np.testing.assert_allclose(outputs["scores"], expected["scores"], rtol=1e-5, atol=1e-6)


class TestWhoMayAsk:
    @pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "example.org"])  # noqa: S104
    def test_other_machines_only_with_tls_and_token(self, tiny_models, host):
        with pytest.raises(ValueError, match="missing: certificate, key, token"):
            ServerSettings(tiny_models, host=host)
        with pytest.raises(ValueError, match="missing: certificate, key"):
            ServerSettings(tiny_models, host=host, token="x" * 16)

    def test_short_tokens_and_half_of_tls_are_refused(self, tiny_models):
        with pytest.raises(ValueError, match="at least 16"):
            ServerSettings(tiny_models, token="short")  # noqa: S106
        with pytest.raises(ValueError, match="both files"):
            ServerSettings(tiny_models, key="key.pem")

    def test_a_token_is_asked_of_everything(self, tiny_models):
        token = "correct-horse-battery"  # noqa: S105
        with running(tiny_models, token=token) as server:
            for headers in ({}, {"Authorization": f"Bearer {token}x"}, {"Authorization": f"Basic {token}"}):
                for path in ("/metrics", "/v1/models/tiny"):
                    status, found, _ = http_call(server.rest_url, "GET", path, None, headers)
                    assert status == 401
                    assert found["WWW-Authenticate"] == "Bearer"
            for url in (server.rest_url, server.grpc_url):
                with Client(url, model="tiny", token=token) as client:
                    assert client.predict(images(1))["label"].shape == (1,)
                with Client(url, model="tiny") as client, pytest.raises(ClientError) as caught:
                    client.predict(images(1))
                assert caught.value.code == "UNAUTHENTICATED"


def test_answers_are_logged_as_they_were_given(tiny_models, tiny_artefact, tmp_path):
    x = images(3)
    with running(tiny_models, log=RequestLog(tmp_path)) as server:
        for url in (server.rest_url, server.grpc_url):
            with Client(url, model="tiny") as client:
                client.predict(x, "audit")
        post(server.rest_url, PREDICT, {})
        until(lambda: metric(server.rest_url, "defended_log_records_total") == 2)
        assert metric(server.rest_url, "defended_log_losses_total", reason="disk") == 0
    for logged in read_request_log(tmp_path):
        assert (logged.model, logged.version, logged.signature) == ("tiny", 1, "audit")
        np.testing.assert_array_equal(logged.inputs, x)
        np.testing.assert_array_equal(logged.outputs["label"], tiny_artefact(x)["label"])


def test_the_command_serves_and_ends(tiny_models, tmp_path):
    code = "from defended_cli import main; main()"
    command = [sys.executable, "-c", code, "serve", tiny_models, "--rest-port", "0", "--grpc-port", "-1"]
    process = subprocess.Popen(
        [*command, "--log", tmp_path / "log"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        env={**os.environ},
    )  # fmt: skip
    try:
        url = process.stdout.readline().partition("/v1/")[0]
        assert post(url, PREDICT, {"inputs": images(2).tolist()})[0] == 200
        until(lambda: metric(url, "defended_log_records_total") == 1)
        connection = http.client.HTTPConnection("127.0.0.1", int(url.rpartition(":")[2]), timeout=5)
        connection.request("GET", "/v1/models/tiny")
        connection.getresponse().read()
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        connection.close()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    assert len(list(read_request_log(tmp_path / "log"))) == 1
    with load(tiny_models / "tiny" / "1"):
        pass
