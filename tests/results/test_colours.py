"""The zoo's nets for colour images hold on test images what their cards say, by proven bounds."""

import numpy as np
import pytest

from defended import zoo
from defended.pretrained import entry_of
from defended.pretrained.cards import measured

FIRST = 1000


@pytest.mark.parametrize(
    ("name", "right", "right_twice", "contested"),
    [
        ("cifar10-6c2f-0.141", 589, 434, 209),
        ("cifar10-6c2f-0.282", 589, 466, 202),
        ("gtsrb-6c2f-0.141", 602, 320, 282),
        ("gtsrb-6c2f-0.282", 632, 444, 215),
    ],
)
def test_counts_on_the_first_images(real_data, name, right, right_twice, contested):
    """A few counts may differ on a processor that rounds differently."""
    data, model = real_data(entry_of(name).data), zoo.load(name)
    found = model.audit(data.x_test[:FIRST], batch_size=500)
    correct, epsilon = found["label"] == data.y_test[:FIRST], np.float32(model.epsilon)
    assert correct.sum() == pytest.approx(right, abs=3)
    assert (correct & (found["certified_radius"] > 2 * epsilon)).sum() == pytest.approx(right_twice, abs=3)
    open_to_attack = ~found["rejected"] & ~(found["availability_radius"] > epsilon)
    assert open_to_attack.sum() == pytest.approx(contested, abs=3)
    # The first images are drawn as the others are: the card's share lies within four standard errors.
    count, total = measured()[name]["rates"]["vra"]
    assert abs(right / FIRST - count / total) < 4 * 0.5 / FIRST**0.5
