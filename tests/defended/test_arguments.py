"""Checks of arguments: what passes comes back in its type, what does not is named."""

import math
import re
from functools import partial

import numpy as np
import pytest

from defended.arguments import number_in, number_not_negative, one_of, positive_number, whole_number

REFUSED = [
    (partial(whole_number, least=1), 0, ValueError, "`k` must be a whole number, at least 1. Received: k=0"),
    (partial(whole_number, least=1, most=9), 10, ValueError, "`k` must be a whole number from 1 to 9. Received: k=10"),
    (whole_number, True, ValueError, "`k` must be a whole number. Received: k=True"),
    (whole_number, 2.0, TypeError, "`k` must be a whole number. Received: k=2.0"),
    (partial(whole_number, floats=True), 2.5, ValueError, "`k` must be a whole number. Received: k=2.5"),
    (partial(whole_number, floats=True), math.inf, ValueError, "`k` must be a whole number. Received: k=inf"),
    (partial(whole_number, floats=True), "2", ValueError, "`k` must be a whole number. Received: k='2'"),
    (partial(whole_number, floats=True), None, TypeError, "`k` must be a whole number. Received: k=None"),
    (positive_number, 0, ValueError, "`k` must be a positive finite number. Received: k=0"),
    (positive_number, math.nan, ValueError, "`k` must be a positive finite number. Received: k=nan"),
    (partial(positive_number, unit="in input units"), math.inf, ValueError, "number, in input units. Received: k=inf"),
    (positive_number, None, TypeError, "`k` must be a number. Received: k=None"),
    (positive_number, "wide", ValueError, "`k` must be a number. Received: k='wide'"),
    (number_not_negative, -0.1, ValueError, "`k` must be finite and not negative. Received: k=-0.1"),
    (number_not_negative, math.inf, ValueError, "`k` must be finite and not negative. Received: k=inf"),
    (partial(number_in, interval="[0, 1)"), 1, ValueError, "`k` must lie in [0, 1). Received: k=1"),
    (partial(number_in, interval="(0, 0.5]"), 0, ValueError, "`k` must lie in (0, 0.5]. Received: k=0"),
    (partial(number_in, interval="[0, 1]"), math.nan, ValueError, "`k` must lie in [0, 1]. Received: k=nan"),
    (partial(one_of, known=("a", "b")), "c", ValueError, "`k` must be one of 'a', 'b'. Received: k='c'"),
    (partial(one_of, known=("a", "b")), ["a"], ValueError, "`k` must be one of 'a', 'b'. Received: k=['a']"),
]


@pytest.mark.parametrize(("check", "value", "error", "message"), REFUSED)
def test_the_argument_what_is_right_and_what_was_received(check, value, error, message):
    with pytest.raises(error, match=re.escape(message)):
        check("k", value)


@pytest.mark.parametrize(
    ("check", "value", "expected"),
    [
        (partial(whole_number, least=1, most=9), np.int64(9), 9),
        (whole_number, -3, -3),
        (partial(whole_number, floats=True), 2.0, 2),
        (positive_number, np.float32(0.5), 0.5),
        (number_not_negative, 0, 0.0),
        (partial(number_in, interval="[0, 1)"), 0, 0.0),
        (partial(number_in, interval="(0, 0.5]"), 0.5, 0.5),
        (partial(one_of, known={"a": 1}), "a", "a"),
    ],
)
def test_what_passes_comes_back_as_python_has_it(check, value, expected):
    result = check("k", value)
    assert result == expected
    assert type(result) is type(expected)
