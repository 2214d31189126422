"""ART's randomized smoothing, its PyTorch variant, on the CPU: CERTIFY on one image."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from art.estimators.certification.randomized_smoothing import PyTorchRandomizedSmoothing

from peers.torch_2c2f import load
from peers.worker import serve

STATE: dict[str, Any] = {}


def prepare(path: str, sigma: float, alpha: float, selection: int) -> None:
    network, images = load(path)
    STATE["image"] = images[:1].numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        STATE["classifier"] = PyTorchRandomizedSmoothing(
            network, torch.nn.CrossEntropyLoss(), input_shape=(1, 28, 28), nb_classes=10, device_type="cpu",
            sample_size=selection, scale=sigma, alpha=alpha,
        )  # fmt: skip


def logits() -> list[float]:
    """Of the image without noise, so that the other side can compare."""
    return torch.as_tensor(STATE["classifier"]._predict_classifier(STATE["image"], 1, False))[0].tolist()


def certify(samples: int, batch_size: int) -> list[float]:
    label, radius = STATE["classifier"].certify(STATE["image"], n=samples, batch_size=batch_size)
    return [float(label[0]), float(radius[0])]


if __name__ == "__main__":
    packages = ("adversarial-robustness-toolbox", "torch", "numpy")
    serve(packages, {"prepare": prepare, "logits": logits, "certify": certify})
