"""A long mixed load on `defended serve`: good, bad and hostile requests, new versions, and every answer checked.

    python benchmarks/soak.py [--minutes 10] [--model FILE.keras]

The MNIST 2C2F net is exported, and served by a process of its own with a request log. Against it run, all at once:

- four clients over REST and gRPC, batches of 1 to 64, both signatures, some inputs not finite: every label, score and
  radius is compared with the artefact run in this process;
- bad requests: each must get its own status and an error of TensorFlow Serving's shape;
- hostile ones: deep, huge and cut-off bodies, garbage bytes on both ports, clients that send slowly or leave;
- an operator who copies new versions in, slowly enough that they are seen half written, tampers with some, and removes
  old ones.

At the end the server gets SIGTERM under load. The exit code is 0 if no answer was wrong or lost, every error was as
expected, the memory of the last third of the time was no more than 5 % above that of the third before it, the request
log holds every answer, and the server ended by itself.
"""

from __future__ import annotations

import argparse
import collections
import http.client
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

from serving import MODEL, NAME, start_server

POOL, LOG_FILES = 512, 10_000
OPTIONS = ("--max-megabytes", "2", "--read-timeout", "3", "--poll-seconds", "0.5", "--log-files", str(LOG_FILES))


class Record:
    """What happened, counted from several threads."""

    def __init__(self) -> None:
        self.counts: collections.Counter[str] = collections.Counter()
        self.faults: list[str] = []
        self._lock = threading.Lock()

    def count(self, what: str, number: int = 1) -> None:
        with self._lock:
            self.counts[what] += number

    def fault(self, what: str) -> None:
        with self._lock:
            self.faults.append(what)


def good(
    record: Record, url: str, x: np.ndarray, expected: dict[str, np.ndarray], epsilon: float
) -> Callable[[], None]:
    """One good request: batches of the pool, compared with the artefact's own answers."""
    from defended.serving import Client

    client, rng = Client(url, model=NAME, timeout=30, retries=20), np.random.default_rng()
    # A verdict that hangs on the last bits of a float32 may differ between batches of different sizes.
    certain = np.abs(expected["certified_radius"] - epsilon) > 1e-4

    def step() -> None:
        rows = rng.integers(0, POOL, rng.integers(1, 65))
        outputs = client.predict(x[rows], str(rng.choice(["serving_default", "audit"])))
        record.count("answers", 1)
        record.count("inputs", len(rows))
        sure = certain[rows]
        for name, value in outputs.items():
            wanted = expected[name][rows]
            same = (
                np.array_equal(value[sure], wanted[sure])
                if name in ("label", "rejected")
                else np.allclose(value, wanted, rtol=1e-3, atol=1e-4)
            )
            if not same:
                record.fault(f"a wrong answer: {name} of {rows.tolist()} over {url}")

    return step


BAD: list[tuple[str, bytes, int]] = [
    (f"/v1/models/{NAME}:predict", b"", 400),
    (f"/v1/models/{NAME}:predict", b"{", 400),
    (f"/v1/models/{NAME}:predict", b'{"instances": [1, "x"]}', 400),
    (f"/v1/models/{NAME}:predict", b'{"instances": [[[[1]]]]}', 400),
    (f"/v1/models/{NAME}:predict", b'{"instances": [1], "signature_name": "none"}', 400),
    (f"/v1/models/{NAME}:predict", b"[" * 100_000, 400),
    (f"/v1/models/{NAME}:predict", b'{"instances":' + b"[" * 50_000 + b"]" * 50_000 + b"}", 400),
    (f"/v1/models/{NAME}:predict", b'{"instances": [' + b"9" * 5000 + b"]}", 400),
    (f"/v1/models/{NAME}:predict", b" " * (3 * 2**20), 413),
    (f"/v1/models/{NAME}:regress", b'{"examples": [{}]}', 400),
    (f"/v1/models/{NAME}/versions/999999:predict", b"{}", 404),
    ("/v1/models/none:predict", b"{}", 404),
    ("/v1/none", b"{}", 400),
    ("/none", b"{}", 404),
]


def bad(record: Record, url: str) -> Callable[[], None]:
    """One bad request, whose status is known."""
    import json

    def step() -> None:
        path, body, status = random.choice(BAD)
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
        try:
            connection.request("POST", path, body)
            response = connection.getresponse()
            answer = json.loads(response.read())
        except ConnectionError:
            if status != 413:  # refused before all of it was sent
                raise
            record.count("bad, refused unread")
            return
        finally:
            connection.close()
        record.count(f"bad, {response.status}")
        if response.status not in (status, 429) or list(answer) != ["error"]:
            record.fault(f"{body[:40]!r} to {path} got {response.status}, not {status}: {str(answer)[:80]}")

    return step


def hostile(record: Record, urls: dict[str, str]) -> Callable[[], None]:
    """One misuse of a connection; the server may do with it what it likes, but must live."""
    import grpc

    head = f"POST /v1/models/{NAME}:predict HTTP/1.1\r\nHost: x\r\n".encode()
    channel = grpc.insecure_channel(urlsplit(urls["gRPC"]).netloc)
    method = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")

    def sent(url: str, parts: list[bytes], pause: float) -> None:
        parts_of_url = urlsplit(url)
        with socket.create_connection((parts_of_url.hostname, parts_of_url.port), timeout=10) as connection:
            for part in parts:
                connection.sendall(part)
                time.sleep(pause)

    def garbage_message() -> None:
        try:
            method(random.randbytes(random.randrange(1, 2000)), timeout=10)
        except grpc.RpcError as error:
            allowed = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.RESOURCE_EXHAUSTED)
            if error.code() not in allowed:
                record.fault(f"a garbage message got {error.code()}: {error.details()}")
        else:
            record.fault("a garbage message was answered")

    actions: list[Callable[[], None]] = [
        garbage_message,
        lambda: sent(urls["REST"], [random.randbytes(500)], 0),
        lambda: sent(urls["gRPC"], [random.randbytes(500)], 0),
        lambda: sent(urls["REST"], [head + b"Content-Length: 1000000\r\n\r\n" + b"[" * 1000], 0),
        lambda: sent(urls["REST"], [head, *([b"X: y\r\n"] * 20)], 0.2),
        lambda: sent(urls["REST"], [head + b"Content-Length: 100\r\n\r\n", *([b"["] * 20)], 0.2),
        lambda: sent(urls["REST"], [head + b"Transfer-Encoding: chunked\r\n\r\n", b"ffffffff\r\n" + b"a" * 5000], 0.1),
        lambda: sent(urls["REST"], [head + b"Content-Length: 99999999999999\r\n\r\n"], 0),
        lambda: sent(urls["REST"], [b"GET /" + b"a" * 100_000], 0),
    ]

    def step() -> None:
        record.count("hostile")
        try:
            random.choice(actions)()
        except (ConnectionError, TimeoutError):
            record.count("hostile, cut off")
        time.sleep(0.05)

    return step


def operator(models: Path, record: Record) -> Callable[[], None]:
    """Copies a version in while the server looks, sometimes spoils it, and removes what is old."""
    number = iter(range(2, 10**9))

    def step() -> None:
        version = next(number)
        folder = models / NAME / str(version)
        folder.mkdir()
        source = models / NAME / "1"
        for path in sorted(source.rglob("*")):
            target = folder / path.relative_to(source)
            if path.is_dir():
                target.mkdir()
            else:
                shutil.copyfile(path, target)
            time.sleep(0.1)
        if version % 3 == 0:
            with open(folder / "saved_model.pb", "ab") as stream:
                stream.write(b"tampered")
            record.count("versions, tampered with")
        else:
            record.count("versions")
        time.sleep(5)
        for path in (models / NAME).iterdir():
            if 1 < int(path.name) < version - 1:
                shutil.rmtree(path)
        time.sleep(5)

    return step


def resident_megabytes(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return float("nan")


def answered(url: str) -> int:
    """The requests that the server counts as answered."""
    from prometheus_client.parser import text_string_to_metric_families

    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
    connection.request("GET", "/metrics")
    page = connection.getresponse().read().decode()
    connection.close()
    wanted = ("predict", "Predict")
    return int(
        sum(
            sample.value
            for family in text_string_to_metric_families(page)
            for sample in family.samples
            if sample.name == "defended_requests_total"
            and sample.labels["status"] == "OK"
            and sample.labels["method"] in wanted
        )
    )


def until(stop: threading.Event, record: Record, name: str, step: Callable[[], None]) -> threading.Thread:
    def run() -> None:
        while not stop.is_set():
            try:
                step()
            except Exception:
                record.fault(f"{name}: {traceback.format_exc(limit=3)}")
                time.sleep(0.2)

    thread = threading.Thread(target=run, name=name)
    thread.start()
    return thread


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--model", type=Path, default=MODEL)
    arguments = parser.parse_args()

    import keras

    import defended  # noqa: F401  registers the model's classes
    from defended import serving

    with tempfile.TemporaryDirectory() as folder:
        models, log = Path(folder) / "models", Path(folder) / "log"
        path = serving.export(keras.models.load_model(arguments.model), models, NAME, 1)
        x = np.random.default_rng(0).uniform(size=(POOL, 28, 28, 1)).astype("float32")
        x[::50, 3, 3] = np.nan
        x[1::50, 3, 3] = np.inf
        with serving.load(path) as artefact:
            expected, epsilon = artefact.audit(x), artefact.epsilon
        server, urls = start_server(models, *OPTIONS, "--log", str(log))
        record, stop, memory = Record(), threading.Event(), []
        steps: dict[str, Callable[[], Any]] = {
            "REST 1": good(record, urls["REST"], x, expected, epsilon),
            "REST 2": good(record, urls["REST"], x, expected, epsilon),
            "gRPC 1": good(record, urls["gRPC"], x, expected, epsilon),
            "gRPC 2": good(record, urls["gRPC"], x, expected, epsilon),
            "bad": bad(record, urls["REST"]),
            "hostile": hostile(record, urls),
            "operator": operator(models, record),
        }
        threads = [until(stop, record, name, step) for name, step in steps.items()]
        end = time.monotonic() + 60 * arguments.minutes
        while time.monotonic() < end and server.poll() is None:
            memory.append(resident_megabytes(server.pid))
            if len(memory) % 6 == 1:
                counts = dict(sorted(record.counts.items()))
                print(f"{len(memory) * 5 / 60:5.1f} min  {memory[-1]:7.0f} MiB  {counts}", flush=True)
            time.sleep(5)
        stop.set()
        for thread in threads:
            thread.join()
        lost = answered(urls["REST"]) - record.counts["answers"] if server.poll() is None else -1
        ended = end_under_load(server, urls, x, record)
        logged = sum(1 for _ in serving.read_request_log(log))
    thirds = np.array_split(np.array(memory), 3)
    growth = float(np.median(thirds[2]) / np.median(thirds[1]) - 1)
    print(f"\n{dict(sorted(record.counts.items()))}")
    medians = [f"{np.median(third):.0f} MiB" for third in thirds]
    print(f"memory: medians of thirds of the time {medians}, the last against the middle one {growth:+.1%}")
    print(f"answers counted by the server and not received: {lost}; answers in the log: {logged}")
    print(f"ended by SIGTERM under load: {ended}")
    print(f"faults: {len(record.faults)}")
    for fault in record.faults[:20]:
        print(f"  {fault}")
    whole = lost == 0 and logged == record.counts["answers"] + record.counts["answers at the end"]
    return 0 if whole and ended == "exit code 0" and growth < 0.05 and not record.faults else 1


def end_under_load(server: Any, urls: dict[str, str], x: np.ndarray, record: Record) -> str:
    """Send SIGTERM while requests are under way; each is answered whole or refused, and the server leaves."""
    from defended.serving import Client, ClientError

    def ask(url: str) -> None:
        client = Client(url, model=NAME, retries=0, timeout=30)
        try:
            while True:
                client.predict(x[:8])
                record.count("answers at the end")
        except ClientError as error:
            if error.code not in ("UNAVAILABLE", "CANCELLED"):
                record.fault(f"at the end: {error}")

    threads = [threading.Thread(target=ask, args=(url,)) for url in urls.values()]
    for thread in threads:
        thread.start()
    time.sleep(1)
    server.send_signal(signal.SIGTERM)
    for thread in threads:
        thread.join()
    try:
        server.communicate(timeout=60)
    except Exception:
        server.kill()
        server.communicate()
        return "killed"
    return f"exit code {server.returncode}"


if __name__ == "__main__":
    sys.exit(main())
