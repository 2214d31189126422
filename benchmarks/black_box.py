"""What an outsider finds who sees scores and rejections only, beside gradients, on the MNIST net.

    DEFENDED_DATA=... python benchmarks/black_box.py [--points 1000 --queries 800]

Judges the first test images, attacks all answers by `CertificateDescent` (50 steps, gradients and radii) and those that
are not proven to hold out by `ScoreDescent` (scores and rejections), and prints what each degraded, how many queries
that took, and how many answers can be degraded at most.
"""

import argparse
import os
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

import defended  # registers the classes of the model's file
from defended import datasets
from defended.attacks import CertificateDescent, ScoreDescent
from defended.attacks.black_box.score_descent import Asked

HERE = Path(__file__).resolve().parent
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--points", type=int, default=1000)
parser.add_argument("--queries", type=int, default=800, help="of each input, at most")
parser.add_argument("--model", type=Path, default=HERE / "results" / "mnist_2c2f" / "eps_0.3.keras")
options = parser.parse_args()

print(f"defended {defended.__version__}")
data = datasets.load(str(Path(os.environ["DEFENDED_DATA"]) / "mnist.npz"))
x = data.x_test[: options.points]
model = keras.models.load_model(options.model)
clean = model.verdicts(x)
answered = np.flatnonzero(~clean.rejected)
contested = answered[clean.radius[answered] <= 2 * float(model.epsilon)]
print(f"{len(answered)} of {len(x)} answered, {len(contested)} of them degradable at most")

found = model.verdicts(CertificateDescent(steps=50)(model, x[answered])).rejected.sum()
print(f"gradients: {found} degraded")
scores = tf.function(lambda points: model(points, training=False), autograph=False, reduce_retracing=True)


def query(points: np.ndarray) -> Asked:
    all_scores = scores(tf.constant(points)).numpy()
    return Asked(all_scores[:, :-1], all_scores.argmax(axis=1) == all_scores.shape[1] - 1)


for clip in (None, (0.0, 1.0)):
    attack = ScoreDescent(queries=options.queries, clip=clip)
    result = attack.run(query, x[contested], radius=float(model.epsilon), norm=model.norm)
    took = result.queries[result.found]
    print(
        f"scores, {'any values' if clip is None else 'values in 0...1'}: {result.found.sum()} degraded, half of them "
        f"with at most {np.median(took):.0f} queries, nine of ten with at most {np.quantile(took, 0.9):.0f}"
    )
