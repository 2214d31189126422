"""Models that attacks are tried on, one a norm, and inputs for them."""

import keras
import numpy as np
from keras import layers, ops

import defended
from defended.margins import certified_slack, competitor_radii, predicted_class

EPSILON = 0.4
SURE = [6, 0, 0, 0, 0]  # a bias with which many inputs are certified


@keras.saving.register_keras_serializable(package="tests")
class LinearLinf(defended.DefendedModel):
    """An l-inf certificate for a single Dense layer, exact: K_ij = ‖w_i - w_j‖₁."""

    certificate_method = "exact, linear"
    certificate_assumptions = ()

    def __init__(self, network, outputs=None, *, epsilon, **kwargs):
        super().__init__(network, outputs, epsilon=epsilon, norm="linf", **kwargs)

    def _rows(self, logits):
        columns = ops.transpose(self.network.layers[-1].kernel)
        matrix = ops.sum(ops.abs(columns[:, None] - columns[None]), axis=-1)
        return ops.take(matrix, predicted_class(logits), axis=0)

    def _slack(self, inputs, logits, epsilon, training, frozen=False):
        return certified_slack(logits, self._rows(logits), epsilon)

    def _radii(self, inputs, logits, frozen=False):
        return competitor_radii(logits, self._rows(logits))

    def _prove(self):
        pass

    def _digest(self):
        return 1


def convolutional_l2():
    keras.utils.set_random_seed(1)
    network = keras.Sequential(
        [
            keras.Input((4, 4, 2)),
            layers.Conv2D(4, 3, padding="same"),
            defended.layers.MinMax(),
            layers.Flatten(),
            layers.Dense(5),
        ]
    )
    network.layers[-1].bias.assign(SURE)
    model = defended.GloroNet(network, epsilon=EPSILON)
    model.finalize()
    return model


def linear_linf():
    keras.utils.set_random_seed(2)
    network = keras.Sequential([keras.Input((4, 4, 2)), layers.Flatten(), layers.Dense(5)])
    network.layers[-1].bias.assign(SURE)
    model = LinearLinf(network, epsilon=EPSILON)
    model.finalize()
    return model


MODELS = {"l2": convolutional_l2, "linf": linear_linf}

# One batch size, so that each loop is compiled once.
SHORT = {"steps": 4, "batch_size": 16}


def inputs(n=21):
    return np.random.default_rng(5).uniform(size=(n, 4, 4, 2)).astype("float32")
