"""The operations of a SavedModel, and the list of those that an artefact may hold.

A graph is a program: TensorFlow has operations that read files, run Python, or draw random numbers. Certified
inference is arithmetic, so everything else is refused, on export and on loading, before TensorFlow builds the graph.
A defence whose verdicts are drawn may hold the few operations that draw them; its manifest says so under `sampling`.
The signature `classify`, and it alone, may parse what it is sent.
This catches mistakes, not a hostile author: the checkpoint's own operations, which every SavedModel holds, read and
write files. Load artefacts of people you trust, with the digest they gave you.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from defended.exceptions import ForbiddenOpError

# In groups: arithmetic; layers; their derivatives, which a membership guard follows; shapes and indices; control flow;
# variables and their checkpoint, which is restored.
ALLOWED_OPS = frozenset(
    """
    Abs Add AddN AddV2 All Any ArgMax ArgMin BatchMatMul BatchMatMulV2 BatchMatMulV3 BiasAdd BitwiseAnd
    BitwiseOr BitwiseXor Ceil ClipByValue Cos Cosh Cumsum Div DivNoNan Einsum Elu Equal Erf Exp Expm1 Floor
    FloorDiv FloorMod Greater GreaterEqual Inv InvertPermutation IsFinite IsInf IsNan L2Loss LeakyRelu Less
    LessEqual Log Log1p LogicalAnd LogicalNot LogicalOr LogSoftmax MatMul Max Maximum Mean Min Minimum Mod Mul
    MulNoNan Neg NextAfter NotEqual Pow Prod RealDiv Reciprocal Relu Relu6 Round Rsqrt Select SelectV2 Selu
    Sigmoid Sign Sin Sinh Softmax Softplus Softsign Sqrt Square SquaredDifference Sub Sum Tan Tanh TopKV2 Xdivy
    Xlog1py Xlogy

    AvgPool AvgPool3D BatchToSpaceND Conv2D Conv2DBackpropInput Conv3D DepthToSpace DepthwiseConv2dNative
    ExtractImagePatches FusedBatchNorm FusedBatchNormV2 FusedBatchNormV3 MaxPool MaxPool3D MaxPoolV2 ResizeArea
    ResizeBicubic ResizeBilinear ResizeNearestNeighbor ScaleAndTranslate SpaceToBatchND SpaceToDepth

    AvgPoolGrad BiasAddGrad Conv2DBackpropFilter Conv2DBackpropInput DepthwiseConv2dNativeBackpropInput
    FusedBatchNormGradV3 LeakyReluGrad MaxPoolGrad ReluGrad

    Bitcast BroadcastArgs BroadcastTo Cast ConcatV2 Const EnsureShape ExpandDims Fill Gather GatherNd GatherV2
    Identity IdentityN MirrorPad NoOp OneHot OnesLike Pack Pad PadV2 Placeholder PlaceholderWithDefault Range
    Rank Reshape ReverseV2 ScatterNd Shape ShapeN Size Slice Split SplitV Squeeze StopGradient StridedSlice
    TensorScatterUpdate Tile Transpose Unpack Where ZerosLike

    If Merge PartitionedCall StatefulPartitionedCall StatelessIf StatelessWhile Switch While

    AssignVariableOp DisableCopyOnRead MergeV2Checkpoints ReadVariableOp RestoreV2 SaveV2 ShardedFilename
    StaticRegexFullMatch StringJoin VarHandleOp VarIsInitializedOp
    """.split()  # noqa: SIM905 a list literal would be 160 lines
)

# Noise from a seed, and the seed: from the system's entropy at every run. Operations that keep a state or take a
# seed of their own when a graph is made are not among them: two copies of an artefact would draw the same noise.
SAMPLING_OPS = frozenset(
    """
    NonDeterministicInts StatelessRandomGetAlg StatelessRandomGetKeyCounter
    StatelessRandomUniformFullIntV2 StatelessRandomUniformV2
    """.split()  # noqa: SIM905
)

# The parser of tf.Example is more code than all arithmetic together, and reads what strangers send: it stays away from
# the signatures that do not need it.
CLASSIFY, PARSING_OPS = "classify", frozenset({"ParseExampleV2"})


def read_saved_model(directory: Path) -> Any:
    """Return the `SavedModel` message of a directory.

    Raises:
        ValueError: `saved_model.pb` is not a SavedModel.
    """
    from google.protobuf.message import DecodeError
    from tensorflow.core.protobuf import saved_model_pb2

    path = directory / "saved_model.pb"
    try:
        return saved_model_pb2.SavedModel.FromString(path.read_bytes())
    except DecodeError as error:
        raise ValueError(f"{path} is not a SavedModel: {error}") from error


def list_ops(directory: Path) -> tuple[str, ...]:
    """Return the sorted names of all operations of a SavedModel, its function library included.

    Raises:
        ValueError: `saved_model.pb` is not a SavedModel.
    """
    found: set[str] = set()
    for graph in read_saved_model(directory).meta_graphs:
        functions = _functions(graph)
        found.update(node.op for node in graph.graph_def.node)
        found.update(node.op for nodes in functions.values() for node in nodes)
        found.difference_update(functions)
    return tuple(sorted(found))


def check_ops(ops: tuple[str, ...], *, sampled: bool = False, parsing: bool = False) -> None:
    """Refuse operations that are not on the list.

    Args:
        ops: names, as `list_ops` returns them.
        sampled: whether verdicts are drawn at random, so that the operations that draw them are allowed.
        parsing: whether there is a signature `classify`, which may parse; `check_parsing` checks that no other one
            does.

    Raises:
        ForbiddenOpError: there are such operations; the message names each of them.
    """
    allowed = ALLOWED_OPS | (SAMPLING_OPS if sampled else frozenset()) | (PARSING_OPS if parsing else frozenset())
    forbidden = sorted(set(ops) - allowed)
    if forbidden:
        raise ForbiddenOpError(
            f"The graph holds the operations {forbidden}, which an artefact may not hold: it is arithmetic on inputs "
            "and weights, without files, Python, assertions or random numbers. Build the network from such layers."
        )


def check_parsing(directory: Path) -> None:
    """Check that only functions which no signature but `classify` reaches parse examples.

    Raises:
        ForbiddenOpError: another signature, the initialiser, the checkpoint or the graph itself parses too.
        ValueError: `saved_model.pb` is not a SavedModel.
    """
    for graph in read_saved_model(directory).meta_graphs:
        functions = _functions(graph)
        parsing = {name for name, nodes in functions.items() if any(node.op in PARSING_OPS for node in nodes)}
        own = _called_by_signature(graph, CLASSIFY)
        others = [node for node in graph.graph_def.node if node.name not in own]
        bad = sorted(parsing & _reachable(others, functions))
        bad += sorted({node.op for node in graph.graph_def.node if node.op in PARSING_OPS})
        # Nor does a function that nothing calls belong here.
        bad += sorted(parsing - _reachable(list(graph.graph_def.node), functions))
        if bad:
            raise ForbiddenOpError(
                f"The graph parses examples outside of its signature {CLASSIFY!r} ({', '.join(bad)}). Export the model "
                "again; an artefact from elsewhere should not be loaded."
            )


def _functions(graph: Any) -> dict[str, list[Any]]:
    """Return the nodes of each function of the library."""
    return {function.signature.name: list(function.node_def) for function in graph.graph_def.library.function}


def _called_by_signature(graph: Any, name: str) -> set[str]:
    """Return the names of the calls that give a signature's outputs and are read by nothing else."""

    def producers(signatures: list[Any]) -> set[str]:
        return {tensor.name.partition(":")[0] for item in signatures for tensor in item.outputs.values()}

    own = [graph.signature_def[name]] if name in graph.signature_def else []
    others = [item for key, item in graph.signature_def.items() if key != name]
    used = {source.lstrip("^").partition(":")[0] for node in graph.graph_def.node for source in node.input}
    return producers(own) - producers(others) - used


def _reachable(nodes: list[Any], functions: dict[str, list[Any]]) -> set[str]:
    """Return the functions that nodes call, directly or through others."""
    found: set[str] = set()
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        named = {node.op}
        for value in node.attr.values():
            named.update(item.name for item in (value.func, *value.list.func))
        new = (named & functions.keys()) - found
        found |= new
        waiting += [inner for name in new for inner in functions[name]]
    return found
