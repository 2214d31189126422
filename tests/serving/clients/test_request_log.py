"""The request log: what is written is read back, whatever happens to the process and the disk."""

import os
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf

pytest.importorskip("tensorflow_serving")

from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog

from defended.exceptions import RequestLogError
from defended.serving.clients.logged_answers import log_files, read_request_log
from defended.serving.clients.request_log import RequestLog


def image(n, seed=0):
    return np.random.default_rng(seed).normal(size=(n, 2, 3)).astype("float32")


def answer(n):
    return {"label": np.arange(n) - 1, "rejected": np.arange(n) < 1, "scores": image(n)[:, 0]}


def fill(log, number, n=2):
    for seed in range(number):
        log.add("digits", 3, "serving_default", {"image": image(n, seed)}, answer(n))
        log.flush()


class TestRecords:
    def test_are_read_back_bit_for_bit(self, tmp_path):
        x = image(4)
        x[0, 0, 0], x[1, 0, 0] = np.nan, -np.inf
        with RequestLog(tmp_path / "log") as log:
            log.add("digits", 2**40, "audit", {"image": x}, answer(4))
        (found,) = read_request_log(tmp_path / "log")
        assert (found.model, found.version, found.signature) == ("digits", 2**40, "audit")
        assert found.inputs.tobytes() == x.tobytes()
        assert found.inputs.dtype == np.float32
        for name, value in answer(4).items():
            np.testing.assert_array_equal(found.outputs[name], value)
            assert found.outputs[name].dtype == value.dtype

    def test_are_prediction_logs_in_tfrecord_files(self, tmp_path):
        with RequestLog(tmp_path) as log:
            fill(log, 3)
        (path,) = log_files(tmp_path)
        records = [PredictionLog.FromString(r) for r in tf.data.TFRecordDataset(str(path)).as_numpy_iterator()]
        assert [record.WhichOneof("log_type") for record in records] == ["predict_log"] * 3
        request = records[1].predict_log.request
        assert (request.model_spec.name, request.model_spec.version.value) == ("digits", 3)
        np.testing.assert_array_equal(tf.make_ndarray(request.inputs["image"]), image(2, 1))

    def test_without_inputs_tell_of_verdicts_only(self, tmp_path):
        with RequestLog(tmp_path, keep_inputs=False) as log:
            fill(log, 1)
        (found,) = read_request_log(tmp_path)
        assert found.inputs is None
        assert found.outputs["label"].tolist() == [-1, 0]

    def test_of_a_sample_are_that_share(self, tmp_path):
        with RequestLog(tmp_path, sample=0.25) as log:
            for _ in range(400):
                log.add("m", 1, "s", {}, {"label": np.zeros(1, np.int64)})
        # Binomial(400, 1/4): outside 60...140 with probability below 1e-5.
        assert 60 <= len(list(read_request_log(tmp_path))) == log.written <= 140
        assert log.lost == {"disk": 0, "queue": 0}

    def test_stay_when_the_folder_is_used_again(self, tmp_path):
        for _ in range(2):
            with RequestLog(tmp_path) as log:
                fill(log, 2)
        assert len(list(read_request_log(tmp_path))) == 4


class TestRotation:
    def test_bounds_files_and_their_number_and_drops_the_oldest(self, tmp_path):
        with RequestLog(tmp_path, max_bytes=500, max_files=3) as log:
            fill(log, 20)
        files = log_files(tmp_path)
        assert len(files) == 3
        assert all(path.stat().st_size < 1000 for path in files)
        found = [answer.inputs for answer in read_request_log(tmp_path)]
        assert 3 <= len(found) < 20
        for kept, seed in zip(reversed(found), reversed(range(20)), strict=False):
            np.testing.assert_array_equal(kept, image(2, seed))

    def test_touches_no_other_file(self, tmp_path):
        (tmp_path / "notes.txt").write_text("mine")
        with RequestLog(tmp_path, max_bytes=1, max_files=1) as log:
            fill(log, 5)
        assert (tmp_path / "notes.txt").read_text() == "mine"
        assert len(log_files(tmp_path)) == 1


class TestDamage:
    @pytest.fixture
    def file(self, tmp_path):
        with RequestLog(tmp_path) as log:
            fill(log, 3)
        return log_files(tmp_path)[0]

    def test_a_torn_last_record_ends_the_file_at_every_length(self, file):
        content = file.read_bytes()
        record = len(content) // 3
        for size in (0, 1, record - 1, record, *range(2 * record, 3 * record, 7), len(content)):
            file.write_bytes(content[:size])
            assert len(list(read_request_log(file))) == size // record

    def test_elsewhere_is_an_error_that_names_the_record(self, file):
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
        records = read_request_log(file)
        next(records)
        with pytest.raises(RequestLogError, match=r"damaged after 1 records"):
            list(records)

    def test_other_records_are_refused(self, tmp_path):
        for content, message in ((b"no protobuf", "record 0"), (PredictionLog().SerializeToString(), "holds nothing")):
            with tf.io.TFRecordWriter(str(tmp_path / "x.tfrecord")) as writer:
                writer.write(content)
            with pytest.raises(RequestLogError, match=message):
                list(read_request_log(tmp_path))

    def test_a_missing_log_is_an_error_and_an_empty_folder_is_not(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="is not a request log"):
            next(read_request_log(tmp_path / "none"))
        assert list(read_request_log(tmp_path)) == []


@pytest.mark.parametrize("arguments", [{"max_bytes": 0}, {"max_files": 0}, {"sample": 1.5}, {"sample": float("nan")}])
def test_arguments_out_of_range_are_refused(tmp_path, arguments):
    with pytest.raises(ValueError, match=f"`{next(iter(arguments))}` must be"):
        RequestLog(tmp_path, **arguments)


def test_a_second_log_in_the_same_folder_is_refused(tmp_path):
    with RequestLog(tmp_path), pytest.raises(BlockingIOError, match="another server"):
        RequestLog(tmp_path)


def test_nothing_waits_for_a_slow_disk(tmp_path, monkeypatch):
    from defended.serving.clients import request_log

    monkeypatch.setattr(request_log, "_MAX_PENDING_BYTES", 1000)
    slow = request_log.record_of
    monkeypatch.setattr(request_log, "record_of", lambda *pending: time.sleep(0.2) or slow(*pending))
    with RequestLog(tmp_path) as log:
        start = time.perf_counter()
        for _ in range(50):
            log.add("m", 1, "s", {"image": image(10)}, {})
        assert time.perf_counter() - start < 0.2
    assert log.lost["queue"] + log.written == 50
    assert 1 <= log.written <= 8


SCRIPT = """
import sys
import numpy as np
from defended.serving.clients.request_log import RequestLog
log = RequestLog(sys.argv[1], max_bytes=2**30)
x = np.ones((10, 25), np.float32)
def add(number):
    for i in range(number):
        log.add("m", 1, "s", {"image": x}, {"label": np.full(1, i)})
        log.flush()
"""


def test_a_full_disk_costs_records_and_nothing_else(tmp_path):
    # The limit on a file's size makes a write fail in its middle, as a full disk does.
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    x = np.ones((10, 25), np.float32)
    try:
        with RequestLog(tmp_path, max_bytes=2**30) as log:
            for size, number in ((5000, 12), (200, 5), (before[0], 4)):
                resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
                for i in range(number):
                    log.add("m", 1, "s", {"image": x}, {"label": np.full(1, i)})
                    log.flush()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert log.written + log.lost["disk"] == 21
    assert log.lost["disk"] >= 6
    found = list(read_request_log(tmp_path))
    assert len(found) == log.written
    assert [answer.outputs["label"][0] for answer in found[-4:]] == [0, 1, 2, 3]
    assert all((answer.inputs == 1).all() for answer in found)


def test_a_killed_process_leaves_whole_records(tmp_path):
    code = SCRIPT + "add(10)\nprint('ready', flush=True)\nwhile True: add(1)"
    process = subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, env={**os.environ})
    try:
        assert process.stdout.readline() == b"ready\n"
        time.sleep(0.3)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    found = list(read_request_log(tmp_path))
    assert len(found) >= 11
    assert all((answer.inputs == 1).all() for answer in found)
    with RequestLog(tmp_path) as log:  # the lock went with the process
        fill(log, 1)
    assert len(list(read_request_log(tmp_path))) == len(found) + 1
