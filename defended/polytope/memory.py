"""The memory that one evaluation of the bounds takes."""

from __future__ import annotations

from defended.polytope.dual_bounds import DualBounds
from defended.polytope.graph import PolytopeGraph

_COPIES = 6  # of the largest tensor of coefficients: both parts, their products, and what a runtime has not freed yet


def bytes_per_input(graph: PolytopeGraph, bounds: DualBounds) -> int:
    """Return the bytes that bounding an input takes: `_COPIES` times its largest tensor of float32 coefficients."""
    largest = graph.num_classes * max(node.size for node in graph.nodes)
    for index in graph.relus:
        source = graph.nodes[index].sources[0]
        if not graph.nodes[source].exact:
            largest = max(largest, bounds.entries_of_coefficients(source))
    return 4 * _COPIES * largest
