"""convex_adversarial (Wong and Kolter): its dual bounds of the margins, in batches of so many points."""

from __future__ import annotations

from typing import Any

import torch
from convex_adversarial import DualNetwork

from peers.torch_2c2f import load
from peers.worker import serve

STATE: dict[str, Any] = {}


def prepare(path: str, epsilon: float) -> None:
    STATE["network"], STATE["images"] = load(path)
    STATE["epsilon"] = epsilon


def bounds(batch: int) -> list[list[float]]:
    """Lower bounds of f_j - f_i over the ball, j the predicted class: `[n, 10]`; as `RobustBounds` forms them."""
    network, unit = STATE["network"], torch.eye(10)
    found = []
    with torch.no_grad():
        for images in STATE["images"].split(batch):
            predicted = network(images).argmax(1)
            dual = DualNetwork(network, images, STATE["epsilon"])
            found.append(dual(unit[predicted][:, None] - unit[None]))
    return torch.cat(found).tolist()


if __name__ == "__main__":
    serve(("convex_adversarial", "torch"), {"prepare": prepare, "bounds": bounds})
