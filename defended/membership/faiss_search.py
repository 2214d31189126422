"""The nearest stored points by faiss, for more of them than a graph should hold (extra `membership`)."""

from __future__ import annotations

import numpy as np

from defended.membership.separation import Array, measured
from defended.numerics.float32 import SMALLEST_NORMAL, gamma


class FaissSearch:
    """Exact range search: faiss (`IndexFlatL2`) proposes what may be within reach, differences in float64 decide.

    faiss computes squared distances in float32, directly or as `‖a‖² + ‖b‖² - 2<a, b>`; the radius that it is asked for
    is wider than the reach by the proven error of either. In the maximum norm it is that of the l2 ball around the
    cube.

    Args:
        points: `[count, n]` float32.
        norm: `"l2"` or `"linf"`.

    Raises:
        ImportError: when faiss is not installed.
    """

    def __init__(self, points: Array, norm: str):
        try:
            import faiss
        except ImportError:
            raise ImportError(
                f"{len(points)} points of {points.shape[1]} numbers are more than a graph should hold, and are "
                f"searched by faiss: pip install 'keras-defended[membership]', or store fewer points."
            ) from None
        self.points, self.norm = points, norm
        n = points.shape[1]
        self._slack = 4 * gamma(n + 4)
        self._longest = float(np.square(points, dtype=np.float64).sum(axis=1).max())
        self._index = faiss.IndexFlatL2(n)
        self._index.add(points)

    def nearest(self, inputs: Array, labels: Array, predicted: Array, reach: float) -> tuple[Array, Array, Array]:
        """Search as `range_search.nearest_points` does, within reach only.

        Where nothing lies within reach, `own` is infinite and `other` is the reach, rounded down. Inputs with entries
        of 1e15 and more, whose squares float32 does not hold, are not searched: `own` is infinite and `other` is 0.
        """
        count = len(inputs)
        indices = np.zeros((count, 2), np.int64)
        found = np.full((count, 2), np.inf)
        rows = np.flatnonzero(np.isfinite(inputs).all(axis=1) & (np.abs(inputs).max(axis=1, initial=0) < 1e15))
        square = np.square(inputs[rows], dtype=np.float64).sum(axis=1)
        factor = np.sqrt(inputs.shape[1]) if self.norm == "linf" else 1.0
        radius = np.square(factor * reach) * (1 + 1e-6) + self._slack * (square + self._longest)
        for row, wide in zip(rows, radius, strict=True):
            _, _, near = self._index.range_search(inputs[row : row + 1], float(np.nextafter(np.float32(wide), np.inf)))
            distances = measured(np.repeat(inputs[row : row + 1], len(near), axis=0), self.points[near], self.norm)
            for kind, chosen in enumerate((labels[near] == predicted[row], labels[near] != predicted[row])):
                if chosen.any():
                    best = np.flatnonzero(chosen)[np.argmin(distances[chosen])]
                    if distances[best] <= reach:
                        indices[row, kind], found[row, kind] = near[best], distances[best]
        own, other = found[:, 0] * (1 + 2.0**-22) + SMALLEST_NORMAL, found[:, 1] * (1 - 2.0**-22)
        # Nothing was found within reach: what there is lies farther away than that, where it was searched for.
        searched = np.isin(np.arange(count), rows)
        other = np.where(np.isinf(other), np.where(searched, reach * (1 - 2.0**-22), 0.0), other)
        return indices, own.astype(np.float32), other.astype(np.float32)
