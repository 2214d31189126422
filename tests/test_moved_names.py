"""Module names of earlier versions still name the same things."""

import importlib
import subprocess
import sys

import pytest

from defended import _moved


@pytest.mark.parametrize("name", sorted(_moved.MOVED))
def test_an_earlier_module_name_gives_the_module_that_took_its_place(name):
    earlier, now = importlib.import_module(name), importlib.import_module(_moved.MOVED[name])
    public = [attribute for attribute in vars(now) if not attribute.startswith("__")]
    assert public
    assert all(getattr(earlier, attribute) is getattr(now, attribute) for attribute in public)


def test_an_earlier_module_does_not_hide_the_function_of_its_name():
    program = (
        "from defended.serving.export import export as first\nfrom defended import serving\n"
        "assert serving.export is first and callable(serving.audit)\n"
        "import defended.attacks.measure\nassert callable(defended.attacks.measure.susceptibility)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_name_that_never_was_is_an_error():
    with pytest.raises(AttributeError, match=r"defended\.serving.*no_such"):
        importlib.import_module("defended.serving").no_such  # noqa: B018
