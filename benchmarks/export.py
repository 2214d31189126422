"""Export of a net with parity of Keras, the C++ loader and onnxruntime on MNIST's test images, timed.

    DEFENDED_DATA=path/to/data python benchmarks/export.py [--model benchmarks/results/mnist_2c2f/eps_0.3.keras]
        [--points 1000]

Times the export (SavedModel, ONNX, comparison on real images, warm-up records, hashes) from the model in memory to the
artefact in its place, and apart from that the import of the library, the model's loading, and a verified loading of the
artefact, judged once more on other images. Prints what the evaluators differ by, and what the certificate pays for.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("benchmarks/results/mnist_2c2f/eps_0.3.keras"))
    parser.add_argument("--points", type=int, default=1000)
    figures.add_option(parser)
    arguments = parser.parse_args()

    start = time.perf_counter()
    import keras
    import numpy as np

    from defended import datasets, serving

    imported = time.perf_counter()
    data = datasets.load(os.path.join(os.environ["DEFENDED_DATA"], "mnist.npz"))
    started = time.perf_counter()
    model = keras.models.load_model(arguments.model)
    loaded = time.perf_counter()
    sample, others = np.split(data.x_test, [arguments.points])
    with tempfile.TemporaryDirectory() as folder:
        path = serving.export(
            model, folder, "mnist", sample=sample, onnx="require", warm_up="require", class_names=list("0123456789")
        )
        exported = time.perf_counter()
        with serving.load(path) as artefact:
            opened = time.perf_counter()
            onnx = serving.load_onnx(path / "assets.extra" / "model.onnx")
            labels = [artefact.verdicts(others).label, onnx.run(others)["label"], model.verdicts(others).label]
            check = artefact.manifest.check
    print(f"import of the library             {imported - start:6.2f} s")
    print(f"the model from its file           {loaded - started:6.2f} s")
    print(f"export with parity on {arguments.points:5d} images {exported - loaded:6.2f} s")
    print(f"verified loading of the artefact  {opened - exported:6.2f} s")
    drift = check.drift
    print(f"largest difference of a margin between {', '.join(drift.evaluators)}: {drift.largest:.3g}")
    print(f"largest share of the rounding budget taken: {drift.share_of_covered:.2e}")
    same = all(np.array_equal(labels[0], other) for other in labels[1:])
    print(f"labels of {len(others)} other images: {'equal' if same else 'DIFFERENT'}")
    found = figures.Figures()
    found.add(f"export with parity on {arguments.points} images", exported - loaded, "s", at_most=20)
    found.add("verified loading of the artefact", opened - exported, "s")
    found.add("rounding budget taken by the drift", drift.share_of_covered, "of it", at_most=1)
    found.write(arguments.json)


if __name__ == "__main__":
    main()
