"""What the embedded server costs beside the bare signature call, timed in turn on the MNIST 2C2F net.

    python benchmarks/serving.py [--rounds 6] [--seconds 2] [--model FILE.keras]

The net is exported, and the artefact runs twice: in this process, in TensorFlow's C++ loader (`bare`), and in
`defended serve`, a process of its own on free ports of loopback. The load of the second table is a third process.

1. Latency at batch 1: blocks of 40 bare calls, REST and gRPC requests, in an order drawn anew each time, one request
   after the other on one connection. Bodies are encoded beforehand, so the difference of the medians is what network,
   server and parsing add. The last rows are whole calls of `defended.serving.Client`, encoding and decoding included.
2. Throughput at batch 32: blocks of so many seconds of bare calls (one thread and two, the better counts), of 16 REST
   clients and of 16 gRPC clients, in turn; the ratio to bare is taken in each round.
"""

from __future__ import annotations

import argparse
import http.client
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import figures
import numpy as np

HERE = Path(__file__).resolve().parent
MODEL = HERE / "results" / "mnist_2c2f" / "eps_0.3_doubled.keras"
METHOD = "/tensorflow.serving.PredictionService/Predict"
CLIENTS, BATCH, BLOCK, NAME = 16, 32, 40, "mnist"


def rest_body(x: np.ndarray) -> bytes:
    import orjson

    return orjson.dumps({"instances": x}, option=orjson.OPT_SERIALIZE_NUMPY)


def grpc_body(x: np.ndarray) -> bytes:
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2

    request = predict_pb2.PredictRequest()
    request.model_spec.name = NAME
    request.inputs["image"].CopyFrom(tf.make_tensor_proto(x))
    return request.SerializeToString()


def rest_caller(url: str, body: bytes) -> Callable[[], None]:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname, parts.port)

    def once() -> None:
        connection.request("POST", f"/v1/models/{NAME}:predict", body)
        response = connection.getresponse()
        answer = response.read()
        assert response.status == 200, answer

    def call() -> None:
        try:
            once()
        except ConnectionError:  # the server closes a connection on which nothing comes for some seconds
            connection.close()
            once()

    return call


def grpc_caller(url: str, body: bytes) -> Callable[[], None]:
    import grpc

    # Channels of one process share a connection unless each is told to have its own.
    channel = grpc.insecure_channel(urlsplit(url).netloc, (("grpc.use_local_subchannel_pool", 1),))
    method = channel.unary_unary(METHOD)
    return lambda: method(body)


def start_server(models: Path, *options: str) -> tuple[subprocess.Popen[str], dict[str, str]]:
    """Start `defended serve` and return it with its URLs by protocol."""
    command = [sys.executable, "-c", "from defended_cli import main; main()", "serve", str(models)]
    command += [*options, "--rest-port", "0", "--grpc-port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    lines = [process.stdout.readline().strip() for _ in range(3)]
    assert lines[0].startswith("http"), "the server did not start; run the command by hand to see why"
    return process, {"REST": lines[0].partition("/v1/")[0], "gRPC": lines[1].rpartition("/")[0]}


def load(protocol: str, url: str) -> None:
    """The load process: for each line `SECONDS` on stdin, count the requests that 16 clients complete."""
    x = np.random.default_rng(0).uniform(size=(BATCH, 28, 28, 1)).astype("float32")
    body = rest_body(x) if protocol == "REST" else grpc_body(x)
    callers = [(rest_caller if protocol == "REST" else grpc_caller)(url, body) for _ in range(CLIENTS)]
    for call in callers:
        call()
    print("ready", flush=True)
    for line in sys.stdin:
        print(throughput(callers, float(line)), flush=True)


def throughput(callers: list[Callable[[], Any]], seconds: float) -> float:
    """Calls a second, each caller in a thread of its own."""
    counts = [0] * len(callers)
    start = time.perf_counter()

    def work(number: int) -> None:
        while time.perf_counter() < start + seconds:
            callers[number]()
            counts[number] += 1

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(callers))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - start)


def latencies(callers: dict[str, Callable[[], Any]], seconds: float, notes: figures.Figures) -> None:
    rng = np.random.default_rng(0)
    times: dict[str, list[float]] = {name: [] for name in callers}
    for call in callers.values():
        for _ in range(20):
            call()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for name in rng.permutation(list(callers)):
            for number in range(BLOCK + 5):
                start = time.perf_counter()
                callers[name]()
                if number >= 5:  # the first ones find another program's data in the caches
                    times[name].append(1000 * (time.perf_counter() - start))
    bare = np.median(times["bare"])
    print(f"\nBatch 1, {len(times['bare'])} calls of each, milliseconds")
    print(f"{'':12s} {'median':>8s} {'adds':>8s} {'90 %':>8s} {'99 %':>8s}")
    for name, found in times.items():
        if name != "bare":
            limit = 1.5 if name == "REST" else None
            notes.add(f"added to the bare call, batch 1, {name}", np.median(found) - bare, "ms", at_most=limit)
        median, q90, q99 = np.quantile(found, (0.5, 0.9, 0.99))
        print(f"{name:12s} {median:8.3f} {median - bare:8.3f} {q90:8.3f} {q99:8.3f}")


def start_load(protocol: str, url: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, __file__, "--load", protocol, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def rates(
    run: Callable[[np.ndarray], Any], urls: dict[str, str], rounds: int, seconds: float, notes: figures.Figures
) -> None:
    x = np.random.default_rng(0).uniform(size=(BATCH, 28, 28, 1)).astype("float32")
    loads = {protocol: start_load(protocol, url) for protocol, url in urls.items()}
    found: dict[str, list[float]] = {"bare": [], **{protocol: [] for protocol in loads}}
    for _ in range(rounds):
        found["bare"].append(max(throughput([lambda: run(x)] * n, seconds / 2) for n in (1, 2)))
        for protocol, process in loads.items():
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(f"{seconds}\n")
            process.stdin.flush()
            found[protocol].append(float(process.stdout.readline()))
    for process in loads.values():
        process.communicate()
    bare = np.array(found["bare"])
    print(f"\nBatch {BATCH}, {CLIENTS} clients, {rounds} rounds of {seconds:g} s: inputs a second")
    print(f"{'':12s} {'median':>8s} {'of bare':>8s} {'least':>8s} {'most':>8s}")
    for name, values in found.items():
        ratios = np.array(values) / bare
        rate, ratio = BATCH * np.median(values), np.median(ratios)
        print(f"{name:12s} {rate:8.0f} {ratio:8.2f} {ratios.min():8.2f} {ratios.max():8.2f}")
        if name != "bare":
            against = {"peer": "bare signature", "theirs": BATCH * float(np.median(bare)), "ratio": float(ratio)}
            limit = 0.5 if name == "gRPC" else None
            notes.add(f"{name}, batch {BATCH}, {CLIENTS} clients", rate, "inputs/s", **against, at_least=limit)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--load", nargs=2, metavar=("PROTOCOL", "URL"), help=argparse.SUPPRESS)
    figures.add_option(parser)
    arguments = parser.parse_args()
    if arguments.load:
        load(*arguments.load)
        return

    import keras

    import defended  # noqa: F401  registers the model's classes
    from defended import serving

    notes = figures.Figures()
    with tempfile.TemporaryDirectory() as folder:
        path = serving.export(keras.models.load_model(arguments.model), folder, NAME, 1)
        server, urls = start_server(Path(folder))
        try:
            with serving.load(path) as artefact:
                x = np.random.default_rng(0).uniform(size=(1, 28, 28, 1)).astype("float32")
                rest_client = serving.Client(urls["REST"], model=NAME)
                grpc_client = serving.Client(urls["gRPC"], model=NAME)
                with rest_client, grpc_client:
                    callers: dict[str, Callable[[], Any]] = {
                        "bare": lambda: artefact(x),
                        "REST": rest_caller(urls["REST"], rest_body(x)),
                        "gRPC": grpc_caller(urls["gRPC"], grpc_body(x)),
                        "Client REST": lambda: rest_client.predict(x),
                        "Client gRPC": lambda: grpc_client.predict(x),
                    }
                    latencies(callers, arguments.seconds * arguments.rounds / 2, notes)
                rates(artefact, urls, arguments.rounds, arguments.seconds, notes)
        finally:
            server.terminate()
            server.communicate()
    notes.write(arguments.json)


if __name__ == "__main__":
    main()
