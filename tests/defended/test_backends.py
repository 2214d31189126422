"""In processes of their own: models train and judge on two devices, and train on JAX, as on one device here."""

import keras
import pytest
from keras import layers
from scripts import TWO_DEVICES, run_script

from defended import GloroNet
from defended.layers import MinMax

TRAIN = """
    import keras, numpy as np, defended
    from keras import layers
    from defended.smoothing import Consistency, NoisyTrainer, SmoothAdv
    keras.utils.set_random_seed(0)
    data = defended.datasets.load("digits")
    # Whole batches of one size, for which a step is compiled once.
    x, y, validation = data.x_train[:1280], data.y_train[:1280], (data.x_test[:320], data.y_test[:320])
    def build():
        network = keras.Sequential([keras.Input((8, 8, 1)), layers.Conv2D(4, 3, strides=2, padding="same"),
            defended.layers.MinMax(), layers.Flatten(), layers.Dense(10)])
        model = defended.GloroNet(network, epsilon=0.1)
        model.compile(keras.optimizers.Adam(1e-2), "trades_kl.1", metrics=["clean_accuracy", "vra"])
        return model
    def train(model):
        history = model.fit(x[:640], y[:640], epochs=2, verbose=0, validation_data=validation,
            callbacks=[defended.callbacks.RadiusDoubling()]).history
        assert history["loss"][-1] < history["loss"][0], history
        assert history["val_clean_accuracy"][-1] > 0.5, history
        assert {"val_vra_2eps", "val_fpr_upper"} <= set(history)
        assert model.is_final
        assert np.isfinite(model.verdicts(validation[0][:60], batch_size=12).radius).all()
    def train_noisy(adversary=None):
        hidden = layers.Dense(32, activation="relu")
        network = keras.Sequential([keras.Input((8, 8, 1)), layers.Flatten(), hidden, layers.Dense(10)])
        trainer = NoisyTrainer(network, sigma=0.25, draws=2, consistency=Consistency(1.0), adversary=adversary)
        trainer.compile(keras.optimizers.Adam(1e-2), metrics=["accuracy"])
        history = trainer.fit(x, y, batch_size=64, epochs=3, verbose=0, validation_data=validation).history
        assert history["val_accuracy"][-1] > 0.75, history
        accuracies = [trainer.evaluate(*validation, batch_size=64, verbose=0)[0] for _ in range(2)]
        assert accuracies[0] != accuracies[1]
"""


@pytest.fixture(scope="module")
def two_devices(tmp_path_factory):
    """What a process with two devices prints: one of its sections after `---` each."""
    path = tmp_path_factory.mktemp("saved") / "m.keras"
    network = keras.Sequential([keras.Input((8, 8, 1)), layers.Flatten(), layers.Dense(16), MinMax(), layers.Dense(10)])
    model = GloroNet(network, epsilon=0.2)
    model.finalize()
    model.save(path)
    printed = run_script(
        TWO_DEVICES
        + f"""
    import sys, keras, defended
    print(keras.models.load_model({str(path)!r}))
    import defended.serving
    print("---", "tensorflow_probability" in sys.modules, "---", sep="\\n")
    """
        + TRAIN
        + """
    with strategy.scope():
        model = build()
    train(model)
    with strategy.scope():
        train_noisy(SmoothAdv(0.1, steps=1))
    print("---")
    from defended import SmoothedNet
    with strategy.scope():
        network = keras.Sequential([keras.Input((1,)), keras.layers.Dense(2)])
        network.set_weights([np.array([[1.0, -1.0]], "float32"), np.zeros(2, "float32")])
        model = SmoothedNet(network, 0.25, 0.5, samples=500, mode="sequential")
    x = np.array([[-1], [0.6], [0.01], [np.nan], [2], [-0.7], [0.9]], "float32")
    # Of batches of five the devices have three and two; of the second, with two inputs, one device has none.
    print(model.verdicts(x, batch_size=5).label.tolist())
    network.layers[0].kernel.assign([[-1.0, 1.0]])
    print(model.verdicts(x, batch_size=5).label.tolist())
    network.layers[0].kernel.assign([[1.0, -1.0]])
    # Of six copies of an input each device judges three; the same noise would give the same radii.
    halves = [np.split(model.verdicts(np.full((6, 1), 0.3, "float32")).radius, 2) for _ in range(3)]
    print(any((first != second).any() for first, second in halves))
    """
    )
    return [section.strip().splitlines() for section in printed.split("---")]


def test_a_fresh_process_loads_with_nothing_but_the_import(two_devices):
    assert "bounds proven" in "\n".join(two_devices[0])


def test_importing_the_package_does_not_import_tensorflow_probability(two_devices):
    assert two_devices[1] == ["False"]


def test_gloro_nets_and_noisy_trainers_train_on_two_devices(two_devices):
    assert len(two_devices) == 4, "the process asserts the rest, and ended well"


def test_two_devices_judge_a_batch_together(two_devices):
    labels, turned, other_noise = two_devices[3]
    assert labels == "[1, 0, -1, -1, 0, 1, 0]"
    assert turned == "[0, 1, -1, -1, 1, 0, 1]", "both copies of the weights are read"
    assert other_noise == "True", "the devices draw other noise"


def test_training_on_the_jax_backend():
    pytest.importorskip("jax", reason="JAX is not installed; the `dev` extra has it")
    run_script(
        """
    import sys
    sys.modules["tensorflow"] = None  # as where it is not installed
    """
        + TRAIN
        + """
    assert keras.backend.backend() == "jax"
    train(build())
    train_noisy()
    try:
        train_noisy(SmoothAdv(0.1))
    except RuntimeError as error:
        assert "KERAS_BACKEND=tensorflow" in str(error)
    else:
        raise AssertionError("an adversary on JAX")
    """,
        KERAS_BACKEND="jax",
        JAX_DISABLE_MOST_OPTIMIZATIONS="1",  # compiles in a third of the time
    )
