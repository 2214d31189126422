"""The operations of a SavedModel, and the list of those that an artefact may hold.

A graph is a program: TensorFlow has operations that read files, run Python, or draw random numbers. Certified
inference is arithmetic, so everything else is refused, on export and on loading, before TensorFlow builds the graph.
A defence whose verdicts are drawn may hold the few operations that draw them; its manifest says so under `sampling`.
This catches mistakes, not a hostile author: the checkpoint's own operations, which every SavedModel holds, read and
write files. Load artefacts of people you trust, with the digest they gave you.
"""

from __future__ import annotations

from pathlib import Path

# In groups: arithmetic; layers; shapes and indices; control flow; variables and their checkpoint, which is restored.
ALLOWED_OPS = frozenset(
    """
    Abs Add AddN AddV2 All Any ArgMax ArgMin BatchMatMul BatchMatMulV2 BatchMatMulV3 BiasAdd BitwiseAnd
    BitwiseOr BitwiseXor Ceil ClipByValue Cos Cosh Cumsum Div DivNoNan Einsum Elu Equal Erf Exp Expm1 Floor
    FloorDiv FloorMod Greater GreaterEqual Inv InvertPermutation IsFinite IsInf IsNan L2Loss LeakyRelu Less
    LessEqual Log Log1p LogicalAnd LogicalNot LogicalOr LogSoftmax MatMul Max Maximum Mean Min Minimum Mod Mul
    MulNoNan Neg NextAfter NotEqual Pow Prod RealDiv Reciprocal Relu Relu6 Round Rsqrt Select SelectV2 Selu
    Sigmoid Sign Sin Sinh Softmax Softplus Softsign Sqrt Square SquaredDifference Sub Sum Tan Tanh TopKV2 Xdivy
    Xlog1py Xlogy

    AvgPool AvgPool3D BatchToSpaceND Conv2D Conv3D DepthToSpace DepthwiseConv2dNative ExtractImagePatches
    FusedBatchNorm FusedBatchNormV2 FusedBatchNormV3 MaxPool MaxPool3D MaxPoolV2 SpaceToBatchND SpaceToDepth

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


class ForbiddenOpError(ValueError):
    """A graph holds an operation that an artefact may not hold."""


def list_ops(directory: Path) -> tuple[str, ...]:
    """Return the names of all operations of a SavedModel, its function library included, sorted.

    Raises:
        ValueError: `saved_model.pb` is not a SavedModel.
    """
    from google.protobuf.message import DecodeError
    from tensorflow.core.protobuf import saved_model_pb2

    path = directory / "saved_model.pb"
    try:
        proto = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    except DecodeError as error:
        raise ValueError(f"{path} is not a SavedModel: {error}") from error
    functions = {
        function.signature.name for graph in proto.meta_graphs for function in graph.graph_def.library.function
    }
    nodes = (
        node.op
        for graph in proto.meta_graphs
        for body in (graph.graph_def.node, *(function.node_def for function in graph.graph_def.library.function))
        for node in body
    )
    return tuple(sorted(set(nodes) - functions))


def check_ops(ops: tuple[str, ...], *, sampled: bool = False) -> None:
    """Refuse operations that are not on the list.

    Args:
        ops: names, as `list_ops` returns them.
        sampled: whether verdicts are drawn at random, so that the operations that draw them are allowed.

    Raises:
        ForbiddenOpError: naming each of them.
    """
    forbidden = sorted(set(ops) - ALLOWED_OPS - (SAMPLING_OPS if sampled else set()))
    if forbidden:
        raise ForbiddenOpError(
            f"The graph holds the operations {forbidden}, which an artefact may not hold: it is arithmetic on inputs "
            "and weights, without files, Python, assertions or random numbers. Build the network from such layers."
        )
