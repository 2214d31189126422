"""Takes live gloro models over with `GloroNet.from_gloro`, in one process with legacy Keras, and compares.

`tests/defended/gloro/legacy/test_gloronet_file.py` runs it where DEFENDED_GLORO_PYTHON names the interpreter of an
environment that has both
generations of Keras, for instance this project's with gloro (or, with PYTHONPATH, a clone of its later version) beside:

    pip install --no-deps tf_keras==2.21.0 gloro==1.1.1
"""

import os

os.environ["TF_USE_LEGACY_KERAS"] = "1"  # what gloro imports as tensorflow.keras

import make_gloronet_fixtures as fixtures
import numpy as np
import tensorflow as tf

from defended import GloroNet


def check(name, net, constants="gloro's"):
    before = [value.copy() for value in net.f.get_weights()]
    model = GloroNet.from_gloro(net)
    assert model.is_final
    assert np.isclose(float(model.epsilon.numpy()), float(net.epsilon))
    x = np.random.default_rng(7).uniform(size=(16, *net.f.input_shape[1:])).astype("float32")
    np.testing.assert_allclose(model.network(x), net.f(x), rtol=0, atol=1e-5)
    if constants:
        others = ~np.eye(fixtures.CLASSES, dtype=bool)
        ours, exact = model.margin_lipschitz[others].astype(np.float64), fixtures.exact_matrix(net.f)[others]
        assert np.all(ours >= exact)
        np.testing.assert_allclose(ours, exact, rtol=1e-5)
    if constants == "gloro's":
        np.testing.assert_allclose(ours, net.lipschitz_constant().numpy()[others], rtol=0.01)
        assert np.all(model.certified_radius(x) <= net.certified_radius(x) * 1.001)
    for value, old in zip(net.f.get_weights(), before, strict=True):
        np.testing.assert_array_equal(value, old)
    print(f"live {name}: the same")


def main():
    vars(np)["infty"] = np.inf  # gloro's spelling, which NumPy 2 dropped
    tf.keras.utils.set_random_seed(11)
    if fixtures.LATER:
        check("gloro_later", fixtures.later_format())
        check("gloro_later_nested", fixtures.nested(), constants=None)
        # gloro's block goes on using the norm of the weights that it was built with.
        check("liresnet", fixtures.live_block(), constants="exact")
    else:
        check("gloro_1_1_1", fixtures.first_format())


if __name__ == "__main__":
    main()
