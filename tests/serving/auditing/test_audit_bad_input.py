"""What others wrote, read by audits and monitors: an error that names it, never another one, whatever it holds."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plane import Plane, points

from defended.serving import ConditionsError, EndpointError, RecordError, RejectionMonitor, StateError, audit
from defended.serving.auditing.answers import checked
from defended.serving.auditing.conditions import parse_conditions, read_conditions
from defended.serving.auditing.record import read_record
from defended.serving.monitoring.sources import CounterPosition, SourceError, new_counts
from defended.statistics.intervals import Rate

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
)
QUICK = settings(max_examples=60, deadline=None)


@pytest.fixture(scope="module")
def record():
    x, y = points(100)
    return audit(Plane(), x, y).record().model_dump(mode="json")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("files") / "file"


@QUICK
@given(content=st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_files_of_any_content(content, path):
    path.write_bytes(content)
    with pytest.raises(RecordError, match="is not an audit"):
        read_record(path)
    with pytest.raises(ConditionsError):
        read_conditions(path)
    with pytest.raises(StateError):
        RejectionMonitor(Rate(4, 100)).restore(path)


@QUICK
@given(data=st.data())
def test_a_record_with_one_value_replaced(data, record):
    key = data.draw(st.sampled_from(sorted(record)))
    value = data.draw(JSON)
    changed = json.dumps(record | {key: value})
    try:
        from defended.serving import AuditRecord

        read = AuditRecord.model_validate_json(changed)
    except ValueError:
        return
    # What is read is what could have been written.
    assert AuditRecord.model_validate_json(read.model_dump_json()) == read


@QUICK
@given(limits=st.dictionaries(st.sampled_from(["vra", "fpr_upper", "epsilon", "x"]), JSON, max_size=3))
def test_conditions_of_any_form(limits):
    try:
        found = parse_conditions(limits)
    except ConditionsError:
        return
    for condition in found.values():
        assert (condition.max is None) != (condition.min is None)


@QUICK
@given(page=st.text(max_size=300), tail=st.text(alphabet='{}",=\n 0123456789abc', max_size=80))
def test_pages_of_any_text(page, tail):
    for text in (page, f"defended_verdicts_total{tail}"):
        position = CounterPosition(5, 1)
        try:
            total, rejected = new_counts(text, position, None, None)
        except SourceError:
            continue
        assert 0 <= rejected <= total


SHAPES = st.sampled_from([(0,), (3,), (4,), (3, 1), (3, 2), (3, 5), ()])
ARRAYS = st.tuples(SHAPES, st.sampled_from(["int64", "float32", "bool", "<U3"]), st.integers(-3, 9)).map(
    lambda drawn: np.full(drawn[0], drawn[2]).astype(drawn[1])
)
NAMES = st.sampled_from(["label", "rejected", "scores", "certified_radius", "availability_radius", "reason", "other"])


@QUICK
@given(answer=st.dictionaries(NAMES, ARRAYS))
def test_answers_of_any_form(answer):
    try:
        found = checked(answer, 3, "serving_default")
    except EndpointError:
        return
    assert found["label"].shape == found["rejected"].shape == (3,)
    assert ((found["label"] < 0) == found["rejected"].astype(bool)).all()
