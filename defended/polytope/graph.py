"""A network as a graph of affine maps, ReLUs and sums: what the dual bounds run over."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import keras
from keras import ops

from defended.networks.checks import check_plain_weights
from defended.networks.tracing import Step, trace
from defended.polytope.affine_maps import AffineMap, ReshapeMap
from defended.polytope.element_maps import ScaleMap
from defended.polytope.kernel_maps import ConvMap
from defended.polytope.layer_rules import pieces_of
from defended.polytope.pieces import Bend, Pieces
from defended.polytope.reductions import Shape, as_map


@dataclass(frozen=True)
class Node:
    """One value of the network."""

    kind: str
    """`"input"`, `"affine"`, `"relu"` or `"add"`."""
    sources: tuple[int, ...]
    shape: Shape
    map: AffineMap | None = None
    layer: str = ""
    depth: int = 0
    """ReLUs on the longest way from the input, this one included."""
    moved: bool = False
    """Whether it is the input itself, up to changes of shape."""
    exact: bool = False
    """Whether it is one affine map of the input, up to changes of shape: interval arithmetic is then exact."""

    @property
    def size(self) -> int:
        """The number of entries of the value."""
        return math.prod(self.shape)


class PolytopeGraph:
    """The values of a network in the order in which they are computed; the first is the input, the last the logits.

    The last is an affine map of another value, and a ReLU's argument an affine map or a sum: what rounding costs is
    counted there. Any graph of the known layers is brought to this form.

    Args:
        network: a built functional or sequential Keras model with one input and one output `[batch, m]`.

    Raises:
        ValueError: for a layer that the bounds do not know, or a network that is not a graph of layers.
    """

    def __init__(self, network: keras.Model):
        self.nodes: list[Node] = []
        self._maps: dict[tuple[int, tuple[Shape, ...]], Pieces] = {}
        steps, returned = trace(network)
        self._layers = [step.layer for step in steps]
        nodes = {0: self._append("input", (), tuple(network.inputs[0].shape[1:]))}
        for step in steps:
            nodes[step.output] = self._append_layer(step, tuple(nodes[value] for value in step.inputs))
        output = nodes[returned]
        if output != len(self.nodes) - 1 or self.nodes[output].kind != "affine" or not self.nodes[output].map:
            # An exact map makes the last value of any network the one that is bounded.
            shape = self.nodes[output].shape
            self._append("affine", (output,), shape, ReshapeMap(shape, shape), "logits")
        self.output = len(self.nodes) - 1
        self.num_classes = int(network.outputs[0].shape[-1])
        self.relus = [index for index, node in enumerate(self.nodes) if node.kind == "relu"]

    def check_layers(self) -> None:
        """Refuse layers that were quantised, or got low-rank weights, since the graph was made.

        Raises:
            ValueError: naming the layer and the remedy.
        """
        for layer in self._layers:
            check_plain_weights(layer)

    def values(self, inputs: Any, blocked: bool = True) -> list[Any]:
        """Return every value at inputs `[batch, ...]`, the input first and the logits last.

        `blocked` evaluates long inner products in the blocks that the budget for rounding counts on.
        """
        found: list[Any] = []
        for node in self.nodes:
            sources = [found[index] for index in node.sources]
            if node.kind == "input":
                found.append(inputs)
            elif node.kind == "add":
                found.append(sum(sources[1:], sources[0]))
            elif node.kind == "relu":
                found.append(ops.relu(sources[0]))
            else:
                found.append(node.map.forward(sources[0], blocked))  # type: ignore[union-attr]
        return found

    def chain_of_patches(self, index: int) -> list[int] | None:
        """Return the nodes from a value down to the input where following single patches pays, and None elsewhere.

        An output entry of a convolution depends on a patch of the value below, of that below it, and so on. Where all
        nodes down to the input are convolutions, ReLUs, factors of channels and maps that leave a value as it is, and
        patches stay smaller than half of each map, the coefficients of a patch are all there is.
        """
        chain, size, at = [], (1, 1), index
        if len(as_map(self.nodes[index].shape)) != 3:
            return None
        while self.nodes[at].kind != "input":
            node = self.nodes[at]
            if len(node.sources) != 1 or not (node.kind == "relu" or _works_on_patches(node.map)):
                return None
            if isinstance(node.map, ConvMap):
                steps = zip(size, node.map.strides, node.map.kernel_size, strict=True)
                size = tuple((n - 1) * s + k for n, s, k in steps)  # type: ignore[assignment]
                if 2 * math.prod(size) > math.prod(node.map.input_shape[:2]):
                    return None
            chain.append(at)
            at = node.sources[0]
        return [*chain, at]

    def _append(
        self, kind: str, sources: tuple[int, ...], shape: Shape, affine: AffineMap | None = None, layer: str = ""
    ) -> int:
        below = [self.nodes[index] for index in sources]
        depth = max((node.depth for node in below), default=0) + (kind == "relu")
        reshaped = isinstance(affine, ReshapeMap)
        moved = kind == "input" or (reshaped and below[0].moved)
        exact = kind == "affine" and (below[0].moved or (reshaped and below[0].exact))
        self.nodes.append(Node(kind, sources, shape, affine, layer, depth, moved, exact))
        return len(self.nodes) - 1

    def _append_map(self, affine: AffineMap | None, source: int, layer: str) -> int:
        """Append an affine map of a value, where there is one."""
        return source if affine is None else self._append("affine", (source,), affine.output_shape, affine, layer)

    def _append_relu(self, source: int, layer: str) -> int:
        """Append the ReLU of a value, behind an exact map where that is the input or itself a ReLU."""
        node = self.nodes[source]
        if node.kind in ("input", "relu"):
            source = self._append("affine", (source,), node.shape, ReshapeMap(node.shape, node.shape), layer)
        return self._append("relu", (source,), node.shape, layer=layer)

    def _append_layer(self, step: Step, sources: tuple[int, ...]) -> int:
        """Append the nodes of one use of a layer and return the number of its output."""
        layer, key = step.layer, (id(step.layer), step.input_shapes)
        if key not in self._maps:
            self._maps[key] = pieces_of(layer, step.input_shapes, step.shape)
        for piece in self._maps[key]:
            if piece is None:
                sources = (self._append_relu(sources[0], layer.name),)
            elif isinstance(piece, Bend):
                kept = self._append_map(piece.kept, sources[0], layer.name)
                bent = self._append_relu(self._append_map(piece.argument, sources[0], layer.name), layer.name)
                bent = self._append_map(piece.back, bent, layer.name)
                sources = (self._append("add", (kept, bent), piece.shape, layer=layer.name),)
            else:
                sources = (self._append_map(piece, sources[0], layer.name),)
        if len(sources) > 1:
            return self._append("add", sources, step.shape, layer=layer.name)
        return sources[0]


def _works_on_patches(affine: AffineMap | None) -> bool:
    """Return whether an entry of the map's output depends on a patch of its input, in the same way at all places."""
    if isinstance(affine, ReshapeMap):
        return as_map(affine.input_shape) == as_map(affine.output_shape)
    return isinstance(affine, ConvMap) or (isinstance(affine, ScaleMap) and affine.is_by_channel)
