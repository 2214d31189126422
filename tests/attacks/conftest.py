"""Models that several files attack."""

import pytest
from attacked import MODELS
from nets import affine


@pytest.fixture(scope="module")
def line():
    """Logits (x, -x): r(x) = |x|, the class is the sign, and eps is 1/4."""
    return affine([[1, -1]])


@pytest.fixture(scope="module")
def models():
    return {norm: make() for norm, make in MODELS.items()}
