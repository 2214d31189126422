"""What the tests of all commands share."""

import functools

import keras
import pytest


@pytest.fixture(scope="module", autouse=True)
def every_model_is_loaded_once():
    """Commands that open the same file go on with the same graphs."""
    load = functools.cache(keras.models.load_model)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(keras.models, "load_model", load)
        yield
