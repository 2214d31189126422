"""The tree of exceptions: drawn from the code, with the builtin base and the place that each one had before."""

import ast
import builtins
import importlib
import inspect
import pickle
from pathlib import Path

import numpy as np
import pytest

import defended
from defended import exceptions
from defended.exceptions import DefendedError

ROOT = Path(__file__).resolve().parents[2]

# Each with the builtin exception that users may catch it by, and the modules that it is imported from.
KNOWN = {
    "CertificateViolation": (RuntimeError, ("defended.attacks", "defended.attacks.core.checks")),
    "NotHereError": (Exception, ("defended.attacks.paper.settings",)),
    "ArtefactError": (ValueError, ("defended.serving", "defended.serving.artefacts.artefact")),
    "SignatureError": (ValueError, ("defended.serving", "defended.serving.artefacts.signing")),
    "ForbiddenOpError": (ValueError, ("defended.serving", "defended.serving.artefacts.allowed_ops")),
    "CppLoaderError": (RuntimeError, ("defended.serving", "defended.serving.artefacts.cpp_loader")),
    "AgreementError": (ValueError, ("defended.serving", "defended.serving.exporting.agreement")),
    "MissingExtraError": (ImportError, ("defended.serving.exporting.warm_up",)),
    "ClientError": (RuntimeError, ("defended.serving", "defended.serving.clients.transports")),
    "RequestLogError": (ValueError, ("defended.serving", "defended.serving.clients.request_log")),
    "ServingError": (Exception, ("defended.serving.server.errors",)),
    "EndpointError": (ValueError, ("defended.serving", "defended.serving.auditing.targets")),
    "ConditionsError": (ValueError, ("defended.serving", "defended.serving.auditing.conditions")),
    "RecordError": (ValueError, ("defended.serving", "defended.serving.auditing.record")),
    "SourceError": (RuntimeError, ("defended.serving.monitoring.sources",)),
    "StateError": (ValueError, ("defended.serving", "defended.serving.monitoring.rejection_monitor")),
    "WorkerLostError": (RuntimeError, ("defended.serving.cluster", "defended.serving.cluster.engines")),
    "BFloat16Warning": (UserWarning, ("defended.training.bfloat16",)),
    "EditedFileWarning": (UserWarning, ("defended.serving", "defended.serving.exporting.deployment_files")),
}


def defined() -> list[type[BaseException]]:
    """Return the module's own exceptions in the order of the file."""
    found = [value for value in vars(exceptions).values() if inspect.isclass(value)]
    return [cls for cls in found if issubclass(cls, BaseException) and cls.__module__ == exceptions.__name__]


def draw(cls: type[BaseException]) -> list[str]:
    """Return the lines of a class and of those below it, each with its builtin bases."""
    names = [base.__name__ for base in cls.__bases__ if base.__module__ == "builtins"]
    lines = [cls.__name__ + (f" ({', '.join(names)})" if names else "")]
    children = [child for child in defined() if cls in child.__bases__]
    for child in children:
        branch, below = ("└── ", "    ") if child is children[-1] else ("├── ", "│   ")
        first, *rest = draw(child)
        lines += [branch + first, *(below + line for line in rest)]
    return lines


def test_the_docstring_shows_the_tree_that_the_code_is():
    tops = [cls for cls in defined() if not any(base in defined() for base in cls.__bases__)]
    assert tops[0] is DefendedError
    drawn = "\n\n".join("\n".join(f"    {line}" for line in draw(top)) for top in tops)
    assert f"\n\n{drawn}\n\n" in exceptions.__doc__


def test_every_exception_of_the_project_is_defined_there():
    names = {
        name for name, value in vars(builtins).items() if inspect.isclass(value) and issubclass(value, BaseException)
    }
    names |= {cls.__name__ for cls in defined()}
    elsewhere = [
        f"{path.relative_to(ROOT)}: {node.name}"
        for folder in ("defended", "attacks", "serving")
        for path in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef) and any(ast.unparse(base).rpartition(".")[2] in names for base in node.bases)
        if path != ROOT / "defended" / "exceptions.py"
    ]
    assert not elsewhere


def test_the_list_of_this_file_is_complete():
    assert {cls.__name__ for cls in defined()} == {"DefendedError", *KNOWN}


@pytest.mark.parametrize("name", KNOWN)
def test_each_is_what_it_was_and_where_it_was(name):
    builtin, places = KNOWN[name]
    cls = getattr(exceptions, name)
    assert [base for base in cls.__bases__ if base is not DefendedError] == ([] if builtin is Exception else [builtin])
    assert issubclass(cls, DefendedError) == (not issubclass(cls, Warning))
    assert all(getattr(importlib.import_module(place), name) is cls for place in places)


def test_the_root_catches_what_the_library_raises(tmp_path):
    from defended.serving import load

    with pytest.raises(defended.exceptions.DefendedError, match="is not an artefact"):
        load(tmp_path)


def test_a_violation_of_another_process_arrives_whole():
    error = exceptions.CertificateViolation("broken", np.array([3]), np.zeros((1, 2), np.float32))
    found = pickle.loads(pickle.dumps(error))
    assert (str(found), found.index.tolist(), found.inputs.shape) == ("broken", [3], (1, 2))
