"""Names of classes: by their numbers, from whatever says which number each one has."""

import numpy as np
import pytest

from defended.class_names import in_order


@pytest.mark.parametrize(
    "given",
    [
        ["dog", "emu", "cat"],
        {"cat": 2, "dog": 0, "emu": 1},
        {2: "cat", 0: "dog", 1: "emu"},
        {np.int64(2): "cat", np.int64(0): "dog", np.int64(1): "emu"},
        np.array(["dog", "emu", "cat"]),
        iter(("dog", "emu", "cat")),
    ],
)
def test_names_are_in_the_order_of_their_numbers(given):
    names = in_order(given, 3)
    assert names == ("dog", "emu", "cat")
    assert all(type(name) is str for name in names)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"cat": 2, "dog": 0}, "each number from 0 to 2"),
        ({"cat": 2, "dog": 0, "emu": 0}, "each number from 0 to 2"),
        ({"cat": 3, "dog": 0, "emu": 1}, "each number from 0 to 2"),
        ({-1: "cat", 0: "dog", 1: "emu"}, "each number from 0 to 2"),
        ({"cat": 2, "dog": 0, "emu": 1, "fox": 3}, "each number from 0 to 2"),
        ({"cat": "2", "dog": "0", "emu": "1"}, "every name to a whole number"),
        ({"cat": True, "dog": False, "emu": 2}, "every name to a whole number"),
        ({"cat": 0.0, "dog": 1.0, "emu": 2.0}, "every name to a whole number"),
        ({0: 1, 1: 2, 2: 0}, "every name to a whole number"),
        ({}, "every name to a whole number"),
        ({0: "dog", 1: "dog", 2: "cat"}, "3 different texts"),
        ({0: "dog", 1: " ", 2: "cat"}, "3 different texts"),
        ({"a", "b", "c"}, "a set has no order"),
        (frozenset("abc"), "a frozenset has no order"),
        ({"cat": 2, "dog": 0, "emu": 1}.keys(), "a dict_keys has no order"),
        (b"abc", "3 different texts"),
    ],
)
def test_what_does_not_say_which_class_is_which_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        in_order(given, 3)


def test_without_a_number_of_classes_the_names_say_how_many():
    assert in_order({"b": 1, "a": 0}) == ("a", "b")
    assert in_order(None) is None
    with pytest.raises(ValueError, match="`names` must give each number from 0 to 1"):
        in_order({"b": 2, "a": 0}, argument="names")
