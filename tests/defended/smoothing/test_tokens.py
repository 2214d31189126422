"""Networks that read names of words are refused; tables of something else are not."""

import keras
import pytest
from keras import layers, ops

from defended import SmoothedNet, adapt, diagnose
from defended.smoothing import NoisyTrainer


def reading(dtype, wrap=lambda hidden: hidden):
    inputs = keras.Input((5,), dtype=dtype)
    hidden = layers.Embedding(20, 4, name="words")(wrap(inputs))
    return keras.Model(inputs, layers.Dense(3)(layers.Flatten()(hidden)))


class Encoder(layers.Layer):
    """Looks words up, or only adds a vector for each position, as patches of pictures have them."""

    def __init__(self, words, **kwargs):
        super().__init__(**kwargs)
        self.words, self.table = words, layers.Embedding(20, 4, name="table")

    def call(self, inputs):
        if self.words:
            return self.table(inputs)
        return inputs[..., None] + self.table(ops.arange(5))


def encoded(words):
    inputs = keras.Input((5,))
    return keras.Model(inputs, layers.Dense(3)(layers.Flatten()(Encoder(words)(inputs))))


NETWORKS = {
    "float": lambda: reading("float32"),
    "int": lambda: reading("int32"),
    "cast": lambda: reading("float32", lambda hidden: ops.cast(hidden, "int32")),
    "shifted": lambda: reading("float32", lambda hidden: hidden + 1),
    "inside a layer": lambda: encoded(True),
    "sequential": lambda: keras.Sequential(
        [keras.Input((5,)), layers.Embedding(20, 4, name="words"), layers.Flatten(), layers.Dense(3)]
    ),
    "nested": lambda: keras.Sequential([keras.Input((5,)), reading("float32"), layers.Dense(3)]),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("smooth", [lambda net: SmoothedNet(net, 0.1, 0.25), lambda net: NoisyTrainer(net, sigma=0.25)])
def test_names_of_words_are_refused_with_what_to_do(name, smooth):
    with pytest.raises(ValueError, match=r"'(words|table)'.*names of words.*Smooth the part behind the embedding"):
        smooth(NETWORKS[name]())


def test_whole_numbers_are_refused_with_what_to_do():
    inputs = keras.Input((5,), dtype="uint8")
    network = keras.Model(inputs, layers.Dense(3)(layers.Rescaling(1 / 255)(inputs)))
    with pytest.raises(ValueError, match=r"declared as uint8.*makes fractions.*For pixels.*behind the embedding"):
        SmoothedNet(network, 0.1, 0.25)


def test_tables_of_positions_and_of_bins_are_none():
    assert SmoothedNet(encoded(False), 0.1, 0.25).is_final
    inputs = keras.Input((5,))
    bins = layers.Discretization(bin_boundaries=[-0.5, -0.25, 0.2, 0.4, 0.6])(inputs)
    hidden = layers.Flatten()(layers.Embedding(6, 2)(bins))
    assert SmoothedNet(keras.Model(inputs, layers.Dense(2)(hidden)), 0.1, 0.25).is_final


def test_nobody_is_sent_to_smoothing_with_names_of_words():
    network = NETWORKS["float"]()
    with pytest.raises(ValueError, match="no ball holds those") as raised:
        adapt(network, verbose=False)
    assert "as it is, whatever its layers" not in str(raised.value)
    assert "whatever its layers" not in str(diagnose(network))
