"""An exported ONNX file, run by onnxruntime, with the sampling loop that a smoothed model needs."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from defended.arguments import whole_number
from defended.serving.artefacts.inputs import require_float32, run_in_batches

if TYPE_CHECKING:
    from defended.answering import Verdicts

METADATA = "defended"

ANSWER = ("label", "rejected", "scores")
"""The outputs of the default signature, wherever a model runs."""
REASON = "reason"
"""One more of them, where the defence says why it rejects: it helps no attacker."""


def load_onnx(path: str | os.PathLike[str], *, max_batch: int = 512) -> OnnxModel:
    """Open a file that `export_onnx` wrote.

    Args:
        path: the file.
        max_batch: the largest number of noisy inputs in one evaluation of a smoothed model.

    Raises:
        ValueError: onnxruntime does not load it, or it was not written by `export_onnx`.
    """
    return OnnxModel(Path(path).read_bytes(), max_batch=max_batch)


class OnnxModel:
    """A defended model in onnxruntime.

    Attributes:
        metadata: epsilon, norm, what is certified and how, and the parameters of sampling.
    """

    def __init__(self, content: bytes, *, max_batch: int = 512) -> None:
        import onnxruntime

        self._max_batch = whole_number("max_batch", max_batch, 1, floats=True)
        try:
            self._session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
            self.metadata: dict[str, Any] = json.loads(self._session.get_modelmeta().custom_metadata_map[METADATA])
        except KeyError:
            raise ValueError("The ONNX file has no `defended` metadata: it was not written by `export_onnx`.") from None
        except Exception as error:
            raise ValueError(f"onnxruntime does not load the model: {error}") from error
        self._outputs = [output.name for output in self._session.get_outputs()]
        image = next(value for value in self._session.get_inputs() if value.name == "image")
        self.input_shape = tuple(image.shape[1:])

    @property
    def epsilon(self) -> float:
        """The radius defended, in input units and the norm `metadata["norm"]`."""
        return float(self.metadata["epsilon"])

    def predict(
        self, x: np.ndarray, signature: str = "serving_default", batch_size: int = 256
    ) -> dict[str, np.ndarray]:
        """Judge any number of inputs, `batch_size` at a time, as `Artefact` and `Client` do.

        Args:
            x: float32 `[n, *input_shape]`, in the units that the model was trained on.
            signature: `"serving_default"`, or `"audit"`, which adds radii, where the file has them.
            batch_size: inputs in one run.

        Returns:
            `label` `[n]` int64, -1 where rejected; `rejected` `[n]` bool; `scores` `[n, m]` float32; `reason` `[n]`
            int32 where the defence says why it rejects. With `"audit"` also the radii, `epsilon`, and what else the
            file gives.

        Raises:
            TypeError: `x` is not float32.
            ValueError: `x` has another shape, there is no such signature, or the file has no radii.
        """
        if signature not in ("serving_default", "audit"):
            raise ValueError(f"The ONNX file offers no signature {signature!r}, but 'audit' and 'serving_default'.")
        whole_number("batch_size", batch_size, 1)
        outputs = self.run(x, batch_size)
        if signature == "serving_default":
            return {name: value for name, value in outputs.items() if name in (*ANSWER, REASON)}
        if "certified_radius" not in outputs:
            raise ValueError("This file has no radii. Write it with `export_onnx(..., audit=True)`.")
        radius = outputs["certified_radius"]
        return {"epsilon": np.full(len(radius), self.epsilon, np.float32), **outputs}

    def run(self, x: np.ndarray, batch_size: int = 256) -> dict[str, np.ndarray]:
        """Judge inputs `[n, *input_shape]` float32.

        Returns:
            `label` int64 (-1 = rejected), `rejected`, and the file's other outputs; for a smoothed model,
            `certified_radius`, `samples_used` and `scores`, the shares of the votes.

        Raises:
            TypeError: `x` is not float32.
            ValueError: `x` has another shape.
        """
        x = np.asarray(x)
        require_float32(x)
        if x.shape[1:] != self.input_shape:
            raise ValueError(
                f"`x` must have the shape [batch, {', '.join(map(str, self.input_shape))}]. Received: {x.shape}"
            )
        if self.metadata["sampling"] is None:
            return run_in_batches(lambda batch: self.step({"image": batch}), x, batch_size)
        # A step shares its noise among its inputs, and verdicts are to be independent draws.
        return run_in_batches(self._sample, x, 1)

    def verdicts(self, x: np.ndarray, batch_size: int = 256) -> Verdicts:
        """Return `Verdicts(label, rejected, radius)`, for a file written with `audit=True` or of a smoothed model."""
        from defended.answering import Verdicts

        outputs = self.run(x, batch_size)
        if "certified_radius" not in outputs:
            raise ValueError("This file has no radii. Write it with `export_onnx(..., audit=True)`, or use `run`.")
        return Verdicts(outputs["label"], outputs["rejected"], outputs["certified_radius"])

    def step(self, fed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run the graph once, with all its inputs, and return its outputs by name."""
        arrays = {name: np.asarray(value) for name, value in fed.items()}
        return dict(zip(self._outputs, self._session.run(self._outputs, arrays), strict=True))

    def _sample(self, x: np.ndarray) -> dict[str, np.ndarray]:
        """Run the loop of CERTIFY (Cohen et al. 2019) over the undecided inputs, with noise of fresh entropy."""
        sampling = self.metadata["sampling"]
        rng = np.random.Generator(np.random.Philox(secrets.randbits(256)))
        n, m = len(x), int(self.metadata["num_classes"])
        found: dict[str, Any] = {
            "label": np.full(n, -1),
            "rejected": np.ones(n, bool),
            "certified_radius": np.zeros(n, np.float32),
            "samples_used": np.zeros(n, np.int64),
            "scores": np.zeros((n, m), np.float32),
        }
        rows = np.flatnonzero(np.isfinite(x).reshape(n, -1).all(axis=1))
        selected, _ = self._draw(rng, x[rows], np.zeros((len(rows), m), np.int64), np.full(len(rows), -1), 0,
                                 sampling["selection_samples"])  # fmt: skip
        candidate, counts, drawn = selected.argmax(axis=1), np.zeros_like(selected), 0
        for t in sampling["checkpoints"]:
            if not len(rows):
                break
            counts, outputs = self._draw(rng, x[rows], counts, candidate, drawn, t)
            drawn, done = t, outputs["decided"]
            for name in ("label", "rejected", "certified_radius"):
                found[name][rows[done]] = outputs[name][done]
            found["samples_used"][rows[done]] = t + sampling["selection_samples"]
            found["scores"][rows[done]] = counts[done] / np.float32(t)
            rows, candidate, counts = rows[~done], candidate[~done], counts[~done]
        return found

    def _draw(
        self, rng: Any, x: np.ndarray, counts: np.ndarray, candidate: np.ndarray, drawn: int, until: int
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return the votes up to a number of draws, and what the gate says there."""
        chunk = max(1, self._max_batch // max(len(x), 1))
        outputs: dict[str, np.ndarray] = {}
        while drawn < until and len(x):
            size = min(chunk, until - drawn)
            noise = rng.standard_normal((size, *self.input_shape), dtype=np.float32)
            outputs = self.step(
                {"image": x, "noise": noise, "counts": counts, "candidate": candidate, "drawn": np.array(drawn)}
            )
            counts, drawn = outputs["new_counts"], drawn + size
        return counts, outputs
