"""The linear residual block of LiResNet."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops


@keras.saving.register_keras_serializable(package="defended")
class LiResNetBlock(keras.layers.Layer):
    """Linear residual block `x + s * gamma * conv(x) + b`, one convolution with the kernel `I + s * gamma * W`.

    Because the branch is linear, its Lipschitz constant is the norm of the *sum*, which is far below `1 + |W|`.
    Follow it by an activation such as `MinMax`.

    Input and output: `[batch, h, w, c]`, channels last, `same` padding, stride 1.

    Args:
        kernel_size: int or pair of odd ints.
        residual_scale: the fixed factor s on the branch; the paper uses `depth ** -0.5`.
        use_bias: whether to add b.
        use_affine: whether to scale the branch by a trainable gamma per output channel.
        kernel_initializer: initializer of W.

    Reference: Hu, Zou, Wang, Leino, Fredrikson, "Unlocking Deterministic Robustness Certification on ImageNet", 2023.
    """

    def __init__(
        self,
        kernel_size: int | tuple[int, int] = 3,
        residual_scale: float = 1.0,
        use_bias: bool = True,
        use_affine: bool = True,
        kernel_initializer: str | keras.initializers.Initializer = "glorot_uniform",
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        size = (kernel_size, kernel_size) if isinstance(kernel_size, int) else tuple(kernel_size)
        if len(size) != 2 or not all(isinstance(side, int) and side % 2 for side in size):
            raise ValueError(
                f"`kernel_size` must be an odd int or a pair of them, so that the identity sits in the kernel's "
                f"centre. Received: kernel_size={kernel_size!r}"
            )
        self.kernel_size = size
        self.residual_scale = float(residual_scale)
        self.use_bias = use_bias
        self.use_affine = use_affine
        self.kernel_initializer = keras.initializers.get(kernel_initializer)

    def build(self, input_shape: Any) -> None:
        channels = input_shape[-1]
        self.branch_kernel = self.add_weight(
            name="branch_kernel", shape=(*self.kernel_size, channels, channels), initializer=self.kernel_initializer
        )
        self.affine = self.add_weight(name="affine", shape=(channels,), initializer="ones") if self.use_affine else None
        self.bias = self.add_weight(name="bias", shape=(channels,), initializer="zeros") if self.use_bias else None
        identity = np.zeros((*self.kernel_size, channels, channels), dtype="float32")
        identity[self.kernel_size[0] // 2, self.kernel_size[1] // 2] = np.eye(channels)
        self.identity = identity

    @property
    def kernel(self) -> Any:
        """The kernel of the whole block, identity included: `[kh, kw, c, c]`."""
        branch = self.residual_scale * ops.convert_to_tensor(self.branch_kernel)
        if self.affine is not None:
            branch = branch * ops.convert_to_tensor(self.affine)
        return branch + self.identity

    def call(self, inputs: Any) -> Any:
        outputs = ops.conv(inputs, self.kernel, strides=1, padding="same", data_format="channels_last")
        return outputs if self.bias is None else outputs + self.bias

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "kernel_size": self.kernel_size,
            "residual_scale": self.residual_scale,
            "use_bias": self.use_bias,
            "use_affine": self.use_affine,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }
