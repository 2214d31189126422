"""StoredPoints: valid inputs that are known one by one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import ArrayLike

from defended.defended_model import DefendedModel
from defended.margins import predicted_class
from defended.membership.faiss_search import FaissSearch
from defended.membership.oracle import MembershipOracle, Nearest, class_numbers, finite_points, same_shape
from defended.membership.separation import Separation, close_pairs

IN_GRAPH = 2**26
"""The most numbers that a graph holds, 256 MiB: 85,000 images of 28 x 28. More points are searched by faiss."""


@keras.saving.register_keras_serializable(package="defended")
class StoredPoints(MembershipOracle):
    """An oracle that holds valid inputs and searches them all.

    The search is exact in the model's norm, l2 or l∞: every stored point within r of an input is found, and none
    farther than `r (1 + 2^-20)` plus, in l2, some 1e-10 of the squared lengths over r
    (`defended.membership.range_search`).
    It errs outwards for points of another class than the predicted one, and inwards for those of the same.

    Up to `IN_GRAPH` numbers the search is part of the graph and of its exports. Larger stores are searched by faiss, in
    Python only, and its proposals are checked in float64.

    Args:
        x: `[n, *input shape]`, n >= 1, finite and inside the domain. The points are saved with the model.
        y: `[n]`, their true classes; None takes the model's own labels, found anew by every `finalize()`.
        domain: where valid inputs lie, `(low, high)`; None for anywhere.
        max_in_graph: numbers up to which the search is in the graph.

    Raises:
        ValueError: for no points, NaN or infinity, points outside the domain, labels of another length.
        ImportError: for more numbers than a graph should hold, without faiss.
    """

    is_complete = True

    def __init__(
        self,
        x: ArrayLike,
        y: ArrayLike | None = None,
        *,
        domain: tuple[float, float] | None = (0.0, 1.0),
        max_in_graph: int = IN_GRAPH,
        name: str | None = None,
        **kwargs: Any,
    ):
        super().__init__(name=name, **kwargs)
        self.domain = None if domain is None else (float(domain[0]), float(domain[1]))
        x = finite_points("x", x, self.domain)
        labels = None if y is None else class_numbers("y", y, len(x))
        self._allocate(x.shape, labels is not None, int(max_in_graph))
        self.points.assign(x.reshape(len(x), -1))
        if labels is not None:
            self.labels.assign(labels)

    def _allocate(self, shape: tuple[int, ...], has_labels: bool, max_in_graph: int) -> None:
        self.shape, self.has_labels, self.max_in_graph = tuple(shape), has_labels, max_in_graph
        size = int(np.prod(shape[1:]))
        self.points = self._fixed_weight("points", (shape[0], size), "float32")
        self.labels = self._fixed_weight("labels", (shape[0],), "int32")
        self.in_graph = shape[0] * size <= max_in_graph
        self._aside = SimpleNamespace(faiss=None)
        self.built = True

    def __len__(self) -> int:
        return self.shape[0]

    def bind(self, model: DefendedModel) -> None:
        same_shape("x", self.shape[1:], model)
        largest = int(ops.convert_to_numpy(self.labels).max())
        if self.has_labels and largest >= model.num_classes:
            raise ValueError(
                f"`y` must hold classes of the model, 0 to {model.num_classes - 1}. Received: up to {largest}"
            )
        if not self.in_graph:
            self._faiss(model.norm)

    def prove(self, model: DefendedModel) -> None:
        """Label the points by the model, unless their classes were given.

        Raises:
            ValueError: when the model's logits at a point are not finite.
        """
        if self.has_labels:
            return
        import tensorflow as tf

        points = ops.convert_to_numpy(self.points).reshape(self.shape)
        m = model.num_classes

        @tf.function(reduce_retracing=True, autograph=False)
        def label(batch: Any) -> Any:
            logits = model._logits(batch, training=False)
            return tf.where(tf.reduce_all(tf.math.is_finite(logits), axis=-1), predicted_class(logits), m)

        labels = np.concatenate([label(points[i : i + 512]).numpy() for i in range(0, len(points), 512)])
        if (labels == m).any():
            raise ValueError(
                f"The model's logits are not finite at {int((labels == m).sum())} stored points, the first at index "
                f"{int(np.argmax(labels == m))}: give their classes as `y`, or leave them out."
            )
        self.labels.assign(labels)

    def nearest(
        self, model: DefendedModel, inputs: Any, predicted: Any, radius: Any, reach: Any, budget: int
    ) -> Nearest:
        import tensorflow as tf

        from defended.membership.range_search import nearest_points, with_gradient

        flat = ops.reshape(inputs, (-1, self.points.shape[1]))
        labels = ops.convert_to_tensor(self.labels)
        if self.in_graph:
            points = ops.convert_to_tensor(self.points)
            indices, own, other = nearest_points(flat, points, labels, predicted, model.norm)
        else:
            points, search = self.points.value, self._faiss(model.norm)
            indices, own, other = tf.numpy_function(
                search.nearest, (tf.stop_gradient(flat), labels, predicted, reach), (tf.int64, tf.float32, tf.float32)
            )
            indices = tf.ensure_shape(indices, [None, 2])
            own, other = tf.ensure_shape(own, [None]), tf.ensure_shape(other, [None])
        return Nearest(
            with_gradient(own, flat, tf.gather(points, indices[:, 0]), model.norm),
            with_gradient(other, flat, tf.gather(points, indices[:, 1]), model.norm),
        )

    def blur(self, model: DefendedModel, inputs: Any, reach: Any) -> Any:
        from defended.membership.range_search import blur_within

        if not self.in_graph or model.norm != "l2":
            return super().blur(model, inputs, reach)
        return blur_within(ops.reshape(inputs, (-1, self.points.shape[1])), reach)

    def separation(self, radius: float, norm: str) -> Separation:
        """Count pairs of stored points of different classes within `radius` of each other: all pairs, in float64.

        The time grows with the square of the number of points: 60,000 images of 28 x 28 take some minutes.
        """
        points, labels = ops.convert_to_numpy(self.points), ops.convert_to_numpy(self.labels)
        return close_pairs(points, labels, radius, norm)

    def describe(self) -> str:
        whose = "given classes" if self.has_labels else "the model's labels"
        return f"{len(self)} stored points with {whose}"

    def _faiss(self, norm: str) -> FaissSearch:
        kept = self._aside.faiss
        if kept is None or kept[0] != norm:
            kept = self._aside.faiss = (norm, FaissSearch(ops.convert_to_numpy(self.points), norm))
        return kept[1]

    def load_own_variables(self, store: Any) -> None:
        super().load_own_variables(store)
        self._aside.faiss = None

    def get_config(self) -> dict[str, Any]:
        return {
            "name": self.name, "shape": list(self.shape), "has_labels": self.has_labels, "domain": self.domain,
            "max_in_graph": self.max_in_graph,
        }  # fmt: skip

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> StoredPoints:
        """Return an oracle of the same size, whose points come with the weights."""
        oracle = cls.__new__(cls)
        MembershipOracle.__init__(oracle, name=config["name"])
        oracle.domain = None if config["domain"] is None else tuple(config["domain"])
        oracle._allocate(tuple(config["shape"]), config["has_labels"], config["max_in_graph"])
        return oracle
