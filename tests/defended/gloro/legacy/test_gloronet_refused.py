"""Hostile, damaged and foreign `.gloronet` files: an error that names the member and the reason, and nothing left."""

import gzip
import io
import json
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import h5py
import numpy as np
import pytest

from defended import load_gloronet
from defended.gloro.legacy import archive as archives
from defended.gloro.legacy import layers as legacy_layers
from defended.gloro.legacy.archive import read_archive

DATA = Path(__file__).parents[3] / "data"


def good():
    """The members of a sound file: settings, and weights as an HDF5 file."""
    with tarfile.open(DATA / "gloro_1_1_1.gloronet") as archive:
        found = {Path(info.name).name: archive.extractfile(info).read() for info in archive if info.isfile()}
    return found["config.json"], found["f.h5"]


def member(name, content=b"", **fields):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, content


def packed(*members, file_format=tarfile.PAX_FORMAT):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=file_format) as archive:
        for info, content in members:
            archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def sound(config=None, weights=None, *further):
    settings, values = good()
    return packed(
        member("m/config.json", settings if config is None else config),
        member("m/f.h5", values if weights is None else weights),
        *further,
    )


def changed_h5(change):
    """A sound archive, with its HDF5 file changed by `change(file)`."""
    stream = io.BytesIO(good()[1])
    with h5py.File(stream, "r+") as file:
        change(file)
    return sound(weights=stream.getvalue())


def changed_config(change):
    def apply(file):
        config = json.loads(file.attrs["model_config"])
        change({layer["name"]: layer for layer in config["config"]["layers"]}, config)
        file.attrs["model_config"] = json.dumps(config)

    return changed_h5(apply)


def layer(name="dense", class_name=None, **settings):
    def change(layers, config):
        found = next(layer for key, layer in layers.items() if key.startswith(name))
        found["class_name"] = class_name or found["class_name"]
        found["config"].update(settings)

    return lambda: changed_config(change)


def damaged_header(data):
    return data[:1024] + b"?" + data[1025:]


def replaced_weight(value, **options):
    def change(file):
        group = file["model_weights/dense/dense"]
        del group["bias:0"]
        if value is not None:
            group.create_dataset("bias:0", data=value, **options)

    return changed_h5(change)


def external(file):
    del file["model_weights/dense/dense/bias:0"]
    file["model_weights/dense/dense/bias:0"] = h5py.ExternalLink("/etc/passwd", "/x")


def soft(file):
    del file["model_weights/dense/dense/bias:0"]
    file["model_weights/dense/dense/bias:0"] = h5py.SoftLink("/model_weights/dense_1/dense_1/bias:0")


def external_data(file):
    group = file["model_weights/dense/dense"]
    del group["bias:0"]
    group.create_dataset("bias:0", (12,), "<f4", external=[("/etc/passwd", 0, 48)])


def unallocated(file):
    group = file["model_weights/dense/dense"]
    del group["bias:0"]
    group.create_dataset("bias:0", (2**30,), "<f4")


def cycle(file):
    file["model_weights/dense/dense/again"] = file["model_weights"]


def many_names(file):
    for number in range(1000):
        file[f"model_weights/dense/dense/x{number}"] = file["model_weights/dense/dense/kernel:0"]


def without_model_config(file):
    del file.attrs["model_config"]


def second_call(layers, config):
    layers["dense"]["inbound_nodes"][0][0][0] = "dense_1"


def call_with_arguments(layers, config):
    layers["dense"]["inbound_nodes"][0][0][3] = {"training": True}


def deeper(layers, config):
    inner = {"class_name": "Functional", "config": json.loads(json.dumps(config["config"]))}
    for _ in range(6):
        outer = {
            "class_name": "Functional",
            "name": "n",
            "inbound_nodes": [[["x", 0, 0, {}]]],
            "config": inner["config"],
        }
        data = {"batch_input_shape": [None, 8, 8, 2], "name": "x"}
        source = {"class_name": "InputLayer", "name": "x", "config": data, "inbound_nodes": []}
        ends = {"input_layers": [["x", 0, 0]], "output_layers": [["n", 1, 0]]}
        inner = {"class_name": "Functional", "config": {"name": "n", "layers": [source, outer], **ends}}
    config["config"] = inner["config"]


CONFIG, H5 = "'m/config.json'", "'m/f.h5'"
LINK = "'m/f.h5' is a link, a device, sparse or the like .type b'{}'"
SPARSE = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "99"}
CASES = {
    # The archive.
    "path traversal": (lambda: packed(member("../f.h5", b"x")), r"'\.\./f\.h5' is not expected"),
    "deep traversal": (lambda: packed(member("m/../../f.h5", b"x")), r"'m/\.\./\.\./f\.h5' is not expected"),
    "absolute name": (lambda: packed(member("/etc/f.h5", b"x")), "'/etc/f.h5' is not expected"),
    "backslashes": (lambda: packed(member("m\\f.h5", b"x")), "f.h5' is not expected: only"),
    "traversal in an extended header": (
        lambda: packed(member("m/f.h5", b"x", pax_headers={"path": "../../evil"})),
        r"'\.\./\.\./evil'",
    ),
    "symlink": (
        lambda: packed(member("m/f.h5", type=tarfile.SYMTYPE, linkname="/etc/passwd")), LINK.format("2")
    ),
    "hard link": (lambda: packed(member("m/f.h5", type=tarfile.LNKTYPE, linkname="m/x")), LINK.format("1")),
    "device": (lambda: packed(member("m/f.h5", type=tarfile.CHRTYPE)), LINK.format("3")),
    "block device": (lambda: packed(member("m/f.h5", type=tarfile.BLKTYPE)), LINK.format("4")),
    "fifo": (lambda: packed(member("m/f.h5", type=tarfile.FIFOTYPE)), LINK.format("6")),
    "sparse": (lambda: packed(member("m/f.h5", type=tarfile.GNUTYPE_SPARSE)), LINK.format("S")),
    "sparse by an extended header": (
        lambda: packed(member("m/f.h5", b"1\n0\n9\n".ljust(512, b"\0"), pax_headers=SPARSE)), LINK.format("0"),
    ),
    "size by an extended header": (
        lambda: packed(member("m/f.h5", b"x", pax_headers={"size": "-1024"})), "'m/f.h5' is truncated.*: -1024 bytes",
    ),
    "unknown type": (lambda: packed(member("m/f.h5", type=b"Z")), LINK.format("Z")),
    "duplicate": (lambda: sound(None, None, member("m/config.json", b"{}")), f"{CONFIG} appears twice"),
    "extra member": (lambda: sound(None, None, member("m/run.py", b"x")), "'m/run.py' is not expected"),
    "extra folder": (lambda: sound(None, None, member("m/x", type=tarfile.DIRTYPE)), "'m/x/' is not expected"),
    "second folder": (lambda: packed(member("m/config.json", b"{}"), member("n/f.h5")), "'n/f.h5' is not expected"),
    "file in no folder": (lambda: packed(member("f.h5", b"x")), "'f.h5' is not expected"),
    "missing weights": (lambda: packed(member("m/config.json", b"{}")), f"{H5} is missing"),
    "missing settings": (lambda: packed(member("m/f.h5", b"x")), f"{CONFIG} is missing"),
    "many members": (
        lambda: packed(*[member("m", type=tarfile.DIRTYPE) for _ in range(20)]), "'m/' appears twice",
    ),
    "gzip bomb": (lambda: gzip.compress(bytes(2**27)), "decompression bomb"),
    "oversize settings": (lambda: sound(b" " * 2**17), f"{CONFIG} is too large"),
    "truncated gzip": (lambda: gzip.compress(sound())[:-2000], "truncated or damaged: .* end-of-stream"),
    "tampered gzip": (lambda: gzip.compress(sound())[:-6] + b"abcdef", "truncated or damaged: CRC check failed"),
    "longer gzip": (lambda: gzip.compress(sound()) + b"abc", "truncated or damaged: Not a gzipped file"),
    "truncated member": (lambda: sound()[:5000], f"{H5} is truncated"),
    "truncated end": (lambda: sound().rstrip(b"\0"), "truncated"),
    "data behind the end": (lambda: sound() + b"x" * 512, "data are behind its end"),
    "damaged header": (lambda: damaged_header(sound()), "damaged at byte 1024"),
    "negative size": (lambda: resized(b"-0000001000\0"), "'m/config.json' is truncated or damaged: -512 bytes"),
    "huge size": (lambda: resized(b"\x80" + (2**60).to_bytes(11)), f"{CONFIG} is truncated or damaged: {2**60} bytes"),
    "chain of extended headers": (
        lambda: packed(*[member("m/f.h5", type=tarfile.XHDTYPE) for _ in range(3000)]), "of another format.*recursion",
    ),
    "not a tar": (lambda: b"x" * 4096, "of another format"),
    "empty": (lambda: b"", "of another format.*empty"),
    "another archive": (lambda: b"PK\3\4" + bytes(1000), "of another format"),
    # The settings.
    "settings that are not JSON": (lambda: sound(b"{'epsilon': 0.3}"), f"{CONFIG} is not JSON"),
    "settings that are not text": (lambda: sound(b"\xff\xfe"), f"{CONFIG} is not JSON"),
    "settings without end": (lambda: sound(b"[" * 60000), f"{CONFIG} is not JSON"),
    "settings that are a list": (lambda: sound(b"[]"), f"{CONFIG} must hold a JSON object"),
    "repeated setting": (lambda: sound(b'{"epsilon": 1, "epsilon": 2}'), f"{CONFIG} is not JSON: a key is repeated"),
    "unknown setting": (lambda: sound(b'{"epsilon": 1, "__class__": "os.system"}'), f"{CONFIG}.*'__class__'"),
    "negative epsilon": (lambda: sound(b'{"epsilon": -0.3}'), f"{CONFIG}.*'epsilon' must be a positive.*-0.3"),
    "infinite epsilon": (lambda: sound(b'{"epsilon": Infinity}'), f"{CONFIG}.*'epsilon' must be a positive.*inf"),
    "no epsilon": (lambda: sound(b"{}"), f"{CONFIG}.*'epsilon'.*None"),
    "epsilon as text": (lambda: sound(b'{"epsilon": "0.3"}'), f"{CONFIG}.*'epsilon'"),
    "top-k model": (lambda: sound(b'{"epsilon": 0.3, "k": 3}'), f"{CONFIG}.*'k' is set.*relaxed"),
    "affinity model": (lambda: sound(b'{"epsilon": 0.3, "affinity_sets": "[[0]]"}'), f"{CONFIG}.*affinity"),
    # The weights.
    "not HDF5": (lambda: sound(weights=b"x" * 600), f"{H5}: it is not an HDF5 file"),
    "truncated HDF5": (lambda: sound(weights=good()[1][:-4000]), f"{H5}.*truncated or damaged"),
    "another layout of HDF5": (lambda: sound(weights=latest_h5()), f"{H5}.*not an HDF5 file of the layout"),
    "no weights": (
        lambda: changed_h5(lambda file: file.pop("model_weights")), f"{H5}.*'conv2d' .Conv2D.*'kernel' is missing"
    ),
    "no architecture": (lambda: changed_h5(without_model_config), f"{H5}.*'model_config' is missing"),
    "architecture as a number": (
        lambda: changed_h5(lambda file: file.attrs.update(model_config=3)), f"{H5}.*'model_config'.*is not a text",
    ),
    "architecture that is not JSON": (
        lambda: changed_h5(lambda file: file.attrs.update(model_config="{")), f"{H5}.*'model_config' is not JSON",
    ),
    "external link": (
        lambda: changed_h5(external), f"{H5}.*'model_weights/dense/dense/bias:0' is a link to elsewhere .External"
    ),
    "soft link": (lambda: changed_h5(soft), f"{H5}.*'model_weights/dense/dense/bias:0' is a link to elsewhere .Soft"),
    "external data": (lambda: changed_h5(external_data), f"{H5}.*dense/bias:0' is in chunks.* or kept in another file"),
    "data that are not there": (lambda: changed_h5(unallocated), f"{H5}.*dense/bias:0' is of shape .1073741824,"),
    "data named often": (lambda: changed_h5(many_names), f"{H5}.*dense/x.*' is of shape .32, 12., for which"),
    "cycle": (lambda: changed_h5(cycle), f"{H5}.*refers to itself"),
    "foreign group": (lambda: changed_h5(lambda file: file.create_group("x")), f"{H5}.*'x' is not expected"),
    "wrong shape": (
        lambda: replaced_weight(np.zeros(13, "<f4")), f"{H5}.*'dense'.*'dense/bias:0' must have shape .12,.*13",
    ),
    "missing weight": (lambda: replaced_weight(None), f"{H5}.*layer 'dense' .Dense.*weight 'bias' is missing"),
    "extra weight": (
        lambda: changed_h5(lambda file: file.create_dataset("model_weights/dense/dense/x:0", data=np.ones(2, "<f4"))),
        f"{H5}.*weights that no layer takes: 'dense: dense/x:0'",
    ),
    "NaN": (lambda: replaced_weight(np.full(12, np.nan, "<f4")), f"{H5}.*'dense/bias:0' holds NaN"),
    "double precision": (lambda: replaced_weight(np.zeros(12)), f"{H5}.*dense/bias:0' is not of the type float32"),
    "objects": (
        lambda: replaced_weight(np.array(["x"] * 12, object), dtype=h5py.string_dtype()), "is not of the type float32",
    ),
    "chunks": (lambda: replaced_weight(np.zeros(12, "<f4"), chunks=(4,)), f"{H5}.*dense/bias:0' is in chunks"),
    "filter": (
        lambda: replaced_weight(np.zeros(12, "<f4"), compression="gzip"), f"{H5}.*dense/bias:0' is in chunks, filtered,"
    ),
    # The architecture.
    "Lambda": (layer("min_max", "Lambda"), f"{H5}.*layer 'min_max' .Lambda.*code that a file brings is never run"),
    "unknown layer": (layer("min_max", "Attention"), f"{H5}.*layer 'min_max' .Attention.*Rebuild the network"),
    "scaling": (layer("min_max", "Scaling"), f"{H5}.*layer 'min_max' .Scaling.*fold"),
    "normalisation": (layer("min_max", "BatchNormalization"), "'min_max' .BatchNormalization.*'gamma' is missing"),
    "absolute values": (layer("min_max", absolute_value=True), "'min_max'.*'absolute_value' must be one of False"),
    "unknown setting of a layer": (layer("min_max", power=2), "'min_max'.*not known here: 'power'"),
    "half precision": (layer("dense", dtype="float16"), "'dense'.*computes in 'float16'"),
    "activation as code": (layer("dense", activation={"class_name": "function"}), "'dense'.*'activation' must be one"),
    "absurd units": (layer("dense", units=10**12), "'dense'.*'units' must be an integer from 1 to 1048576"),
    "more units than weights": (layer("dense", units=2**20), "'dense/kernel:0' must have shape .32, 1048576"),
    "negative units": (layer("dense", units=-1), "'dense'.*'units' must be an integer"),
    "units as text": (layer("dense", units="12"), "'dense'.*'units' must be an integer"),
    "absurd input": (
        layer("input", batch_input_shape=[None, 4096, 4096, 64]), "'input_1' .InputLayer.*'batch_input_shape' must be",
    ),
    "open input": (layer("input", batch_input_shape=[None, None, None, 2]), "'batch_input_shape' must be an integer"),
    "closed batch": (layer("input", batch_input_shape=[1, 8, 8, 2]), "'batch_input_shape' must be .null"),
    "huge image": (
        layer("input", batch_input_shape=[None, 4096, 2048, 2]), "'conv2d' .Conv2D.*more than 16777216 entries",
    ),
    "channels first": (layer("conv2d", data_format="channels_first"), "'conv2d'.*'data_format' must be one of"),
    "bad stride": (layer("conv2d", strides=[1, 0]), "'conv2d'.*'strides' must be an integer"),
    "odd pooling": (layer("invertible", pool_size=[3, 3]), "'invertible_downsampling'.*divisible"),
    "another class of the same name": (
        lambda: changed_config(lambda layers, config: layers["dense"].update(module="mine")), "'Dense' of 'mine'",
    ),
    "layer that waits for itself": (lambda: changed_config(second_call), "receives call 0 of 'dense_1'"),
    "call with arguments": (lambda: changed_config(call_with_arguments), "'dense'.*further arguments"),
    "network of another kind": (
        lambda: changed_config(lambda layers, config: config.update(class_name="Evil")), "must be one of.*'Evil'",
    ),
    "no layers": (
        lambda: changed_config(lambda layers, config: config["config"].update(layers=[])), "1 to 1000 'layers'",
    ),
    "too many layers": (
        lambda: changed_config(lambda layers, config: config["config"].update(layers=[{}] * 1001)), "1 to 1000",
    ),
    "same names": (
        lambda: changed_config(lambda layers, config: layers["dense"].update(layers["conv2d"])),
        "two layers of the same name",
    ),
    "two outputs": (
        lambda: changed_config(lambda layers, config: config["config"]["output_layers"].append(["dense", 0, 0])),
        "one input and one output",
    ),
    "deep nesting": (lambda: changed_config(deeper), "nested more than 4 deep"),
}  # fmt: skip


def resized(size):
    data = bytearray(sound())
    data[124:136] = size
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    return bytes(data)


def latest_h5():
    stream = io.BytesIO()
    with h5py.File(stream, "w", libver="latest") as file:
        file.create_group("model_weights")
    return stream.getvalue()


@pytest.mark.parametrize("name", CASES)
def test_refused_files_say_why_and_leave_nothing(name, tmp_path, monkeypatch):
    build, message = CASES[name]
    path = tmp_path / "in" / "m.gloronet"
    work, temporary = tmp_path / "work", tmp_path / "temporary"
    for folder in (path.parent, work, temporary):
        folder.mkdir()
    path.write_bytes(build())
    monkeypatch.chdir(work)
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    with pytest.raises(ValueError, match=message) as caught:
        load_gloronet(path)
    assert "m.gloronet' cannot be loaded" in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == sorted([path.parent, work, temporary, path])


def test_convolutions_that_are_too_large_to_be_bounded(monkeypatch):
    monkeypatch.setattr(legacy_layers, "MAX_TRANSFER", 8 * 8 * 2 * 4 - 1)
    with pytest.raises(ValueError, match=r"'conv2d' .Conv2D.*with 4 filters.*too large to be bounded"):
        load_gloronet(DATA / "gloro_1_1_1.gloronet")


def test_calls_multiply_over_nested_networks(tmp_path):
    """Forty calls of a network that calls forty times would be run 1,600 times."""

    def many(layers, config):
        def network(name, inner):
            data = {"class_name": "InputLayer", "name": "x", "inbound_nodes": []}
            source = {**data, "config": {"batch_input_shape": [None, 4], "name": "x"}}
            first = 1 if inner["class_name"] == "Functional" else 0
            calls = [[["x", 0, 0, {}]]] + [[[inner["name"], first + number, 0, {}]] for number in range(39)]
            ends = {"input_layers": [["x", 0, 0]], "output_layers": [[inner["name"], first + 39, 0]]}
            inner = {**inner, "inbound_nodes": calls}
            return {
                "class_name": "Functional",
                "name": name,
                "config": {"name": name, "layers": [source, inner], **ends},
            }

        leaf = {"class_name": "MinMax", "name": "leaf", "config": {"name": "leaf"}}
        config["config"] = network("b", network("a", leaf))["config"]

    path = tmp_path / "m.gloronet"
    path.write_bytes(changed_config(many))
    with pytest.raises(ValueError, match="more than 1000 times"):
        load_gloronet(path)


def test_sound_archives_in_other_wrappings(tmp_path):
    """Plain or gzipped, with long and non-ASCII folder names in both styles of long names."""
    settings, weights = good()
    for number, folder in enumerate(["m", "größe", "n" * 120]):
        members = [
            member(folder, type=tarfile.DIRTYPE), member(f"{folder}/config.json", settings, mtime=1.5),
            member(f"{folder}/f.h5", weights),
        ]  # fmt: skip
        for file_format, gzipped in ((tarfile.PAX_FORMAT, number % 2), (tarfile.GNU_FORMAT, number % 2 == 0)):
            data = packed(*members, file_format=file_format)
            path = tmp_path / "x.gloronet"
            path.write_bytes(gzip.compress(data) if gzipped else data)
            archive = read_archive(path)
            assert archive[:2] == (folder, json.loads(settings))
            assert len(archive.weights) > 3


def test_paths_that_are_no_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file.*none\.gloronet"):
        load_gloronet(tmp_path / "none.gloronet")
    with pytest.raises(ValueError, match="not a regular file"):
        load_gloronet(tmp_path)


def test_a_file_that_is_too_large_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_FILE", 1000)
    with pytest.raises(ValueError, match="more than 1000 bytes"):
        load_gloronet(DATA / "gloro_1_1_1.gloronet")


# The process that reads a file.


def test_random_damage_ends_with_weights_or_a_refusal(tmp_path):
    """Some of these files end a process that reads them with the HDF5 library."""
    random = np.random.default_rng(0)
    content, tar = good()[1], sound()

    def damaged(data, first):
        data = bytearray(data)
        for place in random.integers(min(first, len(data)), size=5):
            data[place] = random.choice([0, 1, 255, random.integers(256)])
        return bytes(data)

    files = [sound(weights=damaged(content, first)) for first in [4096, len(content)] * 6]
    files += [damaged(tar, 2048) for _ in range(4)] + [random.bytes(size) for size in (1, 600, 20000)]
    files += [b"\x1f\x8b" + random.bytes(1000), sound(weights=content[:8] + random.bytes(5000))]
    refused = 0
    for number, data in enumerate(files):
        path = tmp_path / f"{number}.gloronet"
        path.write_bytes(data)
        try:
            assert read_archive(path).folder
        except ValueError as error:
            assert "Save the model again" in str(error)  # noqa: PT017
            refused += 1
    assert 8 < refused < len(files)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import os; os.abort()", "ended with status -6"),
        ("import sys; sys.exit(3)", "ended with status 3"),
        ("import time; time.sleep(1000)", "takes more than 2 seconds"),
        ("print('[1]')", "does not answer in its form"),
        ("print('x' * 10**6)", "does not answer in its form"),
        ('print(\'["", "", "", [[["a", "b"], [2]]], null]\')', "does not answer in its form"),
        ("", "does not answer in its form"),
    ],
)
def test_whatever_the_process_does_is_an_error_of_the_file(code, reason, tmp_path, monkeypatch):
    child = tmp_path / "child.py"
    child.write_text(code)
    monkeypatch.setattr(archives, "CHILD", child)
    monkeypatch.setattr(archives, "WALL_SECONDS", 2 if "sleep" in code else 600)
    with pytest.raises(ValueError, match=rf"cannot be loaded: it is damaged and cannot be read.*{reason}\. Save"):
        load_gloronet(DATA / "gloro_later.gloronet")


LIMITED = """
import runpy, sys
limit = runpy.run_path(sys.argv[1])["limit"]
limit(2**29, 1)
try:
    bytes(2**30)
except MemoryError:
    print("no memory")
try:
    open(sys.argv[2], "w").write("x" * 100000)
except OSError:
    print("no file")
sys.stdout.flush()
while True:
    pass
"""


@pytest.mark.skipif(sys.platform == "win32", reason="has no such limits")
def test_the_process_has_limits_of_memory_time_and_files(tmp_path):
    command = [sys.executable, "-I", "-c", LIMITED, archives.CHILD, tmp_path / "file"]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert run.stdout.split("\n")[:2] == ["no memory", "no file"], run.stderr
    assert run.returncode < 0  # by a signal, when its second is over
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b""]


def test_the_process_imports_nothing_of_this_library():
    code = "import os, runpy, sys; os._exit = lambda code: print(*sys.modules, file=sys.stderr); del sys.argv[0]"
    code += "; runpy.run_path(sys.argv[0], run_name='__main__')"
    command = [sys.executable, "-I", "-c", code, archives.CHILD, str(2**30), "30"]
    run = subprocess.run(command, input=(DATA / "gloro_later.gloronet").read_bytes(), capture_output=True)
    modules = set(run.stderr.decode().split())
    assert "h5py" in modules
    assert not {"tensorflow", "keras", "defended"} & modules


def test_libraries_are_found_where_this_process_finds_them(tmp_path, monkeypatch):
    """Places that `-I` leaves out, such as those of PYTHONPATH, come behind the child's own."""
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    child = tmp_path / "child.py"
    child.write_text(archives.CHILD.read_text().replace("    import h5py", "    import h5py, beside"))
    (tmp_path / "beside.py").write_text("")
    monkeypatch.setattr(archives, "CHILD", child)
    assert read_archive(DATA / "gloro_later.gloronet").weights
