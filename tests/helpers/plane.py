"""A served model's stand-in: the plane's linear classifier, whose radii are known in closed form."""

import numpy as np

# Logits are the two coordinates, so the certified radius is |a - b| / sqrt 2.
ROOT = np.sqrt(2)


class Plane:
    """Answers as an endpoint does; `signatures` are those it offers, `told` the outputs of its default answer."""

    def __init__(self, epsilon=0.5, signatures=("serving_default", "audit"), told=("label", "rejected", "scores")):
        self.epsilon, self.signatures, self.told = epsilon, signatures, told
        self.version, self.seen = 3, []

    def metadata(self):
        return dict.fromkeys(self.signatures)

    def status(self):
        return {self.version: "AVAILABLE", self.version - 1: "END"}

    def predict(self, x, signature="serving_default"):
        assert signature in self.signatures
        self.seen.append((signature, len(x)))
        scores = x.astype("float32")
        radius = (np.abs(scores[:, 0] - scores[:, 1]) / ROOT).astype("float32")
        rejected = ~(radius > self.epsilon)  # NaN is rejected
        outputs = {
            "label": np.where(rejected, -1, scores.argmax(axis=1)).astype(np.int64),
            "rejected": rejected,
            "scores": scores,
            "reason": np.where(rejected, np.where(np.isfinite(x).all(axis=1), 1, 2), 0).astype(np.int32),
        }
        if signature == "audit":
            return outputs | {
                "certified_radius": np.nan_to_num(radius),
                "availability_radius": np.nan_to_num(np.maximum(radius - np.float32(self.epsilon), 0)),
            }
        return {name: outputs[name] for name in self.told}


def points(n, seed=0, spread=1.5):
    """Inputs whose radii are |N(0, spread)|, and labels of which one in ten is wrong."""
    rng = np.random.default_rng(seed)
    x = rng.normal(0, spread, (n, 2)).astype("float32")
    y = x.argmax(axis=1)
    return x, np.where(rng.random(n) < 0.1, 1 - y, y)
