"""How long an audit of a served model takes, over REST and gRPC, on the cores that the server needs too.

    DEFENDED_DATA=... python benchmarks/audit_endpoint.py [--points 10000 --model results/mnist_2c2f/eps_0.3.keras]

Exports the MNIST net, starts `defended serve` as a process of its own, audits the test images (10,000) by its address,
and writes the whole report, page and pictures included. Prints the seconds of each audit; `--replay` adds a second pass
of attacked inputs (noise on the sphere, so that the attack itself costs nothing) and `--black-box QUERIES` an attack
that only asks.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import figures
import keras
import numpy as np

import defended  # registers the classes of the model's file
from defended import datasets
from defended.attacks.core.balls import place_inside
from defended.serving import Attacked, BlackBox, Client, audit, export
from defended.serving.clients.transports import ClientError

HERE = Path(__file__).resolve().parent
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--points", type=int, default=10_000)
parser.add_argument("--model", type=Path, default=HERE / "results" / "mnist_2c2f" / "eps_0.3.keras")
parser.add_argument("--models", type=Path, help="export into this folder, or take what it holds")
parser.add_argument("--rest-port", type=int, default=18501)
parser.add_argument("--grpc-port", type=int, default=18500)
parser.add_argument("--replay", action="store_true")
parser.add_argument("--black-box", type=int, default=0)
figures.add_option(parser)
options = parser.parse_args()

print(f"defended {defended.__version__}, {os.cpu_count()} cores shared by server and audit")
data = datasets.load(str(Path(os.environ["DEFENDED_DATA"]) / "mnist.npz"))
found = figures.Figures()
x, y = data.x_test[: options.points], data.y_test[: options.points]
model = keras.models.load_model(options.model)
epsilon, norm = float(model.epsilon), model.norm


def wait_until_served(url: str, process: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        if process.poll() is not None:
            sys.exit("the server ended")
        try:
            with Client(url, retries=0, timeout=5) as client:
                if "AVAILABLE" in client.status().values():
                    client.predict(x[:1], "audit")
                    return
        except ClientError:
            time.sleep(0.2)
    sys.exit("the server did not come up")


def timed(name: str, url: str, **options: object) -> None:
    start = time.perf_counter()
    report = audit(url, x, y, norm=norm, data_name="MNIST test images", **options)  # type: ignore[arg-type]
    middle = time.perf_counter()
    report.write(folder / "report")
    end = time.perf_counter()
    found.add(f"audit of {len(x):,} inputs, {name}", end - start, "s", at_most=30)
    forced = "" if report.best_fpr_lower is None else f", forced {report.best_fpr_lower:.2%}"
    print(
        f"{name:34} {end - start:6.1f} s ({report.queries:,} inputs asked in {middle - start:.1f} s, "
        f"report written in {end - middle:.1f} s); rejected {report.rejection_rate:.2%}, fpr at most "
        f"{report.fpr_upper:.2%}{forced}",
        flush=True,
    )


with tempfile.TemporaryDirectory() as temporary:
    folder = Path(temporary)
    models = options.models or folder / "models"
    if not (models / "mnist").exists():
        export(model, models, name="mnist", sample=x[:32])
    ports = ["--rest-port", str(options.rest_port), "--grpc-port", str(options.grpc_port)]
    command = [str(Path(sys.executable).with_name("defended")), "serve", str(models), *ports]
    server = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        rest = f"http://127.0.0.1:{options.rest_port}/v1/models/mnist"
        wait_until_served(rest, server)
        timed("REST, clean inputs", rest)
        timed("gRPC, clean inputs", f"grpc://127.0.0.1:{options.grpc_port}/mnist")
        if options.replay:
            noise = np.random.default_rng(0).standard_normal(x.shape)
            noise *= epsilon / np.linalg.norm(noise.reshape(len(x), -1), axis=1).reshape(-1, 1, 1, 1)
            attacked = Attacked(np.arange(len(x)), place_inside(x, x + noise, epsilon, norm), "noise")
            timed("REST, clean and replayed", rest, attacked=attacked)
        if options.black_box:
            timed("REST, clean, and asking", rest, black_box=BlackBox(options.black_box, clip=(0.0, 1.0)))
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(60)
found.write(options.json)
