"""Cohen et al.'s own `Smooth`, from `code/core.py` in a clone of their repository: CERTIFY on one image.

It draws its noise on a CUDA device and imports `scipy.stats.binom_test`, which SciPy dropped in 1.12.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

from peers.torch_2c2f import load
from peers.worker import serve

STATE: dict[str, Any] = {}


def prepare(folder: str, path: str, sigma: float, alpha: float, selection: int) -> None:
    code = Path(folder) / "code"
    if not (code / "core.py").is_file():
        raise FileNotFoundError(f"no code/core.py in {folder}; it names a clone of github.com/locuslab/smoothing")
    if not torch.cuda.is_available():
        raise RuntimeError("its code draws noise on a CUDA device, and there is none")
    sys.path.insert(0, str(code))
    from core import Smooth

    network, images = load(path)
    STATE["image"] = images[0].cuda()
    STATE["smooth"] = Smooth(network.cuda(), 10, sigma)
    STATE["settings"] = {"n0": selection, "alpha": alpha}


def logits() -> list[float]:
    """Of the image without noise, so that the other side can compare."""
    with torch.no_grad():
        return STATE["smooth"].base_classifier(STATE["image"][None])[0].tolist()


def certify(samples: int, batch_size: int) -> list[float]:
    label, radius = STATE["smooth"].certify(STATE["image"], n=samples, batch_size=batch_size, **STATE["settings"])
    return [float(label), float(radius)]


if __name__ == "__main__":
    serve(("torch", "scipy", "statsmodels"), {"prepare": prepare, "logits": logits, "certify": certify})
