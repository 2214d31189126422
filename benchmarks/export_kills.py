"""Exports killed at random moments: whatever is visible afterwards must be whole.

    python benchmarks/export_kills.py [--kills 20]

A process exports version after version of a small model, signed and with the files for TensorFlow Serving, and gets
SIGKILL after a random time. Then every version that is there is verified file by file and by its signature, every file
beside them must be one that was written whole, and `models.config` list the model. Prints what was found; exits 1 where
something was not whole.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

CHILD = """
import sys
import keras
from defended import serving
model = keras.models.load_model(sys.argv[1] + "/model.keras")
while True:
    version = serving.next_version(sys.argv[1] + "/models", "small")
    print(version, flush=True)
    key, onnx = sys.argv[1] + "/key", version % 3 == 0
    serving.export(model, sys.argv[1] + "/models", "small", version, onnx=onnx, signing_key=key)
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    arguments = parser.parse_args()

    import defended
    from defended import serving
    from defended.serving.exporting.deployment_files import is_generated

    rng, broken, seen = random.Random(0), [], 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = defended.GloroNet(defended.zoo.dense_small(units=16), epsilon=0.1)
        model.finalize()
        model.save(folder / "model.keras")
        serving.generate_key(folder / "key")
        models = folder / "models"
        for number in range(arguments.kills):
            child = subprocess.Popen([sys.executable, "-c", CHILD, name], stdout=subprocess.PIPE, text=True)
            # Some exports end; the next one, or what follows it, is hit somewhere within its usual time.
            child.stdout.readline()
            start = time.monotonic()
            child.stdout.readline()
            usual = time.monotonic() - start
            time.sleep(rng.uniform(0, 1.5 * usual))
            child.kill()
            child.communicate()
            versions = [path for path in (models / "small").glob("[0-9]*") if path.name.isdecimal()]
            for path in versions:
                try:
                    serving.verify(path, public_key=folder / "key.pub")
                except ValueError as error:
                    broken.append(str(error))
            beside = [
                path for path in models.rglob("*") if path.parent in (models, models / "kserve") and path.is_file()
            ]
            broken += [str(path) for path in beside if path.name[0] != "." and not is_generated(path.read_text())]
            if len(versions) > 1 and '"small"' not in (models / "models.config").read_text():
                broken.append("models.config does not list the model")
            seen = len(versions)
            left = len(list((models / "small").glob(".partial-*"))) if versions or models.exists() else 0
            print(f"kill {number + 1:3d}: {seen:4d} versions, all verified; {left} hidden leftovers", flush=True)
    print(f"{arguments.kills} kills, {seen} versions, broken: {broken or 'none'}")
    return bool(broken)


if __name__ == "__main__":
    sys.exit(main())
