"""The layers of a network in the order in which they run."""

import keras
import pytest
from keras import layers

from defended.networks.tracing import trace


def test_shared_layers_and_nested_models_have_a_step_for_each_use():
    shared, added = layers.Dense(4), layers.Add()
    inner = keras.Sequential([keras.Input((4,)), layers.ReLU(), layers.Dense(4)])
    inputs = keras.Input((4,))
    once = shared(inputs)
    twice = shared(once)
    steps, output = trace(keras.Model(inputs, layers.Dense(3)(added([once, inner(twice), inner(once)]))))
    assert [(step.inputs, step.output) for step in steps] == [
        ((0,), 1), ((1,), 2), ((2,), 3), ((3,), 4), ((1,), 5), ((5,), 6), ((1, 4, 6), 7), ((7,), 8),
    ]  # fmt: skip
    assert output == 8
    assert [step.layer for step in steps[:2]] == [shared, shared]
    assert [step.layer for step in steps[2:6]] == [*inner.layers, *inner.layers]
    assert (steps[6].layer, steps[6].input_shapes, steps[7].shape) == (added, ((4,), (4,), (4,)), (3,))


def test_an_input_of_ones_own_is_refused_by_name():
    inputs, other = keras.Input((4,)), keras.Input((4,), name="other")
    network = keras.Model([inputs, other], layers.Add()([inputs, other]))
    with pytest.raises(ValueError, match="'other' brings an input of its own"):
        trace(network)


def test_several_outputs_are_refused_by_name():
    inputs = keras.Input((4,))
    inner = keras.Model(inputs, [layers.Dense(4)(inputs), layers.Dense(4)(inputs)], name="inner")
    outer = keras.Input((4,))
    for network in (inner, keras.Model(outer, inner(outer)[1])):
        with pytest.raises(ValueError, match="'inner' has 2 outputs"):
            trace(network)
